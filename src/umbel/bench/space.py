"""What a sweep varies: listed values and ranges of settings, as texts that `--set` takes, and the points tried of them.

::

    lr=0.1,0.03            two values
    layers=(8, 8),(16,)    two lists; a value with a comma otherwise stands in quotes: name="a,b","c"
    lr=0.001..0.1          numbers of a range, drawn evenly on a logarithmic scale; so are all that begin above 0
    momentum=0.0..0.9      evenly on a linear one; so are whole numbers: strategy.cohort=5..50
    width=16..1024:log     as it is said: :log or :linear
"""

from __future__ import annotations

import ast
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.randomness import Key
from ..errors import SettingError

Point = dict[str, str]
"""A value for each setting that is varied, as text."""

_NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(?::(log|linear))?")
_PARTS = re.compile(r""""[^"]*"|'[^']*'|.""", re.DOTALL)


@dataclass(frozen=True)
class ValueRange:
    """The numbers from `low` to `high`, both included; `log`: as many between 1 and 10 as between 10 and 100."""

    low: float
    high: float
    whole: bool = False
    log: bool = False

    @property
    def ends(self) -> tuple[str, str]:
        """Its first and its last number, as texts."""
        return self.text(self.low), self.text(self.high)

    def at(self, share: float) -> str:
        """The number that has this share of the range below it, as text."""
        half = 0.5 if self.whole else 0.0  # whole numbers at either end are as likely as all others
        low, high = self.low - half, self.high + half
        low, high = (math.log(max(low, 0.5) if self.whole else low), math.log(high)) if self.log else (low, high)
        value = low + share * (high - low)
        return self.text(min(max(math.exp(value) if self.log else value, self.low), self.high))

    def text(self, value: float) -> str:
        """A number of it as it is set: whole, or in five digits."""
        return str(round(value)) if self.whole else repr(float(f"{value:.5g}"))


Space = Mapping[str, "tuple[str, ...] | ValueRange"]
"""For each setting its values, or the range that they are drawn from."""


def assigned(assignments: Sequence[str]) -> dict[str, tuple[str, ...] | ValueRange]:
    """The space of assignments such as ``lr=0.1,0.03`` or ``lr=0.001..0.1``. Raises `SettingError`."""
    space: dict[str, tuple[str, ...] | ValueRange] = {}
    for assignment in assignments:
        name, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals or not name:
            raise SettingError(f"--set {assignment} is not KEY=VALUE,VALUE", hint="Write it as --set lr=0.1,0.03.")
        if name in space:
            raise SettingError(f"--set {name} is given twice", hint="List its values in one: --set lr=0.1,0.03.")
        space[name] = _read(name, text)
    return space


def space_of(settings: Mapping[str, Any]) -> dict[str, tuple[str, ...] | ValueRange]:
    """The space of a dictionary: a list holds values, a text is read as on the command line, another value is alone.
    Raises `SettingError`.
    """
    space: dict[str, tuple[str, ...] | ValueRange] = {}
    for name, value in settings.items():
        if isinstance(value, ValueRange):
            space[name] = value
        elif isinstance(value, str):
            space[name] = _read(name, value)
        else:
            values = list(value) if isinstance(value, list | tuple | range) else [value]
            if not values:
                raise SettingError(f"{name}: there is no value in the list", hint='Such as {"lr": [0.1, 0.03]}.')
            space[name] = tuple(dict.fromkeys(map(_text, values)))
    return space


def grid(space: Space) -> list[Point]:
    """All combinations, the last setting's values changing first. Raises `SettingError` for a range."""
    for name, values in space.items():
        if isinstance(values, ValueRange):
            hint = "Draw from it by --random N or --optuna N (random=N, optuna=N), or list the values."
            raise SettingError(f"{name}: a range has no end of values", hint=hint)
    combined = itertools.product(*(values for values in space.values() if not isinstance(values, ValueRange)))
    return [dict(zip(space, values, strict=True)) for values in combined]


def drawn(space: Space, count: int, seed: int = 0) -> list[Point]:
    """So many points drawn at random, the same ones each time, those that are drawn again left out: of more points the
    first are the same.
    """
    key = Key.from_seed(seed)

    def value(name: str, values: tuple[str, ...] | ValueRange, number: int) -> str:
        share = key.derive("sweep", name, number).integer(53) / 2**53
        return values.at(share) if isinstance(values, ValueRange) else values[int(share * len(values))]

    points = [{name: value(name, values, i) for name, values in space.items()} for i in range(count)]
    return list({tuple(point.items()): point for point in points}.values())


def _read(name: str, text: str) -> tuple[str, ...] | ValueRange:
    if found := _RANGE.fullmatch(text):
        return _range(name, *found.groups())
    parts = [part.strip() for part in _split(text)]
    for part in parts:
        if not part or _RANGE.fullmatch(part):
            what = "a range stands alone" if part else "a value is empty"
            raise SettingError(f"{name}={text}: {what}", hint=f"Such as {name}=0.1,0.03, or {name}=0.001..0.1.")
    return tuple(dict.fromkeys(map(_unquoted, parts)))


def _range(name: str, first: str, last: str, scale: str | None) -> ValueRange:
    low, high = float(first), float(last)
    whole = first.lstrip("+-").isdigit() and last.lstrip("+-").isdigit()
    log = scale == "log" if scale else not whole and low > 0
    if not low < high or not math.isfinite(high - low):
        raise SettingError(f"{name}={first}..{last}: a range goes from a number to a greater one")
    if log and low <= 0:
        raise SettingError(f"{name}={first}..{last}: a logarithmic range begins above 0")
    return ValueRange(low, high, whole, log)


def _split(text: str) -> list[str]:
    """The parts between commas that stand in no quotes and no brackets."""
    parts, depth = [""], 0
    for piece in _PARTS.findall(text):
        depth += (piece in "([{") - (piece in ")]}") if len(piece) == 1 else 0
        if piece == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


def _unquoted(part: str) -> str:
    return part[1:-1] if len(part) > 1 and part[0] == part[-1] and part[0] in "\"'" else part


def _text(value: Any) -> str:
    """A value as `--set` takes it."""
    return value if isinstance(value, str) else repr(value.item() if hasattr(value, "item") else value)


def plain_value(text: str) -> Any:
    """A text as the number, list or truth value that it is of, for tables; the text itself where it is none."""
    try:
        return ast.literal_eval(text.capitalize() if text.lower() in ("true", "false", "none") else text)
    except (ValueError, SyntaxError):
        return text
