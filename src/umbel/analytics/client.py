"""What a holder runs for analyses: one client that answers them all, or single handlers for a client of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from ..core.client import Client, Context
from ..core.update import Update
from ..errors import AppError
from . import (
    covariance,
    cox,
    heavy_hitters,
    histogram,
    kaplan_meier,
    kmeans,
    logistic_regression,
    order,
    statistics,
)
from .table import HeldTable

Answer = Callable[..., Mapping[str, Any]]
QUERIES: Mapping[str, Answer] = {
    "cells": order.answer,
    "clusters": kmeans.answer,
    "covariance": covariance.answer,
    "histogram": histogram.answer,
    "letters": heavy_hitters.answer,
    "logistic": logistic_regression.answer,
    "risk_sets": cox.answer,
    "statistics": statistics.answer,
    "survival": kaplan_meier.answer,
}
"""What can be asked, ``query:<name>``, and what answers it."""


def client(
    load: Callable[[Any], Any] | None = None,
    *,
    minimum: int = 1,
    columns: Iterable[str] | None = None,
    queries: Iterable[str] | None = None,
    pinned: bool = False,
) -> Client:
    """A client that answers all analyses, or those `queries` of `QUERIES` that are named.

    `load` makes a table of a source: a dictionary of columns, or a frame of pandas or polars; without it the source is
    the table. `minimum` is how many rows the holder wants behind each number that it tells, `columns` are those that it
    lets be asked about (None: all). `pinned` lets the run's seed draw who votes in private analyses, for tests.
    """
    made = Client()
    if load is not None:
        made.data(load)
    for name in QUERIES if queries is None else queries:
        made.query(name)(handler(name, minimum=minimum, columns=columns, pinned=pinned))
    return made


def handler(
    name: str, *, minimum: int = 1, columns: Iterable[str] | None = None, pinned: bool = False
) -> Callable[..., Update]:
    """What answers one query of `QUERIES`, to be registered with ``client.query(name)``; settings as for `client`."""
    if name not in QUERIES:
        raise AppError(f"there is no analysis that asks {name!r}", hint=f"There are {', '.join(QUERIES)}.")
    if isinstance(minimum, bool) or not isinstance(minimum, int) or minimum < 1:
        raise AppError(f"a holder's minimum is a whole number of at least 1, not {minimum!r}")
    if isinstance(columns, str):
        raise AppError(f"columns is a list of names, not {columns!r}")
    allowed = None if columns is None else frozenset(columns)
    answer = partial(QUERIES[name], pinned=pinned) if name == "letters" else QUERIES[name]
    return partial(_answered, answer, minimum, allowed)


def _answered(
    answer: Answer, minimum: int, allowed: frozenset[str] | None, model: Any, data: Any, ctx: Context
) -> Update:
    return Update(answer(HeldTable(data, ctx.client, minimum, allowed), ctx.config, ctx))
