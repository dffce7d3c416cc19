from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from umbel.cli import log_commands
from umbel.cli.log_commands import LogPrinter, lines
from umbel.errors import CorruptFile
from umbel.runs.events import RunFinished, Waiting, Warned
from umbel.runs.journal import LOG, LogChain

Command = Callable[..., Any]
FINISHED = RunFinished(run="r", rounds=3, reason="rounds", seconds=1.5, model_sha256="ab" * 32)


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_the_log_of_a_run_here_is_printed(umbel: Command, written: Callable[..., Path]) -> None:
    written(Path("umbel-runs"), ends=[FINISHED])
    done = umbel("logs", "last")
    assert done.code == 0
    found = done.out.splitlines()
    assert found[0].startswith("run app-20260102-030405-ab12: FedAvg, 9 clients, 3 rounds")
    assert "round 2, training: client 2 failed: its train handler raised ValueError: no data" in found
    assert found[-1].startswith("finished (rounds), 3 rounds in 1.5 s, model abababab")
    assert sum(line.startswith("round ") and "/3" in line for line in found) == 3
    assert umbel("logs", "last", "-f").out == done.out  # it is over


def test_events_are_printed_as_they_are(umbel: Command, written: Callable[..., Path]) -> None:
    written(Path("umbel-runs"), ends=[FINISHED])
    found = [json.loads(line) for line in umbel("logs", "last", "--json").out.splitlines()]
    assert [event["event"] for event in found] == [
        "run_started",
        *["ask_closed", "round_committed"] * 3,
        "run_finished",
    ]
    assert found[-1]["model_sha256"] == "ab" * 32
    assert umbel("logs", "none").code == 3


def test_a_log_is_followed_until_the_run_is_over(
    tmp_path: Path, written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path) / LOG
    line = LogChain(path.read_bytes()).seal(FINISHED.record())
    parts = iter([line[:20], line[20:]])
    monkeypatch.setattr(log_commands.time, "sleep", lambda seconds: append(path, next(parts)))
    found = [record["event"] for record in lines(path, follow=True)]
    assert found[-1] == "run_finished"


def test_who_follows_a_run_that_has_failed_is_told_so(umbel: Command, written: Callable[..., Path]) -> None:
    failed = RunFinished(run="r", rounds=3, reason="failed", seconds=1.5, error="nobody trained", model_sha256="")
    written(Path("umbel-runs"), ends=[failed])
    done = umbel("logs", "last", "-f")
    assert done.code == 4
    assert "the run failed: nobody trained" in done.said
    assert umbel("logs", "last").code == 0, "who looks at it was not disappointed"
    found = umbel("logs", "last", "-f", "--json")
    assert (found.code, json.loads(found.out.splitlines()[-1])["error"]["kind"]) == (4, "RunFailed")


def test_numbers_that_are_not_finite_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    LogPrinter(json=True).print({"event": "round_committed", "train": {"loss": float("nan"), "norm": float("inf")}})
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["train"] == {"loss": None, "norm": None}


def test_a_damaged_line_is_told(tmp_path: Path) -> None:
    (tmp_path / LOG).write_bytes(b"nonsense\n")
    with pytest.raises(CorruptFile, match="damaged"):
        list(lines(tmp_path / LOG, follow=False))


def test_other_events_have_their_words(capsys: pytest.CaptureFixture[str]) -> None:
    printer = LogPrinter(json=False)
    for event in (
        Waiting(ready=1, wanted=3, refused={"b": "no data"}),
        Warned(round=2, text="nothing heard for 450 s", client="a"),
        RunFinished(run="r", rounds=0, reason="failed", error="nobody trained"),
    ):
        printer.print(event.record())
    printer.print({"event": "of another release", "x": 1})
    printer.print({"event": "waiting", "unknown": 1})
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "waiting for clients: 1 of 3 ready; client b does not take part: no data"
    assert out[1] == "warning: round 2: client a: nothing heard for 450 s"
    assert out[2].startswith("failed: nobody trained")
    assert out[3] == "left out: an event of the log makes no sense: a waiting without its ready"
    assert len(out) == 4
