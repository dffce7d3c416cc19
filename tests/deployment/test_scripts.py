"""A client that is a script of its own, on nodes."""

from __future__ import annotations

import pytest
from tests.script.hosting import script, wait_until_gone

import umbel
from umbel.cli.application import load

APP = """
import umbel
import umbel.script

client = umbel.script.client("train.py", args=["--place", "{source[index]}"])
app = umbel.App(client, model=client.model, strategy=umbel.FedAvg(cohort="all"), rounds=3)
"""
MORE = """
print('at round', task.round, sys.argv)
task.state['n'] = task.state.get('n', 0) + 1
net['w'] += task.state['n']
"""


@pytest.mark.slow
def test_a_run_of_a_script_on_nodes_ends_with_the_simulations_bits(machines, tmp_path):
    path = script(tmp_path, MORE)
    (tmp_path / "app.py").write_text(APP)
    app = load(str(tmp_path / "app.py")).app
    expected = umbel.run(app, on=umbel.Simulation(clients=2), seed=3, folder=None).model_sha256
    machines.start_server()
    machines.start_nodes(2)
    run = machines.submit(str(tmp_path / "app.py"), 3, "--only=0", "--only=1")
    with machines.office() as office:
        assert machines.finished(run, office)["model_sha256"] == expected
    logs = [log.read_text() for log in sorted(machines.folder.glob("node-*/logs/*.log"))]
    assert all(f"at round {number} " in log and "'--place'" in log for number in (1, 2, 3) for log in logs)
    assert len(logs) == 2
    assert path.exists()
    wait_until_gone(machines.folder)
