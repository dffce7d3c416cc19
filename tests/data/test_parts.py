from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import umbel
from umbel.data import (
    Partition,
    by,
    concept_shift,
    dirichlet,
    draw,
    hold_out,
    iid,
    noise,
    pathological,
    sizes,
    split,
    table,
    temporal,
    vertical,
)
from umbel.errors import DataError

X, Y = np.random.default_rng(1).normal(size=(400, 3)), np.arange(400) % 4
WARD = np.array(["north", "south", "east/west"])[np.arange(400) % 7 % 3]
calls: list[int] = []


def load() -> tuple[np.ndarray, np.ndarray]:
    calls.append(1)
    return X, Y


@given(
    clients=st.integers(1, 60),
    test=st.floats(0, 0.6),
    validation=st.floats(0, 0.39),
    held=st.sampled_from(["random", "last"]),
)
def test_every_item_is_in_one_part_and_for_one_purpose(clients: int, test: float, validation: float, held: str) -> None:
    parts = split((X, Y), dirichlet(0.5, minimum=0), clients, seed=2, test=test, validation=validation, held=held)
    found = [part.train_items for part in parts] + [part.validation_items for part in parts]
    found += [part.test_items for part in parts]
    assert sorted(np.concatenate(found).tolist()) == list(range(400))
    for client, part in enumerate(parts):
        assert part.indices.tolist() == parts.partition[client].tolist()
        assert len(part.train_items) > 0 or not len(part)
        if (1 - test - validation) * len(part) > 2:
            assert len(part.test_items) == round(test * len(part))
            assert len(part.validation_items) == round(validation * len(part))
        if held == "last" and len(part.test_items):
            assert part.indices.tolist() == [*part.train_items, *part.validation_items, *part.test_items]


def test_the_same_arguments_are_the_same_parts() -> None:
    one, again, other = (split((X, Y), iid(), 5, seed=seed, test=0.2) for seed in (1, 1, 2))
    assert [p.test_items.tolist() for p in one] == [p.test_items.tolist() for p in again]
    assert [p.test_items.tolist() for p in one] != [p.test_items.tolist() for p in other]
    assert one[0].test_items.tolist() != again[1].test_items.tolist()


def test_parts_have_the_form_that_the_data_had() -> None:
    part = split({"x": X, "y": Y}, dirichlet(0.5, label="y"), clients=5, test=0.25)[3]
    assert part.train["x"].tolist() == X[part.train_items].tolist()
    assert part.test["y"].tolist() == Y[part.test_items].tolist()
    assert part.all["y"].tolist() == Y[part.indices].tolist()
    assert len(part.validation["y"]) == 0
    assert (part.name, len(part)) == ("3", len(part.indices))


class TestSources:
    def test_name_parts(self) -> None:
        parts = split((X, Y), iid(), 20)
        assert parts.sources == len(parts) == 20
        same = [parts.part(source) for source in (3, {"index": 3}, {"index": 3, "count": 20}, parts[3])]
        assert len({part.indices.tobytes() for part in same}) == 1
        assert [part.name for part in parts[1:3]] == ["1", "2"]

    def test_owners_have_names(self) -> None:
        parts = split({"x": X, "ward": WARD}, by="ward")
        assert parts.sources == {name: {"owner": name} for name in ("east/west", "north", "south")}
        assert parts.part({"owner": "north"}).indices.tolist() == np.flatnonzero(WARD == "north").tolist()
        assert parts.part({"index": 0, "count": 3}).name == "east/west"
        assert umbel.Simulation(parts.sources).clients == ("east/west", "north", "south")
        with pytest.raises(DataError, match="no owner 'west'"):
            parts.part({"owner": "west"})

    def test_as_many_parts_as_the_simulation_has(self) -> None:
        parts = split((X, Y), iid())
        assert len(parts.part({"index": 0, "count": 4})) == 100
        assert len(parts.part({"index": 0, "count": 40})) == 10
        with pytest.raises(DataError, match="has to be told how many clients"):
            parts.part(3)

    def test_what_names_nothing(self) -> None:
        parts = split((X, Y), iid(), 20)
        with pytest.raises(DataError, match="split among 20 clients, but the federation has 30"):
            parts.part({"index": 3, "count": 30})
        with pytest.raises(DataError, match="names no part"):
            parts.part({"path": "here"})
        with pytest.raises(IndexError, match="one of the 20 clients"):
            parts.part({"index": 20})

    def test_what_splits_and_views_are_made_before(self) -> None:
        for kind in (iid, dirichlet):
            with pytest.raises(DataError, match=rf"class {kind.__name__} itself\s+Write {kind.__name__}\(\)"):
                split((X, Y), kind, 20)
        for views in ([noise], noise(1.0), [noise(1.0), None], "noise"):
            with pytest.raises(DataError, match=r"a list such as \[noise"):
                split((X, Y), iid(), 20, views=views)
        for seed in (0.5, True, "1", None):
            for make in (partial(split, (X, Y), iid(), 20), partial(iid(), 100, 20)):
                with pytest.raises(DataError, match="a seed must be a whole number, not"):
                    make(seed=seed)
        for clients in (2.5, "2", -1, True):
            with pytest.raises(DataError, match="the number of clients must be a whole number"):
                iid()(100, clients)
        with pytest.raises(DataError, match="party 2 has the labels, but the 2 parties"):
            vertical(labelled=2)(X, 2)

    def test_a_million_clients_of_one_rule(self) -> None:
        parts = split(10**9, iid(), 10**6, test=0.1)
        part = parts.part({"index": 999_999, "count": 10**6})
        assert (len(part.train), len(part.test)) == (900, 100)
        assert parts.sources == len(parts) == 10**6


class TestReading:
    def test_data_are_read_where_they_are_first_needed(self) -> None:
        calls.clear()
        parts = split(load, iid(), 4)
        assert (len(parts), parts.sources, repr(parts)) == (4, 4, "Parts(by=iid(), clients=4, seed=0)")
        copy = pickle.loads(pickle.dumps(parts))
        assert not calls
        assert copy[1].indices.tolist() == parts[1].indices.tolist()
        assert len(parts[2].train) == 2
        assert len(calls) == 2
        assert len(pickle.dumps(parts)) < 1000  # what was read is read anew where it is needed

    def test_an_own_function_deals(self) -> None:
        def halves(table: Any, clients: int, seed: int) -> np.ndarray:
            return table["y"] * clients // 4

        assert np.unique(split({"x": X, "y": Y}, halves, 2)[1].train["y"]).tolist() == [2, 3]
        listed = Partition.of(Y)
        assert split((X, Y), lambda table, clients, seed: listed, 4).partition is listed
        given = split((X, Y), listed)
        assert (given.partition, given.sources) == (listed, 4)
        with pytest.raises(DataError, match="given to client 3, but there are 3"):
            split((X, Y), lambda table, clients, seed: Y, 3)[0]
        with pytest.raises(DataError, match="have 400 items, but 3 are given"):
            split((X, Y), lambda table, clients, seed: [0, 1, 0], 2)[0]
        with pytest.raises(DataError, match="nobody says how many clients"):
            split((X, Y), halves)[0]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"test": 1.0}, "shares from 0 to below 1"),
            ({"test": 0.5, "validation": 0.5}, "shares"),
            ({"test": -0.1}, "shares"),
            ({"held": "first"}, "held is 'random' or 'last'"),
            ({"by": 3}, "by is a partitioner"),
            ({"clients": 0}, "number of clients must be a whole number of at least 1"),
        ],
    )
    def test_refuses_what_cannot_be(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(DataError, match=message):
            split((X, Y), **{"by": iid(), "clients": 2, **settings})

    def test_views_change_what_is_read(self) -> None:
        parts = split((X, Y), iid(), 4, test=0.5, views=[noise(0.3), concept_shift(2)])
        part = parts[3]
        x, y = part.test
        assert (x - X[part.test_items]).std() == pytest.approx(0.3**0.5, rel=0.2)
        assert (y != Y[part.test_items]).any()
        again = parts.part({"index": 3}).all
        where = np.searchsorted(part.indices, part.test_items)
        assert np.array_equal(again[0][where], x)
        assert np.array_equal(again[1][where], y)
        assert np.array_equal(parts[2].train[1], Y[parts[2].train_items])

    def test_an_own_function_is_a_view(self) -> None:
        def shifted(columns: dict[Any, Any], reading: Any) -> dict[Any, Any]:
            return {name: x + reading.client for name, x in reading.features(columns).items()}

        parts = split({"x": X, "y": Y}, iid(), 4, views=[shifted])
        assert np.array_equal(parts[2].train["x"], X[parts[2].indices] + 2)

    def test_the_latest_are_held_out(self) -> None:
        parts = split(
            {"t": np.arange(100)[::-1].copy(), "y": np.zeros(100, int)}, temporal("t"), 4, test=0.2, held="last"
        )
        assert sorted(parts[1].test["t"].tolist()) == [45, 46, 47, 48, 49]


def test_parties_have_columns_and_hold_out_the_same_items() -> None:
    data = {"id": np.arange(400), "a": X[:, 0], "b": X[:, 1], "c": X[:, 2], "y": Y}
    parts = split(data, vertical([["a", "c"], ["b"]], shared=["id"]), test=0.25)
    assert [sorted(part.train) for part in parts] == [["a", "c", "id", "y"], ["b", "id"]]
    assert parts[0].test["id"].tolist() == parts[1].test["id"].tolist()
    assert len(parts[1].test["id"]) == 100
    assert parts.sources == len(parts) == 2
    x, y = split((X, Y), vertical(), 2)[0].train
    assert (x.shape, y.shape) == ((400, 2), (400,))
    assert split((X, Y), vertical(labelled=1), 2)[0].train.shape == (400, 2)


class TestWriting:
    @pytest.mark.parametrize("form", ["tuple", "mapping", "array", "pandas", "polars", "dataset"])
    def test_a_node_reads_what_its_client_had(self, form: str, tmp_path: Path) -> None:
        forms: dict[str, Callable[[], Any]] = {
            "tuple": lambda: (X, Y),
            "mapping": lambda: {"x": X, "file": WARD, "role": Y},
            "array": lambda: X,
            "pandas": lambda: pytest.importorskip("pandas").DataFrame({"x": X[:, 0], "ward": WARD}),
            "polars": lambda: pytest.importorskip("polars").DataFrame({"x": X[:, 0], "ward": WARD}),
            "dataset": lambda: list(zip(X, Y.tolist(), strict=True)),
        }
        parts = split(forms[form](), iid(), 3, test=0.2, validation=0.1)
        sources = parts.write(tmp_path / "new")
        assert list(sources) == ["0", "1", "2"]

        def unread() -> Any:
            raise AssertionError("a node has no more than its file")

        node = split(unread, iid(), 3, test=0.2, validation=0.1)
        for client, source in enumerate(sources.values()):
            for purpose in ("train", "validation", "test"):
                there, here = (getattr(part, purpose) for part in (node.part(source), parts[client]))
                if form == "dataset":
                    here = tuple(np.array(column) for column in zip(*here, strict=True))
                assert isinstance(there, type(here))
                for a, b in zip(*(each if isinstance(each, tuple) else (each,) for each in (there, here)), strict=True):
                    if isinstance(a, dict):
                        assert all(np.array_equal(a[name], b[name]) for name in b)
                    else:
                        assert np.array_equal(np.asarray(a), np.asarray(b))

    def test_views_are_written_as_they_look_and_names_are_files(self, tmp_path: Path) -> None:
        parts = split({"x": X, "ward": WARD}, by("ward"), views=[noise(1.0)])
        sources = parts.write(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["east%2Fwest.npz", "north.npz", "south.npz"]
        read = split(dict, by("ward")).part(sources["north"])
        assert np.array_equal(read.train["x"], parts.part({"owner": "north"}).train["x"])

    def test_says_what_cannot_be(self, tmp_path: Path) -> None:
        parts = split((X, Y), iid(), 2)
        (tmp_path / "a.npz").write_bytes(b"torn")
        for name in ("a.npz", "b.npz"):
            with pytest.raises(DataError, match=f"{name} is no part"):
                parts.part({"file": tmp_path / name})
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match="cannot be written"):
            parts.write(tmp_path / "file")
        ragged = split([(np.zeros(2), 0), (np.zeros(3), 1)], iid(), 1)
        with pytest.raises(DataError, match="different shapes"):
            ragged.write(tmp_path)


def test_pictures_and_tables_take_parts() -> None:
    pytest.importorskip("matplotlib")
    parts = split({"x": X, "ward": WARD, "y": Y}, pathological(2, label="ward"), 6)
    names = [text.get_text() for text in draw(parts).legends[0].get_texts()]
    assert names == ["east/west", "north", "south"]
    assert draw(parts, "y").get_suptitle() == "400 items of 4 classes at 6 clients"
    assert " to " in draw(parts, X[:, 0]).legends[0].get_texts()[0].get_text()
    assert table(parts).splitlines()[4] == "classes per client  min 2, median 2, max 2"


client = umbel.Client()
simulated = split(load, dirichlet(0.3, minimum=2), 8, seed=1, test=0.2, views=[noise(0.01)])


@client.data
def data(source: Any) -> Any:
    return simulated.part(source)


@client.train
def train(model: Any, part: Any, ctx: Any) -> umbel.Update:
    x, y = part.train
    return umbel.Update({"w": model["w"] - 0.1 * x.T @ (x @ model["w"] - y) / len(y)}, weight=len(y))


@pytest.mark.slow
def test_a_simulation_is_the_same_on_any_number_of_workers() -> None:
    app = umbel.App(client, model={"w": np.zeros(3)}, strategy=umbel.FedAvg(cohort=8), rounds=2)
    models = {
        umbel.run(app, on=umbel.Simulation(sources, workers=workers), seed=1, folder=None).model_sha256
        for sources, workers in ((simulated.sources, 0), (simulated.sources, 2), (simulated, 0))
    }
    assert len(models) == 1


def test_given_sizes_need_no_labels() -> None:
    assert [len(part) for part in split(X, sizes([100, 300]), 2)] == [100, 300]


def test_a_holder_holds_out_some_of_its_own_rows(tmp_path: Path) -> None:
    part = hold_out((X, Y), test=0.2, validation=0.1, seed=3)
    assert [len(found) for found in (part.train_items, part.validation_items, part.test_items)] == [280, 40, 80]
    assert part.indices.tolist() == list(range(400))
    again = hold_out((X, Y), test=0.2, validation=0.1, seed=3)
    assert again.test_items.tolist() == part.test_items.tolist() != hold_out((X, Y), 0.2, 0.1).test_items.tolist()
    assert (part.train[0] == X[part.train_items]).all()
    assert hold_out(Y, test=0.25, held="last").test_items.tolist() == list(range(300, 400))
    np.savetxt(tmp_path / "mine.csv", X, delimiter=",", header="a,b,c", comments="")
    assert len(hold_out(tmp_path / "mine.csv").test["b"]) == 80
    assert len(hold_out(X, test=0.0).test) == 0


def test_a_holder_may_have_no_rows() -> None:
    part = hold_out({"x": X[:0], "y": Y[:0]})
    assert (len(part), part.train["x"].shape, part.test["y"].shape) == (0, (0, 3), (0,))


def test_sparse_rows_are_split() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    for rows in (sparse.csr_matrix(X), sparse.coo_array(X)):
        x, y = split((rows, Y), iid(), clients=3)[1].train
        other, same = split((X, Y), iid(), clients=3)[1].train
        assert (np.array_equal(x.toarray(), other), np.array_equal(y, same)) == (True, True)


def test_owners_that_are_dates_have_the_names_of_days() -> None:
    days = np.array(["2020-01-02", "2021-03-04"], "datetime64[ns]")
    assert list(split({"day": days, "y": Y[:2]}, by="day").sources) == ["2020-01-02T00:00:00", "2021-03-04T00:00:00"]
