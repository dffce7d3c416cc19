"""Client states: a version for each ask that wrote one, and the way back to what was committed."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel import Arrays
from umbel.core import encoding
from umbel.errors import CorruptFile, StorageError
from umbel.work.state import ClientStates


def state(value):
    return encoding.encode({"user": value})


@pytest.fixture(params=["memory", "file"])
def states(request, tmp_path):
    found = ClientStates(tmp_path / "states.db" if request.param == "file" else None)
    yield found
    found.close()


def test_a_client_has_no_state_until_one_is_admitted(states):
    assert states.get(1) == {}
    states.advance(0, {}, since=0)
    assert states.get(1) == {}
    states.advance(0, {1: state("a")}, since=0)
    assert states.get(1) == {"user": "a"}
    assert states.get(2) == {}


def test_the_newest_counts_and_names_are_kept_apart_from_numbers(states):
    states.advance(3, {1: state("a"), "1": state("b"), "hospital é": state("c")}, since=3)
    states.advance(5, {1: state("d")}, since=5)
    assert [states.get(client) for client in (1, "1", "hospital é")] == [{"user": x} for x in "dbc"]


def test_a_state_holds_arrays_numbers_and_text(states):
    tree = {"model": Arrays({"w": np.arange(3, dtype=np.float16)}), "n": 7, "x": 0.1, "names": ("a", None, [True])}
    states.advance(0, {0: state(tree)}, since=0)
    found = states.get(0)["user"]
    assert found["model"] == tree["model"]
    assert {n: v for n, v in found.items() if n != "model"} == {n: v for n, v in tree.items() if n != "model"}


def test_it_goes_back_to_the_last_commit_and_the_asks_that_were_recorded(states):
    states.advance(2, {0: state("old"), 1: state("old")}, since=2)
    states.advance(5, {0: state("five"), 1: state("five"), 2: state("five")}, since=5)
    states.advance(6, {0: state("six"), 2: state("six")}, since=5)
    states.advance(7, {1: state("seven")}, since=5)
    states.keep(5, [6])
    assert [states.get(client) for client in range(3)] == [{"user": "six"}, {"user": "old"}, {"user": "six"}]
    states.keep(5, [])
    assert [states.get(client) for client in range(3)] == [{"user": "old"}, {"user": "old"}, {}]


OPERATIONS = st.lists(st.tuples(st.sets(st.integers(0, 3), max_size=3), st.booleans()), max_size=12)


@given(OPERATIONS, st.data())
def test_whatever_was_written_since_the_commit_can_be_taken_back(operations, data):
    """Against a model that keeps every version: asks write, some of them commit, then the run dies."""
    states, versions, since = ClientStates(), {}, 0
    for ask, (clients, commits) in enumerate(operations):
        states.advance(ask, {client: state(ask) for client in clients}, since=since)
        versions.update({(client, ask): ask for client in clients})
        since = ask + 1 if commits else since
    recorded = data.draw(st.sets(st.sampled_from(range(since, len(operations))))) if since < len(operations) else set()
    states.keep(since, recorded)
    for client in range(4):
        left = [a for (c, a) in versions if c == client and (a < since or a in recorded)]
        assert states.get(client) == ({"user": max(left)} if left else {}), client
    states.close()


def test_old_versions_do_not_pile_up(tmp_path):
    states = ClientStates(tmp_path / "states.db")
    for ask in range(50):
        states.advance(ask, {0: state(ask), 1: state(ask)}, since=ask)
    states.close()
    with sqlite3.connect(tmp_path / "states.db") as db:
        (rows,) = db.execute("SELECT count(*) FROM state").fetchone()
    db.close()
    assert rows == 4


def test_states_outlive_the_process(tmp_path):
    first = ClientStates(tmp_path / "states.db")
    first.advance(0, {7: state("kept")}, since=0)
    first.close()
    second = ClientStates(tmp_path / "states.db")
    assert second.get(7) == {"user": "kept"}
    second.close()


def test_all_states_of_an_ask_are_written_or_none(tmp_path, monkeypatch):
    class Full(sqlite3.Connection):
        def execute(self, sql, *parameters):
            if sql.startswith("INSERT") and parameters[0][0] == "1":
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(sql, *parameters)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **settings: connect(*args, factory=Full, **settings))
    states = ClientStates(tmp_path / "states.db")
    states.advance(0, {0: state("old")}, since=0)
    with pytest.raises(StorageError) as caught:
        states.advance(1, {0: state("new"), 1: state("new")}, since=1)
    assert "states.db cannot be written: database or disk is full" in caught.value.message
    assert "make room" in caught.value.hint
    assert states.get(0) == {"user": "old"}
    states.advance(2, {0: state("newer")}, since=1)
    assert states.get(0) == {"user": "newer"}
    states.close()


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "states.db").write_bytes(b"something else " * 100)
    with pytest.raises(CorruptFile, match=r"the client states in .*states\.db cannot be read: file is not a database"):
        ClientStates(tmp_path / "states.db")


def test_a_place_that_does_not_exist(tmp_path):
    with pytest.raises(StorageError, match=r"nowhere/states\.db cannot be opened: unable to open database file"):
        ClientStates(tmp_path / "nowhere" / "states.db")


def test_a_state_larger_than_sqlite_takes_is_no_corrupt_file(states):
    states._database._writer.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1000)
    with pytest.raises(StorageError, match=r"ctx\.state") as caught:
        states.advance(0, {3: state(np.zeros(1000))}, since=0)
    assert not isinstance(caught.value, CorruptFile)
    states.advance(1, {3: state("small")}, since=0)
    assert states.get(3) == {"user": "small"}
