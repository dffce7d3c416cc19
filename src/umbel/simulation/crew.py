"""The hands of a simulated run: its worker processes, or this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..core.client import Client
from ..core.randomness import Key
from ..errors import AppError, CallerError, SettingError, UmbelError
from ..work.executor import Executor, RunKeys
from ..work.processes import ONE_THREAD, device_of
from ..work.state import ClientStates
from . import worker
from .channel import PackedMessage
from .hosts import HostedWorker, Local
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
    if not workers:
        executor = Executor(
            client,
            federation.source,
            config=config,
            keys=RunKeys(key),
            states=states,
            device=device_of(settings.device, 0),
            data_cache=settings.data_cache,
        )
        return SimulationSession(states, Local(executor, OneThread()), virtual=virtual, clock=clock)
    how = settings.start or default_start()
    prepare(how, _modules(client))
    beginning = worker.Beginning(
        client=_pickled(client),
        sources=federation.sources,
        config=dict(config),
        key=key,
        device=settings.device,
        data_cache=-(-settings.data_cache // workers),
        memory=settings.memory,
    )
    crew = Crew(workers, how, _parcel(beginning))
    pool = WorkerPool(
        crew, states.encoded, attempts=settings.attempts, stall=settings.stall, longest_step=settings.longest_step
    )
    return SimulationSession(states, pool, virtual=virtual, clock=clock)


class Crew:
    """The worker processes of one run: started together, and one by one again should they die."""

    def __init__(self, size: int, how: Start, beginning: PackedMessage) -> None:
        self.size = size
        self._how = how
        self._beginning = beginning
        self._place = worker.Workplace(
            path=list(sys.path),
            arguments=list(sys.argv),
            folder=os.getcwd(),
            environment={name: value for name, value in os.environ.items() if name not in ONE_THREAD},
        )
        self._status = Status(size, named=how == "spawn" and os.name == "nt")

    def hire(self, index: int) -> HostedWorker:
        """Start a worker."""
        process = start(index, self._status.descriptor, self._status.file, self._how)
        with suppress(EOFError):  # that it is gone is seen where its messages are read
            process.channel.post(self._place)
        return HostedWorker(index, process, self._status.row(index), self._beginning)

    def dismiss(self) -> None:
        """Let go of what they shared."""
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
