"""Who is asked: whom the sampler draws, others for those who are away, nobody twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel import Everyone, Uniform
from umbel.core.randomness import Key
from umbel.errors import SamplingError
from umbel.runs.cohorts import draw, drawn_by

KEY = Key.from_seed(1)
CLIENTS = range(20)


@given(st.integers(1, 20), st.sets(st.sampled_from(CLIENTS)), st.integers(0, 5))
def test_those_who_are_asked_are_online_and_as_many_as_were_drawn_where_there_are_so_many(size, away, seed):
    key = Key.from_seed(seed)
    cohort, drawn, there = draw(Uniform(size), CLIENTS, lambda client: client not in away, key)
    assert drawn == size
    assert there == away.isdisjoint(drawn_by(Uniform(size), CLIENTS, key))
    assert len(set(cohort)) == len(cohort) <= size
    assert away.isdisjoint(cohort)
    first = [client for client in draw(Uniform(size), CLIENTS, lambda client: True, key)[0] if client not in away]
    assert list(cohort[: len(first)]) == first
    assert (draw(Uniform(size), CLIENTS, lambda client: client not in away, key)[0]) == cohort


def test_others_are_drawn_for_those_who_are_away():
    assert len(draw(Uniform(5), CLIENTS, lambda client: client >= 10, KEY)[0]) == 5
    assert draw(Everyone(), CLIENTS, lambda client: client >= 15, KEY) == ((15, 16, 17, 18, 19), 20, False)
    assert draw(Everyone(), CLIENTS, lambda client: False, KEY) == ((), 20, False)


def test_a_sampler_that_draws_a_client_twice_is_told_so():
    class Twice:
        def draw(self, clients, key):
            return [3, 3]

        def spec(self):
            return {"name": "twice"}

    with pytest.raises(SamplingError, match="has a client twice"):
        draw(Twice(), CLIENTS, lambda client: True, KEY)
