"""The process that makes workers, asked over its own socket."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress

import pytest
from tests.conftest import PATIENCE

from umbel.simulation.status import Status

pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open") or not hasattr(socket, "send_fds"), reason="needs fork and pidfd_open"
)


class Served:
    """A forkserver, and what can be asked of it."""

    def __init__(self, status):
        self.status = status
        self.ours, theirs = socket.socketpair()
        self.lines = self.ours.makefile("rb")
        self.channels = []
        with theirs:
            code = "import sys, json; sys.path[:] = json.loads(sys.argv[1])\n"
            code += f"from umbel.simulation.forkserver import main; main({theirs.fileno()})"
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, json.dumps(sys.path)],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                text=True,
            )

    def order(self, descriptors=(), **what):
        data = json.dumps(what).encode() + b"\n"
        if descriptors:
            socket.send_fds(self.ours, [data], list(descriptors))
        else:
            self.ours.sendall(data)

    def answer(self):
        return json.loads(self.lines.readline())

    def fork(self, index=0):
        """A new worker: its pid, a descriptor that is readable once it has ended, and the socket to it."""
        mine, theirs = socket.socketpair()
        self.channels.append(mine)
        with theirs:
            self.order([theirs.fileno(), self.status.descriptor], do="fork", index=index)
        pid = self.answer()["pid"]
        return pid, os.pidfd_open(pid), mine

    def close(self):
        self.lines.close()
        self.ours.close()


@contextmanager
def served():
    status = Status(2, named=False)
    server = Served(status)
    try:
        yield server
    finally:
        for channel in server.channels:
            channel.close()
        server.close()
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(PATIENCE)
        server.process.kill()
        server.process.wait()
        server.process.stderr.close()
        status.close()


def ended(*watched):
    """Whether all of these processes end."""
    left = set(watched)
    while left:
        found, _, _ = select.select(left, [], [], PATIENCE)
        if not found:
            break
        left -= set(found)
    for descriptor in watched:
        os.close(descriptor)
    return not left


def test_workers_are_its_children_and_end_with_their_socket():
    with served() as server:
        workers = [server.fork(index) for index in range(2)]
        for pid, _, _ in workers:
            with open(f"/proc/{pid}/stat") as file:
                assert int(file.read().rpartition(")")[2].split()[1]) == server.process.pid
        for pid, watched, channel in reversed(workers):
            channel.close()
            server.order(do="wait", pid=pid)
            assert server.answer() == {"status": 0}
            assert ended(watched)


def test_how_a_worker_ended():
    with served() as server:
        pid, watched, _ = server.fork()
        os.kill(pid, signal.SIGUSR1)
        server.order(do="wait", pid=pid)
        assert server.answer() == {"status": -signal.SIGUSR1}
        assert ended(watched)


def test_a_worker_that_breaks_says_why():
    with served() as server:
        pid, watched, channel = server.fork()
        channel.sendall(bytes(24))  # no message at all
        server.order(do="wait", pid=pid)
        assert server.answer() == {"status": 1}
        assert ended(watched)
        server.close()
        assert "Traceback" in server.process.stderr.read()


def test_it_ends_with_its_socket_and_takes_all_workers_along():
    with served() as server:
        watched = [server.fork(index)[1] for index in range(2)]
        server.close()
        assert server.process.wait(PATIENCE) == 0
        assert ended(*watched)


@pytest.mark.parametrize("torn", [b"{", b'{"do": "preload", "modules": []}'])
def test_half_a_request_is_no_request(torn):
    with served() as server:
        server.ours.sendall(torn)
        server.close()
        assert server.process.wait(PATIENCE) == 0


def test_workers_do_not_outlive_it():
    with served() as server:
        watched = [server.fork(index)[1] for index in range(2)]
        server.process.kill()
        assert ended(*watched)


def test_ctrl_c_is_for_the_main_process():
    with served() as server:
        pid, watched, channel = server.fork()
        for one in (pid, server.process.pid):
            os.kill(one, signal.SIGINT)
        channel.close()
        server.order(do="wait", pid=pid)
        assert server.answer() == {"status": 0}
        assert ended(watched)


def test_modules_are_loaded_once_for_all_and_what_cannot_be_is_passed_over():
    with served() as server:
        server.order(do="preload", modules=["no_such_module", "colorsys"])
        pid, watched, channel = server.fork()
        with open(f"/proc/{pid}/maps") as file:
            assert "python" in file.read()
        channel.close()
        server.order(do="wait", pid=pid)
        assert server.answer() == {"status": 0}
        assert ended(watched)


def test_workers_that_nobody_asks_for_are_no_zombies():
    with served() as server:
        pid, watched, channel = server.fork()
        channel.close()
        assert ended(watched)
        assert os.path.exists(f"/proc/{pid}")  # ended, and still in the table
        for _ in range(2):  # the second time it is long gone
            server.order(do="dismiss", pid=pid)
        server.fork()
        assert not os.path.exists(f"/proc/{pid}")
