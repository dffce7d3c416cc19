"""`umbel export`: a run's model in a file, of arrays or in a framework's own format."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from ..core.arrays import Arrays
from ..core.native import NativeModel
from ..errors import AppError, SettingError, StorageError, UmbelError
from ..runs.export import PLAIN, as_folder, native_of, write_model
from ..runs.past import PastRun, find
from .application import LoadedApp, load
from .terminal import plural, stderr, stdout


def export(reference: str, file: Path, folder: Path, *, app: str | None, round: int | None, force: bool) -> None:
    """Write a run's model to a file and print how to load it. What needs a framework is written by the app, by default
    the one that the run's log names.
    """
    record = find(reference, folder)
    native = _native(record, app, file)
    many = native is not None and not file.suffix
    if file.is_dir() and not many:
        raise SettingError(f"{file} is a folder", hint=f"Name a file, such as {file / 'model.safetensors'}.")
    if file.exists() and not force:
        raise SettingError(f"{file} exists", hint="--force overwrites it.")
    model, after = record.model(round)
    try:
        write_model(model, file, native)
    except StorageError as error:
        error.hint = "Choose a file in a folder that exists and can be written."
        raise
    of = f"after round {after}" if after else "before round 1"
    sha256 = "" if file.suffix == ".npz" or native else f", sha256 {model.sha256[:12]}"
    written = sum(each.stat().st_size for each in (file.iterdir() if many else (file,)))
    size = f"{plural(len(model), 'array')}, {written:,} bytes{sha256}"
    console = stdout()
    console.print(Text(f"the model of {record.id} {of} is in {file} ({size})"), soft_wrap=True)
    if native is not None:
        return
    console.print(Text("\nload it with either of" if file.suffix != ".npz" else "\nload it with"))
    for line in _loaders(model, file):
        console.print(Text(f"  {line}", style="cyan"), soft_wrap=True)
    if file.suffix != ".npz":
        console.print(Text("begin with it:"))
        console.print(Text(f"  umbel run APP --init {shlex.quote(str(file))}", style="cyan"), soft_wrap=True)


def _native(record: PastRun, app: str | None, file: Path) -> NativeModel | None:
    """What writes a file in a framework's own format; None where plain arrays are to be written. Of a file without an
    ending only the app knows, and there need not be one.
    """
    if file.suffix in PLAIN and file.suffix:
        return None
    known = record.log.started.app
    try:
        loaded = _loaded(record, known, app)
    except UmbelError:
        if file.suffix or app is not None:
            raise
        return None
    if not file.suffix and not as_folder(loaded.app, file):
        return None
    if known.get("sha256") not in (None, loaded.sha256):
        stderr().print(Text(f"{loaded.path} is not as it was when the run began"), soft_wrap=True)
    return native_of(loaded.app, file)


def _loaded(record: PastRun, known: Mapping[str, Any], reference: str | None) -> LoadedApp:
    """The app that is named, or else that of the run. Raises `AppError` where it is nowhere."""
    if reference is None:
        path = known.get("path")
        if not path or not Path(path).exists():
            what = f"the app of {record.id} is not at {path}" if path else f"the log of {record.id} names no app"
            raise AppError(what, hint="Name the app whose model it is: --app APP.")
        reference = ":".join(filter(None, (str(path), known.get("name"))))
    return load(reference)


def _loaders(model: Arrays, file: Path) -> Iterator[str]:
    """Lines of Python that load a model from a file."""
    if file.suffix == ".npz":
        yield f"import numpy; model = dict(numpy.load({str(file)!r}))"
        return
    yield f"import umbel; model = umbel.load_model({str(file)!r})"
    # numpy itself has no 16-bit brain floats; PyTorch has all that a model can hold.
    kind = "torch" if any(array.dtype.name == "bfloat16" for array in model.values()) else "numpy"
    packages = f"safetensors{' torch' if kind == 'torch' else ''}"
    yield f"import safetensors.{kind} as st; model = st.load_file({str(file)!r})  # pip install {packages}"
