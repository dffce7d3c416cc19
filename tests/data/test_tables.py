from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from umbel.data import DataTable
from umbel.data.sheets import read_csv
from umbel.data.tables import as_table
from umbel.errors import DataError

X, Y = np.arange(20.0).reshape(10, 2), np.arange(10) % 3
SOME = np.array([1, 4, 7])


def negated(columns: dict[Any, np.ndarray], items: np.ndarray) -> dict[Any, np.ndarray]:
    """A change that can be told: the negative of the first column, with the items' numbers in its first place."""
    name = next(iter(columns))
    assert len(columns[name]) == len(items)
    return {name: -columns[name]}


class Pairs:
    """A data set as PyTorch has them: nothing but a length and items by number."""

    def __len__(self) -> int:
        return len(Y)

    def __getitem__(self, number: int) -> tuple[np.ndarray, int]:
        if number >= len(Y):
            raise IndexError
        return X[number], int(Y[number])


class Known(Pairs):
    targets = Y.tolist()

    def __getitem__(self, number: int) -> tuple[np.ndarray, int]:
        raise AssertionError("nobody has to read items to know their labels")


class TestArrays:
    def test_forms(self) -> None:
        for data, names, label in (
            ((X, Y), (0, 1), 1),
            ({"x": X, "y": Y}, ("x", "y"), "y"),
            (Y, (0,), 0),
            (X, (0,), None),
        ):
            table = as_table(data)
            assert (len(table), table.names, table.label) == (10, names, label)
            assert as_table(table) is table
        x, y = as_table((X, Y)).rows(SOME)
        assert (x.tolist(), y.tolist()) == (X[SOME].tolist(), Y[SOME].tolist())
        assert as_table({"x": X}).rows(SOME, negated)["x"].tolist() == (-X[SOME]).tolist()
        assert as_table(X).rows(SOME).tolist() == X[SOME].tolist()
        assert as_table([3, 1, 2])[None].tolist() == [3, 1, 2]
        assert as_table(range(3)).rows(np.array([2]))[0] == 2
        assert len(as_table(7)) == 7

    def test_nothing_is_copied_but_what_is_read(self) -> None:
        table = as_table({"x": X, "y": Y})
        assert np.shares_memory(table["x"], X)
        assert np.shares_memory(table.across(["x"]).data["x"], X)
        assert np.shares_memory(as_table((X, Y)).across([0, 1]).data, X)

    def test_columns_are_divided(self) -> None:
        wide = np.arange(40).reshape(10, 4)
        x, y = as_table((wide, Y)).across([3, 1, "label"]).rows(SOME)
        assert (x.tolist(), y.tolist()) == (wide[SOME][:, [3, 1]].tolist(), Y[SOME].tolist())
        assert as_table((wide, Y)).across([1, 2]).rows(SOME).tolist() == wide[SOME][:, 1:3].tolist()
        assert list(as_table({"x": X, "y": Y}).across(["y"]).rows(SOME)) == ["y"]
        with pytest.raises(DataError, match="no columns to divide"):
            as_table(Pairs()).across([0])

    def test_says_what_is_wrong(self) -> None:
        with pytest.raises(DataError, match="have one length"):
            as_table((X, Y[:3]))
        with pytest.raises(DataError, match=r"no column 'z'[\s\S]*It has x, y"):
            as_table({"x": X, "y": Y})["z"]
        with pytest.raises(DataError, match="no column is named"):
            as_table({"x": X})[None]
        with pytest.raises(DataError, match="a object cannot be split"):
            as_table(object())

    def test_tensors(self) -> None:
        torch = pytest.importorskip("torch")
        pixels, labels = torch.from_numpy(X), torch.from_numpy(Y)
        frozen = SOME.copy()
        frozen.flags.writeable = False
        for data in ((pixels, labels), torch.utils.data.TensorDataset(pixels, labels)):
            x, y = as_table(data).rows(frozen)
            assert torch.equal(x, pixels[SOME])
            assert torch.equal(y, labels[SOME])
            assert torch.equal(as_table(data).rows(SOME, negated)[0], -pixels[SOME])
            assert as_table(data)[None].tolist() == Y.tolist()


class TestFrames:
    def test_pandas(self) -> None:
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame({"age": X[:, 0], "y": list("abcabcabca")}, index=range(100, 110))
        table = as_table(frame)
        assert (len(table), table.names, table["y"].tolist()) == (10, ("age", "y"), list("abcabcabca"))
        assert table.rows(SOME).equals(frame.iloc[SOME])
        numbered = as_table(pandas.DataFrame(X[:, :2]))  # whose columns' names are numbers
        assert numbered.rows(SOME, lambda columns, items: {1: -columns[1]})[1].tolist() == (-X[SOME, 1]).tolist()
        changed = table.rows(SOME, negated)
        assert changed["age"].tolist() == (-X[SOME, 0]).tolist()
        assert changed["y"].tolist() == ["b", "b", "b"]
        assert list(table.across(["y"]).rows(SOME)) == ["y"]
        assert as_table(frame["y"])[None].tolist() == list("abcabcabca")

    def test_polars(self) -> None:
        polars = pytest.importorskip("polars")
        frame = polars.DataFrame({"age": X[:, 0], "y": list("abcabcabca")})
        table = as_table(frame)
        assert (len(table), table.names, table["y"].tolist()) == (10, ("age", "y"), list("abcabcabca"))
        assert table.rows(SOME).equals(frame[SOME])
        changed = table.rows(SOME, negated)
        assert changed["age"].to_list() == (-X[SOME, 0]).tolist()
        assert changed.columns == ["age", "y"]
        assert as_table(frame["y"])[None].tolist() == list("abcabcabca")


class TestDatasets:
    def test_items_are_read_one_by_one(self) -> None:
        table = as_table(Pairs())
        assert (len(table), table.names, table.label) == (10, (0, 1), 1)
        assert table[None].tolist() == Y.tolist()
        chosen = table.rows(SOME)
        assert [(x.tolist(), y) for x, y in chosen] == [(X[i].tolist(), int(Y[i])) for i in SOME]
        assert len(chosen[1:]) == 2
        assert chosen[1:][0][1] == Y[4]
        x, y = table.rows(SOME, negated)[1]
        assert x.tolist() == (-X[4]).tolist()
        assert type(y) is int

    def test_labels_that_are_known_are_not_read(self) -> None:
        class Labelled(Known):
            def __getitem__(self, number: int) -> tuple[np.ndarray, int]:
                return Pairs.__getitem__(self, 0) if number == 0 else Known.__getitem__(self, number)

        assert as_table(Labelled())[None].tolist() == Y.tolist()

    def test_mappings_and_single_things(self) -> None:
        rows = [{"x": float(i), "label": int(Y[i])} for i in range(10)]
        table = as_table(rows)
        assert (table.label, table[None].tolist()) == ("label", Y.tolist())
        assert table.rows(SOME, negated)[0] == {"x": -1.0, "label": int(Y[1])}

    def test_a_loader_of_pytorch_takes_them(self) -> None:
        torch = pytest.importorskip("torch")
        loader = torch.utils.data.DataLoader(as_table(Pairs()).rows(SOME), batch_size=2)
        assert torch.cat([y for _, y in loader]).tolist() == Y[SOME].tolist()

    def test_items_that_are_tensors_stay_tensors(self) -> None:
        torch = pytest.importorskip("torch")
        rows = [(torch.from_numpy(x), torch.tensor(int(y))) for x, y in zip(X, Y, strict=True)]
        changed = as_table(rows).rows(SOME, lambda columns, items: {0: columns[0][:, ::-1], 1: columns[1] + 5})
        x, y = changed[1]
        assert torch.equal(x, rows[4][0].flip(0))
        assert torch.equal(y, rows[4][1] + 5)

    def test_hugging_face(self) -> None:
        datasets = pytest.importorskip("datasets")
        data = datasets.Dataset.from_dict({"text": [f"t{i}" for i in range(10)], "label": Y.tolist()})
        table = as_table(data)
        assert (len(table), table.names, table.label) == (10, ("text", "label"), "label")
        assert table[None].tolist() == Y.tolist()
        assert table.rows(SOME)["text"][:] == ["t1", "t4", "t7"]
        changed = table.rows(SOME, lambda columns, items: {"label": columns["label"] + 10})
        assert changed[2] == {"text": "t7", "label": int(Y[7]) + 10}


class TestImages:
    def test_a_folder_for_each_class(self, tmp_path: Path) -> None:
        image = pytest.importorskip("PIL.Image")
        for kind, size in (("cat", (4, 3)), ("dog", (5, 2))):
            for number in range(3):
                (tmp_path / kind / "more").mkdir(parents=True, exist_ok=True)
                image.new("RGB", size, (number, 0, 9)).save(tmp_path / kind / "more" / f"{number}.png")
        (tmp_path / "cat" / "notes.txt").write_text("no image")
        table = as_table(tmp_path)
        assert (len(table), table[None].tolist(), table.data.classes) == (6, [0, 0, 0, 1, 1, 1], ("cat", "dog"))
        pixels, label = table.rows(np.array([4]))[0]
        assert (pixels.shape, pixels.dtype, pixels[0, 0].tolist(), label) == ((2, 5, 3), np.uint8, [1, 0, 9], 1)
        (tmp_path / "dog" / "more" / "1.png").write_bytes(b"torn")
        with pytest.raises(DataError, match=r"1\.png cannot be read"):
            table.rows(np.array([4]))[0]

    def test_says_what_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="has no images"):
            as_table(tmp_path)
        with pytest.raises(DataError, match="no file or folder"):
            as_table(tmp_path / "nowhere")


class TestSheets:
    def test_columns_have_their_kinds(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text('n,v,t,e\n1,2.5,"a, b",\n2,,c,\n\n3,1e3,d,\n')
        table = as_table(tmp_path / "a.csv")
        assert isinstance(table, DataTable)
        assert {name: table[name].dtype.kind for name in table.names} == {"n": "i", "v": "f", "t": "U", "e": "f"}
        assert table.rows(np.array([0, 2]))["t"].tolist() == ["a, b", "d"]
        assert table["v"].tolist()[::2] == [2.5, 1000.0]
        assert np.isnan(table["v"][1])
        (tmp_path / "a.tsv").write_bytes(b"\xef\xbb\xbfn\tt\r\n1\tx\r\n")
        assert read_csv(tmp_path / "a.tsv")["t"].tolist() == ["x"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"a,b\n1\n", "line 2: 1 cells, but there are 2 columns"),
            (b"a,b\n", "no line below its header"),
            (b"", "no line below"),
            (b"a,a\n1,2\n", "two columns of one name"),
            (b"a\n\xff\n", "cannot be read"),
        ],
    )
    def test_says_what_is_wrong(self, tmp_path: Path, content: bytes, message: str) -> None:
        (tmp_path / "a.csv").write_bytes(content)
        with pytest.raises(DataError, match=message):
            as_table(str(tmp_path / "a.csv"))
        (tmp_path / "a.xls").write_bytes(content)
        with pytest.raises(DataError, match="xls is no "):
            as_table(tmp_path / "a.xls")


@pytest.mark.parametrize("reader", ["pyarrow", "polars"])
def test_parquet_is_read_by_row_group(reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip(reader)
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"v": X[:, 0], "t": [f"t{i}" for i in range(10)]}), path, row_group_size=4)
    if reader == "polars":
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    table = as_table(path)
    assert (len(table), table.names, table["t"].tolist()) == (10, ("v", "t"), [f"t{i}" for i in range(10)])
    rows = table.rows(np.array([1, 4, 7, 9]))
    assert rows["v"].tolist() == X[[1, 4, 7, 9], 0].tolist()
    assert rows["t"].tolist() == ["t1", "t4", "t7", "t9"]
    assert table.rows(np.array([9]), negated)["v"].tolist() == [-18.0]
    assert len(table.rows(np.array([], np.int64))["v"]) == 0
    if reader == "pyarrow":
        read: list[int] = []
        monkeypatch.setattr(table, "_group", lambda g, i: read.append(g) or {"v": i, "t": i})
        table.rows(np.array([4, 5]))
        assert read == [1]
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(DataError, match="pip install pyarrow"):
        as_table(path)
