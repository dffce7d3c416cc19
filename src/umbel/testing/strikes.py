"""What happens to a deployment of real processes, and when: drawn from a seed before any of it does.

A moment is a number of things that were seen to happen: events of the run, writes to disk, processor time that a victim
has used. None of them is a time of day, so a busy machine only makes a life longer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

KINDS = ("server", "relay", "node", "child", "run")
DECK = ("server", "relay", "node", "node", "child", "child", "child", "run", "run")
"""Whom it befalls, shuffled anew whenever all were drawn."""
DRILLS = {
    "kill": "kill -9 of the server, the run, a node, a relay, or a process of a client's code; two at once at times",
    "stop": "the same processes stopped for up to a second (SIGSTOP), and continued",
    "cut": "the connections of a node or a relay to its server are reset",
    "throttle": "for up to a second no more than a few bytes come through to or from a node or a relay",
    "rollback": "a node is killed, and its folder becomes what it was at an earlier death",
    "fill": "the file system that a node's folder is in is full for up to a second",
}
WEIGHTS = {"kill": 4}
MOST = {"events": 15, "writes": 20, "own writes": 3, "ticks": 4}


@dataclass(frozen=True)
class Home:
    """Where a node stands: the relay that it is below, if any; its clients; how many tasks it does at once."""

    name: str
    relay: str
    clients: tuple[int, ...]
    slots: int


@dataclass(frozen=True)
class Layout:
    """Who there is in a deployment, besides its server."""

    homes: tuple[Home, ...]
    relays: tuple[str, ...] = ()

    @classmethod
    def of(cls, nodes: int, relays: int, clients: int) -> Layout:
        """Deal clients to nodes, the rest to the last ones; where there are relays, half of the nodes are below them.

        ValueError where a node or a relay would have nothing below it.
        """
        below = (nodes + 1) // 2 if relays else 0
        if clients < nodes or below < relays:
            raise ValueError(f"{clients} clients on {nodes} nodes below {relays} relays")
        names = tuple(f"relay-{number}" for number in range(relays))
        homes, first = [], 0
        for number in range(nodes):
            count = clients // nodes + (number >= nodes - clients % nodes)
            relay = names[number % relays] if number >= nodes - below else ""
            mine = tuple(range(first, first + count))
            homes.append(Home(str(number), relay, mine, 1 if number < nodes - 1 else count))
            first += count
        return cls(tuple(homes), names)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of its nodes."""
        return tuple(home.name for home in self.homes)

    @property
    def clients(self) -> int:
        """How many clients there are."""
        return sum(len(home.clients) for home in self.homes)


@dataclass(frozen=True)
class Victim:
    """Whom it befalls: what it is, and the node or relay that it is or belongs to, and which of its children."""

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
class Strike:
    """One thing that befalls `victims`, for `seconds` where it is one that passes."""

    drill: str
    victims: tuple[Victim, ...]
    moment: Moment
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.drill} {' and '.join(map(str, self.victims))} after {self.moment}"


def strikes(seed: int, layout: Layout, drills: Sequence[str] = ("kill",)) -> Iterator[Strike]:
    """Strikes without end, the same for the same arguments: single ones, two victims at once, and again during
    recovery.
    """
    draw = random.Random(seed)
    deck: list[str] = []
    most = [drill for drill in drills for _ in range(WEIGHTS.get(drill, 1))]

    def victim(kinds: Sequence[str] = KINDS) -> Victim:
        while True:
            if not deck:
                deck.extend(draw.sample(DECK, len(DECK)))
            kind = deck.pop()
            if kind in kinds and (kind != "relay" or layout.relays):
                break
        names = layout.relays if kind == "relay" else layout.nodes
        name = draw.choice(names) if kind in ("node", "child", "relay") else ""
        return Victim(kind, name, draw.randrange(2) if kind == "child" else 0)

    def moment(victim: Victim) -> Moment:
        if victim.kind == "child" and draw.random() < 0.4:
            return Moment("ticks", 1)  # it is at work: between tasks it uses none
        of = draw.choice((*MOST, "own writes"))
        return Moment(of, draw.randint(0, MOST[of]))

    while True:
        drill = draw.choice(most)
        if drill != "kill":
            single = {"rollback": ("node",), "fill": ("node",), "cut": ("node", "relay"), "throttle": ("node", "relay")}
            one = victim(single.get(drill, KINDS))
            yield Strike(drill, (one,), moment(one), round(draw.uniform(0.05, 1.0), 3))
            continue
        victims = [victim()]
        if draw.random() < 0.25 and (other := victim()) != victims[0]:
            victims.append(other)
        yield Strike(drill, tuple(victims), moment(victims[0]))
        while draw.random() < 0.4:
            again = draw.random() < 0.5
            victims = [victims[0] if again else victim()]
            when = Moment("ticks", draw.randint(0, 100)) if again else Moment("writes", draw.randint(0, 9))
            yield Strike(drill, tuple(victims), when)
