"""The apps that `umbel new` can write: a folder of `templates` each, named for its framework and its task.

A folder has the files of the app, whose Python ends in .txt so that nothing takes it for modules of this package, and
`template.toml`: `about`, what it is, in a line; `needs`, the modules that have to be there, and how pip gets them;
`strategies`, the patterns of those that its client can do (`but`: and those of them that it cannot), the default first;
`arguments`, what those are made with that need other than a cohort; `named`, where it is for apps that name a strategy;
`like`, the folder that has the files, where it is another; `words`, what stands in them for words in braces. What the
README says of an app is what its `app.py` begins with.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import SettingError

TEMPLATES = Path(__file__).parent / "templates"
FIRST = ("pytorch", "tabular")
"""What is made where nobody says of which framework, and for which task."""


@dataclass(frozen=True)
class Starter:
    """One template."""

    folder: Path
    about: str
    needs: Mapping[str, str]
    strategies: tuple[str, ...] = ()
    but: tuple[str, ...] = ()
    named: bool = False
    run: str = "--clients 20 --rounds 3"
    learned: float = 0.5
    arguments: Mapping[str, str] = field(default_factory=dict)
    like: str | None = None
    words: Mapping[str, str] = field(default_factory=dict)

    @property
    def framework(self) -> str:
        """What the model is written in."""
        return self.folder.name.split("-")[0]

    @property
    def task(self) -> str:
        """What is learned, or asked, of which data."""
        return self.folder.name.split("-")[1]

    def takes(self, strategy: str | None) -> bool:
        """Whether an app of it can learn by this strategy; None for its own."""
        if strategy is None:
            return not self.named
        return _matches(strategy, self.strategies) and not _matches(strategy, self.but)

    def files(self, name: str, strategy: str | None) -> dict[str, str]:
        """The files of an app of this name, with their text."""
        chosen = strategy or next(iter(self.strategies), "FedAvg")
        words = {**self.words, "name": name, "strategy": chosen, "learned": str(self.learned)}
        words["arguments"] = self.arguments.get(chosen, "cohort=10")
        found = {}
        for path in (*TEMPLATES.glob("*.txt"), *(TEMPLATES / (self.like or self.folder.name)).iterdir()):
            if path.name != "template.toml":  # its own go before those of all
                found[path.name.removesuffix(".txt")] = _filled(path.read_text("utf-8"), words)
        head = ast.get_docstring(ast.parse(found["app.py"])) or ""
        about, how = head[: (at := head.index("\n\nRun it:"))], head[at:]
        said = dict(re.findall(r"^(\w+) it: +(.*)", how.replace("app.py", f"{name}/app.py"), re.M))
        packages = " ".join(f'"{each}"' for each in dict.fromkeys(self.needs.values()) if each != "numpy")
        words |= {"about": about, "run": said.get("Run", ""), "changed": said.get("Change", "")}
        words["install"] = f" It needs `pip install {packages}`." if packages else ""
        found["README.md"] = _filled(found["README.md"], words)
        return found


@cache
def starters() -> tuple[Starter, ...]:
    """All of them, those first that are made where less is said."""
    found = []
    for path in TEMPLATES.glob("*/template.toml"):
        told = tomllib.loads(path.read_text("utf-8"))
        settings: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in told.items()
        }
        found.append(Starter(path.parent, **settings))
    return tuple(sorted(found, key=lambda s: (s.framework != FIRST[0], s.task != FIRST[1], s.folder.name)))


def frameworks() -> list[str]:
    """What apps can be written in."""
    return list(dict.fromkeys(each.framework for each in starters()))


def tasks() -> list[str]:
    """What apps can be about."""
    return list(dict.fromkeys(each.task for each in starters()))


def chosen(framework: str | None, task: str | None, strategy: str | None) -> Starter:
    """The template for what was asked for, None for anything. Raises `SettingError` where there is none."""
    fitting = [each for each in starters() if framework in (None, each.framework) and task in (None, each.task)]
    for each in fitting:
        if each.takes(strategy):
            return each
    wanted = " ".join(filter(None, ((framework or task) and "for", framework, task, strategy and f"by {strategy}")))
    others = [each for each in starters() if strategy is None or each.takes(strategy)]
    listed = ", ".join(dict.fromkeys(f"{each.framework} {each.task}" for each in others)) or "none"
    raise SettingError(f"there is no template {wanted}", hint=f"For {strategy or 'apps'} there are: {listed}.")


def _filled(text: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(f"{{{word}}}", value)
    return text


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
