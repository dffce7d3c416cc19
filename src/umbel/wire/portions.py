"""Long lists in portions, each of which fits into a frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

PORTION_BYTES = 1 << 20
"""So many bytes a portion takes at most, unless a single row takes more. A frame has room for the rest of a message."""


def portions(
    rows: Iterable[T], size: Callable[[T], int], *, most: int | None = None, most_bytes: int = PORTION_BYTES
) -> Iterator[list[T]]:
    """The rows in their order, in lists of at most `most` rows and `most_bytes` bytes by `size`; none is empty."""
    portion: list[T] = []
    taken = 0
    for row in rows:
        needed = size(row)
        if portion and (taken + needed > most_bytes or len(portion) == most):
            yield portion
            portion, taken = [], 0
        portion.append(row)
        taken += needed
    if portion:
        yield portion


def text_bytes(text: str) -> int:
    """The bytes that a text takes in a list of texts."""
    return len(text.encode()) + 4
