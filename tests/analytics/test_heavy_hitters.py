"""Heavy hitters: counts are a counter's, and what is called private is."""

from collections import Counter
from math import comb, exp, factorial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.analytics.asking import asked

from umbel.analytics import HeavyHitters
from umbel.analytics.heavy_hitters import votes
from umbel.errors import HandlerFailed, SettingError


def tables(*columns):
    return [{"word": np.array(column, object)} for column in columns]


@given(st.lists(st.lists(st.sampled_from(["a", "ab", "abc", "b", "", "ä", None]), max_size=8), min_size=1, max_size=4))
def test_without_epsilon_they_are_those_of_a_counter(columns):
    counter = Counter(word for column in columns for word in column if word is not None)
    for threshold in (1, 3):
        analysis = HeavyHitters("word", threshold=threshold, length=4)
        found = analysis.read(asked(analysis, tables(*columns)))
        assert found == {word: count for word, count in counter.items() if count >= threshold}
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_values_are_cut_and_numbers_are_texts():
    analysis = HeavyHitters("word", length=3)
    model = asked(analysis, [{"word": np.array([12.0, 12.0, 7.0, np.nan])}, {"word": ["12345", "1234", "7"]}])
    assert analysis.read(model) == {"12": 2, "123": 2, "7": 2}


def test_counts_below_a_holders_minimum_are_not_told():
    analysis = HeavyHitters("word")
    model = asked(analysis, tables(["flu"] * 5 + ["cold"] * 2, ["cold"] * 2 + ["flu"]), minimum=3)
    assert analysis.read(model) == {"flu": 5}


def test_private_values_are_found_where_many_have_them_and_come_without_counts():
    analysis = HeavyHitters("word", length=4, epsilon=8.0, delta=1e-4)
    theta, rate = analysis.privacy
    many = ["flu"] * int(3 * theta / rate) + ["cold"] * int(0.1 * theta / rate) + ["gout"]
    model = asked(analysis, tables(many[::2], many[1::2]))
    assert analysis.read(model) == {"flu": None}
    assert "counts" not in model
    with pytest.raises(HandlerFailed, match="minimum of 2 rows rules out votes"):
        asked(analysis, tables(["flu"]), minimum=2)


def binomial(n, p):
    return [comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]


def test_votes_that_many_are_needed_for_are_found_at_once():
    theta, rate = votes(25.0, 1e-6, 1)  # by trying one after the other it would take years
    assert theta >= exp(25.0) - 1
    assert rate == pytest.approx(1 / theta)


@pytest.mark.parametrize(
    ("epsilon", "delta", "length"), [(1.0, 1e-3, 1), (4.0, 1e-4, 2), (8.0, 1e-6, 4), (0.1, 1e-5, 1)]
)
def test_each_letter_keeps_the_promise_whatever_the_number_of_rows(epsilon, delta, length):
    """One row more, of k that have a beginning: whether it goes on is told apart by exp(epsilon / length) at most where
    it may go on at all, and by delta where it may not. Only one letter on a row's way is of the second kind.
    """
    theta, rate = votes(epsilon, delta, length)
    share = exp(epsilon / length)
    assert (theta - 2) / ((theta - 3) * factorial(theta)) <= delta
    for k in [*range(theta + 60), 200, 500, 1000]:
        (stays, goes), (stays_with, goes_with) = (
            (sum(chances[:theta]), sum(chances[theta:])) for chances in (binomial(k, rate), binomial(k + 1, rate))
        )
        assert goes_with <= share * goes * (1 + 1e-9) or goes_with <= delta
        assert stays <= share * stays_with * (1 + 1e-9)


def test_the_sample_is_the_holders_secret_unless_a_test_pins_it(monkeypatch):
    drawn = []
    monkeypatch.setattr("umbel.analytics.heavy_hitters.os.urandom", lambda n: drawn.append(n) or bytes(n))
    from umbel import analytics
    from umbel.core.arrays import Arrays
    from umbel.core.client import Context
    from umbel.core.randomness import Key

    config = {"column": "word", "rate": 0.5, "length": 3}
    ctx = Context(
        client=0, round=1, kind="query:letters", config=config, key=Key.from_seed(1), state={},
        inbox=Arrays({"prefixes": np.zeros((1, 0), np.uint8)}),
    )  # fmt: skip
    for pinned, times in ((True, 0), (False, 1)):
        analytics.handler("letters", pinned=pinned)(None, {"word": ["a"] * 9}, ctx)
        assert len(drawn) == times


@pytest.mark.parametrize("wrong", [{"epsilon": 0}, {"epsilon": 1.0, "delta": 2.0}, {"threshold": 0}, {"length": 0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(SettingError):
        HeavyHitters("word", **wrong)
