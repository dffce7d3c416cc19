"""What runs and asks are at a relay, one rule at a time."""

from __future__ import annotations

import pytest
from tests.server.relays import (
    CLIENTS,
    COLLECT,
    OFFLINE,
    PREPARING,
    READY,
    REFUSED,
    SPEC,
    World,
    ask_of,
    done_of,
    failed_of,
    members_of,
    partial_of,
    task_of,
    world_of,
)

from umbel.core.task import Ticked
from umbel.server.relayed import LARGE, LINGER, RelayedRun
from umbel.server.signals import Forget, Reached, RouterDropped, Unfetched
from umbel.server.uplink import Uplink
from umbel.wire import messages as m
from umbel.work.retries import HOST_TRIES


def test_tasks_that_may_be_on_their_way_are_waited_for():
    world = world_of(*range(4))
    for client in range(4):
        world.answered(result=done_of(client))
    assert not world.folds
    assert world.machine.next_tick == LINGER
    world.later()
    assert len(world.folds) == 1


@pytest.mark.parametrize(
    "ask",
    [
        ask_of(whole=False),
        ask_of(fold=COLLECT),
        ask_of(fold='["of my own", {}]'),
        ask_of(fold="{"),
        ask_of(model=m.Payload(blob=m.Blob(sha256=b"m" * 32, size=LARGE + 1))),
    ],
)
def test_what_cannot_be_folded_goes_up_at_once(ask):
    world = world_of(*range(5), ask=ask)
    world.answered(result=done_of(0))
    assert world.said("result") == [done_of(0)]


def test_a_failure_goes_up_at_once_and_the_others_do_not_wait_for_it():
    world = world_of(*range(5))
    world.now = 1.0
    for client in range(4):
        world.answered(result=done_of(client))
    world.answered(result=failed_of(4))
    assert world.said("result") == [failed_of(4)]
    assert len(world.folds) == 1
    world.asked(task=task_of(4, attempt=2))
    world.answered(result=failed_of(4))  # the first one, again
    assert world.said("result") == []
    world.answered(result=done_of(4))
    world.later()
    assert world.said("result") == [done_of(4)]


def test_partials_of_relays_below_are_folded_too():
    world = world_of(*range(6))
    world.now = 1.0
    world.answered(result=done_of(0))
    world.answered(partial=partial_of(1, 2, 3, 4))
    world.answered(result=done_of(5))
    (fold,) = world.folds
    assert [each.WhichOneof("body") for each in fold.answers] == ["result", "partial", "result"]
    world.fold()
    world.told()
    world.asked(refold=m.Refold(run="r", ask=1, without=["1.2"]))
    assert world.told("refold") == [m.Refold(run="r", ask=1, without=["1.2"])]
    assert len(world.folds) == 1
    world.answered(partial=partial_of(1, 3, 4))
    assert len(world.folds) == 2
    world.asked(cancel=m.Cancel(run="r", tasks=["1.1"]))
    world.answered(partial=partial_of(3, 4))
    assert len(world.folds) == 3


def test_a_partial_of_which_only_some_is_asked_is_folded_again_below():
    world = world_of(0, 1)
    world.answered(partial=partial_of(0, 1, 2))
    world.told()
    world.later()
    assert world.told("refold") == [m.Refold(run="r", ask=1, without=["1.2"])]
    world = world_of(0)
    world.answered(partial=partial_of(0, 1))
    world.told()
    world.asked(task=task_of(1))  # the others were still to be asked for again
    world.later()
    assert world.told("refold") == []
    assert world.said("partial") == [partial_of(0, 1)]


def test_it_says_which_of_its_clients_take_part():
    world = World()
    world.put(Reached(CLIENTS))
    world.answered(members=members_of(c0=READY))
    assert world.said() == []  # of a run that was not told of in this session, or not at all
    world.asked(run_spec=SPEC)
    world.answered(members=members_of(c0=READY, c1=OFFLINE, c2=REFUSED))
    assert world.said("run_answer") == [
        m.RunAnswer(run="r", ready=True, clients=["0"]),
        m.RunAnswer(run="r", reason="why", clients=["2"]),
    ]
    world.answered(members=members_of(c0=READY, c2=REFUSED))
    world.answered(members=members_of(c0=OFFLINE))  # its tasks wait here
    assert world.said() == []
    world.asked(run_spec=SPEC)
    world.answered(members=members_of(c0=OFFLINE, c2=READY))
    assert world.said("run_answer") == [m.RunAnswer(run="r", ready=True, clients=["0", "2"])]
    world.answered(members=members_of(c0=PREPARING, c1=PREPARING))  # died, and is tried again; client 0 was ready once
    assert world.said("run_answer") == [m.RunAnswer(run="r", retry=True, reason="why", clients=["1"])]


def test_what_cannot_be_fetched_fails_what_needs_it():
    world = world_of(0, 1, ask=ask_of(model=m.Payload(blob=m.Blob(sha256=b"m" * 32, size=9))))
    world.told()
    world.put(Unfetched("r", b"m" * 32, "it is gone"))
    assert [(each.task, each.failure.retry) for each in world.said("result")] == [("1.0", True), ("1.1", True)]
    assert world.told("cancel") == [m.Cancel(run="r", tasks=["1.0", "1.1"])]


def test_a_model_that_could_not_be_fetched_is_fetched_for_the_next_attempt():
    ask = ask_of(model=m.Payload(blob=m.Blob(sha256=b"m" * 32, size=9)))
    world = world_of(0, 1, ask=ask)
    world.put(Unfetched("r", b"m" * 32, "it cannot be read"))
    assert world.told("close_ask")[-1] == m.CloseAsk(run="r", ask=1)
    world.asked(task=task_of(0, attempt=2))
    assert world.told("ask_spec", "task") == [("ask_spec", ask), ("task", task_of(0, attempt=2))]


def test_a_run_that_the_router_drops_is_told_of_above_and_is_known_to_it_anew():
    world = world_of(0)
    world.told()
    world.put(RouterDropped("relay other", "not this one"))
    assert world.said() == []
    world.put(RouterDropped("relay r", "9 bytes are too many"))
    (answer,) = world.said("run_answer")
    assert (answer.ready, answer.retry, list(answer.clients)) == (False, False, [])
    assert answer.reason == "the relay cannot go on with it: 9 bytes are too many"
    world.asked(close_ask=m.CloseAsk(run="r", ask=1))
    assert [kind for kind, _ in world.told()] == ["Connected", "close_ask"]


def test_an_archive_that_cannot_be_fetched_is_fetched_again():
    world = World()
    world.put(Reached(CLIENTS))
    spec = m.RunSpec(run="r", archive=m.Payload(blob=m.Blob(sha256=b"a" * 32, size=9)))
    world.asked(run_spec=spec)
    world.told()
    reasons = []
    for tries in range(HOST_TRIES):
        world.put(Unfetched("r", b"a" * 32, "the disk is full"))
        (answer,) = world.said("run_answer")
        reasons.append((answer.retry, answer.reason))
        if tries < HOST_TRIES - 1:
            world.now = world.machine.next_tick
            world.put(Ticked())
            assert world.told("run_spec") == [spec]
    assert reasons[:-1] == [(True, "the relay cannot fetch its archive: the disk is full")] * (HOST_TRIES - 1)
    assert reasons[-1] == (False, f"the relay cannot fetch its archive: the disk is full ({HOST_TRIES} times in a row)")


def asks_in(spec):
    """A run with an ask of two tasks, and what the router was told and the server above since."""
    uplink = Uplink()
    uplink.begin(0.0)
    run = RelayedRun(SPEC, uplink)
    run.asked(SPEC)
    run.ask(spec)
    for client in (0, 1):
        run.task(task_of(client, own=m.Payload(blob=m.Blob(sha256=bytes([client]) * 32, size=9))), 0.0)
    uplink.effects.clear()
    return run, uplink.effects


def test_an_ask_of_another_digest_takes_the_place_of_the_former():
    run, effects = asks_in(ask_of())
    former = run.asks[1]
    run.ask(ask_of())
    assert run.asks[1] is former
    for client in range(2, 4):
        run.task(task_of(client), 0.0)
    for client in range(4):
        former.answered(m.Message(result=done_of(client)))
    assert former.put_together(0.0) == LINGER
    assert former.put_together(LINGER) is None
    other = ask_of()
    other.digest = b"another"
    run.ask(other)
    assert run.asks[1].tasks == {}
    assert effects[-2] == Forget(1)


def test_a_transfer_is_progress_for_the_tasks_that_need_it():
    run, _ = asks_in(ask_of(shared=m.Payload(blob=m.Blob(sha256=b"s" * 32, size=9))))
    run.moved(b"x" * 32)
    assert run.progress == set()
    run.moved(bytes([1]) * 32)
    assert run.progress == {"1.1"}
    run.moved(b"s" * 32)
    assert run.progress == {"1.0", "1.1"}
    run.tell_alive()
    assert run.progress == set()
    run.asks[1].answered(m.Message(result=done_of(1)))  # it has what it needs no more, and is alive still
    run.moved(bytes([1]) * 32)
    assert run.progress == set()
    assert run.asks[1].held() == {"1.1"}


def test_only_tasks_that_need_what_is_not_to_be_had_fail():
    run, effects = asks_in(ask_of())
    run.lack(bytes([1]) * 32, "it is gone", 0.0)
    told, said = effects
    assert told.event.message.cancel == m.Cancel(run="r", tasks=["1.1"])
    assert (said.message.result.task, said.message.result.client, said.message.result.attempt) == ("1.1", "1", 1)
    assert run.asks[1].tasks == {"1.0": 1}
