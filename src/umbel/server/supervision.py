"""Run processes: started with what they may know, watched, started again where they died, and ended."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import site
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InternalError, StorageError, UmbelError
from ..wire.limits import PRINTED_BYTES
from ..work import confinement
from ..work.confinement import Confinement
from ..work.processes import first_of

MODULE = "umbel.cli.runner"
LOG = "run.log"
"""What a run process prints, in the run's folder; what was before it is in ``run.log.1``."""
FINAL = frozenset({0, 2, 3, 4})
"""Exit codes by which a run process says that starting it again would end alike; see `umbel --help`."""
NOT_STARTED = 127
"""Stands for the exit code of a process that the system would not start."""
ARITHMETIC = ("OPENBLAS_", "MKL_", "NPY_")
"""Families of variables on which the bits of a result may depend."""
THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)

_DRAINED = 1.0  # seconds for the last of what a dead process printed, where something of it still lives


@dataclass(frozen=True)
class Exit:
    """How a run process ended: its exit code, or minus the signal; `again` says whether it will be started again."""

    run: str
    code: int
    again: bool


@dataclass(frozen=True)
class Restarts:
    """When a dead run process is started again: after `first` seconds, doubling up to `most`, less a random part of up
    to half; not after `tries` times in a row without a committed round between.
    """

    tries: int = 3
    first: float = 0.5
    most: float = 30.0

    def delay(self, tried: int, draw: float) -> float:
        """The seconds to wait after so many tries; `draw` is from [0, 1)."""
        return min(self.most, self.first * 2.0**tried) * (1 - draw / 2)


class Output:
    """A file that takes what a process prints; past `most` bytes it is set aside, in the place of the one before.

    A disk that is full loses output and stops nobody.
    """

    def __init__(self, path: Path, most: int) -> None:
        self.path = path
        self.most = most
        self._file = self._opened()
        self._size = self._file.tell()

    def write(self, data: bytes) -> None:
        """Append."""
        with suppress(OSError):
            if self._size and self._size + len(data) > self.most:
                self._file.close()
                os.replace(self.path, self.path.with_name(self.path.name + ".1"))
                self._file = self._opened()
                self._size = 0
            self._size += self._file.write(data)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _opened(self) -> Any:
        return open(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", buffering=0)


@dataclass(frozen=True)
class Places:
    """A run's folders: all of `folder` is the server's, and the run may read it; it writes below `written` alone.

    `given` is where the server links what the run has asked for, which the run may read and remove.
    """

    folder: Path
    written: tuple[str, ...] = ("home", "tmp", "run", "link")

    @property
    def given(self) -> Path:
        """Where blobs are linked for the run."""
        return self.folder / "given"

    @property
    def handed(self) -> Path:
        """Where the run links files that it hands over."""
        return self.folder / "link" / "handed"

    def make(self) -> None:
        """Make what is not there. Raises OSError."""
        for place in (*(self.folder / name for name in self.written), self.given, self.handed):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)

    def confined(self, hidden: Sequence[str]) -> Confinement:
        """What the run's process may reach."""
        work = [str(self.folder / name) for name in self.written]
        return Confinement(own=[str(self.folder)], work=work, given=[str(self.given)], hidden=hidden)


def environment(folder: Path, extras: Mapping[str, str]) -> dict[str, str]:
    """The environment of a run process: where programs are, a home of its own, how many threads; nothing else of the
    server's but `extras`.
    """
    found = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder / "home"),
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        "TMPDIR": str(folder / "tmp"),
    }
    found.update({n: v for n, v in os.environ.items() if n in THREADS or n.startswith(ARITHMETIC)})
    source = str(Path(__file__).parents[2])
    if source not in site.getsitepackages():
        found["PYTHONPATH"] = source
    if site.ENABLE_USER_SITE:
        found["PYTHONUSERBASE"] = site.getuserbase()  # packages of the server's user, whose home it no longer is
    return {**found, **extras}


@dataclass(eq=False)
class _Held:
    """A run whose process is kept alive."""

    run: str
    folder: Path
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    order: bytes = field(repr=False)
    output: Output
    grace: float
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    pid: int | None = None
    task: asyncio.Task[int] | None = None


class _Child(asyncio.SubprocessProtocol):
    def __init__(self, output: Output) -> None:
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self._output = output

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._output.write(data)

    def process_exited(self) -> None:
        self.exited.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set_result(None)


class Supervisor:
    """Starts, watches and ends the processes of runs; belongs to one event loop.

    A run process is ``python -m module argv...`` in the home of the run's folder and a session of its own, with a
    scrubbed environment; it reaches its own folder and programs, and nothing else of this user's (`work.confinement`).
    One line of JSON comes on its standard input: ``run``, ``token``, ``address`` and ``authority``; then nothing, until
    the server's death closes it. On Linux that death also kills it, and all that it has started. It is started again as
    `restarts` says, unless its exit code is one of `final`. `committed` tells how many rounds of a run are committed by
    now; `on_exit` is called once for each end of a process, and with `again` False once it is over. `log_bytes` bounds
    what it prints; `hidden` are folders of which it sees nothing but its own, even where Python is installed there.
    """

    def __init__(
        self,
        *,
        module: str = MODULE,
        committed: Callable[[str], int] = lambda run: 0,
        on_exit: Callable[[Exit], None] = lambda end: None,
        restarts: Restarts = Restarts(),
        final: frozenset[int] = FINAL,
        grace: float = 10.0,
        log_bytes: int = PRINTED_BYTES,
        hidden: Sequence[str] = (),
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.module = module
        self.restarts = restarts
        self.final = final
        self.grace = grace
        self.log_bytes = log_bytes
        self.hidden = [*hidden, *confinement.secrets()]
        self._committed = committed
        self._on_exit = on_exit
        self._pause = pause
        self._draw = random.Random().random
        self._runs: dict[str, _Held] = {}

    @property
    def running(self) -> dict[str, int | None]:
        """The runs whose processes are kept, with the process's id, None while there is none."""
        return {run: held.pid for run, held in self._runs.items()}

    def start(
        self,
        run: str,
        folder: str | os.PathLike[str],
        argv: Sequence[str] = (),
        *,
        token: str,
        address: str,
        authority: str = "",
        extras: Mapping[str, str] | None = None,
    ) -> None:
        """Keep a process for a run from now on, until it is done, gives up or is stopped.

        `authority` is the certificate by which the server at `address` is known, empty for plaintext; `extras` are
        further variables of its environment. Raises `StorageError` for a folder that cannot be written, and
        `InternalError` where the run has a process.
        """
        if run in self._runs:
            raise InternalError(f"run {run} has a process", run=run)
        folder = Path(folder).resolve()
        try:
            Places(folder).make()
            output = Output(folder / LOG, self.log_bytes)
        except OSError as error:
            raise StorageError(f"{folder} cannot be written: {error.strerror}", run=run) from error
        order = {"run": run, "token": token, "address": address, "authority": authority}
        held = _Held(
            run,
            folder,
            tuple(argv),
            environment(folder, extras or {}),
            json.dumps(order).encode() + b"\n",
            output,
            self.grace,
        )
        self._runs[run] = held
        held.task = asyncio.get_running_loop().create_task(self._keep(held))

    async def stop(self, run: str, grace: float | None = None) -> int | None:
        """End a run's process: SIGTERM, and SIGKILL for its group after `grace` seconds.

        Returns its exit code; None where the run has no process.
        """
        held = self._runs.get(run)
        if held is None or held.task is None:
            return None
        held.grace = self.grace if grace is None else grace
        held.stopping.set()
        return await asyncio.shield(held.task)

    async def close(self, grace: float | None = None) -> None:
        """Stop all runs."""
        await asyncio.gather(*(self.stop(run, grace) for run in list(self._runs)))

    async def _keep(self, held: _Held) -> int:
        tried, code = 0, NOT_STARTED
        try:
            seen = self._committed(held.run)
            while True:
                code = await self._lived(held)
                done = self._committed(held.run)
                tried, seen = (0 if done > seen else tried), done
                if held.stopping.is_set() or code in self.final or tried >= self.restarts.tries:
                    break
                self._on_exit(Exit(held.run, code, True))
                await first_of(held.stopping.wait(), self._pause(self.restarts.delay(tried, self._draw())))
                if held.stopping.is_set():
                    break
                tried += 1
        except UmbelError as error:  # how far it has come is not to be had
            held.output.write(f"The run is not gone on with: {error.message}\n".encode())
        finally:
            held.output.close()
            del self._runs[held.run]
        self._on_exit(Exit(held.run, code, False))
        return code

    async def _lived(self, held: _Held) -> int:
        """Start a process and return its exit code, when nothing of it is left."""
        command = Places(held.folder).confined(self.hidden).command(self.module, *held.argv)
        try:
            transport, child = await asyncio.get_running_loop().subprocess_exec(
                lambda: _Child(held.output),
                *command,
                stderr=asyncio.subprocess.STDOUT,
                cwd=held.folder / "home",
                env=held.environment,
                start_new_session=True,
            )
        except OSError as error:
            held.output.write(f"The process of the run cannot be started: {error}\n".encode())
            return NOT_STARTED
        held.pid = transport.get_pid()
        try:
            transport.get_pipe_transport(0).write(held.order)  # type: ignore[union-attr]
            await self._ended(held, child)
        finally:
            confinement.end(held.pid)
            held.pid = None
            await asyncio.wait({child.closed}, timeout=_DRAINED)
            transport.close()
        code = transport.get_returncode()
        assert code is not None
        return code

    async def _ended(self, held: _Held, child: _Child) -> None:
        await first_of(held.stopping.wait(), asyncio.shield(child.exited))
        if not child.exited.done() and held.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(held.pid, signal.SIGTERM)
            await asyncio.wait({child.exited}, timeout=held.grace)
            if not child.exited.done():
                confinement.end(held.pid)
                await child.exited
