"""Starts `umbel` so that its process, or that of a run which its server starts, is killed at points of its code.

``points.py FILE WHO -- ARGUMENTS...``: WHO is ``self`` or ``run``; FILE holds a list of points as JSON, each
``[function, when, count, text]``. A function is ``module:Class.method``, `when` is ``before`` or ``after``: the process
is killed at the call that is the `count`-th of those whose arguments hold `text`. The next process is killed at the
next point; how many there were is the length of the file ``FILE.done``.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


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


def main() -> None:
    """Start what the arguments say."""
    cut = sys.argv.index("--")
    file, who = sys.argv[1:cut]
    if who == "run":
        from umbel.server import supervision

        begin = f"import runpy; runpy.run_path({__file__!r})['install']({file!r}); "
        supervision._BEGIN = supervision._BEGIN.replace("import runpy; ", begin)
        assert begin in supervision._BEGIN
    else:
        install(file)
    sys.argv = ["umbel", *sys.argv[cut + 1 :]]
    sys.path.pop(0)  # the folder of this file
    from umbel.cli import main as umbel

    umbel()


if __name__ == "__main__":
    main()
