"""What earlier releases have written is opened and gone on with. `formats/` holds what each format was when it was the
newest: a run's folder and blobs as they were, databases as SQL.
"""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

import umbel
from umbel.errors import StorageError
from umbel.node.spool import Spool
from umbel.runs.events import AskClosed
from umbel.runs.journal import FORMAT, LOG, LogChain, read_log
from umbel.server.ledger import Ledger
from umbel.server.signals import Outbox
from umbel.store.blobs import Blobs
from umbel.store.records import VERSION
from umbel.store.sql import SqlStore
from umbel.store.sqlite import Database
from umbel.work.state import ClientStates

FORMATS = Path(__file__).with_name("formats")
client = umbel.Client()


@client.data
def data(source):
    return source["index"] + 1.0


@client.train
def train(model, data, ctx):
    kept = ctx.state.get("kept", 0.0) + data
    ctx.state["kept"] = kept
    return umbel.Update({"w": model["w"] + np.float32(kept)}, weight=data, metrics={"kept": kept})


def app():
    """The app whose run `run-3` is; two of its rounds were done then."""
    model = {"w": np.zeros(2, np.float32)}
    return umbel.App(client, model=lambda: model, strategy=umbel.FedAvg(cohort=3), rounds=2, evaluate_every=0)


def database(source, path):
    """A database as SQL describes it."""
    connection = sqlite3.connect(path)
    connection.executescript(source.read_text())
    connection.close()
    return path


def kept(number, tmp_path):
    place = shutil.copytree(FORMATS / f"run-{number}", tmp_path / f"run-{number}")
    database(place / "client-states.sql", place / "client-states.db")
    (place / "answers").mkdir(exist_ok=True)
    return place


@pytest.fixture
def run_3(tmp_path):
    return kept(3, tmp_path)


def test_a_run_of_format_4_that_died_in_its_second_round_goes_on_with_the_answer_that_it_has(tmp_path):
    """Its digests are other hashes than today's, and cannot be compared."""
    place = kept(4, tmp_path)
    assert [len(found) for found in (read_log(place).rounds, read_log(place).pending)] == [1, 1]
    went_on = umbel.resume(app(), place, on=umbel.Simulation(clients=3))
    whole = umbel.run(app(), on=umbel.Simulation(clients=3), seed=1)
    assert went_on.model["w"].tobytes() == whole.model["w"].tobytes()
    assert [event.ask for event in read_log(place).events if isinstance(event, AskClosed)] == [
        0,
        1,
    ]  # none was asked again


def test_a_run_of_format_3_goes_on(run_3):
    assert (read_log(run_3).started.format, FORMAT) == (3, 5)
    went_on = umbel.resume(app(), run_3, on=umbel.Simulation(clients=3), rounds=4)
    whole = umbel.run(app(), on=umbel.Simulation(clients=3), seed=1, rounds=4)
    assert went_on.model["w"].tobytes() == whole.model["w"].tobytes()
    assert went_on.metrics == whole.metrics  # the states that clients kept, too
    # What was written since hangs together with what was there.
    lines = (run_3 / LOG).read_bytes().splitlines(keepends=True)
    chain = LogChain()
    assert [chain.unseal(line)["event"] for line in lines][-1] == "run_finished"
    old = sum(b'"crc":' in line for line in lines)
    assert 0 < old < len(lines)
    without = b"".join(lines[1:])
    (run_3 / LOG).write_bytes(lines[0].replace(b'"seed":1', b'"seed":2') + without)
    with pytest.raises(umbel.errors.CorruptFile, match="line 1 of"):
        read_log(run_3)
    assert (
        umbel.load_model(run_3 / "checkpoints" / "round-0004.safetensors")["w"].tobytes() == whole.model["w"].tobytes()
    )


def test_what_a_node_has_kept_is_there(tmp_path):
    path = database(FORMATS / "node-1.sql", tmp_path / "node.db")
    for _ in range(2):
        spool = Spool(path)
        assert spool.answers() == [b"answer", b"failed"]
        assert (spool.digest("r", "1.0"), spool.state("r", "1.0"), spool.ended("old")) == (b"digest", b"state", True)
        spool.close()


def test_what_a_server_has_kept_is_there(tmp_path):
    store = SqlStore(database(FORMATS / "server-2.sql", tmp_path / "server.db"))
    (node,) = store.rows("nodes")
    assert (node["name"], node["clients"], node["relay"], node["epoch"]) == ("ward", ["1"], 0, None)
    assert store.rows("runs")[0]["owner"] == "ann"
    assert store.rows("events", run="r")[0]["body"] == "{}"
    store.close()
    store = SqlStore(database(FORMATS / "server-5.sql", tmp_path / "later.db"))
    (ask,) = Ledger(store, Outbox()).runs["r"].asks.values()  # an answer is found by what it says
    assert ({id: task.answer for id, task in ask.tasks.items()}, ask.unanswered) == (
        {"0.1": "0.1", "0.2": None},
        {"0.2"},
    )
    assert (ask.answers["0.1"].tasks, ask.answers["0.1"].node) == (("0.1",), "a")
    store.close()
    assert VERSION == 6  # a new one needs a file of its own here


def test_blobs_are_there(tmp_path):
    blobs = Blobs(shutil.copytree(FORMATS / "blobs-1", tmp_path / "blobs"))
    (found,) = (tmp_path / "blobs").glob("2c/*")
    assert blobs.path(bytes.fromhex(found.name)).read_bytes() == b"hello"


@pytest.mark.parametrize("made", [Spool, ClientStates])
def test_what_a_later_release_wrote_is_refused(tmp_path, made):
    made(tmp_path / "x.db").close()
    connection = sqlite3.connect(tmp_path / "x.db")
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(StorageError, match=r"by version 2 of the tables, not 1\n.*release of Umbel"):
        made(tmp_path / "x.db")


HOW = {"what": "it", "mend": "", "large": "", "lost": ""}


def test_a_database_is_brought_up_to_date_as_a_whole(tmp_path):
    Database(tmp_path / "x.db", "CREATE TABLE IF NOT EXISTS t (a)", **HOW).close()
    later = "CREATE TABLE IF NOT EXISTS t (a, b); CREATE TABLE IF NOT EXISTS u (c);"
    add = "ALTER TABLE t ADD COLUMN b"
    for broken in ({1: (add,)}, {1: (add,), 2: ("ALTER TABLE nothing ADD COLUMN b",)}):
        with pytest.raises(StorageError):
            Database(tmp_path / "x.db", later, version=3, migrations=broken, **HOW)
    for _ in range(2):
        found = Database(tmp_path / "x.db", later, version=3, migrations={1: (add,), 2: ()}, **HOW)
        assert found.rows("SELECT a, b FROM t") == found.rows("SELECT c FROM u") == []
        assert found.rows("PRAGMA user_version") == [(3,)]
        found.close()
