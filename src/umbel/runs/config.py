"""An app's config, and what is laid over it: by name and type, whoever sets it."""

from __future__ import annotations

import difflib
import json
import numbers
import textwrap
from collections.abc import Mapping
from typing import Any

from ..errors import SettingError

NAMES = {
    type(None): "none",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list such as [1, 2]",
    tuple: "a list such as 1, 2",
    str: "text",
    dict: "a dictionary",
}
"""What a value of a type is called."""


def laid_over(config: Mapping[str, Any], changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """An app's config with changes laid over it, as the log gives it back. Raises `SettingError` for a name that the
    config has not, for a value that is not of the kind of that in its place, and for what the log cannot keep.
    """
    if changes is not None and not isinstance(changes, Mapping):
        raise SettingError(f"a config is a dictionary of settings by name, not {changes!r:.60}")
    plain = plain_config({**config, **(changes or {})})
    for name, value in (changes or {}).items():
        _check(config, name, value, name)
    return plain


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as the log gives them back, so that a resumed run sees the same."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(config))
    except (TypeError, ValueError, RecursionError) as error:
        raise SettingError(
            f"the config cannot be kept in the run's log: {error}",
            hint="Use numbers, text, lists and dictionaries with text as keys.",
        ) from error
    if repr(plain) != repr(_listed(config)):
        raise SettingError("the config has keys that are not text", hint="Write {'1': 0.5} for {1: 0.5}.")
    return plain


def unknown(name: str, known: Mapping[str, list[str]]) -> SettingError:
    """The error for a name that does not exist: what it may have been meant to be, and all that there are by kind."""
    every = [other for names in known.values() for other in names]
    close = [other for other in every if other.endswith(f".{name}")]
    close += [other for other in difflib.get_close_matches(name, every, n=3) if other not in close]
    guess = f"Did you mean {' or '.join(close)}?\n" if close else ""
    lines = [f"{title:<9} {', '.join(found)}" for title, found in known.items() if found]
    wrapped = [textwrap.fill(line, 74, subsequent_indent=" " * 10, break_on_hyphens=False) for line in lines]
    return SettingError(f"there is no setting {name!r}", hint=guess + "\n".join(wrapped or ["There are none."]))


def atom(value: Any) -> type | None:
    """The plain type of a number, a text or a truth value, numpy's scalars included; None for all else."""
    if isinstance(value, bool | str):
        return type(value) if type(value) in (bool, str) else None
    if isinstance(value, numbers.Integral):
        return int
    return float if isinstance(value, numbers.Real) else None


def _check(config: Mapping[str, Any], name: str, value: Any, whole: str) -> None:
    if name not in config:
        prefix = whole[: len(whole) - len(name)]
        raise unknown(whole, {"config": [f"{prefix}{other}" for other in config]})
    old = config[name]
    if isinstance(old, Mapping) and old and isinstance(value, Mapping):
        for inner in value:
            _check(old, inner, value[inner], f"{whole}.{inner}")
    elif old is not None and not _fits(old, value):
        kind = _kind(old)
        raise SettingError(f"config {whole}: it takes {NAMES.get(kind, kind.__name__)}, not {value!r:.60}")


def _fits(old: Any, new: Any) -> bool:
    before, now = _kind(old), _kind(new)
    return before == now or (before, now) == (float, int) or {before, now} == {list, tuple}


def _kind(value: Any) -> type:
    return dict if isinstance(value, Mapping) else atom(value) or type(value)


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _listed(v) for k, v in value.items()}
    return [_listed(v) for v in value] if isinstance(value, list | tuple) else value
