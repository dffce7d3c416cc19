"""Keys and draws, against a port in plain Python that was written from the module's text, and against pinned values."""

from __future__ import annotations

import copy
import math
import os
import pickle
import statistics
import subprocess
import sys
import tracemalloc
from collections import Counter
from hashlib import blake2b
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.core.randomness import Draws, Key

MASK = (1 << 64) - 1
KEY = Key.from_seed(20240229)
seeds = st.integers(-(2**70), 2**70)
parts = st.lists(st.one_of(st.integers(), st.text(), st.binary()), min_size=1, max_size=5)


def philox4x64_10(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """One block of Salmon et al. 2011."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b, c, d = (second >> 64) ^ b ^ k0, second & MASK, (first >> 64) ^ d ^ k1, first & MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return a, b, c, d


class Port:
    """The stream of a key and its mappings, one value at a time."""

    def __init__(self, key: Key) -> None:
        digest = blake2b(b"draws/1:", digest_size=16, key=key.raw).digest()
        self.key = (int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little"))
        self.used = 0

    def word(self) -> int:
        block, place = divmod(self.used, 4)
        self.used += 1
        return philox4x64_10((block + 1, 0, 0, 0), self.key)[place]

    def open(self) -> float:
        return (self.word() // 2**12 + 0.5) * 2.0**-52

    def below(self, bound: int) -> int:
        while True:
            word = self.word()
            if word < 2**64 // bound * bound:
                return word % bound

    def permutation(self, n: int) -> list[int]:
        words = [self.word() for _ in range(n)]
        return sorted(range(n), key=words.__getitem__)

    def sample(self, population: int, k: int) -> list[int]:
        if 2 * k > population:
            return self.permutation(population)[:k]
        kept: dict[int, None] = {}
        while len(kept) < k:
            kept.setdefault(self.below(population))
        return list(kept)

    def bernoulli(self, p: float, population: int) -> list[int]:
        taken = []
        at = math.floor(log(self.open()) / log_of_one_minus(p))
        while at < population:
            taken.append(at)
            at += 1 + math.floor(log(self.open()) / log_of_one_minus(p))
        return taken

    def weighted(self, weights: list[float], k: int) -> list[int]:
        logs = [log(self.open()) for _ in weights]
        largest = max(weights)
        scores = {i: logs[i] / (w / largest) for i, w in enumerate(weights) if w > 0}
        return sorted(scores, key=lambda i: (-scores[i], i))[:k]


def twice_artanh(s: float) -> float:
    total = 1 / 21
    for odd in range(19, 0, -2):
        total = total * (s * s) + 1 / odd
    return 2.0 * s * total


def log(x: float) -> float:
    m, e = math.frexp(x)
    if m < math.sqrt(0.5):
        m, e = 2 * m, e - 1
    return e * 6.93147180369123816490e-01 + (e * 1.90821492927058770002e-10 + twice_artanh((m - 1) / (m + 1)))


def log_of_one_minus(p: float) -> float:
    return log(1 - p) if p > 0.25 else -twice_artanh(p / (2 - p))


class Scripted(Draws):
    """A stream whose words are given."""

    __slots__ = ("script",)

    def __init__(self, *script: int) -> None:
        super().__init__(KEY)
        self.script = list(script)

    def words(self, n: int) -> np.ndarray:
        now, self.script = self.script[:n], self.script[n:]
        return np.array(now, dtype=np.uint64)


def chi_square(counts: list[int] | np.ndarray, expected: list[float] | float) -> float:
    """Pearson's statistic in standard deviations above its mean (roughly normal for many cells)."""
    cells = np.asarray(counts, dtype=float)
    statistic = float(((cells - expected) ** 2 / expected).sum())
    freedom = cells.size - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def test_philox_port_gives_the_published_vectors():
    assert philox4x64_10((0, 0, 0, 0), (0, 0)) == (
        0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B,
    )  # fmt: skip
    assert philox4x64_10((MASK,) * 4, (MASK, MASK)) == (
        0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0,
    )  # fmt: skip


class TestKey:
    def test_pinned(self):
        assert KEY.hex() == "9e7f1c0738319e48c37a3f94f3bb1e9ea2e2f64c9ee799968b7fbef380c1bd65"
        assert KEY.derive("cohort", 3).hex() == "32867bc351cf33006c94f8a58be031583ef73f1267ed31e5bf21ee93e22bf341"
        assert (
            KEY.derive("task", -1, b"\x00\xff", "Größe").hex()
            == "d63d005c7a7132fedb4afc82a55530201fded830c5cb0b13eb02b0aa4bb99ca5"
        )
        assert KEY.integer() == 11644101017237710027

    def test_encoding_is_as_written(self):
        message = b"derive/1:s5:traini1:7b2:\x00:s0:i3:-12s2:\xc3\xa9"
        assert (
            KEY.derive("train", 7, b"\x00:", "", -12, "é").raw == blake2b(message, digest_size=32, key=KEY.raw).digest()
        )
        assert Key.from_seed(12).raw == blake2b(b"seed/1:i2:12", digest_size=32).digest()

    @given(parts, parts)
    def test_different_parts_give_different_keys(self, one, other):
        same = [(type(p), p) for p in one] == [(type(p), p) for p in other]
        assert (KEY.derive(*one) == KEY.derive(*other)) == same

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (("ab",), ("a", "b")),
            (("1",), (1,)),
            ((b"1",), ("1",)),
            ((12,), (1, 2)),
            (("s1:a",), ("a",)),
            (("a", ""), ("a",)),
            ((1, 2), (2, 1)),
        ],
    )
    def test_parts_do_not_run_together(self, one, other):
        assert KEY.derive(*one) != KEY.derive(*other)

    def test_deriving_twice_differs_from_deriving_once(self):
        assert KEY.derive("a").derive("b") != KEY.derive("a", "b")

    @given(seeds, seeds)
    def test_seeds_give_different_keys(self, one, other):
        assert (Key.from_seed(one) == Key.from_seed(other)) == (one == other)

    def test_numpy_integers_are_integers(self):
        assert KEY.derive(np.int64(-5), np.uint8(3)) == KEY.derive(-5, 3)
        assert Key.from_seed(np.int32(4)) == Key.from_seed(4)

    def test_integer_is_the_low_bits(self):
        whole = KEY.integer(512)
        assert all(KEY.integer(bits) == whole % 2**bits for bits in (1, 32, 64, 128, 511))
        assert whole.to_bytes(64, "little") == blake2b(b"integer/1:", digest_size=64, key=KEY.raw).digest()
        assert whole.to_bytes(64, "little")[:32] != KEY.raw

    def test_repr_hides_the_secret(self):
        for shown in (repr(KEY), str(KEY), f"{KEY}", repr({"key": KEY}), repr(KEY.draws())):
            assert KEY.hex()[:8] not in shown
            assert repr(KEY.raw)[2:10] not in shown

    def test_is_a_value(self):
        assert pickle.loads(pickle.dumps(KEY)) == copy.copy(KEY) == Key(bytes.fromhex(KEY.hex())) == KEY
        assert len({KEY, Key(KEY.raw), KEY.derive("a")}) == 2
        with pytest.raises(AttributeError):
            KEY.raw = bytes(32)  # type: ignore[misc]

    @pytest.mark.parametrize("wrong", [True, np.True_, 1.0, None, ("a",), bytearray(b"a")])
    def test_other_parts_are_refused(self, wrong):
        with pytest.raises(TypeError):
            KEY.derive("a", wrong)

    def test_nonsense_is_refused(self):
        for wrong in (True, np.True_, 1.5, "7"):
            with pytest.raises(TypeError):
                Key.from_seed(wrong)
        with pytest.raises(ValueError, match="at least one part"):
            KEY.derive()
        for raw in (bytes(31), bytearray(32), "0" * 32):
            with pytest.raises(ValueError, match="32 bytes"):
                Key(raw)
        for bits in (0, 513):
            with pytest.raises(ValueError, match="1 to 512"):
                KEY.integer(bits)

    def test_generator_is_numpys_and_not_the_stream_of_draws(self):
        generator = KEY.generator()
        assert isinstance(generator, np.random.Generator)
        words = generator.bit_generator.random_raw(8)
        assert (words == KEY.generator().bit_generator.random_raw(8)).all()
        assert not np.isin(words, KEY.draws().words(64)).any()


class TestAgainstThePort:
    @given(seeds, st.integers(0, 40))
    def test_words(self, seed, n):
        key, port = Key.from_seed(seed), Port(Key.from_seed(seed))
        assert key.draws().words(n).tolist() == [port.word() for _ in range(n)]

    @given(seeds, st.one_of(st.integers(1, 300), st.integers(2**60, 2**63), st.just(3 << 61)))
    def test_integers(self, seed, bound):
        draws, port = Key.from_seed(seed).draws(), Port(Key.from_seed(seed))
        assert draws.integers(bound, 20).tolist() == [port.below(bound) for _ in range(20)]
        assert draws.words(1)[0] == port.word()

    @given(seeds, st.integers(0, 300), st.data())
    def test_sample(self, seed, population, data):
        k = data.draw(st.integers(0, population))
        draws, port = Key.from_seed(seed).draws(), Port(Key.from_seed(seed))
        assert draws.sample(population, k).tolist() == port.sample(population, k)
        assert draws.words(1)[0] == port.word()

    @given(seeds, st.floats(1e-320, 0.999999), st.integers(0, 400))
    def test_bernoulli(self, seed, p, population):
        draws, port = Key.from_seed(seed).draws(), Port(Key.from_seed(seed))
        p = max(p, 1e-290)  # Python refuses the division that overflows
        assert draws.bernoulli(p, population).tolist() == port.bernoulli(p, population)
        assert draws.words(5).tolist() == [port.word() for _ in range(5)]

    @given(seeds, st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e3)), min_size=1, max_size=60), st.data())
    def test_weighted(self, seed, weights, data):
        k = data.draw(st.integers(0, sum(w > 0 for w in weights)))
        draws, port = Key.from_seed(seed).draws(), Port(Key.from_seed(seed))
        expected = port.weighted(weights, k) if any(weights) else []
        assert draws.weighted(weights, k).tolist() == expected

    def test_weighted_of_more_than_is_worked_on_at_a_time(self):
        weights = [(7 * i) % 11 for i in range(50_000)]
        assert KEY.draws().weighted(weights, 9).tolist() == Port(KEY).weighted(weights, 9)

    @given(seeds)
    def test_uniform_and_permutation(self, seed):
        draws, port = Key.from_seed(seed).draws(), Port(Key.from_seed(seed))
        assert draws.uniform(5).tolist() == [(port.word() >> 11) / 2**53 for _ in range(5)]
        assert draws.permutation(30).tolist() == port.permutation(30)

    @given(seeds)
    def test_normal(self, seed):
        draws, port = Key.from_seed(seed).draws(), Port(Key.from_seed(seed))
        quantile = statistics.NormalDist().inv_cdf
        expected = [quantile(port.open()) for _ in range(30)]
        np.testing.assert_allclose(draws.normal(30), expected, rtol=1e-13, atol=1e-15)
        assert draws.words(1)[0] == port.word()


class TestPinned:
    """Exact values: a change here is a change of every stream, on every machine and in every port."""

    def test_words(self):
        assert KEY.draws().words(5).tolist() == [
            7429271874038720586,
            10482383459749634787,
            14509592403941133829,
            11786607823553860842,
            11225210736120775681,
        ]

    def test_uniform(self):
        assert [x.hex() for x in KEY.draws().uniform(4).tolist()] == [
            "0x1.9c684da13f83ap-2",
            "0x1.22f1d06feb9d4p-1",
            "0x1.92b8dad5213c1p-1",
            "0x1.4724e2bc1b892p-1",
        ]

    def test_integers(self):
        assert KEY.draws().integers(6, 12).tolist() == [0, 3, 1, 0, 1, 3, 1, 4, 1, 5, 4, 4]
        assert KEY.draws().integers(3 << 61, 4).tolist() == [
            511742846397638730,
            3564854432108552931,
            4869078795912778986,
            4307681708479693825,
        ]

    def test_normal(self):
        assert [x.hex() for x in KEY.draws().normal(8).tolist()] == [
            "-0x1.f8559b205d3cfp-3",
            "0x1.6019674c36ca7p-3",
            "0x1.96d12a9127a64p-1",
            "0x1.6c32c281d6ff2p-2",
            "0x1.1a131645193cdp-2",
            "-0x1.ca575e8106b79p-2",
            "0x1.0a62e7be1bc63p-1",
            "-0x1.38f12b1974718p-1",
        ]

    def test_normal_in_bulk(self):
        assert (
            blake2b(KEY.draws().normal(200_000).astype("<f8").tobytes(), digest_size=8).hexdigest()
            == "a6ba64df636168f2"
        )

    def test_permutation(self):
        assert KEY.draws().permutation(10).tolist() == [9, 7, 5, 0, 1, 4, 3, 6, 8, 2]

    def test_sample(self):
        assert KEY.draws().sample(15_000_000, 5).tolist() == [8720586, 4634787, 11133829, 8860842, 775681]
        assert KEY.draws().sample(2**62, 3).tolist() == [2817585855611332682, 1259011422894858979, 674534348658970117]
        large = KEY.draws().sample(1_000_000, 400_000).astype("<i8").tobytes()
        assert blake2b(large, digest_size=8).hexdigest() == "8a8c8ded9b698669"

    def test_bernoulli(self):
        assert KEY.draws().bernoulli(0.01, 1000).tolist() == [
            90,
            147,
            171,
            216,
            266,
            378,
            414,
            545,
            576,
            708,
            729,
            741,
            808,
            821,
        ]
        assert KEY.draws().bernoulli(0.5, 20).tolist() == [1, 2, 3, 4, 5, 7, 8, 10, 11, 13, 14, 15, 16, 17]

    def test_weighted(self):
        assert KEY.draws().weighted([1, 0, 2, 5, 0.5, 10], 4).tolist() == [3, 5, 2, 0]


class TestStream:
    @given(st.lists(st.integers(0, 9), max_size=8))
    def test_cutting_a_stream_changes_nothing(self, sizes):
        whole, cut = KEY.draws(), KEY.draws()
        assert whole.words(sum(sizes)).tolist() == [w for n in sizes for w in cut.words(n).tolist()]
        assert whole.normal(sum(sizes)).tolist() == [x for n in sizes for x in cut.normal(n).tolist()]
        assert whole.integers(3 << 61, sum(sizes)).tolist() == [
            x for n in sizes for x in cut.integers(3 << 61, n).tolist()
        ]

    def test_draws_start_anew_and_keys_do_not_share_words(self):
        assert (KEY.draws().words(100) == KEY.draws().words(100)).all()
        streams = np.concatenate([KEY.derive("client", c).draws().words(100) for c in range(100)])
        assert np.unique(streams).size == streams.size

    def test_bernoulli_uses_one_word_more_than_it_finds(self):
        for p, population in ((0.5, 3_000_000), (0.001, 1000), (1e-9, 100)):
            draws = KEY.draws()
            found = draws.bernoulli(p, population).size
            assert draws.words(3).tolist() == KEY.draws().words(found + 4)[-3:].tolist()

    def test_bernoulli_gives_words_back_in_order(self):
        draws = KEY.draws()
        used = sum(draws.bernoulli(0.3, 10).size + 1 for _ in range(50))
        assert draws.words(40).tolist() == KEY.draws().words(used + 40)[-40:].tolist()

    def test_streams_of_keys_are_uncorrelated(self):
        normals = np.stack([KEY.derive(i).draws().normal(4000) for i in range(60)])
        correlation = np.corrcoef(normals)[np.triu_indices(60, 1)]
        assert np.abs(correlation).max() < 5 / math.sqrt(4000)
        assert abs(np.std(correlation) * math.sqrt(4000) - 1) < 0.1

    def test_equal_words_order_by_index(self):
        assert Scripted(5, 1, 5, 1, 0).permutation(5).tolist() == [4, 1, 3, 0, 2]
        assert Scripted(*(w << 12 for w in (9, 9, 7, 9, 9))).weighted([1, 1, 1, 1, 1], 3).tolist() == [0, 1, 3]

    def test_integers_skip_words_past_the_last_whole_multiple(self):
        assert Scripted(MASK, 11, MASK, MASK - 1, 4).integers(10, 2).tolist() == [1, 4]
        assert Scripted(MASK, 7).integers(2**63, 2).tolist() == [2**63 - 1, 7]

    def test_importing_loads_no_generator(self):
        code = (
            "import sys, numpy; before = 'numpy.random' in sys.modules; import umbel.core.randomness, umbel.samplers; "
            "sys.exit(not before and 'numpy.random' in sys.modules)"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


class TestDistributions:
    def test_uniform(self):
        values = KEY.draws().uniform(100_000)
        assert values.min() >= 0
        assert values.max() < 1
        assert abs(chi_square(np.bincount((values * 100).astype(int), minlength=100), 1000)) < 4

    def test_integers(self):
        for bound in (2, 7, 10, 1000):
            counts = np.bincount(KEY.derive(bound).draws().integers(bound, 200 * bound), minlength=bound)
            assert abs(chi_square(counts, 200)) < 4

    def test_integers_with_much_skipping_are_even(self):
        values = KEY.draws().integers(3 << 61, 60_000)
        assert abs(chi_square(np.bincount(values >> 58, minlength=24), 2500)) < 4

    def test_normal(self):
        values = np.sort(KEY.draws().normal(100_000))
        normal = statistics.NormalDist()
        cumulative = np.array([normal.cdf(x) for x in values[::10].tolist()])
        assert np.abs(cumulative - np.arange(0, 100_000, 10) / 100_000).max() < 1.95 / math.sqrt(100_000)
        assert abs(values.mean()) < 4 / math.sqrt(100_000)
        assert abs(values.var() - 1) < 4 * math.sqrt(2 / 100_000)

    def test_normal_at_the_ends_and_the_seams(self):
        quantile = statistics.NormalDist().inv_cdf
        words = [0, 1 << 12, 1 << 20, 1 << 40, int(0.075 * 2**64), int(0.0750001 * 2**64), 1 << 63, MASK]
        expected = [quantile((w // 2**12 + 0.5) * 2**-52) for w in words]
        np.testing.assert_allclose(Scripted(*words).normal(8), expected, rtol=1e-13)
        low, high = Scripted(0, MASK).normal(2)
        assert low == -high
        assert 8.2 < high < 8.3

    def test_permutations_are_equally_likely(self):
        draws = KEY.draws()
        counts = Counter(tuple(draws.permutation(4).tolist()) for _ in range(4800))
        assert abs(chi_square([counts[p] for p in permutations(range(4))], 200)) < 4

    @pytest.mark.parametrize("population", [5, 6, 8])
    def test_ordered_samples_are_equally_likely(self, population):
        """Three of five comes from a permutation, three of six or eight from rejection."""
        draws = KEY.derive(population).draws()
        cells = list(permutations(range(population), 3))
        counts = Counter(tuple(draws.sample(population, 3).tolist()) for _ in range(40 * len(cells)))
        assert abs(chi_square([counts[cell] for cell in cells], 40)) < 4

    def test_bernoulli_takes_each_index_alike_and_apart(self):
        draws = KEY.draws()
        for p in (0.02, 0.3, 0.9):
            hits = np.zeros((2000, 50), bool)
            for row in hits:
                row[draws.bernoulli(p, 50)] = True
            expected = 2000 * p
            scatter = ((hits.sum(axis=0) - expected) ** 2 / (expected * (1 - p))).sum()  # chi-square, 50 degrees
            assert abs(scatter - 50) < 4 * math.sqrt(2 * 50)
            assert abs(hits.sum() - 50 * expected) < 4 * math.sqrt(50 * expected * (1 - p))
            correlation = np.corrcoef(hits.astype(float).T)[np.triu_indices(50, 1)]
            # Not the largest, which has a heavy tail where hits are rare: the mean square is 1 / 2000, within 5 %.
            assert abs((correlation**2).mean() * 2000 - 1) < 0.25
            sizes = hits.sum(axis=1)
            assert abs(sizes.var() / (50 * p * (1 - p)) - 1) < 0.15

    def test_bernoulli_over_a_vast_population(self):
        found = KEY.draws().bernoulli(1e-12, 2**53)
        assert abs(found.size - 2**53 * 1e-12) < 5 * math.sqrt(2**53 * 1e-12)
        assert all(a < b for a, b in pairwise(found.tolist()))
        assert found[-1] < 2**53

    def test_weighted_follows_the_odds_of_drawing_one_after_the_other(self):
        weights = [1.0, 2.0, 3.0, 0.0, 4.0]
        draws = KEY.draws()
        n = 6000
        counts = Counter(tuple(draws.weighted(weights, 2).tolist()) for _ in range(n))
        pairs = [(a, b) for a in (0, 1, 2, 4) for b in (0, 1, 2, 4) if a != b]
        expected = [n * weights[a] / 10 * weights[b] / (10 - weights[a]) for a, b in pairs]
        assert sum(counts[pair] for pair in pairs) == n
        assert abs(chi_square([counts[pair] for pair in pairs], expected)) < 4

    def test_weights_count_only_relative_to_each_other(self):
        weights = KEY.derive("weights").draws().uniform(500)
        chosen = KEY.draws().weighted(weights, 50).tolist()
        for scale in (2.0**-900, 2.0**60, 2.0**900):
            assert KEY.draws().weighted(weights * scale, 50).tolist() == chosen

    def test_weighted_never_takes_zero_before_the_faintest(self):
        assert sorted(KEY.draws().weighted([0.0, 1e-320, 1e300, 0.0, 5e-324], 3).tolist()) == [1, 2, 4]


class TestLimits:
    @given(seeds, st.integers(1, 2**62), st.integers(0, 500))
    def test_samples_are_different_and_in_range(self, seed, population, k):
        k = min(k, population)
        chosen = Key.from_seed(seed).draws().sample(population, k)
        assert chosen.dtype == np.int64
        assert chosen.size == np.unique(chosen).size == k
        assert not k or (chosen.min() >= 0 and chosen.max() < population)

    @pytest.mark.slow
    @pytest.mark.parametrize(("population", "k"), [(1_000_000, 1_000_000), (2_000_000, 1_000_000), (2**62, 300_000)])
    def test_sample_of_millions(self, population, k):
        chosen = KEY.draws().sample(population, k)
        assert np.unique(chosen).size == k
        assert chosen.max() < population

    def test_sample_needs_memory_for_what_it_takes(self):
        KEY.draws().sample(15_000_000, 1000)
        tracemalloc.start()
        try:
            KEY.draws().sample(15_000_000, 1000)
            KEY.draws().bernoulli(1e-4, 15_000_000)
            assert tracemalloc.get_traced_memory()[1] < 500_000
        finally:
            tracemalloc.stop()

    def test_nothing_asked_is_nothing_used(self):
        draws = KEY.draws()
        empty = (
            draws.words(0), draws.uniform(0), draws.normal(0), draws.integers(5, 0), draws.permutation(0),
            draws.sample(9, 0), draws.sample(0, 0), draws.bernoulli(0.0, 9), draws.bernoulli(1.0, 0),
            draws.weighted([], 0),
        )  # fmt: skip
        assert all(array.size == 0 for array in empty)
        assert [a.dtype.kind for a in empty] == list("uffiiiiiii")
        assert draws.bernoulli(1.0, 4).tolist() == [0, 1, 2, 3]
        assert draws.words(1)[0] == KEY.draws().words(1)[0]

    @pytest.mark.parametrize("p", [5e-324, 1e-300, 1e-17])
    def test_hardly_any_probability(self, p):
        assert KEY.draws().bernoulli(p, 2**53).size <= 1

    @pytest.mark.parametrize(
        "wrong",
        [
            lambda d: d.words(-1),
            lambda d: d.integers(0, 1),
            lambda d: d.integers(2**63 + 1, 1),
            lambda d: d.sample(3, 4),
            lambda d: d.sample(-1, 0),
            lambda d: d.sample(3, -1),
            lambda d: d.bernoulli(1.5, 3),
            lambda d: d.bernoulli(-0.1, 3),
            lambda d: d.bernoulli(math.nan, 3),
            lambda d: d.bernoulli(0.5, 2**53 + 1),
            lambda d: d.weighted([1.0, 0.0], 2),
            lambda d: d.weighted([1.0, -1.0], 1),
            lambda d: d.weighted([1.0, math.nan], 1),
            lambda d: d.weighted([1.0, math.inf], 1),
            lambda d: d.weighted([[1.0]], 1),
        ],
    )
    def test_nonsense_is_refused(self, wrong):
        with pytest.raises(ValueError, match=r"\w"):
            wrong(KEY.draws())

    def test_counts_are_whole_numbers(self):
        with pytest.raises(TypeError):
            KEY.draws().words(1.5)  # type: ignore[arg-type]


@given(st.lists(st.one_of(st.integers(), st.text(), st.binary()), max_size=3), st.one_of(st.integers(), st.text()))
def test_keys_that_share_their_first_parts_derive_as_by_themselves(
    parts: list[int | str | bytes], last: int | str
) -> None:
    key = Key.from_seed(5)
    deriving = key.deriving(*parts)
    assert deriving(last) == deriving(last) == key.derive(*parts, last)
