"""What runs of the server, and children of nodes, try and may not, with real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import umbel
from umbel.cli.application import load
from umbel.work.confinement import LEAST_ABI, SCOPES, TRUNCATES, landlock_abi

THIEVES = Path(__file__).with_name("thieves.py")
ABI = landlock_abi()
pytestmark = pytest.mark.skipif(ABI < LEAST_ABI, reason=f"Landlock in this kernel has version {ABI}, and 2 is needed")
LATER = {"signalled": SCOPES, "guard_killed": SCOPES, "database_cut": TRUNCATES}
"""What only a later version of Landlock can refuse."""


def refused(found):
    """Nothing of what was tried succeeded, as far as this kernel can refuse it."""
    assert found
    return {name for name, value in found.items() if value and LATER.get(name, 0) <= ABI} == set()


def simulated(seed, clients, **more):
    return umbel.run(load(f"{THIEVES}:quiet").app, on=umbel.Simulation(clients=clients), seed=seed, folder=None, **more)


@pytest.fixture(scope="module")
def two(machines):
    machines.start_server()
    machines.start_nodes(2)
    other = machines.folder / "server" / "runs" / "other"
    other.mkdir()
    (other / "submission.json").write_text("{}")
    return machines


@pytest.fixture(scope="module")
def run(two):
    """A run of an app that tries everything."""
    found = two.submit(f"{THIEVES}:app", 5, "--only=0", "--only=1")
    with two.office() as office:
        return found, two.finished(found, office), [event for _, event in office.logs(found)]


@pytest.mark.slow
def test_a_run_comes_by_nothing_that_is_not_its_own_and_ends_with_the_same_bits(two, run):
    id, ended, events = run
    found = [event["test"] for event in events if event.get("test")]
    assert found
    assert len(found[0]) >= 20
    assert all(map(refused, found)), found
    assert ended["model_sha256"] == simulated(5, 2).model_sha256
    home = two.folder / "server" / "runs" / id / "home"
    assert (home / "mine").exists()
    assert not (two.folder / "server" / "planted").exists()


@pytest.mark.slow
def test_a_link_that_a_run_leaves_is_not_followed_when_its_files_are_fetched(two, run):
    with two.office() as office:
        names = [each["name"] for each in office.call("runs.pull", run=run[0])["files"]]
    assert "summary.json" in names
    assert "checkpoints/stolen.safetensors" not in names
    assert json.dumps(names).count("safetensors") > 1


@pytest.mark.slow
def test_a_client_comes_by_nothing_but_the_data_that_its_node_gives(two):
    (two.folder / "data").write_text("the data")
    given = ("--source", f"path={two.folder / 'data'}", "--no-network", "--memory", "800MB", "--cpus", "1")
    node = two.start_node("thief", *given, "--task-time", "200", join=two.invitation())
    node.wait_for("connected to")
    run = two.submit(f"{THIEVES}:tries", 3, "--only=thief")
    with two.office() as office:
        two.finished(run, office)
    arrays = umbel.Arrays.from_file(next((two.folder / "server" / "runs" / run / "run").glob("checkpoints/*")))
    found = {name.removeprefix("model."): float(array) for name, array in arrays.items() if array.ndim == 0}
    assert len(found) >= 25, sorted(found)
    assert refused(found), found
