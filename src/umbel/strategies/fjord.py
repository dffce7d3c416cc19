"""FjORD: ordered dropout, so that every width of the model is good (Horvath et al. 2021, arXiv 2102.13451)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.randomness import Key
from ..core.settings import whole
from .heterofl import HeteroFL, check_widths


@dataclass(frozen=True, kw_only=True)
class FjORD(HeteroFL):
    """HeteroFL whose clients train, each round, a width drawn from those of `widths` that are at most their own.

    Widths are drawn by `seed` for each level and round, where the paper draws one for each batch of each client; its
    distillation between the widths of one client is left to the client's loss. Needs clients that build the net that
    fits what they get.
    """

    widths: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1.0)
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_widths(self, "widths", Sequence)
        whole(self, seed=-math.inf)

    def width(self, level: float, r: int) -> float:
        """One of the widths up to the level's."""
        fits = [width for width in sorted(self.widths) if width <= level] or [level]
        return fits[int(Key.from_seed(self.seed).derive("fjord", r, repr(level)).draws().integers(len(fits), 1)[0])]
