"""Principal components, from exact covariances in one ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import SettingError
from .analysis import Analysis, Answered, Asking, check_whole
from .covariance import moments
from .table import Floats


@dataclass(frozen=True)
class PCA(Analysis):
    """The directions in which rows vary most, over the rows that miss none of the columns.

    With `standardise` columns are divided by their standard deviations first. The result has `components`
    [kept, columns], of length 1, each with its largest element positive, `variance` and `share` of all variance by
    component, `mean` and `scale` [columns], and `count`. All components are kept unless `keep` says how many.

    Leaving the holder: what leaves it for `Covariance`.
    """

    columns: Sequence[str]
    keep: int | None = None
    standardise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep is not None:
            check_whole(self, keep=1)
            if self.keep > len(self.columns):
                raise SettingError(f"PCA keeps {self.keep} of {len(self.columns)} components")

    def questions(self, asking: Asking) -> Answered:
        found = yield from moments(asking, self.columns)
        scale = found.scale(self.columns) if self.standardise else np.ones(len(self.columns))
        variance, vectors = np.linalg.eigh(found.covariance / scale[:, None] / scale)
        variance, components = np.maximum(variance[::-1], 0.0), vectors.T[::-1]
        largest = np.abs(components).argmax(1)
        components = components * np.sign(components[np.arange(len(components)), largest])[:, None]
        return {
            "components": components[: self.keep],
            "variance": variance[: self.keep],
            "share": variance[: self.keep] / (variance.sum() or 1.0),
            "mean": found.mean,
            "scale": scale,
            "count": np.array(found.rows),
        }

    def read(self, model: Mapping[str, Any]) -> list[dict[str, float]]:
        """A dictionary for each component, of its weight for each column."""
        return [dict(zip(self.columns, row.tolist(), strict=True)) for row in model["components"]]


def project(model: Mapping[str, Any], rows: Floats) -> Floats:
    """Rows [n, columns], in the order of the analysis' columns, along its components: [n, kept]."""
    return np.asarray((rows - model["mean"]) / model["scale"] @ model["components"].T, np.float64)
