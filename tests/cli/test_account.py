"""Where a run's time went, in words."""

from __future__ import annotations

import pytest

from umbel.cli.account import account, processes, size
from umbel.runs.events import RoundCommitted, RunStarted
from umbel.runs.journal import RunLog
from umbel.runs.past import PastRun


def record_of(rounds: list[RoundCommitted], workers: int = 2) -> PastRun:
    record = PastRun.__new__(PastRun)
    started = RunStarted(
        run="r", format=1, seed=0, rounds=2, clients=4, strategy="FedAvg", federation={"workers": workers}
    )
    record.__dict__["log"] = RunLog(started, rounds, events=[started, *rounds])
    return record


def committed(round: int, **account: float) -> RoundCommitted:
    return RoundCommitted(round=round, asks=round, seconds=5.0, account=account)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (123_456, "123 kB"), (5e9, "5.0 GB"), (7e15, "7,000 TB")],
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text


def test_processes_are_counted() -> None:
    assert [processes(count) for count in (1, 2)] == ["1 process", "2 processes"]


def test_no_round_no_account() -> None:
    assert account(record_of([])) == {}


def test_shares_add_up_to_all_processes() -> None:
    rounds = [committed(r, training=6.0, data=1.0, folding=1.0, data_hits=3, data_loads=1) for r in (1, 2)]
    told = account(record_of(rounds))
    assert told["time"].endswith("2 processes: training 60%, data 10%, folding 10%, waiting and the rest 20%")
    assert told["data"] == "needed 8 times, and in memory already for 75% of them"
    assert "devices" not in told


def test_a_run_that_was_resumed_with_other_workers_has_shares_of_both() -> None:
    rounds = [committed(1, training=4.0, processes=1), committed(2, training=12.0, processes=4)]
    told = account(record_of(rounds, workers=1))["time"]
    assert told.startswith("10 s of 1 to 4 processes: training 64%, ")
    assert told.endswith("waiting and the rest 36%")


def test_no_share_is_more_than_the_whole() -> None:
    told = account(record_of([committed(1, training=15.2, folding=0.0)], workers=2))["time"]
    assert told == "5.0 s of 2 processes: training 100%, data 0%, folding 0%, waiting and the rest 0%"


def test_devices_have_an_account_of_their_own() -> None:
    spent = {"device_seconds": 60.0, "bytes_down": 2000, "bytes_up": 1000, "joules": 1500.0}
    event = RoundCommitted(round=1, asks=1, seconds=5.0, account=spent, clock=7200.0)
    devices = account(record_of([event], workers=0))["devices"]
    assert devices.endswith("2.0 kB down and 1.0 kB up, 1.5 kJ")
    assert "2 h" in devices or "120 min" in devices


def test_what_transforms_save_is_told_where_there_are_some() -> None:
    rounds = [committed(r, update_bytes=300_000, plain_bytes=1_200_000) for r in (1, 2)]
    assert account(record_of(rounds))["updates"] == "600 kB as transforms encode them, 25.0% of 2.4 MB"
    assert "updates" not in account(record_of([committed(1, update_bytes=0, plain_bytes=0)]))
