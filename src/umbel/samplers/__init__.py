"""Samplers: which clients are asked; ``clients=`` of an ask, ``cohort=`` of a strategy."""

from __future__ import annotations

from ..core.record import Record
from ..core.sampler import Adaptive, Sampler, Unbiased
from .availability_aware import AvailabilityAware
from .by_norm import ByNorm
from .clustered import Clustered
from .fair_rate import FairRate
from .fixed import Everyone, Fixed
from .oort import Oort
from .poisson import Poisson
from .power_of_choice import PowerOfChoice
from .shorthand import as_sampler
from .spaced import Spaced
from .uniform import Fraction, Uniform
from .weighted import Weighted

__all__ = [
    "Adaptive", "AvailabilityAware", "ByNorm", "Clustered", "Everyone", "FairRate", "Fixed", "Fraction", "Oort",
    "Poisson", "PowerOfChoice", "Record", "Sampler", "Spaced", "Unbiased", "Uniform", "Weighted", "as_sampler",
]  # fmt: skip
