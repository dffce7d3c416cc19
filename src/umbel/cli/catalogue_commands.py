"""`umbel strategies`, `folds`, `transforms`, `samplers`, `partitioners`: what there is to choose from."""

from __future__ import annotations

import inspect
import json as json_text
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from rich.table import Table
from rich.text import Text

from ..errors import SettingError
from .terminal import stdout

PLACES = {
    "strategies": ("strategies",),
    "folds": ("folds",),
    "transforms": ("transforms", "privacy"),
    "samplers": ("samplers",),
    "partitioners": ("data",),
}
"""The catalogues, and the rooms that hold them."""
_CITED = re.compile(r"((?:[A-Z][\w-]+(?:,| &| et al\.)? )+)\(((?:19|20)\d\d[^()]*)\)")
_LONGEST = 100
_ARXIV = re.compile(r"arXiv[\s:]*(\d{4}\.\d{4,5})")


def listed(catalogue: str, name: str | None, *, json: bool) -> None:
    """Print what a catalogue holds, a line each, or all about one of them. Raises `SettingError` for a name that is not
    in it.
    """
    rows = {each["name"]: each for each in entries(catalogue)}
    if name is not None and name not in rows:
        close = next((each for each in rows if each.lower() == name.lower()), None)
        hint = f"Did you mean {close}?" if close else f"There are {', '.join(rows)}."
        raise SettingError(f"there is no {name} among the {catalogue}", hint=hint)
    console = stdout()
    if json:
        found: Any = list(rows.values()) if name is None else rows[name]
        console.file.write(json_text.dumps(found) + "\n")
    elif name is not None:
        row = rows[name]
        console.print(Text(f"umbel.{row['room']}.{name}{row['signature']}", style="cyan"), soft_wrap=True)
        console.print(Text("\n" + row["text"]), soft_wrap=True)
    else:
        needs = any(row["needs"] for row in rows.values())
        table = Table("name", "what", "paper", *(["needs of clients"] if needs else []), box=None, pad_edge=False)
        for row in rows.values():
            table.add_row(Text(row["name"], "cyan"), row["line"], row["paper"], *([row["needs"]] if needs else []))
        console.print(table)


def entries(catalogue: str) -> Iterator[dict[str, str]]:
    """What a catalogue holds: of each its name, room, signature, docstring, one line, paper, and what it needs of
    clients.
    """
    rooms = {room: import_module(f"umbel.{room}") for room in PLACES[catalogue]}
    held = [(name, room) for room, module in rooms.items() for name in module.__all__]
    for name, room in sorted(held, key=lambda each: each[0].lower()):
        value = getattr(rooms[room], name)
        module = inspect.getmodule(value)
        if module is None or not _is_algorithm(catalogue, value):
            continue
        own, of_file = inspect.getdoc(value) or "", inspect.getdoc(module) or ""
        titled = catalogue == "strategies" and name.lower() in of_file.partition(":")[0].lower()
        yield {
            "name": name,
            "room": room,
            "signature": str(inspect.signature(value)),
            "text": f"{of_file}\n\n{own}" if _paper(of_file) else own,
            "line": _line(of_file if titled else own, titled=titled),
            "paper": _paper(f"{own} {of_file}" if _paper(own) else of_file),
            "needs": _needs(own) if catalogue == "strategies" else "",
        }


def _is_algorithm(catalogue: str, value: Any) -> bool:
    """Whether it is something to choose, and no machinery."""
    if catalogue == "strategies":
        return True
    if inspect.isfunction(value):
        return (
            catalogue == "transforms"
            and value.__module__.startswith(tuple(f"umbel.{room}." for room in PLACES[catalogue]))
            and "Chain" in str(value.__annotations__.get("return"))
        )
    if not inspect.isclass(value) or inspect.isabstract(value) or hasattr(value, "_is_protocol"):
        return False
    if catalogue == "partitioners":
        return "deal" in vars(value) and value.__name__.islower()
    return hasattr(value, "spec") if catalogue == "samplers" else "name" in vars(value)


def _line(text: str, *, titled: bool) -> str:
    """What stands first, without its paper, and without the name before it where it is the title of a file."""
    first = re.sub(r"\s*\([^()]*(?:19|20)\d\d[^()]*\)", "", " ".join(text.split("\n\n")[0].split()))
    first = re.sub(r"^[^:]+: ", "", first) if titled else first
    first = re.split(r"(?<=[\w)`])\. ", first)[0].rstrip(".")
    return first if len(first) <= _LONGEST else re.split(r"[;:] ", first)[0]


def _paper(text: str) -> str:
    whole = " ".join(text.split())
    cited = _CITED.search(whole)
    inside = next((part for part in re.findall(r"\(([A-Z][^()]*(?:19|20)\d\d[^()]*)\)", whole)), None)
    number = _ARXIV.search(whole)
    return inside or (f"{cited[1]}{cited[2]}" if cited else number[0] if number else "")


def _needs(text: str) -> str:
    found = re.search(r"(?:^|[.:] )(?:It needs|Needs) ((?:[^.:]|[.:](?=\w))*)", " ".join(text.split()))
    return "nothing" if found is None or found[1].startswith("nothing") else found[1]
