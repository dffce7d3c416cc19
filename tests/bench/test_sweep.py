"""Sweeps: runs in their order with the bits of separate ones, kept, gone on with, pruned; what they come to."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import umbel
from umbel import App, Client, FedAvg, Simulation
from umbel.bench.swept import Sweep, SweepRow, by_metric, goal_of, marked, open_sweep
from umbel.errors import CallerError, JournalMissing, RunInterrupted, SettingError
from umbel.runs.past import past_runs

GRID = {"lr": [0.5, 0.25], "strategy.cohort": [2, 3]}


def app_of(**settings: Any) -> App:
    """An app whose accuracy grows with its rate; a rate of 9 fails, one of 7 is interrupted while a file is there."""
    client = Client()

    @client.train
    def train(model: Any, data: Any, ctx: Any) -> umbel.Update:
        if ctx.config["lr"] == 9:
            raise ValueError("it is too fast")
        step = data["index"] + ctx.rng.normal(size=2)
        return umbel.Update({"w": model["w"] + ctx.config["lr"] * (step - model["w"])}, metrics={"loss": 1.0})

    config = {"lr": 0.5, "stop": "", "seen": 0.0}
    strategy = FedAvg(cohort=3)
    app = App(client, model={"w": np.zeros(2)}, strategy=strategy, **{"rounds": 2, "config": config, **settings})

    @app.test
    def test(model: Any) -> dict[str, float]:
        return {"accuracy": -float(abs(model["w"] - 20).mean())}

    return app


def swept(settings: Any, folder: Path | None, app: App | None = None, workers: int = 0, **how: Any) -> Sweep:
    on = Simulation(4, workers=workers)
    return umbel.sweep(app or app_of(), settings, on=on, folder=folder, **{"tell": None, **how})


def ids(folder: Path) -> list[str]:
    return [record.id for record in past_runs(folder)]


def rows_of(sweep: Sweep) -> list[Any]:
    return [(row.settings, row.seed, row.state, row.metrics) for row in sweep.rows]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_all_combinations_run_in_order_with_the_bits_of_separate_runs(workers: int, tmp_path: Path) -> None:
    found = swept({**GRID, "rounds": [2]}, tmp_path, seeds=2, workers=workers)
    wanted = [(rate, cohort, seed) for rate in (0.5, 0.25) for cohort in (2, 3) for seed in (0, 1)]
    named = [{"lr": str(rate), "strategy.cohort": str(cohort), "rounds": "2"} for rate, cohort, _ in wanted]
    assert [(row.settings, row.seed) for row in found.rows] == [(p, w[2]) for p, w in zip(named, wanted, strict=True)]
    assert ids(tmp_path) == [row.run for row in found.rows]
    for row, (rate, cohort, seed) in zip(found.rows, wanted, strict=True):
        app = app_of()
        app.strategy = FedAvg(cohort=cohort)
        alone = umbel.run(app, on=Simulation(4, workers=0), rounds=2, config={"lr": rate}, seed=seed, folder=None)
        assert umbel.open(str(row.run), tmp_path).model_sha256 == alone.model_sha256
        assert (row.metrics, row.state, row.rounds) == (alone.metrics, "finished", 2)


def test_the_best_has_the_best_mean_over_seeds() -> None:
    def row(rate: str, seed: int, value: float, state: str = "finished") -> SweepRow:
        return SweepRow({"lr": rate}, seed, f"{rate}-{seed}", state, 3, 1.0, {"test.loss": value})

    rows = [row("1", 0, 0.5), row("1", 1, 0.7), row("2", 0, 0.1), row("2", 1, 1.5), row("3", 0, 0.0)]
    rows += [row("3", 1, 0.0, "failed"), row("4", 0, math.nan)]
    found = by_metric("s", rows, None, None)
    assert (found.metric, found.goal) == ("test.loss", "min")
    assert [group.settings["lr"] for group in found.groups] == ["1", "2", "3", "4"]
    assert found.best == rows[0]
    assert (found.groups[0].mean, round(found.groups[0].spread, 3)) == (0.6, 0.141)
    assert by_metric("s", rows, None, "max").best == rows[3]
    assert by_metric("s", rows[4:], None, None).best == rows[4]
    assert by_metric("s", rows[6:], None, None).best is None
    assert by_metric("s", [], None, None).best is None
    assert [goal_of(name) for name in ("test.accuracy", "train.Loss", "evaluate.rmse", "test.auc")] == [
        "max", "min", "min", "max"
    ]  # fmt: skip
    with pytest.raises(SettingError, match=r"no run has a metric 'test.los'"):
        by_metric("s", rows, "test.los", None)


def test_what_is_done_is_kept_and_more_values_and_seeds_go_on(tmp_path: Path) -> None:
    lines: list[str] = []
    first = swept(GRID, tmp_path, tell=lines.append)
    assert [line.split(":")[0] for line in lines] == [
        f"[{n}/4] lr {rate}, strategy.cohort {cohort}, seed 0"
        for n, (rate, cohort) in enumerate([(0.5, 2), (0.5, 3), (0.25, 2), (0.25, 3)], 1)
    ]
    assert lines[-1].endswith("0 s left)")
    done, lines[:] = ids(tmp_path), []
    assert rows_of(swept(GRID, tmp_path, tell=lines.append)) == rows_of(first)
    assert lines == [f"{first.id} has 4 runs already"]
    more = swept({"strategy.cohort": [3, 2], "lr": [0.5, 0.75]}, tmp_path, seeds=2)
    assert more.id == first.id
    assert len(more) == 8
    assert len(ids(tmp_path)) == 10
    assert set(done) <= set(ids(tmp_path))
    assert swept({"lr": [0.5]}, tmp_path).id != first.id
    other = app_of()
    other.test(lambda model: {"accuracy": float(model["w"].sum())})
    assert swept({"strategy.cohort": [2], "lr": [1]}, tmp_path, other).id != first.id
    assert swept({"strategy.cohort": [2], "lr": [1]}, tmp_path, rounds=1).id != first.id
    opened = open_sweep(first.id, tmp_path)
    assert {row.run for row in opened.rows} == {row.run for row in (*first.rows, *more.rows)}
    assert len(marked(tmp_path)) == 4


def test_a_run_that_fails_is_a_row_that_says_why(tmp_path: Path) -> None:
    found = swept({"lr": [9, 0.5], "strategy.cohort": [2, 5]}, tmp_path)
    assert [row.state for row in found.rows] == ["failed", "refused", "finished", "refused"]
    assert "it is too fast" in str(found.rows[0].error)
    assert "asks for 5 clients, but the federation has 4" in str(found.rows[1].error)
    assert found.best == found.rows[2]
    again = swept({"lr": [9, 0.5], "strategy.cohort": [2, 5]}, tmp_path)
    assert again.rows == found.rows
    assert str(again) == str(found)
    text = str(found).splitlines()
    assert text[0].split() == ["lr", "strategy.cohort", "runs", "test.accuracy", "time"]
    assert text[1].split()[:3] == ["0.5", "2", "1"]
    assert any("it is too fast" in line for line in text[2:])


def test_one_process_at_a_time_has_a_sweep(tmp_path: Path) -> None:
    app, others = app_of(rounds=1), []

    def early(history: Any) -> None:
        with pytest.raises(SettingError, match=r"test-sweep-\w+ runs in .* already") as caught:
            swept({"lr": [0.5, 0.25]}, tmp_path, app, name="test")
        others.append(caught.value.hint)

    app.early_stop = early
    swept({"lr": [0.5]}, tmp_path, app, name="test")
    assert ["Wait for it" in hint for hint in others] == [True]
    assert len(ids(tmp_path)) == 1


def test_a_sweep_that_was_stopped_goes_on_with_the_run_that_was_broken_off(tmp_path: Path) -> None:
    armed = tmp_path / "armed"

    def stopping() -> App:
        app, rounds = app_of(), []

        def early(history: Any) -> None:
            rounds.append(len(history))
            if armed.exists() and len(rounds) == int(armed.read_text()):
                raise KeyboardInterrupt

        app.early_stop = early
        return app

    whole = swept(GRID, tmp_path / "whole", stopping())
    for at, runs in ((3, 2), (4, 3)):  # in the second run, then in the third
        armed.write_text(str(at))
        with pytest.raises(RunInterrupted) as caught:
            swept(GRID, tmp_path / "runs", stopping())
        assert "goes on" in str(caught.value.hint)
        assert len(ids(tmp_path / "runs")) == runs
    armed.unlink()
    assert rows_of(swept(GRID, tmp_path / "runs", stopping())) == rows_of(whole)
    assert len(ids(tmp_path / "runs")) == 4


@pytest.mark.parametrize(
    ("settings", "how", "said"),
    [
        ({"lrr": [1, 2]}, {}, "there is no setting 'lrr'"),
        ({"lr": [0.1, "fast"]}, {}, "lr=fast: it takes a number"),
        ({"strategy.cohort": [3, 0]}, {}, "cohort"),
        ({"rounds": [0]}, {}, "at least 1"),
        ({"rounds": [2]}, {"rounds": 3}, "disagree"),
        ({"lr": "0.1..1.0"}, {}, "a range has no end"),
        ({"strategy.cohort": "0..3"}, {"random": 2}, "cohort"),
        (GRID, {"random": 2, "optuna": 2}, "not both"),
        (GRID, {"random": 0}, "at least 1"),
        (GRID, {"seeds": 0}, "at least one seed"),
        (GRID, {"seeds": [1, 1]}, "at least one seed"),
        (GRID, {"optuna": 2}, "what is best"),
        (GRID, {"goal": "most"}, "'max' or its 'min'"),
    ],
)
def test_what_no_run_can_have_is_said_before_any_runs(settings: Any, how: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=said):
        swept(settings, tmp_path, **how)
    assert not os.listdir(tmp_path)


def test_a_metric_that_there_is_not_is_said_after_the_first_run(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"no run has a metric 'test.f1'") as caught:
        swept(GRID, tmp_path, metric="test.f1")
    assert "test.accuracy" in str(caught.value.hint)
    assert len(ids(tmp_path)) == 1


def test_sweeps_are_opened_by_their_id_or_a_part_of_it(tmp_path: Path) -> None:
    with pytest.raises(JournalMissing, match="no sweep is in"):
        open_sweep("last", tmp_path)
    first = swept({"lr": [0.5, 0.25]}, tmp_path, name="first", metric="train.loss")
    umbel.run(app_of(), on=Simulation(4, workers=0), folder=tmp_path)
    last = swept(GRID, tmp_path, name="second")
    assert open_sweep("last", tmp_path).id == last.id
    opened = open_sweep("first", tmp_path)
    assert (opened.rows, opened.metric, opened.goal) == (first.rows, "train.loss", "min")
    assert open_sweep(first.id, tmp_path, metric="test.accuracy").goal == "max"
    with pytest.raises(SettingError, match="may mean 2 sweeps"):
        open_sweep("sweep", tmp_path)
    with pytest.raises(JournalMissing, match="no sweep third"):
        open_sweep("third", tmp_path)


def test_columns_a_frame_and_nothing_on_disk() -> None:
    found = swept({"lr": [0.5, 9], "stop": ["a", "b"]}, None)
    columns = found.columns()
    assert columns["lr"] == [0.5, 0.5, 9, 9]
    assert columns["stop"] == ["a", "b", "a", "b"]
    assert columns["state"] == ["finished", "finished", "failed", "failed"]
    assert [math.isnan(value) for value in columns["test.accuracy"]] == [False, False, True, True]
    pandas = pytest.importorskip("pandas")
    assert isinstance(found.frame(), pandas.DataFrame)
    assert list(found.frame()["lr"]) == columns["lr"]


def test_points_are_drawn_at_random(tmp_path: Path) -> None:
    found = swept({"lr": "0.01..0.9", "strategy.cohort": [2, 3]}, tmp_path, random=3)
    more = swept({"lr": "0.01..0.9", "strategy.cohort": [2, 3]}, tmp_path, random=4)
    assert more.id == found.id
    assert rows_of(more)[:3] == rows_of(found)
    assert len(ids(tmp_path)) == 4


def test_a_picture_shows_curves_and_settings(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = swept({"lr": [0.01, 0.5, 9], "stop": ["a", "b"]}, None, seeds=2, rounds=1)
    figure = found.plot(tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes()[1:4] == b"PNG"
    curves, rate, stop = figure.axes
    labels = [text.get_text() for text in curves.get_legend().get_texts()]
    assert labels[0] == "lr 0.5, stop a"
    assert {axes.get_xlabel() for axes in (rate, stop)} == {"lr", "stop"}
    assert (rate.get_xscale(), stop.get_xscale()) == ("log", "linear")
    with pytest.raises(SettingError, match="nothing to draw"):
        swept({"lr": [9]}, None).plot()


def test_without_optuna_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(CallerError, match="Optuna is not installed") as caught:
        swept({"lr": "0.1..0.9"}, None, optuna=2, metric="test.accuracy")
    assert caught.value.hint == 'pip install "umbel[sweep]"'


@pytest.mark.slow
def test_optuna_proposes_and_prunes_and_a_study_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    space = {"lr": "0.001..0.9", "strategy.cohort": "2..4", "stop": ["a", "b"]}
    how: dict[str, Any] = {"metric": "test.accuracy", "seeds": 2}
    whole = swept(space, tmp_path / "whole", app_of(rounds=5), optuna=14, **how)
    assert {row.state for row in whole.rows} == {"finished", "pruned"}
    pruned = [row for row in whole.rows if row.state == "pruned"]
    assert all(row.rounds < 5 and row.seed == 0 for row in pruned)
    assert whole.best is not None
    assert whole.best.state == "finished"
    assert float(whole.best.settings["lr"]) > 0.1
    assert any("pruned after round" in line for line in str(whole).splitlines())
    states = {record.id: record.state for record in past_runs(tmp_path / "whole")}
    assert states == {row.run: row.state for row in whole.rows}
    first = swept(space, tmp_path / "runs", app_of(rounds=5), optuna=6, **how)
    rest = swept(space, tmp_path / "runs", app_of(rounds=5), optuna=14, **how)
    assert rest.id == first.id
    assert rows_of(rest) == rows_of(whole)
    assert len(ids(tmp_path / "runs")) == len(whole)
    assert len(swept(space, None, app_of(rounds=2), optuna=2, sampler="RandomSampler", **how)) == 4
    failing = swept({"lr": [9]}, None, optuna=2, **how)
    assert {row.state for row in failing.rows} == {"failed"}
    with pytest.raises(SettingError, match="Optuna has no sampler 'Sampler9'"):
        swept(space, None, optuna=2, sampler="Sampler9", **how)
