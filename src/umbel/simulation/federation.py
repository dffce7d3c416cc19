"""A simulated federation: its clients are indices, or a list of sources, and run in worker processes or in this one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..core.client import Client
from ..core.randomness import Key
from ..errors import ClientId, SettingError
from ..runs.federation import Federation
from ..work.state import ClientStates

if TYPE_CHECKING:
    from .crew import Warmth
    from .fleets import Fleet
    from .session import SimulationSession

WORKERS = "UMBEL_WORKERS"
"""The environment variable that says how many workers `"auto"` means."""
PRESETS = ("phones", "boards", "workstations")


class HostSettings(NamedTuple):
    """How clients are hosted: settings of a `Simulation`, which says what they mean."""

    data_cache: int
    device: str
    memory: int | None
    stall: float | None
    attempts: int
    start: Literal["forkserver", "spawn"] | None
    longest_step: float | None = None


LONGEST_STEP = 1800.0
"""Seconds that a client may take in a worker without a `ctx.step()`, where nothing else is said."""


class Simulation(Federation):
    """Clients that exist only on this machine.

    - `clients`: how many, or their sources: a list of them, or a mapping of names to sources. Of a number, client i has
      the source ``{"index": i, "count": clients}``.
    - `workers`: how many processes train; 0 for this process, where a debugger's breakpoints work; `"auto"` for one a
      core, or what the environment variable UMBEL_WORKERS says. The result is the same, bit for bit.
    - `devices`: a `Fleet`, or the name of one of its presets (`"phones"`, `"boards"`, `"workstations"`): time is then
      virtual, and passes as it would on these devices.
    - `data_cache`: the data of how many clients is kept in memory, by all workers together.
    - `device`: what handlers find in `ctx.device`; `"auto"`: GPUs in turn where PyTorch is loaded and sees some, else
      the CPU.
    - `memory`: how many bytes a worker may allocate beyond what it starts with (Linux; elsewhere as far as the system
      helps).
    - `stall`: after so many seconds without progress (a `ctx.step()`, or, where a handler never calls it, time of the
      processor) a worker is ended, and its client tried again.
    - `longest_step`: after so many seconds without a `ctx.step()`, whatever time of the processor was used, a worker is
      ended too, and its client tried again: an endless loop is one that works; None for never.
    - `disk_wait`: for how many seconds a run waits for room where its disk is full; None for as long as it takes. By
      default it does not, and ends with a `StorageError`: it can be resumed.
    - `attempts`: how many workers a client may end before it has failed.
    - `start`: how workers start: `"forkserver"`, the default where there is fork, or `"spawn"`.
    """

    def __init__(
        self,
        clients: int | Sequence[Any] | Mapping[str, Any],
        *,
        workers: int | Literal["auto"] = "auto",
        devices: Fleet | str | None = None,
        data_cache: int = 1000,
        device: str = "auto",
        memory: int | None = None,
        stall: float | None = None,
        longest_step: float | None = LONGEST_STEP,
        attempts: int = 3,
        start: Literal["forkserver", "spawn"] | None = None,
        disk_wait: float | None = 0.0,
    ) -> None:
        _check_clients(clients)
        for name, value, least in (("data_cache", data_cache, 0), ("attempts", attempts, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                what = "number of clients" if name == "data_cache" else "whole number of at least 1"
                raise SettingError(f"a simulation's {name} is a {what}, not {value!r}")
        if workers != "auto" and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 0):
            raise SettingError(f"a simulation's workers are a number of processes or 'auto', not {workers!r}")
        if memory is not None and (isinstance(memory, bool) or not isinstance(memory, int) or memory < 1):
            raise SettingError(f"a simulation's memory is a number of bytes, not {memory!r}", hint="Such as 2 * 10**9.")
        for name, seconds in (("stall", stall), ("longest_step", longest_step)):
            if seconds is not None and (
                isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0
            ):
                raise SettingError(f"a simulation's {name} is a positive number of seconds, not {seconds!r}")
        if start not in (None, "forkserver", "spawn"):
            raise SettingError(f"a simulation's workers start by 'forkserver' or 'spawn', not {start!r}")
        self.sources = clients
        self._workers = workers
        self.warmth: Warmth | None = None
        self.disk_wait = disk_wait
        self.settings = HostSettings(data_cache, device, memory, stall, attempts, start, longest_step)
        self.devices = _fleet(devices)
        count = clients if isinstance(clients, int) else len(clients)
        self.clients = tuple(clients) if isinstance(clients, Mapping) else range(count)

    def __repr__(self) -> str:
        return f"Simulation(clients={len(self.clients)})"

    @property
    def workers(self) -> int:
        """How many worker processes a run gets; 0: it has none."""
        if self._workers != "auto":
            return self._workers
        said = os.environ.get(WORKERS, "auto")
        if said != "auto":
            if not said.isdecimal():
                raise SettingError(f"the environment variable {WORKERS} is a number or 'auto', not {said!r}")
            return int(said)
        return min(cores(), len(self.clients))

    def plan(self) -> dict[str, str]:
        """What results depend on besides the software: how tasks are done."""
        return {"plan": "one task at a time in a process", "threads": "1"}

    def describe(self) -> dict[str, Any]:
        """The settings as a plain tree, for the log."""
        return {"workers": self.workers, "devices": None if self.devices is None else self.devices.spec}

    def with_workers(self, workers: int | Literal["auto"]) -> Simulation:
        """The same clients with another number of workers."""
        twin = Simulation.__new__(Simulation)
        twin.__dict__.update(self.__dict__)
        twin._workers = workers
        return twin

    def with_clients(self, clients: int | Sequence[Any] | Mapping[str, Any]) -> Simulation:
        """Other clients, with all other settings the same."""
        twin = Simulation(clients, workers=self._workers, **self.settings._asdict())
        twin.devices = self.devices
        return twin

    def with_devices(self, devices: Fleet | str | None) -> Simulation:
        """The same clients on other devices."""
        twin = self.with_workers(0)
        twin._workers = self._workers
        twin.devices = _fleet(devices)
        return twin

    @contextmanager
    def warm(self) -> Iterator[Simulation]:
        """Let runs have the same workers meanwhile, one run after the other, and the data that was loaded before.

        Each comes to the same bits as by itself: what a data handler drew random numbers for is loaded anew for another
        seed. Only what handlers change in their data, or in globals of their modules, is there in the next run as well,
        as it is in the next task. Runs of other clients, in another folder or environment, with a limit of memory, or
        that go on at the same time, have workers of their own.
        """
        if self.warmth is not None:
            yield self
            return
        from .crew import Warmth

        self.warmth = Warmth()
        try:
            yield self
        finally:
            warmth, self.warmth = self.warmth, None
            warmth.end()

    def source(self, client: ClientId) -> Any:
        """What a client's data handler is given."""
        if isinstance(self.sources, int):
            return {"index": client, "count": self.sources}
        return self.sources[client]  # type: ignore[index]

    def connect(
        self,
        client: Client,
        config: Mapping[str, Any],
        key: Key,
        states: ClientStates,
        clock: Callable[[], float] = time.monotonic,
    ) -> SimulationSession:
        """Make the clients ready for one run. With workers, their start goes on while this returns."""
        from .crew import connect

        return connect(self, client, config, key, states, clock)


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_clients(clients: Any) -> None:
    if isinstance(clients, bool) or (isinstance(clients, int) and clients < 1):
        raise SettingError(f"a simulation has at least one client, not {clients!r}")
    if not isinstance(clients, int | Sequence | Mapping) or isinstance(clients, str | bytes):
        raise SettingError(f"a simulation's clients are a number, a list of sources or a mapping, not {clients!r:.60}")
    if not isinstance(clients, int) and not len(clients):
        raise SettingError("a simulation has at least one client; this list of sources is empty")
    if isinstance(clients, Mapping) and not all(isinstance(name, str) for name in clients):
        raise SettingError("the names of a simulation's clients are text", hint="Or pass a list of sources.")


def _fleet(devices: Any) -> Fleet | None:
    if devices is None:
        return None
    from .fleets import Fleet

    if isinstance(devices, Fleet):
        return devices
    if devices in PRESETS:
        return Fleet.preset(devices)
    raise SettingError(
        f"a simulation's devices are a Fleet, or the name of a preset, not {devices!r:.60}",
        hint=f"Presets are {', '.join(PRESETS)}.",
    )
