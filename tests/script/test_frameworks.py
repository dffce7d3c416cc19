"""Scripts of frameworks, unmodified but for the lines by which they join: how many these are, and that the model is the
one that the script has alone.
"""

from __future__ import annotations

import difflib
import os
import runpy
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import PATIENCE

import umbel
import umbel.script
from umbel.work.processes import ONE_THREAD

SCRIPTS = Path(__file__).with_name("scripts")
ADAPTERS = {"keras": "keras", "sklearn": "sklearn"}
SLOW = pytest.mark.slow


def needs(name: str) -> None:
    """Skip without a framework, which is not loaded here: some leave the process other than they found it."""
    for module in (name, f"umbel.{ADAPTERS.get(name, 'torch')}"):
        if find_spec(module) is None:
            pytest.skip(f"there is no {module}")


def changed(before: str, after: str) -> list[str]:
    """The lines that were added or written anew, indentation, blank lines and the docstring apart."""
    lines = [[line.strip() for line in text.splitlines()[1:] if line.strip()] for text in (before, after)]
    return [line[2:] for line in difflib.ndiff(*lines) if line.startswith("+ ")]


def alone(path: Path, folder: Path) -> list[np.ndarray]:
    """The weights with which a script ends that nobody hosts."""
    out = folder / f"{path.stem}.npz"
    settings = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(Path(umbel.__file__).parents[1])}
    subprocess.run([sys.executable, path, out], env=settings, cwd=folder, check=True, timeout=PATIENCE)
    with np.load(out) as found:
        return list(found.values())


def federated(path: Path, folder: Path, rounds: int, model: Any = None) -> umbel.Result:
    client = umbel.script.client(path, args=[str(folder / "not-written.npz")])
    app = umbel.App(client, model=model or client.model, strategy=umbel.FedAvg(cohort="all"), rounds=rounds)
    result = umbel.run(app, on=umbel.Simulation(1, workers=0), seed=1, folder=None)
    assert not (folder / "not-written.npz").exists(), "what stands after the loop is for a script alone"
    return result


def test_a_script_of_scikit_learn_joins_by_three_lines(tmp_path, monkeypatch):
    """As below, with no more processes than it takes."""
    needs("sklearn")
    monkeypatch.setattr(sys, "argv", ["sklearn_before.py", str(tmp_path / "weights.npz")])
    before, after = SCRIPTS / "sklearn_before.py", SCRIPTS / "sklearn_after.py"
    assert len(changed(before.read_text(), after.read_text())) == 3
    exec(before.read_text().split("for _ in")[0], begun := {})
    result = federated(after, tmp_path, 3, import_module("umbel.sklearn").arrays(begun["model"]))
    trained = runpy.run_path(str(before))["model"]
    np.testing.assert_allclose(result.model["coef_"], trained.coef_, rtol=0, atol=1e-6)
    np.testing.assert_allclose(result.model["intercept_"], trained.intercept_, rtol=0, atol=1e-6)


@SLOW
@pytest.mark.parametrize("name", ["torch", "lightning", "transformers", "keras"])
def test_a_script_joins_by_three_lines_and_one_client_has_the_model_that_it_has_alone(name, tmp_path, monkeypatch):
    needs(name)
    monkeypatch.chdir(tmp_path)
    before, after = SCRIPTS / f"{name}_before.py", SCRIPTS / f"{name}_after.py"
    lines = changed(before.read_text(), after.read_text())
    assert len(lines) == 3 <= 4, lines
    expected = alone(before, tmp_path)
    result = federated(after, tmp_path, 3 if name == "torch" else 1)
    for found, wanted in zip(result.model.values(), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    if name == "torch":
        for found, wanted in zip(alone(after, tmp_path), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


CALLBACKS = {
    "lightning": ("max_epochs=2, ", "max_epochs=3, callbacks=[fl.lightning_callback()], "),
    "transformers": (", train_dataset=rows", ", train_dataset=rows, callbacks=[fl.transformers_callback()]"),
    "keras": ("epochs=2, ", "epochs=3, callbacks=[fl.keras_callback(examples=300)], "),
}


@SLOW
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_does_the_same_epoch_by_epoch(name, tmp_path, monkeypatch):
    needs(name)
    monkeypatch.chdir(tmp_path)
    before = (SCRIPTS / f"{name}_before.py").read_text()
    old, new = CALLBACKS[name]
    text = before.replace("\nimport sys\n", "\nimport sys\nimport umbel.script as fl\n").replace(old, new)
    text = text.replace("num_train_epochs=2", "num_train_epochs=3")
    assert len(changed(before, text)) <= 4
    path = tmp_path / "callback.py"
    path.write_text(text)
    result = federated(path, tmp_path, 3)
    losses = [made.train["loss"] for made in result.history]
    assert losses[-1] < losses[0]
    if name == "transformers":
        return  # which draws its dropout and its order, by each task's seed
    path.write_text(before.replace("epochs=2", "epochs=3"))
    for found, wanted in zip(result.model.values(), alone(path, tmp_path), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
