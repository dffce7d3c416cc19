from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from umbel.errors import ConnectionLost, Refused
from umbel.office.connection import OperatorConnection
from umbel.store.blobs import Blobs
from umbel.transport.connection import Connection
from umbel.transport.handshake import Identity, accept
from umbel.transport.stream import pair
from umbel.trust.authority import JoinText
from umbel.trust.credentials import Credentials
from umbel.trust.tokens import Token
from umbel.wire import messages as m

CREDENTIALS = Credentials("here:1", JoinText(b"", Token.new()).text)


class Anybody:
    """Lets everybody in."""

    def verify(self, hello: m.Hello, challenge: m.Challenge, transcript: bytes, proof: m.Proof) -> Identity:
        assert hello.role == m.ROLE_OPERATOR
        return Identity(role=hello.role, id=hello.token, name="ann", hello=hello)


async def begun(folder: Path) -> tuple[OperatorConnection, Connection]:
    """A talk, and the server's end of it."""
    ours, theirs = pair()
    server = Connection(theirs)
    talk, _ = await asyncio.gather(
        OperatorConnection.begun(ours, CREDENTIALS, Blobs(folder)), accept(server, Anybody())
    )
    return talk, server


def test_answers_find_their_questions(tmp_path: Path) -> None:
    async def play() -> None:
        talk, server = await begun(tmp_path)
        first, second = talk.ask("a", "{}"), talk.ask("b", "{}")
        (one, two) = await server.receive()
        assert [(x.request.id, x.request.method) for x in (one, two)] == [(1, "a"), (2, "b")]
        for id, body, more in ((2, "two", False), (9, "whose?", False), (1, "one", True), (1, "more", False)):
            server.post(m.Message(response=m.Response(id=id, body=body, more=more)))
        assert [(await first.next()).body, (await first.next()).body] == ["one", "more"]
        assert (await second.next()).body == "two"
        await talk.close()
        await server.close()

    asyncio.run(play())


def test_whoever_waits_learns_how_it_ended(tmp_path: Path) -> None:
    async def play() -> None:
        talk, server = await begun(tmp_path)
        waiting = talk.ask("a", "{}")
        await server.receive()
        await server.close(Refused("you are dismissed", m.CODE_REVOKED))
        with pytest.raises(Refused, match="you are dismissed"):
            await waiting.next()
        assert talk.over
        with pytest.raises(Refused, match="you are dismissed"):
            await talk.ask("b", "{}").next()
        await talk.close()

    asyncio.run(play())


def test_a_talk_that_is_closed_leaves_nobody_waiting(tmp_path: Path) -> None:
    async def play() -> None:
        talk, server = await begun(tmp_path)
        waiting = talk.ask("a", "{}")
        await talk.close()
        with pytest.raises(ConnectionLost):
            await waiting.next()
        await server.close()

    asyncio.run(play())
