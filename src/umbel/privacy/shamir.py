"""Shamir secret sharing (Shamir 1979) of keys and seeds, many at a time.

A secret is cut into limbs of 30 bits, and each limb is the value at 0 of a polynomial of its own over the integers
modulo the prime 2^31 - 1, whose other coefficients are uniform; a share is what these polynomials are at the holder's
point. For given values at any `threshold` - 1 points that are not 0, each value at 0 belongs to just one polynomial of
that degree. So whatever the secret is, so many shares are uniform, and tell nothing.

No product overflows: both factors are below 2^31, or, summed over a matrix's rows, below 2^31 and below 2^16, and no
sum has more than 2^16 terms, so that all stay below 2^63.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..entropy import Entropy
from ..errors import UpdateRejected
from .discrete import uniform_integers

Elements = NDArray[np.uint64]
_PRIME = (1 << 31) - 1
_BITS = 30  # of a limb, each value of which is below the prime
_MOST = 1 << 16


def split(secrets: Sequence[bytes], threshold: int, points: Sequence[int], own: Entropy) -> NDArray[np.uint32]:
    """Shares of secrets that are all of one length, in an array of secrets x points x limbs.

    Any `threshold` of a secret's shares give it back by `recover`, fewer tell nothing, and shares of one secret tell
    nothing of another. `points` are the holders', distinct and from 1 to 2^31 - 2. ValueError where they are not, for
    another threshold than from 2 to their number, for more than 2^16 of them, and for secrets of several lengths.
    """
    x = _field_points(points)
    if not 2 <= index(threshold) <= len(x):
        raise ValueError(f"a threshold is from 2 to the number of points, {len(x)}, not {threshold}")
    if len({len(each) for each in secrets}) != 1:
        raise ValueError("secrets that are shared together have one length")
    limbs = np.stack([_limbs(each) for each in secrets])
    drawn = uniform_integers(_PRIME, (threshold - 1) * limbs.size, own).view(np.uint64)
    hidden = _product(_powers(x, threshold - 1), drawn.reshape(threshold - 1, limbs.size))
    values = (limbs + hidden.reshape(len(x), *limbs.shape)) % _PRIME
    return np.ascontiguousarray(values.swapaxes(0, 1), np.uint32)


def recover(shares: Mapping[int, NDArray[Any]], threshold: int, size: int) -> bytes:
    """The secret of `size` bytes, from its shares by their points, at least `threshold` of them.

    All shares are used: if m came, up to m - threshold of which are wrong, that is found for certain, and whose they
    are is not told. `UpdateRejected` for that, for a secret that is not of this size, and for a share that is none;
    ValueError for too few shares and for points that `split` would not take. Takes memory for m^2 words.
    """
    x = _field_points([*shares])
    if not 2 <= index(threshold) <= len(x):
        raise ValueError(f"a threshold is from 2 to the number of shares, {len(x)}, not {threshold}")
    y = np.stack([_checked(point, share, -(-8 * size // _BITS)) for point, share in shares.items()])
    # With z_i = 1 / (x_i prod_j (x_j - x_i)), Lagrange's value at 0 is prod_j x_j sum_i z_i y_i. A polynomial of degree
    # below the threshold, times x^(r - 1) for an r up to m - threshold, has a degree below m - 1, so that its divided
    # difference over all points is 0: that is sum_i x_i^r z_i y_i, but for the sign. Values for which all of these are
    # 0 are those of such a polynomial, and two such polynomials differ at more than m - threshold of m points.
    apart = (x + (_PRIME - x[:, None])) % _PRIME
    np.fill_diagonal(apart, 1)
    z = _inverse(x * _total(apart) % _PRIME)
    rows = np.concatenate([np.full((len(x), 1), _total(x)), _powers(x, len(x) - threshold)], 1) * z[:, None] % _PRIME
    secret, *others = _product(rows.T, y)
    if np.any(others):
        raise UpdateRejected(f"the shares of {len(x)} holders are not of one secret with the threshold {threshold}")
    bits = (secret[:, None] >> np.arange(_BITS, dtype=np.uint64) & np.uint64(1)).astype(np.uint8).ravel()
    if (secret >> np.uint64(_BITS)).any() or bits[8 * size :].any():
        raise UpdateRejected(f"the shares of {len(x)} holders are not of a secret of {size} bytes")
    return np.packbits(bits[: 8 * size], bitorder="little").tobytes()


def _limbs(secret: bytes) -> Elements:
    """Little-endian, the last one filled up with zeros."""
    bits = np.zeros((-(-8 * len(secret) // _BITS), _BITS), np.uint64)
    bits.ravel()[: 8 * len(secret)] = np.unpackbits(np.frombuffer(secret, np.uint8), bitorder="little")
    return bits @ (np.uint64(1) << np.arange(_BITS, dtype=np.uint64))


def _field_points(points: Sequence[int]) -> Elements:
    if len(points) > _MOST or len({*points}) < len(points) or not all(0 < index(each) < _PRIME for each in points):
        raise ValueError(f"points are up to {_MOST} distinct integers above 0 and below {_PRIME}")
    return np.array(points, np.uint64)


def _checked(point: int, share: Any, limbs: int) -> Elements:
    if (
        not isinstance(share, np.ndarray)
        or share.dtype != np.uint32
        or share.shape != (limbs,)
        or (share >= _PRIME).any()
    ):
        raise UpdateRejected(f"a share at the point {point} is not {limbs} uint32 below {_PRIME}")
    return share.astype(np.uint64)


def _product(a: Elements, b: Elements) -> Elements:
    """The product of two matrices; the second one's entries are cut at 16 bits."""
    low, high = a @ (b & np.uint64(0xFFFF)), a @ (b >> np.uint64(16)) % _PRIME
    product: Elements = (low + (high << np.uint64(16))) % _PRIME  # below 2^63 + 2^47
    return product


def _powers(x: Elements, count: int) -> Elements:
    """x^1, .., x^count in columns."""
    powers = np.empty((len(x), count), np.uint64)
    powers[:, :1] = x[:, None]
    done = 1
    while done < count:
        more = min(done, count - done)
        powers[:, done : done + more] = powers[:, :more] * powers[:, done - 1 : done] % _PRIME
        done += more
    return powers


def _total(factors: Elements) -> Elements:
    """The product along the last axis."""
    while (n := factors.shape[-1]) > 1:
        half = n // 2
        paired = factors[..., :half] * factors[..., half : 2 * half] % _PRIME
        factors = np.concatenate([paired, factors[..., 2 * half :]], -1)
    total: Elements = factors[..., 0]
    return total


def _inverse(a: Elements) -> Elements:
    return np.array([pow(each, -1, _PRIME) for each in a.tolist()], np.uint64)
