"""Attacks on membership find what there is, and their intervals hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.errors import SettingError
from umbel.privacy.membership import infer_membership, likelihood_ratios

pytest.importorskip("scipy")


@given(st.lists(st.integers(0, 9), min_size=2, max_size=30), st.lists(st.integers(0, 9), min_size=2, max_size=30))
def test_the_area_is_how_often_a_member_is_above_another(members, others):
    found = infer_membership(members, others)
    wins = [(m > o) + (m == o) / 2 for m in members for o in others]
    assert found.auc == pytest.approx(np.mean(wins))
    assert 0 <= found.auc_interval[0] <= found.auc <= found.auc_interval[1] <= 1
    assert found.tpr == np.mean([m > max(others) for m in members])  # 1 % of 30 is nobody
    assert found.tpr_interval[0] <= found.tpr <= found.tpr_interval[1]


@pytest.mark.slow
def test_intervals_hold_as_often_as_they_say():
    """Of 300 intervals at 95 %, more than 30 are wrong by a chance below 1e-3."""
    rng, true = np.random.default_rng(1), 0.7602  # Phi(1 / sqrt 2)
    missed = 0
    for _ in range(300):
        found = infer_membership(rng.normal(1, 1, 80), rng.normal(0, 1, 60))
        missed += not found.auc_interval[0] <= true <= found.auc_interval[1]
    assert 0 < missed <= 30


def test_the_rate_is_at_no_more_false_positives_than_is_said():
    others = np.arange(1000.0)
    found = infer_membership([995.5, 985.0, 989.0, 1.0], others)
    assert (found.tpr, found.members, found.others) == (0.25, 4, 1000)  # above 989 there are ten
    assert infer_membership([989.5, 0], others).tpr == 0.5


def test_the_likelihood_ratio_finds_what_losses_alone_do_not():
    """Examples are unlike each other by far more than membership moves them."""
    rng, n = np.random.default_rng(2), 400
    hardness, taken = rng.normal(0, 5, n), rng.random((32, n)) < 0.5
    shadows = hardness + 1.5 * taken + rng.normal(size=(32, n))
    member = rng.random(n) < 0.5
    observed = hardness + 1.5 * member + rng.normal(size=n)
    plain = infer_membership(observed[member], observed[~member])
    scores = likelihood_ratios(observed, shadows, taken)
    better = infer_membership(scores[member], scores[~member])
    assert plain.auc < 0.65 < 0.8 < better.auc  # 0.86 with infinitely many shadows
    assert better.tpr > 3 * plain.tpr
    with pytest.raises(SettingError, match="shadow"):
        likelihood_ratios(observed, shadows, np.ones((32, n), bool))


@pytest.mark.parametrize(("members", "others"), [([1.0], [1.0, 2.0]), ([1.0, np.nan], [1.0, 2.0])])
def test_what_cannot_be_compared_is_refused(members, others):
    with pytest.raises(SettingError, match="finite scores"):
        infer_membership(members, others)
