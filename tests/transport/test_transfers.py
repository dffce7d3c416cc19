"""How much of a blob may be under way, as its receiver and its sender reckon it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from umbel.errors import ConnectionLost, ProtocolError
from umbel.transport.transfers import FIRST_WINDOW, SMALLEST_CHUNK, IncomingTransfer, OutgoingTransfer
from umbel.wire import messages as m

BLOB = m.Blob(sha256=bytes(32), size=64 << 20)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("offset", "size"), [(1, 10), (0, 0), (0, FIRST_WINDOW + 1)])
def test_a_chunk_has_to_be_the_next_and_within_its_credit(offset: int, size: int) -> None:
    async def main() -> None:
        incoming = IncomingTransfer(BLOB, 8 << 20, Clock())
        incoming.ask(m.Want())
        with pytest.raises(ProtocolError):
            incoming.take(offset, bytes(size))
        incoming.take(0, bytes(10))
        assert await incoming.next() == [bytes(10)]

    asyncio.run(main())


def test_what_comes_quickly_is_given_a_wider_window() -> None:
    clock = Clock()
    incoming = IncomingTransfer(BLOB, 8 << 20, clock)
    incoming.ask(m.Want())
    clock.now = 10.0
    assert incoming.consumed(1 << 20, 1 << 20) == 1 << 20  # 100 kB/s: no wider
    clock.now = 10.5
    assert incoming.consumed(32 << 20, 33 << 20) == (32 << 20) + incoming.window - FIRST_WINDOW
    assert FIRST_WINDOW < incoming.window <= 8 << 20


def test_who_waits_for_a_transfer_that_has_failed_is_told_why() -> None:
    async def main() -> None:
        incoming = IncomingTransfer(BLOB, 8 << 20, Clock())
        incoming.ask(m.Want())
        waiting: Any = asyncio.ensure_future(incoming.next())
        await asyncio.sleep(0)
        incoming.fail(ConnectionLost("it is gone"))
        incoming.fail(ConnectionLost("and gone again"))
        with pytest.raises(ConnectionLost, match="it is gone"):
            await waiting

    asyncio.run(main())


def test_a_sender_waits_for_credit_that_is_worth_a_chunk() -> None:
    async def main() -> None:
        outgoing = OutgoingTransfer(m.Want(blob=BLOB, credit=SMALLEST_CHUNK), Clock())
        assert await outgoing.take(1 << 20) == SMALLEST_CHUNK
        waiting = asyncio.ensure_future(outgoing.take(1 << 20))
        await asyncio.sleep(0)
        outgoing.granted(1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        outgoing.granted(SMALLEST_CHUNK)
        assert await waiting == SMALLEST_CHUNK
        assert outgoing.credit == 1

    asyncio.run(main())
