"""How a server does what its router says: messages are sent, blobs fetched and held, followers and runs' ends told."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Any, Protocol

from ..errors import ConnectionLost, CorruptFile, ProtocolError, Refused, StorageError
from ..store.commits import RETRY_SECONDS
from ..wire import messages as m
from ..wire.blobs import Fetched, NotFetched, run_giver
from ..wire.limits import ALIVE_TASKS
from .connections import LAZY, Connections
from .programs import Surroundings
from .signals import Drop, Effect, Event, Fetch, Hold, Release, RunBegun, RunEnded, Say, Tell

_LOG = logging.getLogger("umbel.server")


class InternalPeer(Protocol):
    """Somebody in this process to whom the router speaks as to a peer, and who gets blobs for it."""

    def say(self, peer: str, message: m.Message) -> None: ...
    def dropped(self, peer: str, text: str) -> None: ...
    async def fetch(self, blob: m.Blob, run: str) -> None: ...


class Dispatch:
    """Tells a router what happened, and does what it says.

    `insiders` are the peers in this process, by the names that the router has for them.
    """

    def __init__(self, around: Surroundings, connections: Connections) -> None:
        self._around = around
        self._connections = connections
        self._fetching: set[tuple[str, str, bytes]] = set()
        self._again: set[tuple[str, str, bytes]] = set()
        self._problems: dict[tuple[str, str, bytes], str] = {}
        self._held: list[Say] = []
        self._acks: dict[tuple[Any, ...], m.Ack] = {}
        self.insiders: dict[str, InternalPeer] = {}

    @property
    def problem(self) -> str:
        """Why what peers send cannot be written, if so."""
        return next(iter(self._problems.values()), "")

    def tell(self, event: Event) -> None:
        """Tell the router what happened, and do what it says."""
        self.carry(self._around.router.handle(event, time.time()))

    def carry(self, effects: Iterable[Effect]) -> None:
        """Do what the router says."""
        soon = False
        for effect in effects:
            if isinstance(effect, Say):
                if effect.durable:
                    soon = soon or effect.message.WhichOneof("body") not in LAZY
                    if not self._joins(effect):
                        self._around.commits.hold(effect)
                else:
                    self.post(effect)
            elif isinstance(effect, Fetch):
                self._around.begin(self._fetch(effect))
            elif isinstance(effect, Hold):
                self._around.blobs.hold(effect.sha, effect.owner)
            elif isinstance(effect, Release):
                self._around.blobs.release(effect.owner)
                self._around.let_go()
            elif isinstance(effect, Tell):
                self._around.feeds.tell(effect.run, effect.number, effect.event)
            elif isinstance(effect, Drop) and (insider := self.insiders.get(effect.peer)) is not None:
                insider.dropped(effect.peer, effect.text)
            elif isinstance(effect, Drop):
                self._connections.drop(effect.peer, effect.code, effect.text)
            elif isinstance(effect, RunBegun):
                self._around.feeds.begun(effect.run)
            elif isinstance(effect, RunEnded):
                self._around.registry.tokens.end_run(effect.run)
                self._around.blobs.alike.over(run_giver(effect.run))
                self._around.let_go()
                self._around.begin(self._follow_no_more(effect.run))
        if soon:
            self._around.commits.soon()
        else:
            self._around.commits.later()

    def _joins(self, say: Say) -> bool:
        """Whether an acknowledgement goes with one that waits for the same commit."""
        if not say.message.HasField("ack"):
            return False
        if self._held is not (held := self._around.commits.held):
            self._held, self._acks = held, {}
        ack = say.message.ack
        first = self._acks.setdefault((say.peer, ack.run, ack.attempt, ack.failed), ack)
        if first is ack or len(first.tasks) + len(ack.tasks) > ALIVE_TASKS:
            return False
        first.tasks.extend(ack.tasks)
        return True

    def post(self, say: Say) -> None:
        """Say something now, if whoever is to hear it is there."""
        if (insider := self.insiders.get(say.peer)) is not None:
            insider.say(say.peer, say.message)
        elif (peer := self._connections.peers.get(say.peer)) is not None:
            peer.say(say.message, say.lazy)

    async def _fetch(self, fetch: Fetch) -> None:
        key = (fetch.peer, fetch.run, fetch.blob.sha256)
        if key in self._fetching:
            self._again.add(key)
            return
        self._fetching.add(key)
        self._again.add(key)
        try:
            # What is named more than once is fetched once, unless it was let go of before it was named anew.
            while key in self._again:
                self._again.discard(key)
                while await self._put_off(fetch, key):
                    await asyncio.sleep(RETRY_SECONDS)
                if self._around.blobs.path(fetch.blob.sha256, fetch.giver) is not None:
                    break
        finally:
            self._fetching.discard(key)
            self._again.discard(key)
            self._problems.pop(key, None)
            if not self._around.blobs.held(fetch.blob.sha256):
                self._around.let_go()  # whoever wanted it does so no more

    async def _put_off(self, fetch: Fetch, key: tuple[str, str, bytes]) -> bool:
        """Fetch a blob; true where there is no room for it: whoever has it keeps it, and will not say so again."""
        owner = self.insiders.get(fetch.peer) or self._connections.peers.get(fetch.peer)
        if owner is None:
            return False
        try:
            await owner.fetch(fetch.blob, fetch.run)
        except ConnectionLost:
            return False  # it is fetched again when whoever has it says so again
        except (Refused, CorruptFile, ProtocolError) as error:
            self.tell(NotFetched(fetch.run, fetch.blob.sha256, error.message, fetch.giver))
            return False
        except StorageError as error:
            self._problems[key] = f"what nodes and runs send cannot be written: {error.message}"
            _LOG.error("%s; trying again", error.message)
            return True
        self.tell(Fetched(fetch.run, fetch.blob.sha256, fetch.giver))
        return False

    async def _follow_no_more(self, run: str) -> None:
        await self._around.commits.done()
        self._around.feeds.ended(run)
