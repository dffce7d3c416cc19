"""Starting worker processes, and telling how they ended."""

from __future__ import annotations

import atexit
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

from ..errors import InternalError, UmbelError
from ..work.processes import ONE_THREAD, described
from .channel import SHARES, Channel
from .hosts import Host, Usage

PRELOADED = ("torch", "scipy", "sklearn", "pandas")
"""Packages that are slow to import, start no threads by it, and are loaded before workers are forked where the main
process has loaded them.
"""
_BEGIN = (  # a terminal sends Ctrl-C to all processes; only the main one decides
    "import signal, sys, json; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path[:] = json.loads(sys.argv[1]); "
)
_FORKSERVER = f"{_BEGIN}from umbel.simulation.forkserver import main; "
_SPAWNED = f"{_BEGIN}from umbel.simulation.worker import main; "
_GONE = "the process that makes workers is gone"

Taken = ParamSpec("Taken")
T = TypeVar("T")
Start = Literal["forkserver", "spawn"]


def default_start() -> Start:
    """How workers are started on this system."""
    return "forkserver" if SHARES and hasattr(os, "fork") else "spawn"


class Process(Host, Usage, Protocol):
    """A process of this machine that hosts a worker."""

    @property
    def pid(self) -> int:
        """The process's id. Raises EOFError where it never came to be."""

    @property
    def usage(self) -> Process | None:
        return self if sys.platform.startswith("linux") else None

    def kill(self) -> None:
        with suppress(OSError, EOFError):
            os.kill(self.pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)

    def processor_time(self) -> int:
        try:
            with open(f"/proc/{self.pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            return 0
        return int(fields[11]) + int(fields[12])

    def peak_memory(self) -> int:
        with suppress(OSError), open(f"/proc/{self.pid}/status") as file:
            for line in file:
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) * 1024
        return 0


class Forked(Process):
    """A worker that the forkserver makes; its pid is known as soon as the forkserver answers."""

    def __init__(self, server: _Forkserver, index: int, status: int) -> None:
        self.channel, theirs = Channel.pair()
        self._server = server
        self._pid: int | None = None
        try:
            with theirs:
                server.order({"do": "fork", "index": index}, [theirs.fileno(), status], self)
        except EOFError:
            self.channel.close()
            raise

    @property
    def pid(self) -> int:
        if self._pid is None:
            self._server.read_until(self)
        assert self._pid is not None
        return self._pid

    def answered(self, answer: dict[str, Any]) -> None:
        """Take the forkserver's answer."""
        self._pid = answer["pid"]

    def ended(self) -> str:
        try:
            return described(self._server.wait(self.pid))
        except (OSError, EOFError):
            return "was killed together with the process that had started it"

    def dismiss(self) -> None:
        with suppress(OSError, EOFError):
            self._server.order({"do": "dismiss", "pid": self.pid}, [], None)


class Spawned(Process):
    """A worker with an interpreter of its own, connected over the loopback interface; for systems without fork."""

    def __init__(self, index: int, status: int, status_file: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            token = secrets.token_hex(16)
            told = {"port": listener.getsockname()[1], "token": token, "status": status_file or status, "index": index}
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"{_SPAWNED}main()", _path()],
                pass_fds=() if status_file else (status,),
                stdin=subprocess.PIPE,
                env=_environment(),
            )
            assert self._process.stdin is not None
            with suppress(OSError):  # that it has ended is noticed below
                self._process.stdin.write(json.dumps(told).encode() + b"\n")
                self._process.stdin.flush()  # and left open: its end tells the worker that this process is gone
            try:
                self.channel = Channel(self._accepted(listener, token))
            except BaseException:
                self._process.kill()
                self.dismiss()
                raise

    def _accepted(self, listener: socket.socket, token: str) -> socket.socket:
        listener.settimeout(0.2)
        while True:
            try:
                connected, _ = listener.accept()
            except TimeoutError:
                if self._process.poll() is not None:
                    raise InternalError(f"a worker process {described(self._process.returncode)}") from None
                continue
            connected.settimeout(10)
            with suppress(OSError):
                if secrets.compare_digest(connected.recv(len(token), socket.MSG_WAITALL), token.encode()):
                    connected.settimeout(None)
                    return connected
            connected.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self) -> str:
        code = self._process.wait()
        self._hang_up()
        return described(code)

    def dismiss(self) -> None:
        self._hang_up()
        self._process.wait()

    def _hang_up(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()


def start(index: int, status: int, status_file: str, how: Start) -> Process:
    """Start a worker. Its status words are in the descriptor, or in the file where descriptors cannot be passed on."""
    if how == "spawn":
        return Spawned(index, status, status_file)
    with suppress(EOFError):
        return Forked(_server(), index, status)
    return Forked(_server(), index, status)  # by another one: the first had just died


def prepare(how: Start, modules: Sequence[str]) -> None:
    """Begin to load these, which workers will need."""
    if how == "forkserver":
        _server().preload(list(modules))


def _in_step(method: Callable[Concatenate[_Forkserver, Taken], T]) -> Callable[Concatenate[_Forkserver, Taken], T]:
    """Ask and read, one thread at a time. Broken off, as by an interrupt, this may leave an answer for whoever asks
    next, or have lost one: nobody asks this process again then, and the next worker is made by another one.
    """

    @wraps(method)
    def step(server: _Forkserver, /, *given: Taken.args, **named: Taken.kwargs) -> T:
        with server.lock:  # in no generator, which an interrupt may leave with the lock
            if server.broken:
                raise EOFError(_GONE)
            try:
                return method(server, *given, **named)
            except BaseException:
                server.broken = True
                raise

    return step


class _Forkserver:
    """The forkserver as the main process sees it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.lock = threading.RLock()  # runs in several threads share this process
        self._preloaded: set[str] = set()
        self._waiting: list[Forked] = []
        self.broken = False
        self._socket, theirs = socket.socketpair()
        self._lines = self._socket.makefile("rb")
        with theirs:
            code = f"{_FORKSERVER}main({theirs.fileno()})"
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, _path()],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=_environment(),
            )

    @property
    def alive(self) -> bool:
        """Whether it runs, and belongs to this process."""
        return not self.broken and self.owner == os.getpid() and self._process.poll() is None

    def preload(self, modules: list[str]) -> None:
        """Have it import these."""
        if new := [name for name in modules if name not in self._preloaded]:
            self._preloaded.update(new)
            self.order({"do": "preload", "modules": new}, [], None)

    @_in_step
    def order(self, what: dict[str, Any], descriptors: list[int], answered: Forked | None) -> None:
        """Send a request without waiting for what comes of it."""
        data = json.dumps(what).encode() + b"\n"
        try:
            if descriptors:
                socket.send_fds(self._socket, [data], descriptors)
            else:
                self._socket.sendall(data)
        except OSError as error:
            raise EOFError(_GONE) from error
        if answered is not None:
            self._waiting.append(answered)

    @_in_step
    def read_until(self, process: Forked) -> None:
        """Read answers until this process's is there. Raises EOFError."""
        while process in self._waiting:
            self._waiting.pop(0).answered(self._answer())

    @_in_step
    def wait(self, pid: int) -> int:
        """The exit code of a worker that ends. Raises EOFError."""
        while self._waiting:
            self.read_until(self._waiting[0])
        self.order({"do": "wait", "pid": pid}, [], None)
        return int(self._answer()["status"])

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except (OSError, ValueError):  # a reset, or closed here meanwhile
            line = b""
        if not line.endswith(b"\n"):
            raise EOFError(_GONE)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it; its workers end with it."""
        self._lines.close()
        self._socket.close()
        if self.owner == os.getpid():
            self._process.wait()


_known: list[_Forkserver] = []
_lock = threading.Lock()


def _server() -> _Forkserver:
    """The forkserver of this process, started when it is first needed, and again should it have died."""
    with _lock:
        if _known and not _known[0].alive:
            with suppress(OSError, UmbelError):
                _known.pop().close()
        if not _known:
            _known.append(_Forkserver())
        return _known[0]


@atexit.register
def _close() -> None:
    while _known:
        _known.pop().close()


def _path() -> str:
    """Where modules are found, as workers are told; what is no text is passed over, as by import itself."""
    return json.dumps([place for place in sys.path if isinstance(place, str)])


def _environment() -> dict[str, str]:
    return {**os.environ, **ONE_THREAD}
