"""The process that makes workers: it has loaded what they need, and forks one whenever it is asked to.

So a worker starts in milliseconds and shares its modules' memory with the others. Nothing of a user's program has run
here, and no thread, so that forking is safe. It ends, and kills the workers it has made, as soon as the process that
started it is gone, however that came about.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
import warnings
from contextlib import suppress
from typing import Any

from ..work.vitals import die_with
from . import worker


def main(descriptor: int) -> None:
    """Serve requests, one line of JSON each, on this socket until it closes."""
    for name in ("cloudpickle", "numpy.random"):  # so that no worker has to load them
        importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; only the main process decides
    with socket.socket(fileno=descriptor) as control:
        Forkserver(control).serve()


class Forkserver:
    """Answers `preload`, `fork`, `wait`, which tells how a worker ended, and `dismiss`: nobody will ask that."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._alive: set[int] = set()
        self._dismissed: set[int] = set()

    def serve(self) -> None:
        """Answer until the other end is gone, then end all workers."""
        try:
            while request := self._next():
                order, descriptors = request
                kind = order["do"]
                if kind == "preload":
                    for name in order["modules"]:
                        with suppress(Exception):
                            importlib.import_module(name)
                            if name == "torch":
                                importlib.import_module("umbel.torch")
                elif kind == "fork":
                    self._fork(order, descriptors)
                elif kind == "wait":
                    self._answer({"status": self._wait(order["pid"])})
                elif kind == "dismiss" and order["pid"] in self._alive:
                    self._dismissed.add(order["pid"])
                self._bury()
        except OSError:
            pass
        finally:
            for pid in self._alive:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def _next(self) -> tuple[dict[str, Any], list[int]] | None:
        data, descriptors, _, _ = socket.recv_fds(self._control, 1, 4)
        if not data:
            return None
        while not data.endswith(b"\n"):
            more = self._control.recv(1)
            if not more:
                return None
            data += more
        return json.loads(data), descriptors

    def _answer(self, value: object) -> None:
        self._control.sendall(json.dumps(value).encode() + b"\n")

    def _fork(self, order: dict[str, Any], descriptors: list[int]) -> None:
        gc.collect()
        gc.freeze()  # else the first collection in every worker would copy all pages
        parent = os.getpid()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pid = os.fork()
        if pid == 0:
            self._become_worker(order, descriptors, parent)
        self._alive.add(pid)
        for descriptor in descriptors:
            os.close(descriptor)
        self._answer({"pid": pid})

    def _become_worker(self, order: dict[str, Any], descriptors: list[int], parent: int) -> None:
        code = 1
        try:
            die_with(parent)
            self._control.close()
            connection, status = descriptors
            worker.serve(socket.socket(fileno=connection), status, int(str(order["index"])))
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _bury(self) -> None:
        """Take the dismissed from the system's table, those of them that have ended."""
        for pid in list(self._dismissed):
            if os.waitpid(pid, os.WNOHANG)[0]:
                self._dismissed.discard(pid)
                self._alive.discard(pid)

    def _wait(self, pid: object) -> int:
        assert isinstance(pid, int)
        self._alive.discard(pid)
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status)
