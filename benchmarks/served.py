"""Servers that are slower than they have to be, have less memory, or let in runs that they have not started."""

from __future__ import annotations

import asyncio
import resource
import signal
import time
from pathlib import Path

from umbel.server.service import running
from umbel.server.settings import ServerSettings


def served(folder: str, delay: float = 0.0, memory: int = 0, share: int = 0, runs: list[str] | None = None) -> None:
    """Be a server that is slower, has less memory, or lets in runs that it has not started.

    `delay` is how many seconds longer each commit takes; `memory` the bytes of data (RLIMIT_DATA) that it and a run of
    its may have, of which `share` are its own; `runs` are those that get a token, each printed as ``run`` and its line.
    """
    if memory:
        resource.setrlimit(resource.RLIMIT_DATA, (share, memory - share))
    asyncio.run(_served(Path(folder), delay, runs or []))


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
