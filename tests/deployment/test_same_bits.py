"""The same seed gives the same model, wherever the clients are."""

from __future__ import annotations

import json

import pytest
from tests.conftest import some
from tests.deployment.conftest import APP, app_of

import umbel
from umbel.remote.federation import Remote
from umbel.testing.machines import Machines


def simulated(name, seed):
    return umbel.run(app_of(name), on=umbel.Simulation(clients=4), seed=seed, folder=None)


@pytest.fixture(scope="module")
def four(machines):
    machines.start_server()
    machines.start_nodes(4)
    return machines


def test_a_run_on_four_nodes_ends_with_the_simulations_bits(four):
    typed = ("run", f"{APP}:plain", "--on", four.address, "--seed", "5", "--json")
    told = four.command(*typed, UMBEL_TOKEN=four.token)
    assert told.wait() == 0, told.output
    found, expected = json.loads(told.lines[-1]), simulated("plain", 5)
    assert found["model_sha256"] == expected.model_sha256
    assert found["rounds"] == 4
    assert found["metrics"] == expected.metrics


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own", "secure", "sparse", "shapes", "shares", "robust", "steps", "variates"])
def test_so_does_one_that_asks_in_other_ways(four, name):
    run = four.submit(f"{APP}:{name}", 3)
    with four.office() as office:
        assert four.finished(run, office)["model_sha256"] == simulated(name, 3).model_sha256


@pytest.mark.parametrize("name", some(["windowed", "late"], 1))
def test_one_whose_window_closes_early_comes_to_its_end(four, name):
    run = four.submit(f"{APP}:{name}", 3)
    with four.office() as office:
        assert four.finished(run, office)["rounds"] == 4


@pytest.mark.slow
def test_a_run_on_four_nodes_is_tracked_where_the_command_runs(four, tmp_path):
    """Live, resumed and after the fact the numbers are the same, and the model is that of the run."""
    pytest.importorskip("tensorboard")
    live, after = tmp_path / "live", tmp_path / "after"
    typed = ("run", f"{APP}:plain", "--on", four.address, "--seed", "6", "--json")
    told = four.command(*typed, "--track", f"csv:{live}", "--track", f"tensorboard:{live}", UMBEL_TOKEN=four.token)
    assert told.wait() == 0, told.output
    found = json.loads(told.lines[-1])
    for tracker in (f"csv:{after}", f"tensorboard:{after}"):
        done = four.command("track", found["run"], tracker, "--on", four.address, UMBEL_TOKEN=four.token)
        assert done.wait() == 0, done.output
    name = f"{found['run']}.csv"
    assert (live / name).read_text() == (after / name).read_text()
    assert all(f"\n{r},train." in (live / name).read_text() for r in range(1, 5))
    for place in (live, after):
        model = umbel.load_model(place / found["run"] / "model.safetensors")
        assert model.sha256 == found["model_sha256"]


@pytest.mark.slow
def test_a_run_from_python_too_and_it_can_be_resumed(four, tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_HOME", four.environment["UMBEL_HOME"])
    monkeypatch.setenv("UMBEL_TOKEN", four.token)
    app = app_of("plain")
    remote = Remote(four.address, clients=4)
    found = umbel.run(app, on=remote, seed=5, folder=tmp_path)
    assert found.model_sha256 == simulated("plain", 5).model_sha256
    half = umbel.run(app, on=remote, seed=5, folder=tmp_path, rounds=2)
    assert umbel.resume(app, half.folder, on=remote, rounds=4).model_sha256 == found.model_sha256
    with four.office() as office:
        about = office.call("runs.show", run=found.run)
        assert (about["owner"], about["status"], about["rounds"]) == ("local", "finished", 4)
        did = [(row["who"], row["did"]) for row in office.call("audit.list")["records"]]
    assert ("local", "runs.drive") in did


@pytest.mark.slow
def test_several_clients_in_one_node(tmp_path_factory):
    machines = Machines(tmp_path_factory.mktemp("one"))
    try:
        machines.start_server()
        (machines.folder / "clients.json").write_text(json.dumps({str(i): {"index": i} for i in range(4)}))
        join = machines.invitation()
        machines.start_node("many", "--clients", "clients.json", "--slots", "2", join=join).wait_for("connected to")
        run = machines.submit(f"{APP}:plain", 5)
        with machines.office() as office:
            assert machines.finished(run, office)["model_sha256"] == simulated("plain", 5).model_sha256
        machines.stop()
    finally:
        machines.kill()


@pytest.mark.slow
def test_a_relay_between_changes_no_bit(tmp_path_factory):
    machines = Machines(tmp_path_factory.mktemp("relay"))
    try:
        machines.start_server()
        relay = machines.start_node("east", "--relay", "--listen", "127.0.0.1:0", join=machines.invitation(relay=True))
        below = relay.wait_for(r"umbel node (127\.0\.0\.1:\d+) --join (\S+)")
        relay.wait_for("connected to")
        inviting = machines.command("nodes", "invite", "--dir", "node-east/below")
        assert inviting.wait() == 0
        invited = inviting.wait_for(r"--join (\S+)")[1]
        for index, join in ((1, below[2]), (2, invited)):
            machines.start_node(str(index), "--source", f"index={index}", join=join, address=below[1])
        for index in (0, 3):
            machines.start_node(str(index), "--source", f"index={index}", join=machines.invitation())
        for index in range(4):
            machines.nodes[str(index)].wait_for("connected to")
        for name in ("plain", "secure"):
            run = machines.submit(f"{APP}:{name}", 5, "--only", "0", "--only", "1", "--only", "2", "--only", "3")
            with machines.office() as office:
                assert machines.finished(run, office)["model_sha256"] == simulated(name, 5).model_sha256
        machines.stop()
    finally:
        machines.kill()
