from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import umbel as package

Command = Callable[..., Any]
SWEEP = ("sweep", "app.py", "--clients", 4, "--rounds", 2, "--set", "lr=0.5,0.25", "--set", "strategy.cohort=2,3")
DIES = """

@app.test
def test(model):
    import pathlib, signal

    place = pathlib.Path("tests-until-it-dies")
    left = int(place.read_text()) if place.exists() else 0
    if left:
        place.write_text(str(left - 1))
        if left == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    return {"distance": float(abs(model["w"] - 1.5).mean())}
"""


def runs_of(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in (folder / "umbel-runs").glob("*/events.jsonl"))


def test_a_sweep_ends_with_a_table_the_best_and_a_picture(umbel: Command, folder: Path) -> None:
    pytest.importorskip("matplotlib")
    done = umbel(*SWEEP, "--seeds", 2)
    assert done.code == 0
    assert done.err.splitlines()[0].startswith("[1/8] lr 0.5, strategy.cohort 2, seed 0: test.distance ")
    assert len(runs_of(folder)) == 8
    words = " ".join(done.out.split())
    assert "lr strategy.cohort runs test.distance time" in words
    assert "✓ the best of demo-sweep-" in words
    (picture,) = folder.glob("umbel-runs/*.png")
    assert f"picture umbel-runs/{picture.name}" in words
    found = umbel("best", "--json").summary
    assert done.out.count(found["best"]["run"]) >= 1
    assert found["best"]["run"] in umbel("best").out
    assert umbel("compare", found["best"]["run"], runs_of(folder)[0], "--json").code in (0, 3)
    assert umbel("best", "--plot", "again.png").code == 0
    assert (folder / "again.png").stat().st_size
    again = shlex.split(found["best"]["command"])
    assert again[:2] == ["umbel", "run"]
    rerun = umbel(*again[1:], "--json").summary
    assert rerun["metrics"] == found["best"]["metrics"]
    assert rerun["model_sha256"] == package.open(found["best"]["run"]).model_sha256


def test_json_has_every_run_and_the_best(umbel: Command, folder: Path) -> None:
    found = umbel(*SWEEP, "--min", "--metric", "evaluate.distance", "--json").summary
    assert found["sweep"].startswith("demo-sweep-")
    assert (found["metric"], found["goal"]) == ("evaluate.distance", "min")
    assert [(row["settings"], row["seed"]) for row in found["rows"]] == [
        ({"lr": rate, "strategy.cohort": cohort}, 0) for rate in (0.5, 0.25) for cohort in (2, 3)
    ]
    assert [row["run"] for row in found["rows"]] == [
        json.loads(umbel("runs", "--json").out)[n]["run"] for n in range(4)
    ]
    values = [row["metrics"]["evaluate.distance"] for row in found["rows"]]
    assert found["best"]["value"] == min(values)
    assert found["best"]["command"].endswith("--rounds 2 --seed 0")
    told = umbel("best", "--metric", "evaluate.distance", "--max", "--json").summary["best"]
    assert told["value"] == max(values)
    first = umbel("show", found["rows"][0]["run"])
    assert first.code == 0


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_where_it_was(umbel: Command, folder: Path) -> None:
    (folder / "app.py").write_text((folder / "app.py").read_text().partition("\n\n@app.test")[0] + DIES)
    whole = umbel(*SWEEP, "--folder", "whole", "--json").summary
    (folder / "tests-until-it-dies").write_text("4")  # after the first round of the second run
    command = [sys.executable, "-c", "from umbel.cli import main; main()", *map(str, SWEEP)]
    environment = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1])}
    killed = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    before = runs_of(folder)
    assert len(before) == 2
    del sys.modules["app"]  # as in another process
    done = umbel(*SWEEP, "--json")
    assert "has 2 runs already" in done.err
    assert done.summary["sweep"] == whole["sweep"]
    plain = [
        [(row["settings"], row["state"], row["metrics"]) for row in each["rows"]] for each in (whole, done.summary)
    ]
    assert plain[0] == plain[1]
    assert len(runs_of(folder)) == 4
    assert before == [name for name in runs_of(folder) if name in before]


def test_what_cannot_be_is_said_before_anything_runs(umbel: Command, folder: Path) -> None:
    for arguments, said in (
        (("--set", "lrr=1,2"), "there is no setting 'lrr'"),
        (("--set", "lr=fast,0.1"), "lr=fast: it takes a number"),
        (("--set", "lr=0.1..0.5"), "Draw from it by --random N"),
        (("--set", "lr=0.1,0.2", "--init", "gone.safetensors"), "there is no file gone.safetensors"),
        ((), "umbel sweep varies settings"),
    ):
        done = umbel("sweep", "app.py", "--clients", 4, *arguments)
        assert (done.code, said in done.said) == (3, True), done.said
    assert not runs_of(folder)
    assert "no sweep is in umbel-runs" in umbel("best").said


@pytest.mark.slow
def test_where_all_runs_fail_it_says_why(umbel: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILING", "all")
    done = umbel(*SWEEP)
    assert done.code == 4
    assert "none of the sweep's 4 runs came to a result; the first failed: " in done.said
    assert "its disk is gone" in done.said
    assert "has come to a result yet" in umbel("best").said
    monkeypatch.setenv("FAILING", "0")
    found = umbel("sweep", "app.py", "--clients", 4, "--random", 2, "--set", "lr=0.1..0.9", "--json").summary
    assert [row["state"] for row in found["rows"]] == ["finished", "finished"]
