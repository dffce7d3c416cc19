"""Processes as the system sees them: that one ends with its parent, and the processor time that one has used."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def die_with(parent: int | None = None) -> None:
    """Have this process killed with its parent, where the system can do that; at once where that is not `parent` any
    more.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    prctl: Callable[..., int] = ctypes.CDLL(None).prctl
    prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)  # it was gone before


def processor_ticks(pid: int) -> int:
    """The processor time of a process and of those it has waited for, of the process alone where this one is confined
    and its folder in /proc closed; 0 where the system does not tell.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except PermissionError:
        with suppress(OSError):  # a process's clock, by the number that clock_getcpuclockid(3) makes of its id
            return int(time.clock_gettime(~pid << 3 | 2) * os.sysconf("SC_CLK_TCK"))
        return 0
    except OSError:
        return 0
    return sum(map(int, fields[11:15]))
