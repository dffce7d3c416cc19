"""`umbel export`: a run's model in a file, of arrays or in a framework's own format."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from rich.text import Text

from ..core.arrays import Arrays
from ..errors import AppError, SettingError, StorageError
from ..runs.export import PLAIN, native_of, write_model
from ..runs.past import PastRun, find
from .application import load
from .terminal import plural, stderr, stdout


def export(reference: str, file: Path, folder: Path, *, app: str | None, round: int | None, force: bool) -> None:
    """Write a run's model to a file and print how to load it. What needs a framework is written by the app, by default
    the one that the run's log names.
    """
    record = find(reference, folder)
    if file.is_dir():
        raise SettingError(f"{file} is a folder", hint=f"Name a file, such as {file / 'model.safetensors'}.")
    if file.exists() and not force:
        raise SettingError(f"{file} exists", hint="--force overwrites it.")
    model, after = record.model(round)
    native = None if file.suffix in PLAIN else native_of(_app(record, app), file)
    try:
        write_model(model, file, native)
    except StorageError as error:
        error.hint = "Choose a file in a folder that exists and can be written."
        raise
    of = f"after round {after}" if after else "before round 1"
    sha256 = "" if file.suffix == ".npz" or native else f", sha256 {model.sha256[:12]}"
    size = f"{plural(len(model), 'array')}, {file.stat().st_size:,} bytes{sha256}"
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


def _app(record: PastRun, reference: str | None) -> object:
    """The app that is named, or else that of the run. Raises `AppError` where it is nowhere."""
    known = record.log.started.app
    if reference is None:
        path = known.get("path")
        if not path or not Path(path).exists():
            what = f"the app of {record.id} is not at {path}" if path else f"the log of {record.id} names no app"
            raise AppError(what, hint="Name the app whose model it is: --app APP.")
        reference = ":".join(filter(None, (str(path), known.get("name"))))
    loaded = load(reference)
    if known.get("sha256") not in (None, loaded.sha256):
        stderr().print(Text(f"{loaded.path} is not as it was when the run began"), soft_wrap=True)
    return loaded.app


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
