"""How runs begin, end, go on, and outlive their server."""

from __future__ import annotations

import pytest
from tests.server.routing import (
    SPEC,
    ask_of,
    asked,
    blob_of,
    done_of,
    failed_of,
    partial_of,
    task_of,
    two_nodes,
)

from umbel.server.ledger import RESTING, AnswerEntry, AskEntry, Ledger, TaskEntry
from umbel.server.signals import Connected, Hold, Lost, Outbox, Release, RunBegun, RunEnded
from umbel.store.records import MemoryStore
from umbel.wire import messages as m


@pytest.fixture
def world():
    return two_nodes()


def test_a_run_that_is_over_leaves_its_log(world):
    asked(world, "0")
    world.say("r1", log_event=m.LogEvent(run="r", number=1, event='{"event":"e"}'))
    world.say("r1", close_run=m.CloseRun(run="r", status="finished"))
    assert world.of(RunEnded) == [RunEnded("r", "finished")]
    assert {release.owner for release in world.of(Release)} == {"r/0", "r/"}
    assert world.said("a1", "close_run") == world.said("b1", "close_run") == [m.CloseRun(run="r", status="finished")]
    assert not world.router.may_read("a1", "r", b"m" * 32)
    world.store.commit()
    (row,) = world.store.rows("runs")
    assert (row["status"], row["ended_at"], row["owner"], row["name"]) == ("finished", world.now, "ann", "mnist")
    assert row["members"]["0"] == ["STANDING_READY", ""]
    assert len(world.store.rows("events")) == 1
    world.say("a1", alive=m.Alive(run="r", tasks=["0.0"]))
    assert world.said("a1") == [("close_run", m.CloseRun(run="r", status="finished"))]
    assert world.durable("close_run"), "it may not overtake an AskSpec that waits for the disk"


def test_a_status_that_is_none_counts_as_stopped(world):
    world.say("r1", close_run=m.CloseRun(run="r", status="done!"))
    assert world.of(RunEnded) == [RunEnded("r", "stopped")]


def test_a_node_that_was_away_learns_which_runs_have_ended_since(world):
    world.tell(Lost("a1"))
    world.router.end_now("r", "stopped", world.now)
    world.node("a", "0", number=2)
    assert world.said("a2") == [("close_run", m.CloseRun(run="r", status="stopped"))]
    world.tell(Lost("a2"))
    world.node("a", "0", number=3)
    assert world.said("a3") == []


def over(world, status):
    """Run r has begun, asked, and ended."""
    world.say("r1", log_event=m.LogEvent(run="r", number=1, event='{"event":"e"}'))
    asked(world, "0")
    world.say("r1", close_ask=m.CloseAsk(run="r", ask=0))
    world.say("r1", close_run=m.CloseRun(run="r", status=status))
    world.store.put("runs", {"id": "r", "exit": {"code": 4}, "submission": {"app": 1}})
    world.store.commit()
    return world.store.rows("runs")[0]


def status_of(world):
    world.store.commit()
    (row,) = world.store.rows("runs")
    return row["status"], row["ended_at"]


def test_a_run_goes_on_after_it_was_over(world):
    over(world, "stopped")
    world.run(2)
    assert world.said("a1", "run_spec")
    world.say("r2", log_event=m.LogEvent(run="r", number=2, event='{"event":"e"}'))
    world.store.commit()
    (row,) = world.store.rows("runs")
    assert (row["status"], row["ended_at"], row["owner"], row["closed"]) == ("running", None, "ann", 0)
    assert (row["exit"], row["submission"]) == ({"code": 4}, {"app": 1})
    world.say("a1", result=done_of("0"))
    assert world.said("a1", "ack"), "ask 0 is over still"


@pytest.mark.parametrize("how", ["at once", "after others", "after a restart", "after a crash"])
@pytest.mark.parametrize("status", ["stopped", "failed"])
def test_a_run_that_goes_on_gets_the_answers_that_there_were(world, status, how):
    """Nodes answer a question once: an answer that was acknowledged and is then forgotten is lost for good."""
    asked(world, "0", "1", "2")
    world.say("a1", result=done_of("0", update=m.Payload(blob=blob_of("u"))))
    world.blobs.add(blob_of("u").sha256)
    world.fetched(blob_of("u").sha256)
    assert world.said("a1", "ack")
    world.say("b1", result=failed_of("2", reason="the disk is full"))
    world.store.commit()
    world.router.end_now("r", status, world.now)
    assert not {release.owner for release in world.of(Release)}
    if how == "after others":
        for n in range(RESTING):
            world.tell(Connected(f"q{n}", "run", f"q{n}", "ann"))
            world.router.end_now(f"q{n}", "stopped", world.now)
    world.store.commit()
    if how in ("after a restart", "after a crash"):
        world.start(crash=how == "after a crash")
        assert Hold(blob_of("u").sha256, "r/0") in list(world.router.ledger.held())
    if how != "at once":
        world.node("a", "0", "1", number=2)
        world.node("b", "2", number=2)
    a, b = ("a1", "b1") if how == "at once" else ("a2", "b2")
    world.run(2)
    assert world.said(a, "run_spec") == world.said(b, "run_spec") == [SPEC]
    world.say("r2", ask_spec=ask_of())
    told = {}
    for client in ("0", "1", "2"):
        world.say("r2", task=task_of(client))
        told[client] = world.said("r2", "result")
    assert told == {"0": [done_of("0", update=m.Payload(blob=blob_of("u")))], "1": [], "2": []}
    world.ready(a)
    assert [kind for kind, _ in world.said(a)] == ["ask_spec", "task"]
    assert [body.task for body in world.said(a, "task")] == ["0.1"]
    world.ready(b)
    assert [kind for kind, _ in world.said(b)] == ["ask_spec", "task"]
    world.say("r2", close_run=m.CloseRun(run="r", status="finished"))
    assert {release.owner for release in world.of(Release)} == {"r/0", "r/"}
    world.store.commit()
    assert not world.store.rows("answers")


@pytest.mark.parametrize("status", ["finished", "failed", "stopped"])
def test_a_connection_alone_makes_no_run_go_on(world, status):
    ended_at = over(world, status)["ended_at"]
    world.run(2)
    assert status_of(world) == (status, ended_at)
    world.say("r2", log_event=m.LogEvent(run="r", number=1, event='{"event":"e"}'))  # as before, once more
    assert status_of(world) == (status, ended_at)
    world.tell(Lost("r2"))
    assert status_of(world) == (status, ended_at)
    assert world.said("a1", "close_run") == [m.CloseRun(run="r", status=status)]
    world.node("b", "2", number=2)
    assert world.said("b2", "run_spec") == []
    world.run(3)
    world.say("r3", close_run=m.CloseRun(run="r", status="finished"))  # nothing was left to do
    assert status_of(world) == (status, ended_at)


def test_a_run_that_connects_before_its_end_is_on_disk_does_not_go_on(world):
    world.say("r1", close_run=m.CloseRun(run="r", status="stopped"))
    assert world.store.rows("runs") == []
    ended_at = world.now
    world.run(2)
    assert status_of(world) == ("stopped", ended_at)


def test_a_run_that_asks_goes_on(world):
    over(world, "finished")
    world.run(2)
    world.say("r2", ask_spec=ask_of(1))
    assert status_of(world) == ("running", None)
    world.tell(Lost("r2"))
    assert status_of(world) == ("running", None)


def test_a_run_that_its_server_goes_on_with_goes_on_at_once(world):
    over(world, "stopped")
    world.store.put("runs", {"id": "r", "status": "running", "ended_at": None})  # as the desk does
    world.store.commit()
    world.router.ledger.resumed("r")
    world.run(2)
    world.tell(Lost("r2"))
    assert status_of(world) == ("running", None)


def test_who_spoke_for_a_run_that_is_over_speaks_for_it_no_more(world):
    over(world, "stopped")
    world.run(2)
    world.say("r1", log_event=m.LogEvent(run="r", number=2, event='{"event":"e"}'))
    assert world.effects == []
    assert status_of(world)[0] == "stopped"


def test_ending_a_run_changes_nothing_that_others_keep_of_it(world):
    world.store.put("runs", {"id": "r", "exit": {"code": 3}})
    world.say("r1", close_ask=m.CloseAsk(run="r", ask=0))
    world.router.end_now("r", "failed", 9.0)
    world.store.commit()
    assert world.store.rows("runs")[0]["exit"] == {"code": 3}


def test_a_server_that_starts_again_goes_on_from_what_is_on_disk(world):
    asked(world, "0", "1", "2", model=m.Payload(blob=blob_of("m")))
    world.say("a1", result=done_of("0", update=m.Payload(blob=blob_of("u"))))
    world.blobs.add(b"u" * 32)
    world.fetched(b"u" * 32)
    world.say("a1", partial=partial_of("1"))
    world.start()
    assert {(hold.sha[:1], hold.owner) for hold in world.router.ledger.held()} == {(b"m", "r/0"), (b"u", "r/0")}
    assert world.router.ledger.waiting("r") == 1
    assert set(world.router.ledger.standings("r").values()) == {(m.STANDING_OFFLINE, "")}
    world.node("b", "2", number=2)
    assert world.said("b2", "run_spec") == [SPEC]
    world.ready("b2")
    assert [kind for kind, _ in world.said("b2")] == ["ask_spec", "task"]
    world.run(2)
    assert set(world.standings("r2")) == {"0", "1", "2"}
    world.say("r2", task=task_of("0"))
    assert world.said("r2", "result")
    world.say("r2", task=task_of("1"))
    assert world.said("r2", "partial")
    world.node("a", "0", "1", number=2)
    world.say("a2", result=done_of("0"))
    assert world.said("a2", "ack")


def test_what_was_not_written_is_as_if_it_had_never_come(world):
    world.store.commit()
    asked(world, "0")
    world.say("a1", result=done_of("0"))
    world.start(crash=True)
    world.node("a", "0", "1", number=2)
    assert world.say("a2", result=done_of("0")) == []
    world.run(2)
    world.say("r2", ask_spec=ask_of())
    world.say("r2", task=task_of("0"))
    world.say("a2", result=done_of("0"))
    assert world.said("r2", "result")
    assert world.said("a2", "ack")


def test_runs_that_are_over_stay_over(world):
    world.say("r1", close_run=m.CloseRun(run="r", status="failed"))
    world.start()
    world.node("a", "0", number=2)
    assert world.said("a2") == [("close_run", m.CloseRun(run="r", status="failed"))]
    world.say("a2", result=done_of("0"))
    assert world.said("a2") == [("close_run", m.CloseRun(run="r", status="failed"))]


def test_how_far_asks_were_closed_outlives_a_change_of_the_run(world):
    asked(world, "0")
    world.say("r1", close_ask=m.CloseAsk(run="r", ask=0))
    world.say("r1", run_spec=m.RunSpec(run="r", config="{ }"))
    world.start()
    world.node("a", "0", number=2)
    world.say("a2", result=done_of("0"))
    assert world.said("a2", "ack")


def test_a_ledger_knows_which_runs_go_on_and_how_others_ended():
    store, out = MemoryStore(), Outbox()
    ledger = Ledger(store, out)
    for number, status in enumerate(["finished", *["stopped"] * (RESTING + 1)]):
        ledger.end(ledger.begin(f"r{number}", "ann", 1.0), status, 10.0 + number)
    ledger.begin("new", "ann", 2.0)
    store.commit()
    assert list(ledger.runs) == ["new"]
    assert ledger.ended["r0"] == ("finished", 10.0)
    assert [type(effect) for effect in out.effects] == [RunEnded] * (RESTING + 2)
    again = Ledger(store, out)
    assert (list(again.runs), again.ended) == (["new"], ledger.ended)
    run = again.begin("r1", "bob", 30.0)
    assert run.over == ("stopped", 11.0)
    again.goes_on(run)
    again.goes_on(run)
    assert out.effects[RESTING + 2 :] == [RunBegun("r1")]
    assert not again.connected("r1")
    assert "r1" not in again.ended


def test_a_ledger_lets_go_of_failures_when_a_run_ends_and_keeps_updates():
    ledger = Ledger(MemoryStore(), Outbox())
    run = ledger.begin("r", "ann", 1.0)
    ask = run.asks[0] = AskEntry(ask_of())
    for client, result in (("0", done_of("0")), ("1", failed_of("1"))):
        id = f"0.{client}"
        ask.tasks[id] = TaskEntry(task_of(client), "a", id)
        ask.answers[id] = AnswerEntry(id, m.Message(result=result), (id,), "a")
    ledger.end(run, "failed", 2.0)
    assert ledger.begin("r", "ann", 3.0) is run
    assert list(ask.answers) == ["0.0"]
    assert [task.answer for _, task in run.tasks()] == ["0.0", None]
