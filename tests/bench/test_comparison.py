"""Comparisons: equal budgets, one rule for settings, what is done is not done again, what fails stops nobody."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from tests.bench import tiny

import umbel
from umbel import bench
from umbel.bench import comparison, trial
from umbel.bench.progress import EVERY, Progress, lasting
from umbel.errors import SettingError
from umbel.runs.events import RoundCommitted
from umbel.strategies import FedAdam, FedAvg, FedProx

PROX = bench.Algorithm(FedProx, {"mu": (0.0, 0.5)})
ALL = {"FedAvg": FedAvg(), "FedProx": PROX, "FedAdam": bench.Algorithm(FedAdam, {"lr": (0.01, 0.1, 1.0)})}


def compared(algorithms=ALL, folder=None, tell=None, **settings):
    problem = settings.pop("problem", None) or tiny.problem()
    return bench.run(problem, algorithms, folder=folder, tell=tell, **{"seeds": 2, "workers": 0, **settings})


@pytest.fixture
def performed(monkeypatch):
    """The trials that are run."""
    done = []

    def perform(tried, *rest):
        done.append(tried)
        return trial.perform(tried, *rest)

    monkeypatch.setattr(comparison, "perform", perform)
    return done


class Twice(FedAvg):
    """Asks two cohorts a round, and so takes twice the updates."""

    def round(self, state, r):
        state = yield from super().round(state, r)
        return (yield from super().round(state, r))


class Broken(FedAvg):
    def apply(self, state, answer):
        raise ZeroDivisionError("nothing by nothing")


def test_all_have_the_same_budget_by_the_log():
    table = compared()
    for cell in table.cells:
        for _, outcome in cell.runs:
            assert (outcome.rounds, outcome.updates, outcome.asks["train"]) == (4, 12, 12)
            assert outcome.bytes_down == outcome.bytes_up == 12 * 3 * 4  # models of three float32


def test_a_budget_of_updates_is_one_for_strategies_of_other_rounds():
    table = compared({"FedAvg": FedAvg(), "twice": Twice()}, problem=tiny.problem(rounds=None, updates=24))
    assert [(cell.runs[0][1].rounds, cell.runs[0][1].updates) for cell in table.cells] == [(8, 24), (4, 24)]


def test_a_strategy_that_does_not_go_by_the_round_has_as_many_updates():
    def flying(cohort):
        return FedAvg(cohort=cohort, window=umbel.Window(in_flight=cohort, close_after=1, late="keep"))

    algorithms = {"FedAvg": FedAvg(), "flying": bench.Algorithm(flying, given=("cohort",))}
    table = compared(algorithms, problem=tiny.problem(evaluate_every=2), tuning=bench.Tuning(rounds=2))
    for cell, rounds, every in zip(table.cells, (4, 12), (2, 6), strict=True):
        assert [(o.rounds, o.updates, e.every) for e, o in cell.runs] == [(rounds, 12, every)] * 2
        assert {o.updates for _, o in cell.tries} == {6}
        assert [r for r, _ in cell.runs[0][1].series["test.loss"]] == [every, 2 * every]


def test_the_best_on_validation_is_taken_by_the_tuning_seed_and_the_first_of_equals():
    table = compared()
    for cell in table.cells:
        values = cell.algorithm.choices(cell.problem)
        scores = [(outcome.score("test.loss"), e) for e, outcome in cell.tries]
        assert [e.settings for _, e in scores] == list(values)
        assert {(e.part, e.seed) for _, e in scores} == {("validation", 0)}
        best = min(score for score, _ in scores)
        assert cell.settings == next(e.settings for score, e in scores if score == best)
        assert {(e.part, e.seed) for e, _ in cell.runs} == {("test", 1), ("test", 2)}
    same = compared({"FedProx": bench.Algorithm(FedProx, {"mu": (0.0, -0.0)})})
    assert math.copysign(1, same.cells[0].settings["mu"]) == 1


def test_validation_and_test_are_other_data():
    both = compared({"a": FedAvg()}, seeds=[0], problem=tiny.problem(rates=(0.1, 0.1))).cells[0]
    (_, tried), (_, run) = both.tries[1], both.runs[0]
    assert tried.model_sha256 == run.model_sha256
    assert tried.series["test.loss"] != run.series["test.loss"]


def test_tuning_is_shorter_where_that_is_said_and_none_takes_the_first():
    table = compared({"FedProx": PROX}, tuning=bench.Tuning(seed=7, rounds=2))
    assert {(e.seed, e.rounds) for e, _ in table.cells[0].tries} == {(7, 2)}
    plain = compared({"FedProx": PROX}, tuning=None).cells[0]
    assert (plain.tries, plain.settings) == ([], {"client rate": 0.01, "mu": 0.0})
    assert compared({"a": FedAvg()}, problem=tiny.problem(rates=(0.1,))).cells[0].tries == []


def test_a_personalised_algorithm_is_tuned_by_its_own_metric():
    algorithms = {"by loss": FedAvg(), "by accuracy": bench.Algorithm(FedAvg, metric="test.accuracy")}
    table = compared(algorithms, problem=tiny.problem(rates=(1e-9, 0.1)))  # of both the least is best
    assert [cell.settings["client rate"] for cell in table.cells] == [0.1, 1e-9]


def test_what_is_done_is_not_done_again(tmp_path, performed):
    whole = compared(folder=tmp_path)
    assert len(performed) == (2 + 4 + 6) + 3 * 2
    assert len(list((tmp_path / "trials").iterdir())) == len({e.key for e in performed}) == len(performed)
    performed.clear()
    assert compared(folder=tmp_path).rows == whole.rows
    assert performed == []
    more = compared({**ALL, "mine": Twice()}, folder=tmp_path, seeds=3)
    assert len(performed) == 3 + 2 + 3  # a seed more for each, and one's own
    assert len(more.rows) == 4


def test_a_comparison_that_was_killed_goes_on(tmp_path, performed, monkeypatch):
    class Killed(BaseException):
        pass

    def keep(self, tried, outcome):
        if len(performed) == 5:
            raise Killed  # after the run, before its file
        kept(self, tried, outcome)

    kept = trial.Shelf.keep
    with monkeypatch.context() as patched:
        patched.setattr(trial.Shelf, "keep", keep)
        with pytest.raises(Killed):
            compared(folder=tmp_path)
    before = performed.copy()
    performed.clear()
    table = compared(folder=tmp_path)
    assert len(performed) == 18 - 4
    assert performed[0] == before[-1]
    again = compared()
    assert [(r.algorithm, r.scores) for r in table.rows] == [(r.algorithm, r.scores) for r in again.rows]


def test_another_budget_rate_seed_or_client_is_another_entry_and_another_name_or_target_is_not(tmp_path, performed):
    compared({"a": FedAvg()}, folder=tmp_path)
    first = [e.key for e in performed]
    performed.clear()
    compared({"b": FedAvg()}, folder=tmp_path, problem=tiny.problem(name="other", target=0.1, also=()))
    assert performed == []
    compared({"a": FedAvg()}, folder=tmp_path, problem=tiny.problem(rates=(0.01, 0.1, 1.0)))
    assert {e.settings["client rate"] for e in performed} == {1.0}
    for change in ({"rounds": 5}, {"config": {"epochs": 1}}, {"cohort": 2}, {"clients": 7}, {"depends": "data"}):
        performed.clear()
        compared({"a": FedAvg()}, folder=tmp_path, problem=tiny.problem(**change))
        assert len(performed) == 4
        assert not {e.key for e in performed} & {*first}


def test_runs_may_end_at_the_target(performed):
    whole = compared({"a": FedAvg()}, problem=tiny.problem(rounds=12)).cells[0].runs[0][1]
    losses = dict(whole.series["test.loss"])
    ended = compared({"a": FedAvg()}, problem=tiny.problem(rounds=12, target=losses[4], to_target=True))
    assert ended.cells[0].runs[0][1].series["test.loss"][-1] == [4, losses[4]]
    assert len({tried.key for tried in performed}) == len(performed)
    with pytest.raises(SettingError, match="end at its target"):
        tiny.problem(to_target=True)


@pytest.mark.slow
def test_the_same_seed_is_the_same_table_with_workers_or_without():
    few = {"problem": tiny.problem(rates=(0.1,)), "seeds": 1}
    first, others = compared({"FedAvg": FedAvg()}, **few), compared({"FedAvg": FedAvg()}, workers=2, **few)
    hashes = [table.cells[0].runs[0][1].model_sha256 for table in (first, others)]
    assert hashes[0] == hashes[1] != compared({"FedAvg": FedAvg()}, seeds=[2]).cells[0].runs[0][1].model_sha256
    assert [replace(row, seconds=0, tuning_seconds=0) for row in first.rows] == [
        replace(row, seconds=0, tuning_seconds=0) for row in others.rows
    ]


def test_what_fails_is_a_row_that_says_why_and_stops_nobody(tmp_path, performed):
    algorithms = {
        "raises": Broken(),
        "cannot be made": bench.Algorithm(FedProx, {"mu": (-1.0,)}),
        "makes nothing": lambda: None,
        "diverges": FedAvg(config={"lr": 1e300}),
        "FedAvg": FedAvg(),
    }
    table = compared(algorithms, folder=tmp_path)
    assert table.rows[0].algorithm == "FedAvg"
    assert table.rows[0].failed is None
    why = {row.algorithm: row.failed for row in table.rows[1:]}
    assert "nothing by nothing" in why["raises"]
    assert "at least 0" in why["cannot be made"]
    assert "not a strategy" in why["makes nothing"]
    assert why["diverges"] is not None
    assert all(math.isnan(row.score) for row in table.rows[1:])
    performed.clear()
    compared(algorithms, folder=tmp_path)
    assert performed == []


def test_a_metric_that_is_no_number_or_is_not_there_is_a_failure():
    def unlucky(model, part):
        return {"loss": math.nan if model["w"].any() and part == "test" else 1.0}

    for changes in ({"test": unlucky}, {"metric": "test.other"}):
        (row,) = compared({"FedAvg": FedAvg()}, problem=tiny.problem(**changes)).rows
        assert row.failed.startswith("test.")
        assert "is not a number at its end" in row.failed


def test_ctrl_c_ends_it_and_what_is_done_is_kept(tmp_path, performed):
    class Interrupted(FedAvg):
        def apply(self, state, answer):
            raise KeyboardInterrupt

    with pytest.raises(umbel.errors.RunInterrupted, match="goes on"):
        compared({"FedAvg": FedAvg(), "interrupted": Interrupted()}, folder=tmp_path)
    assert len(list((tmp_path / "trials").iterdir())) == 4


def test_a_full_disk_ends_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((umbel.errors.StorageError, OSError)):
        compared(folder=tmp_path / "file")


def test_a_damaged_entry_is_named(tmp_path, performed):
    compared({"a": FedAvg()}, folder=tmp_path)
    place = tmp_path / "trials" / f"{performed[0].key}.json"
    assert json.loads(place.read_text())["trial"]["algorithm"] == "a"
    place.write_text("{")
    with pytest.raises(umbel.errors.CorruptFile, match=performed[0].key):
        compared({"a": FedAvg()}, folder=tmp_path)


@pytest.mark.parametrize("bad", [{"seeds": 0}, {"seeds": [1, 1]}, {"algorithms": {}}, {"problem": []}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(umbel.errors.SettingError):
        bench.run(bad.pop("problem", tiny.problem()), **{"algorithms": ALL, "folder": None, **bad})
    with pytest.raises(umbel.errors.SettingError, match="one name"):
        bench.run([tiny.problem(), tiny.problem()], ALL, folder=None)


def test_it_tells_of_each_run_that_is_done_now(tmp_path):
    lines: list[str] = []
    compared({"FedAvg": FedAvg(), "broken": Broken()}, tmp_path, lines.append)
    assert len(lines) == 8
    assert lines[0].startswith("[1/8] tiny, FedAvg, tuning, client rate 0.01: 0.")
    assert lines[2].startswith("[3/8] tiny, FedAvg, seed 1, client rate 0.1: ")
    assert "failed: StrategyError: " in lines[4]
    assert lines[-1].endswith("0 s left)")
    compared({"FedAvg": FedAvg(), "broken": Broken()}, tmp_path, lines.append)
    assert len(lines) == 8


def test_a_long_run_is_told_of_meanwhile():
    lines: list[str] = []
    now = [0.0]
    progress = Progress(1, lines.append, clock=lambda: now[0])
    watch = progress.watch(bench.Trial("p", "a", "test", 1, 9, 1, {}, "key").title, 9)
    for r in range(1, 4):
        now[0] += 0.6 * EVERY
        watch(RoundCommitted(round=r, asks=1))
    assert lines == ["[1/1] p, a, seed 1, : round 2 of 9"]
    assert [lasting(s) for s in (5, 120, 7200)] == ["5 s", "2 min", "2 h"]
