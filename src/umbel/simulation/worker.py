"""A worker process: hosts clients, does the tasks that it is handed, folds what is admitted, gives partials back."""

from __future__ import annotations

import gc
import io
import json
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core import encoding
from ..core.ask import Ask
from ..core.client import Unwanted
from ..core.randomness import Key
from ..core.task import Admit, Failed
from ..errors import AppError, ClientId, StrategyError, UmbelError
from ..work.account import Account
from ..work.blame import own_frame, traced
from ..work.executor import DataCache, Executor, RunKeys
from ..work.processes import ONE_THREAD, device_of
from ..work.seeding import note_generators
from .channel import Channel, PackedMessage
from .status import BATCH, CANCELLED, PLACE, STEPS, row_of

active = False
"""Whether this process is a worker."""


@dataclass(slots=True)
class Workplace:
    """Where a worker works. It has to know that before it can load anything else."""

    path: list[str]
    folder: str
    environment: dict[str, str]
    arguments: list[str] = field(default_factory=lambda: list(sys.argv))

    def move_in(self) -> None:
        """Make it this process's."""
        for name in os.environ.keys() - self.environment.keys() - ONE_THREAD.keys():
            del os.environ[name]
        os.environ.update(self.environment)
        sys.path[:] = self.path
        sys.argv[:] = self.arguments
        with suppress(OSError):
            os.chdir(self.folder)


@dataclass(slots=True)
class Beginning:
    """What a worker has to know before it works for any run; a `warm` one works for several."""

    client: bytes
    sources: Any
    device: str
    data_cache: int
    memory: int | None
    warm: bool = False


Portion = tuple[int, list[ClientId], bool, dict[ClientId, bytes], dict[ClientId, dict[str, Any]], list[Admit]]
"""Tasks of one ask, as plain as can be, for there are many: the ask, the clients, whether to fold their results at
once, their states, what the ask sends to each alone, and those results that are to be folded elsewhere or discounted.
"""


Contents = tuple[tuple[Any, ...], dict[ClientId, bytes], dict[ClientId, str], Account]
"""What is given back of an ask: the contents of its partial, clients' new states, refused updates, the account."""


@dataclass(slots=True)
class Report:
    """What came of a batch: the tasks that failed, those that were not begun, and the seconds that each took."""

    batch: int
    failed: dict[str, Failed] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class Shipped:
    """The states that came with the tasks, as an executor looks them up."""

    def __init__(self) -> None:
        self.now: dict[ClientId, bytes] = {}

    def get(self, client: ClientId) -> dict[str, Any]:
        """The state of a client; empty for one that has none."""
        data = self.now.get(client)
        return {} if data is None else dict(encoding.decode(data))


class Routed:
    """What an ask sends to each client, looked up as if it were the function that the strategy wrote."""

    def __init__(self) -> None:
        self.now: dict[ClientId, Any] = {}

    def __call__(self, client: ClientId) -> Any:
        return self.now[client]


def main() -> None:
    """Be a worker that was started with an interpreter of its own: what to connect to is on the standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    told = json.loads(sys.stdin.readline())
    connected = socket.create_connection(("127.0.0.1", told["port"]))
    connected.sendall(told["token"].encode())
    threading.Thread(target=_end_with_input, daemon=True).start()
    status = told["status"]
    serve(connected, status if isinstance(status, int) else os.open(status, os.O_RDWR), told["index"])


def _end_with_input() -> None:
    with suppress(OSError):
        while os.read(0, 1):  # not sys.stdin.read(), whose lock an interpreter that ends would wait for
            pass
    os._exit(1)


def serve(connected: socket.socket, status: int, index: int) -> None:
    """Do what comes over the socket until it closes."""
    global active
    active = True
    channel = Channel(connected)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: _let_go(connected))
    try:
        channel.receive().move_in()
        sys.stdout, sys.stderr = Told(channel, "stdout"), Told(channel, "stderr")
        try:
            worker = Worker(channel, _received(channel), row_of(status, index), index)
        except UmbelError as error:
            channel.send(("fault", error))
            return
        try:
            worker.serve()
        finally:
            worker.executor.release()
    except EOFError:
        pass
    finally:
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__


def _let_go(connected: socket.socket) -> None:
    """In a process that a client forks: this worker's end has to be seen although that process lives on."""
    connected.close()
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__


class Told(io.TextIOBase):
    """Prints in the main process what is printed here, line by line."""

    def __init__(self, channel: Channel, name: str) -> None:
        self._channel, self._name, self._line = channel, name, ""
        self._lock = threading.Lock()

    encoding = "utf-8"
    errors = "backslashreplace"

    def writable(self) -> bool:
        """It can be written to."""
        return True

    def fileno(self) -> int:
        """The descriptor of this process's own stream, for those who cannot do with a Python object."""
        return int(self._own().fileno())

    @property
    def buffer(self) -> Any:
        """Where bytes go: to this process's own stream."""
        return self._own().buffer

    def reconfigure(self, **options: Any) -> None:
        """There is nothing to configure: the main process writes."""

    def _own(self) -> Any:
        return sys.__stdout__ if self._name == "stdout" else sys.__stderr__

    def write(self, text: str) -> int:
        """Pass on the lines that are whole."""
        with self._lock:
            self._line += text
            if "\n" in self._line:
                whole, _, self._line = self._line.rpartition("\n")
                self._tell(f"{whole}\n")
        return len(text)

    def flush(self) -> None:
        """Pass on what is there of a line."""
        with self._lock:
            if self._line:
                rest, self._line = self._line, ""
                self._tell(rest)

    def _tell(self, text: str) -> None:
        with suppress(EOFError):
            self._channel.send(("printed", self._name, text))


class Worker:
    """The tasks of one run after the other as one process does them."""

    def __init__(self, channel: Channel, beginning: Beginning, row: memoryview, index: int) -> None:
        self._channel = channel
        self._row = row
        self._beginning = beginning
        self._sources = beginning.sources
        self._device = device_of(beginning.device, index)
        self._data: DataCache | None = None
        self._orders: dict[str, Callable[..., None]] = {
            "run": self._run,
            "open": self._open,
            "do": self._do,
            "admit": self._admit,
            "cancel": self._cancel,
            "close": self._close,
            "forget": self._forget,
        }
        self._client = _unpickled(beginning.client)
        _limit_memory(beginning.memory)
        note_generators()  # which `gc.freeze` would hide
        gc.collect()
        gc.freeze()  # what the client's modules made stays; see `runs.conductor`

    def serve(self) -> None:
        """Answer until the main process is gone, or an error ends the run."""
        while True:
            try:
                kind, *rest = _received(self._channel)
                self._orders[kind](*rest)
            except UmbelError as error:
                self._channel.send(("fault", _placed(error)))
                return  # the run is over

    def _run(self, config: dict[str, Any], key: Key) -> None:
        """Begin to work for a run."""
        keys, cache, warm = RunKeys(key), self._beginning.data_cache, self._beginning.warm
        if self._data is None:
            self._data = DataCache(self._client, self._source, cache, keys, outlives=warm)
        else:
            self._data.begin(keys)
        self._states = Shipped()
        self._routes: dict[int, dict[str, Routed]] = {}
        self.executor = Executor(
            self._client,
            self._source,
            config=config,
            keys=keys,
            states=self._states,
            device=self._device,
            on_step=self._step,
            data=self._data,
        )

    def _source(self, client: ClientId) -> Any:
        if isinstance(self._sources, int):
            return {"index": client, "count": self._sources}
        return self._sources[client]

    def _open(self, id: int, ask: Ask, routed: Sequence[str], round: int, number: int, params: Any) -> None:
        self._routes[id] = {name: Routed() for name in routed}
        own: dict[str, Any] = dict(self._routes[id])
        self.executor.open(id, replace(ask, **own), round, number, params)

    def _do(self, batch: int, portions: list[Portion]) -> None:
        self._row[PLACE] = 0
        self._row[BATCH] = batch
        report = Report(batch)
        for ask, clients, folded, states, sent, admits in portions:
            self._states.now = states
            for client, own in sent.items():
                for name, value in own.items():
                    self._routes[ask][name].now[client] = value
            at_once = self.executor.at_once(ask) if folded else 1
            special = {task: admit for admit in admits for task in admit.tasks}
            for start in range(0, len(clients), at_once):
                self._chunk(ask, clients[start : start + at_once], report, folded, special)
        self._row[PLACE] = 0
        sys.stdout.flush()
        sys.stderr.flush()
        for routes in self._routes.values():
            for route in routes.values():
                route.now.clear()
        self._channel.send(("report", report, self.executor.take_account()))

    def _chunk(
        self, ask: int, clients: list[ClientId], report: Report, folded: bool, special: dict[str, Admit]
    ) -> None:
        """Do tasks, then check and fold their results."""
        outcomes = self.executor.run_all(ask, clients, self._begins, fold=folded)
        for client, failed in zip(clients, outcomes, strict=False):
            task = f"{ask}.{client}"
            if failed is not None:
                report.failed[task] = failed
            elif task in special:
                self.executor.admit(special[task])
        report.seconds += self.executor.seconds
        report.skipped += [f"{ask}.{client}" for client in clients[len(outcomes) :]]

    def _begins(self) -> bool:
        """Note what is being done, unless nobody wants it any more."""
        row = self._row
        if row[CANCELLED] >= row[BATCH]:
            return False
        row[STEPS] = 0
        row[PLACE] += 1
        return True

    def _step(self) -> None:
        self._row[STEPS] += 1
        if self._row[CANCELLED] >= self._row[BATCH]:
            raise Unwanted

    def _admit(self, commands: list[Admit]) -> None:
        for command in commands:
            self.executor.admit(command)

    def _cancel(self, tasks: list[str]) -> None:
        self.executor.cancel(tasks)

    def _close(self, id: int) -> None:
        opened = self.executor.close(id)
        told: Contents = (opened.partial.contents(), opened.states, opened.refused, self.executor.take_account())
        try:
            parcel = PackedMessage(("partial", id, told))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise StrategyError(
                f"what the fold {opened.ask.fold.name} has made of updates cannot be sent: {error}",
                round=opened.round,
                hint="Accumulate in arrays, numbers, lists and dictionaries. Or use workers=0.",
            ) from error
        self._channel.send(parcel)
        parcel.close()
        # Should another worker die now, what it held of this ask may be done here.
        self.executor.open(id, opened.ask, opened.round, opened.number, opened.params)

    def _forget(self, asks: set[int]) -> None:
        """Forget all asks but these."""
        self.executor.forget(asks)
        self._routes = {id: routes for id, routes in self._routes.items() if id in asks}


def _received(channel: Channel) -> Any:
    """The next message. Raises `AppError` for one that cannot be loaded."""
    try:
        return channel.receive()
    except (EOFError, UmbelError):
        raise
    except Exception as error:
        raise AppError(
            f"a worker process cannot load what it was sent: {type(error).__name__}: {error}",
            hint="Sources, configs, folds and transforms must be importable from a module. Or use workers=0.",
        ) from error


def _placed(error: UmbelError) -> UmbelError:
    """The error with a note of where in the user's code it arose, and its traceback as text."""
    error.trace = traced(error)
    if own := own_frame(error.__cause__ or error):
        error.add_note(f"{Path(own.filename).name}:{own.lineno}: {own.line or ''}".rstrip(": "))
    return error


def _unpickled(data: bytes) -> Any:
    try:
        return pickle.loads(data)
    except UmbelError:
        raise
    except (Exception, SystemExit) as error:
        raise AppError(
            f"a worker process cannot load the client: {type(error).__name__}: {error}",
            hint="Workers import the client's module anew; whatever it needs must be importable. Or use workers=0.",
        ) from error


def _limit_memory(limit: int | None) -> None:
    if limit is None:
        return
    try:
        import resource
    except ImportError:
        return
    kind = resource.RLIMIT_AS
    with suppress(OSError, ValueError):
        if sys.platform.startswith("linux"):
            kind = resource.RLIMIT_DATA
            limit += int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
