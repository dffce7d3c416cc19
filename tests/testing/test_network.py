"""The network of a deployment in memory, with a station and who connects to it that only note what they are told."""

from __future__ import annotations

import pytest

from umbel.server.signals import Lost, Received
from umbel.testing.misfortune import Chance, Faults
from umbel.testing.network import INLINE, GoneBlob, HeldBlobs, Network
from umbel.wire import messages as m
from umbel.wire.blobs import NotFetched

MESSAGE = m.Message(ack=m.Ack(run="r"))
BLOB = m.Blob(sha256=b"s" * 32, size=9)


class Party:
    """A station or the other end."""

    def __init__(self):
        self.up, self.told, self.blob = True, [], None

    def tell(self, event):
        self.told.append(event)

    hear = tell

    def give(self, run, sha):
        if isinstance(self.blob, Exception):
            raise self.blob
        return self.blob

    def give_below(self, peer, run, sha):
        return self.blob

    def take(self, run, sha, data, giver):
        self.told.append(data)

    def parted(self):
        self.told.append("parted")


class World:
    def __init__(self, folder, faults):
        self.network = Network(Chance(1, faults), folder)
        self.station, self.end = Party(), Party()
        self.wire = self.network.wire("node a", self.station, self.end)

    def act(self):
        (action,) = self.network.actions()
        action()


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, Faults.none())


def test_what_is_sent_crosses_one_by_one(world):
    peer = world.network.plug(world.wire)
    assert world.network.wires == {peer: world.wire}
    world.wire.send(MESSAGE)
    world.act()
    assert world.station.told == [Received(peer, MESSAGE)]
    world.wire.down.append(MESSAGE.SerializeToString())
    world.act()
    assert world.end.told == [MESSAGE]
    assert world.network.actions() == []


def test_what_is_on_its_way_over_a_wire_that_is_cut_is_lost(world):
    peer = world.network.plug(world.wire)
    world.wire.send(MESSAGE)
    world.wire.fetch("r", BLOB)
    world.network.cut(world.wire)
    world.network.cut(world.wire)
    assert (world.station.told, world.end.told) == ([Lost(peer)], ["parted"])
    world.wire.send(MESSAGE)
    assert not world.network.may_plug(world.wire)
    (moment,) = world.network.moments()
    world.network.advance(moment)
    assert world.network.may_plug(world.wire)
    world.station.up = False
    assert not world.network.may_plug(world.wire)
    assert world.network.plug(world.wire) != peer
    assert world.network.actions() == []


def test_a_station_that_is_down_is_not_told(world):
    world.network.plug(world.wire)
    world.network.cut(world.wire, tell_station=False)
    assert (world.station.told, world.end.told) == ([], ["parted"])


def test_a_wire_counts_the_time_for_which_it_is_plugged_in(world):
    world.network.advance(5.0)
    world.network.plug(world.wire)
    world.network.advance(2.0)
    world.network.cut(world.wire)
    world.network.advance(4.0)
    assert (world.wire.served, world.network.clock()) == (2.0, 11.0)


def test_a_transfer_waits_until_the_sender_has_the_blob(world):
    world.network.plug(world.wire)
    world.wire.fetch("r", BLOB)
    world.act()
    assert world.end.told == []
    assert world.network.clock() == 0.01
    world.station.blob = b"the blob"
    world.act()
    assert world.end.told == [b"the blob"]
    assert world.network.actions() == []


def test_a_station_is_told_of_a_blob_that_is_gone(world):
    world.network.plug(world.wire)
    world.wire.transfers.append((True, "r", BLOB, "node a"))
    world.end.blob = GoneBlob("let go of")
    world.act()
    assert world.station.told == [NotFetched("r", BLOB.sha256, "let go of", "node a")]


def test_a_transfer_that_breaks_breaks_the_connection(tmp_path):
    world = World(tmp_path, Faults(broken_transfers=1000, most=1))
    world.station.blob = b"the blob"
    for _ in range(2):
        world.network.plug(world.wire)
        world.wire.fetch("r", BLOB)
        world.act()
    assert world.network.chance.happened == ["transfer broken"]
    assert world.end.told == ["parted", b"the blob"]


def test_large_bytes_are_blobs(tmp_path):
    blobs = HeldBlobs(tmp_path)
    assert blobs.payload(b"s" * INLINE).inline == b"s" * INLINE
    assert not blobs
    blob = blobs.payload(b"l" * (INLINE + 1)).blob
    assert blob.size == INLINE + 1
    assert blobs[blob.sha256] == blobs.file(blob.sha256).read_bytes() == b"l" * (INLINE + 1)
