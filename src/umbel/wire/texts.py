"""What peers say as JSON: read in one place, before anybody relies on it."""

from __future__ import annotations

import json
from typing import Any

from ..errors import ProtocolError
from . import messages as m
from .limits import JSON_DEPTH

NO_STEPS = "[]"


def read_json(text: str | bytes, what: str, kind: type[Any] | None = None, *, plain: bool = False) -> Any:
    """The value of a text that a peer has sent, which is of a `kind` if one is named.

    Raises `ProtocolError` that names `what` it was for anything else, and for what is nested deeper than `JSON_DEPTH`;
    where it is to be `plain`, also for NaN and Infinity, which other languages do not read.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        found = json.loads(text, parse_constant=_refused if plain else None)
    except (ValueError, RecursionError):
        raise ProtocolError(f"{what} is no JSON", m.CODE_MALFORMED) from None
    if kind is not None and type(found) is not kind:
        raise ProtocolError(f"{what} is not a JSON {'object' if kind is dict else 'list'}", m.CODE_MALFORMED)
    if text.count("[") + text.count("{") > JSON_DEPTH and _is_deep(found):
        raise ProtocolError(f"{what} is nested deeper than {JSON_DEPTH}", m.CODE_TOO_LARGE)
    return found


def _refused(word: str) -> Any:
    raise ValueError(word)


def read_steps(text: str, what: str) -> list[tuple[str, int]]:
    """The names and versions of transforms that a peer has described. Raises `ProtocolError`."""
    if text == NO_STEPS:
        return []
    found = []
    for spec in read_json(text, what, list):
        name, version = (spec.get("name"), spec.get("version")) if type(spec) is dict else (None, None)
        if type(name) is not str or type(version) is not int:
            raise ProtocolError(f"{what} are not steps with names and versions", m.CODE_MALFORMED)
        found.append((name, version))
    return found


def _is_deep(tree: Any) -> bool:
    level = [tree]
    for _ in range(JSON_DEPTH + 1):
        level = [
            value
            for each in level
            if isinstance(each, list | dict)
            for value in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True
