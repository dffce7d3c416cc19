from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

import umbel
from umbel.errors import CorruptFile, JournalMissing, SettingError
from umbel.runs.events import RoundCommitted, RunEvent, RunFinished, RunInterruption, RunResumed
from umbel.runs.history import History
from umbel.runs.journal import LOG
from umbel.runs.past import FetchedRun, PastRun, find, is_over, log_of, past_runs

Written = Callable[..., Path]
ID = "app-20260102-030405-ab12"


def finished(reason: str = "rounds", **more: object) -> RunFinished:
    return RunFinished(run=ID, rounds=3, reason=reason, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ends", "state"),
    [
        ((), "unfinished"),
        ((finished(),), "finished"),
        ((finished("early stop"),), "early stop"),
        ((finished("failed", error="no updates"),), "failed"),
        ((RunInterruption(run=ID, round=2),), "interrupted"),
        ((RunInterruption(run=ID, round=2), RunResumed(run=ID, round=2)), "unfinished"),
        ((finished(), RunResumed(run=ID, round=3)), "unfinished"),
    ],
)
def test_the_last_event_says_how_a_run_stands(
    tmp_path: Path, written: Written, ends: tuple[RunEvent, ...], state: str
) -> None:
    assert PastRun(written(tmp_path, ends=ends)).state == state


def test_a_record_says_when_and_how_long(tmp_path: Path, written: Written) -> None:
    record = PastRun(written(tmp_path))
    assert record.began == datetime(2026, 1, 2, 3, 4, 5)
    assert record.seconds == 1.5
    assert record.rounds_asked == 3
    other = PastRun(written(tmp_path, id="odd-20269999-999999-ab"))
    assert other.began == datetime.fromtimestamp(other.touched / 1e9)


def test_the_result_is_the_best_round_or_the_last(tmp_path: Path, written: Written) -> None:
    def result(*ends: RunEvent, id: str, rounds: int = 3) -> int | None:
        found = PastRun(written(tmp_path, id=id, rounds=rounds, ends=ends)).result
        return None if found is None else found.round

    assert result(finished(), id="a") == 3
    assert result(finished(best_round=2), id="b") == 2
    assert result(finished(best_round=2), RunResumed(run=ID, round=3), id="c") == 3
    assert result(id="d", rounds=0) is None


@pytest.fixture
def three(tmp_path: Path, written: Written) -> Path:
    """Three runs; the one that was last active began first."""
    for age, id in enumerate((ID, "app-20260102-030406-cd34", "net-20260103-000000-ab99")):
        path = written(tmp_path, id=id)
        os.utime(path / "events.jsonl", ns=(0, 10**18 - age))
    (tmp_path / "no-run").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("reference", "id"),
    [
        ("last", ID),
        (ID, ID),
        ("net", "net-20260103-000000-ab99"),
        ("app-20260102-030406", "app-20260102-030406-cd34"),
        ("ab12", ID),
        ("cd3", "app-20260102-030406-cd34"),
    ],
)
def test_a_run_is_found_by_what_is_its_own(three: Path, reference: str, id: str) -> None:
    assert find(reference, three).id == id
    assert find(str(three / id), Path("elsewhere")).folder == three / id


def test_runs_are_listed_by_when_they_were_active(three: Path) -> None:
    assert [record.id for record in past_runs(three)][-1] == ID
    assert past_runs(three / "nothing") == []


def test_what_is_not_found_is_guessed(three: Path) -> None:
    with pytest.raises(SettingError, match="app may mean 2 runs") as several:
        find("app", three)
    assert ID in (several.value.hint or "")
    with pytest.raises(JournalMissing, match="there is no run app-20260102-030405-ab13") as close:
        find("app-20260102-030405-ab13", three)
    assert f"Did you mean {ID}" in (close.value.hint or "")
    with pytest.raises(JournalMissing, match="there is no run zzz") as none:
        find("zzz", three)
    assert f"the last is {ID}" in (none.value.hint or "")
    with pytest.raises(SettingError, match="no text at all"):
        find("", three)
    with pytest.raises(JournalMissing, match="there are no runs in"):
        find("last", three / "no-run")


def test_a_damaged_log_is_said(three: Path) -> None:
    log = three / ID / "events.jsonl"
    log.write_bytes(log.read_bytes().replace(b"FedAvg", b"FedAbg", 1))
    with pytest.raises(CorruptFile):
        _ = find("last", three).log


def test_a_run_is_over_when_its_rounds_are_done(tmp_path: Path, written: Written) -> None:
    log = PastRun(written(tmp_path, id="a", ends=(finished(),))).log
    assert is_over(log, None)
    assert is_over(log, 2)
    assert not is_over(log, 4)
    assert not is_over(PastRun(written(tmp_path, id="b")).log, None)
    more = PastRun(written(tmp_path, id="d", ends=(finished(), RunResumed(run=ID, round=3, rounds=9))))
    assert not is_over(more.log, None)
    assert more.rounds_asked == 9
    assert not is_over(PastRun(written(tmp_path, id="c", ends=(finished("failed", error="none"),))).log, None)


def test_a_log_that_was_heard_is_the_log_that_was_written(tmp_path: Path, written: Written) -> None:
    here = PastRun(written(tmp_path, ends=[finished()]))
    log = log_of(here.log.events)
    assert (log.rounds, log.finished, log.pending) == (here.log.rounds, here.log.finished, here.log.pending)
    there = FetchedRun.of(here.id, log, "finished", {"server": "h:1"})
    assert (there.id, there.state, there.result, there.facts) == (here.id, here.state, here.result, {"server": "h:1"})
    assert here.facts == {"folder": str(here.folder)}
    with pytest.raises(CorruptFile):
        log_of(log.events[1:])


def test_the_server_knows_more_than_a_log_that_goes_on(tmp_path: Path, written: Written) -> None:
    log = log_of(PastRun(written(tmp_path)).log.events)
    assert FetchedRun.of(ID, log, "running", {}).state == "running"


def test_a_run_that_could_not_begin_is_not_the_last(tmp_path: Path, written: Written) -> None:
    refused = RunFinished(run="", rounds=0, reason="refused", error="it asks for 10 clients")
    written(tmp_path, id="good", rounds=1)
    written(tmp_path, id="bad", rounds=0, ends=[refused])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / LOG).touch()
    for nanoseconds, name in enumerate(("good", "bad", "empty"), 1):
        os.utime(tmp_path / name / LOG, ns=(nanoseconds * 10**9, nanoseconds * 10**9))
    assert [record.id for record in past_runs(tmp_path)] == ["good", "bad"]
    assert find("last", tmp_path).id == "good"
    assert find("bad", tmp_path).state == "refused"
    (tmp_path / "good" / LOG).unlink()
    with pytest.raises(JournalMissing, match=r"no run in .* could begin; the last, bad, was refused: it asks for 10"):
        find("last", tmp_path)


def test_a_run_of_the_past_is_what_it_gave(tmp_path: Path) -> None:
    client = umbel.Client()
    client.train(lambda model, data, ctx: umbel.Update({"w": model["w"] + 1}, metrics={"loss": 1 / ctx.round}))
    app = umbel.App(client, model={"w": np.zeros(2)}, strategy=umbel.FedAvg(cohort=2), rounds=3)
    given = umbel.run(app, on=umbel.Simulation(3), folder=tmp_path)
    for reference in ("last", given.run, tmp_path / given.run):
        found = umbel.open(reference, tmp_path)
        assert (found.run, found.reason, found.rounds) == (given.run, "rounds", 3)
        assert (found.model_sha256, found.metrics) == (given.model_sha256, given.metrics)
        assert [row.client for row in found.clients] == [row.client for row in given.clients]
        assert found.history.columns() == given.history.columns()
    assert found.history.columns()["train.loss"] == [1, 1 / 2, 1 / 3]
    record = find("last", tmp_path)
    assert [record.model(round)[0]["w"].tolist() for round in (0, 3, None)] == [[0, 0], [3, 3], [3, 3]]
    with pytest.raises(SettingError, match="round 9 is not kept"):
        record.model(9)


def test_of_a_run_that_was_killed_there_is_what_it_has_learned(tmp_path: Path, written: Written) -> None:
    client = umbel.Client()

    @client.train
    def train(model: umbel.Arrays, data: object, ctx: umbel.Context) -> umbel.Update:
        if ctx.round == 3:
            raise KeyboardInterrupt
        return umbel.Update({"w": model["w"] + 1})

    app = umbel.App(client, model={"w": np.zeros(2)}, strategy=umbel.FedAvg(cohort=1), rounds=4)
    with pytest.raises(umbel.errors.RunInterrupted):
        umbel.run(app, on=umbel.Simulation(3, workers=0), folder=tmp_path)
    found = umbel.open("last", tmp_path)
    assert (found.reason, found.rounds, found.model["w"].tolist()) == ("interrupted", 2, [2, 2])


def test_a_history_is_a_frame(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    rounds = [RoundCommitted(round=r, asks=1, clients=2, test={"accuracy": 0.5} if r == 2 else {}) for r in (1, 2)]
    frame = History(rounds).frame()
    assert list(frame.columns) == ["clients", "dropped", "seconds", "test.accuracy"]
    assert frame.index.tolist() == [1, 2]
    assert pandas.isna(frame["test.accuracy"][1])
    assert frame["test.accuracy"][2] == 0.5
