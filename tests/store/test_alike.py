"""What stays of a run's blobs for the sake of the next ones."""

from __future__ import annotations

import hashlib

from umbel.store.blobs import Blobs
from umbel.wire import messages as m
from umbel.wire.blobs import LARGE_BLOB


def received(blobs, data, giver):
    blob = m.Blob(sha256=hashlib.sha256(data).digest(), size=len(data))
    with blobs.part(blob, giver=giver) as part:
        part.write(data)
        part.finish()
    return blob


def test_the_last_blob_of_a_size_that_a_run_has_brought_stays_until_that_is_over(tmp_path):
    blobs = Blobs(tmp_path)
    first, second = (received(blobs, bytes([n]) * LARGE_BLOB, "run r") for n in (1, 2))
    small = received(blobs, bytes([3]) * (LARGE_BLOB - 1), "run r")
    of_node = received(blobs, bytes([4]) * LARGE_BLOB, "node n")
    assert blobs.alike.find(first, "run r") == second.sha256
    assert blobs.alike.find(second, "run r") == b""  # itself
    assert blobs.alike.find(of_node, "node n") == b""
    assert blobs.alike.find(first, "run other") == b""
    blobs.collect()
    assert [blobs.has(blob.sha256) for blob in (first, second, small, of_node)] == [False, True, False, False]
    blobs.alike.over("run other")
    assert blobs.collect() == 0
    blobs.alike.over("run r")
    assert blobs.collect() == LARGE_BLOB
    assert blobs.used == 0


def test_what_stays_for_others_makes_room(tmp_path):
    blobs = Blobs(tmp_path, quota=LARGE_BLOB + 100)
    last = received(blobs, bytes(LARGE_BLOB), "run r")
    blobs.collect()
    assert blobs.room(100)
    assert blobs.has(last.sha256)
    assert blobs.room(101)
    assert not blobs.has(last.sha256)
