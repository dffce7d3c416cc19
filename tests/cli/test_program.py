from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PATIENCE

from umbel import __version__

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


def test_the_overview_loads_neither_rich_nor_a_framework() -> None:
    code = (
        "import sys\nsys.argv = ['umbel', '--help']\n"
        "from umbel.cli import main\n"
        "try: main()\nexcept SystemExit: print(*sys.modules)"
    )
    loaded = set(python("-c", code).stdout.splitlines()[-1].split())
    assert not loaded & {"rich.console", "torch", "matplotlib", "safetensors", "numpy.random"}


def test_the_module_runs_as_a_program() -> None:
    assert python("-m", "umbel.cli", "--version").stdout == f"umbel {__version__}\n"
