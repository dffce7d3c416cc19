"""Randomised response: no cell is told with odds that epsilon rules out, and estimates are right in the mean.

Statistics are of pinned words. A right sampler would fail one of them with a probability of 1e-6.
"""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from umbel.core.answer import Answer
from umbel.core.arrays import Arrays
from umbel.core.randomness import Key
from umbel.core.update import Update
from umbel.entropy import Entropy
from umbel.privacy import randomised_response
from umbel.privacy.randomised_response import FINEST, odds

KEY = Key.from_seed(1)
UNLIKELY = 1e-6
kinds = pytest.mark.parametrize("kind", ["direct", "unary"])


def pinned(*name):
    return Entropy(Key.from_seed(19).derive("response", *name).draws().words)


def told(step, counts, own):
    return step.told(np.asarray(counts, np.int64), own)


def law(step, own_cell, size):
    """How likely each answer is of a client with this cell, None for none."""
    kind, true, other = step._chances(size)
    cells = np.eye(size, dtype=int)
    if kind == "direct":
        none = 1 - other * size if own_cell is None else other
        chances = {tuple(row): true if i == own_cell else other for i, row in enumerate(cells)}
        return {**chances, (0,) * size: none}
    ones = [true if i == own_cell else other for i in range(size)]
    return {
        bits: math.prod(one if bit else 1 - one for bit, one in zip(bits, ones, strict=True))
        for bits in product((0, 1), repeat=size)
    }


@kinds
@given(epsilon=st.floats(1e-3, 20), size=st.integers(1, 6))
def test_no_answer_is_likelier_than_epsilon_lets_it_be(kind, epsilon, size):
    """Over all pairs of what a client may have, nothing included, and all answers."""
    step = randomised_response(epsilon=epsilon, kind=kind)
    laws = [law(step, cell, size) for cell in (None, *range(size))]
    for one in laws:
        assert sum(one.values()) == pytest.approx(1)
        for other in laws:
            assert all(one[answer] <= math.exp(epsilon) * other[answer] * (1 + 1e-7) for answer in one)


@kinds
@pytest.mark.parametrize("own_cell", [1, pytest.param(None, marks=pytest.mark.slow)])
def test_answers_have_the_odds_that_they_should(kind, own_cell):
    step, own, n = randomised_response(epsilon=1.5, kind=kind), pinned(kind, str(own_cell)), 500
    counts = np.zeros(3) if own_cell is None else np.eye(3)[own_cell] * 7
    answers = [tuple(told(step, counts, own).tolist()) for _ in range(n)]
    chances = law(step, own_cell, 3)
    assert (
        stats.chisquare([answers.count(each) for each in chances], [n * c for c in chances.values()]).pvalue > UNLIKELY
    )


@pytest.mark.slow
@kinds
def test_estimates_are_right_in_the_mean_and_their_errors_too(kind):
    """100 releases over 40 clients each."""
    step, own = randomised_response(epsilon=1.0, kind=kind), pinned("mean", kind)
    having, releases = np.array([25, 10, 0, 3]), 100
    looks = Arrays({"counts": np.zeros(4, np.int64)}).schema
    found, errors = [], []
    for _ in range(releases):
        cells = [np.eye(4)[i] for i, n in enumerate(having) for _ in range(n)] + [np.zeros(4)] * 2
        total = sum(told(step, cell, own) for cell in cells)
        answer = Answer(Arrays({"counts": total}), receipts=[None] * len(cells))
        value = step.finish(answer, step.init(looks), KEY, own)[0].value
        found.append(value["counts"])
        errors.append(value["counts:error"])
    spread = np.std(found, axis=0)
    assert (np.abs(np.mean(found, axis=0) - having) < 5 * spread / math.sqrt(releases)).all()
    np.testing.assert_allclose(np.mean(errors, axis=0), spread, rtol=4 / math.sqrt(2 * releases))


@kinds
def test_the_error_is_that_of_who_has_a_cell_and_who_has_not(kind):
    step = randomised_response(epsilon=4.0, kind=kind)
    _, true, other = step._chances(9)
    total = np.array([60 * true + 40 * other, 100 * other, 100.0])
    found, error = step.estimated(total, 100, 9, pinned())
    np.testing.assert_allclose(found[:2], [60, 0], atol=1e-9)
    wanted = [(n * true * (1 - true) + (100 - n) * other * (1 - other)) ** 0.5 / (true - other) for n in (60, 0, 100)]
    np.testing.assert_allclose(error, wanted)


@given(size=st.integers(1, 3000), epsilon=st.floats(0.01, 8))
def test_the_kind_with_less_error_is_taken(size, epsilon):
    """Wang et al. 2017: direct below 3 exp(epsilon) + 2 values, one of which is none of the cells."""
    kind = randomised_response(epsilon=epsilon)._chances(size)[0]
    edge = 3 * math.exp(epsilon) + 2
    if not 0.99 < (size + 1) / edge < 1.01:
        assert kind == ("direct" if size + 1 < edge else "unary")


@given(epsilon=st.floats(1e-3, 200), count=st.integers(2, 2000))
def test_no_value_is_told_with_more_than_its_odds(epsilon, count):
    assert epsilon - 1e-8 < odds(epsilon, count) / FINEST + math.log(count - 1) <= epsilon


def test_of_many_contributions_one_is_told():
    step, own = randomised_response(epsilon=30.0), pinned("one")
    update = Update({"counts": np.array([[3, 0], [0, 9]])})
    sent = [step.encode(update, None, None, KEY, own)[0].arrays["counts"] for _ in range(50)]
    assert {int(each.sum()) for each in sent} == {1}
    assert sum(each[0, 0] for each in sent) < sum(each[1, 1] for each in sent)
