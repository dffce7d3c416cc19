from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from umbel import strategies
from umbel.cli.starters import TEMPLATES, chosen, starters

ROOT = Path(__file__).parents[2]
Command = Callable[..., Any]


STARTERS = {each.folder.name: each for each in starters() if not each.named}
AT_ONCE = ("numpy-tabular", "pytorch-tabular", "sklearn-tabular")
"""Templates that are tried with every `make test`; the others with the slow tests."""
every_starter = pytest.mark.parametrize("which", sorted(STARTERS))


def lint(folder: str) -> None:
    settings = str(ROOT / "pyproject.toml")
    for check in (("check", "--no-cache"), ("format", "--check", "--no-cache")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *check, "--config", settings, folder], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def needed(modules: Iterable[str]) -> None:
    """Skip a test that needs what is not installed; frameworks are not loaded for that."""
    for module in modules:
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


def summary(umbel: Command, *command: str) -> dict[str, Any]:
    """What a run came to. Frameworks that leave something in the process that loads them have one of their own."""
    if not re.search(r"import umbel\.(jax|keras)", Path("my-app/app.py").read_text()):
        ran = umbel(*command, "--workers", "0", "--json")
        assert ran.code == 0, ran.out
        return ran.summary  # type: ignore[no-any-return]
    done = subprocess.run(
        [sys.executable, "-m", "umbel.cli", *command, "--workers", "0", "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def made(umbel: Command, which: str) -> list[str]:
    """Make an app of a template, and give the command that is printed."""
    framework, task = which.split("-")
    done = umbel("new", "my-app", "--framework", framework, "--task", task)
    assert done.code == 0, done.err
    assert sorted(path.name for path in Path("my-app").iterdir()) == ["README.md", "app.py", "test_app.py"]
    command: list[str] = done.out.strip().splitlines()[-1].split()
    return command


@pytest.mark.parametrize(
    "which", [pytest.param(name, marks=() if name in AT_ONCE else pytest.mark.slow) for name in sorted(STARTERS)]
)
def test_a_new_app_runs_at_once_and_learns(umbel: Command, which: str) -> None:
    needed(STARTERS[which].needs)
    command = made(umbel, which)
    assert command[:3] == ["umbel", "run", "my-app/app.py"]
    found = summary(umbel, *command[1:])
    assert found["run"].startswith("my-app-")
    if "analytics" not in which:
        assert found["rounds"] == 3
        assert found["metrics"]["test.accuracy"] > 0.7


@pytest.mark.slow
@every_starter
def test_its_own_test_passes_and_it_is_lint_clean(umbel: Command, which: str) -> None:
    needed(STARTERS[which].needs)
    made(umbel, which)
    lint("my-app")
    strict = () if "keras" in which else ("-W", "error")
    done = subprocess.run(
        [sys.executable, *strict, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "my-app"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@every_starter
def test_it_says_its_own_name(umbel: Command, which: str) -> None:
    made(umbel, which)
    for path in Path("my-app").iterdir():
        text = path.read_text()
        assert not re.search(r"\{[a-z]+\}", text), path
    assert Path("my-app/README.md").read_text().startswith("# my-app\n")
    assert "pytest my-app" in Path("my-app/README.md").read_text()
    assert len(Path("my-app/README.md").read_text().split("```")[1].splitlines()) > 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "strategy"),
    [
        (each.folder.name, name)
        for each in STARTERS.values()
        for name in sorted({*each.strategies[-1:], *each.arguments})
    ],
)
def test_it_learns_by_the_strategies_that_are_made_otherwise(umbel: Command, which: str, strategy: str) -> None:
    needed(STARTERS[which].needs)
    framework, task = which.split("-")
    assert umbel("new", "my-app", "--framework", framework, "--task", task, "--strategy", strategy).code == 0
    lint("my-app")
    found = summary(umbel, "run", "my-app/app.py", "--clients", "20", "--rounds", "3")
    assert found["metrics"]["test.accuracy"] > 0.1


class Terminal(io.StringIO):
    """What somebody types."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_it_asks(umbel: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("mine\nnumpy\nfoo\ntabular\nFedAdam\n"))
    done = umbel("new")
    assert done.code == 0, done.err
    assert "statistics of tables" in done.out
    assert "strategies.FedAdam(" in Path("mine/app.py").read_text()
    monkeypatch.setattr(sys, "stdin", Terminal("\n\n\n"))
    assert umbel("new", "second").code == 0
    assert "import umbel.torch" in Path("second/app.py").read_text()
    monkeypatch.setattr(sys, "stdin", Terminal("third\nnumpy\nanalytics\n"))
    assert umbel("new").code == 0
    assert "analytics.client" in Path("third/app.py").read_text()


def test_flags_are_not_asked_for_again(umbel: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(""))
    assert umbel("new", "x", "--framework", "numpy").code == 0


def test_what_there_is_no_template_for_is_said(umbel: Command) -> None:
    done = umbel("new", "x", "--framework", "xgboost", "--task", "images")
    assert done.code == 3
    assert "there is no template for xgboost images" in done.said
    assert "sklearn tabular" in done.said
    assert umbel("new", "x", "--task", "poetry").code == 2
    assert umbel("new").code == 2
    assert not Path("x").exists()


def test_the_shell_completes_commands_runs_and_names(
    umbel: Command, monkeypatch: pytest.MonkeyPatch, written: Callable[..., Path]
) -> None:
    written(Path("umbel-runs"), id="app-1")

    def completed(line: str) -> str:
        monkeypatch.setenv("_UMBEL_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        return str(umbel().out)

    assert completed("umbel doc").split() == ["doctor"]
    assert "app-1" in completed("umbel show ")
    assert completed("umbel new x --strategy Scaf").split() == ["Scaffold"]
    assert "sklearn" in completed("umbel new x --framework s")


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


QUICK = ("XGBoostBagging", "HeteroFL", "Matched")
"""Strategies that need more than the usual; the others are made and run with the slow tests."""


@pytest.mark.parametrize(
    "strategy",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in strategies.__all__],
)
def test_an_app_is_made_for_each_strategy_and_runs(umbel: Command, strategy: str) -> None:
    needed(chosen(None, None, strategy).needs)
    assert umbel("new", "my-app", "--strategy", strategy).code == 0
    ran = umbel("run", "my-app/app.py", "--clients", "10", "--rounds", "2", "--workers", "0", "--json")
    assert ran.code == 0, ran.out
    assert ran.summary["rounds"] == 2
    assert ran.summary["metrics"]["test.accuracy"] > 0.25
    text = Path("my-app/app.py").read_text()
    assert f"strategies.{strategy}(" in text
    lint("my-app")


def test_a_strategy_that_there_is_not_is_refused(umbel: Command) -> None:
    assert "umbel strategies lists them" in umbel("new", "a", "--strategy", "FedFoo").err
    refused = umbel("new", "a", "--strategy", "Scaffold", "--framework", "numpy")
    assert (refused.code, "pytorch tabular" in refused.said) == (3, True)
    refused = umbel("new", "a", "--strategy", "Newton", "--task", "images")
    assert "no template for images by Newton" in refused.said
    assert "statsmodels tabular" in refused.said
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
