"""`umbel new`: a folder with a small app that runs at once, with a test and a README."""

from __future__ import annotations

import json
import keyword
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from rich.prompt import Prompt
from rich.text import Text

from ..errors import SettingError, StorageError
from .starters import chosen, frameworks, starters
from .terminal import stdout

NOTEBOOK = (
    ("markdown", "# {name}\n\nRuns the app in `app.py`, and shows what came of it. Restart the kernel after a change."),
    ("code", "import umbel\nfrom app import app\n\napp.client, app.strategy"),
    ("code", "result = umbel.run(app, on=umbel.Simulation(clients=20), rounds=5, name='{name}')\nresult"),
    ("code", "result.plot()"),
    ("code", "for row in result.clients.of(result.rounds):\n    print(row.client, row.status, dict(row.metrics))"),
)


def new(
    name: str,
    framework: str | None = None,
    task: str | None = None,
    strategy: str | None = None,
    notebook: bool = False,
) -> None:
    """Make the folder `name` here, with an app for this framework and task that learns by this strategy, and print
    what to do next; None for what is left to Umbel. With `notebook` it has also a notebook that runs the app.

    Raises `SettingError` for a name that is none or is taken, and for what there is no template for, `StorageError`
    where nothing can be written.
    """
    check(name)
    if strategy is not None:
        from .. import strategies

        if strategy not in strategies.__all__:
            raise SettingError(f"there is no strategy {strategy}", hint="umbel strategies lists them.")
    starter = chosen(framework, task, strategy)
    folder = Path(name)
    if folder.exists():
        raise SettingError(f"{name} exists already", hint="Choose another name: nothing is overwritten.")
    files = starter.files(name, strategy)
    if notebook:
        files["notebook.ipynb"] = notebook_of(name)
    try:
        folder.mkdir()
        for file, text in files.items():
            (folder / file).write_text(text, "utf-8")
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}") from error
    *most, last = (f"{name}/{file}" for file in sorted(files))
    console = stdout()
    console.print(Text(f"made {', '.join(most)} and {last}; now run it:"))
    if missing := [f'"{package}"' for module, package in starter.needs.items() if find_spec(module) is None]:
        console.print(Text(f"  pip install {' '.join(missing)}", style="cyan"))
    console.print(Text(f"  umbel run {shlex.quote(f'{name}/app.py')} {starter.run}".rstrip(), style="cyan"))


def ask(name: str | None) -> tuple[str, str, str, str | None]:
    """Have whoever sits at the terminal say what to make: name, framework, task, strategy."""
    console = stdout()
    if name is None:
        name = Prompt.ask("Name of the folder", default="my-app", console=console)
        check(name)
    framework = Prompt.ask("Framework", choices=frameworks(), default=frameworks()[0], console=console)
    there = {each.task: each.about for each in reversed(starters()) if each.framework == framework and not each.named}
    for about in there.items():
        console.print(Text("  {}: {}".format(*about), style="dim"))
    task = Prompt.ask("Task", choices=list(there), default=chosen(framework, None, None).task, console=console)
    usual = next(iter(chosen(framework, task, None).strategies), None)
    if usual is None and not any(each.named for each in starters() if (each.framework, each.task) == (framework, task)):
        return name, framework, task, None
    usual = usual or "FedAvg"
    strategy = Prompt.ask("Strategy; `umbel strategies` lists them", default=usual, console=console)
    return name, framework, task, None if strategy == usual else strategy


def notebook_of(name: str) -> str:
    """A notebook, in the format of Jupyter, that runs the app beside it and shows what came of it."""
    cells: list[dict[str, object]] = []
    for number, (kind, text) in enumerate(NOTEBOOK):
        more: dict[str, object] = {"execution_count": None, "outputs": []} if kind == "code" else {}
        source = text.replace("{name}", name).splitlines(keepends=True)
        cells.append({"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source, **more})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1) + "\n"


def check(name: str) -> None:
    """Raise `SettingError` where a folder of this name would not do."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", name):
        raise SettingError(
            f"{name!r} is not a name for an app",
            hint="Use up to 64 letters, digits, - and _, a letter first; the folder is made where you are.",
        )
    needed = {module for each in starters() for module in each.needs}
    if name in {"umbel", *needed, *sys.stdlib_module_names} or keyword.iskeyword(name):
        raise SettingError(
            f"{name!r} is the name of a Python module", hint=f"Choose another, such as {name}-app: it would hide it."
        )
