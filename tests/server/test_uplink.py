"""What a relay says above: in a session, and of the answers to an ask."""

from __future__ import annotations

from tests.server.relays import (
    CLIENTS,
    FOLDED,
    READY,
    REFUSED,
    SPEC,
    World,
    ask_of,
    done_of,
    task_of,
    tasks_in,
    world_of,
)

from umbel.server.signals import FoldAnswers, Folded, Forget, MovedAbove, Parted, Reached, SayAbove
from umbel.server.uplink import ALIVE_SECONDS, RECEIPT_BYTES, BundledAnswers, Uplink
from umbel.wire import messages as m
from umbel.wire.bodies import tasks_of


def session():
    """A session with nothing said in it, and what is said from now on."""
    uplink = Uplink()
    uplink.begin(0.0)
    return uplink, uplink.effects


def folded(bundles, effects):
    """The number of the fold that was wanted last, which is done."""
    fold = next(each for each in reversed(effects) if isinstance(each, FoldAnswers))
    assert bundles.folded(Folded(fold.number, FOLDED, tuple(m.Receipt(task=tasks_of(a)[0]) for a in fold.answers)))
    return fold.number


def answers(*clients):
    return [m.Message(result=done_of(client)) for client in clients]


def test_nothing_is_said_outside_of_a_session():
    uplink = Uplink()
    uplink.say(ack=m.Ack(run="r"))
    uplink.pass_on(m.Message(result=done_of(0)))
    assert uplink.effects == []
    uplink.begin(0.0)
    uplink.say(ack=m.Ack(run="r"))
    uplink.pass_on(m.Message(result=done_of(0)))
    assert uplink.effects == [
        SayAbove(m.Message(ack=m.Ack(run="r"))),
        SayAbove(m.Message(result=done_of(0)), durable=True),
    ]
    uplink.open = False
    uplink.say_alive("r", ["1.0"])
    assert len(uplink.effects) == 2


def test_signs_of_life_are_due_some_seconds_after_a_session_began():
    uplink, _ = session()
    told = []
    uplink.begin(100.0)
    assert uplink.tell_alive(100.0, lambda: told.append(1)) == 100.0 + ALIVE_SECONDS
    assert told == []
    assert uplink.tell_alive(101.0 + ALIVE_SECONDS, lambda: told.append(1)) == 101.0 + 2 * ALIVE_SECONDS
    assert told == [1]


def test_a_bundle_is_held_until_all_of_it_is_acknowledged():
    uplink, effects = session()
    bundles = BundledAnswers(ask_of(), uplink)
    tasks = {f"1.{client}" for client in range(4)}
    bundles.put(answers(*range(4)))
    bundles.acknowledged(tasks)  # of a session before: the server may have got other answers to these
    assert bundles.tasks() == tasks
    number = folded(bundles, effects)
    for other in (tasks - {"1.0"}, tasks | {"1.9"}):  # as it was folded before
        bundles.acknowledged(other)
        assert bundles.tasks() == tasks
    bundles.acknowledged(tasks)
    assert bundles.tasks() == set()
    assert effects[-1] == Forget(number)
    assert not bundles.folded(Folded(number, FOLDED))


def test_a_bundle_is_said_once_in_a_session():
    uplink, effects = session()
    bundles = BundledAnswers(ask_of(), uplink)
    bundles.put(answers(*range(4)))
    assert bundles.say_again("1.0")  # it is here, and not folded yet
    assert not any(isinstance(each, SayAbove) for each in effects)
    folded(bundles, effects)
    said = effects[-1]
    assert said.message.WhichOneof("body") == "partial"
    effects.clear()
    assert bundles.say_again("1.0")
    assert effects == []
    uplink.begin(1.0)
    assert bundles.say_again("1.1")
    assert bundles.say_again("1.2")
    assert effects == [said]
    assert not bundles.say_again("1.9")


def test_a_bundle_with_what_is_not_wanted_is_undone():
    uplink, effects = session()
    bundles = BundledAnswers(ask_of(), uplink)
    bundles.put(answers(*range(4)))
    bundles.put(answers(4, 5, 6, 7))
    assert bundles.take_out(["1.5", "1.9"]) == answers(4, 5, 6, 7)
    assert effects[-1] == Forget(2)
    assert bundles.tasks() == {"1.0", "1.1", "1.2", "1.3"}
    assert bundles.take_out(["1.5"]) == []
    bundles.forget()
    assert effects[-1] == Forget(1)


def test_receipts_go_into_as_many_partials_as_messages_hold():
    uplink, effects = session()
    bundles = BundledAnswers(ask_of(), uplink)
    many = answers(*range(10))
    for each in many:
        each.result.done.receipt.metrics["x" * (RECEIPT_BYTES // 4)] = 1.0
    bundles.put(many)
    sizes = [len(each.answers) if isinstance(each, FoldAnswers) else 1 for each in effects]
    assert sum(sizes) == 10
    assert max(sizes) < 4


def test_answers_go_up_together_once_none_is_awaited():
    world = world_of(*range(5))
    world.now = 1.0
    for client in range(4):
        world.answered(result=done_of(client))
    assert not world.folds
    world.answered(result=done_of(4))
    assert [each.result.task for each in world.folds[0].answers] == ["1.0", "1.1", "1.2", "1.3", "1.4"]
    world.fold()
    (partial,) = world.said("partial")
    assert tasks_in(partial) == ["1.0", "1.1", "1.2", "1.3", "1.4"]
    assert partial.partial.inline == b"folded"
    assert world.durable == ["partial"]
    world.asked(task=task_of(0))
    assert world.said() == []  # it was said in this session
    world.put(Parted())
    world.put(Reached(CLIENTS))
    world.asked(run_spec=SPEC)
    world.asked(ask_spec=ask_of())
    for client in range(5):
        world.asked(task=task_of(client))
    assert world.said("partial") == [partial]
    world.asked(ack=m.Ack(run="r", tasks=[f"1.{client}" for client in range(5)]))
    assert world.gone == [1]
    world.told()
    world.asked(task=task_of(0))  # it was dropped above: the router has the answer
    assert world.told("task") == [task_of(0)]


def test_few_answers_go_up_as_they_came():
    world = world_of(0, 1, 2)
    for client in range(3):
        world.answered(result=done_of(client))
    world.later()
    assert world.said("result") == [done_of(client) for client in range(3)]
    assert world.durable == ["result"] * 3


def test_what_is_not_wanted_is_left_out():
    world = world_of(*range(6))
    world.now = 1.0
    for client in range(6):
        world.answered(result=done_of(client))
    world.asked(refold=m.Refold(run="r", ask=1, without=["1.5"]))  # while it is folded
    assert world.gone == [1]
    assert [each.result.client for each in world.folds[1].answers] == ["0", "1", "2", "3", "4"]
    world.put(Folded(1, m.Payload(inline=b"late"), ()))
    assert world.said() == []
    assert world.gone == [1, 1]
    world.fold()
    world.asked(cancel=m.Cancel(run="r", tasks=["1.4"]))
    world.fold()
    world.asked(refold=m.Refold(run="r", ask=1, without=["1.3"]))
    said = world.said()
    assert [tasks_in(body) for kind, body in said if kind == "partial"] == [
        ["1.0", "1.1", "1.2", "1.3", "1.4"],
        ["1.0", "1.1", "1.2", "1.3"],
    ]
    assert [body.task for kind, body in said if kind == "result"] == ["1.0", "1.1", "1.2"]


def test_answers_that_cannot_be_folded_go_up_as_they_came():
    world = world_of(*range(6))
    world.now = 1.0
    for client in range(6):
        world.answered(result=done_of(client))
    world.fold(refused=["1.2"])
    said = world.said()
    assert ("result", done_of(2)) in said
    assert tasks_in(next(body for kind, body in said if kind == "partial")) == ["1.0", "1.1", "1.3", "1.4", "1.5"]
    world = world_of(*range(4))
    world.now = 1.0
    for client in range(4):
        world.answered(result=done_of(client))
    world.fold(payload=None)
    assert len(world.said("result")) == 4
    assert world.gone == [1]


def test_signs_of_life_are_passed_on_every_few_seconds():
    world = world_of(*range(5), ask=ask_of(model=m.Payload(blob=m.Blob(sha256=b"m" * 32, size=9))))
    world.answered(result=done_of(0))
    world.now = 5.0
    world.answered(alive=m.Alive(run="r", tasks=["1.3"]))
    assert world.said("alive") == [m.Alive(run="r", tasks=["1.0", "1.3"])]  # one waits here for the others
    world.answered(alive=m.Alive(run="r", tasks=["1.4"]))
    assert world.said("alive") == []
    assert world.machine.next_tick == 10.0
    world.put(MovedAbove(b"m" * 32))  # the model is on its way
    world.later(5.0)
    assert world.said("alive") == [m.Alive(run="r", tasks=[f"1.{client}" for client in range(5)])]


def test_only_what_was_named_to_the_server_above_may_be_read():
    world = world_of(0, 1, ask=ask_of(whole=False))
    update = m.Payload(blob=m.Blob(sha256=b"u" * 32, size=99))
    assert not world.machine.may_read("r", b"u" * 32)
    world.answered(result=done_of(0, update=update))
    assert world.machine.may_read("r", b"u" * 32)
    assert not world.machine.may_read("s", b"u" * 32)
    world.asked(close_ask=m.CloseAsk(run="r", ask=1))
    assert not world.machine.may_read("r", b"u" * 32)


def test_what_is_said_of_many_clients_fits_into_frames():
    names = [f"{number}-{'x' * 245}" for number in range(17_500)]
    world = World(clients=frozenset(names))
    world.put(Reached(frozenset()))
    world.asked(run_spec=SPEC)
    world.answered(members=m.Members(run="r", members=[m.Member(client=c, standing=READY) for c in names]))
    world.asked(ask_spec=ask_of())
    for name in names:
        world.asked(task=task_of(name))
    world.put(Parted())
    world.put(Reached(frozenset(names)))
    world.asked(run_spec=SPEC)
    refused = [m.Member(client=c, standing=REFUSED, reason="no") for c in names]
    world.answered(members=m.Members(run="r", members=refused))
    sizes = [m.Message(**{kind: body}).ByteSize() for kind, body in world.up]
    assert max(sizes) < 4 << 20
    answers = [body for kind, body in world.up if kind == "run_answer"]
    for ready in (True, False):
        assert sorted(c for body in answers if body.ready == ready for c in body.clients) == sorted(names)
    alive = [task for kind, body in world.up if kind == "alive" for task in body.tasks]
    assert sorted(alive) == sorted(f"1.{name}" for name in names)
