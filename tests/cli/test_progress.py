from __future__ import annotations

import io
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from umbel.cli.progress import _picture, progress
from umbel.runs.events import (
    MOST_REFUSED,
    AskClosed,
    AskOpened,
    RoundCommitted,
    RoundStarted,
    RunEvent,
    RunResumed,
    RunStarted,
    TaskEnded,
    Waiting,
    Warned,
)
from umbel.runs.watch import Watch, heading, metrics_of, round_line

NO_DATA = "its train handler raised ValueError: no data [left] (client.py:3)"


def asked(
    r: int, ask: int, clients: int, failed: int = 0, kind: str = "train", reason: str = NO_DATA
) -> list[RunEvent]:
    """An ask of so many clients, of whom some fail."""
    ends = [TaskEnded(ask=ask, task=f"{ask}.{i}", reason=reason if i < failed else None) for i in range(clients)]
    closed = AskClosed(
        ask=ask,
        round=r,
        kind=kind,
        lane=kind,
        digest="",
        asked=clients,
        count=clients - failed,
        failures=failed,
        failed=[[reason, failed, list(range(failed))]] if failed else [],
    )
    return [AskOpened(ask=ask, round=r, kind=kind, clients=clients), *ends, closed]


def committed(r: int, failed: str | None = None, **failures: int) -> RoundCommitted:
    metrics = {} if failed else {"train": {"loss": 1 / r}, "evaluate": {"accuracy": 0.5}, "test": {"accuracy": r / 10}}
    return RoundCommitted(round=r, asks=2, clients=3, seconds=0.75, failed=failed, failures=failures, **metrics)


STARTED = RunStarted(run="app-1", format=1, seed=5, rounds=4, clients=9, strategy="FedAvg")
RUN: list[RunEvent] = [
    STARTED,
    RoundStarted(round=1, rounds=4),
    *asked(1, 0, 5, failed=2),
    *asked(1, 1, 4, kind="evaluate"),
    committed(1, train=2),
    RoundStarted(round=2, rounds=4),
    *asked(2, 2, 5, failed=1),
    committed(2, train=1),
    RoundStarted(round=3, rounds=4),
    *asked(3, 3, 5, failed=5, reason="gone"),
    committed(3, failed="0 of 5 clients gave an update"),
]


class Clock:
    """Counts what it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def watched(events: Iterable[RunEvent], clock: Clock | None = None) -> Watch:
    watch = Watch(clock=clock or Clock())
    for event in events:
        watch.see(event)
    return watch


def written(events: Iterable[RunEvent], *, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=90, highlight=False)
    with progress(console) as observer:
        for event in events:
            observer(event)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_elsewhere_each_round_is_one_line_and_a_new_failure_another() -> None:
    assert written(RUN, terminal=False).splitlines() == [
        "run app-1: FedAvg, 9 clients, 4 rounds, seed 5",
        "round 1/4  3 clients  2 failed  test.accuracy 0.1  evaluate.accuracy 0.5  train.loss 1  0.8 s",
        f"  client 0 failed: {NO_DATA} (and 1 more client)",
        "round 2/4  3 clients  1 failed  test.accuracy 0.2  evaluate.accuracy 0.5  train.loss 0.5  0.8 s",
        "round 3/4  nothing learned: 0 of 5 clients gave an update",
    ]


def test_a_resumed_run_says_where_it_goes_on_and_what_differs() -> None:
    changed = {"numpy": ["1.26", "2.4"], "torch": ["2.6", ""]}
    assert written([RunResumed(run="app-1", round=2, changed=changed)], terminal=False) == (
        "run app-1: goes on after round 2; the software differs, so the bits may: numpy 1.26 -> 2.4, torch 2.6 -> ?\n"
    )


def test_a_terminal_shows_bars_and_each_new_failure_once() -> None:
    text = written(RUN, terminal=True)
    assert text.count("no data [left]") == 1
    assert "\x1b[31mround 3/4  nothing learned" in text
    assert "\x1b[2K" in text  # the bars go away at the end


def pictured(watch: Watch) -> list[str]:
    console = Console(file=io.StringIO(), width=90, highlight=False)
    console.print(_picture(watch, Text("run app-1")))
    assert isinstance(console.file, io.StringIO)
    return [line.strip() for line in console.file.getvalue().splitlines()]


def test_the_picture_counts_rounds_clients_and_failures() -> None:
    clock = Clock()
    events = [*RUN[:-1], RoundStarted(round=3, rounds=4), *asked(3, 4, 8, failed=1)[:6]]
    lines = pictured(watched(events, clock))
    assert lines[1] == "run app-1"
    assert lines[3].split()[0] == "rounds"
    assert lines[3].split()[2:] == ["2/4", "0", "ms", "left"]
    assert lines[4].split()[0] == "training"
    assert lines[4].split()[2:] == ["5/8", "1", "failed"]
    assert [line.split() for line in lines[6:9]] == [
        ["test.accuracy", "0.2", "▁█"],
        ["evaluate.accuracy", "0.5", "▁▁"],
        ["train.loss", "0.5", "█▁"],
    ]


def test_the_picture_begins_empty() -> None:
    lines = pictured(watched([STARTED]))
    assert lines[3].split()[-1] == "0/4"
    assert lines[4].split()[0] == "starting"


def test_the_time_left_is_that_of_the_last_rounds() -> None:
    clock = Clock()
    watch = watched([STARTED], clock)
    assert watch.seconds_left() is None
    for r, spent in ((1, 2.0), (2, 4.0)):
        watch.see(RoundStarted(round=r, rounds=5))
        clock.now += spent
        watch.see(committed(r))
    assert watch.seconds_left() == 9.0
    watch.see(RoundStarted(round=3, rounds=5))
    clock.now += 1.0
    assert watch.seconds_left() == 8.0
    clock.now += 100.0
    assert watch.seconds_left() == 6.0


def test_asks_that_are_open_at_once_are_counted_together() -> None:
    opened = [AskOpened(ask=ask, round=1, kind="train", clients=4) for ask in (0, 1)]
    watch = watched([RoundStarted(round=1, rounds=1), *opened, TaskEnded(ask=0, task="0.0")])
    assert (watch.asked, watch.done) == (8, 1)
    watch = watched(asked(1, 0, 4) + asked(1, 1, 3, kind="evaluate"))
    assert (watch.asked, watch.done, watch.kind) == (3, 3, "evaluate")


def test_late_tasks_are_not_among_those_that_are_asked_now() -> None:
    late = [TaskEnded(ask=0, task=f"0.{client}") for client in (7, 8)]
    failed = TaskEnded(ask=0, task="0.9", reason="gone")
    watch = watched([RoundStarted(round=1, rounds=2), *asked(1, 0, 2), *late, failed, *asked(1, 1, 2), *late, failed])
    assert (watch.asked, watch.done, watch.failed) == (2, 2, 0)


def test_a_resumed_run_counts_on() -> None:
    watch = watched([RunResumed(run="app-1", round=2, rounds=9)])
    assert (watch.committed, watch.rounds) == (2, 9)
    watch.see(RoundStarted(round=3, rounds=9))
    assert (watch.committed, watch.round, watch.rounds) == (2, 3, 9)


def test_metrics_and_lines_have_the_order_of_importance() -> None:
    assert list(metrics_of(committed(1))) == ["test.accuracy", "evaluate.accuracy", "train.loss"]
    assert round_line(Watch(rounds=4), committed(2)).startswith("round 2/4  3 clients  0 failed  test.accuracy 0.2")


def test_waiting_and_warnings_are_told() -> None:
    events = [
        Waiting(ready=1, wanted=2, refused={"b": "no data"}, there=["a"]),
        STARTED,
        Warned(round=1, text="nothing heard for 450 s", client="a"),
        Warned(round=1, text="the server was away"),
    ]
    console = Console(file=io.StringIO(), width=100)
    with progress(console) as observer:
        for event in events:
            observer(event)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "waiting for clients: 1 of 2 ready (a); client b does not take part: no data"
    assert lines[2:] == ["round 1: client a: nothing heard for 450 s", "round 1: the server was away"]
    assert {type(event) for event in events} == {Waiting, RunStarted, Warned}


def test_of_many_who_are_there_some_are_named() -> None:
    many = Waiting(ready=30, wanted=40, there=[str(n) for n in range(30)])
    assert len(many.there) == MOST_REFUSED
    assert str(heading(many)).endswith("18, 19 and 10 more)")


def test_waiting_for_clients_takes_few_lines() -> None:
    waits = [(0, ()), (1, ()), (2, ()), (2, ("b",)), (3, ("b",)), (4, ("b", "c"))]
    console = Console(file=io.StringIO(), width=100)
    with progress(console) as observer:
        for ready, refused in waits:
            observer(Waiting(ready=ready, wanted=2, refused=dict.fromkeys(refused, "no")))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert [line.split(": ", 1)[1].split(";")[0] for line in lines] == [
        "0 of 2 ready", "1 of 2 ready", "2 ready", "4 ready"
    ]  # fmt: skip
