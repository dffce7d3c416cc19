"""What becomes of what nodes answer."""

from __future__ import annotations

import pytest
from tests.server.routing import (
    UPDATE,
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

from umbel.server.signals import Drop, Fetch, Hold, Say
from umbel.wire import messages as m
from umbel.wire.blobs import NotFetched, node_giver


@pytest.fixture
def world():
    return two_nodes()


def test_a_result_is_passed_on_at_once_and_acknowledged_when_it_is_on_disk(world):
    asked(world, "0")
    world.say("a1", result=done_of("0"))
    assert world.said("r1") == [("result", done_of("0"))]
    assert not world.durable("result")
    assert world.said("a1") == [("ack", m.Ack(run="r", tasks=["0.0"], attempt=1))]
    assert world.durable("ack")
    assert world.router.ledger.waiting("r") == 0
    assert world.router.answers.count == 1
    world.say("a1", result=done_of("0"))
    assert [kind for kind, _ in world.said("a1")] == ["ack"]
    assert world.said("r1") == []


def test_an_answer_waits_for_its_blob(world):
    asked(world, "0")
    result = done_of("0", update=m.Payload(blob=blob_of("u")))
    world.say("a1", result=result)
    # Held first: between its coming and its being known, whatever else ends must not take it away.
    assert world.effects == [Hold(b"u" * 32, "r/0"), Fetch("a1", "r", blob_of("u"), "node a")]
    world.say("r1", task=task_of("0"))
    assert world.effects == []
    world.blobs.add(b"u" * 32)
    world.fetched(b"u" * 32)
    assert world.of(Hold) == [Hold(b"u" * 32, "r/0")]
    assert world.said("r1", "result") == [result]
    assert world.said("a1", "ack")
    assert world.fetched(b"u" * 32) == []


def test_an_answer_whose_blob_is_gone_as_it_is_told_of_is_not_acknowledged(world):
    asked(world, "0")
    result = done_of("0", update=m.Payload(blob=blob_of("u")))
    world.say("a1", result=result)
    world.fetched(b"u" * 32)
    assert not world.said("a1", "ack")
    world.say("a1", result=result)
    assert world.of(Fetch) == [Fetch("a1", "r", blob_of("u"), "node a")]


def large(size):
    return m.Payload(blob=blob_of("u", size))


@pytest.mark.parametrize(
    ("answer", "most", "words"),
    [
        (done_of("0", update=large(101)), 100, "101 bytes, and what ask 0 expects has at most 100"),
        (done_of("0", update=large(1001)), 0, "1,001 bytes, and the server takes at most 1,000"),
        (failed_of("0", reason="x" * 2**18), 0, "at most 131,072 are kept"),
        (
            m.Result(
                run="r", task="0.0", client="0", attempt=1,
                done=m.Done(
                    receipt=m.Receipt(task="0.0", metrics={f"{n:>99}": 1.0 for n in range(2000)}), update=UPDATE
                ),
            ),
            0,
            "such as metrics",
        ),
    ],
)  # fmt: skip
def test_an_answer_is_no_larger_than_what_is_expected_and_what_the_server_takes(answer, most, words):
    world = World(largest={"node": 1000, "run": 5000}.__getitem__)
    world.node("a", "0")
    world.run()
    world.ready("a1")
    asked(world, "0", most_bytes=most)
    world.say("a1", result=answer)
    assert world.of(Fetch) == []
    (result,) = world.said("r1", "result")
    assert "client 0: its answer has" in result.failure.reason
    assert words in result.failure.reason
    assert not result.failure.retry
    assert [ack.tasks for ack in world.said("a1", "ack")] == [["0.0"]], "it need not say it again"


def test_answers_up_to_what_is_expected_are_taken(world):
    asked(world, "0", "1", most_bytes=100)
    world.say("a1", result=done_of("0", update=large(100)))
    assert [fetch.blob.size for fetch in world.of(Fetch)] == [100]
    world.say("a1", partial=partial_of("1", partial=m.Payload(blob=blob_of("p", 200 + (2 << 20)))))
    assert len(world.of(Fetch)) == 1, "a partial holds sums"


def test_two_nodes_bring_one_blob_and_each_answer_counts_when_its_own_has(world):
    asked(world, "0", "1", "2")
    shared = m.Payload(blob=blob_of("u"))
    for node, client in (("a1", "0"), ("a1", "1"), ("b1", "2"), ("b1", "2")):
        world.say(node, result=done_of(client, update=shared))
    assert world.router.answers.count == 0
    world.blobs.add((b"u" * 32, node_giver("a")))
    world.fetched(b"u" * 32)
    assert [result.task for result in world.said("r1", "result")] == ["0.0", "0.1"]
    world.blobs.add((b"u" * 32, node_giver("b")))
    world.fetched(b"u" * 32, "b")
    assert [result.task for result in world.said("r1", "result")] == ["0.2"]
    assert world.router.answers.count == 3
    assert world.fetched(b"u" * 32, run="nobody") == []


def test_a_blob_that_one_node_has_no_more_still_comes_from_another(world):
    asked(world, "0", "2")
    shared = m.Payload(blob=blob_of("u"))
    world.say("a1", result=done_of("0", update=shared))
    world.say("b1", result=done_of("2", update=shared))
    world.tell(NotFetched("r", b"u" * 32, "gone", node_giver("a")))
    world.blobs.add((b"u" * 32, node_giver("b")))
    world.fetched(b"u" * 32, "b")
    assert [result.task for result in world.said("r1", "result")] == ["0.2"]
    assert world.router.ledger.waiting("r") == 1


def test_a_node_names_one_blob_at_a_time_for_a_task(world):
    asked(world, "0")
    world.say("a1", result=done_of("0", update=m.Payload(blob=blob_of("u"))))
    world.say("a1", result=done_of("0", attempt=2, update=m.Payload(blob=blob_of("v"))))
    assert len(world.of(Fetch)) == 1
    world.say("a1", result=done_of("0", attempt=2, update=m.Payload(blob=blob_of("w"))))
    assert [(drop.peer, drop.code) for drop in world.of(Drop)] == [("a1", m.CODE_OUT_OF_ORDER)]
    assert list(world.router.answers._arriving) == [("r", b"v" * 32, node_giver("a"))]
    world.say("r1", close_ask=m.CloseAsk(run="r", ask=0))
    assert world.router.answers._arriving == {}


def test_a_blob_that_is_not_to_be_had_leaves_the_task_open(world):
    asked(world, "0")
    result = done_of("0", update=m.Payload(blob=blob_of("u")))
    world.say("a1", result=result)
    assert world.tell(NotFetched("r", b"u" * 32, "gone", node_giver("a"))) == []
    assert world.router.ledger.waiting("r") == 1
    world.say("a1", result=result)
    assert world.of(Fetch)


def test_only_the_node_of_a_task_answers_it(world):
    asked(world, "0")
    assert world.say("b1", result=done_of("0")) == []
    assert world.say("b1", alive=m.Alive(run="other", tasks=["0.0"])) == []


def test_signs_of_life_reach_the_run_and_what_is_over_is_cancelled(world):
    asked(world, "0", "1")
    world.say("r1", cancel=m.Cancel(run="r", tasks=["0.1"]))
    assert world.said("a1", "cancel")[0].tasks == ["0.1"]
    world.say("a1", alive=m.Alive(run="r", tasks=["0.0", "0.1"]))
    assert world.said("r1", "alive")[0].tasks == ["0.0"]
    assert world.said("a1", "cancel")[0].tasks == ["0.1"]


def test_what_a_server_has_not_heard_of_yet_is_not_acknowledged(world):
    world.say("a1", result=done_of("0", ask=5))
    assert world.effects == []
    asked(world)
    world.say("a1", result=done_of("0"))
    assert world.effects == []


def test_a_partial_answers_all_its_tasks(world):
    asked(world, "0", "1")
    world.say("a1", partial=partial_of("0", "1"))
    assert world.said("r1") == [("partial", partial_of("0", "1"))]
    assert world.said("a1", "ack")[0].tasks == ["0.0", "0.1"]
    assert world.router.ledger.waiting("r") == 0
    world.say("a1", partial=partial_of("1", "0"))
    assert [kind for kind, _ in world.said("a1")] == ["ack"]
    world.say("r1", task=task_of("1"))
    assert world.said("r1", "partial")


def test_a_partial_with_tasks_that_are_not_wanted_comes_again_without_them(world):
    asked(world, "0", "1")
    world.say("a1", result=done_of("0"))
    world.say("a1", partial=partial_of("0", "1", "2"))
    assert world.said("r1") == []
    assert world.said("a1") == [("refold", m.Refold(run="r", ask=0, without=["0.0", "0.2"]))]


def test_a_run_may_have_a_partial_folded_again(world):
    asked(world, "0", "1")
    world.say("a1", partial=partial_of("0", "1"))
    world.say("r1", refold=m.Refold(run="r", ask=0, without=["0.1"]))
    assert world.said("a1", "refold") == [m.Refold(run="r", ask=0, without=["0.1"])]
    assert world.router.ledger.waiting("r") == 1
    world.say("a1", result=done_of("0"))
    assert world.said("r1", "result")


def test_results_are_not_folded_again(world):
    asked(world, "0")
    world.say("a1", result=done_of("0"))
    assert world.say("r1", refold=m.Refold(run="r", ask=0, without=["0.0"])) == []
    world.say("r1", task=task_of("0"))
    assert world.said("r1", "result") == [done_of("0")]


def test_a_partial_of_an_ask_that_is_over_is_acknowledged(world):
    asked(world, "0", "1")
    world.say("r1", close_ask=m.CloseAsk(run="r", ask=0))
    world.say("a1", partial=partial_of("0", "1"))
    assert world.said("a1", "ack")[0].tasks == ["0.0", "0.1"]


def test_an_update_waits_for_others_while_its_ask_cannot_close_without_them():
    def lazy(result):
        world.say("a1", result=result)
        return [effect.lazy > 0 for effect in world.of(Say) if effect.peer == "r1"]

    world = two_nodes()
    for ask, whole in ((0, True), (1, False)):
        world.say("r1", ask_spec=ask_of(ask, whole=whole))
        for client in "012":
            world.say("r1", task=task_of(client, ask))
    assert lazy(done_of("0")) == [True]
    assert lazy(failed_of("1")) == [False]
    world.say("r1", cancel=m.Cancel(run="r", tasks=["0.2"]))
    world.say("r1", task=task_of("1", attempt=2))
    assert lazy(done_of("1", attempt=2)) == [False]
    assert lazy(done_of("0", 1)) == [False]
