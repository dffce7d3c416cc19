"""Folds: how updates become one answer; ``fold=`` of an ask."""

from __future__ import annotations

from ..core.elementwise import Elementwise, mean, weighted_mean
from ..core.fold import Fold
from .catalogue import fold_from_spec
from .collect import collect
from .total import total

__all__ = ["Elementwise", "Fold", "collect", "fold_from_spec", "mean", "total", "weighted_mean"]
