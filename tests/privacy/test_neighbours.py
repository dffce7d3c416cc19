"""The graph of a secure sum and its parameters, against exact fractions, every set of a small graph's clients, and what
the paper's authors compute.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from fractions import Fraction
from functools import cache
from hashlib import sha256
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy import stats

from umbel.errors import SettingError
from umbel.privacy.neighbours import _risks, graph, neighbourhood

UNLIKELY = 1e-6
SEED = bytes(range(32))
Neighbours = Sequence[Sequence[int]]


@cache
def at_least(all: int, marked: int, drawn: int, count: int) -> Fraction:
    """The probability that so many of those drawn are marked."""
    ways = range(max(count, 0), min(marked, drawn) + 1)
    return Fraction(sum(math.comb(marked, i) * math.comb(all - marked, drawn - i) for i in ways), math.comb(all, drawn))


def suits(n: int, c: int, d: int, bits: tuple[int, int], malicious: bool, degree: int, threshold: int) -> bool:
    """Whether the three bounds hold, and by more than floats are off, for c corrupted clients and d that drop out."""
    if c + (1 + malicious) * d > n - 2:
        return False
    sure = 1 - Fraction(1, 10**9)
    if malicious:
        apart = at_least(n, c, degree, degree - d)
        recovered = at_least(n - 1, c, degree, 2 * threshold - degree)
    else:
        apart = at_least(n, c + d, degree, degree)
        recovered = at_least(n - 1, c, degree, threshold)
    insecure = Fraction(n * (n - degree - 1), 2) * apart + n * recovered
    lost = n * at_least(n - 1, d, degree, degree - threshold + 1)
    return bool(insecure <= sure / 2 ** bits[0] and lost <= sure / 2 ** bits[1])


def least(n: int, c: int, d: int, bits: tuple[int, int], malicious: bool) -> tuple[int, int] | None:
    """The least degree with its largest threshold, trying one after the other."""
    tried = ((degree, t) for degree in (*range(2, n - 1, 2), n - 1) for t in range(degree, 1, -1))
    return next((each for each in tried if suits(n, c, d, bits, malicious, *each)), None)


def connected(neighbours: Neighbours, left: Collection[int]) -> bool:
    seen, queue = set[int](), [*left][:1]
    while queue:
        at = queue.pop()
        seen.add(at)
        queue += [each for each in neighbours[at] if each in left and each not in seen]
    return len(seen) == len(left)


@st.composite
def settings(draw: st.DrawFn, most: int = 40) -> tuple[int, int, int, tuple[int, int], bool]:
    n = draw(st.integers(3, most))
    c = draw(st.integers(0, n // 2))
    d = draw(st.integers(0, (n - c) // 2))
    return n, c, d, (draw(st.integers(1, 45)), draw(st.integers(1, 30))), draw(st.booleans())


def found(n: int, c: int, d: int, bits: tuple[int, int], malicious: bool) -> tuple[int, int] | None:
    try:
        return neighbourhood(n, c / n, d / n, security=bits[0], correctness=bits[1], malicious=malicious)
    except SettingError:
        return None


@given(settings())
@example((20, 3, 3, (1, 5), False))  # what the second of the events takes of the odds decides
@example((31, 7, 4, (2, 3), False))
def test_it_is_the_least_that_suits_by_exact_fractions(given: tuple[int, int, int, tuple[int, int], bool]) -> None:
    assert found(*given) == least(*given)


@given(settings(400), st.data())
def test_stating_more_takes_no_smaller_degree(
    given: tuple[int, int, int, tuple[int, int], bool], data: st.DataObject
) -> None:
    n, c, d, bits, malicious = given
    here = found(*given)
    assume(here is not None)
    more = data.draw(
        st.sampled_from(
            [
                (n, min(c + 1, n - 1), d, bits, malicious),
                (n, c, min(d + 1, n - 1), bits, malicious),
                (n, c, d, (bits[0] + 1, bits[1]), malicious),
                (n, c, d, (bits[0], bits[1] + 1), malicious),
                (n, c, d, bits, True),
            ]
        )
    )
    there = found(*more)
    assert here is not None
    assert there is None or there[0] >= here[0]


@pytest.mark.parametrize("clients", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.1, 0.05), (0.05, 0.3), (1 / 3, 1 / 3), (0.29, 0.0), (0.0, 0.45)])
@pytest.mark.parametrize("malicious", [False, True])
def test_hundreds_of_clients_suit_too_and_two_neighbours_less_do_not(
    clients: int, shares: tuple[float, float], malicious: bool
) -> None:
    c, d = (round(each * clients - 1 / 3) for each in shares)  # a third is rounded down
    if clients - 1 <= c + (1 + malicious) * d:
        with pytest.raises(SettingError):
            neighbourhood(clients, *shares, malicious=malicious)
        return
    degree, threshold = neighbourhood(clients, *shares, malicious=malicious)
    given = (clients, c, d, (40, 20), malicious)
    assert suits(*given, degree, threshold)
    assert not suits(*given, degree, threshold + 1)
    even = (degree - 1) // 2 * 2
    for fewer in (even, even - 2):
        assert not any(suits(*given, fewer, t) for t in range(2, fewer + 1))


@pytest.mark.parametrize(("n", "degree"), [(7, 2), (8, 2), (9, 4), (8, 4), (9, 6), (8, 6), (7, 6), (6, 5)])
def test_how_often_all_sets_of_that_size_split_the_graph_is_bounded(n: int, degree: int) -> None:
    neighbours, everybody = graph(n, degree, SEED), frozenset(range(n))
    for gone in range(n - 1):
        split = [not connected(neighbours, everybody.difference(each)) for each in combinations(range(n), gone)]
        bound = _risks(n, gone / n, 0, 1, 1, False).apart(degree)
        assert sum(split) / len(split) <= bound * (1 + 1e-12)
        assert (bound == 0) == (not any(split)) or gone > degree  # the fewest that do it are counted exactly
        if gone == degree < n - 2:
            assert bound == pytest.approx(sum(split) / len(split))


@pytest.mark.parametrize(("n", "degree"), [(7, 2), (8, 4), (9, 4), (8, 6)])
@pytest.mark.parametrize("named", [1, 2, 3])
def test_whom_a_server_names_once_it_knows_the_graph_is_bounded_too(n: int, degree: int, named: int) -> None:
    neighbours, everybody = graph(n, degree, SEED), frozenset(range(n))
    for c in range(n - named - 1):
        split = [
            not all(connected(neighbours, honest.difference(each)) for each in combinations(honest, named))
            for honest in map(everybody.difference, combinations(range(n), c))
        ]
        assert sum(split) / len(split) <= _risks(n, c / n, named / n, 1, 1, True).apart(degree) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("n", "c", "d", "bits", "malicious"),
    [
        (12, 2, 2, (3, 2), False), (11, 3, 1, (2, 2), False), (12, 1, 3, (2, 1), False),
        (12, 2, 2, (2, 1), True), (12, 3, 1, (2, 1), True),
    ],
)  # fmt: skip
def test_graphs_are_good_as_often_as_promised(n: int, c: int, d: int, bits: tuple[int, int], malicious: bool) -> None:
    degree, threshold = neighbourhood(n, c / n, d / n, security=bits[0], correctness=bits[1], malicious=malicious)
    assert degree < n - 1
    neighbours, everybody = graph(n, degree, SEED), frozenset(range(n))
    insecure: list[bool] = []
    for corrupted in map(frozenset, combinations(range(n), c)):
        honest = everybody - corrupted
        by = max(len(corrupted.intersection(neighbours[each])) for each in honest)
        recovered = by >= (2 * threshold - degree if malicious else threshold)
        split = [not connected(neighbours, honest.difference(gone)) for gone in combinations(honest, d)]
        insecure += [recovered or any(split)] if malicious else [recovered or each for each in split]
    lost = [
        any(len({*neighbours[each]}.difference(gone)) < threshold for each in everybody)
        for gone in combinations(range(n), d)
    ]
    assert sum(insecure) / len(insecure) <= 2 ** -bits[0]
    assert sum(lost) / len(lost) <= 2 ** -bits[1]


# What the authors' own finder gives (google/federated-compute, graph_parameter_finder_test.cc) for 40 and 20 bits. It
# splits the 40 bits evenly, and has one's neighbours drawn from n clients instead of n - 1.
@pytest.mark.parametrize(
    ("corrupt", "dropped", "degrees"),
    [
        (0.45, 0.45, {100: 92, 1000: 822, 10**4: 3494}),
        pytest.param(0.45, 0.45, {10**5: 5508, 10**6: 6240}, marks=pytest.mark.slow),
        (0.33, 0.33, {10: 8, 100: 68, 1000: 286, 10**4: 422, 10**5: 480, 10**6: 518}),
        (0.05, 0.33, {100: 28, 1000: 72, 10**4: 86, 10**5: 96, 10**6: 102}),
        (0.33, 0.05, {10: 4, 100: 34, 1000: 78, 10**4: 92, 10**5: 102, 10**6: 110}),
        (0.05, 0.05, {10: 2, 100: 12, 1000: 30, 10**4: 34, 10**5: 36, 10**6: 38}),
        (0.33, 0.0, {10: 4, 100: 26, 1000: 38, 10**4: 42, 10**5: 46, 10**6: 50}),
        (0.0, 0.33, {100: 26, 1000: 38, 10**4: 42, 10**5: 46, 10**6: 50}),
        (0.0, 0.0, {10: 2, 10**6: 2}),
    ],
)
def test_the_authors_numbers(corrupt: float, dropped: float, degrees: dict[int, int]) -> None:
    for clients, degree in degrees.items():
        assert neighbourhood(clients, corrupt, dropped)[0] == pytest.approx(degree, rel=0.025, abs=2)


@pytest.mark.parametrize(
    ("clients", "corrupt", "dropped", "degree", "threshold"),
    [
        (100, 0.3, 0.3, 92, 62), (1000, 0.3, 0.3, 872, 584), (10**5, 0.3, 0.3, 9388, 6286),
        (10**4, 0.05, 0.33, 746, 420), (1000, 0.33, 0.05, 132, 109), (10**5, 0.33, 0.05, 196, 160),
        (100, 0.05, 0.05, 16, 11), (10**6, 0.05, 0.05, 74, 52),
    ],
)  # fmt: skip
def test_the_authors_thresholds_where_the_server_lies(
    clients: int, corrupt: float, dropped: float, degree: int, threshold: int
) -> None:
    # Theirs are as tight where secrets are concerned; they do not let the server choose who has dropped out.
    risks = _risks(clients, corrupt, dropped, 41, 20, True)
    assert [*risks.thresholds(degree, risks.insecure)] == [threshold]
    assert [*risks.thresholds(degree - 2, risks.insecure)] == []
    assert neighbourhood(clients, corrupt, dropped, malicious=True)[0] >= max(degree, math.floor(dropped * clients))


@pytest.mark.parametrize("malicious", [False, True])
def test_a_complete_graph_goes_as_far_as_it_did_in_2017(malicious: bool) -> None:
    # With 10 others, of whom c are corrupted and d may stay away, a secret takes t of them.
    for c, d in product(range(10), repeat=2):
        possible = [t for t in range(2, 11 - d) if (2 * t > 10 + c if malicious else t > c)]
        if possible:
            degree, threshold = neighbourhood(11, c / 11, d / 11, security=256, correctness=256, malicious=malicious)
            assert degree < 10 or threshold == possible[-1]
        else:
            with pytest.raises(SettingError, match=f"11 clients of which {c} are corrupted and {d} drop out"):
                neighbourhood(11, c / 11, d / 11, malicious=malicious)


@given(st.integers(3, 30), st.data())
def test_neighbours_are_mutual_and_as_many_as_the_degree(clients: int, data: st.DataObject) -> None:
    degree = data.draw(st.sampled_from([*range(2, clients - 1, 2), clients - 1]))
    seed = data.draw(st.binary(min_size=32, max_size=32))
    neighbours = graph(clients, degree, seed)
    assert len(neighbours) == clients
    for client, own in enumerate(neighbours):
        assert [*own] == sorted({*own} - {client})
        assert len(own) == degree
        assert all(client in neighbours[each] for each in own)
    assert graph(clients, degree, seed) == neighbours


def test_a_graph_for_other_languages() -> None:
    keys = [sha256(b"umbel neighbours 1" + SEED + bytes([0, 0, 0, 0, 0, 0, 0, each])).hexdigest() for each in range(9)]
    ring = sorted(range(9), key=lambda each: keys[each])
    assert ring == [4, 3, 6, 1, 7, 2, 5, 8, 0]
    for degree in (2, 4):
        wanted = [
            tuple(sorted(ring[(ring.index(each) + step) % 9] for i in range(1, degree // 2 + 1) for step in (i, -i)))
            for each in range(9)
        ]
        assert graph(9, degree, SEED) == wanted
    assert graph(9, 4, SEED)[:3] == [(3, 4, 5, 8), (2, 3, 6, 7), (1, 5, 7, 8)]
    assert graph(5, 4, SEED) == [(1, 2, 3, 4), (0, 2, 3, 4), (0, 1, 3, 4), (0, 1, 2, 4), (0, 1, 2, 3)]


def test_every_ring_is_as_likely() -> None:
    seen = Counter(tuple(graph(5, 2, each.to_bytes(32, "big"))) for each in range(3000))
    assert len(seen) == 12
    assert stats.chisquare([*seen.values()]).pvalue > UNLIKELY


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: neighbourhood(2, 0, 0), "at least 3 clients, not 2"),
        (lambda: neighbourhood(True, 0, 0), "at least 3 clients"),
        (lambda: neighbourhood(10, -0.1, 0), "corrupt is a share"),
        (lambda: neighbourhood(10, 0, 1), "dropped is a share"),
        (lambda: neighbourhood(10, math.nan, 0), "corrupt is a share"),
        (lambda: neighbourhood(10, 0, 0, security=0), "security is a whole number of bits from 1 to 256"),
        (lambda: neighbourhood(10, 0, 0, correctness=257), "correctness is a whole number"),
        (lambda: neighbourhood(100, 0.5, 0.5), "would have to be from 51 to 49"),
        (lambda: neighbourhood(100, 0.29, 0.8), "of which 29 are corrupted and 80 drop out"),  # 0.29 * 100 < 29
        (lambda: neighbourhood(100, 0.34, 0.33, malicious=True), "or trust the server"),
        (lambda: graph(10, 3, SEED), "10 clients cannot have 3 neighbours"),
        (lambda: graph(10, 10, SEED), "cannot have 10"),
        (lambda: graph(10, 0, SEED), "cannot have 0"),
        (lambda: graph(10, 2, SEED[1:]), "32 bytes, not 31"),
    ],
)
def test_settings_that_cannot_be(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        call()
