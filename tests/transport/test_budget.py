"""A peer has a burst and a rate; beyond these it pauses for as long as it takes to make up for it."""

from __future__ import annotations

import pytest

from umbel.transport.budget import Budget
from umbel.wire.limits import PEER_BURST, PEER_BURST_BYTES, PEER_BYTES, PEER_WORK


def test_who_is_beyond_its_burst_pauses_until_it_has_made_up_for_it() -> None:
    now = [5.0]
    budget = Budget(lambda: now[0])
    budget.spend(PEER_BURST)
    assert budget.pause == 0.0
    budget.spend(PEER_WORK / 2)
    assert budget.pause == pytest.approx(0.5)
    now[0] += 0.25
    assert budget.pause == pytest.approx(0.25)
    now[0] += 0.25
    assert budget.pause == pytest.approx(0.0)
    budget.spend(1, PEER_BURST_BYTES + PEER_BYTES)
    now[0] += 0.5
    assert budget.pause == pytest.approx(0.5)


def test_nobody_saves_up_more_than_a_burst_and_a_clock_that_goes_back_gives_nothing() -> None:
    now = [0.0]
    budget = Budget(lambda: now[0])
    now[0] = 1e9
    budget.spend(PEER_BURST + PEER_WORK)
    assert budget.pause == pytest.approx(1.0)
    now[0] = 0.0
    assert budget.pause == pytest.approx(1.0)
