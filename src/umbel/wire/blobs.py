"""Who brings a blob, and what becomes of one that somebody asked for."""

from __future__ import annotations

from dataclasses import dataclass

from .limits import PARTIAL_BYTES

LARGE_BLOB = 4 << 20
"""From this size on a blob goes by a side stream, and stays for the sake of the next one of its run."""


def run_giver(run: str) -> str:
    """The name in which a run brings blobs, and whoever passes on what it has brought."""
    return f"run {run}"


def of_run(giver: str) -> bool:
    """Whether that is the name of a run."""
    return giver.startswith("run ")


def node_giver(node: str) -> str:
    """The name in which a node brings blobs, by its id."""
    return f"node {node}"


def most_of_answer(most_bytes: int, *, partial: bool) -> int:
    """What the blob of an answer may have, by what its ask says that a single update has at most; 0: any size.

    A partial holds sums, whose elements are up to three words of 64 bits, and receipts.
    """
    return 2 * most_bytes + PARTIAL_BYTES if partial and most_bytes else most_bytes


@dataclass(frozen=True, slots=True)
class Fetched:
    """Event: a blob is complete on this side, brought by its `giver`; told at once where it was there already."""

    run: str
    sha: bytes
    giver: str = ""


@dataclass(frozen=True, slots=True)
class NotFetched:
    """Event: a blob is not to be had of its `giver`: the other side says so, or the disk is full. Not for a connection
    that broke.
    """

    run: str
    sha: bytes
    reason: str
    giver: str = ""
