from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.main import get_command

from umbel import errors
from umbel.cli import faults
from umbel.cli.faults import describe, exit_code, reported, show, stop_signals
from umbel.cli.program import program


def every_error(kind: type[errors.UmbelError] = errors.UmbelError) -> list[type[errors.UmbelError]]:
    return [kind, *(found for below in kind.__subclasses__() for found in every_error(below))]


def expected(kind: type[errors.UmbelError]) -> int:
    if issubclass(kind, errors.RunInterrupted):
        return 130
    for base, code in (
        (errors.CallerError, 3),
        (errors.RunError, 4),
        (errors.ClientError, 4),
        (errors.StorageError, 5),
        (errors.Refused, 7),
        (errors.PeerError, 6),
    ):
        if issubclass(kind, base):
            return code
    return 1


@pytest.mark.parametrize("kind", every_error())
def test_every_error_has_its_exit_code_and_a_title(kind: type[errors.UmbelError]) -> None:
    assert exit_code(kind("it went wrong")) == expected(kind)
    title, message, hint = describe(kind("it went wrong", round=2, hint="Mend it."))
    assert (message, hint) == ("it went wrong (round 2)", "Mend it.")
    assert (title == "Internal error") == (expected(kind) == 1)


def test_the_codes_are_documented() -> None:
    from umbel.cli.overview import OVERVIEW

    for code in (0, 1, 2, 3, 4, 5, 6, 7, 130, 143):
        assert f" {code} " in OVERVIEW


def test_an_interrupt_exits_by_its_signal() -> None:
    assert exit_code(KeyboardInterrupt()) == 130
    assert exit_code(KeyboardInterrupt(signal.SIGTERM)) == 143
    stopped = errors.RunInterrupted("stopped")
    assert exit_code(stopped) == 130
    stopped.__context__ = KeyboardInterrupt(signal.SIGTERM)
    assert exit_code(stopped) == 143


def test_a_panel_has_message_notes_and_hint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    error = errors.AppError("array [bold]w[/bold] has shape [3]", hint="Mend it.")
    error.add_note("app.py:3: w = [3]")
    show(error)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("╭─ The app ─")
    assert [line.strip("│ ") for line in lines[1:-1]] == [
        "array [bold]w[/bold] has shape [3]",
        "",
        "app.py:3: w = [3]",
        "",
        "Mend it.",
    ]
    assert {len(line) for line in lines} == {60}


def test_a_bug_is_said_to_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as exited, reported():
        raise ZeroDivisionError("by zero")
    assert exited.value.exit_code == 1
    text = capsys.readouterr().err
    assert "ZeroDivisionError: by zero (test_faults.py:" in text
    assert "bug in Umbel" in text
    assert "Traceback" not in text


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), reported(debug=True):
        raise errors.DataError("no such column")
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_what_typer_raises_passes() -> None:
    with pytest.raises(typer.Exit) as exited, reported():
        raise typer.Exit(7)
    assert exited.value.exit_code == 7
    with pytest.raises(BrokenPipeError), reported():
        raise BrokenPipeError


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_once_and_its_echo_not(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=50.0)
    monkeypatch.setattr(faults, "monotonic", lambda: clock.now)
    before = signal.getsignal(number)
    with stop_signals():
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(number)
        assert exit_code(caught.value) == 128 + number
        clock.now += 0.5
        signal.raise_signal(number)
        clock.now += 1.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_a_warning_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    faults.warn("the app [app.py] has changed")
    assert capsys.readouterr().err == "warning: the app [app.py] has changed\n"


def with_json(command: Any = None, *path: str) -> list[tuple[str, ...]]:
    """All commands that take --json."""
    command = command or get_command(program)
    own = [path] if any("--json" in option.opts for option in command.params) else []
    below = getattr(command, "commands", {})
    return own + [found for name, each in below.items() for found in with_json(each, *path, name)]


BUDGET = ("--epsilon", "4", "--delta", "1e-6", "--rounds", "9", "--population", "9", "--cohort", "10")
FAILING = {
    ("run",): ("run", "gone.py"),
    ("resume",): ("resume", "last"),
    ("sweep",): ("sweep", "gone.py", "--set", "lr=1,2"),
    ("best",): ("best",),
    ("show",): ("show", "last", "--clients"),
    ("runs",): ("runs", "--on", "h:1"),
    ("logs",): ("logs", "last"),
    ("compare",): ("compare", "last"),
    **{(name,): (name, "gone") for name in ("strategies", "folds", "transforms", "samplers", "partitioners")},
    ("privacy", "explain"): ("privacy", "explain", "gone.py"),
    ("privacy", "show"): ("privacy", "show", "last"),
    ("privacy", "check"): ("privacy", "check", "gone"),
    ("privacy", "audit"): ("privacy", "audit", "gone.py"),
    ("privacy", "attack"): ("privacy", "attack", "last"),
    ("nodes", "invite"): ("nodes", "invite"),
    ("nodes", "ls"): ("nodes", "ls"),
    ("operators", "add"): ("operators", "add", "ann"),
    ("operators", "ls"): ("operators", "ls"),
    ("audit",): ("audit",),
    ("audit", "verify"): ("audit", "verify"),
    ("pack",): ("pack", "gone.py"),
    ("chaos",): ("chaos", "gone.py"),
    ("node",): ("node", "h:1", "--check", "--read", "gone"),
    ("doctor",): ("doctor", "--folder", __file__),
    ("privacy", "plan"): ("privacy", "plan", *BUDGET),
    ("server", "doctor"): ("server", "doctor", "--dir", __file__),
}


@pytest.mark.parametrize("path", with_json(), ids=" ".join)
def test_what_failed_is_said_as_json(
    umbel: Callable[..., Any], folder: Path, path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    for variable in ("UMBEL_HOME", "UMBEL_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    done = umbel(*FAILING[path], "--json")
    assert done.code == 3
    (line,) = done.out.splitlines()
    (found,) = json.loads(line).values()
    assert found.keys() == {"kind", "message", "hint", "notes", "run", "round", "client", "exit_code"}
    assert found["kind"] in ("AppError", "SettingError", "JournalMissing")
    assert found["message"] in done.said
    assert found["exit_code"] == 3
    assert umbel(*FAILING[path]).out == ""


@pytest.mark.parametrize("path", with_json(), ids=" ".join)
def test_a_wrong_command_line_is_said_as_json(umbel: Callable[..., Any], path: tuple[str, ...]) -> None:
    done = umbel(*FAILING[path], "--json", "--frobnicate")
    assert done.code == 2
    (found,) = json.loads(done.out).values()
    assert found["message"].startswith("No such option: --frobnicate")
    assert found["exit_code"] == 2
    assert "Usage: umbel" in done.err


def test_of_a_run_that_stopped_the_json_says_which_and_when(
    umbel: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILING", "all")
    done = umbel("run", "app.py", "--clients", 4, "--workers", 0, "--json")
    found = json.loads(done.out)["error"]
    assert (found["kind"], found["exit_code"], done.code) == ("RunFailed", 4, 4)
    assert found["run"].startswith("demo-")
    assert found["round"] is not None
    assert "umbel resume" in found["hint"]


def test_a_bug_too_is_said_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), reported(json=True):
        raise ZeroDivisionError("by zero")
    found = json.loads(capsys.readouterr().out)["error"]
    assert (found["kind"], found["exit_code"]) == ("ZeroDivisionError", 1)
    assert "bug in Umbel" in found["hint"]
