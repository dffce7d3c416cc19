"""The benchmark of private training beside a peer, at a size that says nothing, on images that are made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("dp_accounting")

from benchmarks import private_mnist
from benchmarks.launch import launch
from benchmarks.peers import digits
from benchmarks.private_mnist import Run
from benchmarks.simulated import apart
from tests.bench import tiny

SETTING = replace(private_mnist.QUICK, clients=20, cohort=10, rounds=2, noise=1.0)
HERE = Path("/proc/self/smaps_rollup").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny.images(tmp_path_factory.mktemp("made"), 120)


def task(**changes: Any) -> digits.Task:
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (120, 28, 28)).astype(np.uint8), rng.integers(0, 10, 120)
    return digits.task(pixels, labels, replace(SETTING, **changes))


def runs(*accuracies: float | None) -> list[Run | None]:
    return [None if a is None else Run(a, 4.0, 3.99, 1.0, 10.0, {"numpy": "2"}) for a in accuracies]


def found(ours: list[Run | None], peer: list[Run | None]) -> private_mnist.Found:
    return {("Umbel", True): ours, ("pfl", True): peer}


def test_a_task_is_the_same_in_the_file_and_deals_each_image_out_once(tmp_path, monkeypatch) -> None:
    made = task(seed=3)
    made.keep(tmp_path / "task.npz")
    monkeypatch.setenv("BENCH_TASK", str(tmp_path / "task.npz"))
    digits.given.cache_clear()
    read = digits.given()
    digits.given.cache_clear()
    assert read.setting == made.setting
    assert sorted(made.items.ravel()) == list(range(120))
    assert made.items.shape == (20, 6)
    for client in (0, 19):
        for a, b in zip(read.examples(client), made.examples(client), strict=True):
            np.testing.assert_array_equal(a, b)
    assert apart(read.model, made.model, made.model) == 0.0
    assert apart(made.model, task(seed=4).model, task(seed=4).model) > 0.0


def test_the_network_has_the_parameters_and_an_epoch_of_training_moves_them_all() -> None:
    import torch

    made = task()
    net = digits.net(made.model)
    assert sum(p.numel() for p in net.parameters()) == 26_010
    digits.fit(net, *map(torch.from_numpy, made.examples(0)), made.setting)
    for name, value in net.state_dict().items():
        assert not np.array_equal(value.numpy(), made.model[name])
    zero = {name: np.zeros_like(array) for name, array in made.model.items()}
    assert digits.accuracy(zero, made.pixels[:50], np.zeros(50, np.int64)) == 100.0


@pytest.mark.parametrize(
    ("ours", "peer", "says"),
    [
        ((97.0, 97.4), (97.1, 97.5), "holds: Umbel's mean is 0.10 points below"),
        ((97.0, 97.1), (97.5, 97.6), "MISSED: Umbel's mean is 0.50 points below"),
        ((98.0, 98.1), (97.5, 97.6), "holds: Umbel's mean is 0.50 points above"),
        ((97.0,), (97.5,), "too few seeds"),
        ((97.0, None), (97.5, 97.5), "FAILED"),
        ((97.0, 97.1), (None, None), "not measured: there is no peer"),
    ],
)
def test_the_verdict_is_by_the_spread_over_seeds(ours, peer, says) -> None:
    assert private_mnist.verdict(found(runs(*ours), runs(*peer))).startswith(says)


def test_the_spread_is_that_of_both_sides_pooled() -> None:
    both = found(runs(97.0, 98.0), runs(97.0, 97.0))
    assert private_mnist.spread(list(both.values())) == pytest.approx((0.5 / 2) ** 0.5)  # type: ignore[arg-type]
    assert "| Umbel, private | 97.00 | 98.00 | 97.50 ± 0.71 | 4.000 | 1.00 | 10 |" in private_mnist.table(both)


def test_what_is_written_is_of_full_size(capsys) -> None:
    with pytest.raises(SystemExit):
        private_mnist.main(["--write", "--quick"])
    assert "full sizes" in capsys.readouterr().err


def test_without_the_data_it_says_how_to_get_it(tmp_path) -> None:
    with pytest.raises(SystemExit, match="make data"):
        private_mnist.main(["--quick", "--data", str(tmp_path)])


@pytest.mark.slow
@pytest.mark.skipif(not HERE, reason="reads /proc")
def test_both_are_trained_and_an_absent_peer_says_so(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("BENCH_PFL", "/nowhere/python")
    monkeypatch.setenv("UMBEL_DATA", str(tmp_path))
    done, failed = private_mnist.measure(folder, SETTING, 1)
    (ours,), (plain,) = done["Umbel", True], done["Umbel", False]
    assert ours is not None
    assert plain is not None
    assert plain.epsilon is None
    assert 0 <= ours.accuracy <= 100
    # What the log released is what the noise of the setting comes to.
    spent = private_mnist.calibrated(ours.epsilon, SETTING.delta, SETTING.rounds, SETTING.clients, SETTING.cohort)
    assert spent.noise == pytest.approx(SETTING.noise, rel=1e-3)
    told = private_mnist.report(done, failed, SETTING)
    assert "| pfl, private | - | not measured |" in told
    assert "pfl: /nowhere/python does not exist; `make bench-peers` makes it" in told
    assert "not measured: there is no peer" in told


@pytest.mark.slow
@pytest.mark.skipif(not HERE, reason="reads /proc")
@pytest.mark.skipif(not Path(private_mnist.SIDES["pfl"].python).exists(), reason="needs pfl: make bench-peers")
def test_with_all_clients_and_without_noise_both_compute_the_same(tmp_path) -> None:
    made = task(cohort=20, noise=None)
    made.keep(tmp_path / "task.npz")
    ours, peer = (launch(side, task=tmp_path / "task.npz").model for side in private_mnist.SIDES.values())
    assert ours is not None
    assert peer is not None
    assert apart(ours, peer, made.model) < 1e-3
