"""Processes that host clients: where they compute, how they ended, and waiting for one thing or another."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable
from typing import Any

ONE_THREAD = dict.fromkeys(
    (
        "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS",
        "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "NPROC",
    ),
    "1",
) | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}  # fmt: skip
"""The environment of a process that hosts clients: they share the processors, and no bits depend on their number; they
share GPUs, of whose memory JAX (for whose threads is NPROC) and TensorFlow would take nearly all at once.
"""


def described(code: int) -> str:
    """An exit status in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    more = {"SIGKILL": ", perhaps because memory ran out", "SIGSEGV": ", a segmentation fault"}.get(name, "")
    return f"was killed by {name}{more}"


def device_of(device: str, index: int) -> str:
    """Where one of several computes: with `"auto"` they take turns with the GPUs that PyTorch sees, if it is loaded, so
    that several share one where there are more of them than GPUs.
    """
    if device != "auto":
        return device
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return f"cuda:{index % torch.cuda.device_count()}"
    return "mps" if torch is not None and torch.backends.mps.is_available() else "cpu"


async def first_of(*waits: Awaitable[Any]) -> None:
    """Wait for the first of these; the others are cancelled."""
    tasks = {asyncio.ensure_future(wait) for wait in waits}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
