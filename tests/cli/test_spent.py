"""What `umbel privacy show` says a run has spent is what the accountant says of the releases in its log."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]

APP = """
import numpy as np
import umbel
from umbel.privacy import central_gaussian

client = umbel.Client()


@client.train
def train(model, data, ctx):
    return umbel.Update({"w": model["w"] + 0.1})


private = central_gaussian(norm=1.0, noise=2.0, expected=10)
strategy = umbel.FedAvg(cohort=COHORT, fold=umbel.total(), transforms=private)
app = umbel.App(client, model={"w": np.zeros(2)}, strategy=strategy, rounds=3)
"""


@pytest.fixture
def ran(umbel: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    pytest.importorskip("dp_accounting")
    monkeypatch.chdir(tmp_path)

    def run(cohort: str) -> str:
        Path("private.py").write_text(APP.replace("COHORT", cohort))
        found = umbel("run", "private.py", "--clients", 100, "--json").summary["run"]
        return str(found)

    return run


def test_it_is_the_accountants_word_on_the_releases_of_the_log(umbel: Command, ran: Callable[[str], str]) -> None:
    from umbel.privacy.accounting import spent
    from umbel.privacy.release import NoisyRelease

    run = ran("umbel.Poisson(0.1)")
    found = json.loads(umbel("privacy", "show", "--delta", "1e-5", "--json").out)
    lines = (Path("umbel-runs") / run / "events.jsonl").read_text().splitlines()
    releases = [NoisyRelease.of(each) for line in lines for each in json.loads(line).get("releases", [])]
    assert len(releases) == 3
    assert found == {"run": run, "spent": spent(releases, 1e-5).plain()}
    text = umbel("privacy", "show", run, "--delta", "1e-5").out
    assert f"epsilon {found['spent']['epsilon']:.4g} at delta 1e-05" in text
    assert "3 noised answers over 3 rounds" in text
    assert "Poisson(0.1): counted" in text


def test_a_cohort_of_a_fixed_size_gains_nothing_and_it_says_so(umbel: Command, ran: Callable[[str], str]) -> None:
    ran("umbel.Poisson(0.1)")
    sampled = json.loads(umbel("privacy", "show", "--json").out)["spent"]
    ran("10")
    fixed = json.loads(umbel("privacy", "show", "--json").out)["spent"]
    assert fixed["epsilon"] > 3 * sampled["epsilon"]
    assert sampled["delta"] == fixed["delta"] == 0.001  # a tenth of one over the clients
    text = umbel("privacy", "show").out
    assert "not counted" in text
    assert "but" in text


@pytest.mark.slow
def test_a_stream_of_noise_is_one_release_and_it_says_so(umbel: Command, ran: Callable[[str], str]) -> None:
    ran("umbel.Poisson(0.1)")
    app = Path("private.py").read_text()
    app = app.replace("import central_gaussian", "import dp_ftrl").replace("umbel.Poisson(0.1)", "Spaced(10, 3)")
    app = app.replace("central_gaussian(", "dp_ftrl(rounds=3, separation=3, bands=2, ")
    Path("private.py").write_text("from umbel.samplers import Spaced\n" + app)
    umbel("run", "private.py", "--clients", 100)
    text = " ".join(umbel("privacy", "show", "--delta", "1e-5").out.split())
    assert "3 noised answers over 3 rounds" in text
    assert "epsilon 1.993 at delta 1e-05" in text  # of one Gaussian release of twice what changes
    assert "2 times how far one can move all answers" in text
    assert "counts once" in text
    assert "zero out one" in text


def test_a_stream_and_noised_metrics_are_counted_against_zeros(umbel: Command, ran: Callable[[str], str]) -> None:
    ran("umbel.Poisson(0.1)")
    app = Path("private.py").read_text()
    app = app.replace("import central_gaussian", "import central_metrics, dp_ftrl")
    app = app.replace("umbel.Poisson(0.1)", "Spaced(10, 3)").replace("rounds=3)", "rounds=3, evaluate_noise=noise)")
    app = app.replace("central_gaussian(", "dp_ftrl(rounds=3, separation=3, bands=2, ")
    noise = 'noise = central_metrics(ranges={"accuracy": (0, 1)}, noise=2.0, expected=100)\n'
    handler = '@client.evaluate\ndef evaluate(model, data, ctx):\n    return {"accuracy": 0.5}\n\n\n'
    app = app.replace("private =", f"{handler}{noise}private =")
    Path("private.py").write_text("from umbel.samplers import Spaced\n" + app)
    umbel("run", "private.py", "--clients", 100)
    found = json.loads(umbel("privacy", "show", "--delta", "1e-5", "--json").out)["spent"]
    assert (found["neighbours"], found["releases"]) == ("zero out one", 6)
    assert found["epsilon"] == pytest.approx(4.377, rel=1e-3)  # of one Gaussian release of half the noise


def test_a_run_that_hides_nobody_says_so(umbel: Command, folder: Path) -> None:
    umbel("run", "app.py", "--clients", 4)
    done = umbel("privacy", "show")
    assert done.code == 3
    assert "hides nobody" in done.said
    assert "were told as they are" in done.said


def test_what_holders_have_noised_themselves_is_told_by_its_epsilon(
    umbel: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dp_accounting")
    monkeypatch.chdir(tmp_path)
    local = "from umbel.privacy import privunit\nprivate = privunit(norm=1.0, epsilon=2.0)\n"
    Path("local.py").write_text(APP.replace("strategy =", f"{local}strategy =").replace("COHORT", "umbel.Poisson(0.5)"))
    umbel("run", "local.py", "--clients", 20)
    found = json.loads(umbel("privacy", "show", "--delta", "1e-9", "--json").out)["spent"]
    assert found["epsilon"] == pytest.approx(6.0, rel=1e-3)  # three rounds, and nothing gained by the dice
    text = umbel("privacy", "show").out
    assert "2 epsilon by itself" in text
    assert "clip bound" not in text
