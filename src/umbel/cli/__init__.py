"""The command line: `overview` lists its commands and exit codes, `faults` says how errors are shown."""

from __future__ import annotations

import sys

from .overview import OVERVIEW

__all__ = ["main"]


def main() -> None:
    """Run the command in `sys.argv` and exit; nothing but a panel and an exit code ever reaches the shell."""
    if sys.argv[1:] in (["--help"], ["-h"]):
        print(OVERVIEW, end="")
        sys.exit(0)
    from .faults import reported
    from .program import program

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Unicode gets question marks, not a crash
    with reported(json="--json" in sys.argv, exits=sys.exit):
        program(prog_name="umbel")
