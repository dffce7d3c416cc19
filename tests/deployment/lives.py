"""Runs that go on while what they need is killed, stopped and started again, at moments drawn from a seed.

A moment is a number of things that were seen to happen: events of the run, writes to disk, processor time that a victim
has used. None of them is a time of day, so a busy machine only makes a life longer.
"""

from __future__ import annotations

import json
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PATIENCE
from tests.deployment import deaths
from tests.deployment.deaths import Living
from tests.deployment.machines import Machines, Process

import umbel
from umbel.cli.application import load
from umbel.errors import CallerError, JournalMissing, UmbelError
from umbel.office.operator import Operator

APPS = Path(__file__).with_name("lasting.py")
OWN = Path(__file__).with_name("own.py")
CLIENTS = 6
LOOK = 0.0005

RELAY = "east"
DIRECT = ("0", "1")
BELOW = {"2": (2, 3), "3": (4, 5)}
NODES = (*DIRECT, *BELOW)
KINDS = ("server", "relay", "node", "child", "run")
DECK = ("server", "relay", "node", "node", "child", "child", "child", "run", "run")
"""What is killed, shuffled anew whenever all were drawn."""
INWARDS = ("child", "run", "node", "relay", "server")
"""Who is killed first, of several at once: whoever would else be taken along by the death of another."""

HOW = ("stopped", "stopped by a command", "killed and stopped", "stopped and killed")

ATTEMPTS, TRIES = 2, 2
"""So often a node's child, or the run's process, may die without progress between and be started again; see
docs/deploy.md."""


class Watchdog:
    """Raises once there was no news for too long."""

    def __init__(self) -> None:
        self._news = 0
        self._since = time.monotonic()
        self._pause = threading.Event()

    def look(self, news: int) -> None:
        """Wait for the next look at things; `news` is how much there was so far."""
        self._pause.wait(LOOK)
        if news > self._news:
            self._news, self._since = news, time.monotonic()
        if time.monotonic() - self._since > PATIENCE:
            raise TimeoutError(f"no news of the run for {PATIENCE:.0f} s")


@cache
def undisturbed(name: str, seed: int, rounds: int) -> str:
    """The model's hash where nothing is disturbed."""
    app = load(f"{APPS}:{name}").app
    found = umbel.run(app, on=umbel.Simulation(clients=CLIENTS), seed=seed, folder=None, rounds=rounds)
    return found.model_sha256


def populate(machines: Machines) -> Machines:
    """Start a server, two nodes of one client each, and a relay before two nodes of two."""
    machines.start_server()
    below = machines.start_relay(RELAY)
    for name in DIRECT:
        machines.start_node(name, "--source", f"index={name}", join=machines.invitation())
    for slots, (name, clients) in enumerate(BELOW.items(), 1):
        sources = machines.folder / f"clients-{name}.json"
        sources.write_text(json.dumps({str(index): {"index": index} for index in clients}))
        given = ("--clients", str(sources), "--slots", str(slots))
        machines.start_node(name, *given, join=machines.invitation(RELAY), address=below)
    for node in machines.nodes.values():
        node.wait_for("connected to")
    return machines


class Follower:
    """Takes in the events of a run as they come, while its server dies and comes back, until the run is over."""

    def __init__(self, machines: Machines, run: str) -> None:
        self.events: list[tuple[int, dict[str, Any]]] = []
        self.over = False
        self.status = ""
        self.left_out = ""
        self._run = run
        self._ended = threading.Event()
        self._office = Operator(machines.credentials(), pause=lambda seconds: self._ended.wait(min(seconds, 0.1)))
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    @property
    def finished(self) -> dict[str, Any]:
        """The event that says how it finished; empty for one that did not."""
        last = [record for number, record in self.events if number][-1:]
        return last[0] if last and last[0]["event"] == "run_finished" else {}

    def close(self) -> None:
        """Follow no more."""
        self._ended.set()
        self._office.close()  # first: it may wait there for what never comes
        self._thread.join(30)

    def _follow(self) -> None:
        after = 0
        while not self._ended.wait(0.05):
            try:
                for number, record in self._office.logs(self._run, after):
                    after = max(after, number)
                    self.events.append((number, record))
                    self.left_out = self.left_out or left_out(record)
                    if self._ended.is_set():
                        return
                self.status = self._office.call("runs.show", run=self._run)["status"]
            except JournalMissing:
                continue  # not begun yet
            except UmbelError as error:
                if getattr(error, "retry", False):
                    continue
                self.status = str(error)
            if self.status not in ("running", "stopped"):
                self.over = True
                return


def left_out(record: dict[str, Any]) -> str:
    """What an event says of clients that a run goes on without, which whatever dies is no reason for."""
    event, reason = record["event"], str(record.get("reason"))
    refused = event == "waiting" and record["refused"]
    refused = refused or (event == "warned" and record["text"].startswith("it does not take part"))
    refused = refused or (event == "task_ended" and "has answered" in reason)
    return json.dumps(record)[:600] if refused or (event == "ask_closed" and record["failed"]) else ""


@dataclass(frozen=True)
class Victim:
    """Whom to kill: what it is, and the node that it is or belongs to, and which of its children."""

    kind: str
    node: str = ""
    which: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.node}".strip()


@dataclass(frozen=True)
class Moment:
    """When: after so many events, writes by anybody, writes of the victim's own, or ticks of its processor time."""

    of: str
    count: int

    def __str__(self) -> str:
        return f"{self.count} {self.of}"


@dataclass(frozen=True)
class Kill:
    """Who was killed, and whether it died of it while the run went on."""

    victim: Victim
    moment: Moment
    round: int
    died: bool

    def __str__(self) -> str:
        return f"{self.victim} after {self.moment}, round {self.round}{'' if self.died else ' (does not count)'}"


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


class Life:
    """One run on `machines`, and what happens to it; `own` where its user drives it, else its server does. One of the
    app `late` that is `held` is in its last round until it is let go.
    """

    def __init__(
        self, machines: Machines, app: str, seed: int, rounds: int, own: bool = False, held: bool = False
    ) -> None:
        self.kills: list[Kill] = []
        self.stops: list[Stop] = []
        self.app, self.seed, self.rounds, self.own = app, seed, rounds, own
        self._machines = machines
        self._gate = machines.folder / "shared" / f"gate-{app}-{seed}"
        self._hold = rounds if held else 0
        self._draw = random.Random(seed)
        self._deck: list[str] = []
        self._dog = Watchdog()
        self._tried: Counter[str] = Counter()
        self._round_tried: dict[str, int] = {}
        self._process: Process | None = None
        self.run = f"own-{seed}" if own else self._submitted()
        self._log = machines.folder / (self.run if own else f"server/runs/{self.run}/run") / "events.jsonl"
        if own:
            self._start_own()
        self.follower = Follower(machines, self.run)

    def _submitted(self) -> str:
        self._gate.mkdir()
        late = ("--set", f"gate={self._gate}", "--set", f"hold={self._hold}") if self.app == "late" else ()
        only = [f"--only={client}" for client in range(CLIENTS)]
        return self._machines.submit(f"{APPS}:{self.app}", self.seed, "--rounds", str(self.rounds), *late, *only)

    def _start_own(self) -> None:
        machines = self._machines
        given = (f"{APPS}:{self.app}", machines.address, str(machines.folder), self.run, str(self.seed))
        self._process = machines.program(str(OWN), *given, str(self.rounds), UMBEL_TOKEN=machines.token)

    # What is seen

    @property
    def going(self) -> bool:
        """Whether the run is not over: neither by its own log, nor by its server's."""
        return not self.follower.over and not self._has_finished()

    def _has_finished(self) -> bool:
        return self._log.exists() and b'"event":"run_finished"' in self._log.read_bytes()[-4096:]

    @property
    def round(self) -> int:
        """The last committed round, as its log on disk has it."""
        return self._log.read_bytes().count(b'"event":"round_committed"') if self._log.exists() else 0

    def _written(self, victim: Victim | None = None) -> list[tuple[int, int]]:
        """What changes whenever something is written, by anybody or by a victim."""
        places = {"server": "server/server.db", "relay": f"node-{RELAY}/below/server.db"}
        places |= {name: f"node-{name}/node.db" for name in NODES}
        chosen = list(places.values()) if victim is None else [places.get(victim.kind) or places.get(victim.node, "")]
        files = [self._machines.folder / f"{place}-wal" for place in chosen if place]
        if victim is None or victim.kind == "run":
            files.append(self._log)
        found = []
        for path in files:
            with suppress(OSError):
                about = path.stat()
                found.append((about.st_mtime_ns, about.st_size))
        return found

    def found(self, victim: Victim) -> Living | None:
        """The process that a victim is now."""
        machines = self._machines
        if victim.kind == "child":
            pids = machines.children(victim.node)
            return deaths.living(pids[victim.which % len(pids)]) if pids else None
        if victim.kind == "run" and not self.own:
            return deaths.living(machines.run_process(self.run))
        process = self._process_of(victim)
        return deaths.living(process.pid) if process is not None else None

    def _look(self) -> None:
        """Wait a moment, and fail where it is known that all is lost."""
        assert not self.follower.left_out, self.follower.left_out
        self._dog.look(len(self.follower.events) + len(self.kills) + len(self.stops))

    def until(self, condition: Callable[[], bool]) -> bool:
        """Wait for something that is to be seen; whether it came while the run went on."""
        while not condition():
            if self.follower.over:
                return False
            self._look()
        return True

    def come(self, moment: Moment, victim: Victim, too_late: Callable[[], bool] = lambda: False) -> bool:
        """Wait for a moment, or until it is too late for it; whether either came while the run went on."""
        seen = 0
        if moment.of == "events":
            begun = len(self.follower.events)
            return self.until(lambda: too_late() or len(self.follower.events) >= begun + moment.count)
        if moment.of == "ticks":
            known: dict[Living, int] = {}

            def used() -> bool:
                one = self.found(victim)
                if one is not None:
                    return one.ticks - known.setdefault(one, one.ticks) >= moment.count
                return False

            return self.until(lambda: too_late() or used())
        before: list[tuple[int, int]] | None = None

        def changed() -> bool:
            nonlocal before, seen
            now = self._written(victim if moment.of == "own writes" else None)
            seen += before is not None and now != before
            before = now
            return seen >= moment.count

        return self.until(lambda: too_late() or changed())

    # What is done

    def drawn_victim(self) -> Victim:
        """The next of the deck that may die now."""
        while True:
            if not self._deck:
                self._deck = self._draw.sample(DECK, len(DECK))
            kind = self._deck.pop()
            node = self._draw.choice(NODES) if kind in ("node", "child") else RELAY if kind == "relay" else ""
            victim = Victim(kind, node, self._draw.randrange(2) if kind == "child" else 0)
            if self._may_die(victim):
                return victim

    def _may_die(self, victim: Victim) -> bool:
        """Whether what is promised for its death holds: attempts and tries are not used up."""
        name, done = str(victim), self.round
        if victim.kind not in ("child", "run"):
            return True
        # A late task may live through two rounds.
        if done > self._round_tried.get(name, 0) + (2 if victim.kind == "child" else 0):
            self._tried[name] = 0
        return self._tried[name] < (ATTEMPTS if victim.kind == "child" else TRIES)

    def drawn_moment(self, victim: Victim, rounds: int) -> Moment:
        """A moment within about so many rounds."""
        most = {"events": 15, "writes": 20, "own writes": 3, "ticks": 4}
        if victim.kind == "child" and self._draw.random() < 0.4:
            return Moment("ticks", 1)  # it is at work: between tasks it uses none
        of = self._draw.choice((*most, "own writes"))
        return Moment(of, self._draw.randint(0, rounds * most[of]))

    def kill(self, victims: Sequence[Victim], moment: Moment) -> None:
        """Kill them at the same moment, note what came of it, and start them again."""
        found: dict[Victim, Living] = {}
        for victim in victims:
            one = self.found(victim)
            if one is not None and one not in found.values():
                found[victim] = one
        order = sorted(found, key=lambda victim: INWARDS.index(victim.kind))
        round = self.round
        died = deaths.kill([found[victim] for victim in order], lambda: self.going, self._look)
        for victim, dead in zip(order, died, strict=True):
            process = self._process_of(victim)
            counts = dead and (process is None or process.wait() == -signal.SIGKILL)
            self.kills.append(Kill(victim, moment, round, counts))
            if victim.kind in ("child", "run"):
                self._tried[str(victim)] += 1
                self._round_tried[str(victim)] = round
        for victim in self._draw.sample(order, len(order)):
            self._start(victim)

    def _process_of(self, victim: Victim) -> Process | None:
        """The process of a victim, where it is one that this test has started."""
        own = {"server": self._machines.server, "run": self._process, "child": None}
        return own[victim.kind] if victim.kind in own else self._machines.nodes[victim.node]

    def _start(self, victim: Victim) -> None:
        """Do what a supervisor does; the server and nodes do it for the processes of runs and for children."""
        if victim.kind == "server":
            self._machines.start_server(ready=False)
        elif victim.kind in ("node", "relay"):
            self._machines.start_node_again(victim.node)
        elif victim.kind == "run" and self.own:
            self._start_own()  # also where it has finished: whoever starts it again cannot know

    def be_killed(self, times: int) -> None:
        """Have so many deaths: single ones, two at once, and again during recovery."""
        while self.deaths.total() < times and self.going:
            victims = [self.drawn_victim()]
            if self._draw.random() < 0.25 and (other := self.drawn_victim()) != victims[0]:
                victims.append(other)
            moment = self.drawn_moment(victims[0], 1)
            while True:
                first = victims[0]
                if not self.until(lambda: self.found(first) is not None) or not self.come(moment, first):  # noqa: B023
                    return
                self.kill(victims, moment)
                if self._draw.random() >= 0.4 or self.deaths.total() >= times:
                    break
                again = self._draw.random() < 0.5 and self._may_die(first)
                victims = [first if again else self.drawn_victim()]
                moment = Moment("ticks", self._draw.randint(0, 100))
                if not again:
                    moment = Moment("writes", self._draw.randint(0, 9))

    @property
    def deaths(self) -> Counter[str]:
        """How many of each kind were killed, of those that count."""
        return Counter(kill.victim.kind for kill in self.kills if kill.died)

    # Stopping and going on

    def be_stopped(self, times: int) -> None:
        """Be stopped so often, some times with its process killed before or meanwhile, and go on."""
        run = Victim("run")
        while len(self.stops) < times and self.going:
            moment, how = self.drawn_moment(run, 4), self._draw.choice(HOW)
            if not self.until(lambda: self.found(run) is not None) or not self.come(moment, run):
                return
            if how == "killed and stopped":
                self.kill([run], moment)
            with ThreadPoolExecutor(1) as pool:
                asked = pool.submit(self._is_stopped, how == "stopped by a command")
                if how == "stopped and killed":
                    self.come(
                        Moment("writes", self._draw.randint(0, 3)), run, asked.done
                    )  # then nothing writes any more
                    self.kill([run], moment)
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

    def _command(self, *typed: str) -> Process:
        machines = self._machines
        return machines.command(*typed, "--on", machines.address, UMBEL_TOKEN=machines.token)

    # The end

    def let_go(self) -> None:
        """Let a run that is held come to its end."""
        (self._gate / "go").touch()

    def end(self) -> None:
        """Wait for the end of the run, which has to be that of one that nothing disturbs."""
        self.until(lambda: False)
        last = self.follower.finished
        assert self.follower.status == "finished", (self.follower.status, last)
        assert (last["error"], last["rounds"]) == (None, self.rounds), last
        expected = undisturbed(self.app, self.seed, self.rounds)
        assert last["model_sha256"] == expected, f"{last['model_sha256'][:12]} instead of {expected[:12]}"
        if self._process is not None:
            assert self._process.wait() == 0, self._process.output
        for process in self._machines.ended:
            assert "Traceback" not in process.output, process.output
            hosted = re.findall(rf"run {self.run} \(.*\) is hosted", process.output)
            assert len(hosted) <= 1 + len(self.stops), f"a node began anew that had not died:\n{process.output}"
        for log in self._machines.folder.glob("server/runs/*/run.log"):
            assert "Traceback" not in log.read_text(), log.read_text()

    def close(self) -> None:
        """Follow the run no more."""
        self.follower.close()

    def report(self) -> str:
        """What has happened to it."""
        rows = [f"{self.app}, seed {self.seed}, {self.rounds} rounds, driven by its {'user' if self.own else 'server'}"]
        rows += [f"  killed: {kill}" for kill in self.kills]
        rows += [f"  {stop}" for stop in self.stops]
        if not self.follower.left_out and self.follower.finished:
            return "\n".join(rows)
        told = [record for number, record in list(self.follower.events) if number]
        rows += [f"  {json.dumps(record)[:300]}" for record in told if record["event"] == "warned"]
        short = [r for r in told if r["event"] == "ask_closed" and r["failed"]]
        rows += [f"  ask {r['ask']} of round {r['round']} without {str(r['failed'])[:300]}" for r in short]
        rows += [f"  {json.dumps(record)[:300]}" for record in told[-5:]]
        return "\n".join(rows)


@contextmanager
def lived(
    machines: Machines, app: str, seed: int, rounds: int, own: bool = False, held: bool = False
) -> Iterator[Life]:
    """A life, to its end; where it fails, what has happened and what everybody printed is told."""
    life = Life(machines, app, seed, rounds, own, held)
    try:
        yield life
        life.end()
    except Exception as error:
        pytest.fail(f"{type(error).__name__}: {error}\n{life.report()}\n{machines.report()}", pytrace=False)
    finally:
        life.close()
