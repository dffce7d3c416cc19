"""Room for blobs: for all, for one node, and what is said where there is none."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from umbel.server.storage import Storage
from umbel.store.blobs import Blobs
from umbel.wire import messages as m


def blob(letter, size):
    return m.Blob(sha256=letter.encode() * 32, size=size)


@pytest.fixture
def blobs(tmp_path):
    return Blobs(tmp_path / "blobs")


def test_without_a_quota_most_of_what_is_free_may_be_taken(blobs, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    blobs.put(b"x" * 50, "test")
    assert Storage(blobs).quota == blobs.quota == 850
    assert Storage(blobs, quota=7).quota == blobs.quota == 7


@pytest.mark.parametrize(
    ("given", "nodes", "share", "largest"),
    [
        ({}, 1, 100, 100),
        ({}, 2, 50, 50),
        ({"node_quota": 70}, 2, 70, 70),
        ({"node_quota": 700}, 2, 100, 100),
        ({"largest": 30}, 2, 50, 30),
        ({"largest": 90}, 2, 50, 50),
    ],
)
def test_what_one_node_may_have(blobs, given, nodes, share, largest):
    found = Storage(blobs, quota=100, nodes=lambda: nodes, **given)
    assert (found.share, found.largest) == (share, largest)


def test_one_node_leaves_room_for_the_others_and_gets_its_own_back(blobs):
    storage = Storage(blobs, quota=100, nodes=lambda: 2)
    greedy, other = storage.place("a", "node a", True), storage.place("b", "node b", True)
    run = storage.place("r", "run r", False)
    parts = []

    def take(place, wanted):
        if place.take(wanted):
            parts.append(blobs.part(wanted))
            return True
        return False

    assert take(greedy, blob("1", 30))
    assert not take(greedy, blob("2", 21))
    assert take(greedy, blob("2", 20))
    assert not take(storage.place("a", "node a", True), blob("3", 1)), "also when it connects anew"
    assert take(other, blob("4", 40))
    assert take(run, blob("5", 10)), "a run has no share"
    assert not take(run, blob("6", 1))
    for part in parts:
        part.close()
    storage.collect()
    assert (greedy.used, other.used) == (0, 0)
    assert take(greedy, blob("3", 50))
    parts[-1].close()


def test_who_waits_is_told_once_and_the_operator_as_long_as_somebody_waits(blobs):
    storage, told = Storage(blobs, quota=100, nodes=lambda: 2), []
    place = storage.place("a", "node a", True, lambda run, text: told.append((run, text)))
    assert storage.problem == ""
    for letter in "12":
        storage.waits(place, blob(letter, 60), "r", True)
    assert (storage.waiting, [run for run, _ in told]) == (2, ["r"])
    assert "no room for 60 bytes from node a: a node may have 50" in told[0][1]
    assert "no room for 120 bytes from node a" in storage.problem
    run = storage.place("r", "run r", False)
    storage.waits(run, blob("3", 101), "r", True)
    assert "0 of the quota of 100 are used" in storage.problem
    storage.waits(run, blob("3", 101), "r", False)
    for letter in "12":
        storage.waits(place, blob(letter, 60), "r", False)
    assert (storage.waiting, storage.problem) == (0, "")
