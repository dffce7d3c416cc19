"""What a node's owner lets clients' code reach."""

from __future__ import annotations

import os

import pytest

from umbel.node import limits
from umbel.node.limits import Limits, named


def test_a_source_names_its_files_wherever_it_does(tmp_path, monkeypatch):
    for name in ("one", "two", "three", "four"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    source = {
        "path": f"{tmp_path}/one",
        "more": [f"sqlite:///{tmp_path}/two", {"url": f"file://{tmp_path}/three", "index": 3}],
        "relative": "four",
        "nothing": f"{tmp_path}/nothing",
        "text": "a\0b",
        "port": "tcp://somewhere/else",
    }
    assert [os.path.basename(path) for path in named(source)] == ["one", "two", "three", "four"]
    assert list(named({"files": f"{tmp_path}/*/x?.csv"})) == [str(tmp_path)]
    assert list(named("")) == []


def test_a_child_may_read_the_data_and_is_shut_out_of_its_nodes_folder(tmp_path):
    (tmp_path / "data").mkdir()
    how = Limits(network=False, memory=1 << 30, read=["/r"], write=["/w"])
    found = how.confined(tmp_path / "node", tmp_path / "node" / "runs" / "r.1", {"a": {"path": f"{tmp_path}/data"}}, 0)
    assert {str(tmp_path / "data"), "/r"} <= set(found.read)
    assert found.write == ["/w"]
    assert str(tmp_path / "node") in found.hidden
    assert found.own == [str(tmp_path / "node" / "runs" / "r.1" / "archive")]
    assert (found.network, found.memory, found.cpus) == (False, 1 << 30, None)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_children_have_processors_of_their_own_as_long_as_there_are_some(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 3, 5, 7, 9})
    assert [limits._processors(2, slot) for slot in range(4)] == [[1, 3], [5, 7], [1, 9], [3, 5]]
    assert limits._processors(99, 1) == [1, 3, 5, 7, 9]
