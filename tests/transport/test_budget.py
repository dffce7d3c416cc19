"""Who has a server do much unasked takes turns, in a bounded share of its time; who does not is always heard."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.transport.budget import FREE, Turns
from umbel.wire.limits import ADMISSIONS, PUT_OUT_SECONDS, TURNS_PERCENT


class Clock:
    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


def test_who_causes_little_work_is_always_heard() -> None:
    clock = Clock()
    budget = Turns(clock).budget("a")
    for _ in range(1000):
        budget.spend(FREE / 4)
        assert budget.turn() <= clock()
        clock.now += 0.5


def test_who_causes_much_waits_until_others_had_time_and_is_forgiven() -> None:
    clock = Clock()
    turns = Turns(clock)
    budget = turns.budget("a")
    budget.spend(0.01)
    assert budget.turn() == 5.0, "nobody waits before it"
    assert budget.turn() == 5.0, "nothing was done since"
    again = turns.budget("a")
    again.spend(1e-6)
    assert again.turn() == pytest.approx(5.0 + 0.01 * 100 / TURNS_PERCENT), "also over another connection"
    other = turns.budget("b")
    other.spend(FREE)
    assert other.turn() < 5.0, "who has done little waits for nobody"
    budget.spend(0.01)
    turn = budget.turn()
    assert turn > 5.0
    assert budget.turn() == turn, "whoever else does something for it over this connection waits for it too"
    clock.now += 0.03 / FREE
    budget.spend(1e-6)
    assert budget.turn() < clock()


@given(st.floats(0.0, 10.0), st.lists(st.floats(0.0, 100.0), max_size=5))
def test_nobody_waits_longer_than_until_time_has_made_up_for_what_they_caused(work: float, others: list[float]) -> None:
    clock = Clock()
    turns = Turns(clock)
    for other in others:
        turns.take(other)
    budget = turns.budget("a")
    budget.spend(work)
    assert budget.turn() <= clock() + max(0.0, work - FREE) / FREE
    if work > FREE:
        clock.now += (work - FREE) / FREE + 1e-6
        assert budget.turn() <= clock()


@given(st.lists(st.floats(0.02, 0.05), min_size=2, max_size=60))
def test_all_who_take_turns_have_a_share_of_the_time(works: list[float]) -> None:
    """However many there are, each a peer of its own."""
    clock = Clock()
    turns = Turns(clock)
    ends = []
    for number, work in enumerate(works):
        budget = turns.budget(str(number))
        budget.spend(work)
        ends.append(budget.turn())
    assert ends == sorted(ends)
    assert sum(works[:-1]) <= (ends[-1] - 5.0) * TURNS_PERCENT / 100 + 1e-9


def test_who_has_come_again_and_again_keeps_nobody_waiting_who_comes_later() -> None:
    clock = Clock()
    turns = Turns(clock)
    for _ in range(ADMISSIONS):
        assert turns.admission("a") == turns.admission("b") == 0.0
    assert max(turns.admission("a") for _ in range(1000)) == PUT_OUT_SECONDS == turns.admission("b")
    clock.now += PUT_OUT_SECONDS
    assert turns.admission("b") == 0.0


def test_the_work_of_a_coroutine_is_that_of_its_own_steps() -> None:
    clock, worked = Clock(), [0.0]
    budget = Turns(clock, lambda: worked[0]).budget("a")
    ended = []

    async def work(result: str) -> str:
        worked[0] += 0.25
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            worked[0] += 1.0
            raise
        finally:
            ended.append(result)
        worked[0] += 0.5
        return result

    async def main() -> None:
        doing = asyncio.create_task(budget.spent(work, "done"))
        await asyncio.sleep(0)
        worked[0] += 100.0  # of others
        assert await doing == "done"
        assert budget._since == pytest.approx(0.75)
        doing = asyncio.create_task(budget.spent(work, "cancelled"))
        await asyncio.sleep(0)
        doing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doing
        assert budget._since == pytest.approx(2.0)

        async def fails() -> None:
            raise ValueError("as it is")

        with pytest.raises(ValueError, match="as it is"):
            await budget.spent(fails)

    asyncio.run(main())
    assert ended == ["done", "cancelled"]


def test_answers_are_asked_for_once() -> None:
    budget = Turns(Clock()).budget("a")
    assert not budget.was_asked(1)
    budget.asked += 3
    assert not budget.was_asked(0), "it answers nothing"
    assert budget.was_asked(2)
    assert not budget.was_asked(2)
    assert budget.was_asked(1)
    assert budget.asked == 0
