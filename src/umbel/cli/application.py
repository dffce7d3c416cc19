"""App files: import one and find the `umbel.App` in it."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import script
from ..core.app import App
from ..core.client import Client
from ..errors import AppError, UmbelError
from ..strategies import FedAvg
from ..work.blame import is_own, own_frame

PLAIN_STEMS = ("app", "main")
LONGEST_TITLE = 32


@dataclass(frozen=True)
class LoadedApp:
    """An app, the file that it came from, and the name that was asked for, if any."""

    app: App
    path: Path
    sha256: str
    name: str | None = None

    @property
    def title(self) -> str:
        """What a run's id begins with: the file's name, or its folder's where the file's says nothing."""
        plain = self.path.stem in PLAIN_STEMS
        text = self.path.parent.name if plain and self.path.parent.name else self.path.stem
        return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")[:LONGEST_TITLE].strip("-") or "run"

    def source(self) -> dict[str, Any]:
        """What the log keeps, so that the run can be resumed."""
        named = {"name": self.name} if self.name else {}
        return {"path": str(self.path), "sha256": self.sha256, **named}


def load(reference: str) -> LoadedApp:
    """Import the file that `reference` names, as ``app.py`` or ``app.py:name``, with its folder on the path, and find
    the app in it; of a script that loops over `fl.tasks`, which is not imported, the app that goes without saying.
    Raises `AppError`, or the `UmbelError` that the file raised, with a note of where.
    """
    path, name = _file(reference)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AppError(f"{reference} cannot be read: {error.strerror}") from error
    app = _of_script(path) if _is_script(data) else _find(_import(path), path, name)
    return LoadedApp(app, path, hashlib.sha256(data).hexdigest(), name)


def file_of(reference: str) -> Path | None:
    """The file that `reference` names, if there is one."""
    try:
        return _file(reference)[0]
    except AppError:
        return None


def blame(error: BaseException, folder: Path) -> str | None:
    """Where in the user's own code an error arose, such as ``client.py:12: loss = 1 / 0``; None if nowhere."""
    if isinstance(error, SyntaxError) and error.filename and is_own(error.filename, folder):
        return f"{Path(error.filename).name}:{error.lineno}: {(error.text or '').strip()}".rstrip(": ")
    if error.__cause__ is not None and (deeper := blame(error.__cause__, folder)):
        return deeper
    own = own_frame(error, folder)
    return None if own is None else f"{Path(own.filename).name}:{own.lineno}: {own.line or ''}".rstrip(": ")


def note_place(error: UmbelError, folder: Path) -> None:
    """Note on an error where in the user's own code it arose."""
    if not getattr(error, "__notes__", None) and (place := blame(error, folder)):
        error.add_note(place)


def _file(reference: str) -> tuple[Path, str | None]:
    path, name = Path(reference), None
    if not path.exists() and ":" in reference:
        file, _, name = reference.rpartition(":")
        path = Path(file)
    if path.is_dir():
        inside = sorted(entry.name for entry in path.glob("*.py"))
        example = "app.py" if "app.py" in inside or not inside else inside[0]
        raise AppError(f"{path} is a folder, not an app file", hint=f"Name the file: umbel run {path / example}")
    if not path.exists():
        raise AppError(f"there is no file {path}", hint="`umbel new NAME` makes a folder with a working app.")
    if path.suffix != ".py":
        raise AppError(f"{path} is not a Python file", hint="Name the .py file that makes the umbel.App.")
    return path.resolve(), name or None


def _is_script(data: bytes) -> bool:
    """Whether a file has the loop of a script, and would train by itself if it were imported."""
    try:
        nodes = list(ast.walk(ast.parse(data)))
    except (SyntaxError, ValueError):
        return False  # which importing it says
    imports = [ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    called = {ast.unparse(node.func).rpartition(".")[2] for node in nodes if isinstance(node, ast.Call)}
    return "tasks" in called and any("umbel" in text and "script" in text for text in imports)


def _of_script(path: Path) -> App:
    client = script.client(path)
    return App(client, model=client.model, strategy=FedAvg(cohort="all"))


def _import(path: Path) -> ModuleType:
    name = path.stem if path.stem not in sys.modules else f"umbel_app_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        if isinstance(error, UmbelError):
            note_place(error, path.parent)
            raise
        raise _import_error(error, path) from error
    if name != path.stem:
        # Under a name that nobody could import: worker processes get its functions by value.
        import cloudpickle

        cloudpickle.register_pickle_by_value(module)
    return module


def _import_error(error: BaseException, path: Path) -> AppError:
    if isinstance(error, ModuleNotFoundError):
        hint = "Install it into the environment that umbel runs in, or mend the import."
        found = AppError(f"{path.name} needs {error.name}, which is not installed", hint=hint)
    elif isinstance(error, SyntaxError):
        found = AppError(f"{path.name} is not valid Python: {error.msg}")
    elif isinstance(error, SystemExit):
        found = AppError(f"{path.name} ended the program when it was imported (SystemExit: {error.code})")
        found.hint = 'Put what is to happen only in a script under `if __name__ == "__main__":`.'
    else:
        found = AppError(f"{path.name} raised {type(error).__name__} when it was imported: {error}")
        if isinstance(error, TypeError) and "App.__init__" in str(error):
            found.hint = "An app is made by umbel.App(client, model=..., strategy=umbel.FedAvg(cohort=10))."
    if place := blame(error, path.parent):
        found.add_note(place)
    return found


def _find(module: ModuleType, path: Path, name: str | None) -> App:
    apps = {key: value for key, value in vars(module).items() if isinstance(value, App)}
    listed = ", ".join(apps) or "none"
    if name is not None:
        if name not in apps:
            raise AppError(f"{path.name} has no umbel.App named {name}", hint=f"Apps in it: {listed}.")
        return apps[name]
    if "app" in apps:
        return apps["app"]
    if len({id(app) for app in apps.values()}) > 1:
        raise AppError(
            f"{path.name} has several apps: {listed}", hint=f"Say which: umbel run {path.name}:{next(iter(apps))}"
        )
    for app in apps.values():
        return app
    if any(isinstance(value, Client) for value in vars(module).values()):
        raise AppError(
            f"{path.name} has an umbel.Client, but no umbel.App around it",
            hint="Add: app = umbel.App(client, model=..., strategy=umbel.FedAvg(cohort=10))",
        )
    raise AppError(
        f"{path.name} makes no umbel.App",
        hint="An app file ends with: app = umbel.App(client, model=..., strategy=...). `umbel new NAME` makes one.",
    )
