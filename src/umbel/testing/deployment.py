"""A whole deployment in one thread, on a virtual clock: the real run, server, relays and nodes; faults from a seed.

Messages cross as bytes over wires that deliver when the schedule says so. Wires are cut, messages come twice, transfers
break, and the server, relays, nodes and the run are killed at any moment and start again from what they had on disk.
The same seed gives the same life, so that a failing one can be looked at again and again.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core import encoding
from ..core.app import App
from ..core.arrays import Arrays
from ..core.randomness import Key
from ..core.task import Ticked
from ..errors import RunInterrupted
from ..node import signals as nodes
from ..node.machine import NodeMachine
from ..node.spool import Spool
from ..remote.federation import Remote, Signed
from ..remote.session import Arrived, Down, Item, Link, Up
from ..runs.run import Result, resume, run
from ..server import relaying as relays
from ..server import signals as servers
from ..server.folding import bundle
from ..server.router import Router
from ..store.records import MemoryStore
from ..wire import messages as m
from ..wire.blobs import Fetched, NotFetched
from .host import Host

INLINE = 256
"""What is larger crosses as a blob."""
STEPS = 200_000


HOST_STEPS = frozenset({("identity", 1), ("clip_by_norm", 1), ("top_k", 1)})


class Killed(BaseException):
    """The process of the run is gone, at once; with `power`, what it had not forced onto the disk is, too."""

    def __init__(self, power: bool = False) -> None:
        self.power = power


@dataclass(frozen=True)
class Faults:
    """How often, out of 1,000 steps, something goes wrong, and how many times at most in one life.

    Connections are cut, messages come twice, transfers break; the server, a relay, a node, a node's `child` or the
    run's process is killed; the run's machine loses its `power`; the run is told to `stop`, and resumed.
    """

    cuts: int = 8
    repeats: int = 8
    server: int = 4
    node: int = 6
    child: int = 20
    run: int = 3
    power: int = 2
    stop: int = 3
    relay: int = 6
    broken_transfers: int = 20
    most: int = 12

    @classmethod
    def none(cls) -> Faults:
        """Nothing goes wrong."""
        return cls(most=0)


@dataclass(eq=False)
class Wire:
    """One connection to a station: what is on its way there, and what to the peer, who has these blobs."""

    peer: str
    to: Station
    blobs: dict[bytes, bytes]
    up: deque[bytes] = field(default_factory=deque)
    down: deque[bytes] = field(default_factory=deque)
    transfers: list[tuple[str, str, m.Blob]] = field(default_factory=list)
    alive: bool = True


@dataclass(eq=False)
class Station:
    """The server, or a relay: what it has on disk and, while it is up, its router and what waits for a commit.

    A relay has a station `above` it, and a `wire` to that one while it is connected.
    """

    name: str
    store: Any
    above: Station | None = None
    blobs: dict[bytes, bytes] = field(default_factory=dict)
    router: Router | None = None
    relaying: relays.Relaying | None = None
    durable: list[servers.Say | relays.SayAbove] = field(default_factory=list)
    events: deque[servers.Event | relays.RelayEvent] = field(default_factory=deque)
    folds: dict[int, relays.FoldAnswers] = field(default_factory=dict)
    at_work: bool = False
    down_until: float = 0.0
    wire: Wire | None = None
    back_at: float = 0.0


@dataclass(eq=False)
class SimulatedNode:
    """One node: its machine, what it has on disk, the tasks that it works on, and where it connects."""

    name: str
    home: Station
    sources: Mapping[str, Any]
    spool: Any
    machine: NodeMachine
    blobs: dict[bytes, bytes] = field(default_factory=dict)
    preparing: dict[str, nodes.Prepare] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)
    busy: dict[tuple[str, str, int], nodes.Start] = field(default_factory=dict)
    stopped: set[tuple[str, str, int]] = field(default_factory=set)
    durable: list[m.Message] = field(default_factory=list)
    wire: Wire | None = None
    back_at: float = 0.0


class Deployment:
    """A server, nodes and one run of an app.

    `nodes` gives each node's clients with their sources; `relays` which nodes, or other relays, connect to each relay
    and not to the server; `faults` what goes wrong; `store` and `spool` make what is kept on disk; `scratch` is a
    folder for files. `answers` collects what was ever answered: one and the same for each question, whatever happened.
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
        self._app = app
        self._faults = faults if faults is not None else Faults()
        self._draws = Key.from_seed(seed).draws()
        self._slots = slots
        self._stall = stall
        self._make_spool = spool
        self._wanted = sum(map(len, nodes.values()))
        self.time = 0.0
        self.served = 0.0
        self.happened: list[str] = []
        self._steps = 0
        self.answers: dict[str, bytes] = {}
        self._wires: dict[str, Wire] = {}
        self._number = 0
        self._run_blobs: dict[bytes, bytes] = {}
        self._run_wire: Wire | None = None
        self._run_back_at = 0.0
        self._inbox: deque[Item] = deque()
        self._run = ""
        self._folder = scratch
        self._stations = {"server": Station("server", store())}
        self._nodes: dict[str, SimulatedNode] = {}
        self._place("server", nodes, relays or {}, store)
        for station in self._stations.values():
            self._start(station)

    def _place(self, name: str, nodes: Mapping[str, Any], relays: Mapping[str, Sequence[str]], store: Any) -> list[str]:
        """Set up all that connects to a station; the clients below it."""
        station, clients = self._stations[name], []
        elsewhere = {below for there in relays.values() for below in there}
        for below in relays.get(name, [each for each in (*relays, *nodes) if each not in elsewhere]):
            if below in nodes:
                self._nodes[below] = self._started(below, station, nodes[below], self._make_spool(below))
                mine = sorted(nodes[below])
            else:
                self._stations[below] = Station(below, store(), station)
                mine = self._place(below, nodes, relays, store)
            row = {"id": below, "name": below, "status": "approved", "clients": mine, "seen_at": 0.0}
            station.store.put("nodes", row)
            clients += mine
        station.store.commit()
        return sorted(clients)

    # What a test calls

    def run(self, folder: Path, **settings: Any) -> Result:
        """Run the app to its end, through everything that happens; a run that has failed in this folder is gone on
        with.
        """
        remote = Remote(
            "virtual",
            connect=self._connect,
            signed=Signed(b"archive", b"", b""),
            stall=self._stall,
            clients=self._wanted,
        )
        begun = folder / "virtual"
        place = begun if (begun / "events.jsonl").exists() else None
        while True:
            try:
                if place is None:
                    return run(self._app, on=remote, folder=folder, id="virtual", **settings)
                return resume(self._app, place, on=remote, observers=settings.get("observers", ()))
            except (Killed, RunInterrupted, KeyboardInterrupt) as end:
                self._cut(self._run_wire)
                self._inbox.clear()
                if isinstance(end, Killed) and end.power:
                    _lose_unsynced(folder / self._run)
                elif not isinstance(end, Killed):
                    self._stop()
                log = folder / self._run / "events.jsonl"
                place = log.parent if self._run and log.exists() and log.stat().st_size else None

    def _stop(self) -> None:
        """The server is told that the run has stopped."""
        server = self._stations["server"]
        if server.router is not None:
            for effect in server.router.end_now(self._run, "stopped", self.time):
                self._served(server, effect)

    def settle(self) -> None:
        """Let everything that is still on its way arrive, without further faults."""
        self._faults = Faults.none()
        for _ in range(STEPS):
            if not self._act():
                return

    def close(self) -> None:
        """Let go of what is on disk."""
        for station in self._stations.values():
            station.store.close()
        for node in self._nodes.values():
            node.spool.close()

    def cut(self, name: str) -> None:
        """Cut the connection of a node."""
        self._cut(self._nodes[name].wire)

    def keep_away(self, name: str, seconds: float) -> None:
        """Cut a node off for so long; the server or a relay is down for so long."""
        if name in self._stations:
            self._crash(self._stations[name], seconds)
            return
        self._cut(self._nodes[name].wire)
        self._nodes[name].back_at = self.time + seconds

    # The run's side

    def _connect(self, address: Any, *, token: Any, folder: Any, run: str) -> Link:
        self._run = run
        self._run_back_at = self.time
        self._inbox.clear()
        link = _Link(self)
        while self._run_wire is None or not self._run_wire.alive:
            self.step(None)
        self._inbox.clear()
        return link

    def step(self, until: float | None) -> None:
        """Let one thing happen, by `until` of served time at the latest."""
        self._steps += 1
        if self._steps > STEPS:
            raise AssertionError(f"no end in sight: {self.happened[-20:]}")
        if self._misfortune():
            return
        if not self._act():
            self._wait(until)

    def _below(self, bound: int) -> int:
        return int(self._draws.integers(bound, 1)[0])

    def _misfortune(self) -> bool:
        faults = self._faults
        if len(self.happened) >= faults.most:
            return False
        roll = self._below(1000)
        for chance, strike in (
            (faults.cuts, self._fault_cuts),
            (faults.repeats, self._fault_repeats),
            (faults.server, self._fault_server),
            (faults.node, self._fault_node),
            (faults.child, self._fault_child),
            (faults.run, self._fault_run),
            (faults.power, self._fault_power),
            (faults.stop, self._fault_stop),
            (faults.relay, self._fault_relay),
        ):
            if roll < chance:
                strike()
                return True
            roll -= chance
        return False

    def _fault_cuts(self) -> None:
        wires = [wire for wire in self._wires.values() if wire.alive]
        if wires:
            wire = wires[self._below(len(wires))]
            self.happened.append(f"cut {wire.peer}")
            self._cut(wire)

    def _fault_repeats(self) -> None:
        lanes = [lane for wire in self._wires.values() for lane in (wire.up, wire.down) if lane]
        if lanes:
            lane = lanes[self._below(len(lanes))]
            self.happened.append("twice")
            lane.appendleft(lane[0])

    def _fault_server(self) -> None:
        self.happened.append("server killed")
        self._crash(self._stations["server"], self._below(30) / 10)

    def _fault_relay(self) -> None:
        found = [station for station in self._stations.values() if station.above is not None]
        if found:
            station = found[self._below(len(found))]
            self.happened.append(f"relay {station.name} killed")
            self._crash(station, self._below(30) / 10)

    def _fault_node(self) -> None:
        names = list(self._nodes)
        name = names[self._below(len(names))]
        self.happened.append(f"node {name} killed")
        node = self._nodes[name]
        self._cut(node.wire)
        node.spool.crash()
        if (spool := node.spool).path is not None:
            spool.close()
            spool = self._make_spool(name)
        again = self._started(name, node.home, node.sources, spool)
        again.blobs, again.back_at = node.blobs, self.time + self._below(20) / 10
        self._nodes[name] = again

    def _fault_child(self) -> None:
        found = [node for node in self._nodes.values() if node.preparing or node.busy]
        if not found:
            return
        node = found[self._below(len(found))]
        if node.preparing:
            run, _ = node.preparing.popitem()
            self.happened.append(f"child of {node.name} killed while it prepared")
            self._tell_node(node, nodes.HostDied(run, "killed"))
            return
        key, start = list(node.busy.items())[self._below(len(node.busy))]
        if start.task.attempt == 1:  # a client that kills its host again and again is failed, as it should be
            self.happened.append(f"child of {node.name} killed at task {start.task.task}")
            del node.busy[key]
            self._tell_node(node, nodes.TaskFailed(*key, "killed", True))

    def _fault_run(self) -> None:
        if self._run_wire is not None:
            self.happened.append("run killed")
            raise Killed

    def _fault_power(self) -> None:
        if self._run_wire is not None:
            self.happened.append("the run's machine lost its power")
            raise Killed(power=True)

    def _fault_stop(self) -> None:
        if self._run_wire is not None:
            self.happened.append("stopped")
            raise KeyboardInterrupt

    # One step

    def _act(self) -> bool:
        """Do one of the things that can be done now; False where there is none."""
        actions: list[tuple[Callable[..., None], Any]] = []
        for wire in self._wires.values():
            if wire.alive:
                actions += [(self._deliver_up, wire)] * bool(wire.up) + [(self._deliver_down, wire)] * bool(wire.down)
                actions += [(self._transfer, wire)] * bool(wire.transfers)
        for station in self._stations.values():
            if station.router is None:
                actions += [(self._start, station)] * (station.down_until <= self.time)
            else:
                actions += [(self._commit, station)] * bool(station.durable or station.store._queued)
                actions += [(self._fold, station)] * bool(station.folds)
                actions += [(self._tick, station)] * self._is_due(station)
                actions += [(self._connect_relay, station)] * self._may_connect(station.above, station)
        for node in self._nodes.values():
            actions += [(self._prepared, node)] * bool(node.preparing)
            actions += [(self._work, node)] * bool(node.busy)
            actions += [(self._commit_node, node)] * bool(node.durable)
            actions += [(self._connect_node, node)] * self._may_connect(node.home, node)
        up = self._stations["server"].router is not None
        if self._run and self._run_wire is None and self._run_back_at <= self.time and up:
            actions.append((self._connect_run, None))
        if not actions:
            return False
        action, argument = actions[self._below(len(actions))]
        self._pass(self._below(10) / 1000)
        action(*([] if argument is None else [argument]))
        return True

    def _may_connect(self, above: Station | None, peer: SimulatedNode | Station) -> bool:
        return above is not None and above.router is not None and peer.wire is None and peer.back_at <= self.time

    def _is_due(self, station: Station) -> bool:
        at = station.relaying.next_tick if station.relaying is not None else None
        return at is not None and at <= self.time

    def _pass(self, seconds: float) -> None:
        self.time += seconds
        if self._run_wire is not None:
            self.served += seconds

    def _wait(self, until: float | None) -> None:
        """Nothing can be done now: the next moment at which something can."""
        peers: list[SimulatedNode | Station] = [*self._nodes.values(), *self._stations.values()]
        times = [peer.back_at for peer in peers if peer.wire is None and peer.back_at > self.time]
        times += [node.machine.next_tick for node in self._nodes.values() if node.machine.next_tick is not None]
        times += [station.down_until for station in self._stations.values() if station.router is None]
        ticks = [station.relaying.next_tick for station in self._stations.values() if station.relaying is not None]
        times += [at for at in ticks if at is not None]
        if self._run_wire is None and self._run_back_at > self.time:
            times.append(self._run_back_at)
        if until is not None and self._run_wire is not None:
            times.append(self.time + max(0.0, until - self.served))
        if not times:
            raise AssertionError(f"everybody waits for somebody else at {self.time}: {self.happened}")
        self._pass(max(0.0, min(times) - self.time) + 1e-9)
        for node in self._nodes.values():
            if node.machine.next_tick is not None and node.machine.next_tick <= self.time:
                self._tell_node(node, Ticked())

    # The server and relays

    def _start(self, station: Station) -> None:
        station.router = Router(station.store, station.blobs.__contains__)
        if station.above is not None:
            station.relaying = relays.Relaying(station.store, station.router.nodes.clients())

    def _crash(self, station: Station, seconds: float) -> None:
        for wire in list(self._wires.values()):
            if wire.to is station:
                self._cut(wire, tell_server=False)
        station.router = station.relaying = None
        self._cut(station.wire)
        station.store.take()
        station.durable.clear()
        station.events.clear()
        station.folds.clear()
        station.down_until = self.time + seconds

    def _tell(self, station: Station, event: servers.Event | relays.RelayEvent) -> None:
        """Tell a station of something, and let it do what follows from that."""
        station.events.append(event)
        if station.at_work:
            return
        station.at_work = True
        while station.events and station.router is not None:
            event = station.events.popleft()
            if isinstance(event, servers.Event):
                for effect in station.router.handle(event, self.time):
                    self._served(station, effect)
                if station.relaying is not None and isinstance(event, servers.Connected | servers.Received):
                    station.events.append(relays.Hosting(station.router.nodes.clients()))
            elif station.relaying is not None:
                for doing in station.relaying.handle(event, self.time):
                    self._relayed(station, doing)
        station.at_work = False

    def _served(self, station: Station, effect: servers.Effect) -> None:
        """Do what a router says."""
        if isinstance(effect, servers.Say):
            if effect.peer.startswith("relay "):
                station.events.append(relays.RouterSaid(effect.message))
            elif effect.durable:
                station.durable.append(effect)
            else:
                self._post(station, effect)
        elif isinstance(effect, servers.Drop):
            if effect.code != m.CODE_SUPERSEDED:
                raise AssertionError(f"{effect.peer} was dropped: {effect.text}")
            self._cut(self._wires.get(effect.peer))
        elif isinstance(effect, servers.Fetch):
            wire, way = self._wires.get(effect.peer), "up"
            if effect.peer.startswith("relay "):
                wire, way = station.wire, "down"
            if wire is not None:
                wire.transfers.append((way, effect.run, effect.blob))

    def _relayed(self, station: Station, effect: relays.RelayEffect) -> None:
        """Do what the machine of a relay says."""
        if isinstance(effect, relays.TellRouter):
            station.events.append(effect.event)
        elif isinstance(effect, relays.FoldAnswers):
            station.folds[effect.number] = effect
        elif isinstance(effect, relays.Forget):
            station.folds.pop(effect.number, None)
        elif effect.durable:
            station.durable.append(effect)
        else:
            self._post(station, effect)

    def _post(self, station: Station, say: servers.Say | relays.SayAbove) -> None:
        data = say.message.SerializeToString()
        if isinstance(say, relays.SayAbove):
            if station.wire is not None:
                station.wire.up.append(data)
        elif (wire := self._wires.get(say.peer)) is not None:
            wire.down.append(data)

    def _commit(self, station: Station) -> None:
        station.store.commit()
        durable, station.durable = station.durable, []
        for say in durable:
            self._post(station, say)

    def _fold(self, station: Station) -> None:
        number = list(station.folds)[self._below(len(station.folds))]
        fold = station.folds.pop(number)
        sheaf = bundle(fold.spec, fold.answers, lambda sha: self._file(station.blobs, sha))
        if sheaf is None:
            self._tell(station, relays.Folded(number, None))
            return
        payload = _stored(sheaf.data, station.blobs)
        self._tell(station, relays.Folded(number, payload, sheaf.receipts, sheaf.refused))

    def _tick(self, station: Station) -> None:
        self._tell(station, Ticked())

    def _connect_relay(self, station: Station) -> None:
        assert station.above is not None
        assert station.router is not None
        clients = station.router.nodes.clients()
        wire = station.wire = self._plug(f"node {station.name}", station.above, station.blobs)
        event = servers.Connected(wire.peer, "node", station.name, station.name, tuple(sorted(clients)))
        self._tell(station.above, event)
        self._tell(station, relays.Reached(clients))

    def _cut(self, wire: Wire | None, tell_server: bool = True) -> None:
        if wire is None or not wire.alive:
            return
        wire.alive = False
        self._wires.pop(wire.peer, None)
        if wire is self._run_wire:
            self._run_wire = None
            self._run_back_at = self.time + 0.1 + self._below(10) / 10
            self._inbox.append(Down())
        for node in self._nodes.values():
            if node.wire is wire:
                node.wire, node.durable = None, []
                node.back_at = self.time + 0.1 + self._below(10) / 10
                self._tell_node(node, nodes.SessionEnded())
        for station in self._stations.values():
            if station.wire is wire:
                station.wire, station.back_at = None, self.time + 0.1 + self._below(10) / 10
                self._tell(station, relays.Parted())
        if tell_server:
            self._tell(wire.to, servers.Lost(wire.peer))

    def _deliver_up(self, wire: Wire) -> None:
        self._tell(wire.to, servers.Received(wire.peer, m.Message.FromString(wire.up.popleft())))

    def _deliver_down(self, wire: Wire) -> None:
        message = m.Message.FromString(wire.down.popleft())
        if wire is self._run_wire:
            self._inbox.append(message)
            return
        for node in self._nodes.values():
            if node.wire is wire:
                self._tell_node(node, nodes.ServerSaid(message))
        for station in self._stations.values():
            if station.wire is wire:
                self._tell(station, relays.Asked(message))

    def _transfer(self, wire: Wire) -> None:
        """A blob crosses, or the transfer breaks, which breaks the connection."""
        way, run, blob = wire.transfers.pop(self._below(len(wire.transfers)))
        if len(self.happened) < self._faults.most and self._below(1000) < self._faults.broken_transfers:
            self.happened.append("transfer broken")
            self._cut(wire)
            return
        if wire is self._run_wire and way == "up" and blob.sha256 not in wire.blobs:
            self._tell(wire.to, NotFetched(run, blob.sha256, "the run has let go of it"))
            return
        node = next((node for node in self._nodes.values() if node.wire is wire), None)
        below = next((station for station in self._stations.values() if station.wire is wire), None)
        source, target = (wire.blobs, wire.to.blobs) if way == "up" else (wire.to.blobs, wire.blobs)
        assert wire.to.router is not None
        allowed = way == "up" or wire.to.router.may_read(wire.peer, run, blob.sha256)
        if way == "up" and below is not None and below.relaying is not None:
            allowed = below.relaying.may_read(run, blob.sha256)
        if blob.sha256 not in source or not allowed:
            wire.transfers.append((way, run, blob))  # it waits until the sender has it, and may give it
            self._pass(0.01)
            return
        target[blob.sha256] = source[blob.sha256]
        if way == "up":
            self._tell(wire.to, Fetched(run, blob.sha256))
        elif node is not None:
            self._tell_node(node, Fetched(run, blob.sha256))
        elif below is not None:
            self._tell(below, Fetched(run, blob.sha256))
        else:
            self._inbox.append(Arrived(blob.sha256, self._file(wire.blobs, blob.sha256)))

    def _file(self, blobs: Mapping[bytes, bytes], sha: bytes) -> Path:
        path = self._folder / sha.hex()
        path.write_bytes(blobs[sha])
        return path

    # The run's connection

    def _connect_run(self) -> None:
        server = self._stations["server"]
        wire = self._run_wire = self._plug(f"run {self._run}", server, self._run_blobs)
        self._tell(server, servers.Connected(wire.peer, "run", self._run, "someone"))
        self._inbox.append(Up())

    def _plug(self, name: str, to: Station, blobs: dict[bytes, bytes]) -> Wire:
        self._number += 1
        wire = Wire(f"{name} #{self._number}", to, blobs)
        self._wires[wire.peer] = wire
        return wire

    # Nodes

    def _started(self, name: str, home: Station, sources: Mapping[str, Any], spool: Any) -> SimulatedNode:
        return SimulatedNode(name, home, sources, spool, NodeMachine(spool, sources, slots=self._slots))

    def _connect_node(self, node: SimulatedNode) -> None:
        node.wire = self._plug(f"node {node.name}", node.home, node.blobs)
        event = servers.Connected(node.wire.peer, "node", node.name, node.name, tuple(node.sources))
        self._tell(node.home, event)
        self._tell_node(node, nodes.SessionBegun(m.Welcome()))

    def _tell_node(self, node: SimulatedNode, event: nodes.Event) -> None:
        for effect in node.machine.handle(event, self.time):
            if isinstance(effect, nodes.SayToServer):
                self._note(effect.message)
                if node.wire is None:
                    continue
                if effect.durable:
                    node.durable.append(effect.message)
                else:
                    node.wire.up.append(effect.message.SerializeToString())
            elif isinstance(effect, nodes.FetchBlob):
                if effect.blob.sha256 in node.blobs:
                    self._tell_node(node, Fetched(effect.run, effect.blob.sha256))
                elif node.wire is not None:
                    node.wire.transfers.append(("down", effect.run, effect.blob))
            elif isinstance(effect, nodes.Prepare):
                node.preparing[effect.run] = effect
            elif isinstance(effect, nodes.Start):
                node.busy[effect.run, effect.task.task, effect.task.attempt] = effect
            elif isinstance(effect, nodes.Stop):
                node.stopped.add((effect.run, effect.task, effect.attempt))
            elif isinstance(effect, nodes.EndRun):
                node.preparing.pop(effect.run, None)
                node.hosts.pop(effect.run, None)
                node.busy = {key: start for key, start in node.busy.items() if key[0] != effect.run}

    def _prepared(self, node: SimulatedNode) -> None:
        run, effect = node.preparing.popitem()
        node.hosts[run] = Host(self._app.client, node.sources, json.loads(effect.spec.config))
        self._tell_node(node, nodes.HostReady(run, frozenset(self._app.client.handlers), HOST_STEPS))

    def _work(self, node: SimulatedNode) -> None:
        key = list(node.busy)[self._below(len(node.busy))]
        start = node.busy.pop(key)
        if key in node.stopped:
            node.stopped.discard(key)
            self._tell_node(node, nodes.TaskFailed(*key, "stopped", True))
            return
        done = node.hosts[start.run].perform(start, lambda payload: _read(payload, node.blobs))
        if isinstance(done, nodes.TaskDone) and len(done.result.update.inline) > INLINE:
            done.result.update.CopyFrom(_stored(done.result.update.inline, node.blobs))
        self._tell_node(node, done)

    def _commit_node(self, node: SimulatedNode) -> None:
        node.spool.commit()
        durable, node.durable = node.durable, []
        for message in durable:
            if node.wire is not None:
                node.wire.up.append(message.SerializeToString())

    def _note(self, message: m.Message) -> None:
        """A question is never answered in two ways."""
        if message.WhichOneof("body") != "result" or not message.result.HasField("done"):
            return
        task, answer = message.result.task, message.result.done.SerializeToString(deterministic=True)
        if self.answers.setdefault(task, answer) != answer:
            raise AssertionError(f"task {task} was answered in two ways")


class _Link:
    """The run's way to the server, over a virtual wire."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    def keep(self, data: bytes) -> m.Payload:
        """Bytes as a payload."""
        return m.Payload(inline=data)

    def store(self, value: Any) -> m.Payload:
        """A tree or arrays as a payload."""
        data = value.to_bytes() if isinstance(value, Arrays) else encoding.encode(value)
        return _stored(data, self._deployment._run_blobs)

    def send(self, message: m.Message) -> None:
        """Put a message on the wire."""
        wire = self._deployment._run_wire
        if wire is not None:
            wire.up.append(message.SerializeToString())

    def receive(self, timeout: float | None) -> Item | None:
        """Let things happen until something comes, or so much served time has passed."""
        world = self._deployment
        until = None if timeout is None else world.served + timeout
        while not world._inbox:
            if until is not None and world.served >= until:
                return None
            world.step(until)
        return world._inbox.popleft()

    def fetch(self, blob: m.Blob) -> None:
        """Have a blob sent."""
        world = self._deployment
        if blob.sha256 in world._run_blobs:
            world._inbox.append(Arrived(blob.sha256, world._file(world._run_blobs, blob.sha256)))
        elif world._run_wire is not None:
            world._run_wire.transfers.append(("down", world._run, blob))

    def release(self, sha: bytes) -> None:
        """Let go of a blob."""
        self._deployment._run_blobs.pop(sha, None)

    def served(self) -> float:
        """The time in which the run was connected."""
        return self._deployment.served

    def close(self) -> None:
        """End the connection."""
        self._deployment._cut(self._deployment._run_wire)


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


def _stored(data: bytes, blobs: dict[bytes, bytes]) -> m.Payload:
    """Bytes as a payload; large ones are kept as a blob."""
    if len(data) <= INLINE:
        return m.Payload(inline=data)
    sha = hashlib.sha256(data).digest()
    blobs[sha] = data
    return m.Payload(blob=m.Blob(sha256=sha, size=len(data)))


def _read(payload: m.Payload, blobs: Mapping[bytes, bytes]) -> bytes:
    return blobs[payload.blob.sha256] if payload.HasField("blob") else payload.inline


__all__ = ["Deployment", "Faults", "Killed"]
