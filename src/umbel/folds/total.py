"""The plain sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..core.elementwise import Elementwise


@dataclass(frozen=True)
class total(Elementwise):
    """The plain sum: floats in float64, signed integers and booleans exactly in int64, unsigned integers modulo
    2**bits.
    """

    name: ClassVar[str] = "total"
    exact_integers: ClassVar[bool] = True
    stacks: ClassVar[bool] = False
