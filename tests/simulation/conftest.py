"""Worker processes load what they need, and not what other tests have loaded; sessions with workers that are played."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.simulation.stage import Clock, Impatient, Stage

from umbel.core.randomness import Key
from umbel.simulation import crew, hosts, pool, processes
from umbel.simulation.pool import WorkerPool
from umbel.simulation.session import SimulationSession
from umbel.simulation.virtual import DeviceTurns
from umbel.work.state import ClientStates


@pytest.fixture(autouse=True, scope="module")
def _light_workers(request) -> Iterator[None]:
    """Torch, where other tests have loaded it, is not loaded for workers that do without; what a test's own module is
    `WRITTEN_WITH` is loaded once, and not by each worker that is given a function of that module.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crew, "_modules", lambda client: getattr(request.module, "WRITTEN_WITH", []))
        processes._close()
        yield


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(pool, "time", made)
    monkeypatch.setattr(hosts, "time", made)
    return made


@pytest.fixture
def on_stage(clock):
    """Make sessions with played workers."""
    made = []

    def make(workers=2, *, fleet=None, attempts=3, stall=None):
        stage, states = Stage(workers, clock), ClientStates()
        stage.pool = WorkerPool(stage, states.encoded, attempts=attempts, stall=stall)
        stage.pool._selector = Impatient(stage.pool._selector, clock)
        virtual = None if fleet is None else DeviceTurns(fleet, Key.from_seed(0), {})
        session = SimulationSession(states, stage.pool, virtual=virtual, clock=clock.monotonic)
        made.append((session, states))
        return session, stage, states

    yield make
    for session, states in made:
        session.disconnect()
        states.close()
