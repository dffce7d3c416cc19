"""What the machine itself takes for the same: plain sockets and a synced file for a round, a plain copy for a model."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

PIECE = 4 << 20
MESSAGE = 64
ECHO = """
import socket, sys
end = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
while data := end.recv(1 << 16):
    end.sendall(data)
"""


def plain_rounds(processes: int, messages: int, rounds: int, folder: Path) -> list[float]:
    """The seconds of rounds in which each of so many processes is sent messages and sends them back, in plain TCP, and
    one line is written and synced.
    """
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=processes))
        log = stack.enter_context((folder / "limit.log").open("wb", buffering=0))
        command = [sys.executable, "-S", "-c", ECHO, str(server.getsockname()[1])]
        for _ in range(processes):
            stack.callback(subprocess.Popen(command).wait)
        ends = [stack.enter_context(server.accept()[0]) for _ in range(processes)]
        for end in ends:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        seconds = []
        for _ in range(rounds):
            began = time.perf_counter()
            for end in ends:
                for _ in range(messages):
                    end.sendall(bytes(MESSAGE))
            for end in ends:
                left = MESSAGE * messages
                while left:
                    left -= len(end.recv(left))
            log.write(bytes(200))
            os.fsync(log.fileno())
            seconds.append(time.perf_counter() - began)
        return seconds


def copied(size: int, folder: Path) -> float:
    """The seconds that it takes to write so many bytes, sync, read and hash them, a piece after the other."""
    path, piece = folder / "limit.bin", memoryview(os.urandom(PIECE))
    try:
        began = time.perf_counter()
        with path.open("wb", buffering=0) as file:
            for start in range(0, size, PIECE):
                file.write(piece[: size - start])
            os.fsync(file.fileno())
        hashed, into = hashlib.sha256(), memoryview(bytearray(PIECE))
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(into):
                hashed.update(into[:count])
        return time.perf_counter() - began
    finally:
        path.unlink(missing_ok=True)
