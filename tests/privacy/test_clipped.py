"""What holders do under central noise: whatever a client sends moves the sum by the bound at most, in every chain."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import umbel
from umbel import Arrays, Update
from umbel.core.answer import Answer
from umbel.core.randomness import Key
from umbel.core.transform import chain, chain_from_spec
from umbel.errors import SettingError, UpdateRejected
from umbel.privacy import central_gaussian, dp_ftrl
from umbel.privacy.clipped import grid

KEY = Key.from_seed(1)
BOTH = (central_gaussian(norm=2.0, noise=1, expected=10), dp_ftrl(norm=2.0, noise=1, expected=10, rounds=4))
VALUES = st.floats(width=32, allow_nan=True, allow_infinity=True)
ANY = hnp.arrays(np.float32, st.integers(1, 50), elements=VALUES)


@pytest.mark.parametrize("step", BOTH, ids=lambda step: step.name)
@given(values=ANY, buffer=st.floats(allow_nan=False, width=32), weight=st.floats(0, 1e9))
def test_whatever_a_client_sends_moves_the_sum_by_the_bound_at_most(step, values, buffer, weight):
    """An adversary encodes nothing, or encodes and claims more: what is let pass is what is folded."""
    arrays = Arrays({"w": values, "seen": np.array([buffer], np.float32)}, {"seen": "buffer"})
    fold, params = umbel.total(), step.send(step.init(arrays.schema))
    honest = step.encode(Update(arrays, delta=True), params, None, KEY)[0]
    for sent in (arrays, *(arrays.replace({"w": honest.arrays["w"] * np.float32(by)}) for by in (1, 4, 0.3))):
        claimed = Update(sent, weight, {"loss": 1e9}, {"more": values}, True)
        try:
            with np.errstate(all="ignore"):
                found = step.decode(claimed, params, arrays.schema)
        except UpdateRejected:
            continue
        steps = found.arrays["w"].astype(np.float64) / grid(step.norm)
        assert (steps == np.rint(steps)).all()
        assert np.linalg.norm(steps) <= step.norm / grid(step.norm)
        assert not found.arrays["seen"].any()
        assert fold.weigh(found.weight, 1.0) == 1.0
        assert (found.weight, found.metrics, dict(found.aux)) == (1.0, {}, {})


@pytest.mark.parametrize("step", BOTH, ids=lambda step: step.name)
@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=5))
def test_what_is_released_is_the_sum_and_noise_that_does_not_depend_on_it(step, sums):
    """Whole numbers, exactly: the same entropy with another sum gives a release that is moved by just that."""
    total = np.array(sums, np.float64) * grid(step.norm)

    def released(value):
        own = umbel.entropy.Entropy(Key.from_seed(3).draws().words)
        state = step.init(Arrays({"w": np.zeros(len(sums))}).schema)
        return step.finish(Answer(value), state, KEY, own)[0].value["w"] * (step.expected / grid(step.norm))

    moved = released(Arrays({"w": total})) - released(Arrays())
    np.testing.assert_allclose(moved, sums, rtol=0, atol=1e-3)  # the mean of 10 is no multiple of the grid any more


@given(hnp.arrays(np.float32, 12, elements=st.floats(-1e6, 1e6, width=32)), st.floats(1e-3, 1e3))
def test_layers_are_clipped_by_themselves_and_stay_within_the_bound_together(values, norm):
    step = central_gaussian(norm=norm, noise=1, expected=10, per_layer=True)
    whole = Arrays(
        {
            "a.weight": values[:6].reshape(2, 3),
            "a.bias": values[6:8],
            "b": values[8:9],
            "c.d.w": values[9:11],
            "c.w": values[11:],
        }
    )
    sent = step.encode(Update(whole, delta=True), {"norm": norm}, None, KEY)[0]
    found = step.decode(sent, {"norm": norm}, whole.schema).arrays
    assert np.sqrt(sum(np.square(a.astype(np.float64)).sum() for a in found.values())) <= norm
    for names in (["a.weight", "a.bias"], ["b"], ["c.d.w"], ["c.w"]):
        had, has = (np.concatenate([each[n].astype(np.float64).ravel() for n in names]) for each in (whole, found))
        share = norm / np.sqrt(4)
        scale = min(1.0, share / max(np.linalg.norm(had), 1e-300))
        np.testing.assert_allclose(has, had * scale, rtol=3e-6, atol=2 * grid(norm))  # whatever the other layers are


def test_layers_cross_the_wire_and_are_yes_or_no():
    step = central_gaussian(norm=1.0, noise=1, expected=10, per_layer=True)
    assert chain_from_spec(chain(step).spec()).parts == (step,)
    with pytest.raises(SettingError, match="per_layer"):
        central_gaussian(norm=1.0, noise=1, expected=10, per_layer="w")
