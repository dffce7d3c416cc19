"""`umbel export`: arrays by themselves, and a framework's own format by its app."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import PATIENCE

from umbel import Arrays, load_model
from umbel import open as open_run
from umbel.cli import export_commands
from umbel.errors import AppError, StorageError

Command = Callable[..., Any]


@pytest.fixture
def trained(umbel: Command) -> dict[str, Any]:
    """The summary of a run of six rounds."""
    summary = umbel("run", "app.py", "--clients", 4, "--rounds", 6, "--json").summary
    assert isinstance(summary, dict)
    return summary


def test_a_model_is_exported_with_how_to_load_it(umbel: Command, trained: dict[str, Any], folder: Path) -> None:
    done = umbel("export", "last", "model.safetensors")
    assert done.code == 0
    data = (folder / "model.safetensors").read_bytes()
    assert hashlib.sha256(data).hexdigest() == trained["model_sha256"]
    assert "umbel.load_model('model.safetensors')" in done.out
    assert load_model("model.safetensors")["w"].shape == (2,)
    safetensors = pytest.importorskip("safetensors.numpy")
    assert safetensors.load_file("model.safetensors")["w"].shape == (2,)


def test_an_export_overwrites_only_by_force(umbel: Command, trained: dict[str, Any], folder: Path) -> None:
    (folder / "mine").write_text("mine")
    done = umbel("export", "last", "mine")
    assert done.code == 3
    assert "--force" in done.said
    assert (folder / "mine").read_text() == "mine"
    assert umbel("export", "last", "mine", "--force").code == 0
    assert umbel("export", "last", folder).code == 3
    assert umbel("export", "last", "nowhere/model").code == 5


def test_an_export_takes_any_round_that_is_kept(umbel: Command, trained: dict[str, Any], folder: Path) -> None:
    assert "after round 5" in umbel("export", "last", "five", "--round", 5).out
    assert "before round 1" in umbel("export", "last", "zero", "--round", 0).out
    assert load_model("zero")["w"].tolist() == [0.0, 0.0]
    assert (folder / "five").read_bytes() != (folder / "zero").read_bytes()
    done = umbel("export", "last", "one", "--round", 1)
    assert done.code == 3
    assert "the model of round 1 is not kept" in done.said
    assert "0, 4, 5, 6" in done.said


def test_the_best_model_is_exported_where_the_app_keeps_it(umbel: Command, folder: Path) -> None:
    (folder / "best.py").write_text("from app import app, umbel\napp.keep_best = umbel.KeepBest('train.loss')\n")
    summary = umbel("run", "best.py", "--clients", 4, "--rounds", 6, "--json").summary
    umbel("export", "last", "model")
    assert hashlib.sha256((folder / "model").read_bytes()).hexdigest() == summary["model_sha256"]
    best = summary["best_round"]
    assert best is not None
    log = [json.loads(line) for line in Path(summary["folder"], "events.jsonl").read_text().splitlines()]
    (round,) = (event for event in log if event["event"] == "round_committed" and event["round"] == best)
    assert summary["metrics"]["train.loss"] == round["train"]["loss"]
    assert json.loads((Path(summary["folder"]) / "summary.json").read_text())["metrics"] == summary["metrics"]
    (row,) = json.loads(umbel("runs", "--json").out)
    assert (row["metrics"], row["best_round"]) == (summary["metrics"], best)
    assert f"(round {best})" in umbel("runs").out
    assert f"of round {best}, the best" in umbel("show", "last").out
    again = umbel("resume", "last", "--json").summary
    assert (again["metrics"], again["best_round"]) == (summary["metrics"], best)


def test_a_damaged_checkpoint_is_not_exported(umbel: Command, trained: dict[str, Any]) -> None:
    checkpoint = Path("umbel-runs", trained["run"], "checkpoints", "round-0006.safetensors")
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    done = umbel("export", "last", "model")
    assert done.code == 5
    assert "round-0006.safetensors" in done.said
    assert not Path("model").exists()


BRAIN_FLOATS = """
import ml_dtypes, numpy as np, umbel
client = umbel.Client()
client.train(lambda model, data, ctx: umbel.Update({"w": model["w"] + 1}))
app = umbel.App(client, model={"w": np.zeros(3, ml_dtypes.bfloat16)}, strategy=umbel.FedAvg(cohort=1), rounds=1)
"""


def test_a_model_of_brain_floats_is_not_to_be_loaded_by_numpy(umbel: Command, folder: Path) -> None:
    (folder / "brain.py").write_text(BRAIN_FLOATS)
    assert umbel("run", "brain.py", "--clients", 2, "--workers", 0).code == 0
    done = umbel("export", "last", "b.safetensors")
    assert "import umbel; model = umbel.load_model('b.safetensors')" in done.out
    assert "import safetensors.torch as st; model = st.load_file('b.safetensors')" in done.out
    assert "safetensors.numpy" not in done.out


def test_what_is_advised_to_load_an_export_loads_it(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from umbel.core.arrays import _CODES, dtype_named

    advice: dict[str, list[str]] = {}
    for name in _CODES:
        model = Arrays({"w": np.zeros(3, np.float32), "x": np.ones(3, dtype_named(name))})
        file = tmp_path / f"it's {name}.safetensors"
        file.write_bytes(model.to_bytes())
        for line in export_commands._loaders(model, file):
            checks = [f"assert str(model['x'].dtype).endswith({name!r})", "assert model['x'].tolist() == [1, 1, 1]"]
            advice.setdefault(line.split()[1].strip(";"), []).extend([line, *checks])
    assert sorted(advice) == ["safetensors.numpy", "safetensors.torch", "umbel"]
    exec("\n".join(advice.pop("safetensors.torch")), {})
    for lines in advice.values():
        # In a process of its own, as whoever follows it: what is imported here may make numpy know more dtypes.
        subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, timeout=PATIENCE)


LINE = """
import numpy as np, umbel
from umbel.core.native import NativeModel

client = umbel.Client()
client.train(lambda model, data, ctx: umbel.Update({"w": model["w"] + 1}))


class Line:
    w = np.zeros(3, np.float32)


def load(line, model):
    line.w = model["w"]
    return line


def write(line, path):
    if line.w.sum() > 100:
        raise OSError(28, "No space left on device")
    path.write_text(str(line.w.tolist()))


line = NativeModel(Line, lambda line: umbel.Arrays({"w": line.w}), load, {".line": write})
app = umbel.App(client, model=line, strategy=umbel.FedAvg(cohort=1), rounds=1, federation=umbel.Simulation(2))
"""


def test_a_frameworks_own_format_is_written_by_the_app(umbel: Command, folder: Path) -> None:
    (folder / "line.py").write_text(LINE)
    umbel("run", "line.py", "--workers", 0)
    done = umbel("export", "last", "model.line")
    assert done.code == 0, done.err
    assert (folder / "model.line").read_text() == "[1.0, 1.0, 1.0]"
    assert umbel("export", "last", "model.npz").code == 0
    exec(umbel("export", "last", "model.npz", "--force").out.splitlines()[-1].strip(), found := {})
    assert found["model"]["w"].tolist() == [1.0, 1.0, 1.0]
    done = umbel("export", "last", "model.pt")
    assert (done.code, "not written as '.pt'" in done.said, ".line" in done.said) == (3, True, True)
    (folder / "line.py").rename(folder / "moved.py")
    done = umbel("export", "last", "again.line")
    assert (done.code, "--app" in done.said) == (3, True)
    assert umbel("export", "last", "again.line", "--app", "moved.py").code == 0
    done = umbel("export", "last", "other.line", "--app", "app.py")
    assert (done.code, "of none" in done.said) == (3, True)
    (folder / "moved.py").write_text(LINE + "# later\n")
    done = umbel("export", "last", "later.line", "--app", "moved.py")
    assert (done.code, "not as it was" in done.said) == (0, True)
    assert sorted(path.name for path in folder.glob("*.line")) == ["again.line", "later.line", "model.line"]
    (folder / "moved.py").write_text(LINE.replace("> 100", "> 0"))
    done = umbel("export", "last", "full.line", "--app", "moved.py")
    assert (done.code, "No space left" in done.said) == (5, True)
    assert not [path for path in folder.iterdir() if "full" in path.name]


def test_a_result_exports_its_model(umbel: Command, folder: Path) -> None:
    (folder / "line.py").write_text(LINE)
    umbel("run", "line.py", "--workers", 0)
    from umbel import App, Client, FedAvg
    from umbel.core.native import NativeModel

    result = open_run()
    result.export("model.safetensors")
    assert load_model("model.safetensors") == result.model
    with pytest.raises(AppError, match="of none"):
        result.export("model.line")
    texts = NativeModel(dict, Arrays, lambda made, model: model, {".txt": lambda m, p: p.write_text(str(m["w"]))})
    for app in (texts, App(Client(), model=texts, strategy=FedAvg())):
        result.export("model.txt", app)
        assert Path("model.txt").read_text() == "[1. 1. 1.]"


def test_the_result_of_a_run_knows_the_framework_of_its_app(folder: Path) -> None:
    exec(LINE, found := {"__name__": "line"})
    found["umbel"].run(found["app"], folder=None, on=found["umbel"].Simulation(2, workers=0)).export("model.line")
    assert Path("model.line").read_text() == "[1.0, 1.0, 1.0]"


def test_what_keeps_a_framework_from_writing_is_said(tmp_path: Path) -> None:
    from umbel.core.native import NativeModel
    from umbel.runs.export import write_model

    def write(made: object, path: Path) -> None:
        raise RuntimeError("no converter\nStack trace:")

    native = NativeModel(dict, Arrays, lambda made, model: model, {".txt": write})
    with pytest.raises(AppError, match=r"cannot write m\.txt: RuntimeError: no converter$"):
        write_model(Arrays({"w": np.ones(1)}), tmp_path / "m.txt", native)
    with pytest.raises(StorageError, match="there is no such folder"):
        write_model(Arrays({"w": np.ones(1)}), tmp_path / "none" / "m.txt", native)
    assert not list(tmp_path.iterdir())


FOLDER = LINE.replace('{".line": write}', '{"": write}').replace(
    "path.write_text(", 'path.mkdir(); (path / "w").write_text('
)


def test_a_model_that_is_a_folder_is_exported_as_one(umbel: Command, folder: Path) -> None:
    (folder / "parts.py").write_text(FOLDER)
    umbel("run", "parts.py", "--workers", 0)
    done = umbel("export", "last", "model")
    assert (done.code, "15 bytes" in done.out) == (0, True), done.err
    assert (folder / "model" / "w").read_text() == "[1.0, 1.0, 1.0]"
    (folder / "model" / "mine").write_text("mine")
    (folder / "model" / "w").write_text("")
    assert umbel("export", "last", "model").code == 3
    assert umbel("export", "last", "model", "--force").code == 0
    assert {path.name: path.read_text() for path in (folder / "model").iterdir()} == {
        "w": "[1.0, 1.0, 1.0]", "mine": "mine",
    }  # fmt: skip
    assert not list(folder.glob(".model*"))
    assert umbel("export", "last", "model.safetensors").code == 0
    done = umbel("export", "last", "model.pt")
    assert (done.code, "in nothing, for a folder" in done.said) == (3, True)
    (folder / "parts.py").unlink()
    assert umbel("export", "last", "plain").code == 0
    assert load_model("plain")["w"].tolist() == [1.0, 1.0, 1.0]
