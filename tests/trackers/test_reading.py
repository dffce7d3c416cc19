from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import umbel
from umbel.runs.journal import read_log
from umbel.runs.past import find
from umbel.trackers.reading import Reader, settings_of
from umbel.trackers.tracker import Point, RoundPoints, Tracker

client = umbel.Client()


@client.train
def train(model, data, ctx):
    return umbel.Update({"w": model["w"] + 1.0}, weight=1, metrics={"loss": float(data["index"]) + ctx.rng.random()})


@client.evaluate
def evaluate(model, data, ctx):
    return umbel.Metrics({"score": float(model["w"][0])}, weight=1)


def app(**settings: Any) -> umbel.App:
    return umbel.App(
        client, model={"w": np.zeros(2, np.float32)}, strategy=umbel.FedAvg(cohort=3), config={"lr": 0.5}, **settings
    )


class Kept(Tracker):
    """A tracker that keeps what it is told, and fails as often as it is to."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__()
        self.failures, self.there = failures, -1
        self.rounds: list[RoundPoints] = []
        self.settings: Mapping[str, Any] = {}
        self.ended: list[tuple[str, str | None]] = []
        self.models: list[umbel.Arrays] = []

    def begin(self, run: str, settings: Mapping[str, Any]) -> int:
        self.settings = settings
        return self.there

    def write(self, rounds: Sequence[RoundPoints]) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("away")
        self.rounds += rounds

    def model(self, path: Path) -> None:
        self.models.append(umbel.load_model(path))

    def end(self, reason: str, error: str | None) -> None:
        self.ended.append((reason, error))


class Hung(Kept):
    """Keeps the picture, too."""

    pictures = 0

    def picture(self, path: Path) -> None:
        self.pictures += path.read_bytes()[1:4] == b"PNG"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> umbel.Result:
    folder = tmp_path_factory.mktemp("runs")
    return umbel.run(app(), on=umbel.Simulation(clients=5), rounds=4, folder=folder)


def read(result: umbel.Result, tracker: Tracker, events: Sequence[Any] | None = None) -> Reader:
    assert result.folder is not None
    log = read_log(result.folder)
    reader = Reader(tracker, result.folder)
    for event, at in zip(log.events, log.times, strict=True) if events is None else ((e, 0.0) for e in events):
        reader.read(event, at)
    return reader


def test_a_tracker_is_told_all_that_a_run_learned(result: umbel.Result) -> None:
    kept = Hung()
    read(result, kept).close()
    assert [each.round for each in kept.rounds] == [1, 2, 3, 4]
    for each, event in zip(kept.rounds, result.history, strict=True):
        whole = {point.name: point.value for point in each.points if point.client is None}
        assert whole["train.loss"] == event.train["loss"]
        assert whole["evaluate.score"] == event.evaluate["score"]
        assert whole["system.seconds"] == event.seconds
        assert whole["system.rss"] > 1e6
        assert whole["system.cpu"] >= 0.0
        found = {(p.client, p.value) for p in each.points if p.client is not None and p.name == "train.loss"}
        rows = [row for row in result.clients.of(each.round) if row.kind == "train"]
        assert found == {(row.client, row.metrics["loss"]) for row in rows}
        assert len(found) == 3
    assert kept.ended == [("rounds", None)]
    assert [model.sha256 for model in kept.models] == [result.model_sha256]
    assert kept.pictures == 1
    assert (kept.settings["config.lr"], kept.settings["strategy"], kept.settings["seed"]) == (0.5, "FedAvg", 0)
    assert all(isinstance(value, str | int | float | bool) for value in kept.settings.values())


def test_names_are_grouped_as_tools_group_them() -> None:
    assert Point("train.loss", 1.0).tag == "train/loss"
    assert Point("train.loss.q05", 1.0).tag == "train/loss.q05"
    assert Point("train.loss", 1.0, 3).tag == "clients/3/train/loss"


def test_what_a_record_has_is_not_written_again(result: umbel.Result) -> None:
    kept = Kept()
    kept.there = 2
    read(result, kept).flush()
    assert [each.round for each in kept.rounds] == [3, 4]


def test_what_could_not_be_written_is_written_the_next_time(result: umbel.Result) -> None:
    kept = Kept(failures=1)
    assert result.folder is not None
    reader, failures = Reader(kept), 0
    for event in read_log(result.folder).events:
        try:
            reader.read(event, 0.0)
        except OSError:
            failures += 1
    assert failures == 1
    reader.close()
    assert [each.round for each in kept.rounds] == [1, 2, 3, 4]


def test_a_tracker_that_fails_to_the_end_is_ended_all_the_same(result: umbel.Result) -> None:
    kept = Kept()
    reader = read(result, kept, [])
    assert result.folder is not None
    for event in read_log(result.folder).events:
        kept.failures = 9
        with suppress(OSError):
            reader.read(event, 0.0)
    with pytest.raises(OSError, match="away"):
        reader.close()
    assert kept.ended == [("rounds", None)]
    assert len(kept.models) == 1


@given(cut=st.integers(1, 20), again=st.integers(0, 3))
def test_a_log_that_was_cut_and_goes_on_gives_each_round_once(result: umbel.Result, cut: int, again: int) -> None:
    assert result.folder is not None
    events = read_log(result.folder).events
    kept, whole = Kept(), Kept()
    read(result, kept, events[:cut]).flush()
    kept.there = kept.rounds[-1].round if kept.rounds else -1
    for _ in range(again):
        read(result, kept, events[:cut]).flush()
    read(result, kept, events).flush()
    read(result, whole, events).flush()
    assert kept.rounds == whole.rounds


def test_an_ask_that_was_done_again_counts_once(result: umbel.Result) -> None:
    assert result.folder is not None
    events = read_log(result.folder).events
    twice = [again for event in events for again in (event, *([event] if event.name == "ask_closed" else []))]
    kept, whole = Kept(), Kept()
    read(result, kept, twice).flush()
    read(result, whole, events).flush()
    assert kept.rounds == whole.rounds


def test_of_a_client_that_is_asked_twice_in_a_round_the_last_counts(result: umbel.Result) -> None:
    assert result.folder is not None
    events = read_log(result.folder).events
    closed = next(event for event in events if event.name == "ask_closed" and event.kind == "train")
    columns = {**closed.clients, "client": [1, 2, 3], "metrics": {"loss": [7.0, 8.0, 9.0]}}
    again = replace(closed, ask=closed.ask + 1, clients=columns)
    kept = Kept()
    rest = next(event for event in events if event.name == "round_committed")
    other = {**columns, "metrics": {"loss": [1.0, 2.0, 3.0]}}
    read(result, kept, [events[0], replace(again, ask=closed.ask, clients=other), again, rest]).flush()
    (each,) = kept.rounds
    found = [point for point in each.points if point.name == "train.loss" and point.client is not None]
    assert found == [Point("train.loss", 7.0, 1), Point("train.loss", 8.0, 2), Point("train.loss", 9.0, 3)]


def test_a_tool_that_takes_its_time_to_fail_is_not_asked_again_at_once(result: umbel.Result) -> None:
    """Of a server that is away a run of many rounds would else wait for hours at its end."""
    assert result.folder is not None
    now = [0.0]

    class Slow(Kept):
        tries = 0

        def begin(self, run: str, settings: Mapping[str, Any]) -> int:
            self.tries += 1
            now[0] += 60
            raise OSError("away")

    slow = Slow()
    reader = Reader(slow, clock=lambda: now[0])
    events = read_log(result.folder).events
    for event in [*events[:-1], *(e for e in events * 30 if e.name == "round_committed")]:
        with suppress(OSError):
            reader.read(event, 0.0)
    with pytest.raises(OSError, match="away"):
        reader.close()
    assert slow.tries == 2


def test_large_asks_are_told_in_quantiles_and_none_is_nothing(result: umbel.Result) -> None:
    assert result.folder is not None
    events = read_log(result.folder).events
    closed = next(event for event in events if event.name == "ask_closed" and event.kind == "train")
    row = dict.fromkeys(("least", "q05", "q25", "median", "q75", "q95", "greatest"), 0.5)
    large = replace(closed, clients={}, spread={"metrics.loss": {**row, "count": 2000, "low": 1, "high": 2}})
    many = {"client": list(range(101)), "metrics": {"loss": [*map(float, range(100)), None]}, "seconds": [None] * 101}
    kept = Kept()
    columns = {**closed.clients, "metrics": {"loss": [math.nan, None, 1.0]}, "client": ["a", "b", "c"]}
    small = replace(closed, ask=closed.ask + 1, clients=columns)
    rest = [event for event in events if event.name == "round_committed"]
    told = [events[0], large, small, rest[0], replace(large, ask=9, clients=many, spread={}), rest[1]]
    read(result, kept, told).close()
    points, more = (each.points for each in kept.rounds)
    assert Point("train.loss.greatest", 99.0) in more
    assert not [point for point in more if point.client is not None]
    assert Point("train.loss.median", 0.5) in points
    assert [point for point in points if point.name == "train.loss" and point.client is not None] == [
        Point("train.loss", 1.0, "c")
    ]
    assert kept.ended == [("unfinished", None)]


def test_where_a_log_has_no_times_they_are_of_the_runs_beginning_and_its_rounds(result: umbel.Result) -> None:
    assert result.folder is not None
    events, kept = read_log(result.folder).events, Kept()
    reader = Reader(kept)
    for event in events:
        reader.read(event, None)
    reader.flush()
    times = [each.at for each in kept.rounds]
    began = find(result.run, result.folder.parent).began.timestamp()
    spent = [event.seconds for event in result.history]
    assert times == pytest.approx([began + sum(spent[:r]) for r in range(1, 5)])


def test_settings_are_flat(result: umbel.Result) -> None:
    assert result.folder is not None
    found = settings_of(read_log(result.folder).started)
    assert found["software.numpy"] == np.__version__
    assert found["clients"] == 5
