"""How rounds and runs come out: which rounds failed, when that fails the run, and in which words.

A failed round brought nothing: too few updates, or none with a weight. It keeps the model, and the run goes on. The run
has failed where nobody's update came in its first round, where its last round failed, or too many in a row. Rounds in
which a sampler drew nobody are passed over: they neither fail nor bring anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..core.app import EarlyStop, KeepBest
from ..errors import AppError, ClientId, UmbelError
from .events import RoundCommitted
from .history import History
from .reasons import counted, short

EARLY = "early stop"
MOST_KINDS = 3
MOST_LETTERS = 80


def is_empty(event: RoundCommitted) -> bool:
    """Whether nobody was asked in a round, as a Poisson sampler may have it."""
    return event.failed is None and event.clients == event.dropped == 0


def failures(rounds: Sequence[RoundCommitted]) -> list[RoundCommitted]:
    """The failed rounds at the end of these, in their order; those in which nobody was asked are passed over."""
    found: list[RoundCommitted] = []
    for event in reversed(rounds):
        if is_empty(event):
            continue
        if event.failed is None:
            break
        found.insert(0, event)
    return found


def verdict(rounds: Sequence[RoundCommitted], last: int, most: int) -> str | None:
    """Why a run that is to end with round `last` has failed by now; None where it has not. `most` is how many failed
    rounds in a row end it.
    """
    failed = failures(rounds)
    if not failed:
        return None
    learned = any(event.failed is None and not is_empty(event) for event in rounds)
    hopeless = not learned and not any(event.clients for event in failed)
    if len(failed) < most and not hopeless and rounds[-1].round < last:
        return None
    reason = failed[-1].failed
    if len(failed) > 1:
        return f"{len(failed)} rounds in a row brought no update; the last: {reason}"
    return f"round {failed[-1].round} brought no update: {reason}"


def best_round(keep: KeepBest | None, history: History) -> int | None:
    """The round whose model is kept, the first of several that are as good; None where that is the last one."""
    values = [(r, value) for r, value in _values(keep, history) if not math.isnan(value)]
    if keep is None or not values:
        return None
    sign = 1 if keep.mode == "max" else -1
    return max(values, key=lambda pair: (sign * pair[1], -pair[0]))[0]


def early_end(stop: EarlyStop | Callable[[Any], Any] | None, history: History) -> str | None:
    """Why a run is to end before its last round, `"early stop"` or what the app's function says; None where it is not.
    Raises `AppError` where that function fails.
    """
    if stop is None or isinstance(stop, EarlyStop):
        return EARLY if is_early(stop, history) else None
    return told_to_end("the app's early_stop", lambda: _plain(stop(history))) if len(history) else None


def told_to_end(name: str, function: Callable[..., Any], *arguments: Any) -> str | None:
    """Why a run is to end, as a function of the operator's says: by a text, or by True; None where it returns anything
    else. Raises `AppError` where it raises.
    """
    try:
        said = function(*arguments)
    except UmbelError:
        raise
    except Exception as error:
        raise AppError(f"{name} raised {type(error).__name__}: {error}") from error
    if isinstance(said, str):
        return said or None
    return EARLY if isinstance(said, bool | np.bool_) and said else None


def _plain(said: Any) -> str | bool:
    """A text as it is, of anything else whether it is true."""
    return said if isinstance(said, str) else bool(said)


def is_early(stop: EarlyStop | None, history: History) -> bool:
    """Whether an `EarlyStop` ends a run before its last round."""
    if stop is None:
        return False
    sign = 1 if stop.mode == "max" else -1
    best, since = -float("inf"), 0
    goal = float("inf") if stop.target is None else sign * stop.target
    for _, value in _values(stop, history):
        if sign * value >= goal:
            return True
        better = sign * value > best + stop.min_change
        best, since = (sign * value, 0) if better else (best, since + 1)
    return stop.patience is not None and since >= stop.patience


def _values(watched: KeepBest | EarlyStop | None, history: History) -> list[tuple[int, float]]:
    return history.series(watched.metric) if watched is not None and history.last(watched.metric) is not None else []


def shortage(came: int, asked: int, quorum: int, failed: Mapping[ClientId, str]) -> str:
    """Why an ask had too few updates: how many came, and of those who failed how many for which kind of reason, with
    the first of them in full.
    """
    text = f"{came} of {asked} clients gave an update, {max(1, quorum)} are needed"
    if failed:
        client, reason = next(iter(failed.items()))
        text += f"; {len(failed)} failed{_kinds(failed)}, the first (client {client}): {reason}"
    return text


def _kinds(failed: Mapping[ClientId, str]) -> str:
    rows = counted({client: reason.partition(":")[0] for client, reason in failed.items()})
    if len(rows) < 2:
        return ""
    listed = [f"{count} × {short(reason, MOST_LETTERS)}" for reason, count, _ in rows[:MOST_KINDS]]
    if rest := sum(count for _, count, _ in rows[MOST_KINDS:]):
        listed.append(f"{rest} × other")
    return f" ({', '.join(listed)})"
