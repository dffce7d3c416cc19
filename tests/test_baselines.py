"""Baselines: the reference is the algorithm, experiments run and are found to agree or not, the page is written."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks import baselines, leaderboard
from benchmarks.baselines import __main__ as program
from benchmarks.baselines import li, partitions, shakespeare
from benchmarks.baselines.clients import drawn_epochs
from benchmarks.baselines.experiment import Experiment, Finding
from benchmarks.baselines.federation import Data
from benchmarks.baselines.nets import logistic
from benchmarks.baselines.reference import Setup
from tests.bench import tiny

import umbel
from umbel import bench, strategies
from umbel.bench import fashion
from umbel.strategies import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi

SYNTHETIC = Data("Synthetic", partial(li._items, 4, 60))
OVER = partial(li._owners, 4, 60)
SIZES = (8, 16, 40, 80)


def _copies():
    """Each client has as many copies of one item as its size: its batches are the same in any order."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 6)).astype(np.float32), np.arange(4) % 3
    return np.repeat(x, SIZES, axis=0), np.repeat(y, SIZES), x, y


def _owners(labels, seed):
    return np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])


ALGORITHMS = {
    "fedavg": (FedAvg, {}),
    "fedprox": (partial(FedProx, mu=0.5), {"mu": 0.5}),
    "fedavgm": (partial(FedAvgM, lr=0.5, momentum=0.9), {"server_lr": 0.5}),
    "fedadagrad": (partial(FedAdagrad, lr=0.05), {"server_lr": 0.05, "beta1": 0.0}),
    "fedadam": (partial(FedAdam, lr=0.05), {"server_lr": 0.05}),
    "fedyogi": (partial(FedYogi, lr=0.05), {"server_lr": 0.05}),
    "scaffold": ("Scaffold", {}),
    "feddyn": ("FedDyn", {"mu": 0.1}),
    "fednova": ("FedNova", {}),
}


def experiment(strategy=FedAvg, **setup) -> Experiment:
    made = Setup(**{"rounds": 4, "cohort": 4, "epochs": 2, "lr": 0.05, **setup})
    return Experiment("setting", "Table 1", strategy, SYNTHETIC, OVER, OVER, partial(logistic, 60), made)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_reference_and_umbel_are_the_same_where_nothing_is_drawn(name):
    """All clients, batches that are all alike, a model that begins at zero: the curves are equal, though clients take
    1, 2, 5 or 10 steps an epoch.
    """
    strategy, more = ALGORITHMS[name]
    if isinstance(strategy, str) and strategy not in strategies.__all__:
        pytest.skip(f"there is no {strategy} yet")
    alone = {"fedprox": "fedavg"}.get(name, name)
    strategy = partial(strategies.FedDyn, alpha=0.1) if name == "feddyn" else strategy
    setup = Setup(algorithm=alone, rounds=4, cohort=4, epochs=2, batch=8, lr=0.05, **more)
    e = Experiment("setting", "", strategy, Data("copies", _copies), _owners, _owners, partial(logistic, 6, 3), setup)
    made = getattr(strategies, e.strategy) if isinstance(e.strategy, str) else e.strategy
    table = bench.run(e.problem("paper"), {name: made}, seeds=1, folder=None, workers=0, tell=None)
    (_, outcome), theirs = table.cells[0].runs[0], e.refer(e.setup, 1)
    assert outcome.failed is None
    ours = outcome.series["test.loss"]
    assert [r for r, _ in ours] == [r for r, *_ in theirs] == [1, 2, 3, 4]
    assert [loss for _, loss in ours] == pytest.approx([loss for *_, loss in theirs], rel=1e-4)
    assert len({round(loss, 3) for *_, loss in theirs}) == 4


def test_the_reference_too_ends_at_the_target():
    whole = experiment(rounds=6).refer(experiment(rounds=6).setup, 1)
    target = max(accuracy for _, accuracy, _ in whole[:3])
    ended = replace(experiment(rounds=6), target=target)
    there = ended.refer(ended.setup, 1)
    assert there == whole[: len(there)]
    assert there[-1][0] == ended.value(whole) < 6


@pytest.mark.slow
def test_workers_change_nothing():
    e = experiment(epochs=[1, 3], batch=8)
    tables = [
        bench.run(e.problem("paper"), {"a": FedAvg()}, seeds=1, folder=None, workers=workers, tell=None)
        for workers in (0, 2)
    ]
    first, second = (table.cells[0].runs[0][1] for table in tables)
    assert first.failed is None
    assert first.model_sha256 == second.model_sha256


def test_algorithms_differ():
    curves = {}
    for name, (_, more) in ALGORITHMS.items():
        e = experiment(algorithm={"fedprox": "fedavg"}.get(name, name), epochs=5, rounds=6, batch=8, **more)
        curves[name] = str(e.refer(e.setup, 1))
    assert len({*curves.values()}) == len(curves)


@pytest.mark.parametrize("over", [partitions.iid(8), partitions.shards(8), partitions.dirichlet(8, 0.5),
                                  partitions.dirichlet(8, 0.5, balanced=True)])  # fmt: skip
def test_both_splits_give_each_item_to_one(over):
    labels = np.random.default_rng(0).integers(0, 5, 400)
    kinds = []
    for split in over.values():
        held = [np.asarray(items) for items in split(labels, 3)]
        assert len(held) == 8
        assert sorted(np.concatenate(held)) == list(range(400))
        assert not all(np.array_equal(a, b) for a, b in zip(held, split(labels, 4), strict=True))
        kinds.append(np.mean([np.bincount(labels[items], minlength=5).max() / len(items) for items in held]))
    assert kinds[0] == pytest.approx(kinds[1], abs=0.2)  # as skewed


def test_what_a_curve_comes_to():
    curve = [[1, 0.1], [2, 0.5], [3, 0.4], [4, 0.6]]
    assert experiment().value(curve) == pytest.approx(0.5)
    to = Experiment("s", "c", FedAvg, SYNTHETIC, OVER, OVER, logistic, Setup(), target=0.5)
    assert (to.value(curve), to.value(curve[:1])) == (2, math.inf)


def finding(ours, theirs, target=None):
    made = Experiment("s", "c", FedAvg, SYNTHETIC, OVER, OVER, logistic, Setup(), target=target)
    curves = [[[[each if target else 1, target or each]] for each in side] for side in (ours, theirs)]
    return Finding(made, {"client rate": 0.1}, *curves, seconds=1.0)


@pytest.mark.parametrize(
    ("ours", "theirs", "target", "agrees"),
    [
        ([0.80, 0.80], [0.805, 0.805], None, True),
        ([0.80, 0.80], [0.815, 0.815], None, False),
        ([0.80, 0.80], [0.80, 0.84], None, True),
        ([0.70, 0.71, 0.70], [0.80, 0.81, 0.82], None, False),
        ([0.70, 0.75, 0.80], [0.80, 0.81, 0.82], None, True),
        ([100], [109], 0.9, True),
        ([100], [120], 0.9, False),
        ([], [0.8], None, None),
    ],
)
def test_both_sides_agree_within_their_spread(ours, theirs, target, agrees):
    assert finding(ours, theirs, target).agrees is agrees


def test_what_is_never_reached_is_said():
    e = Experiment("s", "c", FedAvg, SYNTHETIC, OVER, OVER, logistic, Setup(), target=0.9)
    never = Finding(e, {}, [[[1, 0.5]]], [[[1, 0.5]]], 1.0)
    assert never.agrees is True
    assert "| not reached | not reached | agrees |" in baselines.pages.row(never)
    assert Finding(e, {}, [[[1, 0.5]]], [[[1, 0.95]]], 1.0).agrees is None


@pytest.mark.parametrize("name", program.PAPERS)
def test_every_paper_has_experiments_that_can_be_made(name):
    for quick in (False, True):
        made = program.PAPERS[name].make(quick)
        assert len({e.setting for e in made}) == len(made) > 0
        assert all(e.setup.algorithm in ALGORITHMS for e in made)
        assert made[0].problem(name).rounds == made[0].setup.rounds


def test_modules_are_short():
    for path in Path(baselines.__file__).parent.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 140, path


def test_the_command_writes_the_page_and_does_nothing_twice(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    arguments = ["li", "--quick", "--folder", str(tmp_path / "done"), "--out", str(tmp_path), "--workers", "0"]
    program.main(arguments)
    printed = capsys.readouterr().out
    assert printed.count("| mu = ") == 4
    page = (tmp_path / "baselines.md").read_text(encoding="utf-8")
    assert page.startswith("# Baselines")
    assert all(line in page for line in printed.splitlines())
    assert "python -m benchmarks.baselines li" in page
    assert (tmp_path / "pictures" / "baselines-li.png").read_bytes()[1:4] == b"PNG"
    monkeypatch.setattr(Experiment, "refer", None)
    monkeypatch.setattr(bench.comparison, "perform", None)
    program.main(arguments)
    assert capsys.readouterr().out == printed


def test_a_paper_without_its_data_is_said_and_others_go_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("UMBEL_DATA", str(tmp_path))
    arguments = ["shakespeare", "li", "--quick", "--folder", str(tmp_path / "done"), "--workers", "0"]
    program.main(arguments)
    printed = capsys.readouterr()
    assert "shakespeare is not run" in printed.err
    assert "| mu = 1, 0% stragglers |" in printed.out


def test_each_role_has_windows_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_DATA", str(tmp_path))
    (tmp_path / "shakespeare").mkdir()
    said = "so they speak, at length, to be heard. " * 14
    (tmp_path / "shakespeare" / "play_gut.txt").write_text(
        "".join(f"{role}.\n{said[shorter:]}\n\n" * 2 for shorter, role in enumerate(("HAMLET", "OPHELIA")))
    )
    shakespeare.roles.cache_clear()
    (x, y, tx, ty), held = shakespeare.roles(2)
    assert x.shape[1:] == tx.shape[1:] == (shakespeare.LENGTH,)
    assert sum(map(len, held)) == len(x) == len(y)
    assert len(held) == 2
    assert len(ty) > 0
    assert y[0] == x[shakespeare.LENGTH // shakespeare.STEP][0]  # the character after a window begins a later one
    shakespeare.roles.cache_clear()


def test_epochs_are_drawn_where_they_are_unequal():
    class Ctx:
        def __init__(self, **config):
            self.config, self.rng = config, np.random.default_rng(0)

    assert drawn_epochs(Ctx(epochs=3)) == 3
    assert {drawn_epochs(ctx) for ctx in [Ctx(epochs=[2, 5])] for _ in range(50)} == {2, 3, 4, 5}
    slow = Ctx(epochs=4, stragglers=1.0)
    assert {drawn_epochs(slow) for _ in range(50)} == {1, 2, 3, 4}


@pytest.mark.slow
def test_the_leaderboards_command_writes_its_page(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(fashion, "HELD", 100)
    monkeypatch.setenv("UMBEL_DATA", str(tmp_path / "unpacked"))
    monkeypatch.setattr(leaderboard, "QUICK", {
        "fashion": {"rounds": 1, "rates": (0.1,), "clients": 10, "config": {"epochs": 1, "batch": 100}},
        "heart": {"rounds": 1, "rates": (0.03,)}, "seeds": 1, "tuning": None,
    })  # fmt: skip
    (made := tmp_path / "made").mkdir()
    (hearts := tmp_path / "heart").mkdir()
    data = ["--fashion", tiny.images(made), "--heart", tiny.patients(hearts)]
    where = ["--folder", str(tmp_path / "done"), "--out", str(tmp_path), "--workers", "0"]
    leaderboard.main(["--quick", "--only", "FedAvg", "FedProx", *data, *where])
    page = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert page.count("| FedProx |") == page.count("| FedAvg |") == 7  # five problems and all together, twice
    assert page.count("](pictures/leaderboard-") == 5
    assert "mean rank" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        leaderboard.main(["--only", "Other", *data, *where])


def test_without_data_the_leaderboard_says_how_to_get_it(tmp_path):
    with pytest.raises(SystemExit, match="apt-get install dataset-fashion-mnist"):
        leaderboard.main(["--fashion", str(tmp_path)])
    assert issubclass(umbel.errors.DataError, umbel.errors.CallerError)
