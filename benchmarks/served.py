"""Servers that are slower than they have to be, have less memory, or let in runs that they have not started."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from umbel.server.service import running
from umbel.server.settings import ServerSettings

CGROUPS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max"),
)
"""Where groups of processes are, and the file of their limit: of the first version, and of the second."""


def served(folder: str, delay: float = 0.0, memory: int = 0, runs: list[str] | None = None) -> None:
    """Be a server that is slower, has less memory, or lets in runs that it has not started.

    `delay` is how many seconds longer each commit takes; `memory` the bytes that it and its runs may use together, of
    caches too; `runs` are those that get a token, each printed as ``run`` and its line.
    """
    if memory:
        confine(memory, Path(folder).parent.name)
    asyncio.run(_served(Path(folder), delay, runs or []))


def confine(memory: int, name: str) -> None:
    """Have this process, and all that it starts, use no more than so many bytes together. OSError where the system has
    no groups of processes for that, or this user may not make one.
    """
    place, limit = next(((place, limit) for place, limit in CGROUPS if (place / "cgroup.procs").exists()), CGROUPS[0])
    group = place / name
    group.mkdir()
    (group / limit).write_text(str(memory))
    (group / "cgroup.procs").write_text(str(os.getpid()))


def loosen(name: str) -> None:
    """Remove a group of processes that have ended."""
    for place, _ in CGROUPS:
        with suppress(OSError):
            (place / name).rmdir()


async def _served(folder: Path, delay: float, runs: list[str]) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    settings = ServerSettings(folder, listen="127.0.0.1:0", http="")
    wait = (lambda: time.sleep(delay)) if delay else None
    async with running(settings, after_commit=wait) as service:
        for run in runs:
            print("run", service.line(service.registry.tokens.issue_run("benchmark", run)))
        token = service.registry.invite("benchmark", None)
        await service.commit()
        print(service.invitation(token), flush=True)
        await stopping.wait()
