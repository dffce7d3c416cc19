"""The client that a script is, in simulations."""

from __future__ import annotations

import os
import random
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.script.hosting import STEPS, context, hosted, processes_of, script, wait_until_gone

import umbel
import umbel.script
from umbel.core.arrays import Arrays
from umbel.errors import AppError, UnusedCorrection

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")

MODEL = Arrays({"w": np.zeros(4)})


def ran(client, clients=3, rounds=3, workers=0, **more):
    app = umbel.App(
        client, model=client.model if clients == 1 else MODEL, strategy=umbel.FedAvg(cohort="all"), rounds=rounds
    )
    return umbel.run(app, on=umbel.Simulation(clients, workers=workers, **more), seed=3, folder=None)


def test_one_client_ends_where_the_same_loop_ends_without_umbel(tmp_path):
    result = ran(hosted(tmp_path), clients=1)
    alone = runpy.run_path(str(tmp_path / "train.py"))["net"]
    np.testing.assert_allclose(result.model["w"], alone["w"], rtol=0, atol=1e-6)
    assert np.abs(alone["w"]).max() > 0.1
    assert processes_of(tmp_path / "train.py") == []


def misfortune(folder: Path, seed: int, what: str) -> str:
    """Once, at a task that is drawn, this happens."""
    rng = random.Random(seed)
    client, round = rng.randrange(2), rng.randrange(1, 3)
    flag = f"Path({str(folder / 'flag')!r})"
    return f"if (task.client, task.round) == ({client}, {round}) and not {flag}.exists(): {flag}.touch(); {what}"


def test_a_script_that_is_killed_in_the_middle_costs_nothing(tmp_path):
    undisturbed = ran(hosted(tmp_path), clients=2, rounds=2)
    again = ran(hosted(tmp_path, misfortune(tmp_path, 1, "os.kill(os.getpid(), 9)")), clients=2, rounds=2)
    assert (tmp_path / "flag").exists()
    assert again.model_sha256 == undisturbed.model_sha256


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_workers_come_to_the_same_bits_whoever_is_killed(tmp_path, seed):
    undisturbed = ran(hosted(tmp_path))
    assert ran(hosted(tmp_path), workers=2).model_sha256 == undisturbed.model_sha256
    who = "os.getppid(), 9); threading.Event().wait(" if seed % 2 else "os.getpid(), 9"
    client = hosted(tmp_path, misfortune(tmp_path, seed, f"os.kill({who})"))
    assert ran(client, workers=2).model_sha256 == undisturbed.model_sha256
    assert (tmp_path / "flag").exists()
    wait_until_gone(tmp_path / "train.py")


@pytest.mark.slow
def test_one_that_hangs_ends_with_the_worker_that_is_ended_for_it(tmp_path):
    client = hosted(tmp_path, "if task.client == 1: threading.Event().wait()")
    result = ran(client, rounds=1, workers=2, stall=3.0, attempts=1)
    assert result.history[0].failures == {"train": 1}
    wait_until_gone(tmp_path / "train.py")


@pytest.mark.slow
def test_so_many_are_kept_warm_and_whoever_had_nothing_to_do_for_longest_is_ended(tmp_path):
    client = hosted(tmp_path, "print('task', task.client, os.getpid())", processes=1)
    seen = []
    for name in (0, 0, 1, 0):
        client.handlers["train"](MODEL, {"index": name}, context(name))
        (pid,) = processes_of(tmp_path / "train.py")
        seen.append(pid)
    assert [seen.index(pid) for pid in seen] == [0, 0, 2, 3]
    client.release()


@pytest.mark.slow
def test_none_is_kept_warm_and_a_new_process_does_the_same(tmp_path):
    more = "task.state['n'] = task.state.get('n', 0) + 1; net['w'] += task.state['n']"
    kept = ran(hosted(tmp_path, more))
    assert ran(hosted(tmp_path, more, processes=0)).model_sha256 == kept.model_sha256
    assert kept.model_sha256 != ran(hosted(tmp_path)).model_sha256


EVALUATES = """
if task.kind == 'evaluate':
        fl.answer(examples=2, client=task.client, round=task.round, lr=task.config['lr'])
        continue
"""


@pytest.mark.slow
def test_it_evaluates_where_it_says_so(tmp_path):
    client = hosted(tmp_path, EVALUATES, evaluate=True)
    app = umbel.App(client, model=client.model, strategy=umbel.FedAvg(cohort="all"), rounds=2, config={"lr": 0.5})
    result = umbel.run(app, on=umbel.Simulation(3, workers=0), folder=None)
    assert result.history[1].evaluate == {"client": 1.0, "round": 2.0, "lr": 0.5}
    assert "evaluate" not in hosted(tmp_path).handlers


@pytest.mark.slow
def test_sources_go_into_arguments_and_the_environment(tmp_path):
    more = "assert (sys.argv[1:], os.environ['WHO']) == (['--data', 'va.csv'], 'us va'), sys.argv"
    text = STEPS.replace('["index"]', '["seed"]')
    sources = {"va": {"path": "va.csv", "seed": 1}}
    settings = {"args": ["--data", "{source[path]}"], "env": {"WHO": "us {client}"}}
    client = hosted(tmp_path, more, text, initial_source=sources["va"], **settings)
    assert len(ran(client, clients=sources, rounds=1).history) == 1
    with pytest.raises(
        AppError, match=r"the arguments of train.py name what the source \{'index': 0.*KeyError"
    ) as said:
        hosted(tmp_path, text=text, **settings).model()
    assert "initial_source" in said.value.hint
    with pytest.raises(AppError, match=r"the source of client 0 cannot be handed to train.py: source is a set"):
        hosted(tmp_path, initial_source={1}).model()


def test_a_strategy_that_corrects_the_loss_is_refused_before_anything_is_trained(tmp_path):
    client = hosted(tmp_path)
    app = umbel.App(client, model=MODEL, strategy=umbel.FedProx(mu=0.1, cohort="all"), rounds=1)
    with pytest.raises(UnusedCorrection, match=r"the loop of train.py does not take") as said:
        umbel.run(app, on=umbel.Simulation(1, workers=0), folder=None)
    assert "FedAvg" in said.value.hint
    assert not client._warm


def test_its_file_is_found_beside_whoever_names_it(tmp_path, monkeypatch):
    script(tmp_path)
    code = compile("import umbel.script\nclient = umbel.script.client('train.py')", "app.py", "exec")
    space = {"__file__": str(tmp_path / "app.py")}
    exec(code, space)
    assert space["client"].programs == (tmp_path.resolve() / "train.py",)
    with pytest.raises(AppError, match=r"there is no script .*other.py"):
        umbel.script.client("other.py")
    monkeypatch.chdir(tmp_path)
    exec(code, space := {})
    assert space["client"].programs == (Path(os.getcwd()) / "train.py",)
