"""Print the table of benchmarks: `python -m benchmarks [--quick] [--markdown] [--write] [ROW ...]`.

Rows of a deployment can be asked for one by one: `deployment.round`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

from . import deployment, folding, millions, overhead, simulation, startup
from .measure import ROOT, Row, machine, table

MODULES: dict[str, Callable[[bool], list[Row]]] = {
    "overhead": overhead.rows,
    "folding": folding.rows,
    "millions": millions.rows,
    "startup": startup.rows,
    "simulation": simulation.rows,
    "deployment": deployment.rows,
}
PARTS: dict[str, Callable[[bool], list[Row]]] = {
    f"deployment.{part}": partial(deployment.rows, only=[part]) for part in deployment.PARTS
}
RESULTS = ROOT / "benchmarks" / "results.md"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print what was measured beside the bars."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure what Umbel costs.")
    parser.add_argument(
        "rows", nargs="*", choices=[[], *MODULES, *PARTS], metavar="ROW", help=f"of {', '.join([*MODULES, *PARTS])}"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works; the figures are void")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.add_argument("--write", action="store_true", help="write it to benchmarks/results.md as well")
    chosen = parser.parse_args(arguments)
    if chosen.write and (chosen.quick or chosen.rows):
        parser.error("--write is for the whole table at full size")
    rows = []
    for name in chosen.rows or MODULES:
        began = time.perf_counter()
        rows += {**MODULES, **PARTS}[name](chosen.quick)
        print(f"{name}: measured in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    how = (
        "Times are medians: CPU-seconds, taken by turns, where something is compared, and else seconds on the wall, "
        "unless a row says otherwise; one thread for arrays."
    )
    where = f"Measured by `python -m benchmarks` on: {machine()}."
    if chosen.quick:
        how = "A smoke test (--quick): these figures say nothing."
    print("\n".join([table(rows, markdown=chosen.markdown), "", where, how]))
    if chosen.write:
        text = ["# Benchmarks", "", where, "", how, "", table(rows, markdown=True), ""]
        RESULTS.write_text("\n".join(text))


if __name__ == "__main__":
    main()
