"""Starts `umbel` so that its process, or that of a run which its server starts, is killed at one point of its code.

``points.py FLAG WHO FUNCTION WHEN COUNT TEXT -- ARGUMENTS...``: WHO is ``self`` or ``run``, FUNCTION is
``module:Class.method``, WHEN is ``before`` or ``after``, and it is killed at the call that is the COUNT-th of those whose
arguments hold TEXT, once: then there is the file FLAG.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any


def install(flag: str, function: str, when: str, count: str, text: str) -> None:
    """Kill this process at a point, unless that has happened."""
    if Path(flag).exists():
        return
    module, _, name = function.partition(":")
    owner, _, method = name.partition(".")
    place = getattr(importlib.import_module(module), owner)
    original = getattr(place, method)
    left = int(count)

    def passed(*arguments: Any, **named: Any) -> bool:
        nonlocal left
        left -= text in str((arguments, named))
        return left == 0

    def kill() -> None:
        with open(flag, "x") as file:
            os.fsync(file.fileno())
        os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(original)
    def replaced(*arguments: Any, **named: Any) -> Any:
        due = left > 0 and passed(*arguments, **named)
        if due and when == "before":
            kill()
        found = original(*arguments, **named)
        if due:
            kill()
        return found

    setattr(place, method, replaced)


def main() -> None:
    """Start what the arguments say."""
    cut = sys.argv.index("--")
    flag, who, *point = sys.argv[1:cut]
    if who == "run":
        from umbel.server import supervision

        begin = f"import runpy; runpy.run_path({__file__!r})['install'](*{(flag, *point)!r}); "
        supervision._BEGIN = supervision._BEGIN.replace("import runpy; sys.argv.pop(0)", begin + "sys.argv.pop(0)")
        assert begin in supervision._BEGIN
    else:
        install(flag, *point)
    sys.argv = ["umbel", *sys.argv[cut + 1 :]]
    sys.path.pop(0)  # the folder of this file
    from umbel.cli import main as umbel

    umbel()


if __name__ == "__main__":
    main()
