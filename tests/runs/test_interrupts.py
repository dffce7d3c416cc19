"""Ctrl-C at any line of a run: whatever has been done by then, the run goes on from it to the same bits."""

from __future__ import annotations

import dis
import functools
import gc
import os
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from types import CodeType

import numpy as np
import pytest

import umbel
from umbel import App, Client, FedAvg, Simulation, Update
from umbel.errors import RunInterrupted
from umbel.runs.journal import LOG

pytestmark = [
    pytest.mark.skipif(sys.gettrace() is not None, reason="something else traces"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # of a __del__
]

PACKAGE = os.path.join(os.path.dirname(umbel.__file__), "")
ON = Simulation(5)
NEVER = -1


def made(rounds: int) -> App:
    client = Client()

    @client.train
    def train(model, data, ctx):
        ctx.state["n"] = ctx.state.get("n", 0) + 1
        return Update({"w": model["w"] + ctx.rng.normal() + ctx.state["n"]})

    return App(client, model={"w": np.zeros(3)}, strategy=FedAvg(cohort=3), rounds=rounds, evaluate_every=0)


@functools.cache
def unseen(code: CodeType) -> set[int]:
    """Where lines begin at which no signal is seen: a `try`, and a `with` again as its block is left."""
    found, line, entered = set(), 0, set()
    for step in dis.get_instructions(code):
        if step.starts_line is not None:
            line = step.starts_line
            if step.opname == "NOP" or line in entered:
                found.add(step.offset)
        if step.opname in ("BEFORE_WITH", "LOAD_SPECIAL"):
            entered.add(line)
    return found


def interrupted_at(line: int, folder: Path | None, rounds: int = 2) -> tuple[bool, list[str]]:
    """Run the app and press Ctrl-C at so many lines of the package: whether that was before the run's end, and the
    functions whose lines were run.
    """
    ran: list[str] = []

    def trace(frame, what, argument):
        if not frame.f_code.co_filename.startswith(PACKAGE) or frame.f_code.co_name in ("release", "close"):
            return None  # a second Ctrl-C, as it were
        if what == "line" and frame.f_lasti not in unseen(frame.f_code):
            ran.append(frame.f_code.co_qualname)
            if len(ran) == line:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        umbel.run(made(rounds), on=ON, seed=5, folder=folder, id="r", place="r")
    except (KeyboardInterrupt, RunInterrupted):
        return True, ran
    finally:
        sys.settrace(None)
    return False, ran


def lines_of(folder: Path) -> list[str]:
    """The functions whose lines a run runs that is not the first, which fills caches."""
    for name in ("first", "second"):
        interrupted, ran = interrupted_at(NEVER, folder / name)
        assert not interrupted
    return ran


def check(lines: Iterable[int], folder: Path, rounds: int = 2) -> tuple[int, int]:
    """Interrupt a run at each of the lines, and go on with it: how many had begun by their logs, and had not.

    How many lines a run has differs a little from run to run: one may be over before it comes to the last of them.
    """
    whole = umbel.run(made(rounds), on=ON, seed=5, folder=None).model_sha256
    begun = new = 0
    for line in lines:
        place = folder / str(line) / "r"
        interrupted, _ = interrupted_at(line, place.parent, rounds)
        if not interrupted:
            continue
        if (place / LOG).exists() and (place / LOG).stat().st_size:
            result = umbel.resume(made(rounds), place, on=ON)
            begun += 1
        else:
            result = umbel.run(made(rounds), on=ON, seed=5, folder=place.parent, id="r", place="r")
            new += 1
        assert result.model_sha256 == whole, line
    gc.collect()  # what an interrupt has left open complains here, and not in a test after this one
    return begun, new


@pytest.mark.slow
def test_a_run_goes_on_from_wherever_it_was_as_it_began(tmp_path):
    ran = lines_of(tmp_path)
    first, last = ran.index("Conductor.begin"), ran.index("Conductor._round")
    begun, new = check(range(first - 2, last), tmp_path, rounds=1)
    assert begun > 3
    assert new > 3


@pytest.mark.slow
def test_a_run_goes_on_from_wherever_it_was(tmp_path):
    ran = lines_of(tmp_path)
    begun, new = check(random.Random(3).sample(range(1, len(ran)), 60), tmp_path)
    assert begun > 30
    assert new > 0  # few: a run is in its log before its clients are made ready


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_goes_on_from_every_third_line(tmp_path):
    ran = lines_of(tmp_path)
    lines = range(1, len(ran), 3)
    assert sum(check(lines, tmp_path)) > 0.9 * len(lines)
