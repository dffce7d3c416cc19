"""DP-SGD at a holder: what it sends hides each example of its data, from the server, too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..core.randomness import Floats, Indices, normals
from ..core.settings import positive, whole
from ..entropy import SYSTEM, Entropy
from ..errors import AppError, UnusedCorrection
from .accounting import PrivacySpent, spent
from .release import ADD_OR_REMOVE, NoisyRelease

if TYPE_CHECKING:
    from ..core.client import Context

KEPT = "example_privacy"
"""Where in ``ctx.state`` stands what a client's examples have spent so far."""
SLACK = 1e-4
"""How far below the bound, by its share, gradients are scaled: more than a float32 norm errs by."""


@dataclass(frozen=True)
class ExamplePrivacy:
    """How `umbel.torch.fit` and `umbel.jax.fit` hide each example of a client's data: DP-SGD (Abadi et al. 2016, arXiv
    1607.00133).

    A step takes each example by its own throw of the dice, of probability ``batch / examples``, scales the gradient of
    each to an L2 norm of at most `norm`, all parameters together, adds them up, adds Gaussian noise of the standard
    deviation ``noise * norm`` to each element, and divides by `batch`. Nobody in a batch is a step of noise alone. An
    example whose gradient is not finite counts as zero.

    `examples` is how many a client has, about: a figure that anybody may know, such as one for all clients, and never
    ``len(data)``, for how many there are shows whether one was added. From it come the rate, the number of steps
    (``epochs * examples / batch``, rounded up) and the weight of the update. Where there are more or fewer, privacy is
    the same, and a step is longer or shorter. Losses are not told.

    Why it holds: with one example more a step's sum has one more term, if that is drawn, of norm at most `norm`, and
    nothing else is otherwise. So each step is the Poisson-sampled Gaussian mechanism, applied to what the steps before
    it gave, and the update is made of their results. Dice and noise are the operating system's: whoever knew them
    would see the rest. Noise in floating point has gaps that may tell more than this account says (Mironov 2012).
    """

    name: ClassVar[str] = "ExamplePrivacy"
    norm: float
    noise: float
    examples: int

    def __post_init__(self) -> None:
        positive(self, "norm", "noise")
        whole(self, examples=1)

    @property
    def limit(self) -> float:
        """The norm to scale gradients to that are above it."""
        return self.norm * (1 - SLACK)

    def release(self, batch: int) -> NoisyRelease:
        """What one step is to an accountant."""
        sampling = {"kind": "poisson", "rate": batch / self.examples}
        return NoisyRelease(
            "gaussian", self.noise, self.norm, "example", ADD_OR_REMOVE, sampling, denominator=float(batch)
        )

    def begin(self, ctx: Context, batch: int, epochs: int) -> int:
        """Put all steps of a task to the client's account, before the first is taken, and give how many there are.

        Raises `AppError` for a batch that cannot be, `UnusedCorrection` for a strategy that needs to know more of the
        data than noised gradients.
        """
        if not 1 <= batch <= self.examples:
            raise AppError(
                f"a batch of {batch} cannot be drawn of about {self.examples} examples",
                hint="Take a batch from 1 to the `examples` of ExamplePrivacy; 0 is all of them.",
            )
        wanted = None if ctx.correction is None else ctx.correction.take()
        if wanted is not None and (
            wanted.procedure or wanted.control or wanted.perturbation or "initial_loss" in wanted.reports
        ):
            raise UnusedCorrection(
                "the strategy needs more of the data than noised gradients, which is all that example privacy gives",
                hint="Take one that adds to the gradient alone, such as FedAvg, FedProx or SCAFFOLD.",
            )
        steps = math.ceil(Fraction(epochs * self.examples, batch))
        if steps:
            _account(ctx, self.release(batch), steps)
        return steps

    def drawn(self, count: int, batch: int, own: Entropy = SYSTEM) -> list[Indices]:
        """Which of `count` examples a step takes, in portions of at most `capacity` of them."""
        rate = batch * 2**64 // self.examples  # of 2^64 words
        words = own.words(count)
        chosen = np.arange(count) if rate == 2**64 else np.flatnonzero(words < np.uint64(rate))
        size = self.capacity(batch)
        return [chosen[at : at + size] for at in range(0, len(chosen), size)]

    def capacity(self, batch: int) -> int:
        """How many examples are worked on at a time where so many are expected: nearly always all that are drawn."""
        return batch + math.ceil(3 * math.sqrt(batch))

    def drawn_noise(self, size: int, own: Entropy = SYSTEM) -> Floats:
        """The noise of so many elements of a sum."""
        return normals(own.words(size)) * (self.noise * self.norm)


def example_privacy_spent(state: Mapping[str, Any], delta: float, accountant: str = "pld") -> PrivacySpent:
    """What a client's examples have spent over all its rounds, by what it keeps: its ``ctx.state``, in which
    answers that were rejected are not, though a server may have seen them; a node's ledger has those, too. See `spent`.
    """
    kept = [(NoisyRelease.of(release), count) for release, count in state.get(KEPT, [])]
    return spent((release for release, count in kept for _ in range(count)), delta, accountant)


def _account(ctx: Context, release: NoisyRelease, count: int) -> None:
    """Keep that there were so many releases, and tell the holder. Both with the task's result alone, for without that
    nothing was released.
    """
    plain = release.plain()
    kept = [[before, n] for before, n in ctx.state.get(KEPT, [])]
    for entry in kept:
        if entry[0] == plain:
            entry[1] += count
            break
    else:
        kept.append([plain, count])
    ctx.state[KEPT] = kept
    ctx.account(release, count)
