"""Feature skew: images turned by another angle at each group of clients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import DataError
from ..tables import Columns
from ..view import Array, Reading


@dataclass(frozen=True)
class rotation:
    """Turn images anticlockwise by `degrees`: client i by the i-th of them, round and round.

    The rotated MNIST of clustered federated learning (Ghosh et al. 2020, IFCA, arXiv 2006.04088). `axes` are an image's
    height and width among the axes of one item: by default its last two, and the first two of colour images with
    channels last. `columns` are those that hold images: by default all with so many axes. Pixels are the nearest ones;
    what comes from outside is zero.
    """

    degrees: Sequence[float] = (0.0, 90.0, 180.0, 270.0)
    columns: Sequence[Any] | None = None
    axes: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        angles = self.degrees if isinstance(self.degrees, Sequence | np.ndarray) else ()
        if not len(angles) or not all(isinstance(angle, int | float) and math.isfinite(angle) for angle in angles):
            raise DataError(f"rotation needs at least one angle, and all of them finite, not {self.degrees!r:.60}")

    def __call__(self, columns: Columns, reading: Reading) -> Columns:
        angle = self.degrees[reading.client % len(self.degrees)]
        what = "images of height x width, such as x.reshape(-1, 28, 28)"
        images = reading.features(columns, self.columns, lambda x: x.ndim > 2, what)
        return {name: self._turned(x, angle) for name, x in images.items()}

    def _turned(self, x: Array, degrees: float) -> Array:
        last = x.ndim == 4 and x.shape[-1] in (3, 4) and x.shape[1] not in (1, 3, 4)
        tall, wide = self.axes or ((0, 1) if last else (x.ndim - 3, x.ndim - 2))
        image = np.moveaxis(x, (tall + 1, wide + 1), (-2, -1))
        height, width = image.shape[-2:]
        turn = np.deg2rad(degrees)
        down, right = np.mgrid[:height, :width] - np.array([height - 1, width - 1]).reshape(2, 1, 1) / 2
        rows = np.rint(down * np.cos(turn) + right * np.sin(turn) + (height - 1) / 2).astype(np.int64)
        columns = np.rint(right * np.cos(turn) - down * np.sin(turn) + (width - 1) / 2).astype(np.int64)
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        turned = image[..., np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)] * inside
        return np.moveaxis(turned.astype(x.dtype, copy=False), (-2, -1), (tall + 1, wide + 1))
