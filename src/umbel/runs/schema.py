"""What a record of a log has to be to be taken for an event: whoever reads one that others wrote reads it here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from .events import EVENTS, AskClosed, RunEvent
from .receipts import QUANTILES

MOST = 2**63
"""Whole numbers are from 0 to below this; a seed may be any."""

METRICS = ("train", "evaluate", "test", "metrics")
"""Fields whose numbers need not be finite."""

Fits = Callable[[Any], bool]


def event_of(record: Any) -> RunEvent | None:
    """The event of a record; None for one that this release does not know. What it has besides is left out, and a
    number that JSON has no word for is there as null, which means not a number.

    Raises `TypeError` for a record that is none, lacks something, or has something of another kind than it is to be.
    """
    if type(record) is not dict or type(record.get("event")) is not str:
        raise TypeError("a record without the name of an event")
    kind = EVENTS.get(record["event"])
    if kind is None:
        return None
    found: dict[str, Any] = {}
    for name, (fit, needed) in _fields(kind.name).items():
        if name in record:
            value = record[name]
            if name in METRICS and type(value) is dict:
                value = {key: math.nan if each is None else each for key, each in value.items()}
            if not fit(value):
                raise TypeError(f"the {name} of a {kind.name} is {value!r:.60}")
            found[name] = value
        elif needed:
            raise TypeError(f"a {kind.name} without its {name}")
    event = kind(**found)
    if isinstance(event, AskClosed) and not (_are_failures(event.failed) and _is_told(event)):
        raise TypeError(f"an {kind.name} whose clients are not told of as they are to be")
    return event


@cache
def _fields(name: str) -> dict[str, tuple[Fits, bool]]:
    """What each field of an event is to be, and whether it has to be there."""
    kind = EVENTS[name]
    hints = get_type_hints(kind)
    return {
        each.name: (
            _SPECIAL.get(each.name) or fits(hints[each.name]),
            each.default is MISSING and each.default_factory is MISSING,
        )
        for each in fields(kind)
    }


@cache
def fits(hint: Any) -> Fits:
    """What tells whether a value is what a type says."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return lambda value: True
    if hint is float:
        return _is_number
    if hint is int:
        return lambda value: type(value) is int and 0 <= value < MOST
    if hint in (str, bool, NoneType):
        return lambda value: type(value) is hint
    if origin in (Union, UnionType):
        parts = list(map(fits, inner))
        return lambda value: any(part(value) for part in parts)
    if origin is list:
        each = fits(inner[0])
        return lambda value: type(value) is list and all(map(each, value))
    each = fits(inner[1])
    return lambda value: type(value) is dict and all(map(each, value.values()))


def _is_number(value: Any) -> bool:
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < MOST)


def _are_metrics(value: Any) -> bool:
    return type(value) is dict and all(type(each) is float or _is_number(each) for each in value.values())


def _is_client(value: Any) -> bool:
    return type(value) in (int, str)


def _are_failures(value: Any) -> bool:
    """Rows of a reason, how many clients failed for it, and the first of them."""
    return all(
        len(row) == 3 and [*map(type, row)] == [str, int, list] and row[2] and all(map(_is_client, row[2]))
        for row in value
    )


def _are_pairs(value: Any) -> bool:
    return fits(Mapping[str, list[str]])(value) and all(len(pair) == 2 for pair in value.values())


def _is_file(value: Any) -> bool:
    """Whether this names a file and its hash, or none."""
    return value is None or (fits(Mapping[str, str])(value) and {"file", "sha256"} <= value.keys())


_SPECIAL: dict[str, Fits] = {
    "seed": lambda value: type(value) is int,
    "changed": _are_pairs,
    "answer": _is_file,
    "checkpoint": _is_file,
    **dict.fromkeys(METRICS, _are_metrics),
}
"""What fields of these names are to be, beside what their types say."""


def _is_told(event: AskClosed) -> bool:
    """Whether columns and quantiles of clients are as `receipts` writes them."""
    number = fits(float | None)
    kinds: dict[str, Fits] = {
        "client": _is_client, "status": fits(str), "weight": number, "seconds": number, "staleness": fits(int)
    }  # fmt: skip
    if columns := dict(event.clients):
        metrics = columns.get("metrics")
        if not columns.keys() >= kinds.keys() or type(metrics) is not dict or type(columns["client"]) is not list:
            return False
        count = len(columns["client"])
        places = len(event.failed)
        wanted = [(columns[name], fit) for name, fit in kinds.items()] + [(each, number) for each in metrics.values()]
        if "why" in columns:
            wanted.append((columns["why"], lambda at: at is None or (type(at) is int and 0 <= at < places)))
        for column, fit in wanted:
            if type(column) is not list or len(column) != count or not all(map(fit, column)):
                return False
    quantiles: dict[str, Fits] = {
        "count": fits(int), "low": _is_client, "high": _is_client,
        **dict.fromkeys(("least", "greatest", *QUANTILES), _is_number),
    }  # fmt: skip
    return all(
        type(row) is dict and all(name in row and fit(row[name]) for name, fit in quantiles.items())
        for row in event.spread.values()
    )
