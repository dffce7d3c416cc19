"""Measure, and print the rows: `python -m benchmarks [--quick] [--times K] [--write] [NAME ...]`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

from . import deployment, ledger, machines, pages, private, secure, simulated, splitting, trackers
from .figures import VOID, Row, machine, plain

NAMED: dict[str, tuple[Callable[[bool, int], Iterator[Row]], int]] = {
    "imports": (simulated.imports, 11),
    "overhead": (simulated.overhead, 7),
    "noop": (simulated.noop, 5),
    "cnn": (simulated.cnn, 3),
    "millions": (simulated.millions, 5),
    "fedbuff": (simulated.fedbuff, 5),
    "command": (simulated.command, 5),
    "start": (simulated.start, 5),
    "fold": (simulated.fold, 3),
    "robust": (simulated.robust, 5),
    "partition": (splitting.partition, 5),
    "trackers": (trackers.tracked, 5),
    "ledger": (ledger.ledger, 5),
    "machines": (machines.rows, 5),
    "private": (private.rows, 5),
    "secure": (secure.rows, 3),
    **deployment.PARTS,
}
"""What can be measured, and in how many turns unless said otherwise."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print what was measured beside its bars; 1 where something could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure what Umbel costs.")
    parser.add_argument("names", nargs="*", choices=[[], *NAMED], metavar="NAME", help=f"of {', '.join(NAMED)}")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works; the figures are void")
    parser.add_argument("--times", type=int, metavar="K", help="how many turns each side has")
    parser.add_argument("--write", action="store_true", help="keep the figures, and write the pages and pictures anew")
    chosen = parser.parse_args(arguments)
    if chosen.write and chosen.quick:
        parser.error("--write is for full sizes")
    signal.signal(signal.SIGTERM, _end)
    failed = 0
    for name in chosen.names or NAMED:
        measure, times = NAMED[name]
        began = time.perf_counter()
        rows: list[Row] = []
        print(name, file=sys.stderr)
        try:
            rows += measure(chosen.quick, chosen.times or (1 if chosen.quick else times))
        except (RuntimeError, OSError, AssertionError) as error:
            failed = 1
            print(f"{name}: not measured: {error}", flush=True)
        if rows:
            print(plain(rows), end="\n\n", flush=True)
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
        if chosen.write and rows:
            pages.keep(name, rows)
    if chosen.write:
        pages.write()
    print(VOID if chosen.quick else f"Measured by `python -m benchmarks` on: {machine()}.")
    return failed


def _end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)  # so that what is measured is ended as well


if __name__ == "__main__":
    sys.exit(main())
