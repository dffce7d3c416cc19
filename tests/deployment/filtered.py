"""``filtered.py UNIT -- ARGUMENTS...``: `umbel` under the system calls and address families that a systemd unit allows.

It does what systemd does with ``SystemCallFilter=``, ``SystemCallErrorNumber=EPERM``, ``RestrictAddressFamilies=``,
``NoNewPrivileges=``, ``UMask=`` and ``KeyringMode=``, and nothing about files, users and capabilities.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

ALLOW, REFUSE = 0x7FFF0000, 0x00050000
EQUAL, NOT_EQUAL = 4, 1


class Compared(ctypes.Structure):
    """libseccomp's scmp_arg_cmp."""

    _fields_ = [
        ("argument", ctypes.c_uint),
        ("how", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    ]


def settings(unit: Path) -> dict[str, list[str]]:
    """What a unit sets, each as the words behind all lines of that name."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE):
        found.setdefault(name, []).extend(value.split())
    return found


def calls(names: list[str]) -> set[str]:
    """System calls by their names, those of groups such as ``@system-service`` included."""
    found = {name for name in names if not name.startswith("@")}
    for group in set(names) - found:
        said = subprocess.run(["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True)
        members = [line.strip() for line in said.stdout.splitlines()[1:]]
        found |= calls([name for name in members if name and not name.startswith("#")])
    return found


def restrict(unit: Path) -> None:
    """Have this process, and all that it starts, do what a unit allows, and nothing else."""
    given = settings(unit)
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(Compared),
    ]  # fmt: skip
    refuse = REFUSE | getattr(errno, given["SystemCallErrorNumber"][0])
    rules = ctypes.c_void_p(library.seccomp_init(refuse))

    def allow(name: str, *when: Compared) -> None:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:
            array = (Compared * max(1, len(when)))(*when)
            assert library.seccomp_rule_add_array(rules, ALLOW, number, len(when), array) == 0, name

    for name in calls(given["SystemCallFilter"]) - {"socket"}:
        allow(name)
    for family in given["RestrictAddressFamilies"]:
        allow("socket", Compared(0, EQUAL, getattr(socket, family)))
    os.umask(int(given["UMask"][0], 8))
    assert library.seccomp_load(rules) == 0  # it sets no_new_privs as well


if __name__ == "__main__":
    split = sys.argv.index("--")
    restrict(Path(sys.argv[1]))
    os.execv(sys.executable, [sys.executable, "-m", "umbel.cli", *sys.argv[split + 1 :]])
