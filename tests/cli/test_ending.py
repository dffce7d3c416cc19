from __future__ import annotations

import json

import pytest

from umbel.cli.ending import Ending
from umbel.runs.events import RoundCommitted
from umbel.runs.history import History

HISTORY = History([RoundCommitted(round=r, asks=r, test={"loss": 1 / r}) for r in (1, 2, 3)])


def ending(reason: str = "rounds", best: int | None = None) -> Ending:
    place, commands = {"server": "h:1"}, {"curves": ["umbel", "show", "a b"]}
    return Ending("r-1", reason, HISTORY, 4.2, "abcdef" * 10, best, place, commands)


def test_an_ending_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    ending().print(False)
    out = capsys.readouterr().out
    assert "✓ r-1 finished: 3 rounds in 4.2 s" in out
    for text in ("sha256 abcdefabcdef", "h:1", "umbel show 'a b'", "test.loss", "0.3333"):
        assert text in out


def test_it_says_why_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    ending("early stop", 2).print(False)
    assert "stopped early: 3 rounds in 4.2 s, the best of them round 2" in capsys.readouterr().out


def test_an_ending_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    ending().print(True)
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"] == {"test.loss": pytest.approx(1 / 3)}
    assert (found["run"], found["rounds"], found["server"], found["reason"]) == ("r-1", 3, "h:1", "rounds")


def test_of_the_best_model_the_metrics_are_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    ending(best=2).print(True)
    found = json.loads(capsys.readouterr().out)
    assert (found["metrics"], found["best_round"]) == ({"test.loss": 0.5}, 2)
    ending(best=2).print(False)
    out = capsys.readouterr().out
    assert "metrics of round 2" in out
    assert ["test.loss", "0.5"] in [line.split()[:2] for line in out.splitlines()]
