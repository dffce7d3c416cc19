"""One contract for every store: what was written is there, in whatever order things happen, and nothing else is."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.errors import InternalError
from umbel.store.records import TABLES, MemoryStore, TableSchema
from umbel.store.sql import SqlStore


class Memory:
    """A store in memory; opening it again after a crash finds what was written."""

    def __init__(self, path):
        self.store = MemoryStore()

    def again(self):
        self.store.crash()
        return self.store


class Sqlite:
    """A store in a file, opened again after a crash."""

    def __init__(self, path):
        self.path = path / "store.db"
        self.store = SqlStore(self.path)

    def again(self):
        self.store.close()
        self.store = SqlStore(self.path)
        return self.store


KINDS = (Memory, Sqlite)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def opened(request, tmp_path):
    found = request.param(tmp_path)
    yield found
    found.store.close()


@pytest.fixture
def store(opened):
    return opened.store


def answer(run, id, ask=1, message=b"m"):
    return {"run": run, "id": id, "ask": ask, "message": message}


# What a store does


def test_what_is_put_is_there_once_it_is_written(store):
    store.put("answers", answer("r", "1.a"))
    assert store.rows("answers") == []
    store.commit()
    assert store.rows("answers") == [answer("r", "1.a")]


def test_what_was_not_written_is_gone_after_a_crash(opened):
    store = opened.store
    store.put("answers", answer("r", "1.a"))
    store.commit()
    store.put("answers", answer("r", "1.b"))
    store.delete("answers", run="r", id="1.a")
    store.take()
    store.put("answers", answer("r", "1.c"))
    store = opened.again()
    store.commit()
    assert store.rows("answers") == [answer("r", "1.a")]


def test_a_row_is_laid_over_the_one_with_its_key(store):
    store.put("runs", {"id": "r", "status": "running", "name": "first"})
    store.commit()
    store.put("runs", {"id": "r", "status": "finished", "ended_at": 3})
    store.commit()
    (row,) = store.rows("runs", id="r")
    assert (row["status"], row["name"], row["ended_at"], row["exit"]) == ("finished", "first", 3.0, None)
    store.put("runs", {"id": "r", "name": None})
    store.put("runs", {"id": "r"})
    store.commit()
    assert store.rows("runs", id="r")[0]["name"] is None
    assert set(row) == set(next(table for table in TABLES if table.name == "runs").columns)


def test_changes_of_one_table_keep_their_order(store):
    store.put("tasks", {"run": "r", "task": "1", "ask": 1})
    store.delete("tasks", run="r")
    store.put("tasks", {"run": "r", "task": "2", "ask": 1, "client": "c"})
    store.put("tasks", {"run": "r", "task": "2", "client": "d"})
    store.put("tasks", {"run": "r", "task": "3", "ask": 2})
    store.delete("tasks", run="r", ask=2)
    store.commit()
    assert [(row["task"], row["client"]) for row in store.rows("tasks")] == [("2", "d")]


def test_rows_are_found_by_any_columns_and_sorted_by_key(store):
    for run, task, node in (("b", "2", "x"), ("a", "10", None), ("a", "9", "x"), ("ä", "1", "x")):
        store.put("tasks", {"run": run, "task": task, "node": node})
    store.commit()
    assert [(row["run"], row["task"]) for row in store.rows("tasks")] == [
        ("a", "10"),
        ("a", "9"),
        ("b", "2"),
        ("ä", "1"),
    ]
    assert [row["task"] for row in store.rows("tasks", run="a", node="x")] == ["9"]
    assert [row["task"] for row in store.rows("tasks", node=None)] == ["10"]
    assert store.rows("tasks", run="a", task="9", node="y") == []
    store.delete("tasks", node=None)
    store.delete("tasks", run="b", task="2", node="y")
    store.commit()
    assert len(store.rows("tasks")) == 3


def test_numbered_rows_are_read_in_pieces(store):
    assert store.greatest("events", run="r") == 0
    for number in range(1, 13):
        store.put("events", {"run": "r", "number": number, "at": 0.5, "body": str(number)})
    store.put("events", {"run": "s", "number": 99})
    store.commit()
    assert [row["number"] for row in store.rows("events", above=9, run="r")] == [10, 11, 12]
    assert [row["number"] for row in store.rows("events", above=2, limit=3, run="r")] == [3, 4, 5]
    assert [row["number"] for row in store.rows("events", limit=0)] == []
    assert (store.greatest("events", run="r"), store.greatest("events")) == (12, 99)


def test_values_come_back_as_they_were(store):
    clients = {"a": [1, 2.5, None, True], "ü": float("inf")}
    row = {
        "id": "n",
        "name": 'q"\0\n',
        "key": bytearray(b"\0\xff"),
        "clients": clients,
        "joined_at": 1,
        "seen_at": 1e300,
    }
    store.put("nodes", row)
    clients["a"].append("later")
    store.commit()
    (found,) = store.rows("nodes")
    assert (found["key"], found["joined_at"], type(found["joined_at"])) == (b"\0\xff", 1.0, float)
    assert found["clients"] == {"a": [1, 2.5, None, True], "ü": float("inf")}
    found["clients"]["a"] = 0
    assert store.rows("nodes")[0]["clients"]["a"] == [1, 2.5, None, True]


@pytest.mark.parametrize(
    ("table", "row", "said"),
    [
        ("nothing", {}, "no table"),
        ("asks", {"run": "r", "ask": 1, "what": 1}, "no column 'what'"),
        ("asks", {"run": "r"}, "lacks its key run, ask"),
        ("asks", {"run": "r", "ask": None}, "lacks its key"),
        ("asks", {"run": "r", "ask": 2**63}, "64 bits"),
        ("asks", {"run": "r", "ask": "1"}, "whole number"),
        ("asks", {"run": "\ud800", "ask": 1}, "surrogates"),
        ("asks", {"run": "r", "ask": 1, "spec": "text"}, "not bytes"),
        ("events", {"run": "r", "number": 1, "at": float("nan")}, "not a number"),
        ("audit", {"number": 1, "what": {1, 2}}, "not JSON serializable"),
    ],
)
def test_what_does_not_fit_is_an_error_when_it_is_put_and_harms_no_batch(store, table, row, said):
    store.put("asks", {"run": "r", "ask": 7})
    with pytest.raises(InternalError, match=said):
        store.put(table, row)
    store.commit()
    assert len(store.rows("asks")) == 1


def test_json_is_not_looked_up(store):
    with pytest.raises(InternalError, match="JSON"):
        store.delete("audit", what={})
    with pytest.raises(InternalError, match="no column"):
        store.rows("audit", nothing=1)


def test_a_batch_counts_its_changes(store):
    assert not store.take()
    store.put("asks", {"run": "r", "ask": 1})
    store.delete("answers", run="r")
    batch = store.take()
    assert batch
    assert len(batch) == 2
    store.write(batch)
    store.write(batch)  # once more is the same
    assert len(store.rows("asks")) == 1


def test_rows_are_read_while_another_thread_writes(store):
    batches = []
    for number in range(40):
        for part in range(25):
            store.put("answers", answer(f"r{number}", str(part)))
        batches.append(store.take())
    writer = threading.Thread(target=lambda: [store.write(batch) for batch in batches])
    writer.start()
    counts = []
    while writer.is_alive():
        counts.append(len(store.rows("answers")))
    writer.join()
    assert len(store.rows("answers")) == 1000
    assert counts == sorted(counts)
    assert not any(count % 25 for count in counts)


# Any order of anything equals a plain dictionary

NAMES = st.sampled_from(["a", "b", "ä"])
NUMBERS = st.integers(0, 3)
PUTS = st.tuples(
    st.just("put"),
    st.fixed_dictionaries(
        {"run": NAMES, "task": NAMES},
        optional={"ask": st.none() | NUMBERS, "node": st.none() | NAMES, "message": st.binary(max_size=3)},
    ),
)
DELETES = st.tuples(
    st.just("delete"),
    st.fixed_dictionaries({}, optional={"run": NAMES, "task": NAMES, "ask": NUMBERS, "node": st.none() | NAMES}),
)
STEPS = st.lists(PUTS | PUTS | DELETES | st.tuples(st.sampled_from(["commit", "crash"]), st.none()), max_size=25)


class Model:
    """What a store is, in the fewest words."""

    def __init__(self):
        self.kept, self.rows = {}, {}

    def step(self, what, values):
        if what == "put":
            key = (values["run"], values["task"])
            blank = dict.fromkeys(TableSchema(TABLES).table("tasks").columns)
            self.rows[key] = {**self.rows.get(key, blank), **values}
        elif what == "delete":
            gone = [key for key, row in self.rows.items() if values.items() <= row.items()]
            for key in gone:
                del self.rows[key]
        elif what == "commit":
            self.kept = dict(self.rows)
        else:
            self.rows = dict(self.kept)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(steps=STEPS)
def test_any_steps_leave_what_a_dictionary_would_hold(kind, steps, tmp_path_factory):
    opened = kind(tmp_path_factory.mktemp("store"))
    model = Model()
    try:
        for what, values in steps:
            model.step(what, values)
            if what == "put":
                opened.store.put("tasks", values)
            elif what == "delete":
                opened.store.delete("tasks", **values)
            elif what == "commit":
                opened.store.commit()
            else:
                opened.again()
            assert opened.store.rows("tasks") == [model.kept[key] for key in sorted(model.kept)]
    finally:
        opened.store.close()
