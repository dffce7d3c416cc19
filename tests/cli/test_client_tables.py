from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from umbel.core.update import Receipt
from umbel.runs.events import AskClosed
from umbel.runs.journal import LOG, read_log, sealed
from umbel.runs.reasons import counted
from umbel.runs.receipts import MOST_CLIENTS, told

Command = Callable[..., Any]
FAILED = {"clinic": "its train handler raised ValueError: no data"}


@pytest.fixture
def place(written: Callable[..., Path]) -> Path:
    """A run of two rounds: one of few clients, one of many."""
    path = written(Path("umbel-runs"))
    events = [event for event in read_log(path).events if not isinstance(event, AskClosed)]
    for r, count in ((1, 60), (2, MOST_CLIENTS + 1)):
        receipts = [Receipt(f"{r}.{i}", i, 2.0, {"loss": i / 8}, 0.5) for i in range(count)]
        clients, spread = told(receipts, FAILED, ["slow"])
        events.append(
            AskClosed(
                ask=r, round=r, kind="train", lane="train", digest="", asked=count + 2, count=count, failures=1,
                failed=counted(FAILED), clients=clients, spread=spread,
            )
        )  # fmt: skip
    (path / LOG).write_bytes(sealed(event.record() for event in events))
    return path


def test_clients_of_a_round_are_listed_failures_first(umbel: Command, place: Path) -> None:
    done = umbel("show", "last", "--clients", "--round", 1)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].split()[1:] == ["clients", "in", "round", "1"]
    assert "clinic" in lines[3]
    assert "no data" in done.out
    rows = [line.split() for line in lines if line.split()[:1] == ["training"]]
    assert rows[1] == ["training", "0", "counted", "2", "0", "0.5", "s"]
    assert rows[9] == ["training", "8", "counted", "2", "1", "0.5", "s"]
    assert "40 of 62 rows: --json prints all" in done.out


def test_many_clients_are_shown_in_quantiles(umbel: Command, place: Path) -> None:
    done = umbel("show", "last", "--clients")
    assert "clients in round 2" in done.out
    (row,) = [line for line in done.out.splitlines() if "metrics.loss" in line]
    assert row.split() == [
        "training", "metrics.loss", "1001", "0", "(client", "0)", "31.25", "62.5", "93.75", "125", "(client", "1000)",
    ]  # fmt: skip


def test_all_rows_are_there_as_json(umbel: Command, place: Path) -> None:
    done = umbel("show", "last", "--clients", "--json")
    found = json.loads(done.out)
    assert found["run"] == place.name
    assert len(found["clients"]) == 62
    assert found["clients"][1] == {
        "round": 1, "kind": "train", "client": 1, "status": "counted", "weight": 2.0, "seconds": 0.5,
        "metrics": {"loss": 0.125}, "staleness": 0, "reason": None,
    }  # fmt: skip
    assert [row["status"] for row in found["clients"][-2:]] == ["failed", "dropped"]
    assert {spread["round"] for spread in found["spreads"]} == {2}
    assert json.loads(umbel("show", "last", "--clients", "--json", "--round", 2).out)["clients"] == []


def test_a_run_that_was_only_begun_has_no_clients(umbel: Command, written: Callable[..., Path]) -> None:
    written(Path("umbel-runs"), rounds=0)
    done = umbel("show", "last", "--clients")
    assert (done.code, "no client has been heard of yet" in done.out) == (0, True)
    done = umbel("show", "last", "--clients", "--round", 3)
    assert (done.code, "nothing is known of the clients of round 3" in done.err) == (3, True)


@pytest.mark.parametrize("options", [("--json",), ("--round", 2), ("--clients", "--plot", "a.png")], ids=str)
def test_options_that_do_not_go_together_are_refused(umbel: Command, place: Path, options: tuple[Any, ...]) -> None:
    done = umbel("show", "last", *options)
    assert (done.code, "--clients" in done.err) == (3, True)
