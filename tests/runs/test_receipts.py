"""What a log says of clients: all of it where they are few, quantiles where they are many, never more than a frame."""

import json
import math

import pytest

from umbel.core.update import LONGEST_NAME, MOST_METRICS, Receipt, check_metrics
from umbel.runs.events import LARGEST, AskClosed, RoundCommitted, Waiting, Warned
from umbel.runs.reasons import MOST_KINDS, counted
from umbel.runs.receipts import MOST_CLIENTS, MOST_SKIPPED, Clients, skipped, told

WIDE = "\U0001f4c8"  # four bytes as UTF-8, twelve as JSON


def receipt(client, weight=1.0, seconds=0.5, staleness=0, **metrics):
    return Receipt(f"0.{client}", client, weight, metrics, seconds, staleness)


def closed(ask=0, round=1, kind="train", receipts=(), failed=None, dropped=()):
    failed = failed or {}
    clients, spread = told(receipts, failed, dropped)
    return AskClosed(
        ask=ask, round=round, kind=kind, lane=kind, digest="", asked=9, count=len(receipts), failures=len(failed),
        failed=counted(failed), clients=clients, spread=spread,
    )  # fmt: skip


def facts(row):
    return row.round, row.kind, row.client, row.status, row.weight, dict(row.metrics), row.seconds, row.reason


def test_a_row_for_each_client_of_an_ask():
    event = closed(
        receipts=[
            receipt(0, 2.0, loss=1.0),
            receipt(4, 3.0, 0.25, loss=math.inf, steps=7.0),
            receipt("b", staleness=2),
        ],
        failed={7: "no data", 8: "died", 9: "no data"},
        dropped=[5],
    )
    rows = Clients([event])
    assert [facts(row) for row in rows] == [
        (1, "train", 0, "counted", 2.0, {"loss": 1.0}, 0.5, None),
        (1, "train", 4, "counted", 3.0, {"loss": math.inf, "steps": 7.0}, 0.25, None),
        (1, "train", "b", "late", 1.0, {}, 0.5, None),
        (1, "train", 7, "failed", None, {}, None, "no data"),
        (1, "train", 8, "failed", None, {}, None, "died"),
        (1, "train", 9, "failed", None, {}, None, "no data"),
        (1, "train", 5, "dropped", None, {}, None, None),
    ]
    assert [row.staleness for row in rows] == [0, 0, 2, 0, 0, 0, 0]
    assert rows.spreads == []


def test_rows_stand_in_the_order_of_asks_and_one_that_was_done_again_counts_once():
    before = closed(ask=1, round=2, receipts=[receipt(9)])
    events = [before, closed(ask=0, receipts=[receipt(0), receipt(1)]), Warned(round=1, text="?")]
    events += [closed(ask=2, round=2, kind="evaluate"), closed(ask=1, round=2, receipts=[receipt(5)])]
    rows = Clients(events)
    assert [(row.round, row.client) for row in rows] == [(1, 0), (1, 1), (2, 5)]
    assert [rows[place].client for place in (0, 1, 2, -1, -3)] == [0, 1, 5, 5, 0]
    assert (len(rows), rows.rounds, [row.client for row in rows.of(2)]) == (3, [1, 2], [5])
    for place in (3, -4):
        with pytest.raises(IndexError):
            rows[place]
    assert len(Clients([])) == 0


def test_columns_survive_the_log():
    event = closed(receipts=[receipt(0, loss=1.0), receipt(1, steps=2.0)], failed={2: "no data"})
    record = json.loads(json.dumps(event.record()))
    record.pop("event")
    assert list(Clients([AskClosed(**record)])) == list(Clients([event]))


def test_too_many_clients_are_told_in_quantiles():
    at_most = [receipt(i, weight=float(i), loss=i / 10, rare=1.0) for i in range(MOST_CLIENTS)]
    assert len(Clients([closed(receipts=at_most)])) == MOST_CLIENTS
    event = closed(receipts=[*at_most, receipt(MOST_CLIENTS, weight=0.5, loss=math.nan)])
    rows = Clients([event])
    assert (len(rows), rows.rounds) == (0, [1])
    by_name = {spread.name: spread for spread in rows.spreads}
    assert list(by_name) == ["weight", "seconds", "metrics.loss", "metrics.rare"]
    loss = by_name["metrics.loss"]
    assert (loss.count, loss.least, loss.low, loss.greatest, loss.high) == (1000, 0.0, 0, 99.9, 999)
    assert loss.quantiles == (5.0, 25.0, 50.0, 74.9, 94.9)
    assert (by_name["weight"].count, by_name["weight"].quantiles[2]) == (1001, 499.0)
    assert len(json.dumps(event.record())) < 3000


def test_nothing_finite_has_no_quantiles():
    event = closed(receipts=[receipt(i, loss=math.nan) for i in range(MOST_CLIENTS + 1)])
    assert "metrics.loss" not in event.spread


def test_metrics_that_are_not_finite_are_counted_and_their_clients_named():
    receipts = [receipt(i, loss=math.nan if i % 2 else 1.0, steps=float(i)) for i in range(20)]
    assert skipped(receipts) == {"loss": [10, [1, 3, 5, 7, 9]]}
    assert skipped([receipt(3, loss=-math.inf)]) == {"loss": [1, [3]]}
    assert len(skipped([receipt(0, **{f"m{i}": math.nan for i in range(100)})])) == MOST_SKIPPED


# The largest that can be


def name_of(place):
    return f"{place:03d}" + WIDE * ((LONGEST_NAME - 3) // 4)


def largest(clients):
    """An ask of as many clients as are wanted, that says as much as it can of each."""
    metrics = check_metrics({name_of(i): math.nan if i % 2 else -1.2345678901234567e-300 for i in range(200)}, "they")
    assert len(metrics) == MOST_METRICS
    receipts = [Receipt(f"0.{i}", f"{i}{WIDE * 60}", 1.0000000000000002, metrics, 1e6 / 3) for i in range(clients)]
    failed = {f"{i}{WIDE * 60}": f"{i:03d}{chr(97 + i % 26) * (1 + i // 26)}{WIDE * 5000}" for i in range(3000)}
    rows, spread = told(receipts, failed, [])
    return AskClosed(
        ask=2**60, round=2**31, kind=WIDE * 5000, lane=WIDE * 5000, digest="0" * 64, asked=10**6, count=clients,
        metrics=dict.fromkeys(metrics, -1.2345678901234567e-300), failures=3000, failed=counted(failed),
        skipped=skipped(receipts), clients=rows, spread=spread, reason=WIDE * 5000,
    )  # fmt: skip


@pytest.mark.parametrize("clients", [1, 50, 1500])
def test_no_ask_outgrows_a_frame_whatever_clients_say(clients):
    event = largest(clients)
    assert len(event.failed) == MOST_KINDS + 1
    assert len(json.dumps(event.record())) <= LARGEST


def test_rows_that_are_too_long_are_told_in_quantiles():
    names = [name_of(i) for i in range(20)]
    receipts = [receipt(i, **dict.fromkeys(names, i / 3)) for i in range(900)]
    columns, spread = told(receipts, {}, [])
    assert columns["metrics"].keys() == set(names)
    wider = [receipt(i, **{name_of(j): i / 3 for j in range(60)}) for i in range(900)]
    columns, spread = told(wider, {}, [])
    assert not columns
    assert spread["metrics." + names[0]]["count"] == 900


def test_no_round_outgrows_a_frame():
    metrics = {name_of(i): -1.2345678901234567e-300 for i in range(MOST_METRICS)}
    kinds = dict.fromkeys(metrics, 2**60)
    event = RoundCommitted(
        round=1, asks=1, failures=kinds, train=metrics, evaluate=metrics, test=metrics, failed=WIDE * 10**6
    )
    assert len(json.dumps(event.record())) <= LARGEST


def test_no_text_outgrows_a_frame():
    assert len(json.dumps(Warned(round=1, text=WIDE * 10**6).record())) < LARGEST
    refused = {f"{i}{WIDE * 60}": WIDE * 2000 for i in range(5000)}
    assert len(json.dumps(Waiting(ready=1, wanted=5001, refused=refused).record())) < LARGEST
