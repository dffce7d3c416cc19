"""Heart disease by hospital: four clients that differ in who comes to them and in what they measure."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..core.arrays import Arrays
from ..core.randomness import Key
from ..data.cache import data_folder
from ..data.datasets import HOSPITALS, Floats64, heart
from .classifiers import Items, classifier, parted
from .fingerprint import described, digest
from .problem import Problem

if TYPE_CHECKING:
    from torch import nn

MIDDLE = (54, 0.8, 3.2, 132, 247, 0.15, 0.6, 138, 0.4, 0.9, 1.8, 0.7, 5.1)
SCALE = (9.4, 0.4, 0.9, 19, 60, 0.36, 0.8, 26, 0.5, 1.1, 0.6, 0.9, 1.9)
"""By what features are centred and divided, in the order of `HEART_COLUMNS`: constants, so that nobody has to be asked.
"""
NEVER_ZERO = (3, 4)
"""A blood pressure or a cholesterol of zero was not measured."""


def heart_disease(folder: str | os.PathLike[str] | None = None, **changes: Any) -> Problem:
    """Who has heart disease: logistic regression over the patients of four hospitals (see `umbel.data.heart`).

    Each hospital trains on 8 in 10 of its patients, drawn by the seed, and evaluates on one in 10; accuracies are those
    over all hospitals' patients, so that a hundred of them decide. What was not measured counts as the middle. `folder`
    has the four files; without it they are looked for as by `umbel.data.heart`. `changes` are fields of `Problem`.
    Raises `DataError`. Needs PyTorch.
    """
    place = str(folder or data_folder() / "heart")
    held = heart(place)
    settings: dict[str, Any] = {
        "name": "heart disease by hospital",
        "client": classifier(partial(_load, place), _logistic),
        "model": _initial,
        "clients": _sources,
        "metric": "evaluate.accuracy",
        "also": ("evaluate.loss",),
        "cohort": 4,
        "rounds": 30,
        "config": {"epochs": 2, "batch": 16},
        "rates": (0.003, 0.01, 0.03, 0.1),
        "depends": {"data": digest(described(held))},
    }
    return Problem(**{**settings, **changes})


def _sources(seed: int) -> dict[str, dict[str, Any]]:
    return {name: {"hospital": name, "seed": seed} for name in HOSPITALS}


def _logistic() -> nn.Module:
    from torch import nn

    return nn.Linear(13, 2)


def _initial() -> Arrays:
    """Zeros: the loss is convex."""
    return Arrays({"weight": np.zeros((2, 13), np.float32), "bias": np.zeros(2, np.float32)})


_tables = cache(heart)


def _load(folder: str, source: Mapping[str, Any]) -> dict[str, Items]:
    x, y = _tables(folder)[source["hospital"]]
    order = Key.from_seed(source["seed"]).derive("bench", "heart", source["hospital"]).draws().permutation(len(y))
    parts = parted(np.arange(len(y)), order)
    return {part: (_scaled(x[items]), y[items]) for part, items in parts.items()}


def _scaled(x: Floats64) -> npt.NDArray[np.float32]:
    missing = np.isnan(x) | ((x == 0) & np.isin(np.arange(x.shape[1]), NEVER_ZERO))
    scaled = (x - np.array(MIDDLE)) / np.array(SCALE)
    return np.where(missing, 0.0, scaled).astype(np.float32)
