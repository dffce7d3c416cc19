"""Partials of updates that do not have the same arrays; what is common to all partials is in test_folds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.folds.test_folds import bits, by_tree, contribution, folded, receipt

from umbel import Arrays, collect, mean, total, weighted_mean
from umbel.core.partial import Partial
from umbel.core.sums import ExactScalar
from umbel.errors import InternalError, UpdateRejected

KINDS = (
    {"x": np.ones(2)},
    {"x": np.ones(3)},
    {"x": np.ones(2, np.float32)},
    {"y": np.ones(2)},
    {},
    {"x": np.ones(2), "y": np.ones(2)},
)
AUX = ({}, {"c": np.ones(2)}, {"c": np.ones(1)}, {"d": np.ones(1)})


@pytest.mark.parametrize("fold", [weighted_mean(), mean(), total()], ids=repr)
@given(kinds=st.lists(st.integers(0, len(KINDS) - 1), min_size=1, max_size=9), seed=st.integers(0, 2**32))
def test_who_counts_does_not_depend_on_the_order_or_the_tree_of_merges(fold, kinds, seed):
    """What most of them have counts; of as many, what the first client has."""
    items = [
        (contribution(i, {n: a * (i + 1) for n, a in KINDS[k].items()}, i + 1.0), receipt(i, i + 1.0))
        for i, k in enumerate(kinds)
    ]
    most = max(kinds, key=lambda k: (kinds.count(k), -kinds.index(k)))
    expected = bits(folded(fold, [item for item, k in zip(items, kinds, strict=True) if k == most]).finish())
    for partial in (folded(fold, items), by_tree(fold, items, np.random.default_rng(seed))):
        sent = Partial(fold)
        sent.merge_contents(partial.contents())
        for found in (partial, sent):
            left = found.agree()
            assert sorted(left) == [i for i, k in enumerate(kinds) if k != most]
            assert found.agree() == {}
            assert bits(found.finish()) == expected


@given(kinds=st.lists(st.integers(0, len(AUX) - 1), min_size=1, max_size=8), seed=st.integers(0, 2**32))
def test_so_it_is_with_aux_arrays_and_with_none(kinds, seed):
    items = [(contribution(i, {"x": np.ones(1)}, aux=AUX[k]), receipt(i)) for i, k in enumerate(kinds)]
    most = max(kinds, key=lambda k: (kinds.count(k), -kinds.index(k)))
    for partial in (folded(mean(), items), by_tree(mean(), items, np.random.default_rng(seed))):
        found = partial.finish()
        assert sorted(found.failed) == [i for i, k in enumerate(kinds) if k != most]
        assert {n: a.tolist() for n, a in found.aux.items()} == {n: a.tolist() for n, a in AUX[most].items()}


@given(roles=st.lists(st.sampled_from(["parameter", "buffer"]), min_size=1, max_size=8), seed=st.integers(0, 2**32))
def test_so_it_is_with_roles(roles, seed):
    items = [(contribution(i, Arrays({"x": np.ones(1)}, {"x": role})), receipt(i)) for i, role in enumerate(roles)]
    most = max(roles, key=lambda role: (roles.count(role), -roles.index(role)))
    for partial in (folded(mean(), items), by_tree(mean(), items, np.random.default_rng(seed))):
        found = partial.finish()
        assert sorted(found.failed) == [i for i, role in enumerate(roles) if role != most]
        assert found.value.roles["x"] == most


def test_what_has_not_agreed_is_not_sent():
    partial = folded(mean(), [(contribution(i, arrays), receipt(i)) for i, arrays in enumerate(KINDS[:2])])
    with pytest.raises(InternalError):
        partial.to_tree()
    partial.agree()
    assert partial.to_tree()["sums"]["count"] == 1


def test_those_left_out_are_told_why():
    kinds = [KINDS[0], KINDS[1], KINDS[2], KINDS[3], KINDS[0]]
    partial = folded(mean(), [(contribution(i, arrays), receipt(i)) for i, arrays in enumerate(kinds)])
    assert partial.finish().failed == {
        1: "array 'x' has shape [3], but [2] in other updates",
        2: "array 'x' is float32, but was float64 in other updates",
        3: "the update's arrays have other names than those of other updates",
    }
    assert partial.finish().clients == (0, 4)


def test_a_collection_takes_all():
    partial = folded(collect(), [(contribution(i, arrays), receipt(i)) for i, arrays in enumerate(KINDS)])
    assert partial.agree() == {}
    assert partial.finish().count == len(KINDS)


def sent(fold, weights, values, *, bound=math.inf, **changed):
    """A partial as another peer says it is: of these updates, with what it says otherwise."""
    pairs = enumerate(zip(weights, values, strict=True))
    items = [(contribution(i, {"w": np.array(v)}, w), receipt(i, w)) for i, (w, v) in pairs]
    tree = folded(fold, items).to_tree()
    tree["sums"].update(changed)
    return Partial.from_tree(fold, tree, bound=bound)


def exact(value):
    total = ExactScalar()
    total.add(value)
    return total.encode()


@pytest.mark.parametrize(
    ("fold", "said"),
    [
        (weighted_mean(), 6.5),
        (weighted_mean(), 1.0),
        (weighted_mean(max_weight=2.0), 6.0),
        (mean(), 30.0),
        (mean(), 2.0),
    ],
    ids=repr,
)
def test_updates_count_by_what_their_receipts_say_and_by_nothing_else(fold, said):
    weights, values = (1.0, 2.0, 3.0), ([1.0], [2.0], [3.0])
    assert len(sent(fold, weights, values).receipts) == 3
    with pytest.raises(UpdateRejected, match="the partial has the weight"):
        sent(fold, weights, values, weight=exact(said))


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 6),
    norm=st.sampled_from([1e-200, 1.0, 1e30]),
    fold=st.sampled_from([mean(), weighted_mean()]),
)
def test_what_updates_within_a_bound_add_up_to_is_within_it(seed, count, norm, fold):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(count, 3))
    values *= norm / np.linalg.norm(values, axis=1, keepdims=True)
    weights = rng.integers(1, 5, count).astype(float).tolist()
    assert len(sent(fold, weights, values, bound=norm * (1 + 1e-5)).receipts) == count
    if count == 1:
        with pytest.raises(UpdateRejected, match="the partial's norm"):
            sent(fold, weights, values, bound=norm * 0.99)


def test_one_large_update_does_not_hide_among_small_ones():
    values = ([1.0, 0.0], [0.0, 1.0], [1e6, 0.0])
    with pytest.raises(UpdateRejected, match=r"norm is 1e\+06, and its updates' bound makes at most 3"):
        sent(mean(), (1.0, 1.0, 1.0), values, bound=1.0)
