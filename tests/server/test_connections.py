"""Who comes to a server, is heard, and goes."""

from __future__ import annotations

import asyncio
import gc
import hmac
import json
import sqlite3
import weakref
from contextlib import closing

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.conftest import PATIENCE
from tests.server.serving import ASK, Office, asked, done_of, office, play, task_of

from umbel.errors import ConnectionLost, Refused
from umbel.server import connections
from umbel.server import service as services
from umbel.server.settings import ServerSettings
from umbel.server.signals import Lost
from umbel.transport import grpc
from umbel.transport.budget import ADMISSION, Turns
from umbel.transport.connection import Connection
from umbel.trust import audit
from umbel.trust.authority import root_certificate
from umbel.trust.identity import SigningKey, node_id, sign_node
from umbel.trust.proofs import NodeProof, TokenProof
from umbel.wire import messages as m
from umbel.wire.limits import (
    ADMISSIONS,
    ANSWER_WAITING_BYTES,
    OPERATOR_REQUESTS,
    PUT_OUT_SECONDS,
    RUN_MILLISECONDS,
    TURN_WAITING_BYTES,
)


def test_a_peer_that_says_what_it_may_not_is_told_and_nobody_else_notices(tmp_path):
    async def act(here):
        node, run = await here.ready("0")
        other = await here.node(SigningKey.new(), "1")
        other.say(result=m.Result(run="r", ask=2**63))
        end = await other.over()
        assert isinstance(end, Refused)
        assert end.code == m.CODE_MALFORMED
        run.say(task=task_of("0", 9))
        assert (await run.over()).code == m.CODE_UNKNOWN
        node.say(alive=m.Alive(run="r"))
        await node.settled()
        assert node.end is None

    play(act, tmp_path)


def test_the_newest_connection_of_a_key_wins(tmp_path):
    async def act(here):
        key = SigningKey.new()
        first = await here.node(key, "0")
        second = await here.node(key, "0", join=False)
        end = await first.over()
        assert (end.code, end.retry) == (m.CODE_SUPERSEDED, False)
        await second.settled()
        assert here.service.online(node_id(key.public))

    play(act, tmp_path)


def test_a_spec_that_is_too_large_harms_nobody_else(tmp_path):
    async def act(here):
        node, run = await here.ready("0")
        spec = m.RunSpec(run="r", name="mnist", config="{" + " " * (1 << 20) + "}")
        run.say(run_spec=spec)
        assert (await run.over()).code == m.CODE_TOO_LARGE
        await node.settled()
        assert node.end is None

    play(act, tmp_path)


async def is_not_read(peer, party, other, **body):
    """What a party says stays with it, while another is heard."""
    party.say(**body)  # it is being read
    party.say(**body)
    for _ in range(2):
        await other.settled()
    seen = peer.connection.received.frames
    party.say(**body)
    for _ in range(2):
        await other.settled()
    assert peer.connection.received.frames == seen
    assert party.end is None


def test_who_says_much_unasked_is_read_by_turns_and_others_are_read(tmp_path):
    async def act(here):
        node, run = await here.ready("0")
        peers = here.service.connections.peers.values()
        (mine,) = [peer for peer in peers if peer.identity.role == m.ROLE_NODE]
        mine.connection.budget.spend(0.01)
        mine.connection.budget._turns.take(1e6)  # as by many others
        await is_not_read(mine, node, run, alive=m.Alive(run="r"))

    play(act, tmp_path)


def test_a_run_that_never_stops_talking_is_read_by_turns(tmp_path):
    async def act(here):
        node, run = await here.ready("0")
        (its,) = [peer for peer in here.service.connections.peers.values() if peer.identity.role == m.ROLE_RUN]
        its.connection.budget.spend(RUN_MILLISECONDS / 2000)
        await run.settled()
        its.connection.budget.spend(RUN_MILLISECONDS / 1000)
        its.connection.budget._turns.take(1e6)  # as by other runs
        its.connection.post(m.Message(notice=m.Notice(text="x" * TURN_WAITING_BYTES)))
        await is_not_read(its, run, node, cancel=m.Cancel(run="r"))

    play(act, tmp_path)


def test_who_was_put_out_for_what_it_sent_waits_before_it_is_let_in_again(tmp_path, monkeypatch):
    async def act(here):
        turns, waited, now = here.service.connections._admissions, [], [1000.0]
        turns.clock = lambda: now[0]

        async def sleeps(seconds, sleep=asyncio.sleep):
            waited.append(seconds)
            await sleep(0)

        key, other = SigningKey.new(), SigningKey.new()
        for how in ({"result": m.Result(run="r", ask=2**63)}, {"chunk": m.Chunk(sha256=bytes(32), data=b"x")}):
            bad = await here.node(key, "0", join=not waited)
            bad.say(**how)
            assert (await bad.over()).code in (m.CODE_MALFORMED, m.CODE_OUT_OF_ORDER)
            with monkeypatch.context() as patch:
                patch.setattr(connections.asyncio, "sleep", sleeps)
                await here.node(other, "1", join=not waited)
                assert not any(waited)
                await here.node(key, "0", join=False)
                assert max(waited) == PUT_OUT_SECONDS
                waited.clear()
                now[0] += PUT_OUT_SECONDS
                await here.node(key, "0", join=False)
                assert not any(waited)
            waited.append(0.0)

    play(act, tmp_path)


def test_who_is_refused_again_and_again_waits_for_that_and_nobody_else_does(tmp_path, monkeypatch):
    waits, admission = [], Turns.admission

    def noted(turns, peer):
        waits.append(admission(turns, peer))
        return 0.0

    monkeypatch.setattr(Turns, "admission", noted)

    async def act(here):
        turns, key = here.service.connections._refusals, SigningKey.new()
        turns.clock = lambda: 1000.0
        turns.take(1e6)  # as by many others
        for _ in range(ADMISSIONS + 1):
            with pytest.raises(Refused) as refused:
                await here.node(key, "0", join=False)
            assert refused.value.code == m.CODE_NOT_APPROVED
        assert waits == [*[0.0] * ADMISSIONS, PUT_OUT_SECONDS]
        await here.node(SigningKey.new(), "1")
        assert waits[-1] == 0.0

    play(act, tmp_path)


@pytest.mark.parametrize("how", ["leaves", "is put out", "is refused"])
def test_who_is_gone_holds_no_memory_until_the_collector_comes(tmp_path, monkeypatch, how):
    held = []

    class Noted(Connection):
        def __init__(self, *given):
            super().__init__(*given)
            held.append(weakref.ref(self))

    async def act(here):
        node = None if how == "is refused" else await here.node(SigningKey.new(), "0")
        if how == "leaves":
            held.extend(map(weakref.ref, here.service.connections.peers.values()))
            await node.close()
        elif how == "is put out":
            node.say(result=m.Result(run="r", ask=2**63))
            await node.over()
        else:
            with pytest.raises(Refused):
                await here.node(SigningKey.new(), "0", join=False)
        while any(each() is not None for each in held):
            await asyncio.sleep(0)
        assert held

    gc.collect()
    gc.disable()
    try:
        monkeypatch.setattr(connections, "Connection", Noted)
        play(act, tmp_path)
    finally:
        gc.enable()


@pytest.mark.parametrize("refused", [True, False])
def test_who_comes_again_and_again_takes_no_turn_of_those_who_are_read_or_let_in(tmp_path, monkeypatch, refused):
    admission = Turns.admission
    monkeypatch.setattr(Turns, "admission", lambda turns, peer: 0 * admission(turns, peer))

    async def act(here):
        taken, found = [], here.service.connections
        for turns in (found._turns, *([found._admissions] if refused else [])):
            turns.take = lambda work, take=turns.take: taken.append(work) or take(work)
        key = SigningKey.new()
        for number in range(ADMISSIONS + 2):
            if refused:
                with pytest.raises(Refused):
                    await here.node(key, "1", join=False)
            else:
                await (await here.node(key, "1", join=not number)).close()
        assert ADMISSION not in taken

    play(act, tmp_path)


def test_a_run_that_is_called_like_a_node_puts_out_no_node(tmp_path):
    async def act(here):
        key = SigningKey.new()
        run = await here.run(node_id(key.public))
        run.say(hosted=m.Hosted(clients=["1"]))
        assert (await run.over()).code == m.CODE_NOT_ALLOWED
        while here.service.connections.peers:
            await asyncio.sleep(0)
        assert here.service.connections._admissions.admission(node_id(key.public)) == 0.0

    play(act, tmp_path)


def test_what_is_to_be_done_as_a_node_goes_is_its_work_too(tmp_path):
    async def act(here):
        node, run = await here.ready("0")
        (mine,) = [peer for peer in here.service.connections.peers.values() if peer.identity.role == m.ROLE_NODE]
        budget, turns, worked = mine.connection.budget, here.service.connections._turns, [0.0]
        budget.timer = lambda: worked[0]
        tell = here.service.connections._around.tell

        def told(event):
            worked[0] += isinstance(event, Lost)
            tell(event)

        object.__setattr__(here.service.connections._around, "tell", told)
        await node.close()
        await run.hears("members", where=lambda body: body.members[0].standing == m.STANDING_OFFLINE)
        assert turns.take(0.0) > turns.clock() + 1.0, "a second of it takes ten"

    play(act, tmp_path)


def test_answers_that_were_asked_for_are_no_work_of_the_nodes(tmp_path):
    async def act(here):
        node, run = await here.ready("0")
        peers = here.service.connections.peers.values()
        (budget,) = [peer.connection.budget for peer in peers if peer.identity.role == m.ROLE_NODE]
        spent = []
        budget.spend = spent.append
        run.say(ask_spec=ASK)
        run.say(task=task_of("0"))
        await node.hears("task")
        spent.clear()
        node.say(result=done_of("0"))
        await node.hears("ack")
        assert (spent, budget.asked) == ([], 0)
        node.say(result=done_of("0"))
        await node.hears("ack", 2)
        assert max(spent) > 0.0

    play(act, tmp_path)


def test_a_server_has_the_window_that_it_was_told(tmp_path, monkeypatch):
    serve, windows = grpc.serve, []

    async def noted(*given, **settings):
        windows.append(settings["window"])
        return await serve(*given, **settings)

    async def act(here):
        await here.node(SigningKey.new(), "0")

    monkeypatch.setattr(grpc, "serve", noted)
    play(act, tmp_path, window=1 << 20)
    assert windows == [1 << 20]


@pytest.mark.parametrize("kind", ["hosted", "alive", "cancel"])
def test_who_says_far_too_much_at_once_is_put_out_and_told(tmp_path, kind):
    async def act(here):
        node, run = await here.ready("0")
        party = run if kind == "cancel" else node
        ids = [f"0.{number}" for number in range(300_000 if kind == "hosted" else 110_000)]
        bodies = {"hosted": m.Hosted(clients=ids), "alive": m.Alive(tasks=ids), "cancel": m.Cancel(tasks=ids)}
        if kind != "hosted":
            bodies[kind].run = "r"
        party.say(**{kind: bodies[kind]})
        end = await party.over()
        assert end.code == m.CODE_TOO_LARGE
        assert "are the most" in end.message

    play(act, tmp_path)


def closed(folder):
    """A server that has not begun yet, and the event that somebody has knocked."""
    service, knocked = services.Service(ServerSettings(folder=folder, listen="127.0.0.1:0", http="")), asyncio.Event()
    serve = service.connections.serve

    async def knock(stream):
        knocked.set()
        await serve(stream)

    service.connections.serve = knock
    return service, knocked


def test_nobody_comes_in_before_it_is_said_where_the_server_is(tmp_path):
    connecting, said = [], []

    async def main():
        service, knocked = closed(tmp_path / "server")
        door = Office(service, tmp_path)
        try:
            await service.open()
            connecting.append(asyncio.create_task(door.node(SigningKey.new(), "0")))
            await knocked.wait()
            async with office(tmp_path / "other") as other:  # a whole introduction elsewhere in the meantime
                await other.node(SigningKey.new(), "0")
            assert not service.connections.peers
            assert not connecting[0].done()
            await service.begin()
            await connecting[0]
            assert len(service.connections.peers) == 1
            await door.close()
        finally:
            await service.close()

    async def the_command():
        stopping = asyncio.Event()

        def announce(opened):
            said.append(opened.address)
            stopping.set()

        await services.serve_until(
            ServerSettings(folder=tmp_path / "third", listen="127.0.0.1:0", http=""), stopping, announce
        )

    asyncio.run(main())
    asyncio.run(the_command())
    assert len(said) == 1


def test_a_server_that_ends_before_it_has_begun_waits_for_nobody_who_knocked(tmp_path):
    connecting = []

    async def main():
        service, knocked = closed(tmp_path / "server")
        door = Office(service, tmp_path)
        await service.open()
        connecting.append(asyncio.create_task(door.node(SigningKey.new(), "0")))
        await knocked.wait()
        await asyncio.wait_for(service.close(), PATIENCE)
        with pytest.raises(ConnectionLost):
            await connecting[0]
        await door.close()

    asyncio.run(main())


def test_a_node_that_is_no_relay_folds_nothing(tmp_path):
    """It would pass every bound that updates are held to."""

    async def act(here):
        node, run = await here.ready("0")
        run.say(ask_spec=ASK)
        run.say(task=task_of("0"))
        await node.hears("task")
        forged = m.Partial(run="r", ask=0, receipts=[m.Receipt(task="0.0", client="0")], partial=m.Payload(inline=b"x"))
        node.say(partial=forged)
        assert (await node.over()).code == m.CODE_NOT_ALLOWED
        await run.settled()
        assert run.named("partial") == []

    play(act, tmp_path)


@pytest.mark.parametrize("depth", [40, 959, 100_000])
def test_what_is_nested_too_deep_is_refused_and_the_server_starts_again(tmp_path, depth):
    async def act(here):
        run = await here.run()
        config = '{"a":' * depth + "1" + "}" * depth
        run.say(run_spec=m.RunSpec(run="r", name="deep", archive=m.Payload(inline=b"archive"), config=config))
        assert (await run.over()).code in (m.CODE_TOO_LARGE, m.CODE_MALFORMED)

    async def again(here):
        assert not [row for row in here.service.store.rows("runs") if row["spec"]]

    play(act, tmp_path)
    play(again, tmp_path)


def test_a_run_that_wants_what_is_here_no_more_is_told_at_once(tmp_path):
    async def act(here):
        _, run = await here.ready("0")
        with pytest.raises(Refused, match="not to be had"):
            await run.exchange.fetch(m.Blob(sha256=bytes(32), size=5), "r")
        ann = await here.operator()
        with pytest.raises(Refused, match="not to be had"):
            await ann.exchange.fetch(m.Blob(sha256=bytes(32), size=5), "r")

    play(act, tmp_path)


def test_a_revoked_node_and_a_removed_operator_are_put_out(tmp_path):
    async def act(here):
        key = SigningKey.new()
        ann, bob, node = await here.operator(), await here.operator("bob", "read"), await here.node(key, "0")
        await asked(ann, "nodes.revoke", node=node_id(key.public))
        assert (await node.over()).code == m.CODE_REVOKED
        with pytest.raises(Refused) as caught:
            await here.node(key, "0", join=False)
        assert caught.value.code == m.CODE_REVOKED
        await asked(ann, "operators.remove", 2, name="bob")
        assert (await bob.over()).code == m.CODE_REVOKED

    play(act, tmp_path)


def test_one_operator_does_not_take_all_connections(tmp_path, monkeypatch):
    monkeypatch.setattr(connections, "OPERATOR_CONNECTIONS", 2)

    async def act(here):
        token = here.service.registry.tokens.grant("test", "ann", "read")

        async def connect():
            return await here._in(TokenProof(token), m.Hello(role=m.ROLE_OPERATOR, token=token.id))

        first, second, third = [await connect() for _ in range(3)]
        end = await third.over()
        assert (end.code, end.retry) == (m.CODE_BUSY, True)
        assert first.end is second.end is None
        await first.close()
        while len(here.service.connections.peers) > 1:
            await asyncio.sleep(0)
        assert isinstance(await asked(await connect(), "server.status"), dict)

    play(act, tmp_path)


def test_the_frames_of_who_has_gone_are_counted_still(tmp_path):
    async def act(here):
        node, connections = await here.node(SigningKey.new(), "0"), here.service.connections
        await node.settled()
        assert connections.sessions == {"node": 1}
        before = connections.frames
        await node.close()
        while connections.peers:
            await asyncio.sleep(0)
        assert all(after >= then > 0 for after, then in zip(connections.frames, before, strict=True))
        assert connections.sessions == {}

    play(act, tmp_path)


def test_the_audit_says_from_where_who_was_refused_and_what_was_read_and_is_whole(tmp_path):
    async def act(here):
        ann = await here.operator()
        stream = await grpc.connect(here.service.address, root_certificate(here.service.authority.public))
        connection = Connection(stream)
        connection.post(m.Message(hello=m.Hello(role=m.ROLE_OPERATOR)))  # of no version
        with pytest.raises(Refused):
            await connection.receive()
        await connection.close()
        with pytest.raises(Refused):
            await here._in(NodeProof(SigningKey.new(), None), m.Hello(role=m.ROLE_NODE, key=SigningKey.new().public))
        run = await here.run()
        run.say(log_event=m.LogEvent(run="r", number=1, event='{"event": "a"}'))
        await run.settled()
        await here.service.commit()
        await asked(ann, "runs.logs", run="r")
        await here.service.commit()
        records = (await asked(ann, "audit.list", id=2, after=0))["records"]
        found = {row["did"]: row for row in records}
        assert {"connections.refused", "refused", "runs.logs"} <= set(found)
        assert found["connections.refused"]["what"]["code"] == m.CODE_VERSION
        assert (found["runs.logs"]["who"], found["runs.logs"]["what"]) == ("ann", {"run": "r"})
        for did in ("connections.refused", "refused", "runs.logs"):
            assert "127.0.0.1" in found[did]["peer"], did
        await here.service.commit()
        key, head, rows = audit.read(tmp_path / "server")
        assert audit.verified(key, rows, [head]).number == len(rows) >= len(records)

    play(act, tmp_path)


class Stolen:
    """What somebody can prove who has read a server's database: by each thing in a token's row, in each way."""

    def __init__(self, held: bytes, way: str) -> None:
        self.held, self.way = held, way

    def proof(self, transcript):
        said = b"token\0" + transcript
        if self.way == "seal":
            return m.Proof(seal=hmac.digest(self.held, said, "sha256"))
        key = SigningKey(Ed25519PrivateKey.from_private_bytes(self.held))
        return m.Proof(seal=key.sign(said), signature=key.sign(said))


def test_a_stolen_database_lets_nobody_in(tmp_path):
    async def act(here):
        await here.operator()
        here.service.registry.tokens.issue_run("test", "r")
        here.service.registry.invite("test")
        await here.service.commit()
        with closing(sqlite3.connect(tmp_path / "server" / "server.db")) as database:
            cursor = database.execute("SELECT * FROM tokens")
            names = [column[0] for column in cursor.description]
            rows = [dict(zip(names, values, strict=True)) for values in cursor]
        kinds = {"operator": m.ROLE_OPERATOR, "run": m.ROLE_RUN, "join": m.ROLE_NODE}
        tried = 0
        for row in rows:
            for held in [value for value in row.values() if isinstance(value, bytes)]:
                for way in ("seal", "sign"):
                    hello = m.Hello(role=kinds[row["kind"]], token=row["id"], name="r")
                    prover = Stolen(held, way)
                    if row["kind"] == "join":
                        key = SigningKey.new()
                        hello.key = key.public
                        prover = Joined(key, prover)
                    with pytest.raises(Refused) as caught:
                        await here._in(prover, hello)
                    assert caught.value.code == m.CODE_UNAUTHENTICATED
                    tried += 1
        assert {row["kind"] for row in rows} == set(kinds)
        assert tried >= 2 * 4  # the server's own operator, too

    play(act, tmp_path)


class Joined:
    """A node that joins by what somebody else proves of its token."""

    def __init__(self, key, other):
        self.key, self.other = key, other

    def proof(self, transcript):
        return m.Proof(signature=sign_node(self.key, transcript), seal=self.other.proof(transcript).seal)


def test_whoever_has_heard_the_whole_answer_may_ask_again(tmp_path):
    """However long it is until this connection's next turn."""

    async def act(here):
        service, ann = here.service, await here.operator()
        assert isinstance(await asked(ann, "server.status", 1), dict)
        (peer,) = service.connections.peers.values()
        post, turn, waits = peer.connection.post, peer.connection.turn, asyncio.Event()

        def posted(message, **how):
            waits.set()
            post(message, **how)

        async def far_away():
            await (asyncio.Event().wait() if waits.is_set() else turn())

        peer.connection.post, peer.connection.turn = posted, far_away
        for id in range(2, 2 + 3 * OPERATOR_REQUESTS):
            waits.clear()
            assert isinstance(await asked(ann, "server.status", id), dict)
            assert not peer.answering

    play(act, tmp_path)


@pytest.mark.slow
def test_what_an_operator_does_not_take_is_not_read_either(tmp_path):
    """Beyond what is on its way, which the transport bounds."""
    event = json.dumps({"event": "x", "text": "x" * 100_000})

    async def act(here):
        service, ann = here.service, await here.operator()
        service.store.put("runs", {"id": "r", "status": "finished", "ended_at": 1.0, "logged": 0})
        for number in range(1, 101):  # 10 MB for each request
            service.store.put("events", {"run": "r", "number": number, "at": 0.0, "body": event})
        await service.commit()
        read, stored = [0], service.feeds._stored

        def counted(run, after, most):
            found = stored(run, after, most)
            read[0] += sum(len(text) for _, text in found)
            return found

        service.feeds._stored = counted
        takes, receive = asyncio.Event(), ann.connection._stream.receive

        async def once_it_takes():
            await takes.wait()
            return await receive()

        ann.connection._stream.receive = once_it_takes
        for id in range(1, OPERATOR_REQUESTS + 2):
            ann.say(request=m.Request(id=id, method="runs.logs", body='{"run": "r"}'))
        (peer,) = service.connections.peers.values()
        while peer.connection.queued < ANSWER_WAITING_BYTES:
            await asyncio.sleep(0)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert len(peer.answering) == OPERATOR_REQUESTS
        assert peer.connection.queued < ANSWER_WAITING_BYTES + (OPERATOR_REQUESTS + 1) * (2 << 20)
        assert read[0] < 5 << 20
        takes.set()
        busy = await ann.hears("response", where=lambda found: found.id == OPERATOR_REQUESTS + 1)
        assert (busy.code, busy.more) == (m.CODE_BUSY, False)
        for id in range(1, OPERATOR_REQUESTS + 1):
            await ann.hears("response", where=lambda found, id=id: found.id == id and not found.more)
        assert isinstance(await asked(ann, "server.status", 9), dict)

    play(act, tmp_path)
