"""The handshake: who gets in, and that nothing of it can be faked, changed or used again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import PATIENCE

from umbel.errors import ConnectionLost, PeerError, ProtocolError, Refused
from umbel.transport import frames
from umbel.transport.connection import Connection
from umbel.transport.handshake import Handshakes, Identity, accept, introduce, origin
from umbel.transport.stream import Stream, pair
from umbel.trust import identity
from umbel.trust.identity import SigningKey
from umbel.trust.tokens import Token
from umbel.wire import messages as m
from umbel.wire.limits import HANDSHAKE_SECONDS

KEY = SigningKey.new()
TOKEN = Token.new()


class Known:
    """Lets in the node with KEY, and whoever has TOKEN."""

    def __init__(self) -> None:
        self.asked = 0

    def verify(self, hello: m.Hello, challenge: m.Challenge, transcript: bytes, proof: m.Proof) -> Identity:
        self.asked += 1
        if hello.role == m.ROLE_NODE:
            if not identity.check_node(hello.key, transcript, proof.signature):
                raise Refused("a wrong signature", m.CODE_UNAUTHENTICATED)
            if hello.key != KEY.public:
                raise Refused("wait for approval", m.CODE_NOT_APPROVED, retry=True)
            return Identity(hello.role, identity.node_id(hello.key), hello.name, hello)
        if hello.token != TOKEN.id or not identity.check_seal(TOKEN.key.public, transcript, proof.seal):
            raise Refused("a wrong token", m.CODE_UNAUTHENTICATED)
        return Identity(hello.role, hello.token, hello.name, hello)


class Signs:
    def __init__(self, key: SigningKey) -> None:
        self.key = key

    def proof(self, transcript: bytes) -> m.Proof:
        return m.Proof(signature=identity.sign_node(self.key, transcript))


class Seals:
    def __init__(self, key: SigningKey) -> None:
        self.key = key

    def proof(self, transcript: bytes) -> m.Proof:
        return m.Proof(seal=identity.seal(self.key, transcript))


def node(key: SigningKey = KEY) -> m.Hello:
    return m.Hello(role=m.ROLE_NODE, name="north", key=key.public, clients=["a"])


def run_hello() -> m.Hello:
    return m.Hello(role=m.ROLE_RUN, name="run", token=TOKEN.id)


async def meeting(
    hello: m.Hello, prover: Any, wrap: Callable[[Stream], Stream] = lambda s: s, **options: Any
) -> tuple[Any, Any, Connection, Connection]:
    """What both sides make of it, and their connections."""
    one, other = pair()
    client, server = Connection(wrap(one), grace=PATIENCE), Connection(other, grace=PATIENCE)
    found = await asyncio.gather(
        introduce(client, prover, hello), accept(server, Known(), server="s", **options), return_exceptions=True
    )
    return found[0], found[1], client, server


async def part(*connections: Connection) -> None:
    await asyncio.gather(*(connection.close() for connection in connections))


def test_a_node_and_a_run_get_in() -> None:
    async def main(hello: m.Hello, prover: Any, mine: m.Message, theirs: m.Message) -> None:
        limits = m.Limits(chunk_bytes=1000, idle_seconds=7)
        welcome, who, client, server = await meeting(hello, prover, limits=limits, same_machine=lambda who: True)
        assert welcome.same_machine
        assert welcome.id == who.id
        assert (who.name, who.role) == (hello.name, hello.role)
        assert client.limits == server.limits == welcome.limits
        assert (client.limits.chunk_bytes, client.limits.idle_seconds) == (1000, 7)
        assert client.limits.frame_bytes == frames.FRAME_BYTES  # what is not set is the standard
        client.post(mine)
        server.post(theirs)
        assert await server.receive() == [mine]
        assert await client.receive() == [theirs]
        client.post(m.Message(welcome=welcome))
        with pytest.raises(ProtocolError):
            await server.receive()
        await part(client, server)

    task, result = m.Message(task=m.Task(run="r")), m.Message(result=m.Result(run="r"))
    asyncio.run(main(node(), Signs(KEY), result, task))
    asyncio.run(main(run_hello(), Seals(TOKEN.key), task, result))


@pytest.mark.parametrize(
    ("hello", "prover", "code"),
    [
        (node(), Signs(SigningKey.new()), m.CODE_UNAUTHENTICATED),
        (node(other := SigningKey.new()), Signs(other), m.CODE_NOT_APPROVED),
        (run_hello(), Seals(SigningKey.new()), m.CODE_UNAUTHENTICATED),
        (m.Hello(role=m.ROLE_RUN, name="x", token="who"), Seals(TOKEN.key), m.CODE_UNAUTHENTICATED),
        (m.Hello(role=m.ROLE_NODE, name="x", key=b"short"), Signs(KEY), m.CODE_MALFORMED),
        (m.Hello(name="x"), Signs(KEY), m.CODE_MALFORMED),
    ],
)
def test_others_do_not(hello: m.Hello, prover: Any, code: int) -> None:
    async def main() -> None:
        told, raised, client, server = await meeting(hello, prover)
        assert isinstance(told, Refused)
        assert isinstance(raised, PeerError)
        assert told.code == raised.code == code
        assert told.retry == (code == m.CODE_NOT_APPROVED)
        assert client.closed
        assert server.closed
        await part(client, server)

    asyncio.run(main())


async def talk(stream: Stream, *messages: bytes, number: int = 1) -> list[m.Message]:
    """Send frames of one message each, then read until the end."""
    for place, message in enumerate(messages, number):
        await stream.send(frames.frame(place, [(message,)]))
    await stream.finish()
    said: list[m.Message] = []
    count = number - 1
    while (data := await stream.receive()) is not None:
        count += 1
        said += frames.read(data, count, frames.standard_limits())
    return said


def hello_bytes(**changes: Any) -> bytes:
    hello = node()
    hello.MergeFrom(m.Hello(version=m.Version(least=1, most=1), nonce=bytes(32)))
    hello.MergeFrom(m.Hello(**changes))
    return hello.SerializeToString()


def test_a_proof_from_another_handshake_is_worth_nothing() -> None:
    async def main() -> None:
        hello = hello_bytes()
        proofs = []
        for _ in range(2):
            one, other = pair()
            server = Connection(other, grace=PATIENCE)
            accepting = asyncio.create_task(accept(server, Known()))
            await one.send(frames.frame(1, [(frames.message("hello", hello),)]))
            data = await one.receive()
            assert data is not None
            transcript = identity.transcript(hello, frames.raw_body(data))
            proofs.append(m.Proof(signature=identity.sign_node(KEY, transcript)))
            proof = m.Message(proof=proofs[0]).SerializeToString()
            await one.send(frames.frame(2, [(proof,)]))
            if len(proofs) == 1:
                assert (await accepting).name == "north"
            else:
                with pytest.raises(Refused, match="wrong signature"):
                    await accepting
            await part(server)
            await one.close()

    asyncio.run(main())


def test_what_is_changed_on_the_way_is_noticed() -> None:
    class Meddler:
        def __init__(self, stream: Stream) -> None:
            self.peer, self.receive, self.finish, self.close = (
                stream.peer, stream.receive, stream.finish, stream.close,
            )  # fmt: skip
            self.beside = stream.beside
            self._stream = stream

        async def send(self, data: bytes) -> None:
            await self._stream.send(data.replace(b"north", b"south"))

    async def main() -> None:
        told, raised, client, server = await meeting(node(), Signs(KEY), Meddler)
        assert told.code == raised.code == m.CODE_UNAUTHENTICATED
        await part(client, server)

    asyncio.run(main())


def test_no_version_in_common() -> None:
    async def main() -> None:
        one, other = pair()
        server = Connection(other, grace=PATIENCE)
        accepting = asyncio.create_task(accept(server, Known()))
        said = await talk(one, frames.message("hello", hello_bytes(version=m.Version(least=2, most=3))))
        assert [x.problem.code for x in said] == [m.CODE_VERSION]
        with pytest.raises(Refused):
            await accepting
        await one.close()

        one, other = pair()
        client = Connection(one, grace=PATIENCE)
        introducing = asyncio.create_task(introduce(client, Signs(KEY), node()))
        await other.receive()
        challenge = m.Message(challenge=m.Challenge(version=7, nonce=bytes(32)))
        await other.send(frames.frame(1, [(challenge.SerializeToString(),)]))
        with pytest.raises(ProtocolError, match="version 7"):
            await introducing
        await other.close()

    asyncio.run(main())


@pytest.mark.parametrize("name", ["kinds", "dtypes"])
def test_a_peer_brings_no_more_than_so_many_things(name: str) -> None:
    async def main() -> None:
        hello = node()
        getattr(hello.capabilities, name).extend(str(number) for number in range(257))
        told, raised, client, server = await meeting(hello, Signs(KEY))
        assert told.code == raised.code == m.CODE_TOO_LARGE
        await part(client, server)

    asyncio.run(main())


def test_it_has_to_be_over_in_time() -> None:
    async def main() -> None:
        one, other = pair()
        server = Connection(other, grace=PATIENCE)
        with pytest.raises(ConnectionLost, match="took more than"):
            await accept(server, Known(), seconds=0.01)
        assert [x.problem.code for x in await talk(one)] == [m.CODE_TOO_SLOW]

    asyncio.run(main())


def test_it_has_so_many_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        _, other = pair()
        server, loop, passed = Connection(other, grace=0.0), asyncio.get_running_loop(), 0.0
        time = loop.time
        monkeypatch.setattr(loop, "time", lambda: time() + passed)
        accepting = asyncio.create_task(accept(server, Known()))
        for _ in range(100):
            await asyncio.sleep(0)
        passed = HANDSHAKE_SECONDS / 2
        for _ in range(100):
            await asyncio.sleep(0)
        assert not accepting.done()
        passed = HANDSHAKE_SECONDS + 1
        with pytest.raises(ConnectionLost, match=f"took more than {HANDSHAKE_SECONDS} s"):
            await accepting

    asyncio.run(main())


def test_where_too_many_connect_the_oldest_of_the_address_with_the_most_makes_room() -> None:
    """Also one that has said Hello, and nothing after."""

    async def main() -> None:
        handshakes = Handshakes(most=4)
        begun: list[tuple[Stream, asyncio.Task[Any]]] = []

        async def begin(address: str, hello: bytes = b"") -> None:
            mine, theirs = pair()
            theirs.peer = address
            if hello:
                await mine.send(frames.frame(1, [[frames.message("hello", hello)]]))
            served = asyncio.create_task(accept(Connection(theirs, grace=PATIENCE), Known(), handshakes=handshakes))
            begun.append((mine, served))
            for _ in range(20):
                await asyncio.sleep(0)

        await begin("ipv4:10.0.0.1:1000")
        await begin("ipv4:10.0.0.2:1000", hello_bytes())
        await begin("ipv4:10.0.0.2:1001")
        await begin("ipv4:10.0.0.2:1002")
        assert [served.done() for _, served in begun] == [False] * 4
        told, raised, client, server = await meeting(node(), Signs(KEY), handshakes=handshakes)
        assert told.id == raised.id
        assert [served.done() for _, served in begun] == [False, True, False, False]
        _, first = begun[1]
        assert isinstance(first.exception(), Refused)
        assert [x.problem.code for x in await talk(begun[1][0]) if x.HasField("problem")] == [m.CODE_BUSY]
        assert handshakes.pending == 3
        for mine, _ in begun:
            await mine.close()
        await asyncio.gather(*(served for _, served in begun), return_exceptions=True)
        assert handshakes.pending == 0
        await part(client, server)

    asyncio.run(main())


def test_who_waits_to_be_refused_takes_a_place_until_then() -> None:
    async def main() -> None:
        handshakes, other, waits = Handshakes(most=1), SigningKey.new(), asyncio.Event()

        async def settled(who: object) -> None:
            if who is None:
                waits.set()
                await asyncio.Event().wait()

        refused = asyncio.create_task(meeting(node(other), Signs(other), handshakes=handshakes, settled=settled))
        await waits.wait()
        assert handshakes.pending == 1
        told, raised, *connections = await meeting(node(), Signs(KEY), handshakes=handshakes, settled=settled)
        assert told.id == raised.id
        told, _, *others = await refused
        assert told.code == m.CODE_BUSY
        await part(*connections, *others)

    asyncio.run(main())


def test_an_address_is_a_host_or_the_network_that_one_host_may_have() -> None:
    assert origin("ipv4:10.0.0.1:1000") == origin("ipv4:10.0.0.1:2000") != origin("ipv4:10.0.0.2:1000")
    assert origin("ipv6:%5B2001:db8::1%5D:5") == origin("ipv6:[2001:db8::2%25eth0]:6") != origin("ipv6:[2001:db9::1]:5")
    assert origin("ipv6:[::ffff:10.0.0.1]:1") == origin("ipv4:10.0.0.1:1000")
    assert origin("memory:0") == "memory"


bodies = st.one_of(
    st.builds(lambda: frames.message("hello", hello_bytes())),
    st.builds(lambda n: frames.message("hello", hello_bytes(nonce=bytes(n))), st.integers(0, 3)),
    st.builds(lambda s: m.Message(proof=m.Proof(signature=s)).SerializeToString(), st.binary(max_size=70)),
    st.sampled_from(
        [
            m.Message(ping=m.Ping(id=1)).SerializeToString(),
            m.Message(result=m.Result(run="r")).SerializeToString(),
            m.Message(welcome=m.Welcome(id="me")).SerializeToString(),
            frames.message("hello", bytes(300_000)),
            b"",
        ]
    ),
    st.binary(max_size=40),
)


@given(st.lists(bodies, min_size=1, max_size=4), st.booleans())
def test_nobody_gets_in_by_odd_messages(sequence: list[bytes], together: bool) -> None:
    async def main() -> None:
        one, other = pair()
        server = Connection(other, grace=PATIENCE)
        accepting = asyncio.create_task(accept(server, verifier := Known(), seconds=PATIENCE))
        if together:
            sequence[0] = b"".join(sequence)
            del sequence[1:]
        said = await talk(one, *sequence)
        with pytest.raises(PeerError):
            await accepting
        assert server.closed
        assert verifier.asked <= 1
        assert not any(x.HasField("welcome") for x in said)
        await one.close()

    asyncio.run(main())
