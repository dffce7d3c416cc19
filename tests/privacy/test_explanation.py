"""What is said of who sees what, against what is so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import some

import umbel
from umbel.errors import SettingError
from umbel.privacy import central_gaussian, local_gaussian, secure
from umbel.privacy.explanation import explain
from umbel.privacy.explanation_picture import MOST, draw
from umbel.privacy.neighbours import neighbourhood
from umbel.simulation.federation import Simulation
from umbel.transforms import clip_by_norm, quantise, rotate

MODEL = umbel.Arrays({"w": np.zeros((10, 5), np.float32), "n": np.zeros(3, np.int64)})
ALIKE = umbel.FedAvg(cohort=20, fold=umbel.mean())


def test_a_plain_round_shows_each_update() -> None:
    found = explain(ALIKE, MODEL, 20)
    assert (found.neighbours, found.threshold) == (0, 0)
    [row] = found.phases
    assert (row.phase, row.sends) == ("train", "its update, 224 bytes")
    assert row.server == "each client's update, as it was trained"
    assert "there is no noise" in dict(found.follows)["the model is looked at"]


@pytest.mark.parametrize(
    ("transforms", "says"),
    [
        ((clip_by_norm(1.0), quantise(8, bounded=True)), "each client's update, after clip_by_norm, quantise"),
        (central_gaussian(norm=1.0, noise=1.0, expected=20), "after central_gaussian, before there is noise"),
        (local_gaussian(norm=1.0, noise=1.0), "after local_gaussian, noise and all"),
    ],
)
def test_steps_and_noise_are_named(transforms: Any, says: str) -> None:
    strategy = umbel.FedAvg(cohort=umbel.Poisson(0.5), fold=umbel.total(), transforms=transforms)
    if isinstance(transforms, tuple):
        strategy = umbel.FedAvg(cohort=20, fold=umbel.mean(), transforms=transforms)
    assert says in explain(strategy, MODEL, 20).phases[0].server


def test_a_secure_round_has_the_phases_the_numbers_and_the_bytes_of_a_run() -> None:
    sizes: list[int] = []
    client = umbel.Client()

    @client.train
    def train(model: Any, data: Any, ctx: Any) -> umbel.Update:
        return umbel.Update(dict(model))

    strategy = secure(umbel.FedAvg(cohort=20, fold=umbel.mean(), transforms=rotate(16)), metrics=["loss", "far"])
    found = explain(strategy, MODEL, 20)
    assert (found.neighbours, found.threshold) == neighbourhood(20, 0.1, 0.3)
    assert [row.phase for row in found.phases] == ["phase:keys", "phase:shares", "train", "phase:unmask"]
    step = strategy.step(umbel.Ask(clients=20, fold=umbel.mean()), "1", 2, 20)
    chain = umbel.core.transform.chain(rotate(16), step)
    update = umbel.Update(umbel.Arrays({"w": np.ones((10, 5), np.float32)}), 1.0, {"loss": 1.0, "far": 1.0}, delta=True)
    sent, _ = chain.encode(update, chain.send(chain.init(None)), None, umbel.core.randomness.Key.from_seed(1))
    sizes.append(sum(array.nbytes for array in sent.arrays.values()))
    assert found.phases[2].sends == f"its update under masks, {sizes[0]} bytes"
    assert dict(found.follows)["up to 6 of 20 vanish"] == "the sum is over those whose masked updates came"


def test_too_few_to_be_summed_are_an_error() -> None:
    with pytest.raises(SettingError, match="at least 3 clients"):
        explain(secure(ALIKE), MODEL, 2)


@pytest.mark.parametrize("clients", some([5, 20, MOST + 100], 1))
def test_it_is_drawn(clients: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for strategy in (ALIKE, secure(ALIKE)):
        figure = draw(explain(strategy, MODEL, clients), tmp_path / "seen.png")
        ring = figure.axes[0]
        dots = [line for line in ring.lines if line.get_marker() == "o"]
        assert [len(line.get_xdata()) for line in dots] == [min(clients, MOST)]
        assert ("neighbours each" in ring.get_title()) == isinstance(strategy, type(secure(ALIKE)))
        assert (tmp_path / "seen.png").read_bytes().startswith(b"\x89PNG")
    assert Simulation(clients)
