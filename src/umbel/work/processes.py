"""Processes that host clients: where they compute, and how they ended."""

from __future__ import annotations

import signal
import sys


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
    """Where one of several computes: with `"auto"` they take turns with the GPUs that PyTorch sees, if it is loaded."""
    if device != "auto":
        return device
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return f"cuda:{index % torch.cuda.device_count()}"
    return "cpu"
