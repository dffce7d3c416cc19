"""A noised run that is killed by the operating system's own signal draws no noise twice."""

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
from umbel.privacy import central_gaussian
from umbel.runs.journal import Journal
from umbel.work.state import ClientStates

ROUNDS = 6


def app(quantile: float | None) -> umbel.App:
    """Clients that move by less than the noise: what a model is, is its noise."""
    client = umbel.Client()

    @client.train
    def train(model, data, ctx):
        ctx.state["tasks"] = ctx.state.get("tasks", 0) + 1
        return umbel.Update({"w": model["w"] + np.float32(0.01)})

    step = central_gaussian(norm=1.0, noise=1.0, expected=12, quantile=quantile)
    strategy = umbel.FedAvg(cohort=umbel.Poisson(0.5), fold=umbel.total(), transforms=step)
    return umbel.App(client, model=Arrays({"w": np.zeros(50, np.float32)}), strategy=strategy, rounds=ROUNDS)


def live(home: Path, moments: int, quantile: float | None) -> None:
    """Begin the run, or go on with it, and be killed at the moment of this number."""

    def around(kind: type, name: str) -> None:
        original = getattr(kind, name)

        def counted(self, *arguments, **settings):
            nonlocal moments
            for step in (lambda: None, lambda: original(self, *arguments, **settings)):
                found = step()
                moments -= 1
                if not moments:
                    os.kill(os.getpid(), signal.SIGKILL)
            return found

        setattr(kind, name, counted)

    for name in ("append", "save", "summarise", "clear_answers", "keep_checkpoints"):
        around(Journal, name)
    around(ClientStates, "advance")
    begun = [folder for folder in home.iterdir() if (folder / "events.jsonl").exists()]
    if begun and (begun[0] / "events.jsonl").stat().st_size:
        result = umbel.resume(app(quantile), begun[0], on=umbel.Simulation(8))
    else:
        result = umbel.run(app(quantile), on=umbel.Simulation(8), folder=home, seed=3)
    (home / "model").write_text(result.model_sha256)


def told(home: Path) -> list[str]:
    """The whole lines of the run's log, if it has begun."""
    logs = [log for log in home.glob("*/events.jsonl") if log.stat().st_size]
    return logs[0].read_text().splitlines(keepends=True) if logs else []


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "quantile"), [(1, None), (2, 0.5)])
def test_a_noised_run_that_is_killed_again_and_again_keeps_every_answer(seed, quantile, tmp_path):
    deaths, answers, moments = 0, 0, np.random.default_rng(seed)
    while not (tmp_path / "model").exists():
        command = [sys.executable, __file__, str(tmp_path), str(moments.integers(8, 20)), str(quantile)]
        before = told(tmp_path)
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        after = told(tmp_path)
        assert after[: len(before)] == before or before[-1][-1:] != "\n"  # what was written stays
        assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
        deaths += ended.returncode == -signal.SIGKILL
        last = [json.loads(line)["event"] for line in after if line.endswith("\n")][-1:]
        answers += last == ["ask_closed"]
        assert deaths < 60
    events = [json.loads(line) for line in told(tmp_path)]
    assert sum(len(event.get("releases") or ()) for event in events) == ROUNDS
    print(deaths, answers)
    assert deaths > 3
    assert answers  # a life ended with an answer that no model had been made of


if __name__ == "__main__":
    live(Path(sys.argv[1]), int(sys.argv[2]), None if sys.argv[3] == "None" else float(sys.argv[3]))
