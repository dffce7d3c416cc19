from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


def plan(epsilon: float, rounds: int, population: int, cohort: int, *more: object) -> tuple[object, ...]:
    budget = ("--epsilon", epsilon, "--delta", 1e-6, "--rounds", rounds)
    return ("privacy", "plan", *budget, "--population", population, "--cohort", cohort, *more)


def test_a_plan_says_noise_table_and_what_it_rests_on(umbel: Command) -> None:
    pytest.importorskip("dp_accounting")
    done = umbel(*plan(4, 2, 1, 1, "--accountant", "rdp", "--separation", 1))
    assert done.code == 0
    assert "the noise multiplier" in done.out
    assert "noise for 4" in done.out
    assert "Poisson(1)" in " ".join(done.out.split())
    assert "The server is trusted" in done.out
    assert "separation 1, bands 1" in done.out


@pytest.mark.slow
def test_the_documented_plan_and_its_picture(umbel: Command, folder: Path) -> None:
    pytest.importorskip("dp_accounting")
    pytest.importorskip("matplotlib")
    found = umbel(*plan(4, 200, 100_000, 1000, "--plot", "plan.png", "--json")).summary
    assert found["plan"]["noise"] == pytest.approx(0.6674, rel=1e-3)
    assert 3.96 < found["plan"]["spent"] <= 4
    assert (found["picture"], found["rounds"]) == ("plan.png", [100, 200, 400, 1000])
    assert [row["cohort"] for row in found["cohorts"]] == [250, 500, 1000, 2000, 4000]
    assert found["cohorts"][2]["epsilons"][1] == found["plan"]["spent"]
    assert (folder / "plan.png").stat().st_size > 10_000


def test_without_dp_accounting_it_is_said_what_to_install(umbel: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    done = umbel(*plan(3.25, 77, 1000, 10))
    assert done.code == 3
    assert 'pip install "umbel[dp]"' in done.said


def test_a_cohort_beyond_the_population_is_refused(umbel: Command) -> None:
    done = umbel(*plan(4, 2, 9, 10))
    assert done.code == 3
    assert umbel(*plan(4, 3, 9, 4, "--separation", 3)).code == 3
    assert "a cohort of 10 cannot be taken from a population of 9" in done.said
