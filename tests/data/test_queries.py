"""Clients whose data is a query."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import numpy as np
import pytest

import umbel
from umbel import analytics
from umbel.data import query
from umbel.errors import DataError

TABLE = [("va", 50, 1.5), ("va", 61, None), ("hu", 40, 2.5)]


@pytest.fixture
def patients(tmp_path):
    path = tmp_path / "patients.db"
    with closing(sqlite3.connect(path)) as opened:
        opened.execute("create table patients (hospital text, age integer, dose real)")
        opened.executemany("insert into patients values (?, ?, ?)", TABLE)
        opened.commit()
    return f"sqlite:///{path}"


def test_columns_have_their_kinds(patients):
    pytest.importorskip("sqlalchemy")
    found = query("select * from patients order by age", patients)
    assert list(found) == ["hospital", "age", "dose"]
    assert found["hospital"].tolist() == ["hu", "va", "va"]
    assert (found["age"].dtype.kind, found["age"].tolist()) == ("i", [40, 50, 61])
    np.testing.assert_array_equal(found["dose"], [2.5, 1.5, np.nan])
    nobody = query("select age from patients where hospital = :name", patients, name="x' or '1' = '1")
    assert nobody["age"].tolist() == []


def test_a_client_is_a_query(patients):
    pytest.importorskip("sqlalchemy")

    def load(source):
        return query("select age, dose from patients where hospital = :name", source["url"], name=source["name"])

    clients = {name: {"url": patients, "name": name} for name in ("va", "hu")}
    asked = analytics.Statistics(["age", "dose"])
    result = umbel.run(
        analytics.app(analytics.client(load), asked), on=umbel.Simulation(clients, workers=0), folder=None
    )
    found = asked.read(result.model)
    assert (found["age"]["count"], found["dose"]["count"]) == (3, 2)
    assert found["age"]["mean"] == pytest.approx(151 / 3)


def test_what_is_wrong_with_a_query_is_said_without_its_values(patients, tmp_path):
    pytest.importorskip("sqlalchemy")
    with pytest.raises(DataError, match="no such table: absent") as caught:
        query("select * from absent where name = :name", patients, name="secret")
    assert "secret" not in str(caught.value)
    with pytest.raises(DataError, match="the query failed"):
        query("select 1", "nonsense://")


@pytest.mark.slow
def test_duckdb_is_read_from_a_file_a_connection_and_over_files(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    path = tmp_path / "patients.duckdb"
    with duckdb.connect(str(path)) as opened:
        opened.execute("create table patients (hospital text, age integer, dose double)")
        opened.executemany("insert into patients values (?, ?, ?)", TABLE)
        statement = "select age, dose, hospital from patients where hospital = $name order by age"
        live = query(statement, opened, name="va")
    found = query(statement, path, name="va")
    for each in (live, found):
        assert each["age"].tolist() == [50, 61]
        np.testing.assert_array_equal(each["dose"], [1.5, np.nan])
        assert list(each["hospital"]) == ["va", "va"]
    (tmp_path / "ages.csv").write_text("age\n3\n4\n")
    assert query(f"select sum(age) as total from '{tmp_path / 'ages.csv'}'", ":duckdb:")["total"].tolist() == [7]
    with pytest.raises(DataError, match="there is no file"):
        query("select 1", tmp_path / "gone.duckdb")
    with pytest.raises(DataError, match="the query failed"):
        query("drop table patients", path)


def test_numbers_of_numpy_are_parameters_and_columns_have_names_of_their_own(patients):
    pytest.importorskip("sqlalchemy")
    found = query("select dose from patients where age = :age", patients, age=np.int64(50))
    assert found["dose"].tolist() == [1.5]
    with pytest.raises(DataError, match="selects two columns 'age'"):
        query("select age, age from patients", patients)
    with pytest.raises(DataError, match="a int is no database"):
        query("select 1", 3)


def test_a_long_result_has_the_kinds_of_all_its_batches(patients, monkeypatch):
    pytest.importorskip("sqlalchemy")
    monkeypatch.setattr("umbel.data.queries.BATCH", 1)
    found = query("select * from patients order by age desc", patients)
    np.testing.assert_array_equal(found["dose"], [np.nan, 1.5, 2.5])
    assert (found["age"].tolist(), found["age"].dtype.kind) == ([61, 50, 40], "i")
    assert found["hospital"].tolist() == ["va", "va", "hu"]
    assert query("select null as a from patients", patients)["a"].tolist() == [None] * 3


@pytest.mark.slow
def test_duckdb_says_no_value_and_has_dates_with_and_without_null():
    pytest.importorskip("duckdb")
    for statement, given in (("select $name::int as a", {"name": "secret"}), ("select ('sec' || 'ret')::int as a", {})):
        with pytest.raises(DataError, match=r"Could not convert string '\.\.\.' to INT32") as caught:
            query(statement, ":duckdb:", **given)
        assert "secret" not in str(caught.value)
    dates = query("select date '2020-01-02' as a union all select null", ":duckdb:")["a"]
    assert (dates.dtype.kind, np.isnat(dates).sum()) == ("M", 1)
