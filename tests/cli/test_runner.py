"""The process of a run: what it makes of its folder, and how it ends."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import APP
from tests.conftest import PATIENCE

import umbel
from umbel.cli import runner
from umbel.errors import (
    AppError,
    CorruptFile,
    InternalError,
    Refused,
    RunFailed,
    RunInterrupted,
    SettingError,
    StorageError,
)
from umbel.trust.authority import JoinText
from umbel.trust.tokens import Token

ORDER = {"run": "r-1", "token": JoinText(b"", Token.new()).text, "address": "here:1"}
SETTINGS = {"rounds": 7, "seed": 3, "config": {"lr": 0.25}, "set": ["strategy.cohort=2"], "clients": ["0", "x"]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run's folder as a server lays it out, where a process finds its order on the standard input."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "own.py").write_text(APP)
    (tmp_path / "app" / "manifest.json").write_text(json.dumps({"file": "own.py", "attribute": "app"}))
    (tmp_path / "client.archive").write_bytes(b"archive")
    submission = {"author": "aa", "statement": "cc", "signature": "bb", "name": "mnist", "settings": SETTINGS}
    submission["app"] = {"sha256": "dd"}
    (tmp_path / "submission.json").write_text(json.dumps(submission))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(ORDER) + "\n"))
    monkeypatch.setattr(runner, "_end_with_server", lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, before)


def ending_with(monkeypatch, error):
    def drive(*given):
        if error is not None:
            raise error

    monkeypatch.setattr(runner, "_drive", drive)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AppError("its model is wrong"), 3),
        (SettingError("no clients", hint="Name some."), 3),
        (RunFailed("too many rounds failed"), 4),
        (StorageError("the disk is full"), 5),
        (CorruptFile("a file is damaged"), 5),
        (RunInterrupted("stopped"), 0),
        (Refused("superseded"), 1),
        (InternalError("a bug"), 1),
    ],
)
def test_its_exit_code_says_whose_fault_it_was_and_a_file_says_why(folder, monkeypatch, capsys, error, code):
    ending_with(monkeypatch, error)
    assert runner.main() == code
    found = json.loads((folder / "home" / "error.json").read_text())
    assert found == {"error": str(error), "kind": type(error).__name__}
    assert str(error) in capsys.readouterr().err


def test_a_run_that_ends_well_leaves_no_error_not_even_an_earlier_one(folder, monkeypatch):
    (folder / "home" / "error.json").write_text("{}")
    ending_with(monkeypatch, None)
    assert runner.main() == 0
    assert not (folder / "home" / "error.json").exists()


def test_what_no_error_of_umbel_is_shows_its_traceback(folder, monkeypatch):
    ending_with(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        runner.main()


def test_it_can_be_asked_to_end(folder, monkeypatch):
    ending_with(monkeypatch, None)
    runner.main()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)  # once is enough


def driven(monkeypatch):
    """What the run is driven with, instead of being driven."""
    found = {}

    def begun(app, **how):
        found.update(how, app=app, began=True)

    def resumed(app, place, **how):
        found.update(how, app=app, began=False, place=place)

    monkeypatch.setattr(runner, "run", begun)
    monkeypatch.setattr(runner, "resume", resumed)
    return found


def test_a_run_begins_with_what_it_was_submitted_with(folder, monkeypatch):
    found = driven(monkeypatch)
    assert runner.main() == 0
    assert found["began"]
    assert (found["id"], found["name"], found["place"], found["folder"]) == ("r-1", "mnist", "run", folder)
    assert (found["rounds"], found["seed"]) == (7, 3)
    assert found["config"] == {"lr": 0.25}  # laid over the app's by `run`
    assert found["app"].strategy.cohort == 2
    assert isinstance(found["on"], umbel.Remote)
    assert found["on"]._wanted == [0, "x"]
    assert found["on"]._signed.archive == b"archive"
    assert (found["on"]._signed.author, found["on"]._signed.signature) == (b"\xaa", b"\xbb")
    assert found["on"]._signed.statement == b"cc"


def test_it_connects_with_the_token_of_its_run_alone(folder, monkeypatch):
    found, made = driven(monkeypatch), {}
    monkeypatch.setattr("umbel.remote.link.ServerLink", lambda *given, **how: made.update(how, given=given))
    runner.main()
    found["on"]._connect("elsewhere:1", token="another", run="another")
    credentials, run = made["given"]
    assert (credentials.address, credentials.line, run) == ("here:1", ORDER["token"], "r-1")
    assert (made["patient"], made["scratch"]) == (True, folder / "link")


@pytest.mark.parametrize(("log", "began"), [("", True), ('{"event": "run_started"}\n', False)])
def test_a_run_that_has_begun_goes_on(folder, monkeypatch, log, began):
    (folder / "run").mkdir()
    (folder / "run" / "events.jsonl").write_text(log)
    found = driven(monkeypatch)
    assert runner.main() == 0
    assert found["began"] == began
    assert found["rounds"] == 7
    if not began:
        assert found["place"] == folder / "run"


def test_it_ends_with_its_server():
    """The other end of its standard input is the server's."""
    code = "from umbel.cli import runner; runner._end_with_server()"
    environment = {"PYTHONPATH": str(Path(umbel.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], input=b"more\n", env=environment, timeout=PATIENCE, check=False)
    assert done.returncode == 70


def test_the_operator_is_told_the_line_of_the_app(folder, monkeypatch):
    error = SettingError("no clients")
    error.add_note("app.py:3: x = 1")
    ending_with(monkeypatch, error)
    runner.main()
    assert json.loads((folder / "home" / "error.json").read_text())["error"] == "no clients (app.py:3: x = 1)"
