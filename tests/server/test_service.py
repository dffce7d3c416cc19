"""A server's store, restarts and end."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing

import pytest
from tests.conftest import PATIENCE
from tests.server.serving import ASK, SPEC, asked, done_of, office, play, task_of

from umbel.errors import ConnectionLost, Refused, SettingError, StorageError
from umbel.server import service as services
from umbel.server.service import running
from umbel.server.settings import ServerSettings
from umbel.store import commits
from umbel.store.sql import SqlStore
from umbel.trust.authority import JoinText
from umbel.trust.credentials import own_token
from umbel.trust.identity import SigningKey
from umbel.wire import messages as m


class Gate:
    """Writes of a store wait here, or fail, as the test says."""

    def __init__(self, service):
        self.open = threading.Event()
        self.failing = False
        self.tried = 0
        self._loop = asyncio.get_running_loop()
        self._write = service.store.write
        self._reached = asyncio.Semaphore(0)
        service.store.write = self.write

    def write(self, batch):
        self.tried += 1
        self._loop.call_soon_threadsafe(self._reached.release)
        if self.failing:
            raise StorageError("the disk is full")
        assert self.open.wait(PATIENCE)
        self._write(batch)

    async def reached(self):
        """Wait for the next write."""
        await self._reached.acquire()


def test_nothing_is_acknowledged_before_it_is_on_disk(tmp_path):
    async def act(here):
        node, run = await here.ready("0")
        gate = Gate(here.service)
        run.say(ask_spec=ASK)
        run.say(task=task_of("0"))
        await gate.reached()
        await run.settled()
        assert node.named("task") == []
        gate.open.set()
        await node.hears("task")
        gate.open.clear()
        node.say(result=done_of("0"))
        await run.hears("result")
        await gate.reached()
        await node.settled()
        assert node.named("ack") == []
        assert here.service.store.rows("answers") == []
        gate.open.set()
        await node.hears("ack")
        assert len(here.service.store.rows("answers")) == 1

    play(act, tmp_path)


def test_what_is_stored_together_is_acknowledged_together(tmp_path):
    async def act(here):
        node, run = await here.ready("0", "1", "2")
        run.say(ask_spec=ASK)
        for client in "012":
            run.say(task=task_of(client))
        await node.hears("task", 3)
        gate = Gate(here.service)
        node.say(result=done_of("0"))
        await gate.reached()
        node.say(result=done_of("1"))
        node.say(result=done_of("2"))
        await run.hears("result", 3)
        gate.open.set()
        await node.hears("ack", 2)
        # What comes while a batch is written is not on disk with it, and not said with it.
        assert [list(ack.tasks) for ack in node.named("ack")] == [["0.0"], ["0.1", "0.2"]]

    play(act, tmp_path)


def test_a_store_that_cannot_be_written_is_a_problem_that_may_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(commits, "RETRY_SECONDS", 0.0)

    async def act(here):
        node, run = await here.ready("0")
        run.say(ask_spec=ASK)
        run.say(task=task_of("0"))
        await node.hears("task")
        gate = Gate(here.service)
        gate.failing = True
        node.say(result=done_of("0"))
        for _ in range(3):
            await gate.reached()
        assert here.service.status()["problem"] == "the store cannot be written: the disk is full"
        assert here.service.facts().problem
        await run.hears("result")
        assert node.named("ack") == []
        gate.failing = False
        gate.open.set()
        await node.hears("ack")
        await here.service.commit()
        assert here.service.status()["problem"] == ""
        assert len(here.service.store.rows("answers")) == 1

    play(act, tmp_path)


@pytest.mark.parametrize("mended", [True, False])
def test_a_server_that_ends_tries_once_more_to_write(tmp_path, mended):
    async def main():
        async with office(tmp_path) as here:
            ann = await here.operator()
            gate = Gate(here.service)
            gate.failing = True
            ann.say(request=m.Request(id=1, method="nodes.invite"))
            await gate.reached()
            assert ann.named("response") == []
            gate.failing = not mended
            gate.open.set()
        async with office(tmp_path) as here:
            found = [row["did"] for row in here.service.store.rows("audit") if row["who"] == "ann"]
            assert found == (["nodes.invite"] if mended else [])

    asyncio.run(main())


def test_a_server_that_ends_says_so(tmp_path):
    async def main():
        async with office(tmp_path) as here:
            node, ann = await here.node(SigningKey.new(), "0"), await here.operator()
            node.say(result=done_of("0"))
            await here.service.close()
            for party in (node, ann):
                end = await party.over()
                assert isinstance(end, Refused)
                assert (end.code, end.retry) == (m.CODE_SHUTTING_DOWN, True)
            with pytest.raises(ConnectionLost):
                await here.node(SigningKey.new(), "1")

    asyncio.run(main())


def test_an_address_in_use_is_an_error_that_leaves_nothing_open(tmp_path):
    async def act(here):
        settings = ServerSettings(folder=tmp_path / "second", listen=here.service.address, http="")
        with pytest.raises(SettingError, match="cannot listen"):
            async with running(settings):
                pass

    play(act, tmp_path)


def test_a_server_that_starts_again_goes_on(tmp_path):
    key = SigningKey.new()

    async def before(here):
        node, run = await here.node(key, "0", "1"), await here.run()
        run.say(run_spec=SPEC)
        await node.hears("run_spec")
        node.say(run_answer=m.RunAnswer(run="r", ready=True))
        run.say(ask_spec=ASK)
        run.say(task=task_of("0"))
        run.say(task=task_of("1"))
        await node.hears("task", 2)
        node.say(result=done_of("0", update=m.Payload(blob=node.blobs.put(b"u" * 50_000))))
        await node.hears("ack")

    async def after(here):
        assert own_token(tmp_path / "server") == token
        node, run = await here.node(key, "0", "1", join=False), await here.run()
        told = await node.hears("run_spec")
        assert (told.run, told.name, told.owner) == (SPEC.run, SPEC.name, "r")
        node.say(run_answer=m.RunAnswer(run="r", ready=True))
        assert await node.hears("task") == task_of("1")
        run.say(run_spec=SPEC)
        run.say(ask_spec=ASK)
        run.say(task=task_of("0"))
        update = (await run.hears("result")).done.update
        assert (await run.exchange.fetch(update.blob, "r")).read_bytes() == b"u" * 50_000

    play(before, tmp_path)
    token = own_token(tmp_path / "server")
    play(after, tmp_path)


def test_operators_are_answered(tmp_path):
    async def act(here):
        ann, bob = await here.operator(), await here.operator("bob", "read")
        await here.node(SigningKey.new(), "0")
        status = await asked(bob, "server.status")
        assert status["you"] == {"name": "bob", "role": "read"}
        assert status["sessions"] == {"operator": 2, "node": 1}
        assert (await asked(bob, "nodes.invite", 2))[0] == m.CODE_NOT_ALLOWED
        line = (await asked(ann, "nodes.invite"))["line"].split()[-1]
        join = JoinText.parse(line)
        assert join.authority == here.service.authority.public
        assert (await asked(ann, "nodes.list", 2))["nodes"][0]["connected"]
        assert (await asked(bob, "no.such", 3))[0] == m.CODE_UNKNOWN

    play(act, tmp_path)


def test_an_invitation_is_printed_at_the_first_start_alone_unless_somebody_is_there(tmp_path):
    async def started(**how):
        stopping, opened = asyncio.Event(), []

        def announce(found):
            opened.append(found)
            stopping.set()

        settings = ServerSettings(tmp_path / "server", listen="127.0.0.1:0", http="")
        await services.serve_until(settings, stopping, announce, **how)
        with closing(SqlStore(tmp_path / "server" / "server.db")) as store:
            joins = [row for row in store.rows("tokens") if row["kind"] == "join"]
        return opened[0].line, len(joins)

    first, count = asyncio.run(started())
    assert " --join umbel1." in first
    assert count == 1
    assert asyncio.run(started()) == (None, 1)
    line, count = asyncio.run(started(invites=True))
    assert " --join umbel1." in line
    assert count == 2
