"""What a result depends on, as a plain tree, and its hash: settings by value, code by what it says."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import platform
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from ..core.arrays import Arrays
from ..runs.software import software

Seen = dict[int, tuple[int, Any]]
"""What was described already: its place, and itself, so that nothing else gets its id."""
PACKAGES = ("umbel", "numpy", "torch", "jax", "keras", "tensorflow", "scikit-learn", "xgboost")


def digest(tree: Any) -> str:
    """SHA-256 of a plain tree."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


@cache
def versions() -> dict[str, str]:
    """The versions of Python and of what may compute, installed whether loaded or not, and the instruction set."""
    found = {"python": platform.python_version(), "instructions": software({})["instructions"]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def described(value: Any) -> Any:
    """A value as a plain tree that is the same in another process: objects by their fields, functions and classes by
    their code and what of their own module that uses. Of installed packages only names count, since versions are
    compared by themselves.
    """
    return _described(value, {})


def _described(value: Any, seen: Seen) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | complex | bytes | Path):
        return [type(value).__name__, repr(value)]
    if isinstance(value, Arrays):
        return ["arrays", value.sha256]
    if isinstance(value, np.ndarray | np.generic):
        data = np.ascontiguousarray(value)
        return ["array", str(data.dtype), list(data.shape), hashlib.sha256(data.tobytes()).hexdigest()]
    if isinstance(value, CodeType):
        return _code(value, seen)
    if isinstance(value, ModuleType):
        return ["module", value.__name__, _of_file(getattr(value, "__file__", None)) or "built in"]
    if isinstance(value, BuiltinFunctionType):
        return ["built in", value.__qualname__]
    if id(value) in seen:
        return ["again", seen[id(value)][0]]
    seen[id(value)] = len(seen), value
    if isinstance(value, Mapping):
        return ["map", sorted(([_described(k, seen), _described(v, seen)] for k, v in value.items()), key=json.dumps)]
    if isinstance(value, list | tuple):
        return [_described(each, seen) for each in value]
    if isinstance(value, set | frozenset):
        return ["set", sorted((_described(each, seen) for each in value), key=json.dumps)]
    if isinstance(value, type):
        return _class(value, seen)
    if isinstance(value, functools.partial):
        return ["partial", *(_described(each, seen) for each in (value.func, value.args, value.keywords))]
    if isinstance(value, MethodType):
        return ["method", _described(value.__self__, seen), _described(value.__func__, seen)]
    if isinstance(value, FunctionType):
        return _function(value, seen)
    return _object(value, seen)


def _object(value: Any, seen: Seen) -> Any:
    if is_dataclass(value):
        state: Any = {each.name: getattr(value, each.name) for each in fields(value)}
    elif wrapped := getattr(value, "__wrapped__", None):  # functools.cache, say
        return ["wrapped", _described(wrapped, seen)]
    elif hasattr(value, "__array__"):  # a tensor, a frame
        return [_name(type(value)), _described(np.asarray(value), seen)]
    else:
        slots = {name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())}
        state = {name: getattr(value, name) for name in slots if hasattr(value, name)}
        state |= getattr(value, "__dict__", {})
    return ["object", _described(type(value), seen), _described(state, seen)]


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _class(kind: type, seen: Seen) -> Any:
    if (owned := _owned(kind)) is not None:
        return ["class", _name(kind), owned]
    said = {name: each for name, each in vars(kind).items() if name not in _INCIDENTAL}
    bases = [_described(base, seen) for base in kind.__bases__ if base is not object]
    return ["class", _name(kind), bases, [[n, _member(said[n], seen)] for n in sorted(said)]]


_INCIDENTAL = {
    "__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__", "__static_attributes__", "_abc_impl",
    "__annotations__", "__dataclass_fields__", "__dataclass_params__", "__match_args__", "__slotnames__",
}  # fmt: skip


def _member(value: Any, seen: Seen) -> Any:
    if isinstance(value, staticmethod | classmethod):
        return _described(value.__func__, seen)
    if isinstance(value, property):
        return [_described(each, seen) for each in (value.fget, value.fset)]
    if inspect.isdatadescriptor(value):
        return type(value).__name__
    return _described(value, seen)


def _function(function: FunctionType, seen: Seen) -> Any:
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(_described(cell.cell_contents, seen))
        except ValueError:  # empty yet
            cells.append("empty")
    held = [cells, _described([function.__defaults__, function.__kwdefaults__], seen)]
    if (owned := _owned(function)) is not None:
        return ["function", _name(function), owned, held]
    used = [name for name in sorted(_names(function.__code__)) if name in function.__globals__]
    means = [[name, _described(function.__globals__[name], seen)] for name in used]
    return ["function", _name(function), _code(function.__code__, seen), held, means]


def _code(code: CodeType, seen: Seen) -> Any:
    consts = [_described(each, seen) for each in code.co_consts]
    return ["code", hashlib.sha256(code.co_code).hexdigest(), consts, list(code.co_names), list(code.co_varnames)]


def _names(code: CodeType) -> set[str]:
    nested = [_names(each) for each in code.co_consts if isinstance(each, CodeType)]
    return set(code.co_names).union(*nested)


def _owned(value: Any) -> str | None:
    """For code of Umbel the hash of its module, for that of other packages nothing but that it is theirs; None for the
    user's own.
    """
    if value.__module__ == "__main__":
        return None
    module = sys.modules.get(value.__module__)
    file = getattr(module, "__file__", None)
    if value.__module__.partition(".")[0] == __name__.partition(".")[0]:
        return _of_file(file)
    return "installed" if value.__module__ == "builtins" or (file and file.startswith(_libraries())) else None


def _of_file(file: str | None) -> str | None:
    if file is None:
        return None
    return "installed" if file.startswith(_libraries()) else _hashed(file)


@cache
def _hashed(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


@cache
def _libraries() -> tuple[str, ...]:
    return tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
