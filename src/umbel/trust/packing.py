"""Packing: which files a client and its app consist of.

A client's archive holds the module where its handlers are, and all local modules that it imports, found by reading the
code; an app's holds the app's file, and what it imports. Data files, and modules that are imported by computed names,
are declared in the ``# /// script`` block of the file that needs them (see `requirements.declared`). Declared
requirements are those in the block of the client's file or, where it says nothing, of a ``requirements.txt`` beside it.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..core.app import App
from ..core.client import Client
from ..errors import AppError
from .archive import build, read
from .requirements import Declared, declared, listed, requirement

_FOREIGN = {"site-packages", "dist-packages"}
_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Packed:
    """Two archives: the client's, which data holders get, and the app's. `manifest` is the client's, and `version` what
    its file declares.
    """

    client: bytes
    app: bytes
    manifest: dict[str, Any]
    version: int = 0

    @property
    def sha256(self) -> bytes:
        """The hash of the client's archive, by which owners of nodes approve it."""
        return hashlib.sha256(self.client).digest()


@dataclass(frozen=True)
class _Place:
    """Where a client is: its file, the folder from which its module is imported, and its names."""

    file: Path
    root: Path
    module: str
    attribute: str


def pack(app: App, path: Path, name: str | None = None) -> Packed:
    """The archives of an app that was loaded from the file `path`, where it is called `name` if it was asked for by
    name. Raises `AppError`.
    """
    path = path.resolve()
    place = _place(app.client)
    client = _pack_client(app.client, place)
    files = _Files([path.parent, place.root])
    files.take_code(path, path.parent)
    files.take_client(app.client, place)
    manifest = {"kind": "app", "file": path.name, "attribute": name or "", **_needs(path, files)}
    version = files.declarations[place.file].version
    return Packed(client, build(manifest, files.contents()), read(client).manifest, version)


def pack_client(client: Client) -> bytes:
    """The archive of a client alone. Raises `AppError` where its code is in no file, as in a notebook."""
    return _pack_client(client, _place(client))


def declared_version(client: Client) -> int:
    """The version that a client's file declares, 0 where it declares none. Raises `AppError`."""
    file = _place(client).file
    return declared(_bytes(file).decode("utf-8-sig"), file.name).version


def _pack_client(client: Client, place: _Place) -> bytes:
    files = _Files([place.root])
    files.take_client(client, place)
    manifest = {
        "kind": "client",
        "module": place.module,
        "attribute": place.attribute,
        "handlers": sorted(client.handlers),
        **_needs(place.file, files),
    }
    return build(manifest, files.contents())


def _place(client: Client) -> _Place:
    handlers = [*client.handlers.values(), *([client.load] if client.load else [])]
    if not client.handlers:
        raise AppError("the client has no handlers", hint="Register one with @client.train, say.")
    names = list(dict.fromkeys(getattr(handler, "__module__", None) for handler in handlers))
    modules = [module for name in names if (module := sys.modules.get(name or "")) is not None]
    others = [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    # First where the handlers themselves are from: another module may have taken the name since.
    own = [handler.__globals__ for handler in handlers if hasattr(handler, "__globals__")]
    for space in [*own, *map(vars, [*modules, *others])]:
        held = [key for key, value in list(space.items()) if value is client]
        file = space.get("__file__")
        if held and isinstance(file, str) and Path(file).suffix == ".py":
            return _found(str(space.get("__name__")), Path(file).resolve(), held[0])
    raise AppError(
        "the code of the client is in no file",
        hint="Keep the client in a module of its own, as `client = umbel.Client()` outside of functions.",
    )


def _found(name: str, file: Path, attribute: str) -> _Place:
    if _FOREIGN & set(file.parts) or file.is_relative_to(_PACKAGE):
        raise AppError(
            f"the client is in {file}, which is installed",
            hint="Archives hold what stands beside the app: move the client's module there.",
        )
    package = file.name == "__init__.py"
    parts = name.split(".")
    tail = list(file.parent.parts if package else file.with_suffix("").parts)
    if tail[-len(parts) :] != parts:  # run as a script, or loaded under a name of the loader's
        return _Place(file, file.parent, file.stem, attribute)
    return _Place(file, file.parents[len(parts) - (0 if package else 1)], name, attribute)


def _needs(file: Path, files: _Files) -> dict[str, Any]:
    said = files.declarations[file]
    wanted = said.requirements
    beside = file.with_name("requirements.txt")
    if wanted is None and beside.is_file():
        wanted = listed(beside.read_text(encoding="utf-8"))
    for text in wanted or ():
        requirement(text)
    imports = [] if wanted is not None else sorted(files.foreign)
    return {"requirements": sorted(wanted or ()), "imports": imports, "python": said.python}


class _Files:
    """Files that belong together, found from one to the next by what each imports; `roots` are where modules are."""

    def __init__(self, roots: list[Path]) -> None:
        self._roots = list(dict.fromkeys(roots))
        self._paths: dict[str, Path] = {}
        self.declarations: dict[Path, Declared] = {}
        self.foreign: set[str] = set()

    def contents(self) -> dict[str, bytes]:
        """What is in them, by name."""
        return {name: _bytes(path) for name, path in self._paths.items()}

    def take_client(self, client: Client, place: _Place) -> None:
        """Take a client's module and the programs that it starts. Raises `AppError` for one elsewhere."""
        self.take_code(place.file, place.root)
        for program in client.programs:
            if program.parent != place.root:
                raise AppError(
                    f"{place.file.name} starts {program}, which is not in the folder {place.root}",
                    hint="Keep the program beside the module of its client: archives hold what stands there.",
                )
            self.take_code(program, place.root)

    def take_code(self, file: Path, root: Path) -> None:
        """Take a Python file that is imported from `root`, what it declares, and all local modules that it imports."""
        waiting = [(file, root)]
        while waiting:
            file, root = waiting.pop()
            if not self._take(file, root):
                continue
            source = _bytes(file)
            try:
                tree = ast.parse(source, str(file))
                said = declared(source.decode("utf-8-sig"), file.name)
            except (SyntaxError, ValueError) as error:
                raise AppError(f"{file.name} is not valid Python: {error}") from error
            self.declarations[file] = said
            for pattern in said.files:
                waiting.extend((found, root) for found in _declared_files(file, root, pattern))
            for name, needed in _imports(tree, file.relative_to(root)):
                waiting.extend(self._resolved(name, needed))

    def _take(self, path: Path, root: Path) -> bool:
        """Take one file; whether its code has still to be read."""
        name = path.relative_to(root).as_posix()
        if name not in self._paths:
            self._paths[name] = path
            return path.suffix == ".py"
        if self._paths[name] != path:
            raise AppError(f"both {self._paths[name]} and {path} would be {name} in the archive")
        return False

    def _resolved(self, name: str, needed: bool) -> list[tuple[Path, Path]]:
        """The files of a module and of the packages that it is in, with their root; what is not local is noted."""
        parts = name.split(".")
        for root in self._roots:
            if found := list(_module_files(root, parts)):
                return [(path, root) for path in found]
        if needed and parts[0] not in sys.stdlib_module_names and parts[0] != "umbel":
            self.foreign.add(parts[0])
        return []


def _declared_files(file: Path, root: Path, pattern: str) -> list[Path]:
    parts = pattern.replace("\\", "/").split("/")
    if not pattern or pattern.startswith(("/", "\\")) or ".." in parts or ":" in pattern:
        raise AppError(f"{file.name} declares the file {pattern!r}, which is not below its folder")
    found = sorted(path for path in file.parent.glob(pattern) if path.is_file() and not _hidden(path, file.parent))
    if not found:
        raise AppError(f"{file.name} declares the file {pattern!r}, but there is none in {file.parent}")
    for path in found:
        if not path.resolve().is_relative_to(root):
            raise AppError(f"{path} is a link that leads out of {root}")
    return found


def _module_files(root: Path, parts: list[str]) -> Iterator[Path]:
    for count in range(1, len(parts) + 1):
        place = root.joinpath(*parts[:count])
        if (package := place / "__init__.py").is_file():
            yield package
        elif (module := place.with_name(place.name + ".py")).is_file():
            yield module
            return  # what follows are names in it


def _imports(tree: ast.Module, file: Path) -> Iterator[tuple[str, bool]]:
    """The modules that a file imports, by absolute name; of ``from a import b`` also ``a.b``, which may be one. Also
    whether the file cannot do without: it is imported with the file itself, neither in a function nor to be tried.
    """
    package = file.parent.parts
    waiting: list[tuple[ast.AST, bool]] = [(tree, True)]
    while waiting:
        node, needed = waiting.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, needed) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join((*start, *([node.module] if node.module else [])))
            for alias in node.names:
                below = f"{origin}.{alias.name}" if origin else alias.name
                yield below if alias.name != "*" else origin, needed and not node.level
        else:
            optional = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.Try | ast.If
            below_needed = needed and not isinstance(node, optional)
            waiting.extend((child, below_needed) for child in ast.iter_child_nodes(node))


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AppError(f"{path} cannot be read: {error.strerror}") from error
