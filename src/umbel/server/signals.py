"""What a router and the machine of a relay are told, and what they say is to be done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..core.task import Ticked
from ..wire import messages as m
from ..wire.blobs import Fetched, NotFetched


@dataclass(frozen=True, slots=True)
class Connected:
    """Event: somebody has proved who it is: `role` is node, run or operator, `id` the node's or run's; a node may be a
    `relay`.
    """

    peer: str
    role: str
    id: str
    name: str = ""
    clients: tuple[str, ...] = ()
    relay: bool = False


@dataclass(frozen=True, slots=True)
class Lost:
    """Event: a connection is over."""

    peer: str


@dataclass(frozen=True, slots=True)
class Received:
    """Event: a message of a peer."""

    peer: str
    message: m.Message


@dataclass(frozen=True, slots=True)
class Revoked:
    """Event: a node may not take part any more."""

    node: str


@dataclass(frozen=True, slots=True)
class Bounded:
    """Event: what a node may call its clients is something else now."""

    node: str


@dataclass(frozen=True, slots=True)
class Released:
    """Event: these client names are nobody's any more."""

    clients: tuple[str, ...]


Event = Connected | Lost | Received | Fetched | NotFetched | Revoked | Bounded | Released


@dataclass(frozen=True, slots=True)
class Say:
    """Effect: send a message; `durable`: not before the store is on disk; `lazy`: for how many seconds it may wait for
    others to go with.
    """

    peer: str
    message: m.Message
    durable: bool = False
    lazy: float = 0.0


@dataclass(frozen=True, slots=True)
class Drop:
    """Effect: tell a peer what is wrong and close its connection."""

    peer: str
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """Effect: have a peer send a blob, in the name of this `giver`; `Fetched` follows."""

    peer: str
    run: str
    blob: m.Blob
    giver: str = ""


@dataclass(frozen=True, slots=True)
class Hold:
    """Effect: a blob is needed by an owner."""

    sha: bytes
    owner: str


@dataclass(frozen=True, slots=True)
class Release:
    """Effect: an owner needs its blobs no more."""

    owner: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Effect: something happened in a run that watchers want to see; number 0: it is not kept."""

    run: str
    number: int
    event: str


@dataclass(frozen=True, slots=True)
class RunBegun:
    """Effect: a run that was over goes on."""

    run: str


@dataclass(frozen=True, slots=True)
class RunEnded:
    """Effect: a run is over."""

    run: str
    status: str


Effect = Say | Drop | Fetch | Hold | Release | Tell | RunBegun | RunEnded


@dataclass(slots=True)
class Outbox:
    """What is to be done, in order."""

    effects: list[Effect] = field(default_factory=list)

    def say(self, peer: str | None, *, durable: bool = False, **body: Any) -> None:
        """Have a message with this body sent; where there is no peer nothing is."""
        if peer is not None:
            self.effects.append(Say(peer, m.Message(**body), durable))


# Relays


@dataclass(frozen=True, slots=True)
class Reached:
    """Event: a session with the server above has begun, in which it was told of these clients."""

    clients: frozenset[str]


@dataclass(frozen=True, slots=True)
class Parted:
    """Event: the session is over."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Event: a message of the server above."""

    message: m.Message


@dataclass(frozen=True, slots=True)
class RouterSaid:
    """Event: what the router says to a run."""

    message: m.Message


@dataclass(frozen=True, slots=True)
class RouterDropped:
    """Event: the router hears this peer, which stands for a run, no more, and why."""

    peer: str
    text: str


@dataclass(frozen=True, slots=True)
class Hosting:
    """Event: the nodes below host these clients from now on."""

    clients: frozenset[str]


@dataclass(frozen=True, slots=True)
class Folded:
    """Event: what a fold came to. `refused` are tasks whose answers it could not take; without a payload, all."""

    number: int
    payload: m.Payload | None
    receipts: tuple[m.Receipt, ...] = ()
    refused: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Unfetched:
    """Event: a blob is not to be had from above."""

    run: str
    sha: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class MovedAbove:
    """Event: a transfer from or to above has made progress."""

    sha: bytes


RelayEvent = Reached | Parted | Asked | RouterSaid | RouterDropped | Hosting | Folded | Unfetched | MovedAbove | Ticked


@dataclass(frozen=True, slots=True)
class SayAbove:
    """Effect: say something above; if `durable`, once all that the router's store was given before is on disk."""

    message: m.Message
    durable: bool = False


@dataclass(frozen=True, slots=True)
class TellRouter:
    """Effect: tell the router; what it says to the run is `RouterSaid`."""

    event: Event


@dataclass(frozen=True, slots=True)
class FoldAnswers:
    """Effect: check and fold these answers to an ask, and hold the result under its number; `Folded` follows."""

    number: int
    spec: m.AskSpec
    answers: tuple[m.Message, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """Effect: a fold, or what it came to, is not needed any more."""

    number: int


RelayEffect = SayAbove | TellRouter | FoldAnswers | Forget
