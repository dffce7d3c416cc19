"""Runs that are killed by the operating system's own signal: no noise is drawn twice, and sums stay what they are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import umbel
from umbel.core.arrays import Arrays
from umbel.privacy import central_gaussian, secure
from umbel.runs.journal import Journal
from umbel.work.state import ClientStates

ROUNDS = 6


def strategy(kind: str) -> umbel.Strategy:
    if kind == "sums":
        return secure(umbel.FedAvg(cohort=5, fold=umbel.mean()))
    step = central_gaussian(norm=1.0, noise=1.0, expected=12, quantile=0.5 if kind == "moving" else None)
    return umbel.FedAvg(cohort=umbel.Poisson(0.5), fold=umbel.total(), transforms=step)


def app(kind: str) -> umbel.App:
    """Clients that move by less than the noise: what a model is, is its noise."""
    client = umbel.Client()

    @client.train
    def train(model, data, ctx):
        ctx.state["tasks"] = ctx.state.get("tasks", 0) + 1
        return umbel.Update({"w": model["w"] + np.float32(0.01)})

    return umbel.App(client, model=Arrays({"w": np.zeros(50, np.float32)}), strategy=strategy(kind), rounds=ROUNDS)


def live(home: Path, moments: int, kind: str) -> None:
    """Begin the run, or go on with it, and be killed at the moment of this number."""

    def around(place: type, name: str) -> None:
        original = getattr(place, name)

        def counted(self, *arguments, **settings):
            nonlocal moments
            for step in (lambda: None, lambda: original(self, *arguments, **settings)):
                found = step()
                moments -= 1
                if not moments:
                    os.kill(os.getpid(), signal.SIGKILL)
            return found

        setattr(place, name, counted)

    for name in ("append", "save", "summarise", "clear_answers", "keep_checkpoints"):
        around(Journal, name)
    around(ClientStates, "advance")
    begun = [folder for folder in home.iterdir() if (folder / "events.jsonl").exists()]
    if begun and (begun[0] / "events.jsonl").stat().st_size:
        result = umbel.resume(app(kind), begun[0], on=umbel.Simulation(8))
    else:
        result = umbel.run(app(kind), on=umbel.Simulation(8), folder=home, seed=3)
    (home / "model").write_text(result.model_sha256)


def told(home: Path) -> list[str]:
    """The whole lines of the run's log, if it has begun."""
    logs = [log for log in home.glob("*/events.jsonl") if log.stat().st_size]
    return logs[0].read_text().splitlines(keepends=True) if logs else []


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "kind"), [(1, "fixed"), (2, "moving"), (3, "sums")])
def test_a_run_that_is_killed_again_and_again_keeps_every_answer(seed, kind, tmp_path):
    deaths, answers, moments = 0, 0, np.random.default_rng(seed)
    while not (tmp_path / "model").exists():
        command = [sys.executable, __file__, str(tmp_path), str(moments.integers(8, 20)), kind]
        before = told(tmp_path)
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        after = told(tmp_path)
        assert after[: len(before)] == before or before[-1][-1:] != "\n"  # what was written stays
        assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
        deaths += ended.returncode == -signal.SIGKILL
        last = [json.loads(line)["event"] for line in after if line.endswith("\n")][-1:]
        answers += last == ["ask_closed"]
        assert deaths < 99
    events = [json.loads(line) for line in told(tmp_path)]
    if kind == "sums":
        whole = umbel.run(app(kind), on=umbel.Simulation(8), folder=None, seed=3)
        assert (tmp_path / "model").read_text() == whole.model_sha256
    else:
        assert sum(len(event.get("releases") or ()) for event in events) == ROUNDS
    print(deaths, answers)
    assert deaths > 3
    assert answers  # a life ended with an answer that no model had been made of


if __name__ == "__main__":
    live(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
