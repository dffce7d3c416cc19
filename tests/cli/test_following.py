from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from umbel import errors
from umbel.cli.faults import exit_code
from umbel.cli.following import Followed, follow, read
from umbel.office.operator import Operator
from umbel.runs.events import RoundCommitted, RoundStarted, RunEvent, RunFinished, RunInterruption, RunStarted

STARTED = RunStarted(run="r-1", format=1, seed=5, rounds=2, clients=3, strategy="FedAvg")
ROUNDS = [RoundCommitted(round=r, asks=r, clients=3, train={"loss": 1 / r}, seconds=0.5) for r in (1, 2)]
FINISHED = RunFinished(run="r-1", rounds=2, reason="rounds", seconds=3.0, model_sha256="ab" * 32)


class Office:
    """A server that tells of one run, and may be interrupted after that."""

    def __init__(self, *events: RunEvent, interrupt: int | None = None, exit: dict[str, Any] | None = None) -> None:
        self.events = events
        self.interrupt = interrupt
        self.exit = exit

    def logs(self, run: str, **options: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        for event in self.events:
            yield (1 if event.logged else 0), {**event.record(), "at": 5.0, "crc": "00"}
        if self.interrupt is not None:
            raise KeyboardInterrupt(self.interrupt)

    def call(self, method: str, run: str) -> dict[str, Any]:
        return {"run": run, "status": "failed", "exit": self.exit}

    @property
    def operator(self) -> Operator:
        return cast(Operator, self)


def test_a_run_is_followed_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    started = RoundStarted(round=1, rounds=2)
    found = follow(Office(STARTED, started, *ROUNDS, FINISHED).operator, "r-1", "h:1")
    assert (found.run, found.reason, found.seconds, found.model_sha256) == ("r-1", "rounds", 3.0, "ab" * 32)
    assert found.history.series("train.loss") == [(1, 1.0), (2, 0.5)]
    assert found.commands["model"] == ["umbel", "pull", "r-1", "--on", "h:1"]
    err = capsys.readouterr().err
    assert "run r-1: FedAvg, 3 clients, 2 rounds, seed 5" in err
    assert "round 2/2  3 clients" in err


def test_the_metrics_of_a_run_are_those_of_its_model() -> None:
    found = follow(Office(STARTED, *ROUNDS, replace(FINISHED, best_round=1)).operator, "r-1", "h:1")
    assert found.summary["metrics"] == {"train.loss": 1.0}
    assert found.summary["best_round"] == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_stops_following_and_not_the_run(number: signal.Signals, code: int) -> None:
    with pytest.raises(errors.RunInterrupted, match="it goes on") as error:
        follow(Office(STARTED, interrupt=number).operator, "r-1", "h:1")
    assert exit_code(error.value) == code
    assert error.value.hint is not None
    assert "umbel logs r-1 -f --on h:1" in error.value.hint
    assert "umbel stop r-1 --on h:1" in error.value.hint


def test_a_run_that_fails_is_an_error() -> None:
    failed = RunFinished(run="r-1", rounds=1, reason="failed", error="nobody trained")
    with pytest.raises(errors.RunFailed, match="nobody trained"):
        follow(Office(STARTED, failed).operator, "r-1", "h:1")
    with pytest.raises(errors.RunFailed, match="its process ended"):
        follow(Office(STARTED, *ROUNDS).operator, "r-1", "h:1")
    with pytest.raises(errors.RunFailed, match="the run failed: the federation has 3"):
        follow(Office(STARTED, exit={"error": "the federation has 3"}).operator, "r-1", "h:1")
    with pytest.raises(errors.RunFailed, match="before it began: the app has no model"):
        follow(Office(exit={"error": "the app has no model"}).operator, "r-1", "h:1")
    with pytest.raises(errors.RunFailed, match="does not say why"):
        follow(Office().operator, "r-1", "h:1")


def test_a_run_that_somebody_stopped_can_be_resumed() -> None:
    with pytest.raises(errors.RunInterrupted) as error:
        follow(Office(STARTED, RunInterruption(run="r-1", round=1)).operator, "r-1", "h:1")
    assert error.value.hint == "Go on with: umbel resume r-1 --on h:1"


def test_events_of_other_releases_are_left_out() -> None:
    assert read({"event": "of tomorrow"}) == (None, "")
    assert read({"event": "round_started", "round": 1, "rounds": 2, "more": 3}) == (RoundStarted(round=1, rounds=2), "")
    followed = Followed("h:1")
    assert followed.take(RoundStarted(round=1, rounds=2).record()) is not None
    assert followed.events == []


def test_events_that_make_no_sense_are_left_out_and_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    followed = Followed("h:1")
    for record in (
        {"event": "unreadable"},
        {"event": "round_started", "round": "x"},
        {"event": "round_started"},
        1,
        [],
    ):
        assert followed.take(record) is None  # type: ignore[arg-type]
    assert followed.senseless == 5
    assert capsys.readouterr().err.count("makes no sense") == 1
