"""Why clients failed, for people: reasons are kept short, and counted by kind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import ClientId

LONGEST = 500
"""So many characters of a reason are kept."""
LONGEST_KIND = 200
MOST_NAMED = 5
"""So many clients are named beside a count."""
MOST_KINDS = 20
"""So many reasons are told apart in one list."""
MOST_KEPT = 1000
"""So many reasons of one ask are kept in memory word by word."""
OTHER = "other reasons"

_NUMBER = re.compile(r"\d+")


def short(text: str, most: int = LONGEST) -> str:
    """A text of at most so many characters: where it is longer, its beginning."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def kind(reason: str) -> str:
    """What a reason has in common with those that differ from it by numbers alone: its beginning without these."""
    return _NUMBER.sub("#", reason)[:LONGEST_KIND]


class Reasons:
    """Reasons of any number of failures in little memory: equal ones are one text, and where there are too many, those
    that differ by numbers alone are told as the first of them was.
    """

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._kinds: dict[str, str] = {}

    def keep(self, reason: str) -> str:
        """The reason as it is to be kept."""
        text = short(reason)
        if text in self._texts or len(self._texts) < MOST_KEPT:
            return self._texts.setdefault(text, text)
        alike = kind(text)
        if alike in self._kinds or len(self._kinds) < MOST_KEPT:
            return self._kinds.setdefault(alike, text)
        return OTHER


def counted(failed: Mapping[ClientId, str]) -> list[list[Any]]:
    """Rows of a reason, how many clients failed for it, and the first of them; what is most frequent comes first.

    Where there are more than `MOST_KINDS`, those that differ by numbers alone are one, told as the first of them was;
    what is still left over is the last row, `OTHER`.
    """
    rows = _grouped(failed, str)
    if len(rows) > MOST_KINDS:
        rows = _grouped(failed, kind)
    rows.sort(key=lambda row: -row[1])
    rest = rows[MOST_KINDS:]
    if rest:
        clients = [client for row in rest for client in row[2]][:MOST_NAMED]
        rows[MOST_KINDS:] = [[OTHER, sum(row[1] for row in rest), clients]]
    return rows


def _grouped(failed: Mapping[ClientId, str], by: Any) -> list[list[Any]]:
    rows: dict[str, list[Any]] = {}
    for client, reason in failed.items():
        text = short(reason)
        row = rows.setdefault(by(text), [text, 0, []])
        row[1] += 1
        if len(row[2]) < MOST_NAMED:
            row[2].append(client)
    return list(rows.values())
