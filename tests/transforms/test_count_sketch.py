"""Sketches: against tables filled entry by entry, and FetchSGD as its paper has it, in the space of sketches."""

import numpy as np
import pytest

from umbel.core.answer import Answer
from umbel.core.arrays import Arrays
from umbel.core.elementwise import mean
from umbel.core.randomness import Key
from umbel.core.transform import chain
from umbel.core.update import Like, Update
from umbel.errors import SettingError, StrategyError
from umbel.folds import collect
from umbel.transforms import count_sketch

KEY = Key.from_seed(19)
STEP = count_sketch(0.3, fraction=0.05, rows=3, momentum=0.5, seed=4)
SIZE = 200
COLUMNS = round(0.3 * SIZE / 3)


def hashes(step, name, size, columns):
    words = Key.from_seed(step.seed).derive("count_sketch", name).draws().words(4 * step.rows).tolist()
    for row in range(step.rows):
        a, b, c, d = words[4 * row : 4 * row + 4]
        at = [((a * i + b) % 2**64 >> 32) * columns >> 32 for i in range(size)]
        yield at, [-1 if (c * i + d) % 2**64 >> 63 else 1 for i in range(size)]


def sketch(values):
    table = np.zeros((3, COLUMNS))
    for row, (at, sign) in enumerate(hashes(STEP, "w", SIZE, COLUMNS)):
        for i, value in enumerate(values):
            table[row, at[i]] += sign[i] * value
    return table


def estimate(table):
    rows = [
        [sign[i] * table[row, at[i]] for i in range(SIZE)]
        for row, (at, sign) in enumerate(hashes(STEP, "w", SIZE, COLUMNS))
    ]
    return np.mean(rows, 0)


def through(step, values):
    whole, item = chain(step), Update(Arrays({"w": values}), delta=True)
    sent, _ = whole.encode(item, (None,), None, KEY)
    return sent.arrays, whole.decode(sent, (None,), item.arrays.schema).arrays["w"]


def test_a_table_adds_signed_entries_and_an_estimate_is_the_mean_over_rows():
    values = np.random.default_rng(0).normal(size=SIZE)
    sent, got = through(STEP, values)
    np.testing.assert_allclose(sent["w:table"].reshape(3, -1), sketch(values), atol=1e-12)
    np.testing.assert_allclose(got, estimate(sketch(values)), atol=1e-12)


def test_three_rounds_are_fetch_sgd():
    whole = chain(STEP)
    state = whole.init(None)
    speed, left = np.zeros((3, COLUMNS)), np.zeros((3, COLUMNS))
    for turn in range(3):
        rng = np.random.default_rng(turn)
        values = [rng.normal(size=SIZE) for _ in range(4)]
        folded = np.mean([through(STEP, each)[1] for each in values], 0)
        answer, state = whole.finish(Answer(Arrays({"w": folded, "n": np.array(3)})), state, KEY)
        # the reference, in sketches alone
        speed = 0.5 * speed + np.mean([sketch(each) for each in values], 0)
        left = left + speed
        said = estimate(left)
        chosen = np.argsort(-np.abs(said), kind="stable")[:10]
        hitters = np.zeros(SIZE)
        hitters[chosen] = said[chosen]
        left = left - sketch(hitters)
        np.testing.assert_allclose(answer.value["w"], hitters, atol=1e-6)
        assert answer.value["n"] == 3


def test_heavy_hitters_are_recovered():
    rng = np.random.default_rng(1)
    values = rng.normal(size=20_000) * 0.01
    heavy = rng.permutation(20_000)[:20]
    values[heavy] = rng.choice([-1, 1], 20) * rng.uniform(3, 5, 20)
    step = count_sketch(0.1, fraction=0.001, rows=5)
    sent, got = through(step, values)
    assert sent.nbytes == 8 * 2000
    answer, _ = step.finish(Answer(Arrays({"w": got})), step.init(None), KEY)
    assert set(np.flatnonzero(answer.value["w"])) == set(heavy)
    np.testing.assert_allclose(answer.value["w"][heavy], values[heavy], atol=1.5)


def test_the_estimate_has_the_mean_and_the_variance_that_is_said():
    values, seeds = np.random.default_rng(2).normal(size=100), 500
    got = np.array([through(count_sketch(0.5, rows=5, seed=seed), values)[1] for seed in range(seeds)])
    most = np.square(values).sum() / 50
    assert np.abs(got.mean(0) - values).max() < 5 * np.sqrt(most / seeds)
    assert got.var(0).mean() < 1.1 * most


def test_folding_and_sketching_can_be_exchanged():
    one, other = (np.random.default_rng(seed).normal(size=SIZE) for seed in (3, 4))
    np.testing.assert_allclose(
        through(STEP, one)[1] + through(STEP, other)[1], through(STEP, one + other)[1], atol=1e-12
    )


def test_a_fold_of_single_updates_is_refused():
    STEP.check(mean(), Like())
    with pytest.raises(StrategyError, match="single sketches are mostly noise"):
        STEP.check(collect(), Like())


@pytest.mark.parametrize("settings", [{"size": 0}, {"rows": 0}, {"momentum": 1.0}, {"fraction": 2}, {"seed": -1}])
def test_settings_are_checked_when_it_is_made(settings):
    with pytest.raises(SettingError, match="takes"):
        count_sketch(**settings)
