"""K-means by Lloyd's algorithm (1982) on sums over clients, begun as k-means++ (Arthur & Vassilvitskii 2007) on means
of cells, which stand for rows that nobody sends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.client import Context
from ..core.randomness import Draws, Key
from ..errors import StrategyError
from .analysis import Analysis, Answered, Asking, check_whole
from .covariance import moments
from .exact import products, rationals
from .table import Floats, HeldTable

STARTS = 10


def answer(table: HeldTable, config: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
    """By the centre that rows are nearest to: the sums [centres, columns + 2, limbs] of 1, of scaled columns, and of
    squared distances.
    """
    rows, _ = table.complete(config["columns"])
    rows = (rows - ctx.inbox["mean"]) / ctx.inbox["scale"]
    nearest, distance = assigned(rows, ctx.inbox["centres"])
    member = (nearest[:, None] == np.arange(len(ctx.inbox["centres"]))).astype(np.float64)
    count = member.sum(0).astype(np.int64)
    member[:, table.told(count) == 0] = 0.0
    return {"sums": products(member, np.column_stack([np.ones(len(rows)), rows, distance]))}


def assigned(rows: Floats, centres: Floats) -> tuple[Any, Floats]:
    """Which centre each row is nearest to, the first of equals, and the square of how far."""
    distances = np.stack([((rows - centre) ** 2).sum(1) for centre in centres], 1)
    return distances.argmin(1), distances.min(1)


@dataclass(frozen=True)
class KMeans(Analysis):
    """Groups of similar rows: `clusters` centres that rows are near to, over the rows that miss none of the columns.

    With `standardise` (the default) columns count by their standard deviations. Centres move until none does, or
    `iterations` times. Which local optimum that is depends on the start, which is drawn by `seed`. The result has
    `centres` [clusters, columns] in the columns' own units, `counts` [clusters], `inertia` (the sum of squared
    distances in scaled columns), `mean` and `scale` [columns] and `iterations`; it is the same bits however rows are
    spread.

    Leaving the holder: what leaves it for `Covariance` (first, to scale columns), then, once for `cells` random cells
    and for each step for all clusters, how many rows are in it, their sum, and the sum of their squared distances;
    nothing of those with fewer rows than its minimum.
    """

    columns: Sequence[str]
    clusters: int
    standardise: bool = True
    iterations: int = 100
    cells: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, clusters=1, cells=self.clusters, seed=0)

    def questions(self, asking: Asking) -> Answered:
        found = yield from moments(asking, self.columns)
        deviations = found.scale(self.columns)
        scale = deviations if self.standardise else np.ones(len(self.columns))
        draws = Key.from_seed(self.seed).derive("kmeans").draws()
        normal = draws.normal(self.cells * len(scale)).reshape(self.cells, -1)
        centres = normal @ np.linalg.cholesky(found.covariance / scale[:, None] / scale + 1e-9 * np.eye(len(scale))).T
        config = {"columns": list(self.columns)}
        for step in range(self.iterations + 1):
            told = yield from asking("clusters", config, centres=centres, mean=found.mean, scale=scale)
            sums = rationals(told["sums"])
            some = sums[:, 0] > 0
            if not some.any():
                raise StrategyError(
                    "no client tells of any cell: each has too few rows", hint="Take fewer cells, or a lower minimum."
                )
            means = centres.copy()
            means[some] = (sums[some, 1:-1] / sums[some, :1]).astype(np.float64)
            if step and np.array_equal(means, centres):
                break
            last = centres
            centres = means if step else started(means[some], sums[some, 0].astype(np.float64), self.clusters, draws)
        else:
            centres = last
        return {
            "centres": centres * scale + found.mean,
            "counts": sums[:, 0].astype(np.int64),
            "inertia": np.array(float(sums[:, -1].sum())),
            "mean": found.mean,
            "scale": scale,
            "iterations": np.array(step),
        }

    def read(self, model: Mapping[str, Any]) -> list[dict[str, float]]:
        """A dictionary for each cluster: its centre by column, and its `count` of rows."""
        rows = zip(model["centres"].tolist(), model["counts"].tolist(), strict=True)
        return [{**dict(zip(self.columns, centre, strict=True)), "count": count} for centre, count in rows]


def started(points: Floats, weights: Floats, clusters: int, draws: Draws) -> Floats:
    """The best of some starts on weighted points: centres drawn with odds by squared distance, then moved."""
    best, least = points[:1].repeat(clusters, 0), np.inf
    for _ in range(STARTS):
        centres = points[draws.weighted(weights, 1)]
        while len(centres) < clusters:
            odds = weights * assigned(points, centres)[1]
            if not odds.any():  # fewer different points than clusters
                odds = weights
            centres = np.concatenate([centres, points[draws.weighted(odds, 1)]])
        for _ in range(20):
            nearest = assigned(points, centres)[0]
            for cluster in np.unique(nearest):
                mine = nearest == cluster
                centres[cluster] = np.average(points[mine], 0, weights[mine])
        if (inertia := float(weights @ assigned(points, centres)[1])) < least:
            best, least = centres, inertia
    return best
