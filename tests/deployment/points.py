"""Starts `umbel` so that its process, or that of a run which its server starts, is killed at points of its code.

``points.py FILE WHO -- ARGUMENTS...``: WHO is ``self`` or ``run``; FILE holds a list of points as JSON, each
``[function, when, count, text]``. A function is ``module:Class.method``, `when` is ``before`` or ``after``: the process
is killed at the call that is the `count`-th of those whose arguments hold `text`. The next process is killed at the
next point; how many there were is the length of the file ``FILE.done``.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

BEGIN = "begin"


def install(file: str) -> None:
    """Kill this process at the next point, if there is one."""
    flag = Path(f"{file}.done")
    done = flag.stat().st_size if flag.exists() else 0
    points = json.loads(Path(file).read_text())
    if done == len(points):
        return
    function, when, count, text = points[done]
    module, _, name = function.partition(":")
    owner, _, method = name.partition(".")
    place = getattr(importlib.import_module(module), owner)
    original = getattr(place, method)
    left = count

    def passed(*arguments: Any, **named: Any) -> bool:
        nonlocal left
        left -= text in str((arguments, named))
        return left == 0

    def kill() -> None:
        with flag.open("a") as written:
            written.write(".")
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


def install_in_runs(file: str) -> None:
    """Have the processes of runs begin with this program."""
    from umbel.work.confinement import Confinement

    original = Confinement.command
    Path(f"{file}.done").touch()

    def command(self: Confinement, module: str, *arguments: str) -> tuple[str, ...]:
        reach = dataclasses.replace(self, read=[file], write=[f"{file}.done"])
        python, apart, unbuffered, _, *rest = original(reach, module, *arguments)
        return (python, apart, unbuffered, __file__, BEGIN, file, *rest)

    setattr(Confinement, "command", command)  # noqa: B010


def begin() -> None:
    """Be the process of a run."""
    from umbel.work import confinement

    file, original = sys.argv[2], confinement.runpy.run_module
    del sys.argv[1:3]

    def run_module(*arguments: Any, **named: Any) -> Any:
        install(file)
        return original(*arguments, **named)

    setattr(confinement.runpy, "run_module", run_module)  # noqa: B010
    confinement.main()


def main() -> None:
    """Start what the arguments say."""
    if sys.argv[1] == BEGIN:
        begin()
        return
    cut = sys.argv.index("--")
    file, who = sys.argv[1:cut]
    if who == "run":
        install_in_runs(file)
    else:
        install(file)
    sys.argv = ["umbel", *sys.argv[cut + 1 :]]
    sys.path.pop(0)  # the folder of this file
    from umbel.cli import main as umbel

    umbel()


if __name__ == "__main__":
    main()
