from __future__ import annotations

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


class Unclipped(central_gaussian):
    def decode(self, update, params, schema=None):
        return umbel.Update(update.arrays, delta=True)

    def encode(self, update, params, local, key, own=None):
        return umbel.Update(umbel.Arrays(update.arrays), delta=True), local


@client.train
def train(model, data, ctx):
    return umbel.Update(dict(model))


def app_of(kind):
    steps = kind(norm=1.0, noise=3.0, expected=4)
    private = umbel.FedAvg(cohort="all", fold=umbel.total(), transforms=steps)
    return umbel.App(client, model={"w": np.zeros(300, np.float32)}, strategy=private, rounds=1)


right, wrong = app_of(central_gaussian), app_of(Unclipped)
"""


@pytest.fixture
def app(folder: Path) -> Path:
    (folder / "private.py").write_text(APP)
    return folder


@pytest.mark.slow
def test_an_audit_says_what_it_proves_beside_what_is_claimed(umbel: Command, app: Path) -> None:
    pytest.importorskip("dp_accounting")
    done = umbel("privacy", "audit", "private.py:right", "--runs", 8, "--canaries", 20)
    assert done.code == 0
    said = " ".join(done.out.split())
    assert "with 20 canaries, each there by a coin claimed epsilon 1.2" in said
    assert "8 runs, half of them with a canary" in said
    assert said.count("nothing against the claim") == 2
    assert "with 97.5 % confidence, whatever the mechanism is" in said
    assert "at least if its noise is Gaussian" in said
    assert "is FALSE" in umbel("privacy", "audit", "private.py:wrong", "--runs", 0, "--steady").out


@pytest.mark.slow
def test_an_audit_is_drawn(umbel: Command, app: Path) -> None:
    pytest.importorskip("dp_accounting")
    pytest.importorskip("matplotlib")
    done = umbel("privacy", "audit", "private.py:right", "--runs", 8, "--plot", "audit.png", "--json")
    assert (done.code, done.summary["picture"]) == (0, "audit.png")
    assert (app / "audit.png").stat().st_size > 10_000


def test_a_false_claim_is_said_and_exits_with_3(umbel: Command, app: Path) -> None:
    pytest.importorskip("dp_accounting")
    done = umbel("privacy", "audit", "private.py:wrong", "--runs", 0, "--json")
    assert done.code == 3
    (found,) = done.summary["audits"]
    assert found["refuted"]
    assert found["epsilon"] > found["claim"] == pytest.approx(1.2, abs=0.1)
    assert (found["kind"], found["canaries"], found["seed"]) == ("one run", 300, 0)


@pytest.mark.parametrize("options", [("--runs", 0, "--canaries", 0), ("--runs", 2), ("--confidence", 2)])
def test_audits_of_nothing_are_refused(umbel: Command, app: Path, options: tuple[object, ...]) -> None:
    assert umbel("privacy", "audit", "private.py:right", *options).code == 3
