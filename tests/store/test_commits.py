"""Group commit: what is held is said once its batch is on disk, and what cannot be written is tried again."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest
from tests.conftest import PATIENCE

from umbel.errors import StorageError
from umbel.store import commits as module
from umbel.store.commits import GroupCommit

FULL = StorageError("the disk is full")


class Steps:
    """What is put is what is written, once the test lets it be."""

    def __init__(self, faults=()):
        self.steps, self.written, self.faults = [], [], list(faults)
        self.writing, self.may = threading.Event(), threading.Event()

    def take(self):
        batch, self.steps = self.steps, []
        return batch

    def write(self, batch):
        self.writing.set()
        assert self.may.wait(PATIENCE)
        if self.faults:
            raise self.faults.pop(0)
        self.written.append(batch)


def play(during=lambda store, commits: None, *, faults=(), closes=False, lazy=PATIENCE):
    """Put a step and hold a word; have this done while the step is written; the store, what was said in the end and how
    many batches were on disk by then, and the times of batches.
    """
    said, times = [], []

    async def run():
        store = Steps(faults)
        commits = GroupCommit(
            store,
            lambda word: said.append((word, len(store.written))),
            lazy=lazy,
            quick=0.0,
            log=logging.getLogger("umbel.test"),
            timed=times.append,
        )
        commits.begin()
        store.steps.append("step")
        commits.hold("held")
        commits.soon()
        await asyncio.wait_for(asyncio.to_thread(store.writing.wait), PATIENCE)
        assert said == []
        during(store, commits)
        closing = asyncio.ensure_future(commits.close()) if closes else None
        await asyncio.sleep(0)
        store.may.set()
        if closing is None:
            await asyncio.wait_for(commits.done(), PATIENCE)
            closing = asyncio.ensure_future(commits.close())
        await asyncio.wait_for(closing, PATIENCE)
        assert commits.problem == ""
        return store

    return asyncio.run(run()), said, times


def test_what_is_held_is_said_once_its_batch_is_on_disk():
    store, said, times = play()
    assert store.written == [["step"]]
    assert said == [("held", 1)]
    assert len(times) == 1


def test_what_comes_while_a_batch_is_written_goes_with_the_next():
    def more(store, commits):
        for word in ("one", "two"):
            store.steps.append(word)
            commits.hold(word)
            commits.later()  # somebody else does not wait so long

    store, said, _ = play(more)
    assert store.written == [["step"], ["one", "two"]]
    assert said == [("held", 1), ("one", 2), ("two", 2)]


def test_what_nobody_waits_for_is_written_after_a_while():
    async def run():
        store = Steps()
        store.may.set()
        commits = GroupCommit(store, print, lazy=0.0, log=logging.getLogger("umbel.test"))
        commits.begin()
        store.steps.append("step")
        commits.later()
        await asyncio.wait_for(asyncio.to_thread(store.writing.wait), PATIENCE)
        await commits.close()
        return store.written

    assert asyncio.run(run()) == [["step"]]


def test_what_may_wait_less_goes_with_what_may_wait_longer():
    async def run():
        store = Steps()
        store.may.set()
        commits = GroupCommit(store, print, lazy=PATIENCE, log=logging.getLogger("umbel.test"))
        commits.begin()
        store.steps.append("later")
        commits.later()
        store.steps.append("sooner")
        commits.later(0.0)
        commits.later()
        await asyncio.wait_for(asyncio.to_thread(store.writing.wait), PATIENCE)
        await commits.close()
        return store.written

    assert asyncio.run(run()) == [["later", "sooner"]]


def test_who_has_to_know_of_a_problem_is_told_that_it_is_there_and_that_it_is_over(monkeypatch):
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    problems = []

    def hear(store, commits):
        commits._troubled = lambda: problems.append(commits.problem)

    play(hear, faults=[FULL, FULL])
    assert problems == ["the store cannot be written: the disk is full", ""]


def test_what_cannot_be_written_is_tried_again_and_nothing_is_said_before(monkeypatch, caplog):
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    store, said, times = play(faults=[FULL, FULL])
    assert store.written == [["step"]]
    assert said == [("held", 1)]
    assert len(times) == 1
    assert [record.message for record in caplog.records] == [
        "the store cannot be written: the disk is full; trying again"
    ] * 2


def test_whatever_a_store_raises_it_is_written_to_again(monkeypatch, caplog):
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    store, said, _ = play(faults=[MemoryError("no memory")])
    assert (store.written, said) == ([["step"]], [("held", 1)])
    assert [record.message for record in caplog.records] == [
        "the store cannot be written: MemoryError: no memory; trying again"
    ]


def test_one_who_cannot_be_told_keeps_nobody_else_from_being_told():
    told, said = [], []

    def post(word):
        said.append(word)
        if word == "bad":
            raise ValueError("no such peer")

    async def run():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["exception"]))
        store = Steps()
        store.may.set()
        commits = GroupCommit(store, post, lazy=PATIENCE, log=logging.getLogger("umbel.test"))
        commits.begin()
        for word in ("bad", "good"):
            commits.hold(word)
        await asyncio.wait_for(commits.done(), PATIENCE)
        await commits.close()

    asyncio.run(run())
    assert said == ["bad", "good"]
    assert [str(error) for error in told] == ["no such peer"]


def test_what_was_put_is_written_at_the_end_also_where_nobody_had_begun():
    async def run():
        store = Steps()
        store.may.set()
        commits = GroupCommit(store, print, lazy=PATIENCE, log=logging.getLogger("umbel.test"))
        store.steps.append("step")
        await commits.close()
        return store.written

    assert asyncio.run(run()) == [["step"]]


def test_at_the_end_it_is_written_once_more_or_told():
    store, said, _ = play(closes=True)
    assert (store.written, said) == ([["step"]], [("held", 1)])
    with pytest.raises(StorageError, match="the disk is full"):
        play(faults=[FULL], closes=True)
