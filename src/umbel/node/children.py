"""The children of a node: what runs are hosted in, started on demand, kept warm, watched, ended."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

from ..store.blobs import Blobs
from ..transport.tasks import Tasks
from ..wire import messages as m
from .processes import scrubbed
from .run_host import ChildSettings, RunHost, Unpack
from .signals import Event, Start, Stop


class Children:
    """Hosts runs in child processes, as many for each as it has tasks at once; one does one task at a time.

    `tell` gets the machine's events, never from within a call. `unpack` opens clients' archives. Blobs that tasks refer
    to are in `blobs`, and so are the updates of those that are done, held for the run.
    """

    def __init__(self, settings: ChildSettings, blobs: Blobs, unpack: Unpack, tell: Callable[[Event], None]) -> None:
        self._settings = settings
        self._blobs = blobs
        self._unpack = unpack
        self._tell = tell
        self._runs: dict[str, RunHost] = {}
        self._ending = Tasks()
        self._numbers = itertools.count(1)
        self._looking: asyncio.TimerHandle | None = None
        self._environment = scrubbed(settings.environment)
        shutil.rmtree(settings.folder / "runs", ignore_errors=True)  # of a node that was killed

    def prepare(self, run: str, spec: m.RunSpec, archive: Path) -> None:
        """Unpack the client and start the run's first child; `HostReady`, `HostRefused` or `HostDied` follows."""
        self.end_run(run)
        folder = self._settings.folder / "runs" / f"{run}.{next(self._numbers)}"
        host = RunHost(run, folder, self.log_of(run), self._settings, self._environment, self._blobs, self._tell)
        self._runs[run] = host
        host.prepare(spec.config, archive, self._unpack)
        self._look_later()

    def start(self, effect: Start) -> None:
        """Do a task; one `TaskDone` or `TaskFailed` follows."""
        self._runs[effect.run].start(effect)
        self._look_later()

    def stop(self, effect: Stop) -> None:
        """End a task at its next step, or else with its child."""
        if effect.run in self._runs:
            self._runs[effect.run].stop(effect)

    def end_run(self, run: str) -> None:
        """End all that a run has here; nothing more is told of it."""
        host = self._runs.pop(run, None)
        if host is not None:
            host.end()
            self._ending.begin(host.cleared())

    async def close(self) -> None:
        """End all children and wait until they are gone."""
        for run in list(self._runs):
            self.end_run(run)
        if self._looking is not None:
            self._looking.cancel()
        await self._ending.over()

    def log_of(self, run: str) -> Path:
        """The file that a run's clients print to."""
        return self._settings.folder / "logs" / f"{run}.log"

    def _look_later(self) -> None:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(self._settings.look_every, self._look)

    def _look(self) -> None:
        """See what the runs' children do, as long as there are runs."""
        self._looking = None
        for host in self._runs.values():
            host.look()
        if self._runs:
            self._look_later()
