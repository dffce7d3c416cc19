"""What requests say."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.server.desks import Office

from umbel.errors import Refused
from umbel.server.requests import count_of, is_whole, run_of, runs_by_age
from umbel.wire import messages as m


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


def test_runs_are_found_by_id_part_and_last(office: Office) -> None:
    for number, id in enumerate(("mnist-1-ab", "mnist-2-cd", "other-ef"), 1):
        office.run(id, created=float(number), submission={"settings": {"rounds": 2}}, name="n")
    for reference, run in {"last": "other-ef", "mnist-1": "mnist-1-ab", "cd": "mnist-2-cd"}.items():
        assert office.ask("runs.show", run=reference)["run"] == run
    assert "mnist-1-ab, mnist-2-cd" in office.refused("runs.show", run="mnist").text
    for reference in ("nothing", ""):
        assert office.refused("runs.show", run=reference).code in (m.CODE_UNKNOWN, m.CODE_MALFORMED)
    members = office.ask("runs.show", run="last")["members"]
    assert members == [
        {"client": "a", "standing": "ready", "reason": ""},
        {"client": "b", "standing": "refused", "reason": "no data"},
    ]
    assert [row["run"] for row in office.ask("runs.list")["runs"]] == ["mnist-1-ab", "mnist-2-cd", "other-ef"]


@pytest.mark.parametrize(("value", "least", "whole"), [(1, 1, True), (0, 1, False), (True, 0, False), (1.0, 0, False)])
def test_what_is_a_whole_number(value: object, least: int, whole: bool) -> None:
    assert is_whole(value, least) == whole


def test_a_count_is_what_is_said_or_the_default() -> None:
    assert [count_of(body, "count", 100) for body in ({}, {"count": 3})] == [100, 3]
    assert [count_of(body, "rounds", None) for body in ({}, {"rounds": None}, {"rounds": 3})] == [None, None, 3]
    for wrong in (None, 0, True, "3", 2.0):
        with pytest.raises(Refused, match="count is a whole number of at least 1"):
            count_of({"count": wrong}, "count", 100)


def test_an_id_goes_before_what_only_begins_with_it(office: Office) -> None:
    for id in ("mnist-10", "mnist-1", "old-mnist-1"):
        office.run(id)
    assert run_of({"run": "mnist-1"}, office.store)["id"] == "mnist-1"
    assert run_of({"run": "mnist-10"}, office.store)["id"] == "mnist-10"
    assert run_of({"run": "d-m"}, office.store)["id"] == "old-mnist-1"
    assert [row["id"] for row in runs_by_age(office.store)] == ["mnist-1", "mnist-10", "old-mnist-1"]
