"""The faulty transport does what its plan says, and the same again from the same seed."""

from __future__ import annotations

import asyncio

import pytest

from umbel.errors import ConnectionLost
from umbel.testing import FaultPlan, FaultyStream
from umbel.transport.stream import Stream


async def through(plan: FaultPlan, count: int = 40) -> tuple[list[bytes], FaultyStream]:
    """What arrives of so many frames."""
    one, other = plan.pair(room=200)
    lost = False
    for i in range(count):
        try:
            await one.send(b"%03d" % i)
        except ConnectionLost:
            lost = True
            break
    if not lost:
        await one.finish()
    found = []
    while (data := await other.receive()) is not None:
        found.append(data)
    await one.close()
    await other.close()
    return found, one


def sent(count: int = 40) -> list[bytes]:
    return [b"%03d" % i for i in range(count)]


def test_without_faults_it_is_a_stream() -> None:
    found, stream = asyncio.run(through(FaultPlan(1)))
    assert found == sent()
    assert set(stream.log) == {"send"}
    checked: Stream = stream
    assert checked.peer


def test_each_fault() -> None:
    assert asyncio.run(through(FaultPlan(1, delay=0.5)))[0] == sent()
    dropped, stream = asyncio.run(through(FaultPlan(1, drop=0.3)))
    assert dropped == sorted(dropped)
    assert len(dropped) == 40 - stream.log.count("drop") < 40
    doubled, stream = asyncio.run(through(FaultPlan(1, duplicate=0.3)))
    assert sorted(set(doubled)) == sent()
    assert len(doubled) == 40 + stream.log.count("duplicate") > 40
    mixed, _ = asyncio.run(through(FaultPlan(1, reorder=0.4)))
    assert mixed != sent()
    assert sorted(mixed) == sent()


@pytest.mark.parametrize("cut", [0, 1, 3, 30, 31, 119])
def test_a_cut_loses_the_frame_it_falls_into(cut: int) -> None:
    async def main() -> None:
        one, other = FaultPlan(1, cut_after=cut).pair()
        found = []
        for data in sent():
            try:
                await one.send(data)
            except ConnectionLost:
                break
            found.append(await other.receive())
        assert found == sent(cut // 3)
        assert await other.receive() is None
        with pytest.raises(ConnectionLost):
            await other.send(b"x")
        await one.close()
        await other.close()

    asyncio.run(main())


def test_the_same_seed_does_the_same() -> None:
    plan = FaultPlan(7, delay=0.2, duplicate=0.2, reorder=0.2, drop=0.2)
    found = [asyncio.run(through(plan)) for _ in range(2)]
    assert found[0][0] == found[1][0]
    assert found[0][1].log == found[1][1].log
    assert asyncio.run(through(FaultPlan(8, delay=0.2, duplicate=0.2, reorder=0.2, drop=0.2)))[0] != found[0][0]


def test_what_is_held_back_comes_when_nothing_follows() -> None:
    async def main() -> None:
        one, other = FaultPlan(1, reorder=1.0).pair()
        await one.send(b"alone")
        assert await other.receive() == b"alone"
        await one.send(b"kept")
        await one.close()
        assert await other.receive() is None
        await other.close()

    asyncio.run(main())
