"""The router's rules, one by one, over a store in memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.effort import lines
from tests.server.routing import (
    KEY,
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

from umbel.server.signals import Connected, Drop, Lost, Received, Revoked, Tell
from umbel.wire import messages as m
from umbel.wire.blobs import Fetched, NotFetched, node_giver, run_giver


@pytest.fixture
def world():
    return two_nodes()


def test_the_newest_connection_wins(world):
    world.node("a", "0", number=2)
    assert [(drop.peer, drop.code) for drop in world.of(Drop)] == [("a1", m.CODE_SUPERSEDED)]
    assert world.standings() == {"0": (m.STANDING_PREPARING, ""), "1": (m.STANDING_OFFLINE, "")}
    assert world.ready("a1") == []
    assert world.tell(Lost("a1")) == []
    assert world.router.nodes.online("a")
    world.tell(Connected("r2", "run", "r", "ann"))
    assert [drop.peer for drop in world.of(Drop)] == ["r1"]
    assert world.say("r1", task=task_of("0")) == []
    world.tell(Lost("r1"))
    assert world.router.ledger.connected("r")


def test_a_revoked_node_is_out(world):
    asked(world, "0", "2", model=m.Payload(blob=blob_of("m")))
    assert world.router.may_read("a1", "r", b"m" * 32)
    world.tell(Revoked("a"))
    assert [(drop.peer, drop.code) for drop in world.of(Drop)] == [("a1", m.CODE_REVOKED)]
    assert world.standings() == {
        "0": (m.STANDING_REFUSED, "its node was revoked"),
        "1": (m.STANDING_REFUSED, "its node was revoked"),
    }
    (result,) = world.said("r1", "result")
    assert (result.task, result.failure.reason, result.failure.retry) == ("0.0", "its node was revoked", False)
    assert not world.router.may_read("a1", "r", b"m" * 32)
    assert world.say("a1", result=done_of("0")) == []
    world.say("r1", task=task_of("1"))
    assert world.said("r1", "result")[0].failure.reason.startswith("client 1 cannot take part: ")


def test_events_are_stored_in_order_and_acknowledged(world):
    told, acknowledged = [], []
    for number in (1, 2, 2, 4):
        world.say("r1", log_event=m.LogEvent(run="r", number=number, event=f'{{"event": "e", "n": {number}}}'))
        assert world.durable("log_ack")
        told += [tell.number for tell in world.of(Tell)]
        acknowledged += [ack.number for ack in world.said("r1", "log_ack")]
    assert told == [1, 2]
    assert acknowledged == [1, 2, 2, 2]
    world.store.commit()
    bodies = [row["body"] for row in world.store.rows("events", run="r")]
    assert bodies == ['{"event": "e", "n": 1}', '{"event": "e", "n": 2}']


def test_events_without_a_number_are_only_watched(world):
    world.say("r1", log_event=m.LogEvent(run="r", event='{"event": "now"}'))
    assert world.effects == [Tell("r", 0, '{"event": "now"}')]


def test_a_run_that_connects_learns_how_far_its_log_is(world):
    world.say("r1", log_event=m.LogEvent(run="r", number=1, event='{"event":"e"}'))
    world.run(2, spec=None)
    assert world.said("r2") == [("log_ack", m.LogAck(run="r", number=1))]
    assert world.durable("log_ack")


def test_a_node_may_read_what_its_own_clients_are_asked_with(world):
    world.say("r1", run_spec=m.RunSpec(run="r", archive=m.Payload(blob=blob_of("z"))))
    world.say("r1", ask_spec=ask_of(model=m.Payload(blob=blob_of("m"))))
    world.say("r1", task=task_of("0", own=m.Payload(blob=blob_of("o"))))
    world.node("c", "5")

    def readers(letter, run="r"):
        return [peer for peer in ("a1", "b1", "c1", "r1", "q1") if world.router.may_read(peer, run, letter * 32)]

    world.tell(Connected("q1", "run", "q", "eve"))
    assert readers(b"z") == ["a1", "b1", "c1"]
    assert readers(b"m") == ["a1"]
    assert readers(b"o") == ["a1"]
    assert readers(b"x") == []
    assert readers(b"m", "q") == []
    world.say("r1", run_spec=m.RunSpec(run="r", archive=m.Payload(blob=blob_of("z")), clients=["0", "2"]))
    assert readers(b"z") == ["a1", "b1"]


def test_a_run_may_read_what_it_was_answered_with_until_its_ask_is_over(world):
    world.tell(Connected("q1", "run", "q", "eve"))
    asked(world, "0")
    sha = b"u" * 32

    def readers():
        return [peer for peer in ("a1", "r1", "q1") for run in "rq" if world.router.may_read(peer, run, sha)]

    world.say("a1", result=done_of("0", update=m.Payload(blob=blob_of("u"))))
    assert readers() == []
    world.blobs.add(sha)
    world.fetched(sha)
    assert readers() == ["r1"]
    world.start()
    world.node("a", "0", "1", number=2)
    world.run(2)
    assert world.router.may_read("r2", "r", sha), "also after a restart"
    world.say("r2", close_ask=m.CloseAsk(run="r", ask=0))
    assert not world.router.may_read("r2", "r", sha)


# What may not be said


@pytest.mark.parametrize(
    ("peer", "body"),
    [
        ("a1", {"task": task_of("0")}),
        ("a1", {"close_run": m.CloseRun(run="r")}),
        ("r1", {"result": done_of("0")}),
        ("r1", {"hosted": m.Hosted()}),
        ("r1", {"cancel": m.Cancel(run="other")}),
        ("r1", {"request": m.Request()}),
    ],
)
def test_who_says_what_is_not_its_own_is_dropped(world, peer, body):
    world.say(peer, **body)
    ((drop),) = world.effects
    assert (drop.peer, drop.code) == (peer, m.CODE_NOT_ALLOWED)


@pytest.mark.parametrize(
    ("peer", "body"),
    [
        ("r1", {"ask_spec": ask_of(2**63)}),
        ("r1", {"close_ask": m.CloseAsk(run="r", ask=2**64 - 1)}),
        ("r1", {"refold": m.Refold(run="r", ask=2**63)}),
        ("r1", {"log_event": m.LogEvent(run="r", number=2**63)}),
        ("r1", {"task": task_of("0", ask=2**63)}),
        ("a1", {"result": done_of("0", ask=2**63)}),
        ("a1", {"partial": partial_of("0", ask=2**63)}),
        ("r1", {"task": m.Task(run="r", task="0.1", client="0", attempt=1, key=KEY, data_key=KEY)}),
        ("r1", {"task": task_of("0", attempt=0)}),
        ("r1", {"task": m.Task(run="r", task="0.0", client="0", attempt=1, key=b"short", data_key=KEY)}),
        ("r1", {"ask_spec": ask_of(kind="")}),
        ("r1", {"ask_spec": ask_of(digest=b"")}),
        ("a1", {"result": m.Result(run="r", task="0.0", client="0", attempt=1)}),
        ("a1", {"result": m.Result(run="r", task="0.0", client="0", attempt=1, done=m.Done())}),
        ("a1", {"partial": partial_of()}),
        ("a1", {"partial": partial_of("0", "0")}),
        ("a1", {"partial": m.Partial(run="r", receipts=[m.Receipt(task="0.0")])}),
        ("a1", {}),
    ],
)
def test_what_lacks_something_or_is_out_of_range_is_malformed(world, peer, body):
    world.say("r1", ask_spec=ask_of())
    world.say(peer, **body)
    ((drop),) = world.effects
    assert (drop.peer, drop.code) == (peer, m.CODE_MALFORMED)


def test_a_peer_that_nobody_knows_is_not_heard(world):
    assert world.say("who", result=done_of("0")) == []
    assert world.tell(Lost("who")) == []
    assert world.tell(Revoked("who")) == []


# Anything

CLIENTS = st.sampled_from(["0", "1", "2", "9"])
ASKS = st.sampled_from([0, 1, 2, 2**63])
IDS = st.builds(lambda ask, client: f"{ask}.{client}", ASKS, CLIENTS)
RUNS = st.sampled_from(["r", "r", "r", "q"])
UPDATES = st.sampled_from([m.Payload(inline=b"u"), m.Payload(blob=blob_of("u")), m.Payload(blob=blob_of("v")), None])
DONE = st.builds(lambda update: m.Done(receipt=m.Receipt(), update=update), UPDATES)
NUMBERS = st.integers(0, 3)
EVENT = st.sampled_from(["{}", "{"])
BODIES = st.one_of(
    st.builds(lambda **k: {"run_spec": m.RunSpec(**k)}, run=RUNS, clients=st.lists(CLIENTS, max_size=2)),
    st.builds(
        lambda model, **k: {"ask_spec": ask_of(model=model, **k)},
        id=ASKS, model=UPDATES, digest=st.sampled_from([b"1", b"2"]),
    ),
    st.builds(lambda **k: {"task": task_of(**k)}, client=CLIENTS, ask=ASKS, attempt=NUMBERS, own=UPDATES),
    st.builds(lambda **k: {"cancel": m.Cancel(**k)}, run=RUNS, tasks=st.lists(IDS | st.text(max_size=3), max_size=3)),
    st.builds(lambda **k: {"close_ask": m.CloseAsk(**k)}, run=RUNS, ask=ASKS),
    st.builds(lambda **k: {"close_run": m.CloseRun(**k)}, run=RUNS, status=st.sampled_from(["finished", "?"])),
    st.builds(lambda **k: {"refold": m.Refold(**k)}, run=RUNS, ask=ASKS, without=st.lists(IDS, max_size=3)),
    st.builds(lambda **k: {"log_event": m.LogEvent(**k)}, run=RUNS, number=NUMBERS | st.just(2**63), event=EVENT),
    st.builds(
        lambda **k: {"run_answer": m.RunAnswer(**k)},
        run=RUNS, ready=st.booleans(), reason=st.text(), clients=st.lists(CLIENTS, max_size=2),
    ),
    st.builds(
        lambda ask, client, **k: {"result": m.Result(task=f"{ask}.{client}", ask=ask, client=client, **k)},
        run=RUNS, ask=ASKS, client=CLIENTS, attempt=NUMBERS, done=DONE,
    ),
    st.builds(lambda **k: {"result": failed_of(**k)}, client=CLIENTS, ask=ASKS, attempt=NUMBERS, reason=st.text()),
    st.builds(
        lambda clients, ask, partial: {"partial": partial_of(*clients, ask=ask, partial=partial)},
        clients=st.lists(CLIENTS, max_size=3), ask=ASKS, partial=UPDATES,
    ),
    st.builds(lambda **k: {"alive": m.Alive(**k)}, run=RUNS, tasks=st.lists(IDS, max_size=3)),
    st.builds(lambda **k: {"hosted": m.Hosted(**k)}, clients=st.lists(CLIENTS, max_size=3)),
    st.just({}),
)  # fmt: skip
PEERS = st.sampled_from(["a1", "b1", "r1", "q1"])
GIVERS = st.sampled_from([node_giver("a"), node_giver("b"), run_giver("r")])
EVENTS = st.one_of(
    st.builds(lambda peer, body: Received(peer, m.Message(**body)), PEERS, BODIES),
    st.builds(lambda peer, body: Received(peer, m.Message(**body)), PEERS, BODIES),
    st.builds(Lost, PEERS),
    st.builds(
        lambda name, clients: Connected(f"{name}1", "node", name, name, tuple(clients)),
        st.sampled_from("ab"), st.lists(CLIENTS, max_size=3),
    ),
    st.builds(lambda name: Connected(f"{name}1", "run", name, "ann"), st.sampled_from("rq")),
    st.builds(lambda sha, giver: Fetched("r", sha * 32, giver), st.sampled_from([b"u", b"v"]), GIVERS),
    st.builds(lambda sha, giver: NotFetched("r", sha * 32, "gone", giver), st.sampled_from([b"u", b"v"]), GIVERS),
    st.builds(Revoked, st.sampled_from("ab")),
    st.just("start again"),
)  # fmt: skip


@given(st.lists(EVENTS, max_size=40))
def test_whatever_is_said_is_answered_by_effects(events):
    world = World(mailbox=2)
    world.node("a", "0", "1")
    world.run()
    world.ready("a1")
    world.say("r1", ask_spec=ask_of())
    for event in events:
        if event == "start again":
            world.start()
            continue
        if isinstance(event, Fetched):
            world.blobs.add((event.sha, event.giver))
        assert isinstance(world.tell(event), list)
        waiting = sum(node.waiting for node in world.router.nodes.by_id.values())
        assert waiting == sum(map(world.router.ledger.waiting, ("r", "q")))
    world.start()
    list(world.router.ledger.held())


class Counted(tuple):
    """Counts how often all of it was gone through."""

    passes = 0

    def __iter__(self):
        Counted.passes += 1
        return super().__iter__()


def test_a_sign_of_life_and_a_wish_cost_nothing_for_each_name_or_task(monkeypatch):
    world = World()
    world.node("a", *(str(number) for number in range(300)))
    world.run(spec=m.RunSpec(run="r", archive=m.Payload(inline=b"x"), clients=[str(number) for number in range(300)]))
    world.ready("a1")
    asked(world, *(str(number) for number in range(300)))
    node = world.router.nodes.by_id["a"]
    node.clients = Counted(node.clients)
    world.say("a1", alive=m.Alive(run="r", tasks=["0.0"]))
    tasks = world.router.ledger.runs["r"].asks[0].tasks
    monkeypatch.setattr(world.router.ledger.runs["r"].asks[0], "tasks", Watched(tasks))
    for _ in range(50):
        world.say("a1", alive=m.Alive(run="r", tasks=["0.0"]))
        assert world.said("r1", "alive")
        assert not world.router.may_read("a1", "r", b"z" * 32)
    assert Counted.passes == 1
    assert Watched.passes == 0


class Watched(dict):
    """Counts how often all of it was gone through."""

    passes = 0

    def values(self):
        Watched.passes += 1
        return super().values()

    __iter__ = items = values


def test_a_node_that_names_the_same_again_or_other_clients_costs_what_has_changed():
    world = World()
    names = [str(number) for number in range(200)]
    world.node("a", *names)
    world.node("b", *names, "b")
    world.run()
    put = []
    inner = world.store.put
    world.store.put = lambda table, row: put.append((table, row)) or inner(table, row)
    world.say("a1", hosted=m.Hosted(clients=names))
    assert put == []
    assert not world.said("r1", "members")
    world.say("a1", hosted=m.Hosted(clients=names[1:]))
    assert set(world.standings()) == {"0"}
    assert world.standings()["0"][0] == m.STANDING_OFFLINE
    assert world.router.nodes.refused("b").keys() == set(names)  # the first of them, too, stays the other one's
    world.say("b1", hosted=m.Hosted(clients=["b"]))
    assert world.router.nodes._refused == {}


def test_tasks_are_known_by_node_for_as_long_as_they_are_there():
    world = two_nodes()
    own = m.Payload(blob=blob_of("o"))
    world.say("r1", ask_spec=ask_of())
    for client in ("0", "1", "2"):
        world.say("r1", task=task_of(client, own=own))
    ask = world.router.ledger.runs["r"].asks[0]
    assert {node: set(tasks) for node, tasks in ask.theirs.items()} == {"a": {"0.0", "0.1"}, "b": {"0.2"}}
    assert world.router.may_read("a1", "r", b"o" * 32)
    world.say("r1", cancel=m.Cancel(run="r", tasks=["0.0"]))
    assert world.router.may_read("a1", "r", b"o" * 32)
    world.say("r1", cancel=m.Cancel(run="r", tasks=["0.1"]))
    assert not world.router.may_read("a1", "r", b"o" * 32)
    assert world.router.may_read("b1", "r", b"o" * 32)
    assert set(ask.theirs) == {"b"}
    world.start()
    assert set(world.router.ledger.runs["r"].asks[0].theirs) == {"b"}


def test_what_comes_of_one_task_looks_at_no_other():
    def effort(count):
        world = World()
        world.node("a", *map(str, range(count + 1)))
        world.run()
        world.ready("a1")
        world.say("r1", ask_spec=ask_of())
        for client in range(count):
            world.say("r1", task=task_of(str(client)))
        asked = lines(lambda: world.say("r1", task=task_of(str(count))))
        return [asked, lines(lambda: world.say("a1", result=done_of("7")))]

    few, many = effort(20), effort(300)
    assert all(b <= 1.2 * a for a, b in zip(few, many, strict=True)), (few, many)
