"""Local differential privacy: holders add the noise, so that nobody beyond them sees an update as it was."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from ..core.answer import Answer
from ..core.arrays import Arrays, Schema, wide
from ..core.fold import Fold
from ..core.randomness import Key
from ..core.settings import positive
from ..core.transform import Transform, as_arrays, register_transform
from ..core.update import Expectation, Like, Update
from ..entropy import SYSTEM, Entropy
from ..errors import StrategyError, UpdateRejected
from ..transforms.clip_by_norm import with_roles
from .clipped import grid
from .discrete import Floats, discrete_gaussian, discrete_laplace

MOST_NOISE = 2.0**20
"""So much noise, in clip bounds, leaves every noised element below 2^53 steps of its grid."""
SLACK = 1e-7
"""How far below the bound, by its share, updates are scaled: more than float64 can err by in a norm."""
ROUNDED = 1e-6
"""By what share rounding to float32 may move a norm."""


@dataclass(frozen=True)
class LocalNoise(Transform):
    """What all local mechanisms share: the parameters of a difference leave the holder as one vector, drawn by
    `randomised` from the holder's own randomness, on a grid that the settings alone decide.

    Every difference has an answer, one that is not finite that of zeros: a refusal would be told as it is. Weights,
    metrics and buffers would be, too, and are dropped: all clients count alike, and the model keeps the buffers that it
    has. What is made of noised updates costs nothing more, so that any fold goes that makes one answer of them. Where
    they are folded their shape, their grid, and that they are no larger than honest ones are checked again.
    """

    norm: float

    def __post_init__(self) -> None:
        positive(self, "norm")

    @property
    def private(self) -> bool:
        return True

    def check(self, fold: Fold, expects: Expectation) -> None:
        if not (isinstance(expects, Like) and expects.delta):
            raise StrategyError(
                f"{self.name} bounds differences, but the ask expects something else", hint="Use Like(delta=True)."
            )
        if fold.keeps_aux:
            raise StrategyError(
                f"{fold.name} keeps updates apart, and {self.name} hides each of them", hint="Use a fold that averages."
            )

    def encode(self, update: Update, params: Any, local: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Update, Any]:
        arrays = as_arrays(update)
        flat, drawn, at = _flat(arrays), {}, 0
        steps = self.randomised(flat if np.isfinite(flat).all() else np.zeros_like(flat), own)
        for name in sorted(arrays):
            array = arrays[name]
            drawn[name] = np.zeros_like(array)
            if arrays.roles[name] == "parameter":
                part, at = steps[at : at + array.size], at + array.size
                drawn[name] = np.asarray(part * self.step(flat.size), wide(array.dtype)).reshape(array.shape)
        made = {name: drawn[name] for name in arrays}
        return Update(Arrays.trusted(made, dict(arrays.roles)), delta=update.delta), local

    def decode(self, update: Update, params: Any, schema: Schema | None = None) -> Update:
        arrays = with_roles(as_arrays(update), schema)
        flat = _flat(arrays)
        step = self.step(flat.size)
        if not np.isfinite(flat).all():
            raise UpdateRejected(f"the update holds NaN or infinity, which {self.name} never does")
        if not (np.rint(flat / step) == flat / step).all():
            raise UpdateRejected(f"the update is not on the grid of {self.name}: multiples of {step:g}")
        self.check_size(flat)
        kept = {n: a if arrays.roles[n] == "parameter" else np.zeros_like(a) for n, a in arrays.items()}
        return Update(Arrays.trusted(kept, dict(arrays.roles)), delta=update.delta)

    def finish(self, answer: Answer, state: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Answer, Any]:
        return replace(answer, value=answer.value.of_role("parameter"), aux=Arrays(), metrics={}, weight=0.0), state

    def step(self, size: int) -> float:
        """The distance of the points of the grid, of so many elements."""
        return grid(self.norm)

    @abstractmethod
    def randomised(self, values: Floats, own: Entropy) -> Floats:
        """What leaves the holder for finite values, as whole numbers of steps of the grid."""

    @abstractmethod
    def check_size(self, values: Floats) -> None:
        """Raise `UpdateRejected` for values that no holder draws, but with a probability below 1e-20."""

    def _event(self, mechanism: str, noise: float, steps: float | None = None) -> dict[str, Any]:
        """Whoever sees a noised update sees whose it is: no sampling hides anybody, and no number is divided by."""
        return {
            "mechanism": mechanism,
            "unit": "client",
            "neighbours": "replace one",
            "noise": noise,
            "norm": self.norm,
            "steps": steps,
            "denominator": None,
            "sampling": {"kind": "everyone"},
        }


@dataclass(frozen=True)
class AddedNoise(LocalNoise):
    """Local mechanisms that clip to `norm`, and add noise of ``noise * norm`` to each element."""

    noise: float

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "noise", most=MOST_NOISE)

    @property
    def _scale(self) -> Fraction:
        """That of the noise, in steps of the grid."""
        return Fraction(self.noise) * Fraction(self.norm) / Fraction(grid(self.norm))

    def _steps(self, values: Floats, order: int) -> Floats:
        """The values, scaled to a norm of this order that is at most `norm`, in steps. They are rounded towards zero,
        so that no norm grows; floats err by less than `SLACK`.
        """
        unit, peak = unit_of(values)
        size = float(np.linalg.norm(unit, order)) if peak else 1.0
        return np.trunc(unit * (min(peak, self.norm * (1 - SLACK) / size) / grid(self.norm)))


@register_transform
@dataclass(frozen=True)
class local_gaussian(AddedNoise):
    """Hide each client's update from the server, too: discrete Gaussian noise, added by the holder (Canonne, Kamath &
    Steinke 2020, arXiv 2004.00010).

    A holder scales its difference to an L2 norm of at most `norm`, rounds it to a grid that `norm` alone decides, and
    adds noise of the standard deviation ``noise * norm`` to each element, drawn exactly and from its own randomness. So
    two clients' differences are twice `norm` apart at most: `event` says what an answer costs. The mean of n clients
    has that noise over the square root of n, many times what `central_gaussian` needs.
    """

    name: ClassVar[str] = "local_gaussian"

    def randomised(self, values: Floats, own: Entropy) -> Floats:
        return self._steps(values, 2) + discrete_gaussian(self._variance, values.size, own)

    def check_size(self, values: Floats) -> None:
        # A discrete Gaussian is subgaussian (Canonne et al. 2020), so that n of them have a norm above
        # s (sqrt(n) + sqrt(2 x)) with a probability below exp(-x) (Hsu, Kakade & Zhang 2012); x is 50.
        most = self.norm * (1 + self.noise * (math.sqrt(values.size) + 10)) * (1 + ROUNDED)
        if not (found := float(np.linalg.norm(values))) <= most:
            raise UpdateRejected(f"the update's norm is {found:.6g}, but {self.name} leaves at most {most:.6g}")

    def event(self, answer: Answer, state: Any) -> dict[str, Any]:
        return self._event("discrete_gaussian", self.noise, math.sqrt(self._variance))

    @property
    def _variance(self) -> int:
        return math.ceil(self._scale**2)


@register_transform
@dataclass(frozen=True)
class local_laplace(AddedNoise):
    """Hide each client's update from the server, too: discrete Laplace noise, added by the holder (Ghosh, Roughgarden &
    Sundararajan 2012, arXiv 0811.2841).

    As `local_gaussian`, but `norm` bounds the L1 norm, and the noise is discrete Laplace of the scale ``noise * norm``.
    One answer is (2 / noise)-differentially private, without a delta: for few numbers, such as those of a linear model.
    """

    name: ClassVar[str] = "local_laplace"

    def randomised(self, values: Floats, own: Entropy) -> Floats:
        return self._steps(values, 1) + discrete_laplace(self._scale, values.size, own)

    def check_size(self, values: Floats) -> None:
        # One element is further than x scales from 0 with a probability below 2 exp(-x).
        most = self.norm * (1 + self.noise * (math.log(max(values.size, 1)) + 50)) * (1 + ROUNDED)
        if not (found := float(np.abs(values).max(initial=0.0))) <= most:
            raise UpdateRejected(f"the update has an element of {found:.6g}, but {self.name} leaves at most {most:.6g}")

    def event(self, answer: Answer, state: Any) -> dict[str, Any]:
        # Accountants know the continuous one. Discrete noise of scale s, shifted by k >= 1 steps, has errors of both
        # kinds whose product is exp(-k / s) / (4 cosh(1 / 2s)^2) at most where neither is plain, as the continuous one
        # shifted by k + 1 / 4s, whose other errors are no larger, has it: its trade-off is nowhere above. Of a vector
        # each element that changes does so by a step or more, so that all shifts grow by a share of 1 / 4s at most.
        return self._event("laplace", self.noise / (1 + 1 / (4 * float(self._scale))))


def unit_of(values: Floats) -> tuple[Floats, float]:
    """The values over the largest of them, so that no square overflows, and that; zeros as they are."""
    peak = float(np.abs(values).max(initial=0.0))
    with np.errstate(under="ignore"):
        return (values / peak if peak else values), peak


def _flat(arrays: Arrays) -> Floats:
    """All parameters as one vector, by name."""
    names = [name for name in sorted(arrays) if arrays.roles[name] == "parameter"]
    return np.concatenate([np.zeros(0), *(np.ravel(arrays[name]).astype(np.float64) for name in names)])
