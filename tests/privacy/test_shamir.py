"""Shamir's secret sharing, against polynomials over Python's integers, and over a tiny field exhaustively."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.core.randomness import Key
from umbel.entropy import SYSTEM, Entropy
from umbel.errors import UpdateRejected
from umbel.privacy import shamir
from umbel.privacy.shamir import recover, split

PRIME = 2**31 - 1
FARTHEST = PRIME - 1
POINTS = st.lists(st.integers(1, 40) | st.integers(1, FARTHEST), min_size=2, max_size=8, unique=True)


def planted(words: Sequence[int]) -> Entropy:
    """Just these words, and not one more."""
    left = list(words)

    def take(n: int) -> Any:
        return np.array([left.pop(0) for _ in range(n)], np.uint64)

    return Entropy(take)


def limbs_of(secret: bytes) -> list[int]:
    whole = int.from_bytes(secret, "little")
    return [whole >> i & (1 << 30) - 1 for i in range(0, 8 * len(secret), 30)]


def value(coefficients: Sequence[int], x: int) -> int:
    result = 0
    for c in reversed(coefficients):
        result = (result * x + c) % PRIME
    return result


def at_zero(values: dict[int, int]) -> int:
    """Lagrange's interpolation."""
    total = 0
    for x, y in values.items():
        for other in values:
            if other != x:
                y = y * other * pow(other - x, -1, PRIME) % PRIME
        total += y
    return total % PRIME


@given(st.data())
def test_any_threshold_many_shares_recover_the_secret_and_more_do_too(data: st.DataObject) -> None:
    points = data.draw(POINTS)
    threshold = data.draw(st.integers(2, len(points)))
    size = data.draw(st.integers(0, 70))
    secrets = data.draw(st.lists(st.binary(min_size=size, max_size=size), min_size=1, max_size=3))
    shares = split(secrets, threshold, points, SYSTEM)
    assert shares.shape == (len(secrets), len(points), len(limbs_of(secrets[0])))
    assert shares.dtype.name == "uint32"
    for secret, rows in zip(secrets, shares, strict=True):
        some = data.draw(st.permutations(range(len(points))))[: data.draw(st.integers(threshold, len(points)))]
        assert recover({points[i]: rows[i] for i in some}, threshold, size) == secret


@given(st.data())
def test_the_shares_are_what_the_polynomials_are_over_plain_integers(data: st.DataObject) -> None:
    points = data.draw(POINTS)
    threshold = data.draw(st.integers(2, len(points)))
    secrets = data.draw(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=3))
    limbs = [limb for secret in secrets for limb in limbs_of(secret)]
    drawn = data.draw(st.lists(st.integers(0, PRIME - 1), min_size=len(limbs), max_size=len(limbs)))
    drawn = [(each + i) % PRIME for i in range(threshold - 1) for each in drawn]
    wanted = [
        [value([limb, *drawn[i :: len(limbs)]], x) for i, limb in enumerate(limbs)] for x in points
    ]  # all of a degree's coefficients are drawn before the next degree's, and each word is used once
    shares = split(secrets, threshold, points, planted(drawn))
    assert shares.swapaxes(0, 1).reshape(len(points), -1).tolist() == wanted


@given(st.data())
def test_plain_integers_recover_what_was_split(data: st.DataObject) -> None:
    points = data.draw(POINTS)
    threshold = data.draw(st.integers(2, len(points)))
    secret = data.draw(st.binary(min_size=32, max_size=32))
    (rows,) = split([secret], threshold, points, SYSTEM)
    few = range(threshold)
    assert [at_zero({points[i]: int(rows[i, j]) for i in few}) for j in range(9)] == limbs_of(secret)


def test_fewer_shares_are_uniform_whatever_the_secret_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shamir, "_PRIME", 7)
    monkeypatch.setattr(shamir, "_BITS", 2)
    points, threshold = [1, 2, 4, 6], 3
    secret = bytes([0b11100100])  # the limbs 0, 1, 2 and 3
    seen: dict[tuple[int, int, int], Counter[tuple[int, int]]] = {}
    for first, second in itertools.product(range(7), repeat=2):
        (rows,) = split([secret], threshold, points, planted([first] * 4 + [second] * 4))
        for a, b in itertools.combinations(range(len(points)), 2):
            for limb in range(4):
                seen.setdefault((a, b, limb), Counter())[int(rows[a, limb]), int(rows[b, limb])] += 1
    uniform = dict.fromkeys(itertools.product(range(7), repeat=2), 1)
    assert len(seen) == 6 * 4
    assert all(counts == uniform for counts in seen.values())


@given(st.data())
def test_wrong_shares_beyond_the_threshold_are_found_for_certain(data: st.DataObject) -> None:
    points = data.draw(POINTS.filter(lambda found: len(found) > 2))
    threshold = data.draw(st.integers(2, len(points) - 1))
    (rows,) = split([b"\7" * 32], threshold, points, SYSTEM)
    wrong = data.draw(st.lists(st.sampled_from(range(len(points))), min_size=1, unique=True))
    for i in wrong[: len(points) - threshold]:
        limb, by = data.draw(st.integers(0, 8)), data.draw(st.integers(1, PRIME - 1))
        rows[i, limb] = (int(rows[i, limb]) + by) % PRIME
    with pytest.raises(UpdateRejected, match="not of one secret"):
        recover(dict(zip(points, rows, strict=True)), threshold, 32)


@given(st.integers(0, 3), st.integers(0, 8), st.integers(1, PRIME - 1))
def test_a_wrong_share_among_just_enough_gives_another_secret_or_none(i: int, limb: int, by: int) -> None:
    secret = b"\7" * 32
    (rows,) = split([secret], 4, [1, 2, 3, 4], SYSTEM)
    rows[i, limb] = (int(rows[i, limb]) + by) % PRIME
    with suppress(UpdateRejected):
        assert recover(dict(enumerate(rows, 1)), 4, 32) != secret


@pytest.mark.parametrize(
    ("limb", "wrong"), [(0, 1 << 30), (8, 1 << 16)], ids=["above a limb", "beyond the last of 32 bytes"]
)
def test_what_no_secret_is_is_refused(limb: int, wrong: int) -> None:
    (rows,) = split([bytes(32)], 2, [1, 2], planted([0] * 9))
    rows[:, limb] = wrong
    with pytest.raises(UpdateRejected, match="not of a secret of 32 bytes"):
        recover({1: rows[0], 2: rows[1]}, 2, 32)
    rows[:, limb] = wrong - 1
    assert int.from_bytes(recover({1: rows[0], 2: rows[1]}, 2, 32), "little") == wrong - 1 << 30 * limb


@pytest.mark.parametrize("points", [range(1, 201), range(FARTHEST - 199, FARTHEST + 1)], ids=["near 0", "far"])
def test_a_key_and_a_seed_among_two_hundred(points: range) -> None:
    own = Entropy(Key.from_seed(16).derive("shamir").draws().words)
    secrets = [bytes(range(32)), b"\xff" * 32]
    shares = split(secrets, 130, points, own)
    for secret, rows in zip(secrets, shares, strict=True):
        by_point = dict(zip(points, rows, strict=True))
        assert recover(by_point, 130, 32) == secret
        assert recover({x: by_point[x] for x in points[70:]}, 130, 32) == secret
        assert at_zero({x: int(by_point[x][0]) for x in points[:130]}) == limbs_of(secret)[0]


def test_no_sum_overflows_at_the_largest_numbers_and_the_longest_sum() -> None:
    longest = np.full(1 << 16, PRIME - 1, np.uint64)
    assert shamir._product(longest[None], longest[:, None]).tolist() == [[(1 << 16) * (PRIME - 1) ** 2 % PRIME]]


def test_a_vector_for_other_languages() -> None:
    (rows,) = split([bytes(range(1, 9))], 3, [1, 2, 5], planted([11, 22, 33, 44, 55, 66]))
    # 0x0807060504030201 has the limbs 0x04030201, 0x201c1814 and 0; 11 + 44 x, 22 + 55 x, 33 + 66 x are hidden x times.
    assert limbs_of(bytes(range(1, 9))) == [0x04030201, 0x201C1814, 0]
    assert [[hex(each) for each in row] for row in rows.tolist()] == [
        ["0x4030238", "0x201c1861", "0x63"],
        ["0x40302c7", "0x201c191c", "0x14a"],
        ["0x4030684", "0x201c1de1", "0x717"],
    ]
    assert recover({1: rows[0], 5: rows[2], 2: rows[1]}, 3, 8) == bytes(range(1, 9))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: split([b"a"], 1, [1, 2], SYSTEM), "from 2 to the number of points, 2, not 1"),
        (lambda: split([b"a"], 3, [1, 2], SYSTEM), "from 2 to the number of points, 2, not 3"),
        (lambda: split([b"a"], 2, [1, 1], SYSTEM), "distinct"),
        (lambda: split([b"a"], 2, [0, 1], SYSTEM), "above 0"),
        (lambda: split([b"a"], 2, [-1, 1], SYSTEM), "above 0"),
        (lambda: split([b"a"], 2, [1, PRIME], SYSTEM), f"below {PRIME}"),
        (lambda: split([b"a"], 2, range(1, (1 << 16) + 2), SYSTEM), "up to 65536"),
        (lambda: split([b"a", b"ab"], 2, [1, 2], SYSTEM), "one length"),
        (lambda: split([], 2, [1, 2], SYSTEM), "one length"),
        (lambda: recover({1: np.zeros(1, np.uint32)}, 2, 1), "number of shares, 1, not 2"),
        (lambda: recover({1: np.zeros(1, np.uint32)}, 1, 1), "from 2"),
        (lambda: recover(dict.fromkeys([0, 1], np.zeros(1, np.uint32)), 2, 1), "above 0"),
    ],
)
def test_settings_that_cannot_be(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    "share",
    [np.zeros(9, np.int64), np.zeros(8, np.uint32), np.zeros((1, 9), np.uint32), np.full(9, PRIME, np.uint32), "no"],
    ids=["type", "too short", "shape", "beyond the field", "no array"],
)
def test_what_is_no_share_is_refused_by_its_point(share: Any) -> None:
    with pytest.raises(UpdateRejected, match="the point 7 is not 9 uint32"):
        recover({3: np.zeros(9, np.uint32), 7: share}, 2, 32)
