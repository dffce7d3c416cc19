"""The values that many rows have, found letter by letter in a trie (TrieHH, Zhu et al. 2020, arXiv 1902.08534)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..core.client import Context
from ..core.randomness import Key
from ..errors import HandlerFailed, SettingError
from .analysis import Analysis, Answered, Asking, check_whole
from .table import Floats, HeldTable

END = 256
"""The letter after a value's last; all others are bytes of UTF-8."""


def answer(table: HeldTable, config: Mapping[str, Any], ctx: Context, *, pinned: bool = False) -> dict[str, Any]:
    """How many rows' values go on with which letter [prefixes, 257], of a sample where there is a rate below 1."""
    labels, rate, length = table.labels(config["column"]), float(config["rate"]), int(config["length"])
    words = [value.encode()[:length] for value in labels if value is not None]
    if rate < 1.0:
        if table.minimum > 1:  # one row more would be many votes more, which is not private
            hint = 'Register "letters" without a minimum, if votes of a sample may be told of.'
            raise HandlerFailed(f"its minimum of {table.minimum} rows rules out votes", client=ctx.client, hint=hint)
        # Whoever knows the run's seed must not know the sample: it comes from the system, but in tests.
        key = ctx.key.derive("sample") if pinned else Key(os.urandom(32))
        words = [words[row] for row in key.draws().bernoulli(rate, len(words))]
    prefixes = {row.tobytes(): place for place, row in enumerate(ctx.inbox["prefixes"])}
    depth = ctx.inbox["prefixes"].shape[1]
    counts = np.zeros((len(prefixes), END + 1), np.int64)
    for word in words:
        place = prefixes.get(word[:depth])
        if place is not None and len(word) >= depth:
            counts[place, word[depth] if len(word) > depth else END] += 1
    return {"counts": table.told(counts)}


@dataclass(frozen=True)
class HeavyHitters(Analysis):
    """The values of a column that at least `threshold` rows have, and how many; as texts, cut to `length` bytes.

    With `epsilon` the values found are (epsilon, delta)-differentially private with regard to adding or removing one
    row of one client, however many rows it has: for each letter, each row votes with a small chance for its value,
    and what gets at least theta votes goes on. `privacy` says theta and the chance, as in the paper's Corollary 1 (rows
    vote independently, for which its bounds hold, too); `threshold` is not used, and there are no counts. The values
    alone are private: whoever adds votes up sees their sums, which secure aggregation would hide, but not its result.
    A value is likely found if it has far more than theta / chance rows; so it takes many thousands of rows.

    With `noise`, in place of `epsilon`, counts are told with noise that hides every client, and each letter asked for
    costs what it says: up to `length` times. Where `threshold` is less, so many standard deviations are needed that
    noise alone goes on in one letter of ten at most. A client contributes to each letter anew.

    The result has `values` [found, length] of bytes, 0 after the end, `sizes`, `counts` where there is no epsilon, and
    with `noise` their `error`.

    Leaving the holder: how many of its rows go on with which letter after each beginning that is frequent so far, down
    to how many have each frequent value; with `epsilon`, of the rows that vote.
    """

    counted: ClassVar[bool] = True
    column: str
    threshold: int = 1
    length: int = 20
    epsilon: float | None = None
    delta: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, threshold=1, length=1)
        if self.epsilon is not None and self.noise is not None:
            raise SettingError("HeavyHitters takes an epsilon or noise, and not both")
        if self.epsilon is not None and not (0 < self.epsilon < math.inf and 0 < self.delta < 1):
            raise SettingError(f"an epsilon above 0 and a delta in (0, 1): not {self.epsilon!r} and {self.delta!r}")

    @property
    def privacy(self) -> tuple[int, float]:
        """So many votes a beginning needs, and with this chance a row votes; (`threshold`, 1.0) without epsilon."""
        return (self.threshold, 1.0) if self.epsilon is None else votes(self.epsilon, self.delta, self.length)

    def questions(self, asking: Asking) -> Answered:
        needed, rate = self.privacy
        config = {"column": self.column, "rate": rate, "length": self.length}
        found: list[tuple[bytes, Any, float]] = []
        prefixes = [b""]
        for depth in range(self.length):
            letters = np.frombuffer(b"".join(prefixes), np.uint8).reshape(len(prefixes), depth)
            if self.noise is None:
                counts = (yield from asking("letters", config, prefixes=letters))["counts"]
                errors = np.zeros(counts.shape)
            else:
                told = yield from asking.noisy("letters", config, (len(prefixes), END + 1), prefixes=letters)
                counts, errors = told["counts"], np.broadcast_to(told["counts:error"], told["counts"].shape)
            enough = np.maximum(needed, beyond_noise(errors))
            going = [
                (prefixes[p], int(letter), counts[p, letter].item(), float(errors[p, letter]))
                for p, letter in np.argwhere(counts >= enough)
            ]
            found += [(prefix, count, error) for prefix, letter, count, error in going if letter == END]
            on = [(prefix + bytes([letter]), count, error) for prefix, letter, count, error in going if letter != END]
            if depth == self.length - 1:
                found += on
            prefixes = [prefix for prefix, _, _ in on]
            if not prefixes:
                break
        return self._result(found)

    def _result(self, found: list[tuple[bytes, Any, float]]) -> dict[str, Any]:
        found.sort(key=lambda each: each[0] if self.epsilon else (-each[1], each[0]))
        values = np.array([list(value.ljust(self.length, b"\0")) for value, _, _ in found], np.uint8)
        result = {
            "values": values.reshape(len(found), self.length),
            "sizes": np.array([len(value) for value, _, _ in found], np.int64),
        }
        if self.epsilon is None:
            result["counts"] = np.array([count for _, count, _ in found], None if found else np.int64)
        if self.noise is not None:
            result["error"] = np.array([error for _, _, error in found], np.float64)
        return result

    def read(self, model: Mapping[str, Any]) -> dict[str, float | None]:
        """``{value: how many rows have it}``, the most frequent first; with epsilon None for how many."""
        rows = zip(model["values"], model["sizes"].tolist(), strict=True)
        names = [row.tobytes()[:size].decode(errors="replace") for row, size in rows]
        return dict(zip(names, model["counts"].tolist() if "counts" in model else [None] * len(names), strict=True))

    def table(self, model: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
        """A row for each value."""
        rows: dict[str, dict[str, float | None]] = {v: {"count": count} for v, count in self.read(model).items()}
        for row, error in zip(rows.values(), model["error"].tolist() if "error" in model else (), strict=False):
            row["error"] = error
        return rows


def beyond_noise(errors: Floats) -> Floats:
    """What noise of these standard deviations reaches in none of the cells but with a probability of 0.1 at most; none
    has heavier tails than discrete Laplace noise, which is k or more with a probability below exp(-k / scale).
    """
    with np.errstate(divide="ignore"):
        scales = 1 / (2 * np.arcsinh(1 / (math.sqrt(2) * errors)))
    return np.asarray(scales * math.log(10 * errors.size))


def votes(epsilon: float, delta: float, length: int) -> tuple[int, float]:
    """The votes that a beginning needs, theta, and the chance with which rows vote, by Corollary 1 of the paper:
    (theta - 2) / ((theta - 3) theta!) is at most delta, and the chance is (1 - exp(-epsilon / length)) / theta.
    """
    theta = max(4, math.ceil(math.exp(min(epsilon / length, 30)) - 1))
    while math.log((theta - 2) / (theta - 3)) - math.lgamma(theta + 1) > math.log(delta):
        theta += 1
    return theta, -math.expm1(-epsilon / length) / theta
