"""Checks of what the parts of a strategy are set by: of itself, its fold, its transforms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..errors import SettingError


def number(value: Any) -> bool:
    """Whether a setting is a finite number, which a boolean is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def positive(part: object, *names: str, most: float = math.inf) -> None:
    """Raise `SettingError` unless these settings are finite numbers above 0, and up to `most`."""
    _check(part, names, lambda value: number(value) and 0 < value <= most, "a finite", _range("above 0", most))


def not_negative(part: object, *names: str, most: float = math.inf) -> None:
    """Raise `SettingError` unless these settings are finite numbers from 0 on, and up to `most`."""
    _check(part, names, lambda value: number(value) and 0 <= value <= most, "a finite", _range("of at least 0", most))


def whole(part: object, **settings: float) -> None:
    """Raise `SettingError` for settings that are not whole numbers of at least what stands there."""
    for name, least in settings.items():
        bound = f"of at least {least}" if least > -math.inf else "of any size"

        def fits(value: Any, least: float = least) -> bool:
            return type(value) is int and value >= least

        _check(part, (name,), fits, "a whole", bound)


def functions(part: object, *names: str) -> None:
    """Raise `SettingError` for settings that cannot be called."""
    _check(part, names, callable, "a", "that is a function")


def _range(start: str, most: float) -> str:
    return start if most == math.inf else f"{start} and up to {most:g}"


def _check(part: object, names: tuple[str, ...], fits: Callable[[Any], bool], kind: str, which: str) -> None:
    for name in names:
        if not fits(value := getattr(part, name)):
            who = getattr(part, "name", type(part).__name__)
            raise SettingError(f"{who} takes {kind} {name} {which}, not {value!r:.60}")
