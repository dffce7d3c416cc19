"""A dialer connects again whenever a connection ends, waits in between, and tells what is wrong once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest
from tests.conftest import PATIENCE

from umbel.errors import ConnectionLost, PeerError, Refused
from umbel.transport import dialer as dialers
from umbel.transport.connection import Connection
from umbel.transport.dialer import Dialer
from umbel.transport.stream import Stream, pair
from umbel.wire import messages as m

PARTING = m.Problem(code=m.CODE_SHUTTING_DOWN, text="the test ends", retry=True)
log = logging.getLogger("umbel.test")


class World:
    """Whom a dialer reaches: the other ends of its streams; `away` is how often nobody is there."""

    def __init__(self, away: int = 0) -> None:
        self.away = away
        self.ends: list[Stream] = []
        self.tried = 0

    async def connect(self) -> Stream:
        self.tried += 1
        if self.tried <= self.away:
            raise ConnectionLost("nobody is there")
        ours, theirs = pair()
        self.ends.append(theirs)
        return ours


def play(act: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE):
            await act()

    asyncio.run(main())


def made(world: World, **more: object) -> Dialer:
    return Dialer(world.connect, first=0.0, longest=0.0, who="node", log=log, **more)  # type: ignore[arg-type]


def test_it_connects_until_it_is_told_to_stop_and_says_goodbye() -> None:
    async def act() -> None:
        world, stopping, had = World(away=2), asyncio.Event(), []

        async def converse(connection: Connection) -> None:
            had.append(connection)
            if len(had) < 3:
                raise ConnectionLost("it broke")
            stopping.set()
            await connection.receive()

        await made(world).keep(converse, stopping, PARTING)
        assert (world.tried, len(had)) == (5, 3)
        assert all(connection.closed for connection in had)
        last = Connection(world.ends[-1])
        with pytest.raises(PeerError, match="the test ends"):
            await last.receive()

    play(act)


def test_it_gives_up_where_it_is_told_to() -> None:
    async def act() -> None:
        async def converse(connection: Connection) -> None:
            raise Refused("never again", m.CODE_REVOKED)

        with pytest.raises(Refused, match="never again"):
            await made(World(away=3), gives_up=lambda error: not error.retry).keep(converse, asyncio.Event(), PARTING)

    play(act)


def test_who_cancels_it_ends_the_conversation() -> None:
    async def act() -> None:
        begun, ended = asyncio.Event(), []

        async def converse(connection: Connection) -> None:
            begun.set()
            try:
                await connection.receive()
            finally:
                ended.append(connection)

        keeping = asyncio.create_task(made(World()).keep(converse, asyncio.Event(), PARTING))
        await begun.wait()
        keeping.cancel()
        await asyncio.wait({keeping})
        assert keeping.cancelled()
        assert [connection.closed for connection in ended] == [True]

    play(act)


def test_what_is_wrong_is_told_once_until_it_was_well(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, log.name)

    async def act() -> None:
        world, stopping, had = World(away=3), asyncio.Event(), []
        dialer = made(world)

        async def converse(connection: Connection) -> None:
            had.append(connection)
            if len(had) == 4:
                stopping.set()
                return
            if len(had) > 1:
                dialer.welcomed(connection, m.Welcome(id="n", name="other"), "mine")
            raise Refused("wait", m.CODE_NOT_APPROVED)

        await dialer.keep(converse, stopping, PARTING)

    play(act)
    told = [record.message for record in caplog.records]
    waits = "this node waits for approval: wait"
    well = [next(text for text in told if text.startswith("connected to")), told[3]]
    assert told == ["nobody is there", waits, *well, waits, *well, waits]
    assert well[1].endswith("calls this node other, not mine")


def test_pauses_double_up_to_the_longest_and_begin_anew_after_a_good_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dialers.random, "uniform", lambda low, high: high)
    waited: list[float | None] = []

    async def act() -> None:
        world, stopping = World(), asyncio.Event()
        dialer = Dialer(world.connect, first=100.0, longest=300.0)
        really = asyncio.wait

        async def wait(tasks, *, timeout=None, return_when=asyncio.ALL_COMPLETED):  # type: ignore[no-untyped-def]
            if timeout is None or timeout < 100.0:  # not a pause
                return await really(tasks, timeout=timeout, return_when=return_when)
            waited.append(timeout)
            if len(waited) == 6:
                stopping.set()
            return await really(tasks, timeout=0.0)

        async def converse(connection: Connection) -> None:
            if len(waited) == 3:
                monkeypatch.setattr(dialers, "GOOD_SECONDS", 0.0)
                dialer.welcomed(connection, m.Welcome())
            raise ConnectionLost("it broke")

        monkeypatch.setattr(dialers.asyncio, "wait", wait)
        await dialer.keep(converse, stopping, PARTING)

    play(act)
    assert waited == [100.0, 200.0, 300.0, 100.0, 200.0, 300.0]


@pytest.mark.parametrize(
    ("error", "pause"),
    [
        (ConnectionLost("x"), None),
        (Refused("x", m.CODE_BUSY, retry=True), None),
        (Refused("x", m.CODE_REVOKED), 30.0),
        (Refused("x", m.CODE_NOT_APPROVED), dialers.APPROVAL_WAIT),
    ],
    ids=repr,
)
def test_how_long_it_waits_at_least(error: PeerError, pause: float | None) -> None:
    assert Dialer(World().connect, first=0.1, longest=30.0)._complain(error) == pause
