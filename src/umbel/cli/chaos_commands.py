"""`umbel chaos`: drills with a deployment of real processes, and the comparison of bits."""

from __future__ import annotations

import json as jsons
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ..errors import RunFailed, SettingError
from ..testing.chaos import DrillVerdict, Order, Subject, drill, unavailable
from .application import load
from .faults import stop_signals, warn
from .terminal import plural, stderr, stdout

KINDS = ("server", "run", "node", "relay", "child")


def chaos(references: Sequence[str], order: dict[str, Any], drills: str, folder: Path | None, *, json: bool) -> None:
    """Drill, show how it goes, and print what was seen to have happened. Raises `RunFailed` in the end where a run
    did not finish, or finished with other bits.
    """
    if not sys.platform.startswith("linux"):
        raise SettingError("umbel chaos looks for processes in /proc, which this system has not", hint="Use Linux.")
    wanted = tuple(dict.fromkeys(name.strip() for name in drills.split(",") if name.strip()))
    try:
        Order(**order, drills=wanted)
    except ValueError as error:
        raise SettingError(str(error), hint="umbel chaos --help says what there is.") from error
    subjects = [Subject(_absolute(reference), load(reference).app) for reference in references]
    place = Path(tempfile.mkdtemp(prefix="umbel-chaos-")) if folder is None else folder.resolve()
    place.mkdir(parents=True, exist_ok=True)
    if any(place.glob("run-*")):
        raise SettingError(f"{place} has the logs of drills already", hint="Name another folder, or remove it.")
    skipped = unavailable(wanted, place)
    for name, why in skipped.items():
        warn(f"without the drill {name}: {why}")
    given = Order(**order, drills=tuple(name for name in wanted if name not in skipped))
    with stop_signals():
        verdicts = drill(subjects, given, place, lambda verdict: _tell(verdict, given))
    failed = [verdict for verdict in verdicts if not verdict.same]
    if not failed and folder is None:
        place.rmdir()
    if json:
        print(jsons.dumps(summary(verdicts, given, skipped)))
    else:
        stdout().print(_table(verdicts, given))
    if failed:
        count = f"{len(failed)} of {plural(len(verdicts), 'run')}"
        raise RunFailed(f"{count} did not end as their simulation did", hint=f"What everybody printed is in {place}")


def summary(verdicts: Sequence[DrillVerdict], order: Order, skipped: dict[str, str]) -> dict[str, Any]:
    """What has happened, for `--json`."""
    return {
        "runs": [
            {
                "app": verdict.app,
                "seed": verdict.seed,
                "rounds": verdict.rounds,
                "same": verdict.same,
                "error": verdict.error or None,
                "folder": str(verdict.folder) if verdict.folder else None,
                **{name: verdict.times(name) for name in order.drills},
            }
            for verdict in verdicts
        ],
        "seen": {name: _seen(verdicts, name) for name in order.drills},
        "skipped": skipped,
        "same": sum(verdict.same for verdict in verdicts),
    }


def _seen(verdicts: Sequence[DrillVerdict], drill: str) -> dict[str, int]:
    total = sum((verdict.seen for verdict in verdicts), Counter[tuple[str, str]]())
    return {kind: total[drill, kind] for kind in KINDS if total[drill, kind]}


def _absolute(reference: str) -> str:
    """A reference to an app from any folder."""
    path, colon, name = reference.rpartition(":")
    if os.path.exists(reference) or not colon:
        return os.path.abspath(reference)
    return f"{os.path.abspath(path)}:{name}"


def _name(verdict: DrillVerdict) -> str:
    return os.path.relpath(verdict.app)


def _tell(verdict: DrillVerdict, order: Order) -> None:
    done = ", ".join(f"{name} {verdict.times(name)}" for name in order.drills)
    ended = "the same bits" if verdict.same else verdict.error
    line = f"{_name(verdict)}, seed {verdict.seed}, {plural(verdict.rounds, 'round')}: {done}: {ended}"
    stderr().print(Text(line, style="" if verdict.same else "red"), soft_wrap=True)


def _table(verdicts: Sequence[DrillVerdict], order: Order) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, header_style="dim")
    table.add_column("seen to have happened")
    for kind in (*KINDS, "all", "tried"):
        table.add_column(kind, justify="right")
    for name in order.drills:
        seen = _seen(verdicts, name)
        tried = sum(verdict.tried[name] for verdict in verdicts)
        counts = [*(seen.get(kind, 0) for kind in KINDS), sum(seen.values()), tried]
        table.add_row(name, *(str(count) if count else "" for count in counts))
    table.add_section()
    same = sum(verdict.same for verdict in verdicts)
    table.add_row("runs with the same bits", *[""] * len(KINDS), str(same), str(len(verdicts)))
    return table
