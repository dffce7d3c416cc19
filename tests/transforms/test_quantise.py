"""Few bits for each entry: against references written out, without bias, and as wrong as the papers say."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.core.arrays import Arrays
from umbel.core.randomness import Key
from umbel.core.transform import chain
from umbel.core.update import Update
from umbel.errors import SettingError
from umbel.transforms import drive, eden, lloyd_max, quantise, rotate
from umbel.transforms.lloyd_max import LEVELS

KEY = Key.from_seed(11)


def received(steps, values, key=KEY):
    whole, item = chain(steps), Update(Arrays({"w": values}), delta=True)
    schema = item.arrays.schema
    params = whole.send(whole.init(schema))
    return whole.decode(whole.encode(item, params, None, key)[0], params, schema).arrays["w"]


def fresh(at):
    return KEY.derive("again", at)


def nmse(steps, values, key=KEY):
    return float(np.square(received(steps, values, key) - values).sum() / np.square(values).sum())


def mean_of(steps, values, times):
    return sum(received(steps, values, fresh(i)).astype(np.float64) for i in range(times)) / times


# References


def levels_of(step):
    if step.kind == "e3m0":
        sizes = [0.0, *(2.0**e for e in range(-6, 1))]
        return sorted({s * size for size in sizes for s in (-1, 1)})
    top = 2 ** (step.bits - 1) - 1
    return [-1.0, 1.0] if step.bits == 1 else [q / top for q in range(-top, top + 1)]


def reference(step, values, key):
    """What is received of a row of float64, entry by entry: between the levels around it, one is drawn."""
    rows = -(-values.size // step.block) * step.block
    words = key.derive("part", 0).derive("w").draws().words(-(-rows // 4)).tolist()
    found = []
    for at, value in enumerate(values.tolist()):
        block = np.abs(values[at // step.block * step.block :][: step.block])
        if step.bits == 1 and not step.stochastic:
            found.append(math.copysign(block.mean(), value) if value else block.mean())
            continue
        scale = block.max()
        if not scale:
            found.append(0.0)
            continue
        u = ((words[at // 4] >> 16 * (at % 4) & 0xFFFF) + 0.5) / 65536 if step.stochastic else 0.5
        x, levels = value / scale, levels_of(step)
        low = max(level for level in levels if level <= x)
        high = min(level for level in levels if level >= x)
        if step.kind == "e3m0" and x < 0:
            low, high = high, low
        up = abs(x - low) / abs(high - low) if high != low else 0.0
        found.append(scale * (high if up >= 1 - u else low))
    return np.array(found)


QUANTISERS = [
    *(quantise(bits, stochastic=s, block=16) for bits in (1, 2, 4, 8) for s in (False, True)),
    quantise(4, kind="e3m0", block=16),
    quantise(4, kind="e3m0", stochastic=False, block=16),
]


@pytest.mark.parametrize("step", QUANTISERS, ids=repr)
def test_it_is_what_the_reference_says(step):
    values = np.random.default_rng(1).standard_t(3, size=210)
    values[32:49] = 0
    np.testing.assert_allclose(received(step, values), reference(step, values, KEY), rtol=1e-12, atol=1e-12)


@given(
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=33, max_size=70),
    step=st.sampled_from([s for s in QUANTISERS if s.stochastic or s.bits > 1]),
    seed=st.integers(0, 100),
)
def test_no_entry_is_off_by_more_than_the_distance_of_its_levels(values, step, seed):
    values = np.array(values, np.float32)
    got = received(step, values, Key.from_seed(seed)).astype(np.float64)
    scales = np.repeat([np.abs(values[i : i + 16]).max() for i in range(0, values.size, 16)], 16)[: values.size]
    size = np.abs(values.astype(np.float64))
    if step.kind == "e3m0":
        ratio = np.divide(size, scales, out=np.zeros_like(size), where=scales > 0)
        distance = scales * np.where(ratio < 2**-6, 2**-6, 2.0 ** np.floor(np.log2(np.maximum(ratio, 1e-30))))
    else:
        distance = 2.0 * scales / max(1, 2**step.bits - 2)
    allowed = distance * (1 if step.stochastic else 0.5)
    assert (np.abs(got - values) <= allowed * (1 + 1e-5) + 1e-37).all()


@pytest.mark.parametrize("step", [s for s in QUANTISERS if s.stochastic], ids=repr)
def test_the_mean_of_many_is_what_was_sent(step):
    values = np.random.default_rng(2).normal(size=200).astype(np.float32)
    times = 600
    got = mean_of(step, values, times)
    each = np.array([received(step, values, fresh(i)) for i in range(20)])
    deviation = np.maximum(each.std(0), 1e-3) / math.sqrt(times)
    assert np.abs(got - values).max() / deviation.max() < 5
    assert abs((got - values).mean()) < 5 * deviation.mean() / math.sqrt(values.size) + 2**-17


def test_a_bound_lowers_scales_where_the_norm_would_grow_and_nowhere_else():
    values = np.random.default_rng(3).normal(size=512)
    free, bounded = (received(quantise(4, block=64, bounded=b), values) for b in (False, True))
    for at in range(0, 512, 64):
        block, plain = values[at : at + 64], free[at : at + 64]
        factor = min(1.0, np.linalg.norm(block) / np.linalg.norm(plain))
        np.testing.assert_allclose(bounded[at : at + 64], plain * factor, rtol=1e-12)
    assert (free == bounded).any()
    assert (free != bounded).any()


@pytest.mark.parametrize(
    "made",
    [
        lambda: quantise(3),
        lambda: quantise(True),
        lambda: quantise(16),
        lambda: quantise(8, kind="e3m0"),
        lambda: quantise(4, kind="e4m0"),
        lambda: quantise(8, block=12),
        lambda: quantise(8, block=0),
        lambda: lloyd_max(8),
        lambda: lloyd_max(2, block=4),
        lambda: rotate(48),
        lambda: rotate(1),
        lambda: drive(block=100),
    ],
)
def test_settings_are_checked_when_it_is_made(made):
    with pytest.raises(SettingError, match="takes"):
        made()


# Rotated


def hadamard(size):
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / math.sqrt(size)


def rotation(key, size, block):
    """The rotated form of a row, as a matrix: signs, then the Hadamard matrix of each block."""
    seed = Key.from_seed(key.derive("part", 0).integer(64))
    parts = [block] * (size // block) + ([1 << (size % block - 1).bit_length()] if size % block else [])
    matrix = np.zeros((sum(parts), sum(parts)))
    for i, part in enumerate(parts):
        at = sum(parts[:i])
        matrix[at : at + part, at : at + part] = hadamard(part)
    words = seed.derive("w").draws().words(-(-sum(parts) // 64)).tolist()
    signs = [1 - 2 * (words[i // 64] >> (i % 64) & 1) for i in range(sum(parts))]
    return (matrix * signs)[:, :size], parts


@pytest.mark.parametrize("size", [2, 3, 32, 33, 100])
def test_a_rotation_is_a_hadamard_matrix_and_signs(size):
    values = np.random.default_rng(size).normal(size=size)
    step, item = rotate(32), Update(Arrays({"w": values}), delta=True)
    sent, _ = step.encode(item, None, None, KEY.derive("part", 0))
    np.testing.assert_allclose(sent.arrays["w:rotated"], rotation(KEY, size, 32)[0] @ values, atol=1e-12)
    np.testing.assert_allclose(received(step, values), values, atol=1e-12)
    assert math.isclose(np.linalg.norm(sent.arrays["w:rotated"]), np.linalg.norm(values))


@pytest.mark.parametrize("bits", [0, 1, 2, 4])
def test_drive_and_eden_are_what_their_papers_say(bits):
    """0: the biased form of DRIVE; else EDEN, which with one bit is DRIVE without bias."""
    values = np.random.default_rng(4).lognormal(size=150)
    matrix, parts = rotation(KEY, 150, 64)
    rotated, made = matrix @ values, []
    for at, part in zip(np.cumsum([0, *parts]), parts, strict=False):
        row = rotated[at : at + part]
        if not bits:
            made.append(np.abs(row).mean() * np.where(row >= 0, 1, -1))
            continue
        levels = np.array([s * level for level in LEVELS[bits] for s in (-1, 1)])
        normal = row * math.sqrt(part) / np.linalg.norm(row)
        nearest = levels[np.abs(normal[:, None] - levels).argmin(1)]
        made.append(nearest * (row @ row) / (row @ nearest))
    steps = eden(bits, block=64) if bits else drive(unbiased=False, block=64)
    np.testing.assert_allclose(received(steps, values), matrix.T @ np.concatenate(made), atol=1e-9)
    if bits == 1:
        assert (received(drive(block=64), values) == received(steps, values)).all()


@pytest.mark.parametrize(
    ("steps", "paper"),
    [
        (drive(unbiased=False), 1 - 2 / math.pi),
        (drive(), math.pi / 2 - 1),
        (eden(1), 0.571),
        (eden(2), 0.133),
        (eden(4), 0.0096),
    ],
    ids=["biased", "drive", "1", "2", "4"],
)
@pytest.mark.parametrize("kind", ["normal", "lognormal"])
def test_they_err_as_their_papers_say_whatever_the_entries(steps, paper, kind):
    values = getattr(np.random.default_rng(5), kind)(size=1 << 15).astype(np.float32)
    found = np.mean([nmse(steps, values, fresh(i)) for i in range(4)])
    assert math.isclose(found, paper, rel_tol=0.03)


@pytest.mark.parametrize("steps", [drive(block=512), eden(2, block=512)], ids=["drive", "eden"])
def test_their_mean_is_what_was_sent(steps):
    values = np.random.default_rng(6).lognormal(size=2000).astype(np.float32)
    times, one = 100, nmse(steps, values)
    off = np.square(mean_of(steps, values, times) - values).sum() / np.square(values).sum()
    assert off < 2 * one / times  # one Hadamard transform is not a uniform rotation: a little bias stays
