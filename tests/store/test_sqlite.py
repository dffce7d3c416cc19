"""A database of SQLite: in a file and in memory, all or nothing, and errors that say what to do."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing

import pytest

from umbel.errors import CorruptFile, StorageError
from umbel.store.sqlite import Database

WORDS = {"what": "the things", "mend": "Make room.", "large": "Keep less.", "lost": "Move it away."}
SCHEMA = "CREATE TABLE IF NOT EXISTS things (name TEXT PRIMARY KEY, data BLOB)"
PUT = "INSERT INTO things VALUES (?, ?)"


@pytest.fixture(params=["memory", "file"])
def database(request, tmp_path):
    with closing(Database(tmp_path / "a.db" if request.param == "file" else None, SCHEMA, **WORDS)) as made:
        yield made


def test_what_is_written_is_found(database):
    with database.write() as execute:
        execute(PUT, ("a", b"1"))
        execute(PUT, ("b", None))
    assert database.rows("SELECT * FROM things ORDER BY name") == [("a", b"1"), ("b", None)]
    assert database.rows("SELECT data FROM things WHERE name = ?", "a") == [(b"1",)]


def test_all_is_written_or_nothing(database):
    def half():
        with database.write() as execute:
            execute(PUT, ("a", b"1"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert database.rows("SELECT * FROM things") == []
    with database.write() as execute:
        execute(PUT, ("a", b"1"))
    assert len(database.rows("SELECT * FROM things")) == 1


def test_a_file_outlives_it_and_is_on_the_disk(tmp_path):
    with closing(Database(tmp_path / "a.db", SCHEMA, **WORDS)) as first:
        assert first._writer.execute("PRAGMA synchronous").fetchone() == (2,)
        with first.write() as execute:
            execute(PUT, ("a", b"1"))
        with closing(Database(tmp_path / "a.db", SCHEMA, **WORDS)) as second:
            assert second.rows("SELECT name FROM things") == [("a",)]


def test_one_thread_writes_while_another_reads_what_was_written_before(tmp_path):
    with closing(Database(tmp_path / "a.db", SCHEMA, **WORDS)) as database:
        begun, looked = threading.Event(), threading.Event()

        def work():
            with database.write() as execute:
                execute(PUT, ("a", b"1"))
                begun.set()
                assert looked.wait(60)

        writer = threading.Thread(target=work)
        writer.start()
        assert begun.wait(60)
        assert database.rows("SELECT * FROM things") == []
        looked.set()
        writer.join()
        assert database.rows("SELECT name FROM things") == [("a",)]


def test_errors_say_what_cannot_be_done_and_what_to_do(database):
    database._writer.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1000)
    with (
        pytest.raises(StorageError, match="cannot be written") as caught,
        database.write() as execute,
    ):
        execute(PUT, ("a", bytes(2000)))
    assert (type(caught.value), caught.value.hint) == (StorageError, "Keep less.")
    with pytest.raises(StorageError, match=r"the things in .* cannot be read: no such table") as caught:
        database.rows("SELECT * FROM others")
    assert caught.value.hint == "Make room."


def test_a_file_that_is_something_else(tmp_path):
    (tmp_path / "a.db").write_bytes(b"something else " * 100)
    with pytest.raises(CorruptFile, match=r"the things in .*a\.db cannot be read: file is not a database") as caught:
        Database(tmp_path / "a.db", SCHEMA, **WORDS)
    assert caught.value.hint == "Move it away."
    with pytest.raises(StorageError, match=r"nowhere/a\.db cannot be opened: unable to open database file"):
        Database(tmp_path / "nowhere" / "a.db", SCHEMA, **WORDS)
