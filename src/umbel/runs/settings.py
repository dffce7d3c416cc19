"""`--set`: changes of an app's config, rounds and strategy, checked by name and type."""

from __future__ import annotations

import ast
import copy
import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from ..core.app import App
from ..errors import CallerError, SettingError
from .config import NAMES, atom, unknown

ATOMS = (bool, int, float, str)
ORDER = (type(None), bool, int, float, list, tuple, str, object)


@dataclass(frozen=True)
class Changed:
    """An app with the assignments made: its strategy is exchanged, `config` is the part of its config that changed, and
    `rounds` is what was set, if it was.
    """

    app: App
    config: dict[str, Any]
    rounds: int | None


def apply(app: App, assignments: Sequence[str]) -> Changed:
    """Make assignments such as ``lr=0.1``, ``rounds=20``, ``strategy.cohort=5``, ``strategy.server.lr=0.1``.

    Constructors of strategies check again. Raises `SettingError` for a name that does not exist or a value that does
    not fit.
    """
    changed = copy.copy(app)
    config: Mapping[str, Any] = app.config
    rounds: int | None = None
    for assignment in assignments:
        name, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals or not name:
            raise SettingError(f"--set {assignment} is not KEY=VALUE", hint="Write it as --set lr=0.1.")
        root, path = _root(app, name)
        try:
            if root == "rounds":
                rounds = _rounds(text)
            elif root == "strategy":
                changed.strategy = _with(changed.strategy, path, text)
            else:
                config = _with(config, path, text)
        except _Unknown:
            raise _unknown(app, name) from None
        except CallerError as error:
            raise SettingError(f"--set {assignment}: {error.message}", hint=error.hint) from error
        except (TypeError, ValueError) as error:
            raise SettingError(f"--set {assignment}: {error}") from error
    return Changed(changed, {k: v for k, v in config.items() if v is not app.config.get(k)}, rounds)


def names(app: App) -> list[str]:
    """All names that can be set; ``config.`` stands before a key that would be taken for something else."""
    config = [f"config.{key}" if key == "rounds" else key for key in _leaves(app.config)]
    return [*config, "rounds", *(f"strategy.{name}" for name in _leaves(app.strategy))]


class _Unknown(Exception):
    """There is no such name."""


def _root(app: App, name: str) -> tuple[str, list[str]]:
    first, *rest = name.split(".")
    if name == "rounds":
        return "rounds", []
    if rest and first in ("strategy", "config") and name not in app.config:
        return first, rest
    return "config", [first, *rest]


def _rounds(text: str) -> int:
    value = _parse(text, (int,))
    if value < 1:
        raise SettingError(f"it takes a whole number of at least 1, not {text!r}")
    return int(value)


def _with(owner: Any, path: list[str], text: str) -> Any:
    """`owner` with the value at `path` exchanged: a mapping's key, a dataclass's field or a tuple's index."""
    whole = ".".join(path)
    if isinstance(owner, Mapping) and whole in owner:
        return {**owner, whole: _fitting(owner[whole], type(owner[whole]), text)}
    first, rest = path[0], path[1:]
    parts = _parts(owner)
    if first not in parts:
        raise _Unknown
    old, hint = parts[first]
    new = _with(old, rest, text) if rest else _fitting(old, hint, text)
    if isinstance(owner, Mapping):
        return {**owner, first: new}
    if isinstance(owner, tuple):
        return tuple(new if str(index) == first else value for index, value in enumerate(owner))
    return dataclasses.replace(owner, **{first: new})


def _parts(owner: Any) -> dict[str, tuple[Any, Any]]:
    """What is inside: by name, the value and the type that is wanted for it."""
    if isinstance(owner, Mapping):
        return {key: (value, type(value)) for key, value in owner.items() if isinstance(key, str)}
    if isinstance(owner, tuple) and any(dataclasses.is_dataclass(value) for value in owner):
        return {str(index): (value, type(value)) for index, value in enumerate(owner)}
    if not dataclasses.is_dataclass(owner) or isinstance(owner, type):
        return {}
    try:
        hints = typing.get_type_hints(type(owner))
    except Exception:  # a user's annotations may name what is not there at run time
        hints = {}
    found = [(field.name, getattr(owner, field.name)) for field in dataclasses.fields(owner) if field.init]
    return {name: (value, hints.get(name, type(value))) for name, value in found}


def _leaves(owner: Any, prefix: str = "") -> Iterator[str]:
    for name, (value, hint) in _parts(owner).items():
        if _kinds(value, hint):
            yield prefix + name
        yield from _leaves(value, f"{prefix}{name}.")


def _fitting(old: Any, hint: Any, text: str) -> Any:
    kinds = _kinds(old, hint)
    if not kinds:
        inside = ", ".join(_leaves(old))
        raise SettingError(
            f"a {type(old).__name__} cannot be set from the command line",
            hint=f"What is inside can be: {inside}." if inside else "Set it in the app's file.",
        )
    return _parse(text, kinds)


def _kinds(old: Any, hint: Any) -> tuple[Any, ...]:
    """The types that a value may have, and `object` for any literal; empty where nothing that can be typed would do."""
    if hint is Any:
        return (int, float) if atom(old) in (int, float) else (object,)
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(kind for part in get_args(hint) for kind in _kinds(None, part) if kind is not object)
    if get_origin(hint) is Literal:
        return get_args(hint)
    if hint in ATOMS:
        return (hint,)
    if hint is type(None):
        return (type(None), object) if old is None else (type(None),)
    if isinstance(hint, type) and (plain := atom(old)) is not None:
        return (plain,)
    return (type(old),) if isinstance(old, list | tuple) and not _parts(old) else ()


def _parse(text: str, kinds: tuple[Any, ...]) -> Any:
    for kind in sorted(kinds, key=lambda kind: ORDER.index(kind) if kind in ORDER else len(ORDER)):
        try:
            return _read(text, kind)
        except ValueError:
            continue
    shown = [kind for kind in kinds if kind is not int or float not in kinds]
    wanted = " or ".join(NAMES.get(kind, f"{kind}") for kind in shown)
    raise SettingError(f"it takes {wanted}, not {text!r}")


def _read(text: str, kind: Any) -> Any:
    """The text as this kind of value. Raises ValueError where it is none."""
    value: Any = _literal(text)
    if kind is object or (kind in (bool, type(None)) and type(value) is kind):
        return value
    if kind in (list, tuple) and isinstance(value, list | tuple):
        return kind(value)
    if kind is str or text == kind:
        return text
    if kind in (int, float) and not math.isnan(value := kind(text)):
        return value
    raise ValueError


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false", "none"):
        text = text.capitalize()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _unknown(app: App, name: str) -> SettingError:
    found = names(app)
    strategy = [other for other in found if other.startswith("strategy.")]
    config = [other for other in found if other not in [*strategy, "rounds"]]
    return unknown(name, {"config": config, "run": ["rounds"], "strategy": strategy})
