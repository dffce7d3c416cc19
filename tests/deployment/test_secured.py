"""Secure sums of ten nodes, of which two are killed in each phase in turn."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import umbel
from umbel.cli.application import load
from umbel.privacy.secure_sum import KEYS, SHARES, UNMASK

APP = Path(__file__).with_name("secured.py")
WHO = (2, 7)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ten(machines):
    machines.start_server()
    machines.start_nodes(10)
    return machines


@pytest.mark.timeout(300)
@pytest.mark.parametrize("phase", [KEYS, SHARES, "train", UNMASK])
def test_the_sum_is_that_of_those_who_stayed(phase, ten):
    flags = ten.folder / "shared" / phase.replace(":", "-")
    flags.mkdir()
    run = ten.submit(str(APP), 5, "--set", f"at={phase}", "--set", f"flags={flags}")
    with ten.office() as office:
        while not all((flags / str(who)).exists() for who in WHO):
            threading.Event().wait(0.05)
        for who in WHO:
            ten.nodes[str(who)].kill()
        found = ten.finished(run, office)["model_sha256"]
    for who in WHO:
        ten.start_node_again(str(who)).wait_for("connected to")
    # who is killed in the last phase is in the sum
    app = load(str(APP)).app
    app.config = {**app.config, "gone": phase != UNMASK}
    assert found == umbel.run(app, on=umbel.Simulation(10), seed=5, folder=None).model_sha256
