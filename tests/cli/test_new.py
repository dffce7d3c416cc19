from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from umbel import strategies
from umbel.cli.new import TEMPLATES

ROOT = Path(__file__).parents[2]
Command = Callable[..., Any]


@pytest.mark.parametrize("framework", ["numpy", "pytorch"])
def test_a_new_app_runs_at_once_and_learns(umbel: Command, framework: str) -> None:
    made = umbel("new", "my-app", "--framework", framework)
    assert made.code == 0
    command = made.out.strip().splitlines()[-1].split()
    assert command == ["umbel", "run", "my-app/app.py", "--clients", "20", "--rounds", "3"]
    assert sorted(path.name for path in Path("my-app").iterdir()) == ["README.md", "app.py"]
    ran = umbel(*command[1:], "--json")
    assert ran.code == 0
    assert ran.summary["run"].startswith("my-app-")
    assert ran.summary["rounds"] == 3
    assert ran.summary["metrics"]["test.accuracy"] > 0.7


def test_a_notebook_runs_the_app_beside_it(umbel: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code, cell by cell; tests/test_notebooks.py runs such notebooks as Jupyter does."""
    made = umbel("new", "my-app", "--framework", "numpy", "--notebook")
    assert "my-app/notebook.ipynb" in made.out
    whole = json.loads(Path("my-app/notebook.ipynb").read_text())
    assert whole["cells"][0]["source"][0] == "# my-app\n"
    monkeypatch.chdir("my-app")
    monkeypatch.syspath_prepend(".")
    namespace: dict[str, Any] = {}
    for cell in whole["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), namespace)
    assert namespace["result"].rounds == 5
    assert namespace["result"].run.startswith("my-app-")


def test_pytorch_is_the_framework_by_default(umbel: Command) -> None:
    umbel("new", "x")
    assert "import umbel.torch" in Path("x/app.py").read_text()


def test_what_has_to_be_installed_is_said(umbel: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "pip install" not in umbel("new", "a").out
    monkeypatch.setattr("umbel.cli.new.find_spec", lambda name: None)
    assert 'pip install "umbel[torch]"' in umbel("new", "b").out


@pytest.mark.parametrize("framework", ["numpy", "pytorch"])
def test_a_new_app_says_its_own_name_and_is_lint_clean(umbel: Command, folder: Path, framework: str) -> None:
    umbel("new", "my-app", "--framework", framework)
    readme = Path("my-app/README.md").read_text()
    assert readme.startswith("# my-app\n")
    assert "{name}" not in readme
    settings = str(ROOT / "pyproject.toml")
    for check in (("check", "--no-cache"), ("format", "--check", "--no-cache")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *check, "--config", settings, "my-app"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


QUICK = ("XGBoostBagging", "FedDF", "HeteroFL", "Matched")
"""Strategies that need more than the usual; the others are made and run with the slow tests."""


@pytest.mark.parametrize(
    "strategy",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in strategies.__all__],
)
def test_an_app_is_made_for_each_strategy_and_runs(umbel: Command, strategy: str) -> None:
    assert umbel("new", "my-app", "--strategy", strategy).code == 0
    ran = umbel("run", "my-app/app.py", "--clients", "10", "--rounds", "2", "--workers", "0", "--json")
    assert ran.code == 0, ran.out
    assert ran.summary["rounds"] == 2
    assert ran.summary["metrics"]["test.accuracy"] > 0.25
    text = Path("my-app/app.py").read_text()
    assert f"strategies.{strategy}(" in text
    settings = str(ROOT / "pyproject.toml")
    for check in (("check", "--no-cache"), ("format", "--check", "--no-cache")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *check, "--config", settings, "my-app"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_strategy_that_there_is_not_is_refused(umbel: Command) -> None:
    assert "umbel strategies lists them" in umbel("new", "a", "--strategy", "FedFoo").err
    assert "for PyTorch" in umbel("new", "a", "--strategy", "FedAvg", "--framework", "numpy").err
    assert not Path("a").exists()


def test_nothing_is_overwritten(umbel: Command) -> None:
    umbel("new", "twice", "--framework", "numpy")
    Path("twice/app.py").write_text("mine")
    done = umbel("new", "twice", "--framework", "numpy")
    assert done.code == 3
    assert "twice exists already" in done.said
    assert Path("twice/app.py").read_text() == "mine"


@pytest.mark.parametrize("name", ["", "a/b", "../x", "1st", "my app", "é", "a" * 65, ".", "-x"])
def test_a_name_is_letters_digits_and_dashes(umbel: Command, folder: Path, name: str) -> None:
    done = umbel("new", "--", name)
    assert done.code == 3
    assert "is not a name for an app" in done.said
    assert sorted(path.name for path in folder.iterdir()) == ["app.py"]


@pytest.mark.parametrize("name", ["torch", "umbel", "json", "class"])
def test_a_name_hides_no_module(umbel: Command, name: str) -> None:
    assert f"'{name}' is the name of a Python module" in umbel("new", name).said


def test_a_folder_that_cannot_be_written_is_a_fault_of_the_disk(
    umbel: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    done = umbel("new", "x")
    assert done.code == 5
    assert "x cannot be written: No space left on device" in done.said


def test_templates_are_small() -> None:
    for path in TEMPLATES.rglob("*.*"):
        assert len(path.read_text().splitlines()) <= 120
