"""Lives of runs, and what only tests do to them: runs that their own user drives, and stops at moments from a seed."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from tests.conftest import PATIENCE

import umbel
from umbel.cli.application import load
from umbel.errors import CallerError
from umbel.testing import lives
from umbel.testing.machines import MachineProcess, Machines
from umbel.testing.strikes import MOST, Layout, Moment, Strike, Victim, strikes

APPS = Path(__file__).with_name("lasting.py")
OWN = Path(__file__).with_name("own.py")
CLIENTS = 6
LAYOUT = Layout.of(4, 1, CLIENTS)
RUN = Victim("run")
HOW = ("stopped", "stopped by a command", "killed and stopped", "stopped and killed")


@cache
def undisturbed(name: str, seed: int, rounds: int) -> str:
    """The model's hash where nothing is disturbed."""
    app = load(f"{APPS}:{name}").app
    found = umbel.run(app, on=umbel.Simulation(clients=CLIENTS), seed=seed, folder=None, rounds=rounds)
    return found.model_sha256


def populate(machines: Machines) -> Machines:
    """Start a server, two nodes of one client each, and a relay before two nodes of two."""
    return lives.populate(machines, LAYOUT)


@dataclass(frozen=True)
class Stop:
    """How a run was stopped, and whether an ask was open."""

    how: str
    moment: Moment
    round: int
    amid: bool

    def __str__(self) -> str:
        where = "amid an ask" if self.amid else "between asks"
        return f"{self.how} after {self.moment}, {where}, {self.round} rounds committed"


class Life(lives.Life):
    """One run on `machines`; `own` where its user drives it, else its server does. One of the app `late` that is `held`
    is in its last round until it is let go.
    """

    def __init__(
        self, machines: Machines, app: str, seed: int, rounds: int, own: bool = False, held: bool = False
    ) -> None:
        self.stops: list[Stop] = []
        self.app, self.seed, self.rounds, self.own = app, seed, rounds, own
        self._machines = machines
        self._draw = random.Random(seed)
        self._process: MachineProcess | None = None
        run = f"own-{seed}" if own else self._submitted(rounds if held else 0)
        log = machines.folder / (run if own else f"server/runs/{run}/run") / "events.jsonl"
        if own:
            self._start_own(run)
        super().__init__(machines, LAYOUT, run, log, patience=PATIENCE)

    def _submitted(self, hold: int) -> str:
        late = ("--set", f"hold={hold}") if self.app == "late" else ()
        only = [f"--only={client}" for client in range(CLIENTS)]
        return self._machines.submit(f"{APPS}:{self.app}", self.seed, "--rounds", str(self.rounds), *late, *only)

    def _start_own(self, run: str) -> None:
        machines = self._machines
        given = (f"{APPS}:{self.app}", machines.address, str(machines.folder), run, str(self.seed))
        self._process = machines.program(str(OWN), *given, str(self.rounds), UMBEL_TOKEN=machines.token)

    def process_of(self, victim: Victim) -> MachineProcess | None:
        return self._process if victim.kind == "run" else super().process_of(victim)

    def start(self, victim: Victim) -> None:
        if victim.kind == "run" and self.own:
            self._start_own(self.run)  # also where it has finished: whoever starts it again cannot know
        else:
            super().start(victim)

    def be_killed(self, times: int) -> None:
        """Have so many deaths: single ones, two at once, and again during recovery."""
        self.suffer(strikes(self.seed, LAYOUT), {"kill": times})

    @property
    def deaths(self) -> Counter[str]:
        """How many of each kind were killed, of those that count."""
        return self.seen("kill")

    def be_stopped(self, times: int) -> None:
        """Be stopped so often, some times with its process killed before or meanwhile, and go on."""
        while len(self.stops) < times and self.going:
            of, how = self._draw.choice((*MOST, "own writes")), self._draw.choice(HOW)
            moment = Moment(of, self._draw.randint(0, 4 * MOST[of]))
            death = Strike("kill", (RUN,), moment)
            if not self.until(lambda: self.found(RUN) is not None) or not self.come(moment, RUN):
                return
            if how == "killed and stopped":
                self.kill(death)
            with ThreadPoolExecutor(1) as pool:
                asked = pool.submit(self._is_stopped, how == "stopped by a command")
                if how == "stopped and killed":  # later, nothing writes any more
                    self.come(Moment("writes", self._draw.randint(0, 3)), RUN, asked.done)
                    self.kill(death)
                if not asked.result():
                    return
            opened = [e["event"] for _, e in self.follower.events if e["event"] in ("ask_opened", "ask_closed")][-1:]
            self.stops.append(Stop(how, moment, self.round, opened == ["ask_opened"]))
            again = self._command("resume", self.run, "--detach")
            assert again.wait() == 0, again.output

    def _is_stopped(self, typed: bool) -> bool:
        """Stop the run; whether it was not over."""
        if typed:
            asked = self._command("stop", self.run)
            assert asked.wait() == 0 or "is over" in asked.output, asked.output
            return asked.wait() == 0
        with self._machines.office() as office:
            try:
                office.call("runs.stop", run=self.run)
            except CallerError as error:
                if "is over" not in error.message:
                    raise
                return False
        return True

    def _command(self, *typed: str) -> MachineProcess:
        machines = self._machines
        return machines.command(*typed, "--on", machines.address, UMBEL_TOKEN=machines.token)

    def let_go(self) -> None:
        """Let a run that is held come to its end."""
        (self._machines.folder / "shared" / "meeting" / "go").touch()

    def ends(self) -> None:
        """See to it that it ends as one that nothing disturbs, and that nobody has printed an error."""
        self.end(self.rounds, undisturbed(self.app, self.seed, self.rounds))
        if self._process is not None:
            assert self._process.wait() == 0, self._process.output
        for process in self._machines.ended:
            assert "Traceback" not in process.output, process.output
            hosted = re.findall(rf"run {self.run} \(.*\) is hosted", process.output)
            assert len(hosted) <= 1 + len(self.stops), f"a node began anew that had not died:\n{process.output}"
        for log in self._machines.folder.glob("server/runs/*/run.log"):
            assert "Traceback" not in log.read_text(), log.read_text()

    def report(self) -> str:
        driven = f"{self.app}, seed {self.seed}, {self.rounds} rounds, driven by its {'user' if self.own else 'server'}"
        return "\n".join([driven, super().report(), *(f"  {stop}" for stop in self.stops)])


@contextmanager
def lived(
    machines: Machines, app: str, seed: int, rounds: int, own: bool = False, held: bool = False
) -> Iterator[Life]:
    """A life, to its end; where it fails, what has happened and what everybody printed is told."""
    life = Life(machines, app, seed, rounds, own, held)
    try:
        yield life
        life.ends()
    except Exception as error:
        pytest.fail(f"{type(error).__name__}: {error}\n{life.report()}\n{machines.report()}", pytrace=False)
    finally:
        life.close()
