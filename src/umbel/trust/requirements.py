"""What a client needs to be installed: read from where its author declares it, and checked where it is to run."""

from __future__ import annotations

import platform
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import AppError

_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?P<extras>\[[A-Za-z0-9._, -]*\])?\s*(?P<bounds>[^;@\[]*)"
)
_BOUND = re.compile(r"(==|!=|>=|<=|~=|>|<)\s*([0-9]+(?:\.[0-9]+)*)(\.\*)?")
_VERSION = re.compile(r"v?([0-9]+(?:\.[0-9]+)*)(.*)", re.DOTALL)
_BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)[ \t]*$\s(?P<content>(^#(| .*)$\s)+)^# ///[ \t]*$")
_LONGEST = 200
_KEYS = ("dependencies", "requires-python", "tool")

Bounds = tuple[tuple[str, tuple[int, ...], bool], ...]
"""Comparisons, each with a version, and whether that ends in ``.*``."""


@dataclass(frozen=True)
class Requirement:
    """A package by name, with bounds on its version: numbers with ``== != >= <= > < ~=``, joined by commas."""

    name: str
    bounds: Bounds = ()

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Read a line such as ``torch>=2.6,<3``. Raises `AppError`."""
        found = _REQUIREMENT.fullmatch(text.strip()) if len(text) <= _LONGEST else None
        if found is None:
            raise AppError(
                f"the requirement {text!r:.100} cannot be read",
                hint="Write a name and bounds, such as torch>=2.6,<3; without markers and addresses.",
            )
        return cls(found["name"], _bounds(found["bounds"], text))

    def admits(self, version: str) -> bool:
        """Whether a version is within the bounds."""
        return all(_holds(sign, _release(version), wanted, stars) for sign, wanted, stars in self.bounds)


@dataclass(frozen=True)
class Declared:
    """What a file's ``# /// script`` block declares. `requirements` is None where it says nothing of them."""

    requirements: tuple[str, ...] | None = None
    python: str = ""
    files: tuple[str, ...] = ()


def declared(source: str, where: str) -> Declared:
    """Read the block of inline metadata (PEP 723) of a Python file::

        # /// script
        # requires-python = ">=3.11"
        # dependencies = ["torch>=2.6"]
        # [tool.umbel]
        # files = ["digits.csv.gz", "tables/*.csv"]
        # ///

    Raises `AppError`.
    """
    blocks = [found for found in _BLOCK.finditer(source) if found["type"] == "script"]
    if not blocks:
        return Declared()
    if len(blocks) > 1:
        raise AppError(f"{where} has several `# /// script` blocks")
    lines = blocks[0]["content"].splitlines()
    try:
        table = tomllib.loads("\n".join(line[2:] if line.startswith("# ") else line[1:] for line in lines))
        if unknown := sorted(set(table) - set(_KEYS)):
            raise TypeError(f"it has no key {unknown[0]!r}")
        own = table.get("tool", {}).get("umbel", {})
        if unknown := sorted(set(own) - {"files"}):
            raise TypeError(f"[tool.umbel] has no key {unknown[0]!r}, only files")
        dependencies = _texts(table, "dependencies") if "dependencies" in table else None
        python = table.get("requires-python", "")
        if not isinstance(python, str):
            raise TypeError("requires-python is not text")
        _bounds(python, f"requires-python = {python}")
        return Declared(dependencies, python, _texts(own, "files"))
    except (tomllib.TOMLDecodeError, TypeError, AttributeError) as error:
        raise AppError(f"the `# /// script` block of {where} is wrong: {error}") from error


def listed(text: str) -> tuple[str, ...]:
    """The lines of a requirements.txt."""
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return tuple(line for line in lines if line)


def missing(manifest: Mapping[str, Any]) -> list[str]:
    """What this environment lacks for what a manifest names, in words; empty if nothing."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    if not _admits("python", manifest["python"], platform.python_version()):
        found.append(f"it needs Python {manifest['python']}, and this is {platform.python_version()}")
    for text in manifest["requirements"]:
        try:
            requirement = Requirement.parse(text)
        except AppError as error:
            found.append(error.message)
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            found.append(f"it needs {text}, which is not installed here")
            continue
        if not requirement.admits(installed):
            found.append(f"it needs {text}, and {installed} is installed here")
    for module in manifest["imports"]:
        if not _importable(module):
            found.append(f"it imports {module}, which is not installed here")
    return found


def _importable(module: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(module) is not None
    except (ValueError, ImportError):
        return False


def _admits(name: str, bounds: str, version: str) -> bool:
    try:
        return Requirement(name, _bounds(bounds, bounds)).admits(version)
    except AppError:
        return False


def _texts(table: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"{key} is not a list of text")
    return tuple(value)


def _bounds(text: str, whole: str) -> Bounds:
    found = []
    bare = text.strip().removeprefix("(").removesuffix(")")
    for part in filter(None, (part.strip() for part in bare.split(","))):
        match = _BOUND.fullmatch(part) if len(part) <= _LONGEST else None
        wrong = (
            match is None or (match[3] and match[1] not in ("==", "!=")) or (match[1] == "~=" and "." not in match[2])
        )
        if match is None or wrong:
            raise AppError(
                f"the bound {part!r:.60} in {whole.strip()!r:.100} cannot be read",
                hint="Write numbers after == != >= <= > < ~=, such as >=2.6.",
            )
        found.append((match[1], tuple(int(number) for number in match[2].split(".")), bool(match[3])))
    return tuple(found)


def _release(version: str) -> tuple[tuple[int, ...], bool]:
    """A version's numbers, and whether it is the release itself rather than one before it, such as ``2.0rc1``."""
    found = _VERSION.fullmatch(version.strip())
    if found is None:
        return (), False
    rest = found[2].partition("+")[0].lower().lstrip(".-_")
    return tuple(int(number) for number in found[1].split(".")), not re.match(r"(a|b|c|rc|alpha|beta|pre|dev)", rest)


def _holds(sign: str, version: tuple[tuple[int, ...], bool], wanted: tuple[int, ...], stars: bool) -> bool:
    numbers, final = version
    if sign == "~=":
        return _holds(">=", version, wanted, False) and _holds("==", version, wanted[:-1], True)
    if stars:
        same = (numbers + (0,) * len(wanted))[: len(wanted)] == wanted
        return same == (sign == "==")
    width = max(len(numbers), len(wanted))
    mine = (*numbers, *(0,) * (width - len(numbers)), int(final))
    other = (*wanted, *(0,) * (width - len(wanted)), 1)
    return {
        "==": mine == other,
        "!=": mine != other,
        ">=": mine >= other,
        "<=": mine <= other,
        ">": mine > other,
        "<": mine < other,
    }[sign]
