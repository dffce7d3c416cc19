"""The folds that relays know by their descriptions. Those that see every update by itself need not be here: a relay
passes such updates on as they are.
"""

from __future__ import annotations

from typing import Any

from ..core.elementwise import mean, weighted_mean
from ..core.fold import Fold
from .collect import collect
from .total import total

_BUILT_IN: dict[str, type[Fold]] = {kind.name: kind for kind in (weighted_mean, mean, total, collect)}


def fold_from_spec(spec: Any) -> Fold | None:
    """The built-in fold that `Fold.spec` described; None for any other, and for what is no such description."""
    try:
        name, settings = spec
        return _BUILT_IN[name](**settings)
    except (TypeError, ValueError, KeyError):
        return None
