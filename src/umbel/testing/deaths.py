"""Processes by their id and the time they began, so that none is taken for another; and how to kill some, at the same
moment and for certain, or to stop one and let it go on.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Living:
    """A process that was alive when it was looked for."""

    pid: int
    began: int

    @property
    def state(self) -> str:
        """The letter by which the system knows its state; empty where it is gone, or only waited for."""
        found = _stat(self.pid)
        return "" if found is None or int(found[19]) != self.began or found[0] in "ZX" else found[0]

    @property
    def ticks(self) -> int:
        """The processor time that it has used, in the system's ticks."""
        found = _stat(self.pid)
        return 0 if found is None else int(found[11]) + int(found[12])


def living(pid: int | None) -> Living | None:
    """The process of this id; None where there is none that lives."""
    found = _stat(pid) if pid is not None else None
    return None if pid is None or found is None or found[0] in "ZX" else Living(pid, int(found[19]))


def kill(victims: Sequence[Living], going: Callable[[], bool], tired: Callable[[], None]) -> list[bool]:
    """Kill processes at the same moment; gives for each whether that is what it died of, while `going` was true.

    They are stopped first: whoever is stopped does not end by itself, so it is the signal that ends it. `tired` raises
    once there was enough waiting.
    """
    held: list[int | None] = []
    for victim in victims:
        try:
            held.append(os.pidfd_open(victim.pid))
        except ProcessLookupError:
            held.append(None)
    try:
        there = [fd is not None and victim.state != "" for fd, victim in zip(held, victims, strict=True)]
        mine = [fd if here else None for fd, here in zip(held, there, strict=True)]
        for fd in mine:
            _send(fd, signal.SIGSTOP)
        for victim, here in zip(victims, there, strict=True):
            while here and victim.state not in ("T", ""):
                tired()
        stopped = [here and victim.state == "T" for victim, here in zip(victims, there, strict=True)]
        for fd in mine:
            _send(fd, signal.SIGKILL)
        for fd in mine:
            while fd is not None and not select.select([fd], [], [], 1.0)[0]:
                tired()
        return [was and going() for was in stopped]
    finally:
        for fd in held:
            if fd is not None:
                os.close(fd)


def pause(victim: Living, seconds: float, tired: Callable[[], None]) -> bool:
    """Stop a process for so long, and let it go on; whether it was seen to stand still, and to go on. `tired` raises
    once there was enough waiting.
    """
    fd = os.pidfd_open(victim.pid)
    try:
        if victim.state == "":
            return False
        _send(fd, signal.SIGSTOP)
        while victim.state not in ("T", ""):
            tired()
        stood = victim.state == "T"
        select.select([fd], [], [], seconds)
        stood = stood and victim.state == "T"
        _send(fd, signal.SIGCONT)
        while victim.state == "T":
            tired()
        return stood and victim.state != ""
    finally:
        _send(fd, signal.SIGCONT)
        os.close(fd)


def _send(fd: int | None, number: int) -> None:
    if fd is not None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)


def _stat(pid: int) -> list[str] | None:
    """What the system says of a process, from its state on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
