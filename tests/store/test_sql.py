"""The store on SQLite: what it says of disks and files that are not as they should be, and when a batch is durable."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from dataclasses import replace

import pytest

from umbel.errors import CorruptFile, StorageError, UmbelError
from umbel.store.records import MIGRATIONS, TABLES, VERSION, Table
from umbel.store.sql import SqlStore

NEW = {"relay": None, "bounds": None, "epoch": None, "boot": None}
ADDED = {
    *(("nodes", name) for name in NEW),
    ("tokens", "bounds"),
    ("tokens", "public"),
    *(("audit", name) for name in ("peer", "before", "seal")),
    *(("runs", name) for name in ("summary", "logged", "log")),
    ("events", "round"),
}
"""Columns that the first version of the tables had not."""
ADDED_TABLES = {"claims"}
REMOVED = {"tasks": {"answer": "text"}}
"""Columns that it had, and this one has not."""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "er" / "store?.db"


@contextmanager
def opened(path, **how):
    store = SqlStore(path, **how)
    try:
        yield store
    finally:
        store.close()


def fill(store, count=200):
    for number in range(count):
        store.put("answers", {"run": "r", "id": str(number), "ask": 1, "message": os.urandom(1000)})
    store.commit()


def test_only_its_owner_can_read_the_file(path):
    with opened(path) as store:
        fill(store)
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(("store?.db", "store?.db-wal", "store?.db-shm"), 0o600)


def test_it_is_a_write_ahead_log_that_is_synced_at_each_commit(path):
    with opened(path) as store, store._engine.connect() as connection:
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
    assert found == ["wal", 2]


def test_after_a_commit_the_hook_is_called_and_only_then(path):
    seen = []
    with opened(path, after_commit=lambda: seen.append(len(store.rows("asks")))) as store:
        store.commit()
        assert seen == []
        store.put("asks", {"run": "r", "ask": 1})
        store.commit()
    assert seen == [1]


def test_what_was_written_outlives_a_kill(path):
    code = """
        import os, signal, sys
        from umbel.store.sql import SqlStore
        store = SqlStore(sys.argv[1])
        for number in range(100):
            store.put("events", {"run": "r", "number": number, "body": "x" * 5000})
            store.commit()
        store.put("events", {"run": "r", "number": 100})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    child = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    done = subprocess.run(child, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == -9
    with opened(path) as store:
        assert [row["number"] for row in store.rows("events")] == list(range(100))


def test_another_version_of_the_tables_is_refused(path):
    with opened(path):
        pass
    later = VERSION + 1
    for version, migrations in ((later, MIGRATIONS), (VERSION - 1, MIGRATIONS)):
        text = rf"version {VERSION} of the tables, not {version}\n.*release of Umbel"
        with pytest.raises(StorageError, match=text) as caught:
            SqlStore(path, version=version, migrations=migrations)
        assert not caught.value.retry
    with opened(path):
        pass


def test_tables_of_the_first_version_become_those_of_this_one(path):
    first = [
        replace(
            table,
            columns={
                **{name: kind for name, kind in table.columns.items() if (table.name, name) not in ADDED},
                **REMOVED.get(table.name, {}),
            },
            indexes=() if table.name == "events" else table.indexes,
        )
        for table in TABLES
        if table.name not in ADDED_TABLES
    ]
    store = SqlStore(path, tables=first, version=1)
    row = {"id": "a", "name": "ward", "key": b"k", "status": "approved", "clients": ["1"], "capabilities": {}}
    store.put("tokens", {"id": "t", "kind": "operator", "name": "ann"})
    store.put("nodes", row)
    store.put("nodes", {**row, "id": "0", "status": "revoked", "clients": ["1", "2"]})
    store.put("events", {"run": "r", "number": 1, "body": "{}"})
    store.commit()
    store.close()
    for _ in range(2):
        with opened(path) as store:
            assert store.rows("nodes", id="a") == [{**row, "joined_at": None, "seen_at": None, **NEW}]
            assert store.rows("tokens") == []
            assert store.rows("claims") == [{"client": "1", "node": "a"}, {"client": "2", "node": "0"}]
            assert store.rows("events", run="r", round=1) == []
            assert store.rows("events", run="r")[0]["round"] is None


def test_a_migration_that_fails_changes_nothing(path):
    with opened(path):
        pass
    steps = {VERSION: ("ALTER TABLE nodes ADD COLUMN more INTEGER", "ALTER TABLE unheard ADD COLUMN more INTEGER")}
    with pytest.raises(UmbelError):
        SqlStore(path, version=VERSION + 1, migrations=steps)
    with opened(path) as store:
        assert store.rows("nodes") == []


def test_another_programs_file_is_refused(path):
    path.parent.mkdir(parents=True)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA application_id = 7")
    connection.execute("CREATE TABLE nodes (x)")
    connection.close()
    with pytest.raises(StorageError, match="another program"):
        SqlStore(path)


def test_a_start_that_was_cut_short_is_made_whole(path):
    with opened(path):
        pass
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE answers")
    connection.execute("PRAGMA user_version = 0")
    connection.close()
    with opened(path) as store:
        fill(store, 1)


def test_a_file_that_is_no_database(path):
    path.parent.mkdir(parents=True)
    path.write_bytes(b"hello" * 1000)
    with pytest.raises(CorruptFile, match=r"store\?\.db cannot be opened: file is not a database\nRestore"):
        SqlStore(path)


def test_a_damaged_page(path):
    with opened(path) as store:
        fill(store)
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))
    with opened(path) as store, pytest.raises(CorruptFile, match="malformed"):
        store.rows("answers")


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be opened: .*\nMake room"):
        SqlStore(tmp_path / "file" / "store.db")


def test_a_full_disk_changes_nothing_and_the_batch_can_be_written_once_there_is_room(path):
    with opened(path) as store:
        fill(store, 5)
        for number in range(500):
            store.put("answers", {"run": "r", "id": f"more {number}", "message": bytes(1000)})
        batch = store.take()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
        try:
            with pytest.raises(StorageError, match="cannot be written") as caught:
                store.write(batch)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert caught.value.retry
        assert len(store.rows("answers")) == 5
        store.write(batch)
        assert len(store.rows("answers")) == 505


def test_other_tables(path):
    spool = Table("spool", {"id": "text", "number": "int"}, ("id", "number"))
    with opened(path, tables=(spool,), version=5) as store:
        store.put("spool", {"id": "a", "number": 1})
        store.put("spool", {"id": "a", "number": 1})
        store.commit()
        assert store.rows("spool") == [{"id": "a", "number": 1}]
