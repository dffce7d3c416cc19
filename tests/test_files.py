"""Files that are all there or not there at all, and large ones that are mapped."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel import files
from umbel.errors import SettingError, StorageError


@pytest.mark.parametrize("durable", [False, True])
def test_pieces_become_one_file_and_its_hash(tmp_path, durable):
    pieces = [b"head", b"", memoryview(bytes(range(256)) * 9000), b"tail"]
    sha256, size = files.write_pieces(tmp_path / "file", iter(pieces), durable=durable)
    data = (tmp_path / "file").read_bytes()
    assert data == b"".join(pieces)
    assert (sha256, size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_is_written_also_while_the_interpreter_ends(tmp_path):
    script = f"""
import atexit, threading
from umbel import files

def write(name):
    sha256, size = files.write_pieces({str(tmp_path)!r} + name, [bytes(3 << 20), b"tail"])
    print(sha256, size)

def later():
    threading.main_thread().join()
    write("/thread")

atexit.register(write, "/atexit")
threading.Thread(target=later).start()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    data = bytes(3 << 20) + b"tail"
    assert done.stdout.splitlines() == [f"{hashlib.sha256(data).hexdigest()} {len(data)}"] * 2, done.stderr
    assert (tmp_path / "thread").read_bytes() == data


@given(st.lists(st.sampled_from([0, 1, 1000, files._STEP - 1, files._STEP, files._STEP + 1, 2 * files._STEP + 5])))
def test_pieces_of_any_sizes_are_hashed_in_their_order(sizes):
    pieces = [memoryview(bytes([number % 251]) * size) for number, size in enumerate(sizes)]
    with tempfile.TemporaryDirectory() as folder:
        sha256, size = files.write_pieces(Path(folder) / "file", iter(pieces))
        assert (Path(folder) / "file").read_bytes() == b"".join(pieces)
    assert (sha256, size) == (hashlib.sha256(b"".join(pieces)).hexdigest(), sum(sizes))


def broken_off():
    yield b"new"
    raise KeyboardInterrupt


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=6), st.integers(-1, 1), st.booleans())
def test_zeros_leave_holes_and_the_file_is_the_same(pieces, more, durable):
    made = [(bytes if zero else lambda size: b"x" * size)(max(0, (mib << 20) + more)) for zero, mib in pieces]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        sha256, size = files.write_pieces(path, map(memoryview, made), durable=durable)
        assert path.read_bytes() == b"".join(made)
        assert (sha256, size) == (hashlib.sha256(b"".join(made)).hexdigest(), sum(map(len, made)))


def test_an_older_file_stays_whole_whatever_interrupts(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_pieces(path, [b"old"])
    with pytest.raises(KeyboardInterrupt):
        files.write_pieces(path, broken_off())

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="file cannot be written: No space left on device") as caught:
        files.write_pieces(path, [b"new"], durable=True)
    assert caught.value.retry
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("size", [3, 1 << 20], ids=["read", "mapped"])
def test_a_mapped_file_may_be_replaced_and_removed(tmp_path, size):
    path = tmp_path / "file"
    files.write_pieces(path, [b"1" * size])
    view = files.mapped(path)
    assert isinstance(view.obj, mmap.mmap) == (size > 3)
    files.write_pieces(path, [b"2" * size])
    assert bytes(view) == b"1" * size
    path.unlink()
    assert bytes(view) == b"1" * size
    assert view.readonly


def test_empty_and_missing_files(tmp_path):
    (tmp_path / "empty").touch()
    assert bytes(files.mapped(tmp_path / "empty")) == b""
    with pytest.raises(StorageError, match="none cannot be read: No such file"), files.reading(tmp_path / "none"):
        files.mapped(tmp_path / "none")


def test_what_is_large_is_a_matter_of_size(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(bytes(100))
    assert not files.is_large(tmp_path / "file")
    monkeypatch.setattr(files, "LARGE", 100)
    assert files.is_large(tmp_path / "file")


@pytest.mark.parametrize("named", [None, "", "relative", "./here"])
def test_a_users_folder_is_in_the_home_where_nothing_whole_is_named(tmp_path, monkeypatch, named):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    if named is not None:
        monkeypatch.setenv("XDG_CONFIG_HOME", named)
    assert files.user_folder("XDG_CONFIG_HOME", ".config") == tmp_path / ".config" / "umbel"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "x"))
    assert files.user_folder("XDG_CONFIG_HOME", ".config") == tmp_path / "x" / "umbel"


def test_no_link_on_the_way_to_a_file_is_followed(tmp_path):
    """Another program, which is not trusted, may write to the folder."""
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "folder"
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "plain").write_text("mine")
    (folder / "in" / "link").symlink_to(tmp_path / "secret")
    (folder / "out").symlink_to(tmp_path)
    with files.opened_below(folder, "in/plain") as file:
        assert file.read() == b"mine"
    if os.name != "posix":
        return
    os.mkfifo(folder / "in" / "pipe")
    for name in ("in/link", "out/secret", "in/pipe", "in/nothing"):
        with pytest.raises(OSError), files.opened_below(folder, name):
            pass


def test_a_folder_is_one_process_s_alone(tmp_path):
    folder = tmp_path / "made" / "here"
    with files.alone(folder, "a node", "Wait."):
        with (
            pytest.raises(SettingError, match="a node runs in") as error,
            files.alone(folder, "a node", "Wait."),
        ):
            pass
        assert error.value.hint == "Wait."
        with files.alone(folder, "another", "", "other.lock"):
            pass
    with files.alone(folder, "a node", ""):
        pass


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"), files.alone(tmp_path / "file", "a node", ""):
        pass
