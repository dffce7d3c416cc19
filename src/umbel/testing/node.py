"""A node of a deployment in memory: the real machine, what is around it, and the real child without its process."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core import encoding
from ..core.client import Client
from ..core.task import Ticked
from ..node import signals as nodes
from ..node.audit import SpooledRecords
from ..node.child import ChildProgram, Message
from ..node.ledger import PrivacyLedger
from ..node.machine import NodeMachine
from ..node.sessions import SecureSessions
from ..server.signals import Connected
from ..trust.audit import Audit
from ..trust.identity import SigningKey
from ..wire import messages as m
from ..wire.blobs import Fetched
from ..work import contents
from .network import INLINE, HeldBlobs, Network, WireEnd
from .station import Station


class LocalChild:
    """What a node's children do for one run, in this process and one task after the other.

    The program is told what `Children` tell it, and what it says becomes what they make of it; but a task takes no
    time, so that the same seed gives the same answers.
    """

    def __init__(
        self, client: Client, sources: Mapping[str, Any], run: str, config: Mapping[str, Any], blobs: HeldBlobs
    ) -> None:
        self._client = client
        self._beginning = {"config": config, "sources": sources, "device": "cpu", "slot": 0, "data_cache": 0}
        self._run = run
        self._blobs = blobs
        self._said: list[Message] = []
        self._unwanted: set[str] = set()
        self.begin()

    def begin(self) -> None:
        """Begin, or begin again once it was killed."""
        self._ask: int | None = None
        self._program = ChildProgram(self._client, self._beginning, say=self._say, unwanted=self._unwanted)

    def ready(self) -> nodes.HostReady:
        """What can be asked of it."""
        self._program.ready()
        told = self._said.pop()
        known = frozenset((name, version) for name, version in told["transforms"])
        return nodes.HostReady(self._run, frozenset(told["handlers"]), known)

    def perform(self, start: nodes.Start, stopped: bool) -> nodes.TaskDone | nodes.TaskFailed:
        """Do a task, unless it is stopped already."""
        task = start.task
        if start.ask.ask != self._ask:
            self._open(start.ask)
        self._unwanted.clear()
        if stopped:
            self._unwanted.add(task.task)
        result = self._blobs.folder / "result"
        self._program.hear(
            {
                "type": "task",
                **{name: getattr(task, name) for name in ("ask", "task", "client", "attempt")},
                "key": task.key.hex(),
                "data_key": task.data_key.hex(),
                "base": None if start.base is None else _inline(start.base),
                "own": self._part(task.own) if task.HasField("own") else None,
                "result": str(result),
            }
        )
        told = next(message for message in self._said if message["type"] != "stepped")
        self._said.clear()
        if told["type"] != "done":
            cancelled = told["type"] == "cancelled"
            reason = "it was not wanted any more" if cancelled else told["reason"]
            return nodes.TaskFailed(self._run, task.task, task.attempt, reason, cancelled or told["retry"])
        state = told["state"] and _data(told["state"])
        receipt = m.Receipt(
            task=task.task,
            client=task.client,
            weight=told["weight"],
            metrics=told["metrics"],
            kept=state is not None,
        )
        done = m.Done(receipt=receipt, update=self._payload(told["update"]))
        return nodes.TaskDone(self._run, task.task, task.attempt, done, state, tuple(told["accounted"]))

    def _open(self, ask: m.AskSpec) -> None:
        if self._ask is not None:
            self._program.hear({"type": "forget", "asks": [self._ask]})
        self._ask = ask.ask
        self._program.hear(
            {
                "type": "ask",
                "id": ask.ask,
                **{name: getattr(ask, name) for name in ("round", "number", "kind", "lane", "transforms")},
                "model": self._part(ask.model) if ask.HasField("model") else None,
                "shared": self._part(ask.shared),
            }
        )

    def _say(self, type: str, **message: Any) -> None:
        self._said.append({"type": type, **message})

    def _part(self, payload: m.Payload) -> Message:
        if payload.HasField("blob"):
            return {"file": str(self._blobs.file(payload.blob.sha256))}
        return _inline(payload.SerializeToString())

    def _payload(self, part: Message) -> m.Payload:
        """An update as a payload; large ones are kept as a blob."""
        found = m.Payload() if "file" in part else m.Payload.FromString(_data(part))
        if len(found.message) > INLINE:
            return self._blobs.payload(encoding.encode(contents.answer(found)))
        return found if found.message else self._blobs.payload(_data(part))


class SimulatedNode(WireEnd):
    """What it has on disk, its spool and `blobs`, its machine, and the tasks that its children work on.

    `preparing` and `busy` are what its children are at, `audit` has its ledger; `note` is told of every message that it
    says.
    """

    def __init__(
        self,
        client: Client,
        network: Network,
        name: str,
        sources: Mapping[str, Any],
        home: Station,
        *,
        make_spool: Callable[[str], Any],
        slots: int,
        note: Callable[[m.Message], None],
    ) -> None:
        self.name = name
        self.blobs = HeldBlobs(network.folder)
        self._client = client
        self._sources = sources
        self._network = network
        self._wire = network.wire(f"node {name}", home, self)
        self._make_spool = make_spool
        self._slots = slots
        self._note = note
        self._begin(make_spool(name))

    def _begin(self, spool: Any) -> None:
        self._spool = spool
        records: Any = SpooledRecords(spool)
        self.audit = Audit(records, self._network.clock)
        self._ledger = PrivacyLedger(self.audit, SigningKey.of_seed(bytes(32)), clock=self._network.clock)
        self._sessions = SecureSessions(self.audit)
        self._machine = NodeMachine(spool, self._sources, slots=self._slots, account=self._account)
        self.preparing: dict[str, nodes.Prepare] = {}
        self.busy: dict[tuple[str, str, int], nodes.Start] = {}
        self._children: dict[str, LocalChild] = {}
        self._stopped: set[tuple[str, str, int]] = set()
        self._durable: list[m.Message] = []

    def actions(self) -> list[Callable[[], None]]:
        """What it can do now."""
        possible = (
            (self._prepare, self.preparing),
            (self._work, self.busy),
            (self._commit, self._durable),
            (self._connect, self._network.may_plug(self._wire)),
        )
        return [action for action, can in possible if can]

    def moments(self) -> list[float]:
        """When it can do something next."""
        return [] if self._machine.next_tick is None else [self._machine.next_tick]

    def tick(self) -> None:
        """Tell it of the time, where it waits for that."""
        if self._machine.next_tick is not None and self._machine.next_tick <= self._network.clock():
            self._tell(Ticked())

    # What befalls it

    def keep_away(self, seconds: float) -> None:
        """Cut it off for so long."""
        self._network.cut(self._wire)
        self._wire.back_at = self._network.clock() + seconds

    def crash(self) -> None:
        """It is killed, and begins anew with what is on disk."""
        self._network.cut(self._wire)
        self._spool.crash()
        if (spool := self._spool).path is not None:
            spool.close()
            spool = self._make_spool(self.name)
        self._begin(spool)

    def fail_to_prepare(self, reason: str) -> None:
        """What it prepares dies."""
        run, _ = self.preparing.popitem()
        self._tell(nodes.HostDied(run, reason))

    def kill_child(self, start: nodes.Start) -> None:
        """The child that does a task is killed."""
        task = start.task
        del self.busy[start.run, task.task, task.attempt]
        self._children[start.run].begin()
        self._tell(nodes.TaskFailed(start.run, task.task, task.attempt, "killed", True))

    def close(self) -> None:
        """Let go of what is on disk."""
        self._spool.close()

    # What comes over its wire

    def hear(self, message: m.Message) -> None:
        self._tell(nodes.ServerSaid(message))

    def give(self, run: str, sha: bytes) -> bytes | None:
        return self.blobs.get(sha)

    def take(self, run: str, sha: bytes, data: bytes, giver: str) -> None:
        self.blobs[sha] = data
        self._tell(Fetched(run, sha))

    def parted(self) -> None:
        self._durable = []
        self._tell(nodes.SessionEnded())

    def _connect(self) -> None:
        peer = self._network.plug(self._wire)
        self._wire.to.tell(Connected(peer, "node", self.name, self.name, tuple(self._sources)))
        self._tell(nodes.SessionBegun(m.Welcome()))

    # What its machine says

    def _tell(self, event: nodes.Event) -> None:
        if isinstance(event, nodes.TaskDone):
            self._ledger.done(event)
            if reason := self._sessions.done(event):
                event = nodes.TaskFailed(event.run, event.task, event.attempt, reason, False)
        self._carry_out(event)
        self._ledger.over(event)
        self._sessions.over(event)

    def _account(self, task: m.Task, ask: m.AskSpec) -> None:
        self._ledger.commit(task, ask)
        self._sessions.commit(task, ask)

    def _carry_out(self, event: nodes.Event) -> None:
        for effect in self._machine.handle(event, self._network.clock()):
            if isinstance(effect, nodes.SayToServer):
                if effect.durable and self._wire.peer:
                    self._durable.append(effect.message)
                else:
                    self._send(effect.message)
            elif isinstance(effect, nodes.FetchBlob):
                if effect.blob.sha256 in self.blobs:
                    self._tell(Fetched(effect.run, effect.blob.sha256))
                else:
                    self._wire.fetch(effect.run, effect.blob)
            elif isinstance(effect, nodes.Prepare):
                self.preparing[effect.run] = effect
            elif isinstance(effect, nodes.Start):
                self._ledger.begin(effect, "", self.blobs.file)
                at = effect.run, effect.task.task, effect.task.attempt
                if reason := self._sessions.begin(effect):
                    self._tell(nodes.TaskFailed(*at, reason, False))
                else:
                    self.busy[at] = effect
            elif isinstance(effect, nodes.Stop):
                self._stopped.add((effect.run, effect.task, effect.attempt))
            elif isinstance(effect, nodes.EndRun):
                self._ledger.ended(effect.run)
                self._sessions.ended(effect.run)
                self.preparing.pop(effect.run, None)
                self._children.pop(effect.run, None)
                self.busy = {key: start for key, start in self.busy.items() if key[0] != effect.run}

    def _prepare(self) -> None:
        run, effect = self.preparing.popitem()
        config = json.loads(effect.spec.config)
        child = self._children[run] = LocalChild(self._client, self._sources, run, config, self.blobs)
        self._tell(child.ready())

    def _work(self) -> None:
        key = self._network.chance.pick(list(self.busy))
        start = self.busy.pop(key)
        stopped = key in self._stopped
        self._stopped.discard(key)
        self._tell(self._children[start.run].perform(start, stopped))

    def _commit(self) -> None:
        self._spool.commit()
        durable, self._durable = self._durable, []
        for message in durable:
            self._send(message)

    def _send(self, message: m.Message) -> None:
        if self._wire.peer:  # else nobody hears it
            self._note(message)
        self._wire.send(message)


def _inline(data: bytes) -> Message:
    return {"base64": base64.b64encode(data).decode()}


def _data(part: Message) -> bytes:
    return Path(part["file"]).read_bytes() if "file" in part else base64.b64decode(part["base64"])
