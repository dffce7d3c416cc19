"""The server, or a relay, of a deployment in memory: the real machines, and what a process has around them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from ..core.task import Ticked
from ..server import signals as servers
from ..server.folding import bundle
from ..server.relaying import Relaying
from ..server.router import Router
from ..wire import messages as m
from ..wire.blobs import Fetched
from .network import HeldBlobs, Network, WireEnd


class Station(WireEnd):
    """What it has on disk, `store` and `blobs`, and, while it is up, its router and what waits for a commit.

    A relay has a wire to the station `above` it.
    """

    def __init__(self, name: str, store: Any, network: Network, above: Station | None = None) -> None:
        self.name = name
        self.store = store
        self.blobs = HeldBlobs(network.folder)
        self._given: set[tuple[bytes, str]] = set()
        self._network = network
        self._wire = network.wire(f"node {name}", above, self) if above is not None else None
        self._router: Router | None = None
        self._relaying: Relaying | None = None
        self._durable: list[servers.Say | servers.SayAbove] = []
        self._events: deque[servers.Event | servers.RelayEvent] = deque()
        self._folds: dict[int, servers.FoldAnswers] = {}
        self._at_work = False
        self._down_until = 0.0

    @property
    def is_relay(self) -> bool:
        """Whether it is no server of its own."""
        return self._wire is not None

    @property
    def up(self) -> bool:
        """Whether it can be connected to."""
        return self._router is not None

    def start(self) -> None:
        """Be up, with what is on disk."""
        self._router = Router(self.store, lambda sha, giver: (sha, giver) in self._given)
        if self.is_relay:
            self._relaying = Relaying(self.store, self._router.nodes.clients())

    def crash(self, seconds: float) -> None:
        """Be down for so long; all that is not on disk is lost."""
        for wire in list(self._network.wires.values()):
            if wire.to is self:
                self._network.cut(wire, tell_station=False)
        self._router = self._relaying = None
        self._network.cut(self._wire)
        self.store.take()
        self._durable.clear()
        self._events.clear()
        self._folds.clear()
        self._down_until = self._network.clock() + seconds

    def actions(self) -> list[Callable[[], None]]:
        """What it can do now."""
        now = self._network.clock()
        if self._router is None:
            return [self.start] if self._down_until <= now else []
        tick = self._relaying.next_tick if self._relaying is not None else None
        possible = (
            (self._commit, bool(self._durable or self.store.waiting)),
            (self._fold, bool(self._folds)),
            (partial(self.tell, Ticked()), tick is not None and tick <= now),
            (self._connect, self._wire is not None and self._network.may_plug(self._wire)),
        )
        return [action for action, can in possible if can]

    def moments(self) -> list[float]:
        """When it can do something next."""
        tick = self._relaying.next_tick if self._relaying is not None else None
        found = [self._down_until] if self._router is None else []
        return found if tick is None else [*found, tick]

    def tell(self, event: servers.Event | servers.RelayEvent) -> None:
        """Tell it of something, and let it do what follows from that."""
        self._events.append(event)
        if self._at_work:
            return
        self._at_work = True
        while self._events and self._router is not None:
            event = self._events.popleft()
            if isinstance(event, servers.Event):
                for effect in self._router.handle(event, self._network.clock()):
                    self._served(effect)
                if self._relaying is not None and isinstance(event, servers.Connected | servers.Received):
                    self._events.append(servers.Hosting(self._router.nodes.clients()))
            elif self._relaying is not None:
                for doing in self._relaying.handle(event, self._network.clock()):
                    self._relayed(doing)
        self._at_work = False

    def stop_run(self, run: str) -> None:
        """A run has stopped."""
        if self._router is not None:
            for effect in self._router.end_now(run, "stopped", self._network.clock()):
                self._served(effect)

    # Blobs, and what comes from the station above

    def give_below(self, peer: str, run: str, sha: bytes) -> bytes | None:
        """A blob for who is connected; None as long as it is not there, or they may not have it."""
        assert self._router is not None
        return self.blobs.get(sha) if self._router.may_read(peer, run, sha) else None

    def give(self, run: str, sha: bytes) -> bytes | None:
        allowed = self._relaying is None or self._relaying.may_read(run, sha)
        return self.blobs.get(sha) if allowed else None

    def take(self, run: str, sha: bytes, data: bytes, giver: str) -> None:
        self.blobs[sha] = data
        self._given.add((sha, giver))
        self.tell(Fetched(run, sha, giver))

    def hear(self, message: m.Message) -> None:
        self.tell(servers.Asked(message))

    def parted(self) -> None:
        self.tell(servers.Parted())

    def _connect(self) -> None:
        assert self._wire is not None
        assert self._router is not None
        clients, peer = self._router.nodes.clients(), self._network.plug(self._wire)
        self._wire.to.tell(servers.Connected(peer, "node", self.name, self.name, tuple(sorted(clients)), relay=True))
        self.tell(servers.Reached(clients))

    # What its machines say

    def _served(self, effect: servers.Effect) -> None:
        """Do what the router says."""
        if isinstance(effect, servers.Say):
            if effect.peer.startswith("relay "):
                self._events.append(servers.RouterSaid(effect.message))
            elif effect.durable:
                self._durable.append(effect)
            else:
                self._post(effect)
        elif isinstance(effect, servers.Drop):
            if effect.code != m.CODE_SUPERSEDED:
                raise AssertionError(f"{effect.peer} was dropped: {effect.text}")
            self._network.cut(self._network.wires.get(effect.peer))
        elif isinstance(effect, servers.Fetch):
            if self._wire is not None and effect.peer.startswith("relay "):
                self._wire.fetch(effect.run, effect.blob, effect.giver)
            elif (wire := self._network.wires.get(effect.peer)) is not None:
                wire.transfers.append((True, effect.run, effect.blob, effect.giver))

    def _relayed(self, effect: servers.RelayEffect) -> None:
        """Do what the machine of a relay says."""
        if isinstance(effect, servers.TellRouter):
            self._events.append(effect.event)
        elif isinstance(effect, servers.FoldAnswers):
            self._folds[effect.number] = effect
        elif isinstance(effect, servers.Forget):
            self._folds.pop(effect.number, None)
        elif effect.durable:
            self._durable.append(effect)
        else:
            self._post(effect)

    def _post(self, say: servers.Say | servers.SayAbove) -> None:
        if isinstance(say, servers.Say):
            if (wire := self._network.wires.get(say.peer)) is not None:
                wire.down.append(say.message.SerializeToString())
        elif self._wire is not None:
            self._wire.send(say.message)

    def _commit(self) -> None:
        self.store.commit()
        durable, self._durable = self._durable, []
        for say in durable:
            self._post(say)

    def _fold(self) -> None:
        number = self._network.chance.pick(list(self._folds))
        fold = self._folds.pop(number)
        sheaf = bundle(fold.spec, fold.answers, self.blobs.file)
        if sheaf is None:
            self.tell(servers.Folded(number, None))
        else:
            self.tell(servers.Folded(number, self.blobs.payload(sheaf.data), sheaf.receipts, sheaf.refused))
