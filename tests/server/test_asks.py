"""What becomes of asks and tasks."""

from __future__ import annotations

import pytest
from tests.server.routing import (
    World,
    ask_of,
    asked,
    blob_of,
    done_of,
    failed_of,
    partial_of,
    task_of,
    two_nodes,
)

from umbel.server.signals import Drop, Fetch, Hold, Release, Say
from umbel.wire import messages as m


@pytest.fixture
def world():
    return two_nodes()


def test_a_task_goes_to_its_node_once_it_is_on_disk(world):
    world.say("r1", ask_spec=ask_of())
    assert world.effects == []
    world.say("r1", task=task_of("0"))
    assert world.said("a1") == [("ask_spec", ask_of()), ("task", task_of("0"))]
    assert world.durable("task")
    assert world.durable("ask_spec")
    world.say("r1", task=task_of("1"))
    assert world.said("a1") == [("task", task_of("1"))]
    assert world.router.ledger.waiting("r") == 2


def test_a_task_that_comes_twice_changes_nothing(world):
    asked(world, "0")
    assert world.say("r1", task=task_of("0")) == []
    world.say("a1", result=done_of("0"))
    world.say("r1", task=task_of("0"))
    assert world.effects == [Say("r1", m.Message(result=done_of("0")))]


def test_a_higher_attempt_takes_the_place_of_a_failure(world):
    asked(world, "0")
    world.say("a1", result=failed_of("0", retry=True))
    world.say("r1", task=task_of("0", attempt=2))
    assert world.said("a1", "task") == [task_of("0", attempt=2)]
    world.say("a1", result=failed_of("0", attempt=1))
    assert world.said("r1") == []
    assert world.said("a1", "ack")[0].tasks == ["0.0"]
    world.say("a1", result=done_of("0", attempt=2))
    assert world.said("r1", "result")


def test_an_update_counts_for_all_attempts(world):
    asked(world, "0")
    world.say("a1", result=done_of("0"))
    world.say("r1", task=task_of("0", attempt=2))
    assert world.effects == [Say("r1", m.Message(result=done_of("0")))]


def test_tasks_of_clients_that_cannot_take_part_fail_at_once(world):
    world.say("b1", run_answer=m.RunAnswer(run="r", reason="not today"))
    asked(world, "2")
    (result,) = world.said("r1", "result")
    assert result.failure.reason == "client 2 cannot take part: not today"
    world.say("r1", task=task_of("9"))
    assert "no node of this federation hosts it" in world.said("r1", "result")[0].failure.reason


def test_a_run_whose_model_has_no_room_at_all_is_told(world):
    world = World(largest={"node": 10, "run": 99}.__getitem__)
    world.run()
    world.say("r1", ask_spec=ask_of(model=m.Payload(blob=blob_of("m"))))
    ((drop,),) = [world.of(Drop)]
    assert (drop.peer, drop.code) == ("r1", m.CODE_TOO_LARGE)
    assert "--quota" in drop.text


def test_what_arrives_for_a_task_that_was_cancelled_meanwhile_is_dropped(world):
    asked(world, "0")
    world.say("a1", result=done_of("0", update=m.Payload(blob=blob_of("u"))))
    world.say("r1", cancel=m.Cancel(run="r", tasks=["0.0"]))
    assert world.fetched(b"u" * 32) == []


def test_nobody_waits_for_the_answer_to_a_cancelled_task(world):
    asked(world, "0")
    world.say("r1", cancel=m.Cancel(run="r", tasks=["0.0", "7.7", "x", ""]))
    assert world.router.ledger.waiting("r") == 0
    world.say("a1", result=done_of("0"))
    assert world.said("r1") == []
    assert world.said("a1", "ack")


def test_a_task_of_a_partial_that_is_cancelled_leaves_the_others_open(world):
    asked(world, "0", "1")
    world.say("a1", partial=partial_of("0", "1"))
    world.say("r1", cancel=m.Cancel(run="r", tasks=["0.1"]))
    assert world.router.ledger.waiting("r") == 1
    world.store.commit()
    assert world.store.rows("answers") == []
    assert [row["task"] for row in world.store.rows("tasks")] == ["0.0"]


def test_an_ask_that_is_over_is_forgotten(world):
    asked(world, "0", "2")
    world.say("a1", result=done_of("0"))
    world.say("r1", close_ask=m.CloseAsk(run="r", ask=0))
    assert world.of(Release) == [Release("r/0")]
    assert world.said("a1") == world.said("b1") == [("close_ask", m.CloseAsk(run="r", ask=0))]
    assert world.router.ledger.waiting("r") == 0
    world.store.commit()
    assert [world.store.rows(table) for table in ("asks", "tasks", "answers")] == [[], [], []]
    world.say("b1", result=done_of("2"))
    assert [kind for kind, _ in world.said("b1")] == ["ack"]
    assert world.say("r1", close_ask=m.CloseAsk(run="r", ask=0)) == []


def test_a_node_that_answered_in_an_earlier_session_is_told_that_the_ask_is_over(world):
    asked(world, "0")
    world.say("a1", result=done_of("0"))
    world.node("a", "0", "1", number=2)
    world.say("r1", close_ask=m.CloseAsk(run="r", ask=0))
    assert world.said("a2") == [("close_ask", m.CloseAsk(run="r", ask=0))]
    assert world.said("b1") == []


def test_a_task_that_was_cancelled_and_is_asked_again_is_wanted(world):
    asked(world, "0")
    world.say("r1", cancel=m.Cancel(run="r", tasks=["0.0"]))
    world.say("r1", task=task_of("0"))
    world.say("a1", alive=m.Alive(run="r", tasks=["0.0"]))
    assert world.said("a1") == []


def test_an_ask_with_another_digest_begins_anew(world):
    asked(world, "0")
    world.say("a1", result=done_of("0"))
    world.say("r1", ask_spec=ask_of(digest=b"other"))
    assert world.said("a1", "close_ask")
    world.say("r1", task=task_of("0"))
    assert [kind for kind, _ in world.said("a1")] == ["ask_spec", "task"]


def test_what_a_run_names_is_fetched_and_held_until_its_ask_is_over(world):
    world.say("r1", ask_spec=ask_of(model=m.Payload(blob=blob_of("m")), shared=m.Payload(blob=blob_of("s"))))
    assert world.effects == [
        Hold(b"m" * 32, "r/0"), Fetch("r1", "r", blob_of("m"), "run r"),
        Hold(b"s" * 32, "r/0"), Fetch("r1", "r", blob_of("s"), "run r"),
    ]  # fmt: skip
    world.blobs.add(b"m" * 32)
    world.say("r1", ask_spec=ask_of(model=m.Payload(blob=blob_of("m"))))
    assert world.of(Fetch) == []
    world.say("r1", task=task_of("0", own=m.Payload(blob=blob_of("o"))))
    assert world.of(Hold) == [Hold(b"o" * 32, "r/0")]


def test_a_task_needs_its_ask(world):
    world.say("r1", task=task_of("0", ask=3))
    assert [drop.code for drop in world.of(Drop)] == [m.CODE_UNKNOWN]
