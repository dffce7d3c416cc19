"""A whole deployment in one thread, on a virtual clock: the real run, server, relays and nodes; faults from a seed.

Messages cross as bytes over wires that deliver when the schedule says so. Wires are cut, messages come twice, transfers
break, and the server, relays, nodes and the run are killed at any moment and start again from what they had on disk.
The same seed gives the same life, so that a failing one can be looked at again and again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..core.app import App
from ..errors import RunInterrupted
from ..node.spool import Spool
from ..remote.federation import Remote, Signed
from ..runs.run import Result, resume, run
from ..store.records import MemoryStore
from ..wire import messages as m
from .link import RunLink
from .misfortune import Chance, Faults, Killed, Misfortune
from .network import Network
from .node import SimulatedNode
from .station import Station

STEPS = 200_000


class Deployment:
    """A server, nodes and one run of an app.

    `nodes` gives each node's clients with their sources; `relays` which nodes, or other relays, connect to each relay
    and not to the server; `faults` what goes wrong; `store` and `spool` make what is kept on disk; `scratch` is a
    folder for files. `happened` says what has gone wrong. `answers` collects what was ever answered: one and the same
    for each question, whatever happened. `stations` are the server and the relays, by name.
    """

    def __init__(
        self,
        app: App,
        nodes: Mapping[str, Mapping[str, Any]],
        *,
        seed: int,
        relays: Mapping[str, Sequence[str]] | None = None,
        faults: Faults | None = None,
        store: Callable[[], Any] = MemoryStore,
        spool: Callable[[str], Any] = lambda name: Spool(),
        slots: int = 1,
        stall: float = 10_000.0,
        scratch: Path,
    ) -> None:
        self.answers: dict[str, bytes] = {}
        self.stations: dict[str, Station] = {}
        self.nodes: dict[str, SimulatedNode] = {}
        self._app = app
        self._stall = stall
        self._sources = nodes
        self._relays = relays or {}
        self._chance = Chance(seed, faults if faults is not None else Faults())
        self.happened = self._chance.happened
        self._network = Network(self._chance, scratch)
        self._steps = 0
        place = partial(SimulatedNode, app.client, self._network, make_spool=spool, slots=slots, note=self._note)
        self._place("server", None, store, place)
        for station in self.stations.values():
            station.start()
        self._link = RunLink(self.stations["server"], self._network, self._step)
        self._misfortune = Misfortune(self._network, self.stations, self.nodes, self._link)

    def _place(
        self, name: str, above: Station | None, store: Callable[[], Any], node: Callable[..., SimulatedNode]
    ) -> list[str]:
        """Set up a station and all that connects to it; the clients below it."""
        station = self.stations[name] = Station(name, store(), self._network, above)
        clients: list[str] = []
        elsewhere = {below for there in self._relays.values() for below in there}
        beside = [each for each in (*self._relays, *self._sources) if each not in elsewhere]
        for below in self._relays.get(name, beside):
            if below in self._sources:
                self.nodes[below] = node(below, self._sources[below], station)
                mine = sorted(self._sources[below])
            else:
                mine = self._place(below, station, store, node)
            row = {"id": below, "name": below, "status": "approved", "clients": mine, "seen_at": 0.0}
            station.store.put("nodes", row)
            for client in mine:
                station.store.put("claims", {"client": client, "node": below})
            clients += mine
        station.store.commit()
        return sorted(clients)

    @property
    def time(self) -> float:
        """Seconds since the beginning."""
        return self._network.clock()

    @property
    def served(self) -> float:
        """Seconds in which the run was connected."""
        return self._link.served()

    def run(self, folder: Path, **settings: Any) -> Result:
        """Run the app to its end, through everything that happens; a run that has failed in this folder is gone on
        with.
        """
        remote = Remote(
            "virtual",
            connect=lambda address, *, token, folder, run: self._link.open(run),
            signed=Signed(b"archive", b"", b"", b""),
            stall=self._stall,
            clients=sum(map(len, self._sources.values())),
        )
        begun = folder / "virtual"
        place = begun if (begun / "events.jsonl").exists() else None
        while True:
            try:
                if place is None:
                    return run(self._app, on=remote, folder=folder, id="virtual", **settings)
                return resume(self._app, place, on=remote, observers=settings.get("observers", ()))
            except (Killed, RunInterrupted, KeyboardInterrupt) as end:
                self._link.crash()
                if not isinstance(end, Killed):
                    self.stations["server"].stop_run(self._link.run)
                elif end.power:
                    _lose_unsynced(folder / self._link.run)
                log = folder / self._link.run / "events.jsonl"
                place = log.parent if self._link.run and log.exists() and log.stat().st_size else None

    def settle(self) -> None:
        """Let everything that is still on its way arrive, without further faults."""
        self._chance.faults = Faults.none()
        for _ in range(STEPS):
            if not self._act():
                return

    def close(self) -> None:
        """Let go of what is on disk."""
        for station in self.stations.values():
            station.store.close()
        for node in self.nodes.values():
            node.close()

    def keep_away(self, name: str, seconds: float) -> None:
        """Cut a node off for so long; the server or a relay is down for so long."""
        if name in self.stations:
            self.stations[name].crash(seconds)
        else:
            self.nodes[name].keep_away(seconds)

    def _step(self, until: float | None) -> None:
        """Let one thing happen, by `until` of served time at the latest."""
        self._steps += 1
        if self._steps > STEPS:
            raise AssertionError(f"no end in sight: {self.happened[-20:]}")
        if not self._misfortune.strikes() and not self._act():
            self._wait(until)

    def _act(self) -> bool:
        """Do one of the things that can be done now; False where there is none."""
        parts: list[Network | Station | SimulatedNode | RunLink]
        parts = [self._network, *self.stations.values(), *self.nodes.values(), self._link]
        actions = [action for part in parts for action in part.actions()]
        if actions:
            action = self._chance.pick(actions)
            self._network.advance(self._chance.below(10) / 1000)
            action()
        return bool(actions)

    def _wait(self, until: float | None) -> None:
        """Nothing can be done now: the next moment at which something can."""
        parts: list[Network | Station | SimulatedNode]
        parts = [self._network, *self.stations.values(), *self.nodes.values()]
        moments = [moment for part in parts for moment in part.moments()]
        if until is not None and self._link.connected:
            moments.append(self.time + max(0.0, until - self.served))
        if not moments:
            raise AssertionError(f"everybody waits for somebody else at {self.time}: {self.happened}")
        self._network.advance(max(0.0, min(moments) - self.time) + 1e-9)
        for node in self.nodes.values():
            node.tick()

    def _note(self, message: m.Message) -> None:
        """A question is never answered in two ways."""
        if message.WhichOneof("body") != "result" or not message.result.HasField("done"):
            return
        task, answer = message.result.task, message.result.done.SerializeToString(deterministic=True)
        if self.answers.setdefault(task, answer) != answer:
            raise AssertionError(f"task {task} was answered in two ways")


def _lose_unsynced(place: Path) -> None:
    """Take from a run's folder what a power cut may take: all since its log was last forced onto the disk."""
    path = place / "events.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    while lines:
        event = json.loads(lines[-1])
        if event["event"] in ("round_committed", "run_finished", "run_interrupted"):
            break
        if answer := event.get("answer"):
            (place / answer["file"]).unlink(missing_ok=True)
        lines.pop()
    if path.exists():
        path.write_bytes(b"".join(lines))


__all__ = ["Deployment", "Faults", "Killed"]
