"""The spool of a node: in memory and in a file, crashes, a second thread, files that are none, and a model of it."""

from __future__ import annotations

import sqlite3
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.errors import CorruptFile, StorageError
from umbel.node.spool import Acknowledged, Advanced, Ended, Settled, Spool, StoredAnswer


@pytest.fixture(params=["memory", "file"])
def spool(request, tmp_path):
    found = Spool(tmp_path / "spool.db" if request.param == "file" else None)
    yield found
    found.close()


def answer(ask, client, *, run="r", message=None, digest=b"d", state=None):
    message = message or f"{run} {ask}.{client}".encode()
    return StoredAnswer(run, ask, client, f"{ask}.{client}", message, digest, state)


def test_what_is_written_is_found(spool):
    spool.put(answer(2, "a", state=b"s"))
    spool.put(answer(1, "b", digest=None))
    spool.commit()
    assert spool.answers() == [b"r 1.b", b"r 2.a"]
    assert spool.digest("r", "2.a") == b"d"
    assert spool.digest("r", "1.b") is None
    assert spool.state("r", "2.a") == b"s"
    assert spool.state("r", "1.b") is None
    assert spool.state("other", "2.a") is None
    assert spool.runs() == {"r"}


def test_what_is_queued_counts_for_questions_asked_again_but_is_no_answer_yet(spool):
    spool.put(answer(2, "a", state=b"s"))
    spool.put(Ended("old"))
    batch = spool.take()
    for _ in range(2):
        assert spool.digest("r", "2.a") == b"d"
        assert spool.state("r", "2.a") == b"s"
        assert spool.ended("old")
        assert not spool.ended("r")
        assert spool.answers() == []
        spool.put(answer(3, "a"))
        assert len(spool.take()) == 1
    spool.write(batch)
    assert spool.answers() == [b"r 2.a"]
    assert spool.digest("r", "3.a") == b"d"


def test_a_digest_stays_when_the_answer_was_received_and_is_never_another(spool):
    spool.put(answer(1, "a"))
    spool.put(Acknowledged("r", "1.a"))
    spool.put(Acknowledged("r", "7.unknown"))
    spool.commit()
    assert spool.answers() == []
    spool.put(answer(1, "a", digest=b"other"))
    spool.commit()
    assert spool.digest("r", "1.a") == b"d"


def test_the_answer_of_a_later_attempt_takes_the_place_of_a_failure(spool):
    spool.put(answer(1, "a", digest=None, message=b"failed"))
    spool.commit()
    spool.put(answer(1, "a", message=b"done", state=b"s"))
    spool.commit()
    assert spool.answers() == [b"done"]
    assert spool.state("r", "1.a") == b"s"


def test_states_go_once_a_newer_ask_begins_elsewhere(spool):
    for ask in (1, 2, 3):
        spool.put(answer(ask, "a", state=b"%d" % ask))
        spool.put(answer(ask, "b", state=b"%d" % ask))
    spool.put(Settled("r", 1, newest=3))
    spool.put(Settled("r", 2, newest=4))
    spool.put(Settled("r", 3, newest=None))
    spool.commit()
    assert spool.answers() == []
    spool.put(Advanced("r", "a", 4, ("9.a",)))  # ask 4 was there when ask 2 closed: its tasks may not know of that
    spool.commit()
    assert [spool.state("r", f"{ask}.a") for ask in (1, 2, 3)] == [None, b"2", b"3"]
    spool.put(Advanced("r", "a", 5, ("2.a",)))
    spool.commit()
    assert [spool.state("r", f"{ask}.a") for ask in (1, 2, 3)] == [None, b"2", b"3"]
    spool.put(Advanced("r", "a", 6, ()))
    spool.put(Advanced("other", "b", 6, ()))
    spool.commit()
    assert [spool.state("r", f"{ask}.a") for ask in (1, 2, 3)] == [None, None, b"3"]
    assert [spool.state("r", f"{ask}.b") for ask in (1, 2, 3)] == [b"1", b"2", b"3"]


def test_a_run_that_ended_leaves_its_name_alone(spool):
    spool.put(answer(1, "a", state=b"s"))
    spool.put(answer(1, "a", run="other", state=b"s"))
    spool.put(Ended("r"))
    spool.put(Ended("r"))
    spool.commit()
    assert spool.ended("r")
    assert spool.runs() == {"other"}
    assert spool.answers() == [b"other 1.a"]
    assert (spool.digest("r", "1.a"), spool.state("r", "1.a")) == (None, None)
    assert spool.digest("other", "1.a") == b"d"


def test_nothing_to_write(spool):
    assert list(spool.take()) == []
    spool.commit()
    assert spool.runs() == set()


def test_a_crash_forgets_what_was_not_written():
    spool = Spool()
    spool.put(answer(1, "a", state=b"s"))
    spool.commit()
    spool.put(answer(2, "a", state=b"s"))
    spool.take()
    spool.put(Ended("r"))
    spool.crash()
    assert spool.answers() == [b"r 1.a"]
    assert (spool.digest("r", "2.a"), spool.state("r", "2.a"), spool.ended("r")) == (None, None, False)
    spool.commit()
    assert spool.answers() == [b"r 1.a"]


def test_a_file_outlives_the_process_with_what_was_written(tmp_path):
    first = Spool(tmp_path / "spool.db")
    first.put(answer(1, "a", state=b"s"))
    first.commit()
    first.put(answer(2, "a"))
    first.close()
    second = Spool(tmp_path / "spool.db")
    assert second.answers() == [b"r 1.a"]
    assert second.state("r", "1.a") == b"s"
    assert second.digest("r", "2.a") is None
    second.close()


def test_it_is_on_disk_when_write_returns(tmp_path):
    spool = Spool(tmp_path / "spool.db")
    assert spool._database._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert spool._database._writer.execute("PRAGMA synchronous").fetchone() == (2,)
    spool.close()


def test_another_thread_writes_while_this_one_queues_and_reads(tmp_path):
    spool = Spool(tmp_path / "spool.db")
    for ask in range(50):
        spool.put(answer(ask, "a"))
        batch = spool.take()
        writer = threading.Thread(target=spool.write, args=(batch,))
        writer.start()
        spool.put(answer(ask, "b"))
        assert spool.digest("r", f"{ask}.a") == b"d"
        assert spool.digest("r", f"{ask}.b") == b"d"
        writer.join()
    spool.commit()
    assert len(spool.answers()) == 100
    assert spool._unwritten == []
    assert spool._answered == {}
    spool.close()


def test_a_batch_is_written_as_a_whole_or_not_at_all_and_can_be_written_again(tmp_path, monkeypatch):
    full = [True]

    class Full(sqlite3.Connection):
        def execute(self, sql, *parameters):
            if full[0] and sql.startswith("INSERT OR REPLACE INTO answers") and parameters[0][1] == "2.a":
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(sql, *parameters)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **settings: connect(*args, factory=Full, **settings))
    spool = Spool(tmp_path / "spool.db")
    spool.put(answer(1, "a"))
    spool.put(answer(2, "a"))
    batch = spool.take()
    with pytest.raises(StorageError, match=r"what this node keeps in .*spool\.db cannot be written: .* full"):
        spool.write(batch)
    assert spool.answers() == []
    assert spool.digest("r", "1.a") == b"d"
    full[0] = False
    spool.write(batch)
    assert spool.answers() == [b"r 1.a", b"r 2.a"]
    spool.close()


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "spool.db").write_bytes(b"something else " * 100)
    with pytest.raises(
        CorruptFile, match=r"what this node keeps in .*spool\.db cannot be read: file is not a database"
    ):
        Spool(tmp_path / "spool.db")


def test_a_place_that_does_not_exist(tmp_path):
    with pytest.raises(StorageError, match=r"nowhere/spool\.db cannot be opened: unable to open database file"):
        Spool(tmp_path / "nowhere" / "spool.db")


RUNS, ASKS, CLIENTS = st.sampled_from("rq"), st.integers(1, 4), st.sampled_from("ab")
TASKS = st.builds("{}.{}".format, ASKS, CLIENTS)
STEPS = st.one_of(
    st.builds(
        lambda run, ask, client, digest, state: answer(ask, client, run=run, digest=digest, state=digest and state),
        RUNS, ASKS, CLIENTS, st.sampled_from([None, b"d", b"e"]), st.sampled_from([None, b"s", b"t"]),
    ),
    st.builds(Acknowledged, RUNS, TASKS),
    st.builds(Settled, RUNS, ASKS, st.none() | ASKS),
    st.builds(Advanced, RUNS, CLIENTS, ASKS, st.lists(TASKS, max_size=2).map(tuple)),
    st.builds(Ended, RUNS),
)  # fmt: skip


class Model:
    """What a spool holds once all is written, as plain dictionaries."""

    def __init__(self):
        self.found, self.digests, self.states, self.over = {}, {}, {}, set()

    def put(self, step):
        match step:
            case StoredAnswer(run, ask, client, task, message, digest, state):
                self.found[run, task] = (ask, message)
                if digest is not None:
                    self.digests.setdefault((run, task), digest)
                if state is not None:
                    self.states[run, task] = {"client": client, "ask": ask, "data": state, "settled": None}
            case Acknowledged(run, task):
                self.found.pop((run, task), None)
            case Settled(run, ask, newest):
                self.found = {key: kept for key, kept in self.found.items() if (key[0], kept[0]) != (run, ask)}
                for (of, _), kept in self.states.items():
                    if newest is not None and (of, kept["ask"]) == (run, ask):
                        kept["settled"] = newest
            case Advanced(run, client, ask, bases):
                self.states = {
                    (of, task): kept
                    for (of, task), kept in self.states.items()
                    if (of, kept["client"]) != (run, client)
                    or task in bases
                    or kept["settled"] is None
                    or kept["settled"] >= ask
                }
            case Ended(run):
                for kept in (self.found, self.digests, self.states):
                    for key in [key for key in kept if key[0] == run]:
                        del kept[key]
                self.over.add(run)

    def answers(self):
        return [message for _, (_, message) in sorted(self.found.items())]

    def runs(self):
        return {run for kept in (self.found, self.digests, self.states) for run, _ in kept}

    def digest(self, run, task):
        return self.digests.get((run, task))

    def state(self, run, task):
        return self.states.get((run, task), {}).get("data")

    def ended(self, run):
        return run in self.over


@given(st.lists(st.one_of(STEPS, st.none()), max_size=30))
def test_it_holds_what_its_model_says(steps):
    """None stands for a commit."""
    spool, model, queued = Spool(), Model(), []
    for step in [*steps, None]:
        if step is not None:
            spool.put(step)
            queued.append(step)
            continue
        spool.commit()
        for each in queued:
            model.put(each)
        queued.clear()
        assert seen(spool) == seen(model)
    spool.close()


def seen(spool):
    tasks = [(run, f"{ask}.{client}") for run in "rq" for ask in range(1, 5) for client in "ab"]
    kept = [(spool.digest(*task), spool.state(*task)) for task in tasks]
    return spool.answers(), spool.runs(), kept, [spool.ended(run) for run in "rq"]
