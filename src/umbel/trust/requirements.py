"""What a client needs to be installed: read from where its author declares it, and checked where it is to run."""

from __future__ import annotations

import platform
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion

from ..errors import AppError

_BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)[ \t]*$\s(?P<content>(^#(| .*)$\s)+)^# ///[ \t]*$")
_LONGEST = 200
_KEYS = ("dependencies", "requires-python", "tool")


def requirement(text: str) -> Requirement:
    """Read a line such as ``torch>=2.6,<3``. Raises `AppError`, for markers and addresses too."""
    try:
        found = Requirement(text) if len(text) <= _LONGEST else None
    except InvalidRequirement:
        found = None
    if found is None or found.url or found.marker:
        raise AppError(
            f"the requirement {text!r:.100} cannot be read",
            hint="Write a name and bounds, such as torch>=2.6,<3; without markers and addresses.",
        )
    return found


@dataclass(frozen=True)
class Declared:
    """What a file's ``# /// script`` block declares. `requirements` is None where it says nothing of them."""

    requirements: tuple[str, ...] | None = None
    python: str = ""
    files: tuple[str, ...] = ()
    version: int = 0


def declared(source: str, where: str) -> Declared:
    """Read the block of inline metadata (PEP 723) of a Python file::

        # /// script
        # requires-python = ">=3.11"
        # dependencies = ["torch>=2.6"]
        # [tool.umbel]
        # files = ["digits.csv.gz", "tables/*.csv"]
        # version = 3
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
        if unknown := sorted(set(own) - {"files", "version"}):
            raise TypeError(f"[tool.umbel] has no key {unknown[0]!r}, only files and version")
        dependencies = _texts(table, "dependencies") if "dependencies" in table else None
        python = table.get("requires-python", "")
        if not isinstance(python, str):
            raise TypeError("requires-python is not text")
        _bounds(python)
        version = own.get("version", 0)
        if type(version) is not int or not 0 <= version < 2**53:
            raise TypeError("version is not a whole number")
        return Declared(dependencies, python, _texts(own, "files"), version)
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
    if not _within(manifest["python"], platform.python_version()):
        found.append(f"it needs Python {manifest['python']}, and this is {platform.python_version()}")
    for text in manifest["requirements"]:
        try:
            wanted = requirement(text)
            installed = version(wanted.name)
        except AppError as error:
            found.append(error.message)
        except PackageNotFoundError:
            found.append(f"it needs {text}, which is not installed here")
        else:
            if not _within(str(wanted.specifier), installed):
                found.append(f"it needs {text}, and {installed} is installed here")
    for module in manifest["imports"]:
        if not _importable(module):
            found.append(f"it imports {module}, which is not installed here")
    return found


def _importable(module: str) -> bool:
    from importlib.util import find_spec

    if not module.isidentifier():  # to look for a part of a package is to import the package, here
        return False
    try:
        return find_spec(module) is not None
    except (ValueError, ImportError):
        return False


def _bounds(text: str) -> SpecifierSet:
    try:
        if len(text) <= _LONGEST:
            return SpecifierSet(text)
    except InvalidSpecifier:
        pass
    raise AppError(
        f"requires-python = {text!r:.100} cannot be read", hint="Write versions after comparisons, such as >=3.11."
    )


def _within(bounds: str, version: str) -> bool:
    try:
        return _bounds(bounds).contains(version, prereleases=True)
    except (AppError, InvalidVersion):
        return False


def _texts(table: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"{key} is not a list of text")
    return tuple(value)
