from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import umbel
from umbel.cli.application import blame, load
from umbel.errors import AppError, UmbelError

pytestmark = pytest.mark.usefixtures("folder")

TWO = (
    "import umbel\nfrom app import app as first\nsecond = umbel.App(first.client, model={}, strategy=first.strategy)\n"
)


def write(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


def failure(reference: str) -> AppError:
    with pytest.raises(AppError) as caught:
        load(reference)
    return caught.value


def test_an_app_is_found_with_where_it_came_from() -> None:
    loaded = load("app.py")
    assert isinstance(loaded.app, umbel.App)
    digest = hashlib.sha256(Path("app.py").read_bytes()).hexdigest()
    assert loaded.source() == {"path": str(Path("app.py").resolve()), "sha256": digest}


@pytest.mark.parametrize("line", ["import umbel.script as fl", "from umbel import script as fl"])
def test_a_script_that_loops_over_tasks_is_an_app_and_is_not_imported(line) -> None:
    loaded = load(write("mine.py", f"{line}\nprint(1 / 0)\nfor task in fl.tasks({{}}):\n    fl.answer()\n"))
    assert loaded.app.client.programs == (Path("mine.py").resolve(),)
    assert (loaded.app.strategy, loaded.title) == (umbel.FedAvg(cohort="all"), "mine")
    assert failure(write("host.py", f"{line}\nclient = fl.client('mine.py')\n")).message.startswith("host.py has an u")


def test_modules_beside_the_app_can_be_imported() -> None:
    Path("inner").mkdir()
    write("inner/holder.py", Path("app.py").read_text())
    assert load(write("inner/main.py", "from holder import app\n")).app.rounds == 3


def test_one_of_several_apps_is_named_or_preferred() -> None:
    write("two.py", TWO)
    assert load("two.py:second").app is not load("two.py:first").app
    assert load("two.py:second").source()["name"] == "second"
    error = failure("two.py")
    assert error.message == "two.py has several apps: first, second"
    assert "two.py:first" in (error.hint or "")
    assert load(write("three.py", f"{TWO}app = first\n")).app.rounds == 3
    assert "Apps in it: first, second" in (failure("two.py:third").hint or "")
    assert load(write("alias.py", "from app import app as a\nb = a\n")).app.rounds == 3


@pytest.mark.parametrize(
    ("path", "title"),
    [
        ("one/app.py", "one"),
        ("one/main.py", "one"),
        ("one/digits.py", "digits"),
        ("my demo!/app.py", "my-demo"),
        ("é/app.py", "run"),
        (f"{'long' * 20}.py", "long" * 8),
    ],
)
def test_a_run_is_named_after_the_file_or_its_folder(path: str, title: str) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    assert load(write(path, Path("app.py").read_text())).title == title


def test_a_file_may_be_called_like_a_module() -> None:
    import json

    assert load(write("json.py", Path("app.py").read_text())).app.rounds == 3
    assert json.dumps({}) == "{}"


@pytest.mark.parametrize(
    ("reference", "message", "hint"),
    [
        ("none.py", "there is no file none.py", "umbel new NAME"),
        (".", ". is a folder, not an app file", "umbel run app.py"),
        ("notes.txt", "notes.txt is not a Python file", "umbel.App"),
    ],
)
def test_what_is_no_app_file_is_said(reference: str, message: str, hint: str) -> None:
    write("notes.txt", "")
    error = failure(reference)
    assert error.message == message
    assert hint in (error.hint or "")


CLIENT = "import umbel\nclient = umbel.Client()\n"


@pytest.mark.parametrize(
    ("text", "message", "note", "hint"),
    [
        ("x = 1\n", "bad.py makes no umbel.App", "", "umbel new"),
        (CLIENT, "bad.py has an umbel.Client, but no umbel.App around it", "", "umbel.App(client"),
        ("x = 1\ny = (2\n", "bad.py is not valid Python: '(' was never closed", "bad.py:2: y = (2", ""),
        ("import no_such_module\n", "bad.py needs no_such_module", "bad.py:1: import no_such_module", "Install it"),
        ("def f():\n    return {}['lr']\nf()\n", "bad.py raised KeyError", "bad.py:2: return {}['lr']", ""),
        ("raise SystemExit(3)\n", "bad.py ended the program", "bad.py:1: raise SystemExit(3)", "__main__"),
    ],
)
def test_a_file_that_does_not_give_an_app_is_explained(text: str, message: str, note: str, hint: str) -> None:
    error = failure(write("bad.py", text))
    assert error.message.startswith(message)
    assert getattr(error, "__notes__", [""]) == [note]
    assert hint in (error.hint or "")


@pytest.mark.parametrize("missing", ["client", "model"])
def test_an_app_without_a_client_or_a_model_is_explained(missing: str) -> None:
    given = "model={}" if missing == "client" else "client"
    error = failure(write("bad.py", f"{CLIENT}app = umbel.App({given}, strategy=umbel.FedAvg())\n"))
    assert missing in error.message
    assert error.__notes__[0].startswith("bad.py:3: app = umbel.App(")
    assert error.hint


def test_what_umbel_refuses_in_the_file_is_noted_with_its_line() -> None:
    error = failure(write("bad.py", f"{CLIENT}\n@client.train\ndef train(model): ...\n"))
    assert "cannot be called with (model, data, ctx)" in error.message
    assert error.__notes__ == ["bad.py:4: @client.train"]


def test_a_file_that_failed_can_be_mended_and_loaded() -> None:
    failure(write("again.py", "1 / 0\n"))
    assert load(write("again.py", Path("app.py").read_text())).app.rounds == 3


def test_the_deepest_own_line_is_to_blame(folder: Path) -> None:
    write("deep.py", "def outer(f):\n    return f()\n\n\ndef inner():\n    return int('x')\n")
    namespace: dict[str, object] = {}
    exec(compile(Path("deep.py").read_text(), str(folder / "deep.py"), "exec"), namespace)
    with pytest.raises(ValueError, match="invalid literal") as caught:
        namespace["outer"](namespace["inner"])  # type: ignore[operator]
    assert blame(caught.value, folder) == "deep.py:6: return int('x')"
    assert blame(caught.value, folder / "elsewhere") is None
    outer = AppError("it went wrong")
    outer.__cause__ = caught.value
    assert blame(outer, folder) == "deep.py:6: return int('x')"


WRONG = [
    'FedAvg(cohort="al")', "FedAvg(fold=3)", "FedAvg(window=3)", "FedAvgM(cohort=-1)", "FedProx(mu=-1.0)",
    "FedAdam(lr=-1.0)", "FedYogi(tau=0)", "FedAdagrad(beta2=2)", "FedAvg(transforms=(3,))", "Window(quorum=-1)",
    "Window(late=3)", "Uniform(0)", "Fraction(2)", "Poisson(2)", 'Weighted(2, "x")', "Fixed([])", "clip_by_norm(-1)",
    "top_k(0)", 'EarlyStop("x")', 'EarlyStop("test.x", patience=0)', 'KeepBest("test.x", mode="best")',
    'Ask(kind="x", clients=1)', "Ask(clients=1, window=3)", "Simulation(0)", "Simulation([])",
    "optimizers.sgd(lr=-1)", "simulation.devices.Device(speed=-1)",
    "simulation.devices.Spread(0)", "FedAvg(cohrt=3)", "Window(3, quorm=1)",
]  # fmt: skip
"""What is refused when it is made, by dataclasses above all, whose ``__init__`` is in no file."""


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_refused_when_it_is_made_is_noted_with_its_line(wrong: str) -> None:
    name = write("bad.py", f"import umbel\nimport umbel.simulation.devices\n\n\nmade = umbel.{wrong}\n")
    with pytest.raises(UmbelError) as caught:
        load(name)
    assert caught.value.__notes__ == [f"bad.py:5: made = umbel.{wrong}"]
