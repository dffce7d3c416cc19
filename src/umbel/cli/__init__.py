"""The command line. `umbel --help` lists the commands.

Exit codes:

====  ==================================================================================================================
   0  done
   1  a bug in Umbel; `--debug` shows where
   2  the command line itself: an unknown command or option, a value that is not of its kind
   3  something to change: the app, its strategy, a setting, the data, the name of a run (`CallerError`)
   4  the run failed: nobody's update came in its first round, its last, or too many in a row (`RunFailed`)
   5  the disk: full, not writable, a damaged file (`StorageError`)
   6  the server: not reached, lost, or it does not speak as it should (`PeerError`)
   7  the server says no: an unknown token, a role that may not (`Refused`)
 130  stopped by Ctrl-C; `umbel resume` goes on
 143  stopped by SIGTERM; `umbel resume` goes on
====  ==================================================================================================================
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command in `sys.argv` and exit; nothing but a panel and an exit code ever reaches the shell."""
    from .faults import reported
    from .program import program

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Unicode gets question marks, not a crash
    with reported(exits=sys.exit):
        program(prog_name="umbel")
