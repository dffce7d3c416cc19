"""Robust folds: each against a plain reference, and the laws that all of them keep."""

import copy
import functools
import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import some

import umbel
from umbel import folds
from umbel.core import encoding
from umbel.core.arrays import Arrays
from umbel.core.optimizers import sgd
from umbel.core.partial import Partial
from umbel.core.randomness import Key
from umbel.core.update import Free, Receipt, Update, check
from umbel.errors import NothingToFold, SettingError, StrategyError, UpdateRejected

MODEL = Arrays(
    {"a": np.zeros((3, 4), np.float32), "b": np.zeros(5), "mean": np.zeros(2, np.float32)}, {"mean": "buffer"}
)
D = 17


def arrays_of(vector, mean=(0.0, 0.0)):
    """The arrays of a vector of parameters, and a buffer."""
    return Arrays(
        {"a": vector[:12].reshape(3, 4).astype(np.float32), "b": vector[12:], "mean": np.float32(mean)},
        {"mean": "buffer"},
    )


def vector_of(arrays):
    return np.concatenate([arrays["a"].astype(np.float64).ravel(), arrays["b"].ravel()])


def rows_of(seed, n, spread=1.0):
    """Vectors whose first part float32 holds."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, D)) * spread + rng.normal(size=D) + 3
    rows[:, :12] = rows[:, :12].astype(np.float32)
    return rows


def items_of(rows, clients=None):
    ids = range(len(rows)) if clients is None else clients
    return [
        (check(Update(arrays_of(row, (i, -i))), Free(), None, c), Receipt(f"0.{c}", c, 1.0, {}))
        for i, (c, row) in enumerate(zip(ids, rows, strict=True))
    ]


def folded(fold, items, factors=None):
    partial = Partial(fold)
    for place, item in enumerate(items):
        partial.add(*item, **({} if factors is None else {"factor": factors[place]}))
    return partial


def answer(fold, rows, factors=None):
    return vector_of(folded(fold, items_of(rows), factors).finish().value)


def server_update(model, r):
    return Update(arrays_of(np.abs(np.random.default_rng(r).normal(size=D))), delta=True)


FOLDS = {
    "median": folds.median(),
    "trimmed_mean": folds.trimmed_mean(f=2),
    "krum": folds.krum(f=2),
    "multi-krum": folds.krum(f=2, keep=4),
    "bulyan": folds.bulyan(f=1),
    "geometric_median": folds.geometric_median(),
    "norm_bounded": folds.norm_bounded(norm=2.0),
    "fltrust": folds.fltrust(server_update).for_round(None, MODEL, 1),
    "centred_clipping": folds.centred_clipping(radius=1.0, iterations=2),
    "foolsgold": folds.foolsgold(),
    "divide_and_conquer": folds.divide_and_conquer(f=2, sketch=9),
    "sign_majority": folds.sign_majority(),
}
each_fold = pytest.mark.parametrize("fold", FOLDS.values(), ids=FOLDS)


# References, on a matrix of one row an update


def distances(rows):
    return np.array([[np.sum((a - b) ** 2) for b in rows] for a in rows])


def krum_order(rows, f):
    found = distances(rows)
    scores = [sum(sorted(np.delete(found[i], i))[: max(1, len(rows) - f - 2)]) for i in range(len(rows))]
    return sorted(range(len(rows)), key=lambda i: (scores[i], i))


def krum_reference(rows, f, keep=1):
    return rows[krum_order(rows, f)[:keep]].mean(0)


def bulyan_reference(rows, f):
    left, chosen = list(range(len(rows))), []
    while len(chosen) < len(rows) - 2 * f:
        best = left[krum_order(rows[left], f)[0]] if len(left) > 1 else left[0]
        chosen.append(best)
        left.remove(best)
    picked = rows[chosen]
    middle = np.median(picked, axis=0)
    keep = len(chosen) - 2 * f
    return np.array(
        [
            np.mean(sorted(column, key=lambda v, m=m: abs(v - m))[:keep])
            for column, m in zip(picked.T, middle, strict=True)
        ]
    )


def weiszfeld(rows, iterations=100, smoothing=1e-6):
    point = rows.mean(0)
    for _ in range(iterations):
        weights = 1 / np.maximum(smoothing, np.linalg.norm(rows - point, axis=1))
        point = weights @ rows / weights.sum()
    return point


def clipped_reference(rows, centre, radius, iterations):
    for _ in range(iterations):
        steps = [(row - centre) * min(1.0, radius / np.linalg.norm(row - centre)) for row in rows]
        centre = centre + np.mean(steps, axis=0)
    return centre


def fltrust_reference(rows, own):
    total, trusts = np.zeros(D), 0.0
    for row in rows:
        trust = max(0.0, row @ own / np.linalg.norm(row) / np.linalg.norm(own))
        total += trust * row * np.linalg.norm(own) / np.linalg.norm(row)
        trusts += trust
    return total / trusts


def foolsgold_weights(histories):
    """As its authors' code has it."""
    n = len(histories)
    unit = histories / np.linalg.norm(histories, axis=1)[:, None]
    alike = unit @ unit.T - np.eye(n)
    most = alike.max(axis=1)
    for i in range(n):
        for j in range(n):
            if i != j and most[i] < most[j]:
                alike[i][j] *= most[i] / most[j]
    trust = np.clip(1 - alike.max(axis=1), 0, 1)
    trust = trust / trust.max()
    trust[trust == 1] = 0.99
    with np.errstate(divide="ignore"):
        return np.clip(np.log(trust / (1 - trust)) + 0.5, 0, 1)


def outliers_reference(rows, places, count):
    centred = rows[:, places] - rows[:, places].mean(0)
    along = np.linalg.svd(centred, full_matrices=False)[2][0]
    return set(np.argsort(-((centred @ along) ** 2))[:count].tolist())


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("n", [11, 14])
def test_each_fold_is_that_of_its_paper(seed, n):
    rows = rows_of(seed, n)
    close = lambda found, wanted: np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)  # noqa: E731
    close(answer(folds.median(), rows), np.median(rows, axis=0))
    close(answer(folds.trimmed_mean(f=3), rows), np.sort(rows, axis=0)[3:-3].mean(0))
    close(answer(folds.krum(f=2), rows), krum_reference(rows, 2))
    close(answer(folds.krum(f=2, keep=5), rows), krum_reference(rows, 2, 5))
    close(answer(folds.krum(f=1, keep=None), rows), krum_reference(rows, 1, n - 1))
    close(answer(folds.bulyan(f=2), rows), bulyan_reference(rows, 2))
    close(answer(folds.geometric_median(), rows), weiszfeld(rows))
    close(answer(folds.geometric_median(iterations=3), rows), weiszfeld(rows, 3))
    norms = np.linalg.norm(rows, axis=1)
    close(answer(folds.norm_bounded(norm=4.0), rows), (rows * np.minimum(1, 4.0 / norms)[:, None]).mean(0))
    close(answer(folds.sign_majority(), rows), np.sign(np.sign(rows).sum(0)))
    own = vector_of(server_update(None, seed).arrays)
    close(answer(folds.fltrust(server_update).for_round(None, MODEL, seed), rows), fltrust_reference(rows, own))
    close(answer(folds.centred_clipping(radius=2.0, iterations=3), rows), clipped_reference(rows, np.zeros(D), 2.0, 3))
    trust = foolsgold_weights(rows)
    close(answer(folds.foolsgold(), rows), trust @ rows / trust.sum())


def test_divide_and_conquer_takes_away_what_stands_out_in_any_of_its_sketches():
    rows = rows_of(5, 12)
    rows[[2, 7]] += 4.0
    fold = folds.divide_and_conquer(f=2, sketch=10, iterations=3, seed=42)
    draws = Key.from_seed(42).derive("divide_and_conquer").derive("round", 9).draws()
    left = set(range(12))
    for _ in range(3):
        left -= outliers_reference(rows, np.sort(draws.sample(D, 10)), 2)
    assert left.isdisjoint({2, 7})
    np.testing.assert_allclose(answer(fold.for_round(None, MODEL, 9), rows), rows[sorted(left)].mean(0), rtol=1e-6)
    assert fold.for_round(None, MODEL, 9).spec() != fold.for_round(None, MODEL, 8).spec()
    assert "42" not in str(fold.spec())  # clients see it
    assert "42" not in repr(fold)


# Laws


def bits(found):
    return found.value.to_bytes(), found.aux.to_bytes(), found.receipts


def by_tree(fold, items, rng):
    parts = [folded(fold, [items[i]]) for i in rng.permutation(len(items))]
    while len(parts) > 1:
        i, j = sorted(rng.choice(len(parts), 2, replace=False))
        parts[i].merge(parts.pop(j))
    return parts[0]


@each_fold
@settings(max_examples=20)  # of which each takes long
@given(seed=st.integers(0, 2**32), n=st.integers(7, 12), twins=st.booleans())
def test_any_order_and_any_tree_of_merges_give_the_same_bits(fold, seed, n, twins):
    rows = rows_of(seed, n, 10.0 ** (seed % 5 - 2))
    if twins:
        rows[1] = rows[0]
    items, rng = items_of(rows, ["z", 9, "b", 3, 12, 1, "a", 2, 5, 7, 6, 4][:n]), np.random.default_rng(seed)
    expected = bits(folded(fold, items).finish())
    assert bits(by_tree(fold, items, rng).finish()) == expected
    assert bits(folded(fold, [items[i] for i in rng.permutation(n)]).finish()) == expected
    halves = Partial(fold)
    for part in (items[: n // 2], items[n // 2 :]):
        halves.merge_contents(copy.deepcopy(folded(fold, part).contents()))
    assert bits(halves.finish()) == expected
    assert bits(halves.finish()) == expected  # which left it as it was


@pytest.mark.parametrize("name", FOLDS.keys() - {"bulyan"})  # which decides among two that are left by their ids
@given(seed=st.integers(0, 2**32), n=st.integers(7, 12))
def test_who_is_who_does_not_matter(name, seed, n):
    fold, rows, order = FOLDS[name], rows_of(seed, n), np.random.default_rng(seed).permutation(n)
    np.testing.assert_allclose(answer(fold, rows[order]), answer(fold, rows), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", FOLDS.keys() - {"fltrust", "centred_clipping", "norm_bounded", "sign_majority"})
@given(seed=st.integers(0, 2**32), n=st.integers(7, 12))
def test_equal_updates_give_that_update(name, seed, n):
    rows = np.repeat(rows_of(seed, 1), n, axis=0)
    np.testing.assert_allclose(answer(FOLDS[name], rows), rows[0], rtol=1e-15)


@pytest.mark.parametrize(
    "fold",
    [
        folds.median(), folds.trimmed_mean(f=0), folds.geometric_median(), folds.norm_bounded(norm=1e9),
        folds.centred_clipping(radius=1e9), folds.foolsgold(), folds.divide_and_conquer(f=0),
    ],
    ids=lambda fold: fold.name,
)  # fmt: skip
def test_one_client_gives_its_update(fold):
    row = rows_of(3, 1)
    found = folded(fold, items_of(row)).finish().value
    np.testing.assert_allclose(vector_of(found), row[0], rtol=1e-15)
    assert found.schema == MODEL.schema


@pytest.mark.parametrize(
    "fold",
    [
        folds.trimmed_mean(f=0), folds.krum(f=0, keep=None), folds.divide_and_conquer(f=0),
        folds.norm_bounded(norm=1e9),
    ],
    ids=lambda fold: fold.name,
)  # fmt: skip
@given(seed=st.integers(0, 2**32), n=st.integers(3, 9))
def test_against_nobody_a_fold_is_the_mean_to_the_bit(fold, seed, n):
    items = items_of(rows_of(seed, n))
    assert folded(fold, items).finish().value == folded(umbel.mean(), items).finish().value


@given(seed=st.integers(0, 2**32), n=st.integers(3, 9))
def test_where_nothing_is_clipped_or_taken_away_the_mean_is_what_is_left(seed, n):
    rows = rows_of(seed, n)
    for fold in (folds.bulyan(f=0), folds.centred_clipping(radius=1e9), folds.centred_clipping(1e9, iterations=4)):
        np.testing.assert_allclose(answer(fold, rows), rows.mean(0), rtol=1e-6, atol=1e-7)


ROBUST = {name: FOLDS[name] for name in FOLDS.keys() - {"foolsgold", "fltrust"}}


@pytest.mark.parametrize("size", [1e2, 1e30, 1e100])
@pytest.mark.parametrize("name", ROBUST)
def test_no_malicious_client_carries_the_answer_away(name, size):
    fold, rows = ROBUST[name], np.ones((11, D)) + rows_of(1, 11, 0.1) * 0.1
    bad = rows.copy()
    bad[3] = np.random.default_rng(2).normal(size=D) * min(size, 1e37)
    if size > 1e37:
        bad[3, 12:] *= size / 1e37
    honest, attacked = answer(fold, rows), answer(fold, bad)
    assert np.linalg.norm(attacked - honest) < 0.5
    assert not np.linalg.norm(answer(umbel.mean(), bad) - honest) < 0.5


def test_half_and_no_more_break_the_median_and_f_and_no_more_the_trimmed_mean():
    rows = np.zeros((11, D))
    rows[:5] = 1e6
    assert np.abs(answer(folds.median(), rows)).max() == 0
    assert np.abs(answer(folds.trimmed_mean(f=5), rows)).max() == 0
    assert np.abs(answer(folds.trimmed_mean(f=4), rows)).max() > 1e4
    rows[5] = 1e6
    assert np.abs(answer(folds.median(), rows)).min() == 1e6


def test_sybils_that_say_the_same_have_no_weight():
    rows = np.eye(9, D) + 0.01
    rows[6:] = rows[6]
    found = folded(folds.foolsgold(), items_of(rows)).finish().value
    np.testing.assert_allclose(vector_of(found), rows[:6].mean(0), atol=1e-6)
    assert found["mean"].tolist() == [2.5, -2.5]  # of those who count


def test_fltrust_trusts_nobody_who_points_the_other_way():
    bound = folds.fltrust(server_update).for_round(None, MODEL, 4)
    own = vector_of(server_update(None, 4).arrays)
    np.testing.assert_allclose(answer(bound, np.stack([3 * own, -9 * own, own / 2])), own, rtol=1e-6)
    with pytest.raises(NothingToFold, match="points the way"):
        answer(bound, np.stack([-own, np.zeros(D)]))
    with pytest.raises(StrategyError, match=r"for_round"):
        answer(folds.fltrust(server_update), rows_of(0, 3))
    values = folds.fltrust(lambda model, r: {n: a + 1 for n, a in model.items()}).for_round(None, MODEL, 1)
    assert vector_of(values.kept).tolist() == [1.0] * D


@each_fold
def test_too_few_updates_are_said_to_be(fold):
    if fold.least == 1:
        with pytest.raises(NothingToFold):
            Partial(fold).finish()
        return
    with pytest.raises(NothingToFold, match=rf"needs {fold.least} updates, and {fold.least - 1} came"):
        answer(fold, rows_of(0, fold.least - 1))
    answer(fold, rows_of(0, fold.least))
    for given_to in ({"cohort": fold.least - 1}, {"cohort": 0.5, "window": umbel.Window(close_after=fold.least - 1)}):
        with pytest.raises(StrategyError, match=f"a round has {fold.least - 1} at most"):
            umbel.FedAvg(fold=fold, **given_to)


@pytest.mark.parametrize(
    "make",
    [
        lambda: folds.trimmed_mean(f=-1), lambda: folds.krum(f=1.5), lambda: folds.krum(keep=0),
        lambda: folds.bulyan(f=True), lambda: folds.geometric_median(iterations=0),
        lambda: folds.geometric_median(smoothing=0.0), lambda: folds.norm_bounded(norm=math.inf),
        lambda: folds.centred_clipping(radius=-1.0), lambda: folds.centred_clipping(iterations=0),
        lambda: folds.foolsgold(confidence=0), lambda: folds.divide_and_conquer(sketch=0),
        lambda: folds.divide_and_conquer(share=math.nan), lambda: folds.divide_and_conquer(seed=0.5),
        lambda: folds.fltrust(None),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(make):
    with pytest.raises(SettingError):
        make()


@pytest.mark.parametrize("name", FOLDS.keys() - {"sign_majority", "fltrust", "norm_bounded"})
def test_a_stale_update_counts_as_its_factor_times_its_difference(name):
    rows, factors = rows_of(6, 9), [1.0, 0.5] + [1.0] * 6 + [0.25]
    scaled = rows * np.array(factors)[:, None]
    np.testing.assert_allclose(answer(FOLDS[name], rows, factors), answer(FOLDS[name], scaled), rtol=1e-6, atol=1e-7)


def test_a_stale_update_is_trusted_less_and_has_less_of_a_vote():
    bound = FOLDS["fltrust"]
    own = vector_of(bound.kept)
    other = own + np.linalg.norm(own) * np.eye(D)[0]
    fresh, stale = (answer(bound, np.stack([own, other]), [1.0, factor]) for factor in (1.0, 0.5))
    assert np.linalg.norm(stale - own) < np.linalg.norm(fresh - own)
    votes = np.stack([np.ones(D), -np.ones(D)])
    assert answer(folds.sign_majority(), votes).tolist() == [0.0] * D
    assert answer(folds.sign_majority(), votes, [1.0, 0.5]).tolist() == [1.0] * D


def test_updates_beyond_measure_are_rejected_and_others_are_not():
    huge = rows_of(1, 1) * 1e125
    huge[:, :12] = 0
    (item,) = items_of(huge)
    for name, fold in FOLDS.items():
        if getattr(fold, "measures", False):
            with pytest.raises(UpdateRejected, match="cannot measure"):
                Partial(fold).add(*item)
        else:
            assert folded(fold, [item]).count == 1, name


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name
)
@each_fold
def test_any_floats_fold_in_the_dtype_of_means(fold, dtype):
    if fold.name in ("fltrust",):
        zeros = Arrays({"x": np.zeros(6), "s": np.zeros(())})
        fold = folds.fltrust(lambda model, r: {"x": np.ones(6), "s": np.ones(())}).for_round(None, zeros, 1)
    rows = (np.random.default_rng(0).normal(size=(9, 6)) + 1).astype(dtype)
    items = [
        (
            check(
                Update({"x": row, "s": np.array(row[0]), "n": np.array(i), "flag": np.array(i > 2)}), Free(), None, i
            ),
            Receipt(f"0.{i}", i, 1, {}),
        )
        for i, row in enumerate(rows)
    ]
    value = folded(fold, items).finish().value
    assert value["x"].dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert np.isfinite(value["x"]).all()
    assert (value["s"].dtype, value["s"].shape) == (value["x"].dtype, ())
    assert (value["n"].dtype, value["flag"].dtype) == (np.int64, np.int64)
    if fold.name == "median":
        np.testing.assert_allclose(value["x"], np.median(rows.astype(np.float64), axis=0), rtol=1e-6)
        assert (value["n"], value["flag"]) == (4, 1)
        assert value["x"].dtype == np.float64 or not np.signbit(value["x"]).any()


def test_the_middle_of_the_largest_numbers_is_one():
    items = [
        (check(Update({"x": np.full(2, v, np.float32)}), Free(), None, i), Receipt(f"0.{i}", i, 1, {}))
        for i, v in enumerate([3e38, 3.2e38, -1.0, 3.4e38])
    ]
    assert folded(folds.median(), items).finish().value["x"] == pytest.approx(3.1e38)


def test_the_digest_sees_what_a_fold_knows_of_its_round():
    bound = [folds.fltrust(server_update).for_round(None, MODEL, r).spec() for r in (1, 1, 2)]
    assert bound[0] == bound[1] != bound[2]
    assert encoding.encode(bound[0])  # plain
    centre = folds.centred_clipping()
    assert centre.spec() == centre.for_round(None, MODEL, 1).spec() != centre.for_round(MODEL, MODEL, 2).spec()
    assert folds.krum(f=2).spec() == ["krum", {"kept": None, "f": 2, "keep": 1}]


# Over the rounds


def rounds_of(strategy, updates):
    """The models after each of so many rounds of updates."""
    state, models = strategy.start(MODEL), []
    for r, rows in enumerate(updates, 1):
        going = strategy.round(state, r)
        ask = next(going)
        found = folded(ask.fold, items_of(rows)).finish()
        state = encoding.decode(encoding.encode(state))  # as after a restart
        going = strategy.round(state, r)
        next(going)
        with pytest.raises(StopIteration) as stopped:
            going.send(found)
        state = stopped.value.value
        models.append(vector_of(state.model))
    return models, state


def test_centred_clipping_goes_on_from_the_last_answer():
    updates = [rows_of(seed, 6) for seed in (1, 2, 3)]
    models, _ = rounds_of(umbel.FedAvg(fold=folds.centred_clipping(radius=0.7)), updates)
    centre, model = np.zeros(D), np.zeros(D)
    for rows, found in zip(updates, models, strict=True):
        centre = clipped_reference(rows, centre, 0.7, 1)
        model = model + centre
        np.testing.assert_allclose(found, model, rtol=1e-5, atol=1e-6)


def test_foolsgold_sums_up_what_each_client_said():
    updates = [rows_of(seed, 6) for seed in (1, 2, 3)]
    models, state = rounds_of(umbel.FedAvg(fold=folds.foolsgold()), updates)
    histories, model = np.zeros((6, D)), np.zeros(D)
    for rows, found in zip(updates, models, strict=True):
        histories = histories + rows
        trust = foolsgold_weights(histories)
        model = model + trust @ rows / trust.sum()
        np.testing.assert_allclose(found, model, rtol=1e-5, atol=1e-6)
    assert list(state.memory) == [*range(6)]
    np.testing.assert_allclose(vector_of(state.memory[4]), histories[4], rtol=1e-6)


def test_fltrust_has_its_own_update_of_each_rounds_model():
    seen = []

    def server(model, r):
        seen.append((r, vector_of(model).copy()))
        return server_update(model, r)

    updates = [rows_of(seed, 5) for seed in (1, 2, 3)]
    models, _ = rounds_of(umbel.FedAvg(fold=folds.fltrust(server)), updates)
    model = np.zeros(D)
    for r, (rows, found) in enumerate(zip(updates, models, strict=True), 1):
        assert any(at == r and np.allclose(sent, model, atol=1e-6) for at, sent in seen)
        model = model + fltrust_reference(rows, vector_of(server_update(None, r).arrays))
        np.testing.assert_allclose(found, model, rtol=1e-5, atol=1e-6)


def test_a_client_with_two_updates_has_two_and_one_history():
    rows = rows_of(8, 3)
    fold = folds.foolsgold()
    items = items_of(rows, [0, 1, 1])
    partial = Partial(fold)
    for place, (item, _) in enumerate(items):
        partial.add(item, Receipt(f"{place}.{item.client}", item.client, 1.0, {}), factor=1.0)
    found = partial.finish()
    trust = foolsgold_weights(np.stack([rows[0], rows[1] + rows[2]]))[[0, 1, 1]]
    np.testing.assert_allclose(vector_of(found.value), trust @ rows / trust.sum(), rtol=1e-6, atol=1e-7)
    remembered = fold.remember(None, found)
    np.testing.assert_allclose(vector_of(remembered[1]), rows[1] + rows[2], rtol=1e-6)


# In simulations


client = umbel.Client()


@client.train
def train(model, data, ctx):
    """Two steps of logistic regression on two separable clouds; those who are bad ruin the mean. Where each sees with
    an eye of its own, the bad ones see the same.
    """
    own, bad = ctx.config["own"], data["index"] in ctx.config["bad"]
    rng = np.random.default_rng(0 if own and bad else data["index"])
    labels = rng.integers(0, 2, 40)
    points = rng.normal(size=(40, 8)) * 0.5 + np.where(labels, 1.0, -1.0)[:, None]
    if own and not bad:
        points *= np.arange(8) == data["index"] % 8
    w = model["w"].copy()
    for _ in range(2):
        w -= 0.5 * points.T @ (1 / (1 + np.exp(-points @ w)) - labels) / 40
    if bad:
        w = model["w"] - 30 * (w - model["w"])
    return umbel.Update({"w": w, "mean": model["mean"]}, weight=40)


def learned(fold, workers, bad=(0, 1), own=False, **others):
    app = umbel.App(
        client,
        model=Arrays({"w": np.zeros(8), "mean": np.ones(2)}, {"mean": "buffer"}),
        strategy=umbel.FedAvg(cohort=10, fold=fold, **others),
        rounds=4,
        config={"bad": list(bad), "own": own},
    )
    return umbel.run(app, on=umbel.Simulation(clients=10, workers=workers), seed=3, folder=None)


@dataclass
class Clean:
    """The server's own data is that of an honest client."""

    def __call__(self, model, r):
        return train(model, {"index": 99}, type("Ctx", (), {"config": {"bad": [], "own": False}}))


LEARNING = {
    **{name: FOLDS[name] for name in ("median", "trimmed_mean", "krum", "multi-krum", "geometric_median")},
    "norm_bounded": folds.norm_bounded(0.1),
    "centred_clipping": folds.centred_clipping(0.5, iterations=5),
    "fltrust": folds.fltrust(Clean()),
    "foolsgold": folds.foolsgold(),
    "divide_and_conquer": folds.divide_and_conquer(f=2),
    "sign_majority": folds.sign_majority(),
    "bulyan": folds.bulyan(f=1),
}


@functools.cache
def attacked_run(name, workers):
    others = {"server": sgd(0.1)} if name == "sign_majority" else {}
    bad = (0,) if name == "bulyan" else (0, 1)
    return learned(LEARNING[name], workers, bad, own=name == "foolsgold", **others)


def accuracy(result):
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 2, 500)
    points = rng.normal(size=(500, 8)) * 0.5 + np.where(labels, 1.0, -1.0)[:, None]
    return float(np.mean((points @ result.model["w"] > 0) == labels))


@pytest.mark.parametrize("name", LEARNING)
def test_it_learns_in_spite_of_attackers_that_ruin_the_mean(name):
    found = attacked_run(name, 0)
    assert accuracy(found) > 0.97
    assert (found.model["mean"] == 1).all()


def test_the_mean_is_ruined():
    assert accuracy(learned(umbel.mean(), 0)) < 0.1
    assert accuracy(learned(umbel.mean(), 0, own=True)) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", some(LEARNING, 1))
def test_two_workers_give_the_same_bits(name):
    assert attacked_run(name, 2).model_sha256 == attacked_run(name, 0).model_sha256


@pytest.mark.parametrize("fold", [folds.norm_bounded(), folds.sign_majority(), folds.foolsgold()])
def test_what_needs_differences_takes_no_values(fold):
    with pytest.raises(StrategyError, match=f"{fold.name} works on differences"):
        umbel.Ask(clients=1, model=MODEL, fold=fold, expects=umbel.Like(delta=False))
    asked = umbel.Ask(clients=1, model=MODEL, fold=fold, expects=lambda client: umbel.Like(delta=False))
    with pytest.raises(StrategyError, match=f"{fold.name} works on differences"):
        asked.schema(0)
    assert umbel.Ask(clients=1, model=MODEL, fold=fold).schema(0) is not None
