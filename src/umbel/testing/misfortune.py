"""What goes wrong in a deployment in memory: drawn from its seed, so that the same seed gives the same life."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ..core.randomness import Key

if TYPE_CHECKING:
    from .link import RunLink
    from .network import Network
    from .node import SimulatedNode
    from .station import Station

Thing = TypeVar("Thing")


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


class Chance:
    """All that a seed decides; `happened` says in words what has gone wrong, at most as often as `faults` say."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.faults = faults
        self.happened: list[str] = []
        self._draws = Key.from_seed(seed).draws()
        self._words: list[int] = []

    @property
    def exhausted(self) -> bool:
        """Whether nothing goes wrong any more."""
        return len(self.happened) >= self.faults.most

    def below(self, bound: int) -> int:
        """A number from 0 on, below a bound: what `Draws.integers` would draw, at a tenth of what one by one takes."""
        least = (1 << 64) // bound * bound
        while True:
            if not self._words:
                self._words = self._draws.words(1000)[::-1].tolist()
            if (word := self._words.pop()) < least:
                return word % bound

    def pick(self, things: Sequence[Thing]) -> Thing:
        """One of several things."""
        return things[self.below(len(things))]

    def breaks_transfer(self) -> bool:
        """Whether the transfer that is under way breaks."""
        broken = not self.exhausted and self.below(1000) < self.faults.broken_transfers
        if broken:
            self.happened.append("transfer broken")
        return broken


class Misfortune:
    """Strikes the parts of a deployment."""

    def __init__(
        self,
        network: Network,
        stations: Mapping[str, Station],
        nodes: Mapping[str, SimulatedNode],
        link: RunLink,
    ) -> None:
        self._chance = network.chance
        self._network = network
        self._stations = stations
        self._nodes = nodes
        self._link = link
        faults = network.chance.faults
        self._strikes = (
            (faults.cuts, self._cut),
            (faults.repeats, self._repeat),
            (faults.server, self._kill_server),
            (faults.node, self._kill_node),
            (faults.child, self._kill_child),
            (faults.run, self._kill_run),
            (faults.power, self._cut_power),
            (faults.stop, self._stop),
            (faults.relay, self._kill_relay),
        )

    def strikes(self) -> bool:
        """Whether something goes wrong in this step instead of what could be done; if so, it has.

        Raises `Killed` and `KeyboardInterrupt` where it is the run that is struck.
        """
        if self._chance.exhausted:
            return False
        roll = self._chance.below(1000)
        for chance, strike in self._strikes:
            if roll < chance:
                strike()
                return True
            roll -= chance
        return False

    def _note(self, what: str) -> None:
        self._chance.happened.append(what)

    def _cut(self) -> None:
        if self._network.wires:
            wire = self._chance.pick(list(self._network.wires.values()))
            self._note(f"cut {wire.peer}")
            self._network.cut(wire)

    def _repeat(self) -> None:
        lanes = [lane for wire in self._network.wires.values() for lane in (wire.up, wire.down) if lane]
        if lanes:
            lane = self._chance.pick(lanes)
            self._note("twice")
            lane.appendleft(lane[0])

    def _kill_server(self) -> None:
        self._note("server killed")
        self._stations["server"].crash(self._chance.below(30) / 10)

    def _kill_relay(self) -> None:
        relays = [station for station in self._stations.values() if station.is_relay]
        if relays:
            relay = self._chance.pick(relays)
            self._note(f"relay {relay.name} killed")
            relay.crash(self._chance.below(30) / 10)

    def _kill_node(self) -> None:
        node = self._chance.pick(list(self._nodes.values()))
        self._note(f"node {node.name} killed")
        node.crash()
        node.keep_away(self._chance.below(20) / 10)

    def _kill_child(self) -> None:
        found = [node for node in self._nodes.values() if node.preparing or node.busy]
        if not found:
            return
        node = self._chance.pick(found)
        if node.preparing:
            self._note(f"child of {node.name} killed while it prepared")
            node.fail_to_prepare("killed")
            return
        start = self._chance.pick(list(node.busy.values()))
        if start.task.attempt == 1:  # a client that kills its host again and again is failed, as it should be
            self._note(f"child of {node.name} killed at task {start.task.task}")
            node.kill_child(start)

    def _kill_run(self) -> None:
        if self._link.connected:
            self._note("run killed")
            raise Killed

    def _cut_power(self) -> None:
        if self._link.connected:
            self._note("the run's machine lost its power")
            raise Killed(power=True)

    def _stop(self) -> None:
        if self._link.connected:
            self._note("stopped")
            raise KeyboardInterrupt
