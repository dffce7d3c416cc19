from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PATIENCE

SOURCE = Path(__file__).parents[2] / "src"
Command = Callable[..., Any]


def only_run(folder: str = "umbel-runs") -> Path:
    (found,) = Path(folder).iterdir()
    return found


def test_a_run_is_summed_up(umbel: Command) -> None:
    done = umbel("run", "app.py", "--clients", 4)
    assert done.code == 0
    run = only_run().name
    assert f"✓ {run} finished: 3 rounds" in done.out
    assert f"umbel show {run}\n" in "".join(f"{line.rstrip()}\n" for line in done.out.splitlines())
    assert "test.distance" in done.out
    assert [line.split("  ")[0] for line in done.err.splitlines()[1:]] == ["round 1/3", "round 2/3", "round 3/3"]


def test_json_is_the_last_line(umbel: Command) -> None:
    done = umbel("run", "app.py", "--clients", 4, "--json", "--folder", "kept")
    assert done.code == 0
    assert len(done.out.splitlines()) == 1
    assert done.summary["folder"] == f"kept/{done.summary['run']}"
    assert (done.summary["rounds"], done.summary["reason"]) == (3, "rounds")
    assert set(done.summary["metrics"]) == {"test.distance", "evaluate.distance", "train.loss"}
    assert len(done.summary["model_sha256"]) == 64
    assert done.summary["seconds"] > 0
    assert "round 3/3" in done.err


def test_a_seed_decides_the_model(umbel: Command) -> None:
    def model(*options: object) -> str:
        return str(umbel("run", "app.py", "--clients", 9, "--json", *options).summary["model_sha256"])

    assert model("--seed", 1) == model("--seed", 1) != model("--seed", 2)


def test_settings_are_laid_over_and_kept_in_the_log(umbel: Command) -> None:
    done = umbel(
        "run", "app.py", "--clients", 4, "--set", "lr=0.25", "--set", "strategy.cohort=2", "--set", "rounds=2", "--json"
    )
    assert done.summary["rounds"] == 2
    assert "2 clients" in done.err
    started = json.loads((only_run() / "events.jsonl").read_text().splitlines()[0])
    assert started["settings"]["set"] == ["lr=0.25", "strategy.cohort=2", "rounds=2"]
    assert started["settings"]["config"]["lr"] == 0.25
    assert started["app"]["path"] == str(Path("app.py").resolve())
    assert started["app"]["clients"] == 4


def test_rounds_said_twice_have_to_agree(umbel: Command) -> None:
    assert umbel("run", "app.py", "--clients", 4, "--rounds", 2, "--set", "rounds=2", "--json").summary["rounds"] == 2
    done = umbel("run", "app.py", "--clients", 4, "--rounds", 2, "--set", "rounds=3")
    assert done.code == 3
    assert "disagree" in done.said


def test_the_app_may_say_where_it_runs(umbel: Command, folder: Path) -> None:
    done = umbel("run", "app.py")
    assert done.code == 3
    assert "Add --clients 100" in done.said
    assert not Path("umbel-runs").exists()
    (folder / "own.py").write_text("from app import app, umbel\napp.federation = umbel.Simulation(clients=5)\n")
    assert umbel("run", "own.py", "--json").code == 0
    assert umbel("resume", "last", "--rounds", 4, "--json").summary["rounds"] == 4


def test_a_run_begins_with_an_exported_model(umbel: Command, folder: Path) -> None:
    first = umbel("run", "app.py", "--clients", 4, "--json").summary
    umbel("export", "last", "model.safetensors")
    second = umbel("run", "app.py", "--clients", 4, "--init", "model.safetensors", "--rounds", 1, "--json").summary
    assert second["metrics"] != first["metrics"]
    umbel("export", "last", "start.safetensors", "--round", 0)
    assert (folder / "start.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    done = umbel("run", "app.py", "--clients", 4, "--init", "none.safetensors")
    assert done.code == 3
    assert "there is no file none.safetensors" in done.said


def test_the_failure_of_one_client_is_told_and_the_run_goes_on(umbel: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILING", "1")
    done = umbel("run", "app.py", "--clients", 4, "--set", "strategy.cohort=4")
    assert done.code == 0
    assert done.err.count("client 1 failed: its train handler raised ValueError: its disk is gone (app.py:17)") == 1
    assert done.err.count("3 clients  1 failed") == 3


def test_a_run_whose_clients_all_fail_has_failed_and_can_be_resumed(
    umbel: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILING", "all")
    done = umbel("run", "app.py", "--clients", 4)
    assert done.code == 4
    assert "The run failed" in done.said
    assert "round 1 brought no update: 0 of 3 clients" in done.said
    assert "its disk is gone" in done.said
    assert "go on with: umbel resume demo-" in done.said
    assert done.out == ""
    assert [row["state"] for row in json.loads(umbel("runs", "--json").out)] == ["failed"]
    monkeypatch.delenv("FAILING")
    assert umbel("resume", "last", "--json").summary["rounds"] == 4
    assert [row["state"] for row in json.loads(umbel("runs", "--json").out)] == ["finished"]


BROKEN = {
    "import umbel\nraise ValueError('bad')": ("bad.py raised ValueError", "bad.py:2: raise ValueError('bad')", 3),
    "from app import *\napp.model = lambda: {}['w']": ("making the initial model raised KeyError", "bad.py:2:", 3),
    "from app import *\n@app.test\ndef test(model):\n    1 / 0": (
        "test raised ZeroDivisionError",
        "bad.py:4: 1 / 0",
        3,
    ),
    "from app import *\ndef loud(self, state, r):\n    raise OSError('ouch')\numbel.FedAvg.ask = loud": (
        "ouch",
        "bad.py:3: raise",
        3,
    ),
    "from app import *\nobject.__setattr__(app.strategy, 'cohort', 99)": ("The cohort", "99", 3),
}


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_wrong_in_the_apps_file_is_shown_with_its_line(
    umbel: Command, folder: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import umbel as package

    monkeypatch.setattr(package.FedAvg, "ask", package.FedAvg.ask)
    message, place, code = BROKEN[text]
    (folder / "bad.py").write_text(f"{text}\n")
    done = umbel("run", "bad.py", "--clients", 4)
    assert done.code == code
    assert message in done.said
    assert place in done.said
    assert "Traceback" not in done.err
    assert "Traceback" in umbel("run", "bad.py", "--clients", 4, "--debug").err


def test_a_full_disk_is_told_from_other_faults(umbel: Command) -> None:
    Path("file").write_text("")
    done = umbel("run", "app.py", "--clients", 4, "--folder", "file")
    assert done.code == 5
    assert "The disk" in done.said


def test_an_unfinished_run_goes_on_as_it_was_begun(umbel: Command) -> None:
    options = ("--clients", 6, "--seed", 3, "--set", "strategy.cohort=2", "--set", "lr=0.25", "--json")
    whole = umbel("run", "app.py", *options, "--rounds", 4, "--folder", "whole").summary
    umbel("run", "app.py", *options, "--rounds", 2)
    part = only_run()
    assert umbel("resume", part, "--rounds", 4, "--json").summary["model_sha256"] == whole["model_sha256"]
    again = umbel("resume", part.name[-4:], "--rounds", 4)
    assert again.code == 0
    assert "this run is over after 4 rounds" in again.said
    assert "warning" not in umbel("resume", "last", "--rounds", 5).err


def test_a_changed_or_moved_app_is_noticed(umbel: Command, folder: Path) -> None:
    umbel("run", "app.py", "--clients", 4)
    app = folder / "app.py"
    app.write_text(f"{app.read_text()}\n# changed\n")
    assert "app.py has changed since the run began" in umbel("resume", "last", "--rounds", 4).said
    app.rename(folder / "moved.py")
    done = umbel("resume", "last", "--rounds", 5)
    assert done.code == 3
    assert "--app FILE" in done.said
    assert umbel("resume", "last", "--rounds", 5, "--app", "moved.py", "--json").summary["rounds"] == 5


def test_a_run_that_a_program_began_needs_its_app(umbel: Command, folder: Path) -> None:
    code = "import umbel, app; umbel.run(app.app, on=umbel.Simulation(clients=4), rounds=2)"
    environment = {**os.environ, "PYTHONPATH": f"{SOURCE}:{folder}"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=PATIENCE)
    done = umbel("resume", "last", "--rounds", 3)
    assert done.code == 3
    assert "not started by `umbel run`" in done.said


PAUSING = """
import pathlib

from app import app, client, umbel

learn = client.handlers["train"]


def train(model, data, ctx):
    if ctx.round == 3 and pathlib.Path("pause").exists():
        pathlib.Path("pause").unlink()
        print("ready", flush=True)
        while True:  # signal.pause() would not see a signal that comes just before it
            pass
    return learn(model, data, ctx)


client.handlers["train"] = train
app.rounds = 5
"""


@pytest.fixture
def paused(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """`umbel run` in a process of its own, in the middle of round 3 of 5."""
    (folder / "pausing.py").write_text(PAUSING)
    (folder / "pause").touch()
    process = subprocess.Popen(
        [sys.executable, "-m", "umbel.cli", "run", "pausing.py", "--clients", "4", "--seed", "8"],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.mark.parametrize(
    ("number", "code", "state"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "interrupted"),
        (signal.SIGKILL, -signal.SIGKILL, "unfinished"),
    ],
)
def test_a_stopped_run_resumes_to_the_same_model(
    paused: subprocess.Popen[str], umbel: Command, number: signal.Signals, code: int, state: str
) -> None:
    paused.send_signal(number)
    out, err = paused.communicate(timeout=PATIENCE)
    assert paused.returncode == code
    assert out == ""
    if number != signal.SIGKILL:
        assert "the run was stopped after round 2" in err
        assert f"umbel resume {only_run().name}" in err
        assert "Traceback" not in err
    assert [run["state"] for run in json.loads(umbel("runs", "--json").out)] == [state]
    resumed = umbel("resume", "last", "--json")
    assert resumed.summary["rounds"] == 5
    whole = umbel("run", "pausing.py", "--clients", 4, "--seed", 8, "--folder", "whole", "--json")
    assert resumed.summary["model_sha256"] == whole.summary["model_sha256"]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_debug_shows_what_clients_raised(
    umbel: Command, folder: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILING", "all")
    command = ("run", "app.py", "--clients", 4, "--rounds", 3, "--workers", workers)
    done = umbel(*command, "--debug")
    assert done.err.count('raise ValueError("its disk is gone")') == 1
    assert "in train" in done.err
    assert "Traceback" not in umbel(*command).err


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_debug_shows_where_an_error_that_ends_the_run_arose(umbel: Command, folder: Path, workers: int) -> None:
    text = (folder / "app.py").read_text()
    (folder / "app.py").write_text(text.replace("    goal = ", "    umbel.Window(quorum=-1)\n    goal = "))
    command = ("run", "app.py", "--clients", 4, "--workers", workers)
    done = umbel(*command, "--debug")
    assert done.code == 3
    assert "    umbel.Window(quorum=-1)" in done.err.split("╭")[0]
    line = text[: text.index("    goal = ")].count("\n") + 1
    assert f"app.py:{line}: umbel.Window(quorum=-1)" in done.err.split("╭")[1]
    assert "Traceback" not in umbel(*command).err
