"""The hands of a simulated run: its worker processes, or this process."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ..core.client import Client
from ..core.randomness import Key
from ..errors import AppError, CallerError, SettingError, UmbelError
from ..work.executor import DataCache, Executor, RunKeys
from ..work.processes import ONE_THREAD, device_of
from ..work.state import ClientStates
from . import worker
from .channel import PackedMessage
from .hosts import Host, HostedWorker, Local
from .pool import WorkerPool
from .processes import PRELOADED, Start, default_start, prepare, start
from .session import SimulationSession
from .status import Status
from .threads import OneThread

if TYPE_CHECKING:
    from .federation import Simulation


def connect(
    federation: Simulation,
    client: Client,
    config: Mapping[str, Any],
    key: Key,
    states: ClientStates,
    clock: Callable[[], float],
) -> SimulationSession:
    """Make the clients of a `Simulation` ready for one run. With workers, their start goes on while this returns."""
    if worker.active:
        hint = 'The client\'s module starts a run when it is imported: put that under `if __name__ == "__main__":`.'
        raise CallerError("a worker process would start a run of its own", hint=hint)
    virtual = None
    if federation.devices is not None:
        from .virtual import DeviceTurns  # when it is needed: most simulations have no device model

        virtual = DeviceTurns(federation.devices, key, dict(config))
    workers, settings = federation.workers, federation.settings
    warmth = federation.warmth if settings.memory is None else None  # what was loaded before would count
    if not workers:
        local = _local(federation, client, config, RunKeys(key), states, warmth)
        return SimulationSession(states, local, virtual=virtual, clock=clock)
    how = settings.start or default_start()
    prepare(how, _modules(client))
    beginning = worker.Beginning(
        client=_pickled(client),
        sources=federation.sources,
        device=settings.device,
        data_cache=-(-settings.data_cache // workers),
        memory=settings.memory,
        warm=warmth is not None,
    )
    place = _workplace()
    plan = (beginning.client, workers, settings, how, place)
    crew = None if warmth is None else warmth.take(plan)
    if crew is None:
        keep = None if warmth is None else partial(warmth.keep, plan)
        crew = Crew(workers, how, _parcel(beginning), place, keep)
    crew.begin(dict(config), key)
    pool = WorkerPool(
        crew, states.encoded, attempts=settings.attempts, stall=settings.stall, longest_step=settings.longest_step
    )
    return SimulationSession(states, pool, virtual=virtual, clock=clock)


def _local(
    federation: Simulation,
    client: Client,
    config: Mapping[str, Any],
    keys: RunKeys,
    states: ClientStates,
    warmth: Warmth | None,
) -> Local:
    """This process, as it does tasks itself; what it has loaded is kept for the next run of the same client."""
    settings = federation.settings
    plan = (client, settings)
    data = None if warmth is None else warmth.take(plan)
    if data is None:
        data = DataCache(client, federation.source, settings.data_cache, keys, outlives=warmth is not None)
    else:
        data.begin(keys)
    executor = Executor(
        client,
        federation.source,
        config=config,
        keys=keys,
        states=states,
        device=device_of(settings.device, 0),
        data=data,
    )
    return Local(executor, OneThread(), None if warmth is None else partial(warmth.keep, plan, data))


class Warmth:
    """What one run leaves for the next: a crew with its workers, or the data that this process has loaded. `plan` says
    for which runs it is good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._plan: Any = None
        self._kept: Any = None
        self._over = False

    def take(self, plan: Any) -> Any:
        """What there is for a run by this plan, which is the run's from now on; None for nothing."""
        with self._lock:
            kept, self._kept = self._kept, None
        if self._plan == plan:
            return kept
        _end(kept)
        return None

    def keep(self, plan: Any, what: Any) -> None:
        """Have this ready for another run."""
        with self._lock:
            before, self._kept, self._plan = self._kept, what, plan
        _end(before)
        if self._over:
            self.end()

    def end(self) -> None:
        """Keep nothing any more."""
        self._over = True
        with self._lock:
            kept, self._kept = self._kept, None
        _end(kept)


def _end(what: Any) -> None:
    if isinstance(what, Crew):
        what.end()


def _workplace() -> worker.Workplace:
    return worker.Workplace(
        path=list(sys.path),
        arguments=list(sys.argv),
        folder=os.getcwd(),
        environment={name: value for name, value in os.environ.items() if name not in ONE_THREAD},
    )


class Crew:
    """The worker processes of a run: started together, and one by one again should they die. With `keep` those that are
    idle after a run wait for the next.
    """

    def __init__(
        self,
        size: int,
        how: Start,
        beginning: PackedMessage,
        place: worker.Workplace,
        keep: Callable[[Crew], None] | None = None,
    ) -> None:
        self.size = size
        self._how = how
        self._beginning = beginning
        self._place = place
        self._keep = keep
        self._idle: dict[int, Host] = {}
        self._duty: PackedMessage | None = None
        self._status = Status(size, named=how == "spawn" and os.name == "nt")

    def begin(self, config: dict[str, Any], key: Key) -> None:
        """A run begins."""
        self._duty = PackedMessage(("run", config, key))

    def hire(self, index: int) -> HostedWorker:
        """A worker that waits, or else one that is started now."""
        assert self._duty is not None
        host = self._idle.pop(index, None)
        if host is None:
            host = start(index, self._status.descriptor, self._status.file, self._how)
            with suppress(EOFError):  # that it is gone is seen where its messages are read
                host.channel.post(self._place)
                host.channel.post(self._beginning)
        return HostedWorker(index, host, self._status.row(index), self._duty)

    def keep(self, worker: HostedWorker) -> bool:
        """Have a worker wait for the next run, if there may be one."""
        if self._keep is not None:
            self._idle[worker.index] = worker.host
        return self._keep is not None

    def dismiss(self) -> None:
        """The run is over: let go of what workers shared, unless some wait for the next."""
        if self._duty is not None:
            self._duty.close()
        if self._idle and self._keep is not None:
            self._keep(self)
        else:
            self.end()

    def end(self) -> None:
        """End those that wait, and let go of what they shared."""
        for host in self._idle.values():
            host.channel.close()
            host.dismiss()
        self._idle.clear()
        self._beginning.close()
        self._status.close()


def _modules(client: Client) -> list[str]:
    """What workers will need of what is slow to import and loaded here."""
    found = [name for name in PRELOADED if name in sys.modules]
    if "torch" in found and ("torch._dynamo" in sys.modules or any(map(_steps, client.handlers.values()))):
        found.append("torch._dynamo")  # a second half of PyTorch, which the first optimizer loads
    return found


def _steps(handler: Any) -> bool:
    """Whether a handler's file speaks of optimizers."""
    try:
        with open(handler.__code__.co_filename, "rb") as file:
            return b"optim" in file.read()
    except (AttributeError, OSError):
        return False


def _parcel(beginning: worker.Beginning) -> PackedMessage:
    try:
        return PackedMessage(beginning)
    except (UmbelError, MemoryError):
        raise
    except Exception as error:
        raise SettingError(
            f"the clients' sources cannot be sent to worker processes: {type(error).__name__}: {error}",
            hint="Use sources that can be pickled, such as indices or paths, or workers=0.",
        ) from error


def _pickled(client: Client) -> bytes:
    import cloudpickle

    try:
        data: bytes = cloudpickle.dumps(client)
    except Exception as error:
        raise AppError(
            f"the client cannot be sent to worker processes: {type(error).__name__}: {error}",
            hint="Open files, connections and locks where they are used, or keep the client in a module of its own. "
            "Simulation(..., workers=0), or UMBEL_WORKERS=0, trains in this process.",
        ) from error
    return data
