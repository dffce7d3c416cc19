from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PATIENCE, some
from typer.main import get_command

from umbel import __version__
from umbel.cli.overview import OVERVIEW
from umbel.cli.program import program

SOURCE = Path(__file__).parents[2] / "src"
COMMANDS = ("new", "run", "resume", "runs", "show", "logs", "export", "stop", "pull")

Command = Callable[..., Any]


def test_help_lists_the_commands_and_the_exit_codes(umbel: Command) -> None:
    for flag in ("--help", "-h"):
        done = umbel(flag)
        assert done.code == 0
        for name in (*COMMANDS, "server", "node", "nodes", "operators", "login", "audit", "pack", "diff"):
            assert f"\n  {name} " in done.out
        assert "  143" in done.out or "143 by SIGTERM" in done.out
        assert all(len(line) <= 80 for line in done.out.splitlines())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(umbel: Command, name: str) -> None:
    done = umbel(name, "--help")
    assert done.code == 0
    assert f"umbel {name}" in done.out
    assert "--debug" in done.out


def test_the_version_is_printed(umbel: Command) -> None:
    assert umbel("--version").out == f"umbel {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("run",),
        ("run", "app.py", "--clients", "0"),
        ("run", "app.py", "--rounds", "many"),
        ("run", "app.py", "--colour"),
        ("new", "x", "--framework", "fortran"),
    ],
)
def test_a_wrong_command_line_is_told_from_other_faults(umbel: Command, arguments: tuple[str, ...]) -> None:
    done = umbel(*arguments)
    assert done.code == 2
    assert "Usage: umbel" in done.err
    assert "Traceback" not in done.err


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
        **options,
    )


def test_the_overview_loads_nothing_that_it_does_not_print() -> None:
    code = (
        "import sys\nsys.argv = ['umbel', '--help']\nfrom umbel.cli import main\n"
        "try: main()\nexcept SystemExit: print(*sys.modules)"
    )
    loaded = set(python("-c", code).stdout.splitlines()[-1].split())
    assert not loaded & {"typer", "click", "rich", "numpy", "umbel.errors"}


@pytest.mark.parametrize("path", [(), ("nodes",), ("operators",)])
def test_no_command_is_a_wrong_command_line_and_shows_which_there_are(umbel: Command, path: tuple[str, ...]) -> None:
    done = umbel(*path)
    assert done.code == 2
    assert "Commands:" in done.err


def test_a_command_line_is_read_without_rich_and_without_numpy() -> None:
    loaded = set(python("-c", "import sys, umbel.cli.program; print(*sys.modules)").stdout.split())
    assert not loaded & {"rich.console", "numpy", "asyncio"}


def test_the_overview_has_every_command_in_order_with_the_beginning_of_its_help() -> None:
    shown = OVERVIEW.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    commands = get_command(program).commands  # type: ignore[attr-defined]
    assert [line.split()[0] for line in shown] == list(commands)
    for line, command in zip(shown, commands.values(), strict=True):
        assert command.help.startswith(line.split(maxsplit=1)[1].removesuffix("..."))


def test_the_overview_is_the_help_of_the_program(umbel: Command) -> None:
    assert umbel("--help").out == OVERVIEW
    assert python("-m", "umbel.cli", "-h").stdout == OVERVIEW


def test_the_module_runs_as_a_program() -> None:
    assert python("-m", "umbel.cli", "--version").stdout == f"umbel {__version__}\n"


def pages(command: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands with their names, groups too."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from pages(below, *path, name)


@pytest.mark.parametrize("path", some([(path,) for path, _ in pages(get_command(program))], 12), ids=" ".join)
def test_help_says_every_word_that_was_written(
    umbel: Command, path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    command = dict(pages(get_command(program)))[path]
    shown = " ".join(umbel(*path, "--help").out.split())
    own = (option for option in command.params if not option.name.endswith("_completion"))  # the overview's words
    for text in (command.help, *(getattr(option, "help", None) for option in own)):
        for line in (text or "").splitlines():
            assert " ".join(line.split()).replace("\\[", "[") in shown


def test_help_names_what_pictures_need(umbel: Command) -> None:
    assert "(needs umbel[plot])" in " ".join(umbel("show", "--help").out.split())
