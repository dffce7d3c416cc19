"""Samplers: which clients are asked; ``clients=`` of an ask, ``cohort=`` of a strategy."""

from __future__ import annotations

from ..core.sampler import Sampler
from .fixed import Everyone, Fixed
from .poisson import Poisson
from .shorthand import as_sampler
from .uniform import Fraction, Uniform
from .weighted import Weighted

__all__ = ["Everyone", "Fixed", "Fraction", "Poisson", "Sampler", "Uniform", "Weighted", "as_sampler"]
