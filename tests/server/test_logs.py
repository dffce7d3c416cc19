"""What runs log: what is no event is refused, and a log has an end."""

from __future__ import annotations

import json

import pytest
from tests.server.routing import World

from umbel.server.signals import Drop, Tell
from umbel.server.summaries import Summaries
from umbel.wire import messages as m


def committed(round, **more):
    return json.dumps({"event": "round_committed", "round": round, "asks": 1, **more})


def log(world, number, text):
    return world.say("r1", log_event=m.LogEvent(run="r", number=number, event=text))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"n": 1}',
        '{"event": 1}',
        committed("x"),
        committed(1, train={"loss": float("nan")}),
        committed(1, seconds=float("inf")),
        committed(1, seconds=0.0).replace("0.0", "1e999"),
        '{"event": "other", "x": ' + "[" * 33 + "]" * 33 + "}",
        '{"event": "other", "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
)
def test_what_is_no_event_is_refused_and_the_run_is_told(number, text):
    world = World()
    world.run()
    log(world, number, text)
    (drop,) = world.of(Drop)
    assert drop.peer == "r1"
    assert drop.code in (m.CODE_MALFORMED, m.CODE_TOO_LARGE)
    assert drop.text
    assert not world.of(Tell)
    world.store.commit()
    assert world.store.rows("events") == []


def test_events_of_a_later_release_are_kept():
    world = World()
    world.run()
    log(world, 1, '{"event": "round_dreamt", "round": "x"}')
    assert not world.of(Drop)
    assert [effect.number for effect in world.of(Tell)] == [1]


def test_a_log_takes_so_many_bytes_and_says_so_once():
    text = committed(1, failed="x" * 900)
    world = World(log_bytes=10 * len(text))
    world.run()
    notices, told = 0, []
    for number in range(1, 31):
        log(world, number, text.replace('"round": 1', f'"round": {number % 10}'))
        notices += len(world.said("r1", "notice"))
        told += [effect.number for effect in world.of(Tell)]
        assert world.said("r1", "log_ack")[0].number == number
    world.store.commit()
    rows = world.store.rows("events", run="r")
    assert [row["number"] for row in rows] == list(range(1, 12))
    assert "may (`umbel server --log-quota`)" in json.loads(rows[-1]["body"])["text"]
    assert sum(len(row["body"]) for row in rows) < 11 * len(text)
    assert notices == 1
    assert told == [*range(1, 12), *[0] * 20]
    assert world.router.summaries.of("r")["rounds"] == 0  # the 30th says that it is round 0: what is not kept counts
    world.start(crash=True)
    world.run()
    log(world, 31, '{"event": "run_finished", "run": "r", "rounds": 3, "reason": "rounds"}')
    assert world.said("r1", "log_ack")[0].number == 31
    world.store.commit()
    assert [row["number"] for row in world.store.rows("events", run="r")][-1] == 31
    assert world.router.summaries.known("r").ending == "finished"
    log(world, 32, text)
    assert not world.said("r1", "notice")


def test_how_far_a_run_is_is_read_from_its_row_and_not_from_its_events(monkeypatch):
    world = World()
    world.run()
    log(world, 1, json.dumps({"event": "run_started", "run": "r", "format": 1, "seed": 1, "rounds": 9, "clients": 1,
                              "strategy": "x"}))  # fmt: skip
    for number in range(2, 100):
        log(world, number, committed(number - 1, test={"accuracy": number / 100}))
    world.store.commit()
    log(world, 100, '{"event": "run_finished", "run": "r", "rounds": 3, "reason": "rounds", "best_round": 40}')
    world.store.commit()
    read = []
    rows = world.store.rows
    monkeypatch.setattr(world.store, "rows", lambda table, **how: read.append(table) or rows(table, **how))
    before = world.router.summaries.of("r")
    assert before == {"rounds": 98, "asked": 98, "metrics": {"test.accuracy": 0.41}, "best_round": 40}
    assert Summaries(world.store).of("r") == before
    assert "events" not in read


def test_a_run_that_ends_with_the_round_that_it_has_just_committed_as_the_best():
    world = World()
    world.run()
    log(world, 1, committed(1, test={"accuracy": 0.5}))
    log(world, 2, '{"event": "run_finished", "run": "r", "rounds": 1, "reason": "rounds", "best_round": 1}')
    assert world.router.summaries.of("r")["best_round"] == 1
