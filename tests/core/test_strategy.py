"""A state is plain, does not change, and says what it lacks."""

import pickle

import numpy as np
import pytest

from umbel import Arrays, State, Strategy

STATE = State(Arrays({"w": np.ones(2)}), count=1)


def test_a_state_is_exchanged_not_changed():
    after = STATE.replace(count=2, more=3)
    assert (STATE.count, after.count, after.more) == (1, 2, 3)
    assert after.model is STATE.model
    with pytest.raises(AttributeError, match=r"use state\.replace\(count="):
        STATE.count = 5
    with pytest.raises(AttributeError, match="has no 'velocity'; it has model, count"):
        STATE.velocity  # noqa: B018


def test_what_a_state_carries_is_in_the_order_in_which_it_is_read_again():
    state = STATE.replace(slots={"m": [np.asfortranarray(np.ones((2, 3)))]}, b=np.arange(9.0)[::2])
    assert state.slots["m"][0].flags.c_contiguous
    assert state.b.flags.c_contiguous


def test_a_state_can_be_pickled_and_listed():
    assert pickle.loads(pickle.dumps(STATE)).model == STATE.model
    assert list(STATE.parts()) == ["model", "count"]


def test_a_strategy_has_to_say_what_a_round_is():
    with pytest.raises(TypeError, match="round"):
        Strategy()  # type: ignore[abstract]
