from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel.core.answer import Answer
from umbel.core.arrays import Arrays
from umbel.errors import SettingError
from umbel.privacy import dp_ftrl
from umbel.privacy.accounting import spent
from umbel.privacy.clipped import grid
from umbel.privacy.matrices import banded
from umbel.privacy.plan import LEAST, around, calibrated, correlated, tradeoff
from umbel.privacy.release import NoisyRelease

pytest.importorskip("dp_accounting")

PLAN = (4.0, 1e-6, 200, 100_000, 1000)


def by_the_log(noise: float, rate: float, rounds: int, delta: float, accountant: str) -> float:
    """What a run spends that did as planned, with discrete noise on a fine grid."""
    sampling = {"kind": "poisson", "rate": rate}
    release = NoisyRelease("discrete_gaussian", noise, 0.1, "client", "add or remove one", sampling, 10, 2.0**20)
    return spent([release] * rounds, delta, accountant).epsilon


@pytest.mark.slow
@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@settings(max_examples=5)
@given(st.floats(0.1, 20), st.floats(-9, -4), st.integers(1, 3000), st.integers(1, 10**6), st.floats(1e-4, 1))
def test_what_was_planned_is_spent(
    accountant: str, epsilon: float, delta: float, rounds: int, population: int, share: float
) -> None:
    cohort = max(1, round(population * share))
    plan = calibrated(epsilon, 10**delta, rounds, population, cohort, accountant)
    found = by_the_log(plan.noise, plan.rate, rounds, plan.delta, accountant)
    assert found <= epsilon
    assert found >= epsilon * 0.99 or plan.noise < 1.1 * LEAST or population < 10 / plan.delta**0.5
    assert plan.spent == pytest.approx(found, rel=1e-6)
    assert plan.mean_noise == pytest.approx(plan.noise / cohort)


def test_without_sampling_it_is_the_gaussian_mechanism() -> None:
    plan = calibrated(1.0, 1e-5, 1, 7, 7)
    assert plan.rate == 1.0
    assert plan.noise == pytest.approx(3.7304, rel=2e-4)  # Balle & Wang 2018, analytic calibration
    assert plan.spent <= 1.0
    assert calibrated(1.0, 1e-5, 100, 7, 7).noise == pytest.approx(10 * plan.noise, rel=1e-3)
    assert calibrated(1.0, 1e-5, 1, 7, 7, "rdp").noise > plan.noise
    assert json.loads(json.dumps(plan.plain()))["noise"] == plan.noise


@pytest.mark.slow
def test_the_tradeoffs_go_the_right_way(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from umbel.privacy.plan_picture import draw

    plan = calibrated(*PLAN)
    assert plan.noise == pytest.approx(0.6674, rel=1e-3)
    rows = tradeoff(plan, cohorts=[100, 1000, 10_000], rounds=[20, 200, 2000])
    assert [(row.cohort, row.rounds) for row in rows] == [
        (100, 200), (1000, 200), (10_000, 200), (1000, 20), (1000, 200), (1000, 2000),
    ]  # fmt: skip
    assert rows[1] == rows[4] == plan
    assert rows[0].noise < plan.noise < rows[2].noise
    assert rows[0].mean_noise > plan.mean_noise > rows[2].mean_noise
    assert rows[3].noise < plan.noise < rows[5].noise
    assert plan.with_same_noise(1000, 100) < plan.spent < plan.with_same_noise(2000, 200)
    assert plan.with_same_noise(1000, 0) == 0
    figure = draw(plan, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 10_000
    noise, mean, curve = figure.axes
    assert all([*line.get_ydata()] == sorted(line.get_ydata()) for line in (*noise.lines, *curve.lines))
    assert all([*line.get_ydata()] == sorted(line.get_ydata(), reverse=True) for line in mean.lines)


def test_what_a_plan_rests_on_is_said() -> None:
    said = " ".join(calibrated(2.0, 1e-3, 3, 5000, 5000).assumed)
    for words in ("Poisson(1)", "add or remove one", "The server is trusted", "fixed number 5,000", "A delta of 0.001"):
        assert words in said
    assert "A delta" not in " ".join(calibrated(2.0, 1e-5, 3, 5000, 5000).assumed)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"cohort": 11}, "a cohort of 11"),
        ({"cohort": 0}, "cohort"),
        ({"rounds": 0}, "rounds"),
        ({"rounds": 1.5}, "rounds"),
        ({"population": 0}, "population"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": math.nan}, "epsilon"),
        ({"delta": 1.0}, "delta"),
        ({"accountant": "moments"}, "accountant"),
        ({"epsilon": 1e-12, "delta": 1e-15, "cohort": 10}, "no noise is enough"),
    ],
)
def test_what_cannot_be_planned_is_refused(change: dict[str, float], named: str) -> None:
    budget = {"epsilon": 1.0, "delta": 1e-5, "rounds": 3, "population": 10, "cohort": 5}
    with pytest.raises(SettingError, match=named):
        calibrated(**{**budget, **change})  # type: ignore[arg-type]


def test_a_vast_budget_needs_next_to_no_noise() -> None:
    assert calibrated(1e9, 1e-5, 1, 5, 5).noise < 1.1 * LEAST


def test_numbers_around_another() -> None:
    assert around(3, (0.1, 0.5, 1, 2, 10), most=10) == [1, 2, 3, 6]


@pytest.mark.slow
@pytest.mark.parametrize(("rounds", "separation"), [(20, 4), (7, 10)])
def test_correlated_noise_is_planned_as_it_is_added(rounds: int, separation: int) -> None:
    plan = calibrated(4.0, 1e-6, rounds, 1000, 100)
    found = correlated(plan, separation)
    assert found["spent"] <= 4.0
    assert found["spent"] == pytest.approx(4.0, rel=1e-3)
    step = dp_ftrl(1.0, found["noise"], 100, rounds=rounds, separation=separation, bands=found["bands"])
    state = step.init(Arrays({"w": np.zeros(2)}).schema)
    b = banded(rounds, found["bands"]).decoder()
    deviation = step.event(Answer(Arrays()), state)["steps"] * grid(1.0)  # of z; the model has B z of it
    assert found["model_noise"] == pytest.approx(np.sqrt(np.square(b).sum(1).mean()) * deviation / 100, rel=1e-6)
    sums = np.tril(np.ones((rounds, rounds))) * plan.mean_noise
    assert found["sampled"] == pytest.approx(np.sqrt(np.square(sums).sum(1).mean()))
    release = NoisyRelease(**step.event(Answer(Arrays()), state), sampling={"kind": "everyone"})
    assert spent([release] * rounds, 1e-6).epsilon == pytest.approx(found["spent"], rel=1e-6)
    with pytest.raises(SettingError, match="cannot be had of 1,000"):
        correlated(replace(plan, cohort=200), 11)
