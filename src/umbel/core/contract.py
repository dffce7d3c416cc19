"""The contract of an app: what a client has to bring to take part, as JSON, for clients in any language."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import StrategyError, UmbelError
from .arrays import Arrays
from .ask import PHASE, Ask
from .strategy import Strategy

VERSION = 1


def contract(
    model: Arrays, strategy: Strategy, handlers: Iterable[str], config: Mapping[str, Any], evaluates: bool = True
) -> dict[str, Any]:
    """What a client of an app has to bring: of this initial model, strategy and config, whose own client has these
    handlers. `evaluates` says whether clients are asked to evaluate beside what the strategy asks.

    ``{"version": 1, "model": {name: {"shape", "dtype", "role"}}, "kinds": [kind of ask], "transforms": [{"name",
    "version", "settings"}], "correction": whether the training loop is asked to correct its loss, "config": {key:
    type}}``. Personal arrays, which never travel, are not in it. Kinds are those that the strategy's first asks are
    of, and those that the app's own client answers; transforms are those of the first asks, made without any client.
    Raises `StrategyError`.
    """
    asks = first_asks(strategy, model)
    sent = [ask.model for ask in asks if isinstance(ask.model, Arrays)]
    schema = sent[0].schema if sent and sent[0].keys() == model.keys() else model.schema  # it knows what is personal
    kinds = {ask.kind for ask in asks if not ask.kind.startswith(PHASE)} | set(handlers)
    if not evaluates and all(ask.kind != "evaluate" for ask in asks):
        kinds.discard("evaluate")
    return {
        "version": VERSION,
        "model": {
            name: {"shape": list(shape), "dtype": dtype.name, "role": role}
            for name, (shape, dtype, role) in schema.items()
            if role != "personal"
        },
        "kinds": sorted(kinds),
        "transforms": _different(spec for ask in asks for spec in ask.transform.spec()),
        "correction": any(ask.correction is not None or ask.transform.corrects for ask in asks),
        "config": {key: _type(value) for key, value in config.items()},
    }


def first_asks(strategy: Strategy, model: Arrays) -> Sequence[Ask]:
    """What the strategy asks first in its first round; nothing is sent. Raises `StrategyError`."""
    try:
        generator = strategy.in_round(1).round(strategy.start(model), 1)
        asked = next(generator, None)
        generator.close()
    except UmbelError:
        raise
    except Exception as error:
        raise StrategyError(f"the strategy's first round raised {type(error).__name__}: {error}") from error
    found: Sequence[Any] = asked if isinstance(asked, list | tuple) else [] if asked is None else [asked]
    for ask in found:
        if not isinstance(ask, Ask):
            raise StrategyError(f"the strategy's first round yields {ask!r:.60}, not an Ask")
    return found


def mismatch(
    contract: Mapping[str, Any],
    handlers: Iterable[str],
    transforms: Iterable[tuple[str, int]],
    dtypes: Iterable[str] | None = None,
) -> list[str]:
    """Why a client with these handlers, transforms (name and version) and dtypes (None for all) does not fit; empty if
    it does.
    """
    if contract.get("version") != VERSION:
        return [f"the app's contract is of version {contract.get('version')!r:.20}, this is version {VERSION}"]
    has, knows, reasons = set(handlers), dict[str, set[int]](), []
    for name, version in transforms:
        knows.setdefault(name, set()).add(version)
    for kind in contract["kinds"]:
        if kind not in has:
            answers = ", ".join(sorted(has)) or "nothing"
            reasons.append(f"the app asks {kind}, which the client has no handler for (it answers {answers})")
    for step in contract["transforms"]:
        name, version = step["name"], step["version"]
        if name not in knows:
            reasons.append(f"the app uses the transform {name}, which is not known here")
        elif version not in knows[name]:
            known = ", ".join(map(str, sorted(knows[name])))
            reasons.append(f"the app uses version {version} of the transform {name}, and here is version {known}")
    if dtypes is not None:
        lacking = sorted({spec["dtype"] for spec in contract["model"].values()} - set(dtypes))
        reasons.extend(f"the app's model has arrays of {dtype}, which is not known here" for dtype in lacking)
    return reasons


def _different(specs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for spec in specs:
        if spec not in found:
            found.append(spec)
    return found


def _type(value: Any) -> str:
    kinds = ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (Mapping, "object"))
    for kind, name in kinds:
        if isinstance(value, kind):
            return name
    return "null" if value is None else "array" if isinstance(value, list | tuple) else "any"
