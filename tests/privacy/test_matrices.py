"""Factorisations of running sums: what they promise, against dense algebra, all patterns, and plain counting."""

from itertools import combinations, pairwise
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.core import encoding
from umbel.core.randomness import Key
from umbel.errors import SettingError, StrategyError
from umbel.privacy import matrices
from umbel.privacy.matrices import BandedToeplitz, BinaryTree, Factorisation, banded, momentum, square_root, tree

BANDS = st.lists(st.integers(-9, 9), max_size=5).map(lambda others: (7, *others))


@st.composite
def factorisations(draw, most=9):
    n = draw(st.integers(1, most))
    workload = momentum(n, draw(st.sampled_from([0.0, 0.9]))) if draw(st.booleans()) else (1.0,) * n
    return draw(st.sampled_from([BinaryTree(workload), BandedToeplitz(workload, draw(BANDS)[:n]), banded(n, 3)]))


def patterns(n, participations, separation):
    """All sets of rounds that one client may be in."""
    for size in range(1, participations + 1):
        for rounds in combinations(range(n), size):
            if all(b - a >= separation for a, b in pairwise(rounds)):
                yield [*rounds]


def drawn(n, width, seed=0):
    """Whole numbers, of a standard deviation of 1,000,000."""
    return np.rint(1e6 * Key.from_seed(seed).draws().normal(n * width)).astype(np.int64).reshape(n, width)


def streamed(factorisation, z):
    stream = factorisation.stream()
    return np.array([stream.next(row) for row in z])


def check_noise(factorisation, z):
    """What the stream gives for float64 is C^-1 z."""
    np.testing.assert_allclose(streamed(factorisation, z), np.linalg.solve(factorisation.encoder(), z), 1e-7, 1e-7)


def check_sensitivity(factorisation, participations, separation):
    """Never below what a client can do, and equal to it where that is promised."""
    c = factorisation.encoder()
    found = factorisation.sensitivity(participations, separation)
    sets = [*patterns(factorisation.rounds, participations, separation)]
    largest = max(np.sqrt(np.abs(c[:, rounds].T @ c[:, rounds]).sum()) for rounds in sets)
    assert found >= largest * (1 - 1e-12)
    if participations == 1 or separation >= factorisation.reach:
        assert found == pytest.approx(largest, rel=1e-12)
        reached = max(np.linalg.norm(c[:, rounds].sum(1)) for rounds in sets)  # all vectors alike
        assert found == pytest.approx(reached, rel=1e-12)


def check_covariance(factorisation):
    """Running sums of 2,000 releases' noise have the covariance B B^T: each entry within 4.5 standard errors, beyond
    which one of the 78 would be by chance once in 1,900 times; and all of them together by a sum of 24,000 squares.
    """
    n, releases = factorisation.rounds, 2000
    z = Key.from_seed(3).draws().normal(n * releases).reshape(n, releases)
    sums = np.tril(np.ones((n, n))) @ streamed(factorisation, z)
    b = factorisation.decoder()
    expected, found = b @ b.T, sums @ sums.T / releases
    variances = np.diag(expected)
    errors = np.sqrt((np.outer(variances, variances) + expected**2) / releases)
    assert np.abs((found - expected) / errors).max() < 4.5
    assert abs(np.square(np.linalg.solve(b, sums)).sum() / (n * releases) - 1) < 3 * np.sqrt(2 / (n * releases))


@given(factorisations(40))
def test_the_factors_give_the_workload(factorisation):
    n = factorisation.rounds
    a = [[factorisation.workload[t - s] if t >= s else 0 for s in range(n)] for t in range(n)]
    b, c = factorisation.decoder(), factorisation.encoder()
    assert np.abs(b @ c - a).max() <= 1e-10 * max(1, np.abs(b).max())
    assert (c == np.rint(c)).all()
    assert (c == np.tril(c)).all()
    np.testing.assert_allclose(factorisation.column_norms(), np.square(c).sum(0))
    np.testing.assert_allclose(factorisation.errors(), np.square(b).sum(1) * np.square(c).sum(0).max())


@given(factorisations(), st.integers(1, 4), st.integers(1, 5))
def test_the_sensitivity_is_that_of_the_worst_pattern(factorisation, participations, separation):
    check_sensitivity(factorisation, participations, separation)


@pytest.mark.parametrize("coefficients", [(3, 2, 1), (3, -2, 1)])
def test_columns_that_overlap_by_one_row_are_not_taken_for_orthogonal(coefficients):
    for separation in (1, 2, 3, 4):
        check_sensitivity(BandedToeplitz((1.0,) * 9, coefficients), 3, separation)


def test_sensitivities_that_are_known():
    f = banded(100, 4)
    assert f.sensitivity(5, 4) == pytest.approx(np.sqrt(5) * np.linalg.norm(f.coefficients))
    assert f.sensitivity(1000, 10) == pytest.approx(f.sensitivity(10, 10))  # more do not fit in
    assert f.sensitivity(10, 11) == pytest.approx(
        np.sqrt(9 * sum(c * c for c in f.coefficients) + f.coefficients[0] ** 2)
    )
    for n in (1, 2, 7, 8, 100, 1023, 1024):
        assert tree(n).sensitivity() == pytest.approx(np.sqrt(n.bit_length()))  # one node of each level
    assert banded(30, 1).sensitivity(4) == 2
    assert tree(3).sensitivity(2, 4) == tree(3).sensitivity()  # a client that never comes again


def test_a_general_pattern_of_a_tree_is_bounded_without_much_loss():
    for n, k, b in ((8, 2, 1), (12, 3, 4), (16, 4, 4), (16, 3, 5)):
        c = tree(n).encoder()
        worst = max(np.linalg.norm(c[:, rounds].sum(1)) for rounds in patterns(n, k, b))
        assert worst <= tree(n).sensitivity(k, b) <= 1.3 * worst


@given(factorisations(40), st.integers(0, 2**32))
def test_the_stream_is_the_inverse_of_c(factorisation, seed):
    if isinstance(factorisation, BandedToeplitz) and np.abs(np.roots(factorisation.coefficients)).max(initial=0) > 1.1:
        return  # noise without bound
    check_noise(factorisation, drawn(factorisation.rounds, 2, seed).astype(np.float64))


@given(factorisations(), st.integers(0, 2**32), st.integers(0, 2**32))
def test_releases_of_whole_numbers_are_a_function_of_c_x_and_z_alone(factorisation, seed, other):
    """Two clients' data apart, and noise that makes up for it: not a digit of what is released may differ."""
    n, c = factorisation.rounds, factorisation.encoder().astype(np.int64)
    x, near, z = drawn(n, 3, seed), drawn(n, 3, other), drawn(n, 3, seed ^ 1)
    released = x + streamed(factorisation, z)
    np.testing.assert_array_equal(near + streamed(factorisation, z + c @ (x - near)), released)
    assert 2 * np.abs(c @ (released - x) - z).max() <= c[0, 0]  # the rounding is that of one row by itself


@pytest.mark.parametrize("factorisation", [tree(12), banded(12, 4), banded(12, 12)], ids=["tree", "banded", "full"])
def test_running_sums_have_the_covariance_of_b(factorisation):
    check_covariance(factorisation)


@given(factorisations(20), st.integers(0, 20), st.booleans())
def test_a_stream_goes_on_from_its_state_with_the_same_bits(factorisation, at, whole):
    z = drawn(factorisation.rounds, 3) % 1000
    z = z if whole else z * 0.1
    stream, expected = factorisation.stream(), streamed(factorisation, z)
    for t, row in enumerate(z):
        if t == at:
            stream = factorisation.stream(encoding.decode(encoding.encode(stream.state)))
        assert stream.next(row).tobytes() == expected[t].tobytes()
    assert len(stream.state["past"]) < max(2, factorisation.reach)


def test_memory_is_as_stated():
    stream, z = tree(100).stream(), np.zeros(1)
    for t in range(1, 101):
        stream.next(z)
        assert len(stream.state["past"]) == t.bit_count()


def test_mean_errors_are_those_counted_and_fall_from_independent_to_banded():
    for n in (16, 64, 256):
        independent, trees, best = (f.errors().mean() for f in (banded(n, 1), tree(n), banded(n, 16)))
        assert independent == pytest.approx((n + 1) / 2)
        assert trees == pytest.approx(sum(t.bit_count() for t in range(1, n + 1)) / n * n.bit_length())
        # No factorisation of whatever form has less than this (of nuclear norms); the full band is next to it.
        least = (np.linalg.norm(np.tril(np.ones((n, n))), "nuc") / n) ** 2
        assert least < banded(n, n).errors().mean() < 1.16 * least
        assert best < trees
        assert trees < independent or n == 16  # where a tree costs more than it gives: 10.3 and 8.5


@given(st.integers(2, 24), st.integers(2, 6), st.sampled_from([0.0, 0.9]), st.sampled_from(["mean", "max"]))
def test_coefficients_are_no_worse_than_the_start_and_than_any_near_them(n, bands, beta, error):
    workload = momentum(n, beta)
    found = banded(n, bands, workload, error=error)

    def loss(c):
        dense = np.zeros((n, n))
        for j, each in enumerate(c):
            dense += each * np.eye(n, k=-j)
        b = np.array([[workload[t - s] if t >= s else 0 for s in range(n)] for t in range(n)]) @ np.linalg.inv(dense)
        rows = np.square(b).sum(1)
        return np.square(dense).sum(0).max() * (rows.mean() if error == "mean" else rows.max())

    c = np.array(found.coefficients) / found.coefficients[0]
    summary = found.errors().mean() if error == "mean" else found.errors().max()
    assert summary == pytest.approx(loss(c))
    assert loss(c) <= loss(square_root(workload)[:bands]) * (1 + 1e-6)  # which is the optimum where n is 2
    for step in (0.001, 0.01, 0.1):
        for j in range(1, len(c)):
            for sign in (-1, 1):
                assert loss(c) <= loss(c + sign * step * np.eye(len(c))[j]) * (1 + 1e-6)


@pytest.mark.parametrize(
    ("rounds", "bands", "least"),
    [(16, 4, 3.75402357), (64, 16, 5.52275555), (200, 4, 28.4714850), (200, 16, 11.0998836)],
)
def test_mean_errors_are_those_that_scipy_finds_with_dense_matrices(rounds, bands, least):
    assert banded(rounds, bands).errors().mean() == pytest.approx(least, rel=2e-7)
    assert banded(rounds, bands).errors().mean() < 0.999 * _cut(rounds, bands)


def _cut(rounds, bands):
    start = np.rint(4096 * square_root([1.0] * rounds)[:bands]).astype(int)
    return BandedToeplitz((1.0,) * rounds, tuple(start.tolist())).errors().mean()


def test_the_largest_error_of_all_bands_is_least_at_the_square_root():
    found = banded(64, 64, error="max")
    assert np.abs(found.coefficients - 4096 * square_root(found.workload)).max() <= 1


def test_the_start_is_the_square_root():
    np.testing.assert_allclose(square_root([1.0] * 50), [comb(2 * j, j) / 4**j for j in range(50)])
    root = square_root(momentum(50, 0.9))
    np.testing.assert_allclose(np.convolve(root, root)[:50], momentum(50, 0.9))


def test_what_was_given_away_cannot_be_changed():
    for factorisation in (tree(4), banded(4, 2)):
        stream, z = factorisation.stream(), np.ones(3)
        y = stream.next(z)
        z += 1
        assert not y.flags.writeable
        assert stream.state["past"][0].tolist() != [2, 2, 2]


def test_refusals():
    stream = banded(3, 2).stream()
    stream.next(np.zeros(3))
    with pytest.raises(StrategyError, match="float64 of shape"):
        stream.next(np.zeros((1, 3)))
    with pytest.raises(StrategyError, match="is now int64"):
        stream.next(np.zeros(3, np.int64))
    with pytest.raises(StrategyError, match="float32"):
        stream.next(np.zeros(3, np.float32))
    for _ in range(2):
        stream.next(np.zeros(3))
    with pytest.raises(StrategyError, match="3 rounds, which are over"):
        stream.next(np.zeros(3))
    for other in (tree(3), banded(4, 2), banded(3, 3)):
        with pytest.raises(StrategyError, match="cannot go on"):
            other.stream(stream.state)
    with pytest.raises(StrategyError, match="64 bits"):
        banded(3, 2).stream().next(np.array([1 << 62]))
    for bad in (lambda: tree(0), lambda: banded(3, 0), lambda: tree(3, [1.0]), lambda: tree(2, [0.0, 1.0])):
        with pytest.raises(SettingError):
            bad()
    for bad in (lambda: banded(3, 2, error="least"), lambda: BandedToeplitz((1.0,), (1, 1)), lambda: momentum(0, 0.9)):
        with pytest.raises(SettingError):
            bad()
    for k, b in ((0, 1), (1, 0), (True, 1), (1.5, 1)):
        with pytest.raises(SettingError):
            tree(4).sensitivity(k, b)


def test_planted_a_sensitivity_that_forgets_participations(monkeypatch):
    monkeypatch.setattr(Factorisation, "sensitivity", lambda self, k=1, b=1: np.sqrt(self.column_norms().max()))
    check_sensitivity(banded(9, 2), 1, 2)
    with pytest.raises(AssertionError):
        check_sensitivity(banded(9, 2), 3, 2)


def test_planted_columns_taken_for_orthogonal(monkeypatch):
    monkeypatch.setattr(BandedToeplitz, "reach", property(lambda self: len(self.coefficients) - 1))
    with pytest.raises(AssertionError):
        check_sensitivity(BandedToeplitz((1.0,) * 9, (3, 2, 1)), 2, 2)


def test_planted_a_window_one_too_short(monkeypatch):
    right = BandedToeplitz.correlated

    def short(self, past, z, round):
        return right(self, past[: self.reach - 2], z, round)

    monkeypatch.setattr(BandedToeplitz, "correlated", short)
    with pytest.raises(AssertionError):
        check_noise(banded(12, 4), drawn(12, 2) * 1.0)
    with pytest.raises(AssertionError):
        check_covariance(banded(12, 4))


def test_planted_a_tree_that_keeps_a_node_too_many(monkeypatch):
    right = BinaryTree.correlated
    monkeypatch.setattr(
        BinaryTree, "correlated", lambda self, past, z, t: (right(self, past[:-1], z, t)[0], [*past, z])
    )
    with pytest.raises(AssertionError):
        check_noise(tree(12), drawn(12, 2) * 1.0)
    with pytest.raises(AssertionError):
        check_covariance(tree(12))


def test_planted_rounding_towards_zero(monkeypatch):
    def correlated(self, past, z, round):
        y = np.trunc(matrices._less(z, [*zip(self.coefficients[1:], past, strict=False)]) / self.coefficients[0])
        y = y.astype(np.int64)
        return y, [y, *past][: self.reach - 1]

    monkeypatch.setattr(BandedToeplitz, "correlated", correlated)
    f = BandedToeplitz((1.0,) * 9, (7, 3))
    c, x, z = f.encoder().astype(np.int64), drawn(9, 3), drawn(9, 3, 1)
    assert (streamed(f, z + c @ x) != x + streamed(f, z)).any()
