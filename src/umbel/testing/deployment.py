"""A whole deployment in one thread, on a virtual clock: the real run, server and nodes, with faults from a seed.

Messages cross as bytes over wires that deliver when the schedule says so. Wires are cut, messages come twice, transfers
break, and the server, nodes and the run are killed at any moment and start again from what they had on disk. The same
seed gives the same life, so that a failing one can be looked at again and again.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import encoding
from ..app import App
from ..arrays import Arrays
from ..ask import SENT, Ask, Task
from ..client import Client
from ..coordinator import Failed
from ..folds import mean
from ..node import machine as nodes
from ..node.child import TaskKeys
from ..node.executor import Executor
from ..node.spool import MemorySpool
from ..randomness import Key
from ..remote.federation import Remote, Signed
from ..remote.session import Arrived, Down, Item, Link, Up
from ..run import Result, resume, run
from ..server import signals as servers
from ..server.router import Router
from ..store.records import MemoryStore
from ..transforms import transform_from_spec
from ..wire import messages as m
from ..wire.names import client_id

INLINE = 256
"""What is larger crosses as a blob."""
STEPS = 200_000


class Killed(BaseException):
    """The process of the run is gone, at once."""


@dataclass(frozen=True)
class Faults:
    """How often, out of 1,000 steps, something goes wrong, and how many times at most in one life."""

    cuts: int = 8
    repeats: int = 8
    server: int = 4
    node: int = 6
    run: int = 3
    broken_transfers: int = 20
    most: int = 12


@dataclass(eq=False)
class Wire:
    """One connection: what is on its way to the server, and what to the peer."""

    peer: str
    up: deque[bytes] = field(default_factory=deque)
    down: deque[bytes] = field(default_factory=deque)
    transfers: list[tuple[str, str, m.Blob]] = field(default_factory=list)
    alive: bool = True


class Host:
    """The clients of one run on one node, in this process; a stand-in for the node's child."""

    def __init__(self, client: Client, sources: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        self._keys = TaskKeys()
        self._kept: dict[str, Any] = {}
        self._client = client
        self._sources = {client_id(name): source for name, source in sources.items()}
        self._config = config

    def get(self, client: Any) -> dict[str, Any]:
        """The state of the client at work."""
        return self._kept

    def perform(self, start: nodes.Start, read: Callable[[m.Payload], bytes]) -> nodes.TaskDone | nodes.TaskFailed:
        """Do a task as a child does it."""
        task, spec = start.task, start.ask
        sent = encoding.decode(read(spec.shared))
        if spec.HasField("model"):
            sent["model"] = Arrays.from_bytes(read(spec.model))
        own = encoding.decode(read(task.own)) if task.HasField("own") else {}
        given: dict[str, Any] = {name: sent[name] if name in sent else own.get(name) for name in SENT}
        import json

        steps = transform_from_spec(json.loads(spec.transforms))
        ask = Ask(clients=(), kind=spec.kind, lane=spec.lane, transforms=steps, fold=mean(), **given)
        executor = Executor(
            self._client, self._sources.__getitem__, config=self._config, keys=self._keys, states=self, data_cache=0
        )
        self._keys.task, self._keys.data = Key(task.key), Key(task.data_key)
        self._kept = {} if start.base is None else dict(encoding.decode(start.base))
        executor.open(spec.ask, ask, spec.round, spec.number, sent.get("params"))
        found = executor.answer(Task(task.task, task.ask, client_id(task.client), task.attempt))
        if isinstance(found, Failed):
            return nodes.TaskFailed(start.run, task.task, task.attempt, found.reason, found.retry)
        receipt = m.Receipt(
            task=task.task,
            client=task.client,
            weight=found.receipt.weight,
            metrics=dict(found.receipt.metrics),
            kept=found.state is not None,
        )
        done = m.Done(receipt=receipt, update=m.Payload(inline=encoding.encode(found.update)))
        return nodes.TaskDone(start.run, task.task, task.attempt, done, found.state)


@dataclass(eq=False)
class Node:
    """One node: its machine, what it has on disk, and the tasks that it works on."""

    name: str
    sources: Mapping[str, Any]
    spool: Any
    machine: nodes.NodeMachine
    blobs: dict[bytes, bytes] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)
    busy: dict[tuple[str, str, int], nodes.Start] = field(default_factory=dict)
    stopped: set[tuple[str, str, int]] = field(default_factory=set)
    durable: list[m.Message] = field(default_factory=list)
    wire: Wire | None = None
    back_at: float = 0.0


class Deployment:
    """A server, nodes and one run of an app.

    `nodes` gives each node's clients with their sources; `faults` what goes wrong; `store` and `spool` make what is
    kept on disk; `scratch` is a folder for files. `answers` collects what was ever answered: one and the same for each question, whatever happened.
    """

    def __init__(
        self,
        app: App,
        nodes: Mapping[str, Mapping[str, Any]],
        *,
        seed: int,
        faults: Faults | None = None,
        store: Callable[[], Any] = MemoryStore,
        spool: Callable[[str], Any] = lambda name: MemorySpool(),
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
        self._store = store()
        self._blobs: dict[bytes, bytes] = {}
        self._durable: list[servers.Say] = []
        self._router: Router | None = None
        self._down_until = 0.0
        self._wires: dict[str, Wire] = {}
        self._number = 0
        self._run_blobs: dict[bytes, bytes] = {}
        self._run_wire: Wire | None = None
        self._run_back_at = 0.0
        self._inbox: deque[Item] = deque()
        self._run = ""
        self._folder = scratch
        for name, sources in nodes.items():
            row = {"id": name, "name": name, "status": "approved", "clients": sorted(sources), "seen_at": 0.0}
            self._store.put("nodes", row)
        self._store.commit()
        self._nodes = {name: self._started(name, sources, spool(name)) for name, sources in nodes.items()}
        self._start_server()

    # What a test calls

    def run(self, folder: Path, **settings: Any) -> Result:
        """Run the app to its end, through everything that happens."""
        remote = Remote(
            "virtual",
            connect=self._connect,
            signed=Signed(b"archive", b"", b""),
            stall=self._stall,
            clients=self._wanted,
        )
        place = None
        while True:
            try:
                if place is None:
                    return run(self._app, on=remote, folder=folder, id="virtual", **settings)
                return resume(self._app, place, on=remote, observers=settings.get("observers", ()))
            except Killed:
                self._cut(self._run_wire)
                self._inbox.clear()
                if place is None and self._run and (folder / self._run / "events.jsonl").exists():
                    place = folder / self._run

    def settle(self) -> None:
        """Let everything that is still on its way arrive, without further faults."""
        self._faults = Faults(0, 0, 0, 0, 0, 0, 0)
        for _ in range(STEPS):
            if not self._act():
                return

    def close(self) -> None:
        """Let go of what is on disk."""
        self._store.close()
        for node in self._nodes.values():
            node.spool.close()

    def cut(self, name: str) -> None:
        """Cut the connection of a node."""
        self._cut(self._nodes[name].wire)

    def keep_away(self, name: str, seconds: float) -> None:
        """Cut a node off for so long; `"server"` for the server itself."""
        if name == "server":
            self._crash_server(seconds)
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
        for name in ("cuts", "repeats", "server", "node", "run"):
            chance = getattr(faults, name)
            if roll < chance:
                getattr(self, f"_fault_{name}")()
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
        self._crash_server(self._below(30) / 10)

    def _fault_node(self) -> None:
        names = list(self._nodes)
        name = names[self._below(len(names))]
        self.happened.append(f"node {name} killed")
        node = self._nodes[name]
        self._cut(node.wire)
        node.spool.close()  # what was not written is lost
        spool = node.spool if isinstance(node.spool, MemorySpool) else self._make_spool(name)
        again = self._started(name, node.sources, spool)
        again.blobs, again.back_at = node.blobs, self.time + self._below(20) / 10
        self._nodes[name] = again

    def _fault_run(self) -> None:
        if self._run_wire is not None:
            self.happened.append("run killed")
            raise Killed

    # One step

    def _act(self) -> bool:
        """Do one of the things that can be done now; False where there is none."""
        actions: list[tuple[Callable[..., None], Any]] = []
        for wire in self._wires.values():
            if wire.alive:
                actions += [(self._deliver_up, wire)] * bool(wire.up) + [(self._deliver_down, wire)] * bool(wire.down)
                actions += [(self._transfer, wire)] * bool(wire.transfers)
        if self._router is not None and (self._durable or self._store._queued):
            actions.append((self._commit_server, None))
        for node in self._nodes.values():
            actions += [(self._work, node)] * bool(node.busy)
            actions += [(self._commit_node, node)] * bool(node.durable)
            if node.wire is None and node.back_at <= self.time and self._router is not None:
                actions.append((self._connect_node, node))
        if self._run and self._run_wire is None and self._run_back_at <= self.time and self._router is not None:
            actions.append((self._connect_run, None))
        if not actions:
            return False
        action, argument = actions[self._below(len(actions))]
        self._pass(self._below(10) / 1000)
        action(*([] if argument is None else [argument]))
        return True

    def _pass(self, seconds: float) -> None:
        self.time += seconds
        if self._run_wire is not None:
            self.served += seconds

    def _wait(self, until: float | None) -> None:
        """Nothing can be done now: the next moment at which something can."""
        times = [node.back_at for node in self._nodes.values() if node.wire is None and node.back_at > self.time]
        times += [node.machine.next_tick for node in self._nodes.values() if node.machine.next_tick is not None]
        if self._router is None:
            times.append(self._down_until)
        if self._run_wire is None and self._run_back_at > self.time:
            times.append(self._run_back_at)
        if until is not None and self._run_wire is not None:
            times.append(self.time + max(0.0, until - self.served))
        if not times:
            raise AssertionError(f"everybody waits for somebody else at {self.time}: {self.happened}")
        self._pass(max(0.0, min(times) - self.time) + 1e-9)
        if self._router is None and self.time >= self._down_until:
            self._start_server()
        for node in self._nodes.values():
            if node.machine.next_tick is not None and node.machine.next_tick <= self.time:
                self._tell_node(node, nodes.Ticked())

    # The server

    def _start_server(self) -> None:
        self._router = Router(self._store, self._blobs.__contains__)

    def _crash_server(self, seconds: float) -> None:
        for wire in list(self._wires.values()):
            self._cut(wire, tell_server=False)
        self._store.take()
        self._durable.clear()
        self._router = None
        self._down_until = self.time + seconds

    def _tell_server(self, event: servers.Event) -> None:
        if self._router is None:
            return
        for effect in self._router.handle(event, self.time):
            if isinstance(effect, servers.Say):
                if effect.durable:
                    self._durable.append(effect)
                else:
                    self._post(effect)
            elif isinstance(effect, servers.Drop):
                wire = self._wires.get(effect.peer)
                if effect.code != m.CODE_SUPERSEDED:
                    raise AssertionError(f"{effect.peer} was dropped: {effect.text}")
                self._cut(wire)
            elif isinstance(effect, servers.Fetch):
                wire = self._wires.get(effect.peer)
                if wire is not None:
                    wire.transfers.append(("up", effect.run, effect.blob))

    def _post(self, say: servers.Say) -> None:
        wire = self._wires.get(say.peer)
        if wire is not None and wire.alive:
            wire.down.append(say.message.SerializeToString())

    def _commit_server(self) -> None:
        self._store.commit()
        durable, self._durable = self._durable, []
        for say in durable:
            self._post(say)

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
                self._tell_node(node, nodes.Disconnected())
        if tell_server:
            self._tell_server(servers.Lost(wire.peer))

    def _deliver_up(self, wire: Wire) -> None:
        self._tell_server(servers.Received(wire.peer, m.Message.FromString(wire.up.popleft())))

    def _deliver_down(self, wire: Wire) -> None:
        message = m.Message.FromString(wire.down.popleft())
        if wire is self._run_wire:
            self._inbox.append(message)
            return
        for node in self._nodes.values():
            if node.wire is wire:
                self._tell_node(node, nodes.Received(message))

    def _transfer(self, wire: Wire) -> None:
        """A blob crosses, or the transfer breaks, which breaks the connection."""
        way, run, blob = wire.transfers.pop(self._below(len(wire.transfers)))
        if len(self.happened) < self._faults.most and self._below(1000) < self._faults.broken_transfers:
            self.happened.append("transfer broken")
            self._cut(wire)
            return
        node = next((node for node in self._nodes.values() if node.wire is wire), None)
        theirs = node.blobs if node is not None else self._run_blobs
        source, target = (theirs, self._blobs) if way == "up" else (self._blobs, theirs)
        assert self._router is not None
        allowed = way == "up" or self._router.may_read(wire.peer, run, blob.sha256)
        if blob.sha256 not in source or not allowed:
            wire.transfers.append((way, run, blob))  # it waits until the sender has it, and may give it
            self._pass(0.01)
            return
        target[blob.sha256] = source[blob.sha256]
        if way == "up":
            self._tell_server(servers.Fetched(run, blob.sha256))
        elif node is not None:
            self._tell_node(node, nodes.Fetched(run, blob.sha256))
        else:
            self._inbox.append(Arrived(blob.sha256, self._file(blob.sha256)))

    def _file(self, sha: bytes) -> Path:
        path = self._folder / sha.hex()
        path.write_bytes(self._run_blobs[sha])
        return path

    # The run's connection

    def _connect_run(self) -> None:
        wire = self._run_wire = self._plug(f"run {self._run}")
        self._tell_server(servers.Connected(wire.peer, "run", self._run, "someone"))
        self._inbox.append(Up())

    def _plug(self, name: str) -> Wire:
        self._number += 1
        wire = Wire(f"{name} #{self._number}")
        self._wires[wire.peer] = wire
        return wire

    # Nodes

    def _started(self, name: str, sources: Mapping[str, Any], spool: Any) -> Node:
        return Node(name, sources, spool, nodes.NodeMachine(spool, sources, slots=self._slots))

    def _connect_node(self, node: Node) -> None:
        node.wire = self._plug(f"node {node.name}")
        event = servers.Connected(node.wire.peer, "node", node.name, node.name, tuple(node.sources))
        self._tell_server(event)
        self._tell_node(node, nodes.Connected(m.Welcome()))

    def _tell_node(self, node: Node, event: nodes.Event) -> None:
        for effect in node.machine.handle(event, self.time):
            if isinstance(effect, nodes.Say):
                self._note(effect.message)
                if node.wire is None:
                    continue
                if effect.durable:
                    node.durable.append(effect.message)
                else:
                    node.wire.up.append(effect.message.SerializeToString())
            elif isinstance(effect, nodes.Fetch):
                if effect.blob.sha256 in node.blobs:
                    self._tell_node(node, nodes.Fetched(effect.run, effect.blob.sha256))
                elif node.wire is not None:
                    node.wire.transfers.append(("down", effect.run, effect.blob))
            elif isinstance(effect, nodes.Prepare):
                self._prepare(node, effect)
            elif isinstance(effect, nodes.Start):
                node.busy[effect.run, effect.task.task, effect.task.attempt] = effect
            elif isinstance(effect, nodes.Stop):
                node.stopped.add((effect.run, effect.task, effect.attempt))
            elif isinstance(effect, nodes.EndRun):
                node.hosts.pop(effect.run, None)
                node.busy = {key: start for key, start in node.busy.items() if key[0] != effect.run}

    def _prepare(self, node: Node, effect: nodes.Prepare) -> None:
        import json

        node.hosts[effect.run] = Host(self._app.client, node.sources, json.loads(effect.spec.config))
        handlers = frozenset(self._app.client.handlers)
        steps = frozenset({("identity", 1), ("clip_by_norm", 1), ("top_k", 1)})
        self._tell_node(node, nodes.HostReady(effect.run, handlers, steps))

    def _work(self, node: Node) -> None:
        key = list(node.busy)[self._below(len(node.busy))]
        start = node.busy.pop(key)
        if key in node.stopped:
            node.stopped.discard(key)
            self._tell_node(node, nodes.TaskFailed(*key, "stopped", True))
            return
        done = node.hosts[start.run].perform(start, lambda payload: _read(payload, node.blobs))
        if isinstance(done, nodes.TaskDone) and len(done.result.update.inline) > INLINE:
            data = done.result.update.inline
            sha = hashlib.sha256(data).digest()
            node.blobs[sha] = data
            done.result.update.blob.CopyFrom(m.Blob(sha256=sha, size=len(data)))
        self._tell_node(node, done)

    def _commit_node(self, node: Node) -> None:
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
        if len(data) <= INLINE:
            return m.Payload(inline=data)
        sha = hashlib.sha256(data).digest()
        self._deployment._run_blobs[sha] = data
        return m.Payload(blob=m.Blob(sha256=sha, size=len(data)))

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
            world._inbox.append(Arrived(blob.sha256, world._file(blob.sha256)))
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


def _read(payload: m.Payload, blobs: Mapping[bytes, bytes]) -> bytes:
    return blobs[payload.blob.sha256] if payload.HasField("blob") else payload.inline


__all__ = ["Deployment", "Faults", "Killed"]
