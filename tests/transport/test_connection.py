"""Connections: order, priority, limits, signs of life, and how they end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import PATIENCE

from umbel.errors import ConnectionLost, PeerError, ProtocolError, Refused
from umbel.testing import VirtualClock
from umbel.transport import frames
from umbel.transport.budget import FREE, Turns
from umbel.transport.connection import Connection
from umbel.transport.stream import MemoryListener, Stream, pair
from umbel.wire import messages as m
from umbel.wire.limits import TURN_WAITING_BYTES


def event(number: int, text: str = "") -> m.Message:
    return m.Message(log_event=m.LogEvent(run="r", number=number, event=text))


def connected(**settings: Any) -> tuple[Connection, Connection]:
    one, other = pair()
    return Connection(one, **settings), Connection(other, **settings)


async def end_of(connection: Connection) -> PeerError:
    try:
        while True:
            await connection.receive()
    except PeerError as error:
        return error


def test_messages_arrive_in_order_and_in_few_frames() -> None:
    async def main() -> None:
        one, other = connected()
        for i in range(1000):
            one.post(event(i))
        await one.close()
        found: list[int] = []

        async def read() -> None:
            async for message in other.messages():
                found.append(message.log_event.number)

        with pytest.raises(ConnectionLost):
            await read()
        assert found == list(range(1000))
        assert one.sent.frames <= 3
        assert one.sent.bytes == other.received.bytes > 0
        assert one.sent.frames == other.received.frames
        await other.close()

    asyncio.run(main())


def test_a_lazy_message_goes_with_the_next_or_by_its_time() -> None:
    async def main() -> None:
        one, other = connected()
        one.post(event(0), lazy=PATIENCE)
        one.post(event(1))
        assert [message.log_event.number for message in await other.receive()] == [0, 1]
        one.post(event(2), lazy=PATIENCE)
        one.post(event(3), lazy=0.0001)
        one.post(event(4), lazy=PATIENCE)
        assert [message.log_event.number for message in await other.receive()] == [2, 3, 4]
        assert one.sent.frames == 2
        await one.close()
        await end_of(other)

    asyncio.run(main())


def test_a_frame_is_closed_at_64_kib_and_where_it_is_asked_for() -> None:
    async def main() -> None:
        one, other = connected()
        for i in range(8):
            one.post(event(i, "x" * 30_000))
        sizes = []
        while sum(sizes) < 8:
            sizes.append(len(await other.receive()))
        assert sizes == [2, 2, 2, 2]
        one.post(event(1))
        one.next_frame()
        one.post(event(2))
        assert [len(await other.receive()), len(await other.receive())] == [1, 1]
        one.post(event(3).SerializeToString())
        assert await other.receive() == [event(3)]
        with pytest.raises(ProtocolError):
            one.post(event(4, "x" * frames.FRAME_BYTES))
        await one.close()
        await other.close()

    asyncio.run(main())


def test_small_messages_go_before_bulk_and_bulk_waits_for_its_turn() -> None:
    async def main() -> None:
        ours, theirs = pair(room=1)
        one = Connection(ours)
        sha256 = bytes(32)

        async def bulk(name: int) -> None:
            for i in range(10):
                await one.send(frames.chunk(sha256, 100 * name + i, b"x" * 1000))

        tasks = [asyncio.create_task(bulk(name)) for name in range(3)]
        order: list[Any] = []
        number = 0
        while len(order) < 31:
            if len(order) == 10:
                one.post(event(7))
                posted = len(order)
            data = await theirs.receive()
            assert data is not None
            number += 1
            (message,) = frames.read(data, number, frames.standard_limits())
            order.append("small" if message.HasField("log_event") else message.chunk.offset)
        await asyncio.gather(*tasks)
        assert order.index("small") - posted <= 2  # what was under way, and no more
        chunks = [x for x in order if x != "small"]
        assert {x // 100 for x in chunks[:6]} == {0, 1, 2}  # all get their share
        assert [x for x in chunks if x < 100] == list(range(10))
        theirs_end = asyncio.create_task(theirs.close())
        await one.close()
        await theirs_end

    asyncio.run(main())


def test_who_waits_to_send_learns_that_it_is_over() -> None:
    async def main() -> None:
        ours, theirs = pair(room=1)
        one = Connection(ours, grace=0.01)
        tasks = [asyncio.create_task(one.send((b"x" * 100,))) for _ in range(20)]
        await asyncio.sleep(0)
        await one.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(result, ConnectionLost) for result in results) >= 15
        with pytest.raises(ConnectionLost):
            await one.send((b"x",))
        one.post(event(1))
        await theirs.close()

    asyncio.run(main())


def test_a_quiet_peer_is_asked_and_then_given_up() -> None:
    async def main() -> None:
        clock = VirtualClock()
        ours, theirs = pair()
        one = Connection(ours, clock=clock)
        clock.advance(29)
        one.beat()
        clock.advance(1)
        one.beat()
        one.beat()
        data = await theirs.receive()
        assert data is not None
        (message,) = frames.read(data, 1, one.limits)
        reading = asyncio.create_task(end_of(one))
        pong = m.Message(pong=m.Pong(id=message.ping.id)).SerializeToString()
        await theirs.send(frames.frame(1, [(pong,)]))
        while one.progressed != clock():
            await asyncio.sleep(0)
        clock.advance(31)
        one.beat()
        assert await theirs.receive() is not None
        clock.advance(29)
        one.beat()
        error = await reading
        assert isinstance(error, ConnectionLost)
        assert error.code == m.CODE_TOO_SLOW
        data = await theirs.receive()
        assert data is not None
        (message,) = frames.read(data, 3, one.limits)
        assert message.problem.code == m.CODE_TOO_SLOW
        assert await theirs.receive() is None
        await theirs.close()

    asyncio.run(main())


def test_who_waits_for_its_turn_is_not_given_up_for_what_was_not_read_of_it() -> None:
    async def main() -> None:
        clock = VirtualClock()
        ours, theirs = pair()
        one = Connection(ours, clock=clock)
        turns = Turns(clock)
        turns.take(1e6)  # as by many others
        one.budget = turns.budget("other")
        one.budget.spend(1.0)
        reading = asyncio.create_task(end_of(one))
        await asyncio.sleep(0)
        for number in range(1, 4):
            clock.advance(30)
            one.beat()
            data = await theirs.receive()
            assert data is not None
            assert frames.read(data, number, one.limits)[0].HasField("ping"), "and hears of this side"
            async with asyncio.timeout(PATIENCE):
                while one.progressed != clock():
                    await asyncio.sleep(0)
        for _ in range(2):  # it takes no more
            clock.advance(30)
            one.beat()
        assert one.end is not None
        await theirs.close()
        assert await reading == one.end

    asyncio.run(main())


def test_pings_are_answered_and_only_the_last_of_many() -> None:
    async def main() -> None:
        ours, theirs = pair(room=1)
        one = Connection(ours)
        reading = asyncio.create_task(end_of(one))
        for i in range(1, 101):
            await theirs.send(frames.frame(i, [(m.Message(ping=m.Ping(id=i)).SerializeToString(),)]))
        last, number = 0, 0
        while last != 100:
            data = await theirs.receive()
            assert data is not None
            number += 1
            (message,) = frames.read(data, number, one.limits)
            last = message.pong.id
        assert number < 20
        await theirs.close()
        assert isinstance(await reading, ConnectionLost)

    asyncio.run(main())


def test_a_problem_says_why() -> None:
    async def main() -> None:
        one, other = connected()
        one.post(event(1))
        await one.close(m.Problem(code=m.CODE_REVOKED, text="not you", retry=False))
        assert await other.receive() == [event(1)]
        error = await end_of(other)
        assert isinstance(error, Refused)
        assert (error.code, error.retry) == (m.CODE_REVOKED, False)
        assert "not you" in error.message
        assert other.end is error
        assert [x async for x in one.messages()] == []

    asyncio.run(main())


def test_what_may_not_come_ends_it_with_a_code() -> None:
    async def main(allowed: frozenset[str] | None, message: m.Message) -> None:
        one, other = connected()
        ends: list[PeerError] = []
        other.on_close.append(ends.append)
        other.allowed = allowed
        one.post(message)
        mine, theirs = await asyncio.gather(end_of(one), end_of(other))
        assert isinstance(theirs, ProtocolError)
        assert isinstance(mine, Refused)
        assert mine.code == theirs.code == m.CODE_NOT_ALLOWED
        assert ends == [theirs]

    asyncio.run(main(frozenset({"task"}), event(1)))
    asyncio.run(main(None, m.Message(credit=m.Credit(sha256=bytes(32), bytes=1))))  # nobody exchanges blobs here


def test_a_peer_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("umbel.transport.connection.QUEUE_BYTES", 100_000)

    async def main() -> None:
        ours, theirs = pair(room=1)
        one = Connection(ours, grace=0.01)
        for i in range(1000):
            one.post(event(i, "x" * 1000))
        error = await end_of(one)
        assert error.code == m.CODE_TOO_SLOW
        assert one.queued < 1000
        await theirs.close()

    asyncio.run(main())


def hostile() -> st.SearchStrategy[list[bytes]]:
    """Frames as an attacker builds them, some of them right."""
    good = st.builds(lambda n, i: (n, event(i)), st.integers(1, 4), st.integers(0, 9))
    odd = st.builds(lambda n: (n, m.Message(chunk=m.Chunk(offset=3, data=b"x"))), st.integers(0, 3))
    framed = st.one_of(good, odd).map(lambda x: m.Frame(number=x[0], messages=[x[1]]).SerializeToString())
    whole = st.one_of(framed, st.binary(max_size=64), framed.map(lambda x: x[:-1]), framed.map(lambda x: x * 2))
    return st.lists(whole, min_size=1, max_size=6)


@pytest.mark.parametrize("waiting", [TURN_WAITING_BYTES - 1, TURN_WAITING_BYTES])
def test_who_is_read_by_turns_has_to_take_what_it_is_sent(waiting: int) -> None:
    async def main() -> None:
        one, other = connected()
        one.budget = Turns().budget("other")
        other.post(event(1))
        one.queued = waiting  # of what the other does not take
        one.budget.spend(2 * FREE)
        reading = asyncio.create_task(one.receive())
        await asyncio.wait({reading}, timeout=0.1)  # there is no event for what does not happen
        assert reading.done() == (waiting < TURN_WAITING_BYTES)
        one.queued = 0
        one._flows.set()
        async with asyncio.timeout(PATIENCE):
            assert len(await reading) == 1
        await one.close()
        await other.close()

    asyncio.run(main())


@given(hostile())
def test_hostile_frames_end_their_own_connection_only(sequence: list[bytes]) -> None:
    async def main() -> None:
        served: list[PeerError] = []

        async def serve(stream: Stream) -> None:
            connection = Connection(stream, grace=PATIENCE)
            try:
                async for message in connection.messages():
                    connection.post(message)
            except PeerError as error:
                served.append(error)
            finally:
                await connection.close()

        listener = MemoryListener(serve)
        good = Connection(await listener.connect())
        bad = await listener.connect()
        try:
            for data in sequence:
                await bad.send(data)
        except ConnectionLost:
            pass
        await bad.finish()
        number, said = 0, []
        while (data := await bad.receive()) is not None:
            number += 1
            said += frames.read(data, number, frames.standard_limits())
        await bad.close()
        good.post(event(5))
        assert await good.receive() == [event(5)]
        await good.close()
        await listener.close(grace=PATIENCE)
        assert len(served) == 2
        problems = [x.problem for x in said if x.HasField("problem")]
        violations = [x for x in served if isinstance(x, ProtocolError)]
        assert [x.code for x in problems] == [x.code for x in violations]

    asyncio.run(main())
