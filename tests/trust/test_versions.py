"""The greatest versions that were let in."""

from __future__ import annotations

import threading

import pytest

from umbel.errors import CorruptFile
from umbel.trust.versions import Versions

AUTHOR, OTHER = bytes(32), b"\1" * 32


def test_the_greatest_is_kept_for_each_author_and_app(tmp_path):
    path = tmp_path / "node" / "versions.json"
    versions = Versions(path)
    versions.accept(AUTHOR, "mnist", 3)
    versions.accept(AUTHOR, "mnist", 2)
    versions.accept(OTHER, "mnist", 1)
    for kept in (versions, Versions(path)):
        assert [kept.greatest(AUTHOR, "mnist"), kept.greatest(OTHER, "mnist"), kept.greatest(AUTHOR, "x")] == [3, 1, 0]
    assert path.stat().st_mode & 0o777 == 0o600


def test_none_is_lost_that_several_threads_let_in(tmp_path):
    versions = Versions(tmp_path / "v")
    threads = [threading.Thread(target=versions.accept, args=(AUTHOR, f"app {n}", n)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [Versions(tmp_path / "v").greatest(AUTHOR, f"app {n}") for n in range(1, 9)] == list(range(1, 9))


@pytest.mark.parametrize("text", ["", "[]", '{"a": "b"}', '{"a": 1.5}'])
def test_a_damaged_file_says_so(tmp_path, text):
    (tmp_path / "v").write_text(text)
    with pytest.raises(CorruptFile, match="is damaged"):
        Versions(tmp_path / "v")
