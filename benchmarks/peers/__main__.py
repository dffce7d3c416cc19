"""Run all sides by turns and print the tables: `python -m benchmarks.peers [--quick] [--times K] [WORKLOAD ...]`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec

from ..measure import ROOT, Row, machine
from ..measure import table as bar_table
from . import table
from .launch import Outcome, Side, launch
from .workloads import ALL, SLOW, WORKLOADS, Model, Workload, initial, quick

RESULTS = ROOT / "benchmarks" / "peers.md"


def sides(flwr: str, pfl: str) -> dict[str, Side]:
    """All sides by name, in the order of the table; flwr and pfl have a Python of their own."""
    here = sys.executable
    return {
        side.name: side
        for side in (
            Side("loop-1", "PyTorch loop, 1 process", "loop_side", here, {"PEERS_PROCESSES": "1"}),
            Side("loop-2", "PyTorch loop, 2 processes", "loop_side", here, {"PEERS_PROCESSES": "2"}),
            Side("umbel", "Umbel, 2 workers", "umbel_side", here, {}),
            Side("flwr", "flwr, 2 actors", "flwr_side", flwr, {}),
            Side("pfl", "pfl, 2 processes", "pfl_side", pfl, {}),
        )
    }


def turns(
    workload: Workload, chosen: Sequence[Side], times: int, start: Callable[[Side, Workload], Outcome]
) -> Iterator[dict[str, Outcome]]:
    """Run the sides on a workload so many times, every second time backwards."""
    order = list(chosen)
    for _ in range(times):
        turn = {}
        for side in order:
            began = time.perf_counter()
            turn[side.name] = outcome = start(side, workload)
            told = outcome.why or f"{table.per_client(outcome, workload):.3f} ms a client"
            print(f"{workload.name}: {side.title}: {told} ({time.perf_counter() - began:.0f} s)", file=sys.stderr)
        order.reverse()
        yield turn


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, compare and print."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if chosen.write and (chosen.quick or chosen.workloads or chosen.sides):
        parser.error("--write is for all workloads and sides at full size")
    known = sides(chosen.flwr, chosen.pfl)
    if unknown := set(chosen.sides or ()) - known.keys():
        parser.error(f"there is no side {sorted(unknown)[0]}; there are {', '.join(known)}")
    texts, pages, rows = [], [], []
    for name in chosen.workloads or WORKLOADS:
        workload = quick(WORKLOADS[name]) if chosen.quick else WORKLOADS[name]
        taking = [
            side
            for side in known.values()
            if side.name in (chosen.sides or workload.sides)
            and side.name in workload.sides
            and (chosen.slow or chosen.quick or (name, side.name) not in SLOW)
        ]
        done = list(turns(workload, taking, chosen.times, lambda s, w: launch(s, w, quick=chosen.quick)))
        text, page = _section(workload, done, taking)
        texts.append(text)
        pages.append(page)
        print(f"\n{text}\n", flush=True)
        rows += table.bars(workload, done)
    print(_bars(rows, markdown=False, void=chosen.quick))
    if chosen.write:
        RESULTS.write_text(
            "\n\n".join(["# Beside peers", *_preface(chosen.times), *pages, _bars(rows, markdown=True)]) + "\n"
        )


def _section(workload: Workload, turns: Sequence[table.Turn], taking: Sequence[Side]) -> tuple[str, str]:
    """A workload's table as text and in Markdown."""
    judged = table.verdicts(workload, turns, initial(workload), _judge(workload))
    rows = table.cells(workload, turns, taking, judged)
    beneath = table.notes(turns, taking)
    text = "\n".join([workload.title, "", table.plain(rows), "", *(f"  {line}" for line in beneath)])
    page = "\n".join([f"## {workload.title}", "", table.markdown(rows), "", *(f"- {line}" for line in beneath)])
    return text, page


def _judge(workload: Workload) -> Callable[[Model], float] | None:
    """How the accuracy of a model is found; None where there is nothing to learn, or no torch."""
    if workload.model == "noop" or find_spec("torch") is None:
        return None
    from . import nets

    return lambda model: nets.accuracy(workload, model)


def _preface(times: int) -> list[str]:
    return [
        f"Measured by `make bench-peers` on: {machine()}.",
        f"Each side ran {times} times in a fresh process, by turns, every second time in reverse order, one thread "
        "for arrays in each process. Milliseconds are means of the rounds after the first, then medians of the turns; "
        "ratios are medians of the ratios within the turns. Memory is the peak of all processes of a side together "
        "(PSS, shared pages counted once). Start to exit is of the whole command. All sides ask the same clients in "
        "the same rounds, of the same made data; one program judges all final models, and `agrees` says how far a "
        "model is from that of the first side, as a share of what was learned.",
    ]


def _bars(rows: Sequence[Row], *, markdown: bool, void: bool = False) -> str:
    if void:
        return "A smoke test (--quick): these figures say nothing."
    return bar_table(rows, markdown=markdown) if rows else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description="Measure Umbel beside a plain loop, flwr and pfl."
    )
    parser.add_argument(
        "workloads",
        nargs="*",
        choices=[[], *WORKLOADS],
        metavar="WORKLOAD",
        help=f"of {', '.join(w.name for w in ALL)}",
    )
    parser.add_argument("--quick", action="store_true", help="few clients, to see that it works; the figures are void")
    parser.add_argument("--slow", action="store_true", help="flwr with 100,000 clients as well: minutes a round")
    parser.add_argument("--times", type=int, default=2, metavar="K", help="how often each side runs (2)")
    parser.add_argument("--sides", nargs="+", metavar="SIDE", help="these sides only")
    parser.add_argument("--write", action="store_true", help="write the tables to benchmarks/peers.md as well")
    for peer in ("flwr", "pfl"):
        default = os.environ.get(f"PEERS_{peer.upper()}") or str(ROOT / f".venv-{peer}" / "bin" / "python")
        parser.add_argument(f"--{peer}", default=default, metavar="PYTHON", help=f"the Python that has {peer}")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a side is ended as well
    main()
