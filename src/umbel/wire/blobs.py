"""What becomes of a blob that somebody asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fetched:
    """Event: a blob is complete on this side; told at once where it was there already."""

    run: str
    sha: bytes


@dataclass(frozen=True, slots=True)
class NotFetched:
    """Event: a blob is not to be had: the other side says so, or the disk is full. Not for a connection that broke."""

    run: str
    sha: bytes
    reason: str
