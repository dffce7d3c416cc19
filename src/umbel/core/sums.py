"""Reproducible sums: the same bits in any order and by any tree of merges.

`ExactScalar` adds Python floats exactly. `ArraySum` adds weighted arrays by pre-rounded bins, after Demmel & Nguyen,
"Fast reproducible floating-point summation" (ARITH 2013), and Ahrens, Demmel & Nguyen, "Algorithms for efficient
reproducible floating point summation" (ACM TOMS 2020).

**The sum.** A term is t = float64(x) * float64(weight), rounded once to float64; the sum is of these terms. Bin j of
the number line holds multiples of the quantum u(j) = 2**(38 * j - 1074). At level L a term is split, element by
element, into the nearest multiple of u(L), the nearest multiple of u(L-1) to what remains, and, for 64-bit input, the
nearest multiple of u(L-2); the rest is dropped. The multiples are integers and are added as integers, so order cannot
matter. L is the least level with |t| < 2**37 * u(L) for every t so far (and no bin below 0): it follows the largest
magnitude, and only rises.

**Why a rising level is harmless.** A term below 2**37 * u(l) is less than half of u(l+1), so it puts zero into every
bin above l: what it puts into bin j depends on the term and on j, not on the level at which it came. To raise the level
is therefore to keep the bins that stay and drop the lowest, and gives what the final level would have given at once.

**The error.** Each element of `value()` is the correctly rounded sum of the split terms. For n terms,

    |value - sum of t| <= n * u_last / 2 + 2**-53 * |value|,    u_last <= 2**-37 * max |t|  (two bins)
                                                                u_last <= 2**-75 * max |t|  (three bins)

where max |t| is over all elements and terms. Arrays of magnitude 2**-11 to 2**27 have u_last = 2**-48 or 2**-86. Two
bins lose nothing of terms below 2**-999, three nothing below 2**-961. |t| must stay below 2**960.
"""

from __future__ import annotations

import math
import re
import struct
import threading
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_Row = NDArray[np.int64]

__all__ = ["ArraySum", "ExactScalar", "magnitude", "magnitudes"]

_WIDTH = 38  # bits of a bin; 1074 = 28 * 38 + 10 puts the common magnitudes (2**-11 .. 2**27) into one level
_HALF = 1 << (_WIDTH - 1)
_MAX_EXPONENT = 960  # leaves room for 2**63 terms below the float64 limit
_TOP_LEVEL = 53  # the level of a term just under 2**960
_BLOCK = 16384  # elements: scratch and bins of one block stay in a 1 MiB L2 cache; smaller blocks cost more calls
_STACK = 2 * _BLOCK  # elements: of several arrays at once, whose bins are few
_SHORT = _STACK // 16  # elements: of each of several arrays at least, for shorter rows cost more calls
_STRIDE = 4 * _BLOCK  # elements that a search for the magnitude reads at a time; it needs no scratch

_BINS = {
    **dict.fromkeys(("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32"), 2),
    **dict.fromkeys(("float16", "bfloat16", "float32"), 2),
    **dict.fromkeys(("int64", "uint64", "float64"), 3),
}

_MAGIC, _VERSION = b"UmSm", 1
_HEADER = struct.Struct("<4sBBh8sQ")  # magic, version, dimensions, level, dtype, count


class ExactScalar:
    """The exact sum of floats: an integer that counts units of 2**-2148, the last bit of any product of two floats."""

    __slots__ = ("_units",)
    _SCALE = 2148
    _TEXT = re.compile(r"1:(-?)([1-9a-f][0-9a-f]{0,1200}|0)p(0|-?[1-9][0-9]{0,3})")

    def __init__(self) -> None:
        self._units = 0

    def add(self, x: float) -> None:
        """Add x, taken as a float64; ValueError if it is NaN or infinite."""
        try:
            numerator, denominator = float(x).as_integer_ratio()
        except (ValueError, OverflowError):
            raise ValueError(f"cannot add {x!r} to an exact sum: only finite numbers can be added") from None
        # The denominator is a power of two, 2**(bit_length - 1).
        self._units += numerator << (self._SCALE + 1 - denominator.bit_length())

    def add_product(self, x: float, w: float) -> None:
        """Add the exact, unrounded product x * w; ValueError if either is NaN or infinite."""
        try:
            a, b = float(x).as_integer_ratio()
            c, d = float(w).as_integer_ratio()
        except (ValueError, OverflowError):
            raise ValueError(f"cannot add {x!r} * {w!r} to an exact sum: only finite numbers can be added") from None
        self._units += (a * c) << (self._SCALE + 2 - b.bit_length() - d.bit_length())

    def merge(self, other: ExactScalar) -> None:
        """Add everything that other holds."""
        self._units += other._units

    @property
    def value(self) -> float:
        """The sum, correctly rounded; OverflowError if it is beyond the range of a float."""
        try:
            return self._units / (1 << self._SCALE)
        except OverflowError:
            raise OverflowError("the exact sum is beyond the range of a float (about 1.8e308)") from None

    def copy(self) -> ExactScalar:
        """An independent sum of the same value."""
        twin = ExactScalar()
        twin._units = self._units
        return twin

    def encode(self) -> str:
        """Canonical text, `1:<odd hexadecimal mantissa>p<binary exponent>`: equal sums have equal text."""
        if self._units == 0:
            return "1:0p0"
        zeros = (self._units & -self._units).bit_length() - 1
        return f"1:{self._units >> zeros:x}p{zeros - self._SCALE}"

    @classmethod
    def decode(cls, text: str) -> ExactScalar:
        """The sum that `encode` wrote; ValueError for any other text."""
        total = cls()
        if found := cls._TEXT.fullmatch(text):
            sign, digits, exponent = found.groups()
            if 0 <= (shift := int(exponent) + cls._SCALE) <= 2 * cls._SCALE:
                total._units = (-1 if sign else 1) * int(digits, 16) << shift
                if total.encode() == text:
                    return total
        raise ValueError(f"not an encoded exact sum (version 1): {text[:60]!r}")

    def __eq__(self, other: object) -> bool:
        return self._units == other._units if isinstance(other, ExactScalar) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"ExactScalar({self.encode()!r})"


def magnitude(x: NDArray[Any]) -> float:
    """The largest |x| in one pass, rounded to float64: NaN if any element is NaN, else infinity if any is infinite.

    An empty array has magnitude 0. TypeError for a dtype that cannot be summed.
    """
    x = np.asarray(x)
    if x.dtype.char in "fd" and 0 < x.size <= _BLOCK:
        # A small array costs calls more than passes. Both extremes are NaN where any element is.
        highest, lowest = float(np.maximum.reduce(x, axis=None)), float(np.minimum.reduce(x, axis=None))
        return highest if highest != highest else max(highest, -lowest, 0.0)
    if not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
    bits = _bits(x.dtype)
    flat, largest = _flat(x), 0
    for start in range(0, x.size, _STRIDE):
        block = flat[start : start + _STRIDE]
        if bits is None:
            largest = max(largest, int(np.maximum.reduce(block)), -int(np.minimum.reduce(block)))
        else:
            # The bits of |x| are ordered as |x| is, with NaN above infinity. So one integer maximum finds the largest
            # positive number and another the largest negative one, in any format, and no NaN is lost on the way.
            signed, unsigned, mask, _ = bits
            positive, negative = np.maximum.reduce(block.view(signed)), np.maximum.reduce(block.view(unsigned))
            largest = max(largest, int(positive), int(negative) & mask)
    if bits is None:
        return float(largest)
    if x.dtype.itemsize < bits[3].size:
        largest <<= 16  # bfloat16 is the upper half of a float32
    number: float = bits[3].unpack(largest.to_bytes(bits[3].size, "little"))[0]
    return number


def magnitudes(stack: NDArray[Any]) -> list[float]:
    """The `magnitude` of each array in a stack."""
    rows = stack.reshape(len(stack), math.prod(stack.shape[1:]))
    if not (rows.dtype.char in "fd" and len(rows) > 1 and 0 < rows.shape[1] <= _BLOCK):
        return [magnitude(row) for row in rows]
    highest, lowest = np.maximum.reduce(rows, axis=1), np.minimum.reduce(rows, axis=1)
    largest: list[float] = (np.maximum(highest, -lowest) + 0.0).tolist()
    return largest


class ArraySum:
    """The reproducible sum of weighted arrays of one shape and dtype (the module's docstring says what is summed).

    `dtype` is that of the arrays added: floats of 16 and 32 bits (bfloat16 by name or dtype), booleans and integers up
    to 32 bits take two bins, that is 16 bytes an element; float64 and 64-bit integers take three. `count` is the number
    of arrays added, those of weight zero included. Not safe for use by two threads at once.
    """

    __slots__ = ("_bins", "_level", "_offsets", "_over", "_pending", "_size", "count", "dtype", "shape")

    # Below this many additions an int64 bin is under 2**61, so two such sums merge within its range. The encoding
    # depends on it: another number would be another version.
    _SPILL_AFTER = 1 << 24

    def __init__(self, shape: Sequence[int], dtype: DTypeLike) -> None:
        self.shape = tuple(int(n) for n in shape)
        self.dtype = _dtype_name(dtype if isinstance(dtype, str) else np.dtype(dtype))
        self.count = 0
        self._size = math.prod(self.shape)
        self._level = -1  # -1: nothing but zeros so far, and no bins
        self._bins: list[_Row] = []  # of level, level - 1, ...
        # Per bin: how many times the bits of its splitter are in it, to be taken out (mod 2**64) before it is read.
        self._offsets: list[int] = []
        self._over: list[_Row] = []  # high parts of the bins, in units of 2**38 quanta, once needed
        self._pending = 0  # bound on |bin| / 2**37

    def add(self, x: NDArray[Any], weight: float = 1.0, magnitude: float | None = None) -> None:
        """Add weight * x.

        `magnitude` must be `magnitude(x)` where given; it saves a pass. ValueError for another shape or dtype, a NaN or
        infinity, or a product of 2**960 or more; the sum is then unchanged.
        """
        self.add_many((x,), (weight,), None if magnitude is None else (magnitude,))

    def add_many(
        self,
        xs: NDArray[Any] | Sequence[NDArray[Any]],
        weights: Sequence[float],
        sizes: Sequence[float] | None = None,
    ) -> None:
        """Add weight * x for each, as `add` does and to the same bits, but faster; best where `xs` is one array with a
        dimension more. `sizes` are their magnitudes.
        """
        if self.shape and isinstance(xs, np.ndarray) and xs.flags.c_contiguous:
            self._check_like(xs.shape[1:], xs.dtype)
            flats: Any = xs.reshape(len(xs), self._size)
        else:
            rows = [np.asarray(x) for x in xs]
            for x in rows:
                self._check_like(x.shape, x.dtype)
            flats = [_flat(x) for x in rows]
        known = [magnitude(x) for x in xs] if sizes is None else sizes
        factors = [float(weight) for weight in weights]
        largest = max((_bound(w, size) for _, w, size in zip(range(len(xs)), factors, known, strict=True)), default=0.0)
        self.count += len(factors)
        if largest > 0.0:
            self._raise_to(_level_of(largest, _BINS[self.dtype]))
            self._fold(flats, factors)
            self._offsets = [n + len(factors) for n in self._offsets]
            self._grow(len(factors))

    def merge(self, other: ArraySum) -> None:
        """Add everything that other holds; ValueError if its shape or dtype differs."""
        if (other.shape, other.dtype) != (self.shape, self.dtype):
            raise ValueError(
                f"cannot merge a sum of {other.dtype}{list(other.shape)} into one of {self.dtype}{list(self.shape)}"
            )
        self.count += other.count
        if other._level < 0:
            return
        if self._level < 0:
            self._level, self._pending = other._level, other._pending
            self._bins, self._over = [row.copy() for row in other._bins], [row.copy() for row in other._over]
            self._offsets = list(other._offsets)
            return
        self._raise_to(max(self._level, other._level))
        shift = self._level - other._level
        if other._over and not self._over:
            self._over = [np.zeros(self._size, np.int64) for _ in self._bins]
        for j in range(len(self._bins) - shift):
            # The offsets can be added as they are, because a splitter depends on its bin, not on the level.
            self._bins[j + shift] += other._bins[j]
            self._offsets[j + shift] += other._offsets[j]
            if other._over:
                self._over[j + shift] += other._over[j]
        self._grow(other._pending)

    def value(self, dtype: DTypeLike = np.float64, divide_by: float | None = None) -> NDArray[Any]:
        """The correctly rounded float64 total, then divided once in float64 if asked, then cast to dtype.

        A cast to an integer rounds to nearest even; a cast to a float too narrow for a value gives infinity. ValueError
        if `divide_by` is zero, NaN or infinite.
        """
        if divide_by is not None and (divide_by == 0 or not math.isfinite(divide_by)):
            raise ValueError(f"cannot divide a sum by {divide_by!r}: give a finite divisor other than zero")
        result = np.zeros(self._size, dtype)
        whole = result.dtype.kind in "iu"
        with np.errstate(over="ignore"):
            for start, total in self._totals():
                if divide_by is not None:
                    total /= divide_by
                if whole:  # the largest integer may round up to a float beyond it, which a cast would wrap
                    limits = np.iinfo(result.dtype)
                    highest = float(limits.max) if limits.bits < 64 else math.nextafter(float(limits.max), 0)
                    np.clip(np.rint(total, out=total), float(limits.min), highest, out=total)
                result[start : start + total.size] = total
        return result.reshape(self.shape)

    def error_bound(self) -> float:
        """A bound on |value() - exact sum of the terms| for every element: count * u_last / 2 and the last rounding."""
        if self._level < 0:
            return 0.0
        last = self._level - len(self._bins) + 1
        dropped = math.ldexp(self.count, _exponent(last) - 1) if last else 0.0  # bin 0 drops nothing
        return math.nextafter(dropped + self.largest() * 2.0**-53, math.inf)

    def largest(self) -> float:
        """The largest |value()|, block by block."""
        return max((float(np.abs(total).max()) for _, total in self._totals()), default=0.0)

    def norm(self) -> float:
        """The L2 norm of value(), block by block; squares neither overflow nor vanish."""
        largest = self.largest()
        if largest == 0.0 or not math.isfinite(largest):
            return largest
        return largest * math.sqrt(math.fsum(float(np.sum((total / largest) ** 2)) for _, total in self._totals()))

    def copy(self) -> ArraySum:
        """An independent sum of the same value."""
        twin = ArraySum(self.shape, self.dtype)
        twin.merge(self)
        return twin

    @property
    def nbytes(self) -> int:
        """Bytes held now: nothing before the first array that is not zero."""
        return sum(row.nbytes for row in (*self._bins, *self._over))

    def encode(self) -> bytes:
        """Canonical bytes: sums of the same arrays and weights have equal bytes, whatever the order and the merges.

        Little-endian: a header (magic, version, dimensions, level, dtype, count), the shape as 64-bit integers, and the
        bins from high to low as rows of int64. From a count of 2**24 on, these are the low 38 bits of each bin, and as
        many rows with the high parts follow.
        """
        self._settle()
        if self.count >= self._SPILL_AFTER:
            self._spill()
        head = _HEADER.pack(_MAGIC, _VERSION, len(self.shape), self._level, self.dtype.encode("ascii"), self.count)
        shape = struct.pack(f"<{len(self.shape)}Q", *self.shape)
        return b"".join([head, shape, *(row.astype("<i8", copy=False).data for row in (*self._bins, *self._over))])

    @classmethod
    def decode(cls, data: bytes | memoryview) -> ArraySum:
        """The sum that `encode` wrote; ValueError, saying what is wrong, for any other bytes."""
        data = memoryview(data).cast("B")
        if len(data) < _HEADER.size or data[:4] != _MAGIC:
            raise ValueError(f"not an encoded array sum: {len(data)} bytes that start with {bytes(data[:8])!r}")
        _, version, ndim, level, name, count = _HEADER.unpack_from(data)
        if version != _VERSION:
            raise ValueError(f"encoded array sum of version {version}; this software reads version {_VERSION}")
        dtype, body = name.rstrip(b"\0").decode("ascii", "replace"), _HEADER.size + 8 * ndim
        if dtype not in _BINS or len(data) < body:
            raise ValueError(f"damaged array sum: its header is cut short, or {dtype!r} is not a dtype")
        total = cls(struct.unpack_from(f"<{ndim}Q", data, _HEADER.size), dtype)
        bins = 0 if level < 0 else _BINS[dtype]
        rows = bins if count < cls._SPILL_AFTER else 2 * bins
        expected = body + 8 * rows * total._size
        if len(data) != expected:
            raise ValueError(
                f"damaged array sum: {len(data)} bytes, where {count} x {dtype}{list(total.shape)} take {expected}"
            )
        if level != -1 and not (bins - 1 <= level <= _TOP_LEVEL and count > 0 and total._size > 0):
            raise ValueError(f"damaged array sum: level {level} cannot be reached by {count} x {dtype}")
        total.count = count
        if bins:
            total._take(level, list(np.frombuffer(data[body:], "<i8").reshape(rows, -1).astype(np.int64)))
        return total

    def _check_like(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        if shape != self.shape or _dtype_name(dtype) != self.dtype:
            raise ValueError(
                f"cannot add an array {dtype}{list(shape)} to a sum of {self.dtype}{list(self.shape)}: "
                "shape and dtype must agree"
            )

    def _raise_to(self, level: int) -> None:
        """Move the bins up to level (if that is higher): high ones down the list, the lowest dropped, zeros on top."""
        if not self._bins:
            self._bins = [np.zeros(self._size, np.int64) for _ in range(_BINS[self.dtype])]
            self._offsets = [0] * len(self._bins)
        elif level > self._level:
            moves = min(level - self._level, len(self._bins))
            for rows in (self._bins, self._over):
                for _ in range(moves if rows else 0):
                    lowest = rows.pop()
                    lowest.fill(0)
                    rows.insert(0, lowest)
            self._offsets = [0] * moves + self._offsets[: len(self._bins) - moves]
        self._level = max(level, self._level)

    def _fold(self, flats: Any, weights: Sequence[float]) -> None:
        """Split every term and add the parts to the bins, block by block; of several arrays as many at once as fit."""
        splitters = [_splitter(self._level - j)[0] for j in range(len(self._bins))]
        width = min(self._size, _BLOCK, max(_STACK // len(weights), _SHORT))
        many = _STACK // width
        for start in range(0, self._size, width):
            block = slice(start, start + width)
            bins = [row[block] for row in self._bins]
            for first in range(0, len(weights), many):
                _split(flats[first : first + many], weights[first : first + many], block, splitters, bins)

    def _grow(self, additions: int) -> None:
        """Note that so many more additions are in the bins; before they could overflow, move their high parts out."""
        self._pending += additions
        if self._pending >= self._SPILL_AFTER:
            self._settle()
            self._spill()

    def _spill(self) -> None:
        """Move what is above the low 38 bits of each settled bin into a second row of the same bin.

        Never into the next bin: a rising level would then keep what was part of a bin that it drops.
        """
        self._over = self._over or [np.zeros(self._size, np.int64) for _ in self._bins]
        for row, over in zip(self._bins, self._over, strict=True):
            over += row >> _WIDTH
            row &= 2 * _HALF - 1
        self._pending = 2

    def _settle(self) -> None:
        """Take the splitters' bits out of the bins."""
        for j, row in enumerate(self._bins):
            if self._offsets[j]:
                row -= np.uint64(self._offsets[j] * _splitter(self._level - j)[1] % 2**64).astype(np.int64)
        self._offsets = [0] * len(self._bins)

    def _totals(self) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """(start, correctly rounded totals) of each block that may differ from zero; the array may be overwritten."""
        self._settle()
        unit = math.ldexp(1.0, _exponent(self._level - len(self._bins) + 1)) if self._bins else 0.0
        for start in range(0, self._size if self._bins else 0, _BLOCK):
            block = slice(start, min(start + _BLOCK, self._size))
            total = _nearest([row[block] for row in self._bins], [row[block] for row in self._over])
            total *= unit  # exact: a 53-bit integer times a power of two of at least 2**-1074
            yield start, total

    def _take(self, level: int, rows: list[_Row]) -> None:
        """Fill an empty sum from decoded rows, refusing what so many additions cannot reach."""
        bins = _BINS[self.dtype]
        self._level, self._offsets, self._bins, self._over = level, [0] * bins, rows[:bins], rows[bins:]
        if self._over:
            self._pending = 2
            sound = all(row.min() >= 0 and row.max() < 2 * _HALF for row in self._bins)
            sound = sound and max(map(_reach, self._over)) <= self.count // 2 + 1
        else:
            self._pending = self.count
            sound = max(map(_reach, self._bins)) <= self.count * _HALF
        if not sound:
            raise ValueError(f"damaged array sum: it holds numbers that {self.count} additions cannot reach")


class _Scratch(threading.local):
    """Blocks to work in, one set per thread, so that an addition allocates nothing."""

    def __init__(self) -> None:
        self.term, self.part = np.empty(_STACK), np.empty(_STACK)
        self.column = np.empty(_BLOCK, np.int64)


_scratch = _Scratch()


def _bound(weight: float, size: float) -> float:
    """The largest |weight * x|, which rounding makes that of the terms exactly; or why x cannot be added."""
    bound = abs(weight) * size
    if not bound < 2.0**_MAX_EXPONENT:
        raise ValueError(
            f"cannot add an array with weight {weight!r}: the largest |weight * x| is {bound!r}, "
            f"it must be finite and below 2**{_MAX_EXPONENT}"
        )
    return bound


def _split(
    flats: Any, weights: Sequence[float], block: slice, splitters: list[NDArray[np.float64]], bins: list[_Row]
) -> None:
    """Add to each bin the nearest multiples of its quantum to what is left of the terms in this block.

    With M = 1.5 * 2**52 * u, the float t + M is t rounded to a multiple of u, half to even, and its bits are those of M
    plus the integer t / u. So they are added as they stand, and M is taken out once for all later (`_settle`). What is
    left of t gets the last bin's M, m, as t - ((t + M) - (M + m)): M + m, too, is a multiple of u, and only the last
    step rounds.
    """
    shape = (len(weights), len(bins[0])) if len(weights) > 1 else (len(bins[0]),)
    term, part = (buffer[: math.prod(shape)].reshape(shape) for buffer in (_scratch.term, _scratch.part))
    if len(weights) == 1:
        term[...] = flats[0][block]
    elif isinstance(flats, np.ndarray):
        term[...] = flats[:, block]
    else:
        for row, flat in zip(term, flats, strict=True):
            row[...] = flat[block]
    if weights.count(weights[0]) < len(weights):
        np.multiply(term, np.array([[weight] for weight in weights]), term)
    elif weights[0] != 1.0:
        np.multiply(term, weights[0], term)
    *back, last = splitters
    back[-1] = back[-1] + last
    for splitter, less, row in zip(splitters, back, bins, strict=False):
        np.add(term, splitter, part)
        np.add(row, _column_sums(part), row)
        np.subtract(part, less, part)
        np.subtract(term, part, term)
    np.add(bins[-1], _column_sums(term), bins[-1])


def _column_sums(rounded: NDArray[np.float64]) -> _Row:
    """The bits of rounded, as integers; those of its rows added up, if it has rows."""
    bits = rounded.view(np.int64)
    return bits if bits.ndim == 1 else np.add.reduce(bits, axis=0, out=_scratch.column[: bits.shape[1]])


def _nearest(bins: list[_Row], over: list[_Row]) -> NDArray[np.float64]:
    """The bins' total in units of the last bin's quantum, correctly rounded."""
    high, low = bins[-1], []
    beyond: NDArray[np.bool_] | bool = False
    for j in range(len(bins) - 1, 0, -1):
        carry = (high + _HALF) >> _WIDTH
        low.append((high - (carry << _WIDTH)).astype(np.float64))
        high = bins[j - 1] + (carry + over[j] if over else carry)
    if over:
        beyond = np.abs(over[0]) > 1 << 14
        high = high + (over[0] << _WIDTH)
    total = high.astype(np.float64) * 2.0 ** (_WIDTH * (len(bins) - 1))
    if len(bins) == 2:
        total += low[0]  # both are exact, so this rounds once
    else:
        # Knuth's TwoSum: total + rest is exactly high + low[1].
        upper, middle = total, low[1] * 2.0**_WIDTH
        total = upper + middle
        virtual = total - upper
        rest = (upper - (total - virtual)) + (middle - virtual)
        # rest + low[0] must be exact. From 2**105 on it might not be, but there the numbers half way between two floats
        # are multiples of 2**38, and of low[0] only the sign matters.
        rest += np.where(np.abs(total) < 2.0**105, low[0], np.sign(low[0]) * 2.0 ** (_WIDTH - 1))
        total += rest
    # Sums of very many terms whose highest bin does not fit a float: rare, so one by one.
    for i in np.flatnonzero(beyond | (np.abs(high) > 1 << 53)):
        exact = 0
        for j, row in enumerate(bins):
            exact = (exact << _WIDTH) + int(row[i]) + ((int(over[j][i]) << _WIDTH) if over else 0)
        total[i] = float(exact)
    return total


def _level_of(bound: float, bins: int) -> int:
    """The least level whose terms may be as large as bound > 0, and whose lowest bin is not below bin 0."""
    above = math.frexp(bound)[1] - (_WIDTH - 1) - _exponent(0)  # bound < 2**37 * 2**above * u(0)
    return max(bins - 1, -(-above // _WIDTH))


def _exponent(bin_index: int) -> int:
    """The binary exponent of a bin's quantum."""
    return _WIDTH * bin_index - 1074


@cache
def _splitter(bin_index: int) -> tuple[NDArray[np.float64], int]:
    """A bin's M = 1.5 * 2**52 * u, as an array because ufuncs take that faster than a number, and its bits."""
    m = np.array(math.ldexp(1.5, 52 + _exponent(bin_index)))
    return m, int(m.view(np.int64))


@cache
def _dtype_name(dtype: str | np.dtype[Any]) -> str:
    """The name of a dtype that can be summed; TypeError for others. By name, so that ml_dtypes need not be there."""
    name = dtype if isinstance(dtype, str) and dtype in _BINS else np.dtype(dtype).name
    if name not in _BINS:
        raise TypeError(f"cannot sum arrays of dtype {name}; these can be summed: {', '.join(_BINS)}")
    return name


@cache
def _bits(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], np.dtype[Any], int, struct.Struct] | None:
    """How to read a float format: as signed and as unsigned integers, without the sign, and back; None for integers."""
    name, size = _dtype_name(dtype), dtype.itemsize
    if "float" not in name:
        return None
    back = {"float16": "<e", "bfloat16": "<f", "float32": "<f", "float64": "<d"}[name]
    return np.dtype(f"i{size}"), np.dtype(f"u{size}"), (1 << (8 * size - 1)) - 1, struct.Struct(back)


def _flat(x: NDArray[Any]) -> Any:
    """x as one dimension to slice: a view, or, if x is not contiguous, an iterator whose slices are copies."""
    return x.reshape(-1) if x.flags.c_contiguous else x.flat


def _reach(row: _Row) -> int:
    """The largest |row|, exactly."""
    return max(int(row.max()), -int(row.min()))
