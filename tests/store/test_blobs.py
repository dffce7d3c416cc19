"""Blobs: whole or not there, resumed where they stopped, within their quota, gone when nobody holds them."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.errors import CorruptFile, InternalError, ProtocolError, StorageError
from umbel.store import blobs as module
from umbel.store.blobs import Blobs, digest
from umbel.wire import messages as m

DATA = bytes(range(256)) * 20


def blob_of(data):
    return m.Blob(sha256=hashlib.sha256(data).digest(), size=len(data))


BLOB = blob_of(DATA)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "blobs"


@pytest.fixture
def blobs(folder):
    return Blobs(folder)


def left(folder):
    """All files below a folder, by name."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# Keeping


def test_bytes_are_a_file_named_by_their_hash(blobs, folder):
    assert blobs.put(DATA) == BLOB
    name = BLOB.sha256.hex()
    assert blobs.path(BLOB.sha256) == folder / name[:2] / name
    assert blobs.path(BLOB.sha256).read_bytes() == DATA
    assert left(folder) == [name]
    assert blobs.used == len(DATA)
    assert blobs.path(b"x" * 32) is None
    assert Blobs(folder).path(BLOB.sha256).read_bytes() == DATA


def test_what_is_there_is_not_written_again(blobs):
    blobs.put(DATA)
    before = blobs.path(BLOB.sha256).stat()
    blobs.put(memoryview(DATA))
    assert blobs.path(BLOB.sha256).stat().st_ino == before.st_ino
    assert blobs.used == len(DATA)


def test_nothing_at_all_is_a_blob_too(blobs):
    empty = blobs.put(b"")
    assert blobs.path(empty.sha256).read_bytes() == b""


def test_a_blob_that_somebody_took_away_is_not_there(blobs):
    blobs.put(DATA)
    blobs.path(BLOB.sha256).unlink()
    assert blobs.path(BLOB.sha256) is None
    assert blobs.used == 0
    blobs.put(DATA)
    assert blobs.path(BLOB.sha256)


def test_it_is_on_the_disk_before_it_has_its_name(blobs, folder, monkeypatch):
    steps = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (steps.append("rename"), replace(a, b)))
    blobs.put(DATA)
    file, upper, rename, lower = steps
    assert file.startswith(str(folder / "partial"))
    assert upper == str(folder)
    assert (rename, lower) == ("rename", str(blobs.path(BLOB.sha256).parent))


# Files


@pytest.mark.parametrize("link", [False, True])
def test_a_files_content_is_kept(blobs, folder, tmp_path, link):
    path = tmp_path / "model"
    path.write_bytes(DATA)
    assert blobs.put_file(path, link=link) == BLOB == blobs.put_file(path, link=link)
    assert os.path.samefile(path, blobs.path(BLOB.sha256)) == link
    assert path.read_bytes() == DATA
    assert left(folder) == [BLOB.sha256.hex()]


def test_a_file_on_another_file_system_is_copied(blobs, folder, tmp_path, monkeypatch):
    def apart(*names):
        raise OSError(errno.EXDEV, "another file system")

    path = tmp_path / "model"
    path.write_bytes(DATA)
    monkeypatch.setattr(os, "link", apart)
    assert blobs.put_file(path, link=True) == BLOB
    assert not blobs.lend(BLOB.sha256, blobs.place(BLOB))
    other = Blobs(tmp_path / "other")
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: apart() if a == path else replace(a, b))
    assert other.adopt(path, BLOB).read_bytes() == DATA
    assert not path.exists()


def test_a_finished_file_is_moved_in(blobs, folder, tmp_path):
    path = tmp_path / "update"
    for _ in range(2):
        path.write_bytes(DATA)
        assert blobs.adopt(path, BLOB) == blobs.path(BLOB.sha256)
        assert not path.exists()
    assert blobs.used == len(DATA)


@pytest.mark.parametrize("content", [DATA[:-1], DATA[:-1] + b"x"])
def test_a_file_with_another_content_is_not_taken(blobs, folder, tmp_path, content):
    path = tmp_path / "update"
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match=BLOB.sha256.hex()):
        blobs.adopt(path, BLOB)
    assert not path.exists()
    assert blobs.path(BLOB.sha256) is None


def test_missing_files_are_said_to_be(blobs, tmp_path):
    for act in (digest, blobs.put_file, lambda path: blobs.adopt(path, BLOB)):
        with pytest.raises(StorageError, match="nowhere: No such file"):
            act(tmp_path / "nowhere")


def test_processes_on_one_machine_link(blobs, folder, tmp_path):
    other = Blobs(tmp_path / "other")
    blobs.put(DATA)
    place = other.place(BLOB)
    assert blobs.lend(BLOB.sha256, str(place))
    assert not blobs.lend(BLOB.sha256, place)  # it is there
    assert other.linked(place, BLOB).samefile(blobs.path(BLOB.sha256))
    assert left(tmp_path / "other") == [BLOB.sha256.hex()]
    again = other.place(BLOB)
    assert blobs.lend(BLOB.sha256, again)
    other.linked(again, BLOB)  # the same file under its second name
    assert not again.exists()


def test_nothing_is_linked_where_it_could_do_harm(blobs, tmp_path):
    blobs.put(DATA)
    name = f"{BLOB.sha256.hex()}-link-1"
    (tmp_path / "partial").mkdir()
    for place in (
        tmp_path / name,
        tmp_path / "partial" / "profile",
        f"partial/{name}",
        tmp_path / "no" / "partial" / name,
    ):
        assert not blobs.lend(BLOB.sha256, place)
    assert not blobs.lend(b"x" * 32, blobs.place(m.Blob(sha256=b"x" * 32)))
    assert blobs.lend(BLOB.sha256, tmp_path / "partial" / name)


def test_a_name_that_leads_elsewhere_is_not_taken(blobs, tmp_path):
    (tmp_path / "secret").write_bytes(DATA)
    place = blobs.place(BLOB)
    place.symlink_to(tmp_path / "secret")
    with pytest.raises(CorruptFile):
        blobs.linked(place, BLOB)
    assert not place.is_symlink()
    assert (tmp_path / "secret").exists()


# Receiving


def test_a_part_becomes_a_blob(blobs, folder):
    with blobs.part(BLOB) as part:
        part.write(DATA[:1000])
        part.write(memoryview(DATA)[1000:])
        assert blobs.path(BLOB.sha256) is None
        assert part.offset == len(DATA)
        assert part.finish() == blobs.path(BLOB.sha256)
    assert blobs.path(BLOB.sha256).stat().st_mode & 0o777 == 0o400
    assert left(folder) == [BLOB.sha256.hex()]


@given(cuts=st.lists(st.integers(0, len(DATA)), max_size=6), restarts=st.lists(st.booleans(), min_size=7, max_size=7))
def test_a_part_goes_on_where_it_stopped(cuts, restarts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("blobs")
    blobs = Blobs(folder)
    for cut, restart in zip([*sorted(cuts), len(DATA)], restarts, strict=False):
        with blobs.part(BLOB) as part:
            part.write(DATA[part.offset : cut])
        assert blobs.used == cut
        if restart:
            blobs = Blobs(folder)
            assert blobs.used == cut
    with blobs.part(BLOB) as part:
        assert part.offset == len(DATA)
        part.finish()
    assert blobs.path(BLOB.sha256).read_bytes() == DATA
    assert blobs.used == len(DATA)


def test_a_torn_part_is_noticed_and_begun_anew(blobs, folder):
    with blobs.part(BLOB) as part:
        part.write(DATA[:2000])
        torn = part.path
    torn.write_bytes(DATA[:1000] + bytes(1000))  # what a loss of power leaves
    blobs = Blobs(folder)
    with blobs.part(BLOB) as part:
        assert part.offset == 2000
        part.write(DATA[2000:])
        with pytest.raises(CorruptFile, match=f"{BLOB.sha256.hex()} has 5120 bytes; what came is 5120 bytes with the"):
            part.finish()
    assert left(folder) == []
    assert blobs.used == 0
    with blobs.part(BLOB) as part:
        assert part.offset == 0
        part.write(DATA)
        part.finish()


def test_a_part_that_is_longer_than_it_should_be_is_begun_anew(blobs, folder):
    (folder / "partial" / BLOB.sha256.hex()).write_bytes(bytes(len(DATA) + 1))
    with Blobs(folder).part(BLOB) as part:
        assert part.offset == 0


def test_more_or_less_than_was_said(blobs, folder):
    with blobs.part(BLOB) as part:
        with pytest.raises(CorruptFile, match="has 5120 bytes; what came is 5121 bytes"):
            part.write(DATA + b"x")
        part.write(DATA[:-1])
        with pytest.raises(CorruptFile):
            part.finish()
        with pytest.raises(InternalError, match="closed"):
            part.write(b"x")
    assert left(folder) == []


@pytest.mark.parametrize("sha256", [b"", b"x" * 31, b"x" * 5000])
def test_a_hash_that_is_none(blobs, sha256):
    with pytest.raises(ProtocolError, match=f"{len(sha256)} bytes") as caught:
        blobs.part(m.Blob(sha256=sha256, size=1))
    assert caught.value.code == m.CODE_MALFORMED


def test_several_may_receive_the_same(blobs, folder):
    first, second = blobs.part(BLOB), blobs.part(BLOB)
    first.write(DATA[:10])
    second.write(DATA)
    assert blobs.used == 2 * len(DATA)
    second.finish()
    first.close()
    assert left(folder) == [BLOB.sha256.hex()]
    assert blobs.used == len(DATA)
    with blobs.part(BLOB) as third:  # although it is there
        third.write(DATA)
        third.finish()
    assert blobs.used == len(DATA)


def test_what_is_put_needs_its_part_no_more(blobs, folder):
    with blobs.part(BLOB) as part:
        part.write(DATA[:10])
    blobs.put(DATA)
    assert left(folder) == [BLOB.sha256.hex()]
    assert blobs.used == len(DATA)


def test_a_start_removes_what_cannot_be_resumed(blobs, folder):
    blobs.put(DATA)
    for name in (f"{BLOB.sha256.hex()}-1", f"{BLOB.sha256.hex()}-link-2", BLOB.sha256.hex(), "ab" * 32):
        (folder / "partial" / name).write_bytes(b"1234")
    assert Blobs(folder).used == len(DATA) + 4
    assert left(folder / "partial") == ["ab" * 32]


def test_a_full_disk_loses_nothing_that_was_written(blobs, monkeypatch):
    write = os.write
    room = [1500]

    def limited(fd, data):
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(fd, data[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(module.os, "write", limited)
    with blobs.part(BLOB) as part:
        part.write(DATA[:1000])
        with pytest.raises(StorageError, match=r"No space left on device\nMake room"):
            part.write(DATA[1000:])
        assert part.offset == 1000
        room[0] = 10**6
        part.write(DATA[1000:])
        part.finish()
    assert blobs.path(BLOB.sha256).read_bytes() == DATA


# Room


def test_room_counts_what_is_there_what_was_begun_and_what_is_promised(folder):
    blobs = Blobs(folder, quota=10_000)
    assert blobs.room(10_000)
    assert not blobs.room(10_001)
    part = blobs.part(BLOB)
    assert blobs.used == 5120
    assert not blobs.room(5000)
    part.write(DATA[:1000])
    part.close()
    assert blobs.used == 1000
    assert blobs.room(9000)
    filler = blobs.put(bytes(4880))
    assert blobs.room(BLOB)  # what it lacks fits exactly
    assert not blobs.room(len(DATA))
    blobs.quota -= 1
    assert not blobs.room(BLOB)
    assert blobs.room(filler)
    blobs.put(DATA)  # finished work is never refused
    assert blobs.used == 10_000
    assert Blobs(folder).room(1 << 60)


@given(st.lists(st.integers(0, 3 << 20), max_size=5))
def test_zeros_that_are_skipped_are_there(sizes):
    with tempfile.TemporaryDirectory() as folder:
        blobs = Blobs(folder)
        data = b"".join(bytes(size) if number % 2 else b"x" * size for number, size in enumerate(sizes))
        blob = blob_of(data)
        for _ in range(2):  # the second time it is but compared
            with blobs.part(blob, giver="run r") as part:
                for number, size in enumerate(sizes):
                    part.skip(size) if number % 2 else part.write(b"x" * size)
                with pytest.raises(CorruptFile):
                    part.skip(1)
                path = part.finish()
        assert path.read_bytes() == data


# Garbage


def brought(blobs, path, blob, giver):
    path.write_bytes(b"x" * blob.size)
    return blobs.adopt(path, blob, giver, verify=False)


def test_what_is_not_verified_is_its_givers_alone(blobs, folder, tmp_path):
    blob = blob_of(b"what it should be")
    place = brought(blobs, tmp_path / "it", blob, "liar")
    assert blobs.path(blob.sha256, "liar") == place
    assert (blobs.path(blob.sha256), blobs.path(blob.sha256, "another")) == (None, None)
    assert blobs.has(blob.sha256)
    with blobs.part(blob, giver="another") as part:
        part.write(b"what it should be")
        part.finish()
    for names in (blobs, Blobs(folder)):
        assert names.path(blob.sha256, "liar").read_bytes() == b"x" * blob.size
        assert names.path(blob.sha256).read_bytes() == b"what it should be"
        assert names.path(blob.sha256, "another").samefile(names.path(blob.sha256))
        assert names.used == 2 * blob.size  # a second name takes no room
    blobs.gave(blob.sha256, "liar")  # now it did bring it
    assert blobs.path(blob.sha256, "liar").samefile(blobs.path(blob.sha256))
    assert blobs.used == blob.size == blobs.collect()
    assert (left(folder), blobs.used) == ([], 0)


def test_unverified_or_not_only_plain_files_of_the_right_size_are_taken(blobs, folder, tmp_path, monkeypatch):
    blob, secret, path = blob_of(b"12345"), tmp_path / "secret", tmp_path / "it"
    secret.write_bytes(b"12345")
    for make in (lambda: path.write_bytes(b"1234"), lambda: path.symlink_to(secret), lambda: os.mkfifo(path)):
        make()
        with pytest.raises(CorruptFile):
            blobs.adopt(path, blob, "liar", verify=False)
        assert not os.path.lexists(path)


@pytest.mark.parametrize("last", ["link", "pipe", "folder"])
def test_what_is_exchanged_while_it_is_taken_is_not_taken(blobs, folder, tmp_path, monkeypatch, last):
    """By whoever has left it there: whoever opened it later would read what it may not, or wait for ever."""
    blob, secret, path, real = blob_of(b"12345"), tmp_path / "secret", tmp_path / "it", os.replace
    secret.write_bytes(b"12345")

    def exchanged(source, target):
        os.unlink(source)
        {"link": lambda: os.symlink(secret, source), "pipe": lambda: os.mkfifo(source), "folder": filled}[last]()
        real(source, target)

    def filled():
        path.mkdir()
        (path / "more").write_bytes(b"1")

    monkeypatch.setattr(os, "replace", exchanged)
    with pytest.raises(CorruptFile):
        brought(blobs, path, blob, "liar")
    assert (left(folder), secret.read_bytes()) == ([], b"12345")
    assert not list(folder.glob("??/*"))


def test_nobody_waits_for_a_pipe_that_takes_the_place_of_a_file(blobs, folder, tmp_path, monkeypatch):
    path, look = tmp_path / "it", Path.lstat

    def exchanged(self):
        found = look(self)
        if self == path and not path.is_fifo():
            path.unlink()
            os.mkfifo(path)
        return found

    monkeypatch.setattr(Path, "lstat", exchanged)
    with pytest.raises((CorruptFile, StorageError)):
        brought(blobs, path, blob_of(b"12345"), "liar")
    assert left(folder) == []


def test_notes_of_an_earlier_release_become_names(blobs, folder):
    blob = blobs.put(b"what it is")
    blobs.gave(blob.sha256, "somebody")
    (name,) = folder.glob("??/*.*")
    name.unlink()
    name.touch()
    alone = folder / "ab" / f"{'ab' * 32}.{name.suffix[1:]}"  # its blob never came, or went first
    alone.parent.mkdir()
    alone.touch()
    again = Blobs(folder)
    assert again.path(blob.sha256, "somebody").read_bytes() == b"what it is"
    assert again.used == blob.size
    assert not again.has(bytes.fromhex("ab" * 32))
    assert not alone.exists()


def test_what_nobody_holds_goes(blobs, folder):
    kept, shared, gone = blobs.put(b"kept", "a"), blobs.put(b"shared", "a"), blobs.put(b"gone")
    blobs.hold(shared.sha256, "b")
    with blobs.part(BLOB) as part:
        part.write(DATA[:100])
    assert blobs.collect() == 4 + 100
    assert blobs.path(gone.sha256) is None
    assert blobs.used == 10
    blobs.release("a")
    blobs.release("nobody")
    assert blobs.collect() == 4
    assert blobs.path(kept.sha256) is None
    assert blobs.path(shared.sha256)
    blobs.release("b")
    assert blobs.collect() == 6
    assert left(folder) == []
    assert (blobs.used, Blobs(folder).used) == (0, 0)


def test_what_is_held_or_being_received_stays(blobs):
    blobs.hold(BLOB.sha256, "run")  # before it comes
    with blobs.part(BLOB) as part:
        part.write(DATA[:100])
    other = blobs.part(blob_of(b"other"))
    assert blobs.collect() == 0
    other.write(b"other")
    other.finish()
    with blobs.part(BLOB) as part:
        assert part.offset == 100
        part.write(DATA[100:])
        part.finish()
    assert blobs.collect() == 5
    assert blobs.path(BLOB.sha256)


def test_threads_may_do_all_of_it_at_once(folder):
    blobs = Blobs(folder)
    contents = [bytes([number]) * 3000 for number in range(8)]

    def work(owner):
        for content in contents:
            blob = blobs.put(content, owner)
            with blobs.part(blob) as part:
                part.write(content[part.offset :])
                part.finish()
            blobs.collect()
        blobs.release(owner)

    threads = [threading.Thread(target=work, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert blobs.used == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    blobs.collect()
    assert (blobs.used, left(folder)) == (0, [])
