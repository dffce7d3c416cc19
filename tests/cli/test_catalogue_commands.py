"""`umbel strategies` and its sisters: every algorithm is listed, with its paper and what it needs of clients."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from umbel import strategies
from umbel.cli.catalogue_commands import PLACES, entries

Command = Callable[..., Any]


def test_every_strategy_is_listed_with_a_line_a_paper_and_what_it_needs(umbel: Command) -> None:
    rows = {row["name"]: row for row in entries("strategies")}
    assert rows.keys() == {*umbel_strategies()}
    for name, row in rows.items():
        assert re.search(r"arXiv \d{4}\.\d{4,5}", row["paper"]) or name.startswith(("XGBoost", "Newton")), name
        assert row["paper"], name
        assert 10 < len(row["line"]) < 110, name
        assert row["needs"], name
    assert rows["Scaffold"]["needs"] == "the correction and the metrics `steps` and `lr`"
    assert rows["FedAvg"]["needs"] == rows["Matched"]["needs"] == "nothing"
    assert rows["CatBoostBagging"]["needs"] == "clients that boost by `umbel.catboost.fit`"
    assert sum(row["needs"] != "nothing" for row in rows.values()) > 15


def umbel_strategies() -> list[str]:
    return strategies.__all__


@pytest.mark.parametrize("catalogue", PLACES)
def test_a_catalogue_is_printed_as_a_table_as_json_and_one_by_one(umbel: Command, catalogue: str) -> None:
    done = umbel(catalogue)
    assert done.code == 0
    rows = json.loads(umbel(catalogue, "--json").out)
    assert len(rows) >= 4
    for row in rows:
        assert row["name"] in done.out
        assert row["line"], row["name"]
    one = umbel(catalogue, rows[0]["name"])
    assert f"{rows[0]['name']}(" in one.out
    assert json.loads(umbel(catalogue, rows[0]["name"], "--json").out) == rows[0]


def test_machinery_is_not_in_a_catalogue() -> None:
    names = {catalogue: {row["name"] for row in entries(catalogue)} for catalogue in PLACES}
    assert not names["folds"] & {"Fold", "Elementwise", "fold_from_spec"}
    assert not names["transforms"] & {"Transform", "chain", "known_transforms"}
    assert not names["samplers"] & {"Sampler", "as_sampler"}
    assert not names["partitioners"] & {"Partition", "draw", "heart"}
    assert not names["samplers"] & {"Record"}
    assert {"weighted_mean", "total", "krum", "median"} <= names["folds"]
    assert {"quantise", "drive", "power_sgd", "top_k", "central_gaussian"} <= names["transforms"]
    assert {"Oort", "Uniform"} <= names["samplers"]
    assert {"iid", "dirichlet", "vertical"} <= names["partitioners"]


def test_a_name_that_is_not_there_is_refused_with_the_one_that_was_meant(umbel: Command) -> None:
    done = umbel("strategies", "fedavg")
    assert done.code == 3
    assert "Did you mean FedAvg?" in done.err
    assert "weighted_mean" in umbel("folds", "x").err
