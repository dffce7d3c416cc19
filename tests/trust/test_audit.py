"""The record of who did what: any change to it is found."""

from __future__ import annotations

import json
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.errors import CorruptFile, SettingError
from umbel.store.records import MemoryStore
from umbel.store.sql import SqlStore
from umbel.trust import audit
from umbel.trust.audit import HEAD, OWN, PEER, Audit, Head, verified

KEY = b"k" * 32


def chained(count=6, store=None, **more):
    """An audit of so many records, its rows and its head."""
    store = store or MemoryStore()
    notes = Audit(store, lambda: 1000.0, key=KEY, **more)
    for number in range(count):
        notes.record(f"who-{number % 2}", "did", run=f"run-{number}", where=[number, {"b": None}])
    store.commit()
    return notes, store.rows("audit")


def head_of(rows):
    return Head(rows[-1]["number"], rows[-1]["seal"])


def test_an_audit_is_whole_with_all_of_its_heads():
    _, rows = chained()
    heads = [Head(row["number"], row["seal"]) for row in rows]
    assert verified(KEY, rows, [Head(), *heads]) == heads[-1]
    assert Head.parse(str(heads[2])) == heads[2]
    for wrong in ("", "x:ab", "3", "3:xy"):
        with pytest.raises(SettingError, match="is no head"):
            Head.parse(wrong)
    assert verified(KEY, []) == Head()


VALUES = {
    "number": st.integers(0, 20),
    "at": st.floats(0, 2000),
    "who": st.text(max_size=9),
    "did": st.text(max_size=9) | st.just("audit.pruned"),
    "what": st.dictionaries(st.sampled_from(["run", "seals"]), st.text(max_size=5) | st.just([["", "00"]])) | st.none(),
    "peer": st.text(max_size=9),
    "before": st.binary(max_size=32),
    "seal": st.binary(max_size=32),
}


@given(st.data())
def test_any_change_deletion_insertion_or_move_is_found(data):
    _, rows = chained()
    head, changed = head_of(rows), [dict(row) for row in rows]
    at = data.draw(st.integers(0, len(rows) - 1))
    match data.draw(st.sampled_from(["change", "delete", "insert", "move", "renumber", "tail"])):
        case "change":
            column = data.draw(st.sampled_from(sorted(VALUES)))
            changed[at][column] = data.draw(VALUES[column].filter(lambda value: value != rows[at][column]))
        case "delete":
            del changed[at]
        case "insert":
            column = data.draw(st.sampled_from(sorted(VALUES)))
            changed.insert(at, {**changed[data.draw(st.integers(0, 5))], column: data.draw(VALUES[column])})
        case "move":
            other = data.draw(st.integers(0, len(rows) - 1).filter(lambda index: index != at))
            changed[at], changed[other] = changed[other], changed[at]
        case "renumber":
            other = data.draw(st.integers(0, len(rows) - 1).filter(lambda index: index != at))
            numbers = changed[at]["number"], changed[other]["number"]
            changed[other]["number"], changed[at]["number"] = numbers
            changed.sort(key=lambda row: row["number"])
        case "tail":
            del changed[at:]
    with pytest.raises(CorruptFile, match="the audit was changed: record"):
        verified(KEY, changed, [head])


def test_who_has_no_key_cannot_write_a_history():
    store = MemoryStore()
    forger = Audit(store, lambda: 1000.0, key=b"another")
    forger.record("ann", "nodes.approve")
    store.commit()
    with pytest.raises(CorruptFile, match="record 1 does not follow"):
        verified(KEY, store.rows("audit"))


def test_the_chain_goes_on_after_a_restart_and_what_was_not_written_is_not_in_it():
    notes, _ = chained()
    store = notes._store
    notes.record("lost", "did")
    store.crash()
    _, rows = chained(2, store)
    assert [row["number"] for row in rows] == list(range(1, 9))
    assert verified(KEY, rows).number == 8


@pytest.mark.parametrize("mixed", [False, True])
def test_what_anybody_can_cause_is_limited_and_pruned_and_the_chain_holds(monkeypatch, mixed):
    monkeypatch.setattr(audit, "KEPT", 5)
    monkeypatch.setattr(audit, "PRUNED", 4)
    monkeypatch.setattr(audit, "LIMIT", 3)
    store, now = MemoryStore(), [0.0]
    heads = []
    notes = Audit(store, lambda: now[0], key=KEY, passing=["refused"])
    for number in range(60):
        now[0] += 15.0
        notes.limited("unknown", "refused", number=number)
        if mixed and number % 3 == 0:
            notes.record("ann", "did")
        if number == 30:
            store.commit()
            notes = Audit(store, lambda: now[0], key=KEY, passing=["refused"])
        heads.append(notes._head)
    store.commit()
    rows = store.rows("audit")
    refused = [row for row in rows if row["did"] == "refused"]
    assert 5 <= len(refused) < 9
    assert any(row["what"].get("more") == 1 for row in refused)
    assert {row["did"] for row in rows} == {"refused", "audit.pruned", *(["did"] if mixed else [])}
    assert verified(KEY, rows, heads) == heads[-1]
    for index in range(len(rows)):
        with pytest.raises(CorruptFile):
            verified(KEY, rows[:index] + rows[index + 1 :], heads)


def test_a_record_says_from_where_but_for_what_the_server_does_by_itself():
    notes, _ = chained(0)
    before = PEER.set("ipv4:10.0.0.7:99")
    notes.record("ann", "did")
    notes.record(OWN, "did")
    PEER.reset(before)
    notes._store.commit()
    assert [row["peer"] for row in notes.last()] == ["ipv4:10.0.0.7:99", ""]


def test_a_tail_that_was_cut_off_a_database_is_found_by_the_head_beside_the_key(tmp_path):
    key = audit.key_of(tmp_path)
    assert audit.key_of(tmp_path) == key
    store = SqlStore(tmp_path / "node.db")
    notes = Audit(store, lambda: 1.5, key=key, head=tmp_path / HEAD)
    for number in range(4):
        notes.record("ann", "did", number=number)
        notes.settle()
    assert not (tmp_path / HEAD).exists(), "nothing is on disk yet"
    store.commit()
    notes.record("ann", "later")
    notes.settle()
    store.close()
    found, head, rows = audit.read(tmp_path)
    assert (found, head.number, len(rows)) == (key, 4, 4)
    assert verified(key, rows, [head]) == head
    with sqlite3.connect(tmp_path / "node.db") as database:
        database.execute("DELETE FROM audit WHERE number = 4")
    database.close()
    _, head, rows = audit.read(tmp_path)
    assert verified(key, rows).number == 3
    with pytest.raises(CorruptFile, match="record 4, which it had, is not in it; its last is 3"):
        verified(key, rows, [head])


def test_what_is_no_json_is_found_and_ends_nothing(tmp_path):
    store = SqlStore(tmp_path / "node.db")
    notes = Audit(store, lambda: 1.5, key=audit.key_of(tmp_path), head=tmp_path / HEAD)
    notes.record("ann", "did")
    store.commit()
    notes.settle()
    store.close()
    for wrong in (b"\xff", "{", None, 3, "[" * 100_000, json.dumps({"seals": 3})):
        with sqlite3.connect(tmp_path / "node.db") as database:
            database.execute("UPDATE audit SET what = ?, did = 'audit.pruned'", (wrong,))
        database.close()
        key, head, rows = audit.read(tmp_path)
        with pytest.raises(CorruptFile, match="record 1 does not follow"):
            verified(key, rows, [head])


def test_records_of_a_release_that_sealed_nothing_are_sealed_once(tmp_path):
    store = MemoryStore()
    for number in (1, 3):
        store.put("audit", {"number": number, "at": 1.0, "who": "ann", "did": "did", "what": {}})
    store.commit()
    notes = Audit(store, lambda: 2.0, key=KEY, head=tmp_path / HEAD)
    notes.record("ann", "did")
    store.commit()
    notes.settle()
    assert verified(KEY, store.rows("audit"), [audit.kept_head(tmp_path)]).number == 4
    store.put("audit", {"number": 3, "before": None, "seal": None})
    store.commit()
    Audit(store, lambda: 2.0, key=KEY, head=tmp_path / HEAD)
    with pytest.raises(CorruptFile, match="record 3"):
        verified(KEY, store.rows("audit"))


def test_another_folder_is_said_to_be_one(tmp_path):
    with pytest.raises(SettingError, match="is not the folder of a server or a node"):
        audit.read(tmp_path)
    with pytest.raises(CorruptFile, match="does not say which record is the last"):
        audit.kept_head(tmp_path)
