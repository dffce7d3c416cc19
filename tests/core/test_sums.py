"""The sums give the same bits in any order and by any tree of merges, and the bits that the definition says."""

from __future__ import annotations

import contextlib
import math
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.core import sums
from umbel.core.sums import ArraySum, ExactScalar, magnitude, magnitudes

seeds = st.integers(0, 2**32 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]
INTEGERS = [np.dtype(name) for name in ("bool", "int8", "uint16", "int32", "uint32", "int64", "uint64")]


def wild(rng, dtype, shape):
    """An array whose elements span the magnitudes 1e-30 to 1e25 (less, if dtype does), with some zeros."""
    if dtype.kind in "biu":
        if dtype.kind == "b":
            return np.asarray(rng.integers(0, 2, shape)).astype(dtype)
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        return np.asarray(rng.integers(low, high, shape, dtype=dtype, endpoint=True))
    centre, spread = (-2, 4) if dtype == np.float16 else (rng.uniform(-28, 23), rng.choice([0.1, 2, 60]))
    exponents = np.clip(rng.uniform(centre - spread, centre + spread, shape), -30, 4 if dtype == np.float16 else 25)
    signs = rng.choice([-1.0, -1.0, 0.0, -0.0, 1.0, 1.0], shape)
    return np.asarray(signs * rng.uniform(0.3, 1, shape) * 10.0**exponents).astype(dtype)


def some_terms(seed, dtype):
    rng = np.random.default_rng(seed)
    shape = [(), (0,), (1,), (7,), (3, 5), (2, 3, 4)][rng.integers(6)]
    count = int(rng.integers(1, 9))
    weights = [float(rng.choice([0.0, 1.0, -1.0, 600.0, 1e-9, 3.1e7]) * rng.uniform(0.5, 1)) for _ in range(count)]
    return shape, [wild(rng, dtype, shape) for _ in range(count)], weights


def direct(shape, dtype, terms):
    total = ArraySum(shape, dtype)
    for x, weight in terms:
        total.add(x, weight)
    return total


def by_random_tree(chance, shape, dtype, terms):
    """The sum of the terms in a random order, by a random tree of merges, encodings and copies."""
    terms = chance.sample(terms, len(terms))
    if len(terms) > 1 and chance.random() < 0.7:
        cut = chance.randrange(len(terms) + 1) if chance.random() < 0.2 else chance.randrange(1, len(terms))
        total = by_random_tree(chance, shape, dtype, terms[:cut])
        total.merge(by_random_tree(chance, shape, dtype, terms[cut:]))
    elif chance.random() < 0.5:
        total = ArraySum(shape, dtype)
        total.add_many([x for x, _ in terms], [w for _, w in terms], [magnitude(x) for x, _ in terms])
    else:
        total = direct(shape, dtype, terms)
    again = chance.random()
    return ArraySum.decode(total.encode()) if again < 0.2 else total.copy() if again < 0.4 else total


def products(terms):
    """The float64 terms, as a (count, size) array."""
    return np.array([(x.astype(np.float64) * np.float64(w)).reshape(-1) for x, w in terms])


def defined(column, largest, bins):
    """The sum of one element's terms from the definition, in rational numbers."""
    level = bins - 1
    while largest >= Fraction(2) ** (37 + 38 * level - 1074):
        level += 1
    quantum = Fraction(2) ** (38 * (level - bins + 1) - 1074)
    return sum((round(Fraction(t) / quantum) * quantum for t in column), Fraction(0))  # round: half to even


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# ---- order and tree -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=str)
@given(seed=seeds)
def test_any_order_and_any_tree_give_the_same_bytes(dtype, seed):
    shape, xs, weights = some_terms(seed, dtype)
    terms = list(zip(xs, weights, strict=True))
    first = direct(shape, dtype, terms)
    other = by_random_tree(random.Random(seed), shape, dtype, terms)
    assert first.encode() == other.encode()
    assert first.count == other.count == len(terms)
    assert same_bits(first.value(), other.value())
    assert same_bits(first.value(np.float32, divide_by=7.3e9), other.value(np.float32, divide_by=7.3e9))


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=str)
@given(seed=seeds)
def test_value_is_the_correctly_rounded_sum_of_the_definition(dtype, seed):
    shape, xs, weights = some_terms(seed, dtype)
    total = direct(shape, dtype, zip(xs, weights, strict=True))
    terms = products(list(zip(xs, weights, strict=True)))
    bins = 3 if dtype.itemsize == 8 else 2
    largest = Fraction(float(np.abs(terms).max(initial=0)))
    value, bound = total.value(), total.error_bound()
    assert value.shape == shape
    for column, found in zip(terms.T, value.reshape(-1), strict=True):
        assert found == float(defined(column.tolist(), largest, bins))
        exact = sum(map(Fraction, column.tolist()), Fraction(0))
        assert abs(Fraction(float(found)) - exact) <= Fraction(bound)
        assert abs(found - math.fsum(column)) <= bound + math.ulp(math.fsum(column))
    if largest:
        relative = len(xs) * (2.0**-38 if bins == 2 else 2.0**-76)
        assert bound <= float(largest) * (relative + len(xs) * 2.0**-52)


def test_the_spilled_sum_is_the_same_in_any_tree(monkeypatch):
    monkeypatch.setattr(ArraySum, "_SPILL_AFTER", 5)
    for seed in range(60):
        dtype = FLOATS[seed % 4]
        shape, xs, weights = some_terms(seed, dtype)
        terms = list(zip(xs, weights, strict=True)) * 3
        first = direct(shape, dtype, terms)
        other = by_random_tree(random.Random(seed), shape, dtype, terms)
        assert first.encode() == other.encode()
        assert same_bits(first.value(), other.value())
        largest = Fraction(float(np.abs(products(terms)).max(initial=0)))
        for column, found in zip(products(terms).T, first.value().reshape(-1), strict=True):
            assert found == float(defined(column.tolist(), largest, 3 if dtype.itemsize == 8 else 2))


def test_sums_of_billions_of_additions_are_exact():
    # Doubling by merging: 2**40 terms, each just under the top of its level, far beyond what one int64 holds of a bin.
    for dtype, x in ((np.float32, 2.0**27 - 2), (np.float64, 2.0**27 - 2.0**-26), (np.float64, -(2.0**27) + 2.0**-20)):
        total = ArraySum((2,), dtype)
        total.add(np.array([x, x / 3], dtype))
        terms = np.array([x, x / 3], dtype).astype(np.float64)
        low = 2**48 if dtype == np.float32 else 2**86
        for doublings in range(41):
            expected = [float(round(Fraction(t) * low) * Fraction(2**doublings, low)) for t in terms.tolist()]
            assert total.value().tolist() == expected
            if doublings % 8 == 0:
                assert ArraySum.decode(total.encode()).encode() == total.encode()
                small = ArraySum((2,), dtype)
                small.add(np.array([1, 1e-9], dtype))
                reverse, total_and_small = small.copy(), total.copy()
                reverse.merge(total)
                total_and_small.merge(small)
                assert reverse.encode() == total_and_small.encode()
            total.merge(total.copy())
        assert total.count == 2**41


@given(
    rows=st.lists(st.integers(-(2**61), 2**61), min_size=3, max_size=3),
    over=st.lists(st.integers(-(2**40), 2**40), min_size=3, max_size=3),
    shift=st.integers(0, 60),
    bins=st.sampled_from([2, 3]),
    spilled=st.booleans(),
)
def test_the_total_of_any_bins_is_correctly_rounded(rows, over, shift, bins, spilled):
    rows, over = [r >> shift for r in rows[:bins]], [r >> shift for r in over[:bins]]
    exact = 0
    for row, high in zip(rows, over, strict=True):
        exact = (exact << 38) + row + ((high << 38) if spilled else 0)
    as_arrays = [[np.array([number]) for number in numbers] for numbers in (rows, over if spilled else [])]
    assert sums._nearest(*as_arrays).tolist() == [float(exact)]


def test_ties_between_two_floats_are_broken_by_the_lowest_bin():
    for low, expected in ((-1, 2.0**120), (0, 2.0**120), (1, 2.0**120 + 2.0**68)):
        bins = [np.array([2**44]), np.array([2**29]), np.array([low])]  # 2**120 + half a unit in the last place + low
        assert sums._nearest(bins, []).tolist() == [expected]


# ---- levels and extremes --------------------------------------------------------------------------------------------


def test_a_zero_array_sets_no_level_and_holds_no_memory():
    total = ArraySum((3,), np.float32)
    total.add(np.array([0.0, -0.0, 0.0], np.float32), 5.0)
    total.add(np.ones(3, np.float32), 0.0)
    assert (total.count, total.nbytes, total.error_bound()) == (2, 0, 0.0)
    assert total.value().tobytes() == bytes(24)
    assert ArraySum.decode(total.encode()).encode() == total.encode()
    total.add(np.full(3, 1e-20, np.float32))
    assert total.count == 3
    np.testing.assert_allclose(total.value(), 1e-20, rtol=1e-7)


def test_a_rising_level_drops_what_the_high_level_would_have_dropped():
    small, large = np.array([2.0**-30, 1.5 * 2.0**-49], np.float32), np.array([1.0, 2.0**26], np.float32)
    rising, falling = ArraySum((2,), np.float32), ArraySum((2,), np.float32)
    for x in (small, large):
        rising.add(x)
    for x in (large, small):
        falling.add(x)
    assert rising.encode() == falling.encode()
    assert rising.value().tolist() == [1 + 2.0**-30, 2.0**26]
    assert rising.nbytes == 32
    rising.add(np.array([2.0**64, 0.0], np.float32))
    assert rising.value().tolist() == [2.0**64, 2.0**26]
    rising.add(np.array([2.0**100, 0.0], np.float32))
    assert rising.value().tolist() == [2.0**64 + 2.0**100, 0.0]
    assert rising.error_bound() >= 2.0**26


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_subnormal_numbers_are_summed_exactly(dtype):
    tiny = np.array([np.finfo(dtype).smallest_subnormal, -3 * np.finfo(dtype).smallest_subnormal], dtype)
    total = ArraySum((2,), dtype)
    for _ in range(5):
        total.add(tiny)
    assert total.value().tolist() == (5 * tiny.astype(np.float64)).tolist()
    assert total.error_bound() <= 2**-52 * abs(total.value()).max() + 5e-324
    total.add(tiny, 1e-30)
    assert np.isfinite(total.value()).all()


def test_the_largest_numbers_are_summed_and_larger_ones_refused():
    total = ArraySum((2,), np.float64)
    edge = math.nextafter(2.0**960, 0)
    for _ in range(3):
        total.add(np.array([edge, -1.0]))
    assert total.value().tolist() == [float(3 * Fraction(edge)), 0.0]
    before = total.encode()
    for x, weight in ((2.0**960, 1.0), (1e200, -1e200), (math.nan, 1.0), (-math.inf, 0.0), (1.0, math.nan)):
        with pytest.raises(ValueError, match=r"must be finite and below 2\*\*960"):
            total.add_many([np.ones(2), np.array([x, 1.0])], [1.0, weight])
    assert total.encode() == before


def test_long_arrays_equal_the_sum_of_their_parts():
    rng = np.random.default_rng(5)
    size = 3 * sums._BLOCK + 17
    xs = [rng.standard_normal(size, dtype=np.float32) * np.float32(10.0**k) for k in (-3, 9, 0)]
    whole, each = ArraySum((size,), np.float32), ArraySum((size,), np.float32)
    whole.add_many(xs, [1.0, 2.5, 600.0])
    for x, weight in zip(xs[::-1], [600.0, 2.5, 1.0], strict=True):
        each.add(x, weight)
    assert whole.encode() == each.encode()
    largest = max(magnitude(x) * w for x, w in zip(xs, [1.0, 2.5, 600.0], strict=True))
    ends = np.r_[0:2, sums._BLOCK - 1 : sums._BLOCK + 1, size - 2 : size]
    columns = products([(x[ends], w) for x, w in zip(xs, [1.0, 2.5, 600.0], strict=True)]).T
    assert whole.value()[ends].tolist() == [float(defined(c.tolist(), Fraction(largest), 2)) for c in columns]


def test_stacked_short_arrays_equal_single_ones():
    rng = np.random.default_rng(6)
    for size in (1, 10, 1000, sums._SHORT, sums._SHORT + 1):
        xs = [rng.standard_normal(size, dtype=np.float32) for _ in range(2 * sums._BLOCK // 1000 + 3)]
        weights = rng.uniform(-2, 700, len(xs)).tolist()
        many = ArraySum((size,), np.float32)
        many.add_many(xs, weights)
        one = ArraySum((size,), np.float32)
        one.add_many(np.stack(xs), weights)
        assert many.encode() == one.encode() == direct((size,), np.float32, zip(xs, weights, strict=True)).encode()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i8", "u1", "?"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (70, 300)])
def test_the_magnitudes_of_a_stack_are_those_of_its_arrays(dtype, shape):
    chance = np.random.default_rng(7)
    stack = (chance.standard_normal((5, *shape)) * 9).astype(dtype)
    if np.dtype(dtype).kind == "f" and stack.size:
        stack[1, ...], stack[2, ...], stack[3, ...] = np.nan, -np.inf, -0.0
    np.testing.assert_array_equal(magnitudes(stack), [magnitude(x) for x in stack])


def test_strided_and_byte_swapped_arrays_are_read_in_order():
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    expected = direct((6, 4), np.float32, [(np.ascontiguousarray(x.T), 3.0)])
    assert direct((6, 4), np.float32, [(x.T, 3.0)]).encode() == expected.encode()
    assert direct((6, 4), np.float32, [(x.T.astype(">f4"), 3.0)]).encode() == expected.encode()
    assert magnitude(x.T[::2, ::-1]) == 22.0
    assert magnitude(x.astype(">f4")) == 23.0


# ---- value, errors, encoding ----------------------------------------------------------------------------------------


def test_value_divides_and_casts():
    total = direct((3,), np.float32, [(np.array([1, 2, 1e5], np.float32), 1.0)] * 3)
    assert total.value(divide_by=3).tolist() == [1.0, 2.0, float(np.float32(1e5))]
    assert same_bits(total.value(np.float32, divide_by=3), np.array([1, 2, 1e5], np.float32))
    assert total.value(np.float16).tolist() == [3.0, 6.0, math.inf]
    assert total.value(BFLOAT16, divide_by=6).tolist()[:2] == [0.5, 1.0]
    integers = direct((3,), np.int64, [(np.array([1, 2, 7]), 1.0)])
    assert integers.value(np.int64, divide_by=2).tolist() == [0, 1, 4]
    for divisor in (0, math.nan, math.inf):
        with pytest.raises(ValueError, match="cannot divide"):
            total.value(divide_by=divisor)


def test_one_float32_array_of_common_magnitude_comes_back_as_it_was():
    x = np.random.default_rng(7).standard_normal(1000, dtype=np.float32)
    assert same_bits(direct(x.shape, x.dtype, [(x, 1.0)]).value(np.float32), x)


def test_a_copy_is_independent():
    total = direct((2,), np.float32, [(np.ones(2, np.float32), 1.0)])
    before, twin = total.encode(), total.copy()
    twin.add(np.ones(2, np.float32))
    assert (total.encode(), twin.value().tolist(), total.nbytes) == (before, [2.0, 2.0], 32)


def test_other_shapes_and_dtypes_are_refused():
    total = ArraySum((2,), np.float32)
    for x in (np.ones(3, np.float32), np.ones((2, 1), np.float32), np.ones(2), np.ones(2, BFLOAT16)):
        with pytest.raises(ValueError, match="shape and dtype must agree"):
            total.add(x)
    with pytest.raises(ValueError, match=r"cannot merge a sum of float64\[2\] into one of float32\[2\]"):
        total.merge(ArraySum((2,), np.float64))
    for dtype in (np.complex64, "datetime64[s]", object):
        with pytest.raises(TypeError, match="cannot sum arrays of dtype"):
            ArraySum((2,), dtype)
    with pytest.raises(ValueError, match="zip"):
        total.add_many([np.ones(2, np.float32)], [1.0, 2.0])


@given(seed=seeds, position=st.floats(0, 1), byte=st.integers(0, 255), wide=st.booleans())
def test_damaged_bytes_are_refused_or_are_another_sum(seed, position, byte, wide):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArraySum, "_SPILL_AFTER", 3 if wide else 100)
        shape, xs, weights = some_terms(seed, FLOATS[seed % 4])
        data = bytearray(direct(shape, FLOATS[seed % 4], zip(xs, weights, strict=True)).encode())
        data[int(position * (len(data) - 1))] = byte
        with contextlib.suppress(ValueError):
            assert ArraySum.decode(bytes(data)).encode() == bytes(data)


def test_what_is_wrong_with_encoded_bytes_is_said(monkeypatch):
    data = direct((2,), np.float32, [(np.ones(2, np.float32), 1.0)]).encode()
    with pytest.raises(ValueError, match="not an encoded array sum"):
        ArraySum.decode(b"")
    with pytest.raises(ValueError, match="not an encoded array sum"):
        ArraySum.decode(b"garbage that is longer than a header is")
    with pytest.raises(ValueError, match="version 9; this software reads version 1"):
        ArraySum.decode(data[:4] + b"\x09" + data[5:])
    with pytest.raises(ValueError, match=r"71 bytes, where 1 x float32\[2\] take 64"):
        ArraySum.decode(data + bytes(7))
    for cut in range(len(data)):
        with pytest.raises(ValueError, match="array sum"):
            ArraySum.decode(data[:cut])
    with pytest.raises(ValueError, match="'float31' is not a dtype"):
        ArraySum.decode(data.replace(b"float32", b"float31"))
    with pytest.raises(ValueError, match="level 99 cannot be reached"):
        ArraySum.decode(data[:6] + b"\x63" + data[7:])
    with pytest.raises(ValueError, match="1 additions cannot reach"):
        ArraySum.decode(data[:-2] + b"\x01" + data[-1:])


def test_the_encoding_does_not_change():
    total = direct((2,), np.float32, [(np.array([1.5, -(2.0**-40)], np.float32), 2.0)])
    assert total.encode().hex() == (
        "556d536d01011c00666c6f6174333200" "0100000000000000" "0200000000000000"
        "000c000000000000" "0000000000000000" "0000000000000000" "00feffffffffffff"
    )  # fmt: skip


# ---- magnitude ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_magnitude_finds_the_largest_and_every_nan(dtype):
    rng = np.random.default_rng(8)
    for size in (1, 2, 33, sums._STRIDE + 5):
        x = wild(rng, dtype, (size,))
        assert magnitude(x) == float(np.abs(x.astype(np.float64)).max())
        for bad in (math.nan, -math.nan, math.inf, -math.inf):
            for place in (0, size // 2, size - 1):
                spoiled = x.copy()
                spoiled[place] = bad
                assert magnitude(spoiled) == math.inf or (math.isnan(bad) and math.isnan(magnitude(spoiled)))
                assert math.isnan(magnitude(spoiled)) == math.isnan(bad)
        spoiled[0], spoiled[-1] = -math.inf, math.nan
        assert math.isnan(magnitude(spoiled))
    assert magnitude(np.zeros((0, 3), dtype)) == 0.0
    assert magnitude(np.array(-2.5, dtype)) == 2.5
    assert magnitude(np.array([-0.0], dtype)) == 0.0


def test_magnitude_of_integers_and_booleans():
    assert magnitude(np.array([-128, 127], np.int8)) == 128.0
    assert magnitude(np.array([-(2**63), 5])) == 2.0**63
    assert magnitude(np.array([2**64 - 1], np.uint64)) == 2.0**64
    assert magnitude(np.array([False, True])) == 1.0
    with pytest.raises(TypeError, match="cannot sum"):
        magnitude(np.array(["a"]))


# ---- scalars --------------------------------------------------------------------------------------------------------


@given(xs=st.lists(st.tuples(finite, finite), max_size=12), seed=seeds)
def test_exact_scalars_hold_the_exact_sum(xs, seed):
    total, products_too = ExactScalar(), ExactScalar()
    for x, w in xs:
        total.add(x)
        products_too.add_product(x, w)
    exact = sum((Fraction(x) for x, _ in xs), Fraction(0))
    if abs(exact) < Fraction(2) ** 1024 - Fraction(2) ** 970:
        assert total.value == float(exact)
    exact_products = sum((Fraction(x) * Fraction(w) for x, w in xs), Fraction(0))
    if abs(exact_products) < Fraction(2) ** 1024 - Fraction(2) ** 970:
        assert products_too.value == float(exact_products)
    for whole in (total, products_too):
        assert ExactScalar.decode(whole.encode()) == whole
    parts = [ExactScalar() for _ in range(3)]
    for x, _ in random.Random(seed).sample(xs, len(xs)):
        parts[hash(x) % 3].add(x)
    parts[0].merge(parts[2])
    parts[1].merge(parts[0])
    assert parts[1] == total
    assert parts[1].encode() == total.encode()


@given(st.lists(st.floats(-1e100, 1e100), max_size=20))
def test_exact_scalars_agree_with_fsum(xs):
    total = ExactScalar()
    for x in xs:
        total.add(x)
    assert total.value == math.fsum(xs)


def test_exact_scalars_refuse_what_is_not_finite():
    total = ExactScalar()
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="only finite numbers"):
            total.add(bad)
        with pytest.raises(ValueError, match="only finite numbers"):
            total.add_product(1.0, bad)
    assert total == ExactScalar()
    total.add(1.7e308)
    total.add(1.7e308)
    with pytest.raises(OverflowError, match="beyond the range"):
        _ = total.value
    total.add(-1.7e308)
    assert total.value == 1.7e308


def test_exact_scalars_are_values():
    total = ExactScalar()
    total.add(0.75)
    twin = total.copy()
    twin.add_product(5e-324, 5e-324)
    assert total != twin
    assert total != 0.75
    assert (total.encode(), ExactScalar().encode(), repr(total)) == ("1:3p-2", "1:0p0", "ExactScalar('1:3p-2')")
    assert ExactScalar.decode(twin.encode()) == twin


@pytest.mark.parametrize(
    "text", ["", "1:", "1:2p0", "2:1p0", "1:-0p0", "1:0p1", "1:1p-2149", "1:1p9999", "1:01p0", "1:1p0 "]
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="not an encoded exact sum"):
        ExactScalar.decode(text)


def test_ml_dtypes_is_not_imported():
    code = (
        "import sys, umbel.core.sums as s; s.ArraySum.decode(s.ArraySum((2,), 'bfloat16').encode());"
        "assert not {'ml_dtypes', 'torch'} & set(sys.modules)"
    )
    source = str(Path(sums.__file__).parents[2])
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {source!r}); {code}"], check=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sum_at_the_lowest_level_is_read_again(dtype):
    total = ArraySum((1,), dtype)
    total.add(np.array([np.finfo(dtype).smallest_subnormal], dtype))
    total.add(np.array([0.0], dtype), 1e-300)
    again = ArraySum.decode(total.encode())
    assert again.value()[0] == np.finfo(dtype).smallest_subnormal
    lowest = ArraySum((1,), "float64")
    lowest.add(np.array([5e-324]))
    assert ArraySum.decode(lowest.encode()).value()[0] == 5e-324
