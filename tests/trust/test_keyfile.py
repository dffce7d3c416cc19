"""Key files: private, whole, and made once."""

from __future__ import annotations

import os
import stat
import threading

import pytest

from umbel.errors import StorageError
from umbel.trust import keyfile


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_is_made_once_and_for_its_owner_alone(tmp_path):
    path = tmp_path / "sub" / "a.key"
    assert keyfile.kept(path, lambda: b"first") == b"first"
    assert keyfile.kept(path, lambda: b"second") == b"first"
    assert mode(path) == 0o600
    assert mode(path.parent) & 0o077 == 0
    assert os.listdir(path.parent) == ["a.key"]


def test_of_several_at_once_one_wins(tmp_path):
    path, both, found = tmp_path / "a.key", threading.Barrier(8), []

    def make(i):
        def contents():
            both.wait()  # everybody has seen that there is none
            return b"%d" % i

        found.append(keyfile.kept(path, contents))

    threads = [threading.Thread(target=make, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {path.read_bytes()}
    assert os.listdir(tmp_path) == ["a.key"]


def test_what_is_there_can_be_exchanged(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o644)
    keyfile.replace(path, b"new")
    assert (path.read_bytes(), mode(path)) == (b"new", 0o600)


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for call in (lambda p: keyfile.kept(p, bytes), lambda p: keyfile.replace(p, b"")):
        with pytest.raises(StorageError, match=r"a\.key"):
            call(tmp_path / "file" / "a.key")
