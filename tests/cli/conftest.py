from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from umbel.cli import main
from umbel.runs.events import AskClosed, RoundCommitted, RunEvent, RunStarted
from umbel.runs.journal import LOG, sealed

APP = '''
"""Each client pulls one number towards its own."""

import os

import numpy as np

import umbel

client = umbel.Client()


@client.train
def train(model, data, ctx):
    failing = os.environ.get("FAILING", "")
    if failing == "all" or failing == str(ctx.client):
        raise ValueError("its disk is gone")
    goal = data["index"] + ctx.rng.normal()
    new = model["w"] + ctx.config["lr"] * (goal - model["w"])
    return umbel.Update({"w": new}, weight=1, metrics={"loss": float(((goal - new) ** 2).mean())})


@client.evaluate
def evaluate(model, data, ctx):
    return umbel.Metrics({"distance": float(abs(data["index"] - model["w"][0]))}, weight=1)


app = umbel.App(
    client,
    model={"w": np.zeros(2, np.float32)},
    strategy=umbel.FedAvg(cohort=3),
    rounds=3,
    config={"lr": 0.5, "steps": 2, "name": "x"},
)


@app.test
def test(model):
    return {"distance": float(abs(model["w"] - 1.5).mean())}
'''
"""A whole app in one file, of four clients and more; clients fail as the variable FAILING says."""


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        """The last line of stdout as JSON."""
        found = json.loads(self.out.splitlines()[-1])
        assert isinstance(found, dict)
        return found

    @property
    def said(self) -> str:
        """What stderr says, without the frame of the panel and its line breaks."""
        return " ".join(self.err.translate(dict.fromkeys(map(ord, "│╭╮╰╯─"), " ")).split())


Command = Callable[..., Outcome]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the app in `app.py`."""
    place = tmp_path / "demo"
    place.mkdir()
    (place / "app.py").write_text(APP)
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "100")
    return place


@pytest.fixture
def umbel(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Types a command, such as `umbel("run", "app.py", "--clients", 4)`."""

    def command(*arguments: object) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["umbel", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            main()
        code = exited.value.code
        assert code is None or isinstance(code, int)
        printed = capsys.readouterr()
        return Outcome(code or 0, printed.out, printed.err)

    return command


@pytest.fixture
def written() -> Callable[..., Path]:
    """Writes the folder of a run by hand; see `write_run`."""
    return write_run


def write_run(
    folder: Path, id: str = "app-20260102-030405-ab12", rounds: int = 3, ends: Sequence[RunEvent] = ()
) -> Path:
    """A run's folder with a log of so many rounds, whose loss falls, and of the events that ended it."""
    path = folder / id
    path.mkdir(parents=True)
    events: list[RunEvent] = [
        RunStarted(
            run=id,
            format=1,
            seed=7,
            rounds=max(3, rounds),
            clients=9,
            strategy="FedAvg",
            app={"path": "/somewhere/demo/app.py"},
            settings={"set": ["lr=0.5"], "config": {"lr": 0.5, "name": "x"}},
            software={"python": "3.12", "system": "Linux x86_64", "threads": "1"},
        )
    ]
    for r in range(1, rounds + 1):
        failed = [["its train handler raised ValueError: no data", 1, [r]]] if r == 2 else []
        events.append(
            AskClosed(
                ask=r,
                round=r,
                kind="train",
                lane="train",
                digest="",
                asked=2,
                count=2 - len(failed),
                failures=len(failed),
                failed=failed,
            )
        )
        events.append(
            RoundCommitted(
                round=r,
                asks=r,
                clients=2 - len(failed),
                dropped=len(failed),
                failures={"train": len(failed)},
                train={"loss": 3 / r},
                evaluate={"accuracy": 1 - 0.9 / r, "loss": 4 / r},
                test={"accuracy": 1 - 0.8 / r},
                seconds=0.5,
                checkpoint={"file": f"checkpoints/round-{r:04d}.safetensors", "sha256": ""},
            )
        )
    (path / LOG).write_bytes(sealed(event.record() for event in (*events, *ends)))
    return path
