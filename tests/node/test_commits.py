"""What a node says once it is on disk: held until its batch is written, and dropped with its session."""

from __future__ import annotations

import asyncio
import threading

import pytest
from tests.conftest import PATIENCE

from umbel.errors import StorageError
from umbel.node.commits import SpoolCommits
from umbel.wire import messages as m


class Spool:
    """A spool whose writes wait for the test; what is put is what is written."""

    def __init__(self, fault=None):
        self.steps, self.written, self.fault, self.closed = [], [], fault, False
        self.writing, self.may = threading.Event(), threading.Event()

    def take(self):
        batch, self.steps = self.steps, []
        return batch

    def write(self, batch):
        self.writing.set()
        assert self.may.wait(PATIENCE)
        if self.fault:
            raise self.fault
        self.written += batch

    def close(self):
        self.closed = True


class Connection:
    """A connection that notes what is said, and what was on disk by then."""

    def __init__(self, spool):
        self.spool, self.said = spool, []

    def post(self, message):
        self.said.append((message.notice.text, list(self.spool.written)))


def message(text):
    return m.Message(notice=m.Notice(text=text))


def play(during, *, fault=None):
    """Put a step and hold a message; have this done while the step is written; what was said in the end."""

    async def run():
        spool = Spool(fault)
        first = Connection(spool)
        at = [first]
        commits = SpoolCommits(spool, lambda: at[0])
        spool.steps.append("step")
        commits.hold(message("held"))
        commits.changed()
        await asyncio.wait_for(asyncio.to_thread(spool.writing.wait), PATIENCE)
        assert first.said == []
        during(spool, commits, at)
        spool.may.set()
        try:
            await asyncio.wait_for(commits.close(), PATIENCE)
        finally:
            assert spool.closed
        return spool, first, at[0]

    return asyncio.run(run())


def test_what_is_held_is_said_once_its_batch_is_on_disk():
    _, connection, _ = play(lambda spool, commits, at: None)
    assert connection.said == [("held", ["step"])]


def test_what_comes_while_a_batch_is_written_goes_with_the_next():
    def more(spool, commits, at):
        spool.steps.append("another")
        commits.hold(message("later"))
        commits.changed()

    _, connection, _ = play(more)
    assert connection.said == [("held", ["step"]), ("later", ["step", "another"])]


def test_nothing_is_said_in_another_session():
    def lose(spool, commits, at):
        commits.hold(message("lost"))
        commits.drop()
        at[0] = Connection(spool)

    spool, first, second = play(lose)
    assert spool.written == ["step"]
    assert first.said == second.said == []


def test_what_cannot_be_written_at_the_end_is_told():
    def close(spool, commits, at):
        commits._closing.set()  # else it would be tried again after a pause

    with pytest.raises(StorageError, match="the disk is full"):
        play(close, fault=StorageError("the disk is full"))
