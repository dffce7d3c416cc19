"""A run's model in a file, in the format that the file's ending names."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np

from .. import files
from ..core.app import App
from ..core.arrays import Arrays
from ..core.native import NativeModel
from ..errors import AppError, StorageError, UmbelError

PLAIN = ("", ".safetensors", ".npz")
"""What needs no framework; a file without an ending is in the safetensors format."""


def write_model(model: Arrays, file: Path, native: object = None) -> None:
    """Write a model: plain arrays as ``.safetensors`` or ``.npz``, and in a framework's own formats by `native`, the
    `NativeModel` that an app has as its `model`. Each file is either all there or not there; a folder that is there
    keeps what else is in it.

    Raises `AppError` for a format that takes another `native`, `StorageError`.
    """
    if file.suffix == ".npz":
        whole = io.BytesIO()
        odd = {n: a.astype(np.float32) if a.dtype.name == "bfloat16" else a for n, a in model.items()}
        np.savez(whole, **odd)  # type: ignore[arg-type]
        files.write_pieces(file, (whole.getbuffer(),), durable=True)
    elif file.suffix in PLAIN and not as_folder(native, file):
        model.to_file(file, durable=True)
    else:
        if not file.parent.is_dir():
            raise StorageError(f"{file} cannot be written: there is no such folder")
        written = file.with_name(f".{file.stem}-part{file.suffix}")  # frameworks look at the ending
        try:
            native_of(native, file).save(model, written)
            if written.is_dir() and file.is_dir():
                for each in written.iterdir():
                    os.replace(each, file / each.name)
            else:
                os.replace(written, file)
        except UmbelError:
            raise
        except OSError as error:
            raise StorageError(f"{file} cannot be written: {error.strerror or error}") from error
        except Exception as error:
            said = str(error).strip().partition("\n")[0]
            raise AppError(f"the framework cannot write {file.name}: {type(error).__name__}: {said}") from error
        finally:
            if written.is_dir():
                shutil.rmtree(written)
            written.unlink(missing_ok=True)


def as_folder(app: object, file: Path) -> bool:
    """Whether a model of this app, or `NativeModel`, becomes a folder by this name: transformers' have no ending."""
    native = app.model if isinstance(app, App) else app
    return not file.suffix and isinstance(native, NativeModel) and "" in native.formats


def native_of(app: object, file: Path) -> NativeModel:
    """The `NativeModel` that writes a file: itself, or what an app has. Raises `AppError` where there is none."""
    native = app.model if isinstance(app, App) else app
    if isinstance(native, NativeModel):
        return native
    raise AppError(
        f"{file.name} would be in a framework's own format, and the app's model is of none",
        hint="Give the app such a model, as umbel.torch.model(Net) makes it, and name the app; or write .safetensors "
        "or .npz.",
    )
