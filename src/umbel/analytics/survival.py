"""Times to an event on a grid that all holders share, and what follows from how many rows leave at each."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import numpy as np

from ..core.answer import Answer
from ..core.ask import Ask
from ..errors import HandlerFailed, StrategyError
from . import order, tails
from .analysis import Asking, check_times
from .table import Floats, HeldTable, Ints


def exits(table: HeldTable, config: Mapping[str, Any], times: Floats, kept: Ints) -> tuple[Ints, Ints]:
    """For each row the number of grid times at which it is at risk, and whether its event is at the last of them; -1
    where time or event is missing, or the row is not `kept`.

    An event counts at the next time of the grid, one beyond the grid as no event. Where a holder has a minimum, rows
    leave later: once so many of the same kind (with or without event) and group have come together; a group with fewer
    of either kind is left out. `kept` is the group of each row, -1 for none.
    """
    time, event = table.numbers(config["time"]), table.numbers(config["event"])
    if not np.isin(event[~np.isnan(event)], (0.0, 1.0)).all():
        raise HandlerFailed(f"column {config['event']!r} has values other than 0 and 1", client=table.client)
    codes = np.where(np.isnan(time) | np.isnan(event), -1, kept)
    dies = (event == 1.0) & (time <= times[-1])
    last = np.where(dies, np.searchsorted(times, time, "left") + 1, np.searchsorted(times, time, "right"))
    last[codes < 0] = -1
    for group in range(int(codes.max(initial=-1)) + 1):
        for alike in (codes == group) & dies, (codes == group) & ~dies:
            if 0 < alike.sum() < table.minimum:
                last[codes == group] = -1
        for alike in (codes == group) & dies & (last >= 0), (codes == group) & ~dies & (last >= 0):
            last[alike] = _together(last[alike], table.minimum)
    return last, (dies & (last >= 0)).astype(np.int64)


def _together(places: Ints, minimum: int) -> Ints:
    # Each place, or the next by which a minimum of rows has come since the last such; what is left joins the last.
    counts = np.bincount(places)
    target, waiting, begins = np.zeros(len(counts), np.int64), 0, [0]
    for place, count in enumerate(counts.tolist()):
        waiting += count
        if waiting >= minimum:
            target[begins[-1] : place + 1] = place
            begins.append(place + 1)
            waiting = 0
    if waiting:
        target[begins[-2] :] = len(counts) - 1
    return target[places]


def grid(asking: Asking, time: str, event: str, times: Any) -> Generator[Ask, Answer, Floats]:
    """The times given, or, where there are none, all times of an event, which eight asks find."""
    if times is not None:
        return check_times(times)
    found = yield from order.distinct(asking, time, [(event, ["1"])], 1)
    if not len(found):
        raise StrategyError(f"no client tells of any row with {event} = 1")
    return found


def curves(at_risk: Ints, events: Ints) -> dict[str, Floats]:
    """Survival, its standard error and interval, from counts [groups, times]."""
    with np.errstate(all="ignore"):
        share = np.where(at_risk > 0, 1.0 - events / at_risk, 1.0)
        alive = share.cumprod(1)
        terms = np.where(events > 0, events / (at_risk * (at_risk - events).astype(np.float64)), 0.0).cumsum(1)
        reach = tails.NORMAL_95 * np.sqrt(terms) / np.log(alive)
        low, high = alive ** np.exp(-reach), alive ** np.exp(reach)
        inside = (alive > 0.0) & (alive < 1.0)
        error = np.where(inside, alive * np.sqrt(terms), 0.0)
    return {
        "survival": alive,
        "standard_error": error,
        "low": np.where(inside, low, alive),
        "high": np.where(inside, high, alive),
    }


def log_rank(at_risk: Ints, events: Ints) -> Floats:
    """Whether groups have the same curve (Mantel 1966): chi squared, degrees of freedom, p-value."""
    n, d = at_risk.sum(0), events.sum(0)
    used = n > 0
    n, d, share = n[used], d[used], at_risk[:, used] / n[used]
    surplus = (events[:, used] - d * share).sum(1)
    factor = np.where(n > 1, d * (n - d) / np.maximum(n - 1, 1), 0.0)
    variance = np.diag((factor * share).sum(1)) - (factor * share) @ share.T
    # Its rows sum to 0, but for rounding.
    df = int(np.linalg.matrix_rank(variance, tol=1e-9 * np.diag(variance).max(), hermitian=True))
    if df == 0:
        return np.array([np.nan, 0.0, np.nan])
    chi = float(surplus @ np.linalg.pinv(variance, rcond=1e-9, hermitian=True) @ surplus)
    return np.array([chi, df, tails.chi_squared(chi, df)])
