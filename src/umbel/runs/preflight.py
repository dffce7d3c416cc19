"""Preflight: train one client, and predict from it what a whole run will take."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..core.app import App
from ..core.ask import Ask, for_client
from ..core.client import Client
from ..core.contract import first_asks
from ..core.randomness import Key
from ..core.task import Admit, Failed, Send, Task
from ..core.update import Like
from ..errors import ClientError, ClientId, HandlerFailed, SettingError, StrategyError
from ..folds.total import total
from ..samplers.uniform import Uniform
from ..work.seeding import generators_kept, seed_generators
from ..work.state import ClientStates
from .cohorts import drawn_by
from .config import laid_over
from .federation import Federation, Session
from .run import federation_of


@dataclass(frozen=True)
class KindCost:
    """What one kind of ask takes: how many clients a round, and for one client seconds of work and of loading its data,
    and the bytes that go to it and come back.
    """

    kind: str
    clients: int
    rounds: int
    seconds: float
    data_seconds: float
    bytes_down: int
    bytes_up: int


@dataclass(frozen=True)
class Preflight:
    """What a run will take, as far as one client tells.

    `seconds` is its whole time with so many `workers`, `memory` the bytes of all its processes at most; `bytes_down`
    and `bytes_up` are what a deployment would move between server and clients in all rounds.
    """

    client: ClientId
    parts: tuple[KindCost, ...]
    rounds: int
    workers: int
    test_seconds: float
    seconds: float
    memory: int
    bytes_down: int
    bytes_up: int


class Measured(Session, Protocol):
    """A session that knows what its processes take."""

    def peak_memory(self) -> list[int]:
        """Bytes, of each worker process, at most so far."""


@runtime_checkable
class Scalable(Federation, Protocol):
    """A federation whose clients can be had with other workers, and on other devices."""

    @property
    def workers(self) -> int:
        """How many worker processes a run gets."""

    def with_workers(self, workers: int) -> Scalable:
        """The same clients with another number of workers."""

    def with_devices(self, devices: None) -> Scalable:
        """The same clients on other devices, or on none."""

    def connect(
        self,
        client: Client,
        config: Mapping[str, Any],
        key: Key,
        states: ClientStates,
        clock: Callable[[], float],
    ) -> Measured:
        """Make the clients ready for one run."""


def preflight(
    app: App, *, on: Any = None, rounds: int | None = None, seed: int = 0, config: Mapping[str, Any] | None = None
) -> Preflight:
    """Train and evaluate one client of the first cohort in a worker process, run the app's test once, and predict.

    The settings are those of `run`. Nothing is written. Raises `HandlerFailed` where the client fails.
    """
    federation = federation_of(app, on)
    if not isinstance(federation, Scalable):
        raise SettingError("a plan is made in a simulation", hint="Pass on=umbel.Simulation(clients=100).")
    settings = laid_over(app.config, config)
    count = rounds or app.rounds
    key = Key.from_seed(seed)
    with generators_kept():
        seed_generators(key.derive("model"))
        model = app.initial_model()
        asks = first_asks(app.strategy.wrapped, model)
        if not asks:
            raise StrategyError("the strategy's first round asks nobody anything")
        ask = asks[0]
        with closing(ClientStates()) as states, _session(federation, app, settings, key, states) as session:
            cohort = drawn_by(ask.clients, federation.clients, key.derive("cohort", 1, 0))
            if not cohort:
                raise StrategyError("the first cohort is empty", hint="Plan with a sampler that draws somebody.")
            parts = [_measured(session, 0, ask, cohort, count)]
            if app.evaluate_every and "evaluate" in app.client.handlers:
                who = app.evaluate_clients or Uniform(min(100, len(federation.clients)))
                evaluation = Ask(kind="evaluate", clients=who, model=model, fold=total())
                asked = drawn_by(evaluation.clients, federation.clients, key.derive("cohort", 1, 1))
                again = -(-count // app.evaluate_every) + app.evaluate_at_start
                parts.append(_measured(session, 1, evaluation, (cohort[0], *asked[1:]), again))
            memory = _resident(os.getpid()) + max(1, federation.workers) * max(session.peak_memory(), default=0)
        began = time.perf_counter()
        app.run_test(model)
        test_seconds = time.perf_counter() - began
    workers = max(1, federation.workers)
    tests = (-(-count // app.evaluate_every) if app.evaluate_every else 0) + app.evaluate_at_start
    busy = sum(p.rounds * p.clients * p.seconds for p in parts)
    loads = max(p.clients * p.data_seconds for p in parts) * _loads(parts[0].clients, len(federation.clients), count)
    return Preflight(
        client=cohort[0],
        parts=tuple(parts),
        rounds=count,
        workers=federation.workers,
        test_seconds=test_seconds,
        seconds=(busy + loads) / workers + tests * test_seconds,
        memory=memory,
        bytes_down=sum(p.rounds * p.clients * p.bytes_down for p in parts),
        bytes_up=sum(p.rounds * p.clients * p.bytes_up for p in parts),
    )


def _loads(cohort: int, clients: int, rounds: int) -> float:
    """How many cohorts' data have to be loaded while all of it can be kept: each client is loaded once."""
    return min(float(rounds), clients / cohort)


@contextmanager
def _session(
    federation: Scalable, app: App, config: Mapping[str, Any], key: Key, states: ClientStates
) -> Iterator[Measured]:
    # One worker tells how much memory one takes; devices are not waited for.
    alone = federation.with_devices(None).with_workers(1)
    session = alone.connect(app.client, config, key.derive("task"), states, time.monotonic)
    try:
        yield session
    finally:
        session.disconnect()


def _measured(session: Measured, id: int, ask: Ask, cohort: tuple[ClientId, ...], rounds: int) -> KindCost:
    """Do one client's task twice: the first loads its data and warms up, the second tells what a task takes."""
    client = cohort[0]
    model = for_client(ask.model, client)
    params = ask.transform.send(ask.transform.init(ask.schema(client)))
    accounts = []
    for turn in range(2):
        number = 2 * id + turn
        session.open(number, ask, 1, id, params, (client,))
        task = Task(f"{number}.{client}", number, client)
        session.do(Send([task]))
        event = session.next_event()
        if event is None or isinstance(event, Failed):
            raise _failed(client, event)
        session.do(Admit([task.id], number))
        accounts.append(session.close(number).account)
    expects = for_client(ask.expects, client)
    up = 0
    if ask.kind != "evaluate" and isinstance(expects, Like):
        up = ask.transform.encoded(expects.schema(model)).nbytes
    return KindCost(
        kind=ask.kind,
        clients=len(cohort),
        rounds=rounds,
        seconds=accounts[1].training + accounts[1].folding,
        data_seconds=accounts[0].data,
        bytes_down=model.nbytes if model is not None else 0,
        bytes_up=up,
    )


def _failed(client: ClientId, event: Failed | None) -> ClientError:
    reason = event.reason if event is not None else "it gave no answer"
    found = HandlerFailed(reason, round=1, client=client)
    found.trace = event.trace if event is not None else ""
    return found


def _resident(pid: int) -> int:
    """Bytes of memory that a process holds now; 0 where the system does not say."""
    if not sys.platform.startswith("linux"):
        return 0
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0
