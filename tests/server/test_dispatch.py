"""What crosses a server: messages, blobs, and what a run says of itself."""

from __future__ import annotations

import asyncio
import hashlib
import json

import pytest
from tests.server.serving import ASK, SPEC, done_of, play, task_of

from umbel.errors import ConnectionLost, Refused, StorageError
from umbel.server import dispatch
from umbel.server.signals import Drop, Fetch, Say
from umbel.trust.identity import SigningKey, node_id
from umbel.wire import messages as m


def test_a_task_goes_to_its_node_and_its_result_to_the_run(tmp_path):
    async def act(here):
        node, run = await here.ready("0")
        run.say(ask_spec=ASK)
        run.say(task=task_of("0"))
        assert await node.hears("task") == task_of("0")
        assert node.named("ask_spec") == [ASK]
        node.say(alive=m.Alive(run="r", tasks=["0.0"]))
        await run.hears("alive")
        node.say(result=done_of("0"))
        assert await run.hears("result") == done_of("0")
        assert (await node.hears("ack")).tasks == ["0.0"]
        assert [row["id"] for row in here.service.store.rows("answers")] == ["0.0"]
        run.say(close_ask=m.CloseAsk(run="r", ask=0))
        await node.hears("close_ask")

    play(act, tmp_path)


def test_blobs_cross_both_ways(tmp_path):
    async def act(here):
        node, run = await here.ready("0")
        model, update = run.blobs.put(b"m" * 100_000, "test"), node.blobs.put(b"u" * 100_000, "test")
        run.say(ask_spec=m.AskSpec(run="r", kind="train", digest=b"d", transforms="[]", model=m.Payload(blob=model)))
        run.say(task=task_of("0"))
        task = await node.hears("ask_spec")
        assert (await node.exchange.fetch(task.model.blob, "r")).read_bytes() == b"m" * 100_000
        node.say(result=done_of("0", update=m.Payload(blob=update)))
        found = (await run.hears("result")).done.update.blob
        assert (await run.exchange.fetch(found, "r")).read_bytes() == b"u" * 100_000
        await node.hears("ack")
        other = await here.node(SigningKey.new(), "5")
        with pytest.raises(Refused, match="not to be had"):
            await other.exchange.fetch(model, "r")
        run.say(close_ask=m.CloseAsk(run="r", ask=0))
        await node.hears("close_ask")
        assert here.service.blobs.used == 0

    play(act, tmp_path)


def test_a_full_server_lets_finished_work_wait(tmp_path):
    async def act(here):
        node, run = await here.ready("0")
        model, update = run.blobs.put(b"m" * 100_000, "test"), node.blobs.put(b"u" * 100_000, "test")
        run.say(ask_spec=m.AskSpec(run="r", kind="train", digest=b"d", transforms="[]", model=m.Payload(blob=model)))
        run.say(task=task_of("0"))
        await node.exchange.fetch((await node.hears("ask_spec")).model.blob, "r")
        run.say(ask_spec=m.AskSpec(run="r", ask=1, kind="train", digest=b"e", transforms="[]"))
        run.say(task=task_of("0", 1))
        await node.hears("task", 2)
        node.say(result=done_of("0", 1, m.Payload(blob=update)))
        await node.settled()
        assert run.named("result") == []
        for party in (node, run):
            assert "no room for 100,000 bytes from node lab" in (await party.hears("notice")).text
        facts = here.service.facts()
        assert "100,000 of the quota of 150,000 are used" in facts.problem
        assert here.service.status()["storage"]["waiting"] == 1
        run.say(close_ask=m.CloseAsk(run="r", ask=0))
        assert (await run.hears("result")).ask == 1
        await node.hears("ack")
        assert (here.service.facts().problem, here.service.storage.waiting) == ("", 0)

    play(act, tmp_path, quota=150_000)


def test_a_node_that_takes_all_that_it_may_keeps_no_other_waiting(tmp_path):
    async def act(here):
        run = await here.run()
        run.say(run_spec=SPEC)
        nodes = [await here.node(SigningKey.new(), name) for name in ("0", "1", "2")]
        for node in nodes:
            await node.hears("run_spec")
            node.say(run_answer=m.RunAnswer(run="r", ready=True))
        ready = m.STANDING_READY
        for client in ("0", "1", "2"):
            await run.hears("members", where=lambda body, c=client: (c, ready) in told(body))
        for ask in (0, 1):
            run.say(ask_spec=m.AskSpec(run="r", ask=ask, kind="train", digest=b"d", transforms="[]"))
            for client in ("0", "1"):
                run.say(task=task_of(client, ask))
        greedy, modest = nodes[:2]
        for node in (greedy, modest):
            await node.hears("task", 2)
        for ask in (0, 1):
            greedy.say(result=done_of("0", ask, m.Payload(blob=greedy.blobs.put(bytes([ask]) * 60_000, "test"))))
        assert "a node may have 100,000" in (await greedy.hears("notice")).text
        modest.say(result=done_of("1", 0, m.Payload(blob=modest.blobs.put(b"m" * 60_000, "test"))))
        await modest.hears("ack")
        run.say(close_ask=m.CloseAsk(run="r", ask=0))
        await run.hears("result", where=lambda result: (result.client, result.ask) == ("0", 1))

    def told(body):
        return [(member.client, member.standing) for member in body.members]

    play(act, tmp_path, quota=200_000)


def test_how_much_is_here_of_a_node_is_known_after_a_restart(tmp_path):
    key, held = SigningKey.new(), []

    async def act(here):
        node, run = await here.node(key, "0"), await here.run()
        run.say(run_spec=SPEC)
        await node.hears("run_spec")
        node.say(run_answer=m.RunAnswer(run="r", ready=True))
        run.say(ask_spec=m.AskSpec(run="r", kind="train", digest=b"d", transforms="[]"))
        await run.hears("members", where=lambda body: body.members[0].standing == m.STANDING_READY)
        run.say(task=task_of("0"))
        await node.hears("task")
        node.say(result=done_of("0", update=m.Payload(blob=node.blobs.put(b"u" * 70_000, "test"))))
        await node.hears("ack")
        held.append(here.service.storage.place(node_id(key.public), "lab", True).used)

    async def again(here):
        held.append(here.service.storage.place(node_id(key.public), "lab", True).used)

    play(act, tmp_path)
    play(again, tmp_path)
    assert held == [70_000, 70_000]


def test_an_update_for_which_the_disk_has_no_room_is_fetched_once_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(dispatch, "RETRY_SECONDS", 0.01)

    async def act(here):
        node, run = await here.ready("0")
        update = node.blobs.put(b"u" * 100_000, "test")
        run.say(ask_spec=m.AskSpec(run="r", kind="train", digest=b"d", transforms="[]"))
        run.say(task=task_of("0"))
        await node.hears("task")
        part, tries = here.service.blobs.part, []

        def full(blob, **how):
            tries.append(blob)
            if len(tries) < 3:
                raise StorageError("no space left on device")
            return part(blob, **how)

        here.service.blobs.part = full
        node.say(result=done_of("0", update=m.Payload(blob=update)))
        await node.hears("ack")
        assert len(tries) == 3

    play(act, tmp_path)


def test_what_a_run_says_of_itself_reaches_those_who_follow_it(tmp_path):
    async def act(here):
        run, ann = await here.run(), await here.operator()
        run.say(run_spec=SPEC)
        run.say(log_event=m.LogEvent(run="r", number=1, event='{"event": "a"}'))
        assert (await run.hears("log_ack", where=lambda ack: ack.number)).number == 1
        ann.say(request=m.Request(id=7, method="runs.logs", body='{"run": "r", "follow": true}'))
        await ann.hears("response")
        run.say(log_event=m.LogEvent(run="r", event='{"event": "now"}'))
        await ann.hears("response", 2)
        run.say(close_run=m.CloseRun(run="r", status="finished"))
        last = await ann.hears("response", where=lambda found: not found.more)
        told = [json.loads(each.body) for each in ann.named("response")]
        events = [event for each in told for event in each.get("events", [])]
        assert events == [[1, {"event": "a"}], [0, {"event": "now"}]]
        assert json.loads(last.body)["status"] == "finished"

    play(act, tmp_path)


class Insider:
    """A peer in the server's own process, which notes what it is told."""

    def __init__(self):
        self.heard = []

    def say(self, peer, message):
        self.heard.append((peer, message.notice.text))

    def dropped(self, peer, text):
        self.heard.append((peer, f"dropped: {text}"))


class Bringer(Insider):
    """One who brings a blob as the test says: each of `turns` is called with the blob, and may raise."""

    def __init__(self, *turns):
        super().__init__()
        self.turns = list(turns)

    async def fetch(self, blob, run):
        await asyncio.sleep(0)
        try:
            self.turns.pop(0)(blob)
        finally:
            await asyncio.sleep(0)  # in which others do what they were told meanwhile


def test_an_insider_that_is_dropped_is_told(tmp_path):
    async def act(here):
        insider = here.service.insiders["above"] = Insider()
        here.service.carry([Drop("above", m.CODE_TOO_LARGE, "too large")])
        assert insider.heard == [("above", "dropped: too large")]

    play(act, tmp_path)


def test_what_is_named_again_while_it_is_let_go_of_is_fetched_again(tmp_path):
    async def act(here):
        service, blob = here.service, m.Blob(sha256=hashlib.sha256(b"model").digest(), size=5)

        def gone(wanted):
            service.carry([Fetch("above", "r", blob)])  # the next ask names it before this one's fetch has ended

        def brought(wanted):
            service.blobs.hold(blob.sha256, "r/2")
            service.blobs.put(b"model")

        bringer = service.insiders["above"] = Bringer(gone, brought)
        service.carry([Fetch("above", "r", blob), Fetch("above", "r", blob)])
        while bringer.turns:
            await asyncio.sleep(0)
        await here.service.commit()
        assert service.blobs.path(blob.sha256) is not None

    play(act, tmp_path)


def test_what_comes_when_nobody_wants_it_any_more_is_let_go_of(tmp_path):
    async def act(here):
        service, blob = here.service, m.Blob(sha256=hashlib.sha256(b"model").digest(), size=5)
        bringer = service.insiders["above"] = Bringer(lambda wanted: service.blobs.put(b"model"))
        service.carry([Fetch("above", "r", blob)])
        while bringer.turns:
            await asyncio.sleep(0)
        await service.commit()
        assert service.blobs.used == 0

    play(act, tmp_path)


def test_a_disk_that_was_full_is_no_problem_once_nobody_waits_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(dispatch, "RETRY_SECONDS", 0.01)

    async def act(here):
        service, seen = here.service, []

        def full(wanted):
            raise StorageError("no space left")

        def parted(wanted):
            seen.append(service.dispatch.problem)
            raise ConnectionLost("gone")

        service.insiders["above"] = Bringer(full, parted)
        service.carry([Fetch("above", "r", m.Blob(sha256=bytes(32), size=5))])
        while not seen or service.dispatch.problem:
            await asyncio.sleep(0)
        assert "no space left" in seen[0]

    play(act, tmp_path)


def test_an_insider_is_spoken_to_as_a_peer(tmp_path):
    async def act(here):
        insider = here.service.insiders["above"] = Insider()
        here.service.carry([Say("above", m.Message(notice=m.Notice(text="kept")), durable=True)])
        assert insider.heard == []
        here.service.carry([Say("above", m.Message(notice=m.Notice(text="now")), durable=False)])
        here.service.carry([Say("nobody", m.Message(), durable=False), Drop("nobody", m.CODE_REVOKED, "gone by then")])
        assert insider.heard == [("above", "now")]
        await here.service.commit()
        assert insider.heard == [("above", "now"), ("above", "kept")]

    play(act, tmp_path)
