"""Drills with a deployment of real processes on this machine: runs that are killed, stopped, cut off, held up and set
back at random moments from a seed, and have to end with the bits of the simulation that nothing disturbs.

    def told(verdict):
        print(verdict.app, verdict.same, verdict.error)

    order = Order(kills=300, runs=12, seed=1)
    verdicts = drill([Subject("app.py", app)], order, Path("drills"), told)

Each run has a server, relays and nodes of its own. What is done is drawn beforehand (`strikes`), so that the same seed
has the same schedule; real processes come to these moments by other ways each time. A kill counts where the process was
seen to have died of the signal while the run went on.
"""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..core.app import App
from ..runs.run import run as simulate
from ..simulation import Simulation
from .following import Differs
from .lines import ProxiedLines
from .lives import Life, populate
from .machines import SECONDS, Machines
from .strikes import DRILLS, Layout, strikes

PASSING = 3
"""Of each drill that is not kill, so many for every ten kills."""
DISK = "48m"


@dataclass(frozen=True)
class Subject:
    """An app, and what `umbel run` calls it."""

    reference: str
    app: App


@dataclass(frozen=True)
class Order:
    """What is wanted: so many `kills` in so many `runs`, in deployments of such a size.

    `rounds` is how long each run is; by default as the app says, and so long that there is room for all that is to
    happen. `patience` is for how many seconds there may be no news of a run. ValueError where it makes no sense.
    """

    kills: int = 30
    runs: int = 3
    nodes: int = 4
    relays: int = 1
    clients: int = 6
    seed: int = 1
    drills: tuple[str, ...] = ("kill", "stop", "cut", "throttle")
    rounds: int | None = None
    patience: float = SECONDS

    def __post_init__(self) -> None:
        unknown = sorted(set(self.drills) - DRILLS.keys())
        if unknown or "kill" not in self.drills:
            raise ValueError(f"drills are {', '.join(DRILLS)}, kill among them; not {', '.join(unknown) or 'none'}")
        if min(self.kills, self.runs) < 1:
            raise ValueError("there is at least one kill, in one run")
        Layout.of(self.nodes, self.relays, self.clients)

    @property
    def layout(self) -> Layout:
        """Who there is besides the server."""
        return Layout.of(self.nodes, self.relays, self.clients)

    def share(self, number: int) -> int:
        """How many kills are for this run, from 0 on."""
        return self.kills // self.runs + (number < self.kills % self.runs)

    def wanted(self, number: int, drill: str) -> int:
        """How often this run is to see a drill."""
        kills = self.share(number)
        return kills if drill == "kill" else -(-kills * PASSING // 10)

    def length(self, number: int, app: App) -> int:
        """How many rounds this run has."""
        least = 4 * sum(self.wanted(number, drill) for drill in self.drills) + 4
        return self.rounds or max(app.rounds or 0, least)


@dataclass
class DrillVerdict:
    """What became of one run: `error` says in a line why it is not `same` as its simulation, `report` all about it.

    `seen` counts what has happened by its drill and whom it has befallen, `tried` what was meant to; `folder` is where
    the logs of a run are that is not the same.
    """

    app: str
    seed: int
    rounds: int
    expected: str
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    tried: Counter[str] = field(default_factory=Counter)
    same: bool = False
    error: str = ""
    report: str = ""
    folder: Path | None = None

    def times(self, drill: str) -> int:
        """How often a drill was seen to have happened."""
        return sum(count for (what, _), count in self.seen.items() if what == drill)


def unavailable(drills: Sequence[str], folder: Path) -> dict[str, str]:
    """Those of the drills that this machine cannot have, and why."""
    missing = {}
    if "fill" in drills:
        place = folder / "disk"
        place.mkdir(parents=True)
        try:
            with _disk(place):
                pass
        except (OSError, subprocess.SubprocessError) as error:
            missing["fill"] = f"no file system can be mounted here ({error})"
        place.rmdir()
    return missing


def drill(
    subjects: Sequence[Subject],
    order: Order,
    folder: Path,
    told: Callable[[DrillVerdict], object] = lambda verdict: None,
) -> list[DrillVerdict]:
    """Have runs of these apps, taken by turns, live through what is ordered; `told` is called after each.

    The folders of runs that went well are removed.
    """
    verdicts = []
    for number in range(order.runs):
        subject, seed = subjects[number % len(subjects)], order.seed + number
        rounds = order.length(number, subject.app)
        found = simulate(subject.app, on=Simulation(order.clients), seed=seed, folder=None, rounds=rounds)
        verdict = DrillVerdict(subject.reference, seed, rounds, found.model_sha256)
        place = folder / f"run-{number:02d}"
        _live(verdict, order, number, place)
        if verdict.same:
            shutil.rmtree(place)
        else:
            verdict.folder = place
            place.mkdir(parents=True, exist_ok=True)
            (place / "report.txt").write_text(f"{verdict.error}\n{verdict.report}\n")
        told(verdict)
        verdicts.append(verdict)
    return verdicts


def _live(verdict: DrillVerdict, order: Order, number: int, place: Path) -> None:
    """Have one run live, and write down how it went."""
    layout = order.layout
    machines, life = Machines(place), None
    try:
        with ProxiedLines() as lines, _disks(place, layout if "fill" in order.drills else None):
            try:
                populate(machines, layout, lines)
                only = [f"--only={client}" for client in range(layout.clients)]
                run = machines.submit(verdict.app, verdict.seed, "--rounds", str(verdict.rounds), *only)
                log = machines.folder / "server" / "runs" / run / "run" / "events.jsonl"
                life = Life(machines, layout, run, log, lines=lines, patience=order.patience)
                wanted = {drill: order.wanted(number, drill) for drill in order.drills}
                life.suffer(strikes(verdict.seed, layout, order.drills), wanted)
                life.end(verdict.rounds, verdict.expected)
                machines.stop()
                verdict.same = True
            except Exception as error:
                kind = "" if isinstance(error, Differs) else f"{type(error).__name__}: "
                verdict.error = f"{kind}{error}".splitlines()[0][:200]
            finally:
                if life is not None:
                    life.close()
                    verdict.seen = Counter((e.drill, e.victim.kind) for e in life.happened if e.seen)
                    verdict.tried = Counter(e.drill for e in life.happened)
                    verdict.report = life.report()
                verdict.report += "" if verdict.same else f"\n{machines.report()}"
                machines.kill()
    except OSError as error:
        verdict.same, verdict.error = False, verdict.error or str(error)


@contextmanager
def _disks(place: Path, layout: Layout | None) -> Iterator[None]:
    """Small file systems for the folders of nodes."""
    with ExitStack() as stack:
        for name in layout.nodes if layout is not None else ():
            folder = place / f"node-{name}"
            folder.mkdir(mode=0o700)
            stack.enter_context(_disk(folder))
        yield


@contextmanager
def _disk(place: Path) -> Iterator[None]:
    said = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=700", "umbel-chaos", str(place)]
    subprocess.run(said, check=True, capture_output=True)
    try:
        yield
    finally:
        with suppress(OSError):
            subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)
