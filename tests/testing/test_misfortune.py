"""What goes wrong: as often as its faults say, and the same for the same seed."""

from __future__ import annotations

import pytest

from umbel.core.randomness import Key
from umbel.testing.misfortune import Chance, Faults, Killed, Misfortune
from umbel.testing.network import Network

NEVER = dict.fromkeys(("cuts", "repeats", "server", "node", "child", "run", "power", "stop", "relay"), 0)


class Part:
    """A station, a node or the run's link, as far as misfortune sees it."""

    def __init__(self, name="a", is_relay=False):
        self.name, self.is_relay = name, is_relay
        self.connected, self.preparing, self.busy, self.calls = True, {}, {}, []

    def crash(self, *seconds):
        self.calls.append("crash")

    def keep_away(self, seconds):
        self.calls.append("keep away")


def world(folder, seed=1, *, most=3, **faults):
    chance = Chance(seed, Faults(**{**NEVER, **faults}, most=most))
    stations = {"server": Part("server"), "east": Part("east", is_relay=True)}
    parts = (stations, {"a": Part("a"), "b": Part("b")}, Part("run"))
    return chance, parts, Misfortune(Network(chance, folder), *parts)


def test_nothing_goes_wrong_more_often_than_it_may(tmp_path):
    chance, (stations, _, _), misfortune = world(tmp_path, server=1000)
    assert [misfortune.strikes() for _ in range(5)] == [True, True, True, False, False]
    assert chance.happened == ["server killed"] * 3
    assert stations["server"].calls == ["crash"] * 3


def test_a_quiet_life_draws_nothing(tmp_path):
    chance, _, misfortune = world(tmp_path, most=0, server=1000)
    assert not misfortune.strikes()
    assert not chance.breaks_transfer()
    assert chance.below(10**9) == Chance(1, Faults()).below(10**9)


@pytest.mark.parametrize("bound", [1, 10, 1000, 3 << 61], ids=["one", "ten", "thousand", "a quarter is drawn again"])
def test_it_draws_what_its_stream_would(bound):
    chance, draws = Chance(4, Faults()), Key.from_seed(4).draws()
    assert [chance.below(bound) for _ in range(1500)] == [draws.integers(bound, 1)[0] for _ in range(1500)]


def test_each_fault_strikes_its_part(tmp_path):
    chance, (stations, nodes, _), misfortune = world(tmp_path, relay=1000)
    assert misfortune.strikes()
    assert stations["east"].calls == ["crash"]
    chance, (_, nodes, _), misfortune = world(tmp_path, node=1000)
    assert misfortune.strikes()
    assert sorted(node.calls for node in nodes.values()) == [[], ["crash", "keep away"]]
    assert chance.happened in (["node a killed"], ["node b killed"])


def test_each_fault_has_its_share_of_a_thousand_steps(tmp_path):
    _, (stations, nodes, _), misfortune = world(tmp_path, most=300, server=300, node=300, relay=400)
    assert all(misfortune.strikes() for _ in range(300))
    struck = [len(part.calls) for part in (*stations.values(), *nodes.values())]
    assert min(struck) > 50


@pytest.mark.parametrize(("fault", "raised"), [("run", Killed), ("power", Killed), ("stop", KeyboardInterrupt)])
def test_the_run_is_struck_only_while_it_is_connected(tmp_path, fault, raised):
    chance, (_, _, link), misfortune = world(tmp_path, **{fault: 1000})
    with pytest.raises(raised) as caught:
        misfortune.strikes()
    assert getattr(caught.value, "power", False) == (fault == "power")
    link.connected = False
    assert misfortune.strikes()
    assert len(chance.happened) == 1


def test_the_same_seed_gives_the_same(tmp_path):
    def life(seed):
        chance, _, misfortune = world(tmp_path, seed, most=20, server=100, node=100, relay=100)
        return [misfortune.strikes() for _ in range(100)], chance.happened

    assert life(3) == life(3) != life(4)
