"""Folds: the laws of a mergeable accumulator, and what each fold makes of its updates."""

import contextlib
import copy
import functools
import itertools
import math
import sys
from dataclasses import dataclass
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import some

from umbel import files
from umbel.core import arrays as arrays_module
from umbel.core import elementwise, encoding
from umbel.core.answer import Answer, Receipts, mean_metrics
from umbel.core.arrays import Arrays
from umbel.core.elementwise import mean, weighted_mean
from umbel.core.fold import Fold
from umbel.core.partial import Partial
from umbel.core.update import NO_ARRAYS, Contribution, Free, Like, Receipt, Stack, Update, check
from umbel.errors import NothingToFold, StrategyError, UpdateRejected
from umbel.folds.catalogue import fold_from_spec
from umbel.folds.collect import collect
from umbel.folds.norm_bounded import norm_bounded
from umbel.folds.sign_majority import sign_majority
from umbel.folds.total import total

DTYPES = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16, np.int32, np.uint8, np.bool_)
FOLDS: list[Fold] = [weighted_mean(), mean(), total(), collect(), weighted_mean(max_weight=3.0)]


def contribution(client, arrays, weight=1.0, aux=None):
    return check(Update(arrays, weight, aux=aux or {}), Free(aux=Free()), None, client)


def receipt(client, weight=1.0, **metrics):
    return Receipt(f"0.{client}", client, weight, metrics)


def bits(value):
    if isinstance(value, Answer):
        return bits(value.value), bits(value.aux), value.metrics, value.weight, value.receipts
    if isinstance(value, Arrays):
        return value.to_bytes()
    return {client: (bits(u.arrays), u.weight, bits(u.aux)) for client, u in value.items()}


@st.composite
def updates(draw, least=1, most=20):
    count = draw(st.integers(least, most))
    seed = draw(st.integers(0, 2**32))
    exponent = draw(st.sampled_from([-25, -3, 0, 4]))
    rng = np.random.default_rng(seed)
    items = []
    for client in range(count):
        values = rng.normal(size=5) * 10.0 ** (exponent + rng.integers(-3, 3))
        arrays = {np.dtype(d).name: np.clip(values, -9e3, 9e3).astype(d) for d in DTYPES[:4]}
        arrays |= {np.dtype(d).name: rng.integers(0, 2, 4).astype(d) for d in DTYPES[4:]}
        weight = float(rng.choice([0.0, 1.0, 2.5, 1e6])) if client else 1.0
        items.append(
            (contribution(client, arrays, weight, {"c": values}), receipt(client, weight, loss=float(values[0])))
        )
    return items


def folded(fold, items):
    partial = Partial(fold)
    for item, facts in items:
        partial.add(item, facts)
    return partial


def by_tree(fold, items, rng):
    """Fold by a random tree of merges, in random order."""
    parts = [folded(fold, [items[i]]) for i in rng.permutation(len(items))]
    while len(parts) > 1:
        i, j = sorted(rng.choice(len(parts), 2, replace=False))
        parts[i].merge(parts.pop(j))
    return parts[0]


@pytest.mark.parametrize("fold", FOLDS, ids=repr)
@given(items=updates(), seed=st.integers(0, 2**32))
def test_any_order_and_any_tree_of_merges_give_the_same_bits(fold, items, seed):
    expected = bits(folded(fold, items).finish())
    rng = np.random.default_rng(seed)
    assert bits(by_tree(fold, items, rng).finish()) == expected
    assert bits(folded(fold, [items[i] for i in rng.permutation(len(items))]).finish()) == expected


@pytest.mark.parametrize("fold", FOLDS, ids=repr)
@given(items=updates(least=3, most=6))
def test_merge_is_associative_and_commutative_and_add_is_merge_of_one(fold, items):
    def parts():
        return [folded(fold, [items[0]]), folded(fold, items[1:-1]), folded(fold, [items[-1]])]

    a, b, c = parts()
    a.merge(b)
    a.merge(c)
    d, e, f = parts()
    e.merge(f)
    d.merge(e)
    assert bits(a.finish()) == bits(d.finish())
    g, h, i = parts()
    i.merge(h)
    i.merge(g)
    assert bits(i.finish()) == bits(a.finish())
    added = folded(fold, items[:-1])
    added.add(*items[-1])
    assert bits(added.finish()) == bits(a.finish())


@pytest.mark.parametrize("fold", [weighted_mean(), mean()], ids=repr)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_the_mean_of_one_update_is_that_update(fold, dtype):
    values = np.array([1, 0, 1]).astype(dtype)
    answer = folded(fold, [(contribution(7, {"x": values}, 3.0), receipt(7, 3.0))]).finish()
    assert (answer.value["x"].astype(np.float64) == values.astype(np.float64)).all()
    wide = {"float16": "float32", "bfloat16": "float32", "bool": "int64"}
    assert answer.value["x"].dtype == wide.get(np.dtype(dtype).name, np.dtype(dtype).name)
    assert answer.clients == (7,)


@given(seed=st.integers(0, 2**32), count=st.sampled_from([1, 2, 15, 16, 17, 33]))
def test_the_weighted_mean_is_that_of_exact_arithmetic(seed, count):
    rng = np.random.default_rng(seed)
    values, weights = rng.normal(size=(count, 3)).astype(np.float32), rng.integers(1, 1000, count).astype(float)
    items = [
        (contribution(i, {"x": v}, w), receipt(i, w)) for i, (v, w) in enumerate(zip(values, weights, strict=True))
    ]
    found = folded(weighted_mean(), items).finish().value["x"]
    for column in range(3):
        products = (Fraction(float(v)) * Fraction(w) for v, w in zip(values[:, column], weights, strict=True))
        exact = sum(products) / Fraction(weights.sum())
        largest = np.abs(values * weights[:, None]).max()
        bound = count * largest * 2.0**-38 / weights.sum() + abs(float(exact)) * 2.0**-23
        assert abs(float(found[column]) - float(exact)) <= bound


def test_integers_are_totalled_exactly_and_unsigned_ones_wrap():
    big = 2**53 + 1
    items = [(contribution(i, {"s": np.array([big]), "u": np.array([200], np.uint8)}), receipt(i)) for i in range(3)]
    value = folded(total(), items).finish().value
    assert value["s"][0] == 3 * big
    assert value["u"][0] == 600 % 256
    large = folded(total(), [(contribution(i, {"s": np.array([2**62])}), receipt(i)) for i in range(3)])
    assert large.agree().keys() == {0, 1, 2}  # none of them is more to blame than the others
    with pytest.raises(NothingToFold):
        large.finish()


def test_a_stale_update_counts_less_but_is_counted():
    partial = Partial(mean())
    partial.add(contribution(0, {"x": np.array([4.0])}), receipt(0))
    partial.add(contribution(1, {"x": np.array([4.0])}), receipt(1), factor=0.5)
    assert partial.finish().value["x"] == 3.0
    with pytest.raises(StrategyError, match="staleness"):
        Partial(total()).add(contribution(0, {"x": np.array([1])}), receipt(0), factor=0.5)


def test_zero_weights_contribute_nothing_and_only_zero_weights_are_nothing():
    items = [
        (contribution(0, {"x": np.array([1.0])}, 2.0), receipt(0, 2.0)),
        (contribution(1, {"x": np.array([9.0])}, 0.0), receipt(1, 0.0)),
    ]
    assert folded(weighted_mean(), items).finish().value["x"] == 1.0
    with pytest.raises(NothingToFold, match="weights of all 1 updates are zero"):
        folded(weighted_mean(), items[1:]).finish()
    with pytest.raises(NothingToFold, match="no update"):
        Partial(mean()).finish()


def test_the_same_task_twice_is_an_error():
    item = (contribution(0, {"x": np.ones(2)}), receipt(0))
    partial = folded(mean(), [item])
    with pytest.raises(StrategyError, match="folded already"):
        partial.add(*item)
    with pytest.raises(StrategyError, match="both partials"):
        partial.merge(folded(mean(), [item]))


def test_collect_orders_by_client_and_keeps_every_update():
    items = [(contribution(i, {"x": np.full(i, 1.0)}, i + 1.0), receipt(i)) for i in (10, 9, 2)]
    value = folded(collect(), items).finish().value
    assert list(value) == [2, 9, 10]
    assert value[9].weight == 10.0
    assert value[2].arrays["x"].shape == (2,)


def test_metrics_are_means_by_weight_over_the_clients_that_have_them():
    receipts = [receipt(0, 1.0, a=1.0, b=5.0), receipt(1, 3.0, a=2.0), receipt(2, 0.0, c=7.0)]
    assert mean_metrics(receipts) == {"a": 1.75, "b": 5.0, "c": 7.0}


def test_a_value_that_is_not_finite_is_left_out_of_the_mean_and_a_metric_without_any_is_nan():
    others = [receipt(1, 1.0, a=1.0), receipt(2, 3.0, a=2.0)]
    for value in (math.nan, math.inf, -math.inf):
        assert mean_metrics([receipt(0, 5.0, a=value), *others]) == {"a": 1.75}
    assert math.isnan(mean_metrics([receipt(0, 1.0, a=math.nan), receipt(1, 1.0, a=math.inf)])["a"])


def test_aux_arrays_are_averaged_plainly_beside_a_weighted_fold():
    items = [
        (contribution(i, {"x": np.ones(1)}, w, {"c": np.array([v])}), receipt(i))
        for i, (w, v) in enumerate([(1.0, 2.0), (9.0, 4.0)])
    ]
    assert folded(weighted_mean(), items).finish().aux["c"] == 3.0


def test_finish_leaves_the_partial_as_it_was():
    partial = folded(mean(), [(contribution(0, {"x": np.ones(2)}), receipt(0))])
    assert bits(partial.finish()) == bits(partial.finish())
    assert isinstance(contribution(0, {}), Contribution)


@given(items=updates(least=2, most=40), seed=st.integers(0, 2**32))
def test_stale_updates_fold_to_the_same_bits_in_any_order(items, seed):
    rng = np.random.default_rng(seed)
    factors = rng.choice([1.0, 0.5, 3**-0.5], len(items))

    def in_order(order):
        halves = Partial(weighted_mean()), Partial(weighted_mean())
        for i in order:
            halves[int(rng.integers(2))].add(*items[i], factor=float(factors[i]))
        halves[0].merge(halves[1])
        return bits(halves[0].finish())

    assert in_order(range(len(items))) == in_order(rng.permutation(len(items)))


def test_staleness_scales_the_weight_in_a_weighted_mean():
    partial = Partial(weighted_mean())
    partial.add(contribution(0, {"x": np.array([2.0])}, 3.0), receipt(0, 3.0))
    partial.add(contribution(1, {"x": np.array([8.0])}, 2.0), receipt(1, 2.0), factor=0.5)
    assert partial.finish().value["x"] == (3 * 2.0 + 1 * 8.0) / 4
    assert partial.finish().weight == 5.0


@pytest.mark.parametrize("fold", [weighted_mean(), mean(), norm_bounded(), sign_majority()], ids=repr)
def test_buffers_of_stale_updates_count_less_and_do_not_shrink(fold):
    partial = Partial(fold)
    for i, factor in enumerate((0.25, 0.5)):
        partial.add(contribution(i, Arrays({"x": np.full(3, 6.0 * i)}, {"x": "buffer"})), receipt(i), factor=factor)
    assert partial.finish().value["x"].tolist() == [4.0] * 3  # (0 / 4 + 6 / 2) / (1 / 4 + 1 / 2)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 31, 32, 33, 100])
@pytest.mark.parametrize("size", [3, 10_000])
def test_batches_make_no_difference(count, size):
    rng = np.random.default_rng(count)
    items = [(contribution(i, {"x": rng.normal(size=size)}, 1.0 + i), receipt(i)) for i in range(count)]
    one_by_one = folded(weighted_mean(), items[:1])
    for item in items[1:]:
        one_by_one.merge(folded(weighted_mean(), [item]))
    assert bits(folded(weighted_mean(), items).finish()) == bits(one_by_one.finish())


@given(seed=st.integers(0, 2**32), dtype=st.sampled_from([np.uint8, np.uint16, np.uint32, np.uint64]))
def test_unsigned_totals_wrap_around_like_modular_arithmetic_in_any_order(seed, dtype):
    rng = np.random.default_rng(seed)
    top = np.iinfo(dtype).max
    terms = rng.integers(0, top, (7, 3), dtype=dtype, endpoint=True)
    items = [(contribution(i, {"x": t}), receipt(i)) for i, t in enumerate(terms)]
    value = by_tree(total(), items, rng).finish().value["x"]
    assert value.dtype == dtype
    assert value.tolist() == [sum(map(int, column)) % (int(top) + 1) for column in terms.T]


def test_a_first_update_that_is_refused_leaves_no_mark():
    partial = Partial(total())
    with pytest.raises(UpdateRejected, match="range of int64"):
        partial.add(contribution(0, {"a": np.array([-(2**63)])}), receipt(0))
    partial.add(contribution(1, {"b": np.array([5])}), receipt(1))
    assert {n: a.tolist() for n, a in partial.finish().value.items()} == {"b": [5]}


def test_metrics_beyond_the_range_of_a_float_do_not_end_the_run():
    receipts = [receipt(0, 1.0, loss=1e308), receipt(1, 1.0, loss=1e308), receipt(2, 1e300, loss=1e300)]
    assert math.isnan(mean_metrics(receipts[:2])["loss"])
    assert math.isnan(mean_metrics(receipts)["loss"])


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 2**64 - 1])
def test_means_of_the_largest_integers_do_not_wrap(value):
    array = np.array([value], np.uint64 if value > 2**63 else np.int64)
    found = folded(weighted_mean(), [(contribution(i, {"x": array}), receipt(i)) for i in range(2)]).finish().value["x"]
    assert abs(int(found[0]) - value) <= 2**11


@given(
    st.lists(
        st.sampled_from([0, -5, 2**31, 2**40, -(2**61), 2**61 + 1, 2**62, -(2**62), 2**62 + 511]),
        min_size=1,
        max_size=9,
    ),
    st.integers(0, 2**32),
)
def test_whose_integers_are_too_large_does_not_depend_on_the_order(values, seed):
    items = [(contribution(i, {"s": np.array([n]), "x": np.ones(1)}), receipt(i)) for i, n in enumerate(values)]
    found = []
    for rng in (None, np.random.default_rng(seed), np.random.default_rng(seed + 1)):
        partial = folded(total(), items) if rng is None else by_tree(total(), items, rng)
        left = partial.agree()
        kept = [values[r.client] for r in partial.in_order()]
        assert len(left) + len(kept) == len(values)
        if kept:
            assert partial.finish().value["s"].tolist() == [sum(kept)]
            assert partial.finish().value["x"].tolist() == [len(kept)]
        found.append((left, kept))
    assert found[0] == found[1] == found[2]
    left, kept = found[0]
    assert all(reason == "a sum of integers would leave the range of int64" for reason in left.values())
    if left:
        assert min(abs(values[client]) for client in left) >= max(map(abs, kept), default=0)
        assert sum(map(abs, values)) > 2**62


# Updates that are views of files


def seen_as_mapped(items, flags=None):
    """The same updates, said to be views of files (all, or where a flag says so)."""
    flags = [True] * len(items) if flags is None else flags
    return [
        (Contribution(i.client, i.arrays, i.aux, i.weight, i.magnitudes, i.aux_magnitudes, bool(mapped)), facts)
        for (i, facts), mapped in zip(items, flags, strict=True)
    ]


@pytest.mark.parametrize("fold", some(FOLDS, 2), ids=repr)
@given(items=updates(most=40), seed=st.integers(0, 2**32), stretch=st.sampled_from([1, 2, 3, 1 << 18]))
def test_mapped_updates_fold_to_the_same_bits_whatever_the_stretches(fold, items, seed, stretch):
    rng = np.random.default_rng(seed)
    expected = bits(by_tree(fold, items, rng).finish())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays_module, "STRETCH", stretch)
        patch.setattr(files, "LARGE", int(rng.choice([0, 1 << 20])))  # made at once, or where they are looked at
        patch.setattr(elementwise, "_BATCH_BYTES", int(rng.choice([1, 1 << 20])))
        partial = folded(fold, seen_as_mapped(items))
        assert bits(partial.finish()) == expected
        assert bits(partial.finish()) == expected
        mixed = folded(fold, seen_as_mapped(items, rng.integers(0, 2, len(items))))
        assert bits(mixed.finish()) == expected
        half = folded(fold, seen_as_mapped(items[: len(items) // 2]))
        if half.receipts:
            with contextlib.suppress(NothingToFold):
                half.finish()
        for item in seen_as_mapped(items[len(items) // 2 :]):
            half.add(*item)
        assert bits(half.finish()) == expected


def held(partial):
    """The bytes of all bins."""
    return sum(s.nbytes for s in partial._acc.arrays.values())


@pytest.mark.parametrize("mapped", [True, False])
def test_up_to_sixteen_large_mapped_updates_take_no_bins(mapped):
    large = np.ones(300_000, np.float32)
    items = seen_as_mapped([(contribution(i, {"x": large}), receipt(i)) for i in range(17)], [mapped] * 17)
    partial = folded(mean(), items[:16])
    assert held(partial) == (0 if mapped else 16 * large.size)
    partial.merge(Partial(mean()))
    assert (partial.finish().value["x"] == 1.0).all()
    assert held(partial) == (0 if mapped else 16 * large.size)
    partial.add(*items[16])
    assert held(partial) == 16 * large.size
    assert (partial.finish().value["x"] == 1.0).all()


def test_integers_at_the_rim_are_refused_before_they_wrap():
    near = [2**62 + 511, 2**62 - 257]  # as floats these are rounded down, to less than 2**63 together
    items = [(contribution(i, {"s": np.array([n])}), receipt(i)) for i, n in enumerate(near)]
    partial = folded(total(), [*items, (contribution(2, {"s": np.array([7])}), receipt(2))])
    assert partial.agree() == dict.fromkeys((0, 1), "a sum of integers would leave the range of int64")
    assert partial.finish().value["s"].tolist() == [7]


# Partials on the wire

SENDABLE = [fold for fold in FOLDS if not fold.single]


def sent(partial):
    return encoding.encode(partial.to_tree())


def received(fold, data, **known):
    return Partial.from_tree(fold, encoding.decode(data), **known)


@pytest.mark.parametrize("fold", SENDABLE, ids=repr)
@given(items=updates(), seed=st.integers(0, 2**32))
def test_any_split_of_updates_into_partials_gives_the_bytes_of_one(fold, items, seed):
    rng = np.random.default_rng(seed)
    expected = sent(folded(fold, items))
    assert sent(by_tree(fold, items, rng)) == expected
    assert sent(folded(fold, seen_as_mapped([items[i] for i in rng.permutation(len(items))]))) == expected
    over_the_wire = Partial(fold)
    cuts = [0, *sorted(rng.integers(0, len(items) + 1, 2)), len(items)]
    for start, stop in itertools.pairwise(cuts):
        over_the_wire.merge(received(fold, sent(folded(fold, items[start:stop]))))
    assert sent(over_the_wire) == expected


@pytest.mark.parametrize("fold", SENDABLE, ids=repr)
@given(items=updates(least=2), seed=st.integers(0, 2**32))
def test_partials_that_were_sent_merge_to_the_same_bits(fold, items, seed):
    expected = bits(folded(fold, items).finish())
    cut = int(np.random.default_rng(seed).integers(0, len(items)))
    here = folded(fold, items[:cut])
    there = received(fold, sent(folded(fold, items[cut:])))
    assert sent(there) == sent(folded(fold, items[cut:]))
    here.merge(there)
    assert bits(here.finish()) == expected
    first = received(fold, sent(folded(fold, items[:-1])))
    first.add(*items[-1])
    assert bits(first.finish()) == expected


def test_a_partial_keeps_its_bytes_when_more_is_added_to_it():
    items = [(contribution(i, {"s": np.array([i]), "x": np.array([0.5])}), receipt(i)) for i in range(3)]
    partial = folded(total(), items[:2])
    tree = partial.to_tree()
    before = encoding.encode(tree)
    partial.add(*items[2])
    partial.finish()
    assert encoding.encode(tree) == before


@pytest.mark.parametrize("fold", FOLDS, ids=repr)
def test_built_in_folds_come_back_from_their_description(fold):
    assert fold_from_spec(fold.spec()) == fold


@pytest.mark.parametrize(
    "spec",
    [None, [], 7, "mean", ["median", {}], ["mean", {"max_weight": 1}], ["weighted_mean", {"max_weight": "1"}], {},
     ["weighted_mean", {"max_weight": math.nan}], ["weighted_mean", {"max_weight": True}], ["mean", {1: 2}], [[], {}],
     ["weighted_mean", {"max_weight": -1.0}], ["mean", None], ["mean", {}, {}]],
)  # fmt: skip
def test_descriptions_of_other_folds_are_not_known(spec):
    assert fold_from_spec(spec) is None


MODEL = Arrays({"w": np.zeros((2, 3), np.float32), "h": np.zeros(2, np.float16), "n": np.zeros(2, np.int32)})


def whole(fold=weighted_mean(), scale=1.0, aux=True):  # noqa: B008
    partial = Partial(fold)
    expects = Like(MODEL, aux=Free() if aux else None)
    for client in ("a", 2, 3):
        arrays = {"w": np.full((2, 3), scale, np.float32), "h": np.ones(2, np.float32), "n": np.full(2, 7, np.int32)}
        update = Update(Arrays(arrays), 2.0, aux={"c": np.ones(2)} if aux else {}, delta=True)
        partial.add(check(update, expects, MODEL, client), receipt(client, 2.0, loss=0.5))
    return partial


def test_a_partial_of_what_was_asked_is_taken():
    for fold in (weighted_mean(), mean(), total()):
        back = received(fold, sent(whole(fold)), expects=Like(MODEL, aux=Free()), sent=MODEL)
        assert bits(back.finish()) == bits(whole(fold).finish())
        nothing = received(fold, sent(Partial(fold)), expects=Like(), sent=MODEL)
        assert not nothing.receipts
        with pytest.raises(NothingToFold):
            nothing.finish()


@pytest.mark.parametrize(
    "expects",
    [
        Like(),
        Like(aux=Like(Arrays({"c": np.ones(3)}))),
        Like(delta=False, aux=Free()),
        Like(Arrays({**MODEL, "more": np.ones(1)}), aux=Free()),
        Like(names=("w",), aux=Free()),
        Like(Arrays(MODEL, {"w": "buffer"}), aux=Free()),
        Like(MODEL.replace({"w": np.zeros((3, 2), np.float32)}), aux=Free()),
        Free(max_bytes=30, aux=Free()),
        Free(aux=Free(max_bytes=4)),
    ],
    ids=repr,
)
def test_a_partial_of_other_arrays_than_were_asked_is_refused(expects):
    with pytest.raises(UpdateRejected):
        received(weighted_mean(), sent(whole()), expects=expects, sent=MODEL)
    assert received(weighted_mean(), sent(whole()), expects=Free(aux=Free()), sent=MODEL).receipts


def test_folds_that_see_every_update_have_no_partials_to_send():
    with pytest.raises(StrategyError, match="collect has no partials"):
        Partial(collect()).to_tree()
    with pytest.raises(UpdateRejected, match="takes no partials"):
        Partial.from_tree(collect(), whole().to_tree())


def changed(tree, path, value):
    """The tree with one place exchanged (or made anew by a function)."""
    tree = copy.deepcopy(tree)
    place = tree
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value(place[path[-1]]) if callable(value) else value
    return tree


WRONG = [
    (("version",), 2),
    (("fold",), ["mean", {}]),
    (("fold",), np.ones(2)),
    (("sums",), None),
    (("sums", "count"), 2),
    (("sums", "count"), 2**70),
    (("sums", "count"), True),
    (("sums", "count"), -1),
    (("sums", "weight"), "1:1p4000"),
    (("sums", "weight"), "1:-3p0"),
    (("sums", "weight"), "1:0p0"),
    (("sums", "weight"), "1:1p-2000"),
    (("sums", "weight"), "1:1p1023"),
    (("sums", "weight"), 6.0),
    (("sums", "arrays"), []),
    (("sums", "arrays"), {}),
    (("sums", "arrays"), lambda arrays: {**arrays, "": arrays["w"]}),
    (("sums", "arrays"), lambda arrays: {**arrays, 5: arrays["w"]}),
    (("sums", "arrays"), lambda arrays: {**arrays, "__metadata__": arrays["w"]}),
    (("sums", "arrays", "w"), []),
    (("sums", "arrays", "w"), None),
    (("sums", "arrays", "w", 0), "personal"),
    (("sums", "arrays", "w", 0), 3),
    (("sums", "arrays", "n", 0), "parameter"),
    (("sums", "arrays", "w", 1), b"bytes"),
    (("sums", "arrays", "w", 1), lambda row: row[:-1]),
    (("sums", "arrays", "w", 1), lambda row: row.astype(np.int8)),
    (("sums", "arrays", "w", 1), lambda row: row.reshape(1, -1)),
    (("sums", "arrays", "n"), ["buffer", "int32", 21, np.full(2, 21)]),
    (("aux",), {}),
    (("aux", "arrays"), {}),
    (("aux", "count"), 0),
    (("aux", "count"), 4),
    (("receipts",), []),
    (("receipts",), None),
    (("receipts",), lambda columns: columns[:5]),
    (("receipts",), lambda columns: [*columns[:5], columns[5][:2]]),
    (("receipts", 0, 0), 5),
    (("receipts", 0, 0), ""),
    (("receipts", 0, 0), "0.3"),
    (("receipts", 1, 0), None),
    (("receipts", 1, 0), True),
    (("receipts", 2, 0), -1.0),
    (("receipts", 2, 0), math.inf),
    (("receipts", 2, 0), math.nan),
    (("receipts", 2, 0), "1"),
    (("receipts", 3, 0), []),
    (("receipts", 3, 0), {"loss": "low"}),
    (("receipts", 3, 0), {"loss": 10**400}),
    (("receipts", 3, 0), {1: 1.0}),
    (("receipts", 4, 0), math.inf),
    (("receipts", 5, 0), -1),
    (("receipts", 5, 0), 0.5),
]


@pytest.mark.parametrize(
    ("path", "value"), WRONG, ids=[f"{i}-{'.'.join(map(str, p))}" for i, (p, _) in enumerate(WRONG)]
)
def test_whatever_is_off_in_a_partial_is_refused(path, value):
    tree = whole().to_tree()
    assert Partial.from_tree(weighted_mean(), tree).receipts
    with pytest.raises(UpdateRejected):
        Partial.from_tree(weighted_mean(), changed(tree, path, value), Like(aux=Free()), MODEL)


@pytest.mark.parametrize("tree", [None, 5, [], {}, "tree", b"", {"version": 1}, np.ones(3)])
def test_what_is_no_tree_of_a_partial_is_refused(tree):
    with pytest.raises(UpdateRejected):
        Partial.from_tree(mean(), tree)


INTEGERS = [
    ("int32", -1, np.zeros(2, np.int64)),
    ("int32", 1 << 63, np.zeros(2, np.int64)),
    ("int32", 3, np.full(2, 4)),
    ("int32", 3, np.full(2, -4)),
    ("int32", 3, np.ones(2, np.int32)),
    ("int32", 3.0, np.ones(2, np.int64)),
    ("int32", True, np.ones(2, np.int64)),
    ("uint8", 1, np.ones(2, np.uint8)),
    ("uint8", 0, np.ones(2, np.uint16)),
    ("float32", 3, np.ones(2)),
    ("complex64", 3, np.ones(2)),
    ("int32", 3, [1, 2]),
]


@pytest.mark.parametrize("row", INTEGERS, ids=repr)
def test_sums_of_integers_that_cannot_be_are_refused(row):
    tree = whole(total()).to_tree()
    with pytest.raises(UpdateRejected):
        Partial.from_tree(total(), changed(tree, ("sums", "arrays", "n"), ["buffer", *row]))


@pytest.mark.parametrize("fold", SENDABLE[:3], ids=repr)
@given(data=st.data())
def test_a_flipped_bit_is_refused_or_makes_another_partial_that_finishes(fold, data):
    encoded = sent(whole(fold))
    at = data.draw(st.integers(0, 8 * len(encoded) - 1))
    damaged = bytearray(encoded)
    damaged[at // 8] ^= 1 << at % 8
    try:
        tree = encoding.decode(bytes(damaged))
    except encoding.CorruptFile:
        return
    try:
        partial = Partial.from_tree(fold, tree, Like(aux=Free()), MODEL)
    except UpdateRejected:
        return
    answer = partial.finish()
    assert all(np.isfinite(array.astype(np.float64)).all() for array in answer.value.values())
    here = whole(fold)
    here._hold(Receipts())
    here.merge(partial)
    here.finish()


def test_zeros_of_any_shape_cost_nothing_until_somebody_asks_for_that_many():
    partial = folded(mean(), [(contribution(0, {"x": np.zeros(4)}), receipt(0))])
    tree = partial.to_tree()
    assert Partial.from_tree(mean(), tree).finish().value["x"].tolist() == [0] * 4
    row = tree["sums"]["arrays"]["x"][1]
    for shape in ([2**40], [2**62], [2**63 - 1]):
        forged = row.copy()
        forged[-8:] = np.array(shape, "<u8").view(np.uint8)
        with pytest.raises(UpdateRejected, match="zeros"):
            Partial.from_tree(mean(), changed(tree, ("sums", "arrays", "x", 1), forged))
        with pytest.raises(UpdateRejected, match="not what the ask expects"):
            Partial.from_tree(
                mean(), changed(tree, ("sums", "arrays", "x", 1), forged), Like(Arrays({"x": np.zeros(4)})), None
            )


def test_a_mean_that_would_be_infinite_is_refused_and_the_largest_floats_are_not():
    top = np.finfo(np.float32).max
    tree = whole(scale=top, aux=False).to_tree()
    assert (Partial.from_tree(weighted_mean(), tree).finish().value["w"] == top).all()
    with pytest.raises(UpdateRejected, match="would be infinite"):
        Partial.from_tree(weighted_mean(), changed(tree, ("sums", "weight"), "1:5p0"))


def test_a_partial_that_is_nested_as_deep_as_can_be_read_is_refused():
    nested = []
    for depth in range(sys.getrecursionlimit()):
        nested = [nested]
        for path in (("fold",), ("receipts",), ("sums", "count"), ("sums", "arrays", "w", 0), ("version",)):
            if depth < sys.getrecursionlimit() - 100 or depth % 10:
                continue
            tree = whole().to_tree()
            place = functools.reduce(lambda part, step: part[step], path[:-1], tree)
            place[path[-1]] = nested
            with pytest.raises(UpdateRejected):
                Partial.from_tree(weighted_mean(), tree)


def test_zeros_that_nobody_asked_for_are_counted_together():
    partial = folded(mean(), [(contribution(0, {f"x{i}": np.zeros(4) for i in range(3)}), receipt(0))])
    tree = partial.to_tree()
    for name, row in tree["sums"]["arrays"].items():
        forged = row[1].copy()
        forged[-8:] = np.array([2**25], "<u8").view(np.uint8)
        tree["sums"]["arrays"][name] = ["parameter", forged]
    with pytest.raises(UpdateRejected, match="zeros"):
        Partial.from_tree(mean(), tree)


def test_arrays_of_a_partial_have_the_order_that_the_ask_expects():
    model = Arrays({"z": np.zeros(2), "a": np.ones(1), "m": np.array(1)})
    aux = Arrays({"y": np.zeros(1), "b": np.zeros(1)})
    tree = folded(mean(), [(contribution(0, model, aux=aux), receipt(0))]).to_tree()
    answer = Partial.from_tree(mean(), tree, Like(aux=Like(aux)), model).finish()
    assert (list(answer.value), list(answer.aux)) == (["z", "a", "m"], ["y", "b"])
    assert list(Partial.from_tree(mean(), tree, Free(aux=Free()), None).finish().value) == ["a", "m", "z"]


@pytest.mark.parametrize("ids", ["{ask}.{client}", "task of {client}", "0{ask}.{client}"])
@pytest.mark.parametrize("clients", [[], [3], [0, 7, 2**61], ["a", 5, "0"]], ids=str)
@pytest.mark.parametrize(
    "metrics", [[{}], [{"loss": 0.1, "b": math.inf}], [{"loss": 0.1}, {"steps": 3.0}, {}]], ids=str
)
def test_an_answer_comes_back_as_it_was(ids, clients, metrics):
    receipts = tuple(
        Receipt(ids.format(ask=place, client=client), client, 1 / 3 + place, metrics[place % len(metrics)], 0.1, place)
        for place, client in enumerate(clients)
    )
    answer = Answer(Arrays({"x": np.ones(2)}), receipts=receipts, failed={9: "gone"}, asked=4, metrics={"loss": 0.5})
    found = encoding.decode(encoding.encode(answer))
    assert found.receipts == receipts
    assert [list(r.metrics) for r in found.receipts] == [list(r.metrics) for r in receipts]
    assert [type(r.client) for r in found.receipts] == [type(r.client) for r in receipts]
    assert (found.failed, found.asked, found.metrics) == (answer.failed, 4, {"loss": 0.5})


def test_an_answer_of_many_clients_takes_few_bytes_for_each():
    receipts = tuple(Receipt(f"7.{i}", i, 1.0, {"loss": 0.1}, 0.5) for i in range(10_000))
    assert len(encoding.encode(Answer({}, receipts=receipts))) < 60 * len(receipts)


def test_a_fold_with_an_add_of_its_own_sees_every_update():
    seen = []

    @dataclass(frozen=True)
    class watched(mean):
        def add(self, acc, item, factor=1.0):
            seen.append(item.client)
            return super().add(acc, item, factor / 2)

    items = Stack([1, 2], Arrays({"x": np.ones((2, 3))}), NO_ARRAYS, [1.0, 1.0], {"x": [1.0, 1.0]}, {})
    partial = Partial(watched())
    partial.add_stack(items, Receipts.of([receipt(1), receipt(2)]))
    assert seen == [1, 2]
    assert partial.finish().value["x"].tolist() == [0.5] * 3


def test_a_fold_that_raises_is_told_of_by_the_step_that_users_know():
    class Broken(collect):
        def add(self, acc, item, factor=1.0):
            raise KeyError("x")

    with pytest.raises(StrategyError, match=r"add\b(?!_stack)"):
        Partial(Broken()).add(contribution(0, {"x": np.ones(1)}), receipt(0))
