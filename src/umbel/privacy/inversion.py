"""Gradient inversion in closed form: the inputs that an update gives away (Phong et al. 2018, Geiping et al. 2020).

Of an affine layer ``y = W x + b`` the gradient of W's row j is that of b's element j times x. So is what any number of
steps on one example adds up to, without weight decay: their ratio is the input, whatever the rest of the network is,
whatever the labels, and whatever factor the update was scaled by. Of several examples it is a weighted mean of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from ..core.arrays import Array

Floats = npt.NDArray[np.float64]
SILENT = 1e-9
"""Units whose bias moved by less than this share of the largest tell nothing."""


def invert(difference: Mapping[str, Array]) -> dict[str, Floats]:
    """The inputs of the affine layers in an update's difference, by the weights' names: a row for each unit that moved.

    A layer is a matrix of weights with a vector of biases of one of its sides, or a vector of weights with one bias,
    whose names begin alike up to the last dot. Where both sides fit, units are rows, as PyTorch has them.
    """
    return {name: rows for name, weights, bias in _layers(difference) if len(rows := _ratios(weights, bias))}


def likeness(found: Floats, inputs: Floats) -> Floats:
    """For each input the largest cosine between it and any row that was found; 1 for one that is given away whole."""
    flat = np.asarray(inputs, np.float64).reshape(len(inputs), -1)
    cosines = _units(flat) @ _units(np.asarray(found, np.float64)).T
    return np.asarray(cosines.max(axis=1))


def _layers(difference: Mapping[str, Array]) -> Iterator[tuple[str, Floats, Floats]]:
    for name, array in difference.items():
        if array.ndim not in (1, 2):
            continue
        weights = np.asarray(array, np.float64)
        for other, bias in difference.items():
            alike = other != name and other.rpartition(".")[0] == name.rpartition(".")[0]
            if not alike or bias.ndim > 1 or (array.ndim == 1 and (bias.size != 1 or array.size == 1)):
                continue
            rows = weights[None] if array.ndim == 1 else weights
            for each in (rows, rows.T):
                if bias.size == len(each):
                    yield name, each, np.asarray(bias, np.float64).ravel()
                    break


def _ratios(weights: Floats, bias: Floats) -> Floats:
    moved = np.abs(bias) > SILENT * np.abs(bias).max(initial=1e-300)
    return np.asarray(weights[moved] / bias[moved, None])


def _units(rows: Floats) -> Floats:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300))
