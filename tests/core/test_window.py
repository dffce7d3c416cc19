"""Windows: what they refuse, and how staleness discounts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.core.window import Window
from umbel.errors import StrategyError


def test_the_default_asks_all_at_once_and_waits_for_all():
    window = Window()
    assert (window.in_flight, window.close_after, window.deadline) == (None, None, None)
    assert (window.quorum, window.late) == (1, "drop")


@pytest.mark.parametrize(
    "settings",
    [
        {"in_flight": 0},
        {"in_flight": 2.5},
        {"in_flight": True},
        {"close_after": 0},
        {"close_after": "3"},
        {"quorum": -1},
        {"quorum": None},
        {"quorum": None, "close_after": 3},
        {"deadline": 0},
        {"deadline": -1.0},
        {"deadline": math.nan},
        {"deadline": "soon"},
        {"late": "discard"},
        {"staleness_exponent": -0.5},
        {"staleness_exponent": math.nan},
        {"staleness_exponent": "half"},
        {"staleness_exponent": math.inf},
        {"staleness_exponent": True},
        {"deadline": True},
    ],
    ids=str,
)
def test_a_setting_that_makes_no_sense_is_an_error_that_names_it(settings):
    with pytest.raises(StrategyError, match=next(iter(settings))):
        Window(**settings)


def test_a_quorum_that_can_never_be_reached_is_an_error():
    with pytest.raises(StrategyError, match="closes after 3 updates can never reach its quorum of 4"):
        Window(close_after=3, quorum=4)
    assert Window(close_after=3, quorum=3).quorum == 3
    assert Window(close_after=3, quorum=0).quorum == 0


@given(staleness=st.integers(0, 10_000), exponent=st.floats(0, 4))
def test_an_update_counts_less_the_later_it_comes(staleness, exponent):
    window = Window(staleness_exponent=exponent)
    factor = window.discount(staleness)
    assert 0 < window.discount(staleness + 1) <= factor <= 1
    assert math.isclose(factor, (1 + staleness) ** -exponent)
    assert window.discount(0) == 1.0


def test_an_infinite_deadline_is_none():
    assert Window(deadline=math.inf) == Window()
    assert Window(deadline=math.inf).takes_all
