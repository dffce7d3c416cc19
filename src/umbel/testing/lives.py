"""Runs that go on while what they need is killed, stopped, cut off and set back, at moments drawn from a seed."""

from __future__ import annotations

import errno
import json
import random
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from . import deaths
from .deaths import Living
from .following import Follower, Watchdog, judge
from .lines import ProxiedLines
from .machines import SECONDS, MachineProcess, Machines
from .strikes import Layout, Moment, Strike, Victim

INWARDS = ("child", "run", "node", "relay", "server")
"""Who is killed first, of several at once: whoever would else be taken along by the death of another."""
ATTEMPTS, TRIES = 2, 2
"""So often a node's child, or the run's process, may die without progress between and be started again; see
docs/deploy.md."""


@dataclass(frozen=True)
class Happened:
    """What was done to whom in which round, and whether it was seen to have happened while the run went on."""

    drill: str
    victim: Victim
    moment: Moment
    round: int
    seen: bool

    def __str__(self) -> str:
        where = f"{self.victim} after {self.moment}, round {self.round}"
        return f"{self.drill}: {where}{'' if self.seen else ' (does not count)'}"


def populate(machines: Machines, layout: Layout, lines: ProxiedLines | None = None) -> Machines:
    """Start a server, relays and nodes, and wait until they are connected: through `lines`, where there are any.

    Each client gets as its source ``index`` and ``count``, as in a simulation, and ``meeting``: a folder that all of
    them share, where those of an app can see how far others are.
    """
    machines.start_server()
    (machines.folder / "shared" / "meeting").mkdir()

    def way(name: str, target: str) -> str:
        return target if lines is None else lines.lay(name, target)

    below = {name: machines.start_relay(name, way(name, machines.address)) for name in layout.relays}
    for home in layout.homes:
        shared = {"count": layout.clients, "meeting": str(machines.folder / "shared" / "meeting")}
        sources = machines.folder / f"clients-{home.name}.json"
        sources.write_text(json.dumps({str(index): {"index": index, **shared} for index in home.clients}))
        given = ("--clients", str(sources), "--slots", str(home.slots))
        address = way(home.name, below.get(home.relay, machines.address))
        machines.start_node(home.name, *given, join=machines.invitation(home.relay or None), address=address)
    for node in machines.nodes.values():
        node.wait_for("connected to")
    return machines


class Life:
    """The run `run` on machines that `populate` has started, and what happens to it.

    `patience` is for how many seconds there may be no news of it.
    """

    def __init__(
        self,
        machines: Machines,
        layout: Layout,
        run: str,
        log: Path,
        *,
        lines: ProxiedLines | None = None,
        patience: float = SECONDS,
    ) -> None:
        self.happened: list[Happened] = []
        self.run = run
        self.log = log
        self._machines, self._layout, self._lines = machines, layout, lines
        self._dog = Watchdog(patience)
        self._tried: Counter[str] = Counter()
        self._round_tried: dict[str, int] = {}
        self.follower = Follower(machines, run)
        self._drills: dict[str, Callable[[Strike], None]] = {
            "kill": self.kill,
            "stop": self._stop,
            "cut": self._cut,
            "throttle": self._throttle,
            "rollback": self._roll_back,
            "fill": self._fill,
        }

    # What is seen

    @property
    def going(self) -> bool:
        """Whether the run is not over: neither by its own log, nor by its server's."""
        return not self.follower.over and not self._has_finished()

    def _has_finished(self) -> bool:
        return self.log.exists() and b'"event":"run_finished"' in self.log.read_bytes()[-4096:]

    @property
    def round(self) -> int:
        """The last committed round, as its log on disk has it."""
        return self.log.read_bytes().count(b'"event":"round_committed"') if self.log.exists() else 0

    def seen(self, drill: str = "kill") -> Counter[str]:
        """How many of each kind this has happened to, of those that count."""
        return Counter(each.victim.kind for each in self.happened if each.seen and each.drill == drill)

    def _written(self, victim: Victim | None = None) -> list[tuple[int, int]]:
        """What changes whenever something is written, by anybody or by a victim."""
        places = {"server": "server/server.db"}
        places |= {name: f"node-{name}/below/server.db" for name in self._layout.relays}
        places |= {name: f"node-{name}/node.db" for name in self._layout.nodes}
        chosen = list(places.values()) if victim is None else [places.get(victim.node or victim.kind, "")]
        files = [self._machines.folder / f"{place}-wal" for place in chosen if place]
        if victim is None or victim.kind == "run":
            files.append(self.log)
        found = []
        for path in files:
            with suppress(OSError):
                about = path.stat()
                found.append((about.st_mtime_ns, about.st_size))
        return found

    def found(self, victim: Victim) -> Living | None:
        """The process that a victim is now."""
        if victim.kind == "child":
            pids = self._machines.children(victim.node)
            return deaths.living(pids[victim.which % len(pids)]) if pids else None
        process = self.process_of(victim)
        if process is None and victim.kind == "run":
            return deaths.living(self._machines.run_process(self.run))
        return deaths.living(process.pid) if process is not None else None

    def process_of(self, victim: Victim) -> MachineProcess | None:
        """The process of a victim, where it is one that was started from here."""
        own = {"server": self._machines.server, "run": None, "child": None}
        return own[victim.kind] if victim.kind in own else self._machines.nodes[victim.node]

    def _look(self) -> None:
        """Wait a moment, and fail where it is known that all is lost."""
        if self.follower.left_out:
            raise RuntimeError(f"the run went on without a client: {self.follower.left_out}")
        self._dog.look(len(self.follower.events) + len(self.happened))

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

    def _may_die(self, victim: Victim) -> bool:
        """Whether what is promised for its death holds: attempts and tries are not used up."""
        name, done = str(victim), self.round
        if victim.kind not in ("child", "run"):
            return True
        # A late task may live through two rounds.
        if done > self._round_tried.get(name, 0) + (2 if victim.kind == "child" else 0):
            self._tried[name] = 0
        return self._tried[name] < (ATTEMPTS if victim.kind == "child" else TRIES)

    # What is done

    def suffer(self, strikes: Iterable[Strike], wanted: Mapping[str, int]) -> None:
        """Have strikes come, each at its moment, until so many of each drill were seen, or the run is over."""
        for strike in strikes:
            missing = {drill for drill, count in wanted.items() if self.seen(drill).total() < count}
            if not missing:
                return
            if strike.drill not in missing or not all(map(self._may_die, strike.victims)):
                continue
            first = strike.victims[0]
            if not self.until(lambda: self.found(first) is not None) or not self.come(strike.moment, first):  # noqa: B023
                return
            self._drills[strike.drill](strike)

    def kill(self, strike: Strike) -> None:
        """Kill the victims at the same moment, note what came of it, and start them again in some order."""
        found: dict[Victim, Living] = {}
        for victim in strike.victims:
            one = self.found(victim)
            if one is not None and one not in found.values():
                found[victim] = one
        order = sorted(found, key=lambda victim: INWARDS.index(victim.kind))
        round = self.round
        died = deaths.kill([found[victim] for victim in order], lambda: self.going, self._look)
        for victim, dead in zip(order, died, strict=True):
            process = self.process_of(victim)
            counts = dead and (process is None or process.wait() == -signal.SIGKILL)
            self._note(strike, victim, round, counts)
            if victim.kind in ("child", "run"):
                self._tried[str(victim)] += 1
                self._round_tried[str(victim)] = round
        for victim in random.Random(len(self.happened)).sample(order, len(order)):
            self.start(victim)

    def start(self, victim: Victim) -> None:
        """Do what a supervisor does; the server and nodes do it for the processes of runs and for children."""
        if victim.kind == "server":
            self._machines.start_server(ready=False)
        elif victim.kind in ("node", "relay"):
            self._machines.start_node_again(victim.node)

    def _note(self, strike: Strike, victim: Victim, round: int, seen: bool) -> None:
        self.happened.append(Happened(strike.drill, victim, strike.moment, round, seen))

    def _stop(self, strike: Strike) -> None:
        (victim,), round = strike.victims, self.round
        one = self.found(victim)
        with suppress(ProcessLookupError):
            if one is not None:
                self._note(strike, victim, round, deaths.pause(one, strike.seconds, self._look) and self.going)

    def _cut(self, strike: Strike) -> None:
        assert self._lines is not None
        (victim,) = strike.victims
        self._note(strike, victim, self.round, self._lines.cut(victim.node) and self.going)

    def _throttle(self, strike: Strike) -> None:
        assert self._lines is not None
        (victim,), round = strike.victims, self.round
        self._note(strike, victim, round, self._lines.throttle(victim.node, strike.seconds) and self.going)

    def _folder(self, victim: Victim) -> Path:
        return self._machines.folder / f"node-{victim.node}"

    def _roll_back(self, strike: Strike) -> None:
        """Kill a node, and give it the folder that it had at the last such death; the first one keeps a copy."""
        (victim,), round = strike.victims, self.round
        one, process, folder = self.found(victim), self.process_of(victim), self._folder(victim)
        if one is None or process is None:
            return
        died = deaths.kill([one], lambda: self.going, self._look)[0] and process.wait() == -signal.SIGKILL
        kept, now = folder.with_name(f"{folder.name}.kept"), folder.with_name(f"{folder.name}.now")
        shutil.copytree(folder, now)
        there = kept.exists()
        if there:
            for path in folder.iterdir():  # not the folder itself: it may be a file system
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            shutil.copytree(kept, folder, dirs_exist_ok=True)
            shutil.rmtree(kept)
        now.rename(kept)
        self._note(strike, victim, round, died and there)
        self.start(victim)

    def _fill(self, strike: Strike) -> None:
        """Fill the file system of a node's folder, which is one of its own, and make room again."""
        (victim,), round = strike.victims, self.round
        ballast = self._folder(victim) / "ballast"
        full = False
        try:
            with ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 16))
        except OSError as error:
            full = error.errno == errno.ENOSPC
        threading.Event().wait(strike.seconds)
        ballast.unlink()
        self._note(strike, victim, round, full and self.going)

    # The end

    def end(self, rounds: int, expected: str) -> None:
        """Wait for the end of the run, which has to be that of one that nothing disturbs: see `judge`."""
        self.until(lambda: False)
        judge(self.follower.status, self.follower.finished, rounds, expected)

    def close(self) -> None:
        """Follow the run no more."""
        self.follower.close()

    def report(self) -> str:
        """What has happened to it."""
        rows = [f"  {each}" for each in self.happened]
        if not self.follower.left_out and self.follower.finished:
            return "\n".join(rows)
        told = [record for number, record in list(self.follower.events) if number]
        rows += [f"  {json.dumps(record)[:300]}" for record in told if record["event"] == "warned"]
        short = [r for r in told if r["event"] == "ask_closed" and r["failed"]]
        rows += [f"  ask {r['ask']} of round {r['round']} without {str(r['failed'])[:300]}" for r in short]
        rows += [f"  {json.dumps(record)[:300]}" for record in told[-5:]]
        return "\n".join(rows)
