"""What is left out is sent later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..core.arrays import Arrays
from ..core.fold import Fold
from ..core.randomness import Key
from ..core.transform import Transform, as_arrays, register_transform
from ..core.update import Expectation, Update
from ..entropy import SYSTEM, Entropy
from ..errors import StrategyError


@register_transform
@dataclass(frozen=True)
class error_feedback(Transform):
    """Add to a client's difference what all steps behind this one left out of its earlier ones (Seide et al. 2014;
    Karimireddy et al. 2019, arXiv 1901.09847), such as in `chain(error_feedback(), quantise(1))`.

    What was left out is the difference as it entered the next step, less what the receiver makes of what is sent; it is
    kept in the client's state, one number for each parameter. Biased steps need it. Behind unbiased ones of large
    variance (`random_k`) it can grow without end: use their biased form. Needs differences.
    """

    name: ClassVar[str] = "error_feedback"
    grows: ClassVar[bool] = True
    feeds_back: ClassVar[bool] = True

    def check(self, fold: Fold, expects: Expectation) -> None:
        if not expects.delta:
            raise StrategyError("error_feedback adds up differences", hint="Use Like(delta=True).")

    def encode(self, update: Update, params: Any, local: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Update, Any]:
        whole = with_left_out(update, local)
        return replace(update, arrays=whole), whole

    def settle(self, local: Any, received: Callable[[], Update]) -> Any:
        return left_out(local, received())


def with_left_out(update: Update, kept: Any) -> Arrays:
    """The arrays of an update, with what was left out of parameters added."""
    arrays = as_arrays(update)
    if kept is None:
        return arrays
    added = {name: arrays[name] + rest for name, rest in kept.items() if arrays.roles.get(name) == "parameter"}
    return arrays.replace(added)


def left_out(whole: Arrays, received: Update) -> Arrays | None:
    """The parameters less what is received of them, where anything is missing; None where nothing is."""
    found = as_arrays(received)
    rest = {name: whole[name] - found[name] for name, role in whole.roles.items() if role == "parameter"}
    missing = {name: array for name, array in rest.items() if array.any()}
    return Arrays(missing) if missing else None
