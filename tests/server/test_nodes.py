"""Which node hosts a client, and what waits for it."""

from __future__ import annotations

import pytest
from tests.server.routing import (
    World,
    ask_of,
    asked,
    done_of,
    task_of,
    two_nodes,
)

from umbel.server.claims import Bounds, Claims
from umbel.server.ledger import TaskEntry
from umbel.server.nodes import Nodes
from umbel.server.router import Router
from umbel.server.signals import Bounded, Connected, Lost, Outbox, Released, Revoked
from umbel.store.records import MemoryStore
from umbel.wire import messages as m


@pytest.fixture
def world():
    return two_nodes()


def test_a_name_that_another_node_uses_is_refused_and_the_rest_of_its_clients_are_taken(world):
    world.node("b", "2", "0", number=2)
    (notice,) = world.said("b2", "notice")
    assert "client 0 is refused: the name is another node's" in notice.text
    assert "umbel nodes release" in notice.text
    assert world.router.nodes.refused("b") == {"0": "bound to node a"}
    assert world.router.nodes.refused("a") == {}
    asked(world, "0")
    assert world.said("a1", "task")
    assert world.said("b2") == []
    world.say("b2", hosted=m.Hosted(clients=["2", "0", "1"]))
    assert "clients 0, 1 are refused" in world.said("b2", "notice")[0].text
    assert world.router.nodes.clients() == {"0", "1", "2"}


def test_a_name_stays_its_nodes_own_when_that_names_it_no_more_and_when_it_is_revoked(world):
    world.say("a1", hosted=m.Hosted(clients=["1"]))
    world.node("b", "2", "0", "1", number=2)
    assert "clients 0, 1 are refused" in world.said("b2", "notice")[0].text
    world.tell(Revoked("a"))
    assert world.said("b2") == []
    world.node("b", "2", "0", "1", number=3)
    assert "clients 0, 1 are refused" in world.said("b3", "notice")[0].text
    assert world.router.nodes.by_client == {"2": "b"}
    world.store.put("nodes", {"id": "a", "status": "revoked"})
    world.store.commit()
    assert world.store.rows("nodes", id="b")[0]["clients"] == ["2"]
    again = Router(world.store, lambda sha: True)
    again.handle(Connected("b4", "node", "b", "node b", ("0", "1", "2")), 1.0)
    assert again.nodes.by_client == {"2": "b"}, "a server that starts again knows whose names are"


def test_a_name_that_was_released_goes_to_the_node_that_named_it_too(world):
    world.node("b", "2", "0", "1", number=2)
    world.tell(Revoked("a"))
    world.router.nodes.claims.release("0")
    world.tell(Released(("0",)))
    assert [spec.run for spec in world.said("b2", "run_spec")] == ["r"]
    assert "client 0 is hosted here now" in world.said("b2", "notice")[0].text
    assert world.router.nodes.refused("b") == {"1": "bound to a"}
    world.store.commit()
    assert world.store.rows("nodes", id="b")[0]["clients"] == ["2", "0"]


def test_a_name_that_was_released_is_hosted_no_more_by_a_node_that_is_away(world):
    world.tell(Lost("a1"))
    world.router.nodes.claims.release("0")
    world.tell(Released(("0",)))
    assert world.router.nodes.by_client == {"1": "a", "2": "b"}
    world.store.commit()
    assert world.store.rows("nodes", id="a")[0]["clients"] == ["1"]


def test_a_node_whose_bounds_were_narrowed_loses_what_is_outside(world):
    world.router.nodes.claims.bound("a", Bounds(("1",)))
    world.tell(Bounded("a"))
    assert "client 0 is refused: this node was let in for clients 1" in world.said("a1", "notice")[0].text
    assert world.router.nodes.by_client == {"1": "a", "2": "b"}
    world.router.nodes.claims.bound("a", Bounds())
    world.tell(Bounded("a"))
    assert world.router.nodes.by_client == {"0": "a", "1": "a", "2": "b"}


def test_a_client_is_named_once(world):
    world.say("a1", hosted=m.Hosted(clients=["7", "7"]))
    world.store.commit()
    assert world.store.rows("nodes", id="a")[0]["clients"] == ["7"]


def test_clients_come_and_go(world):
    world.say("a1", hosted=m.Hosted(clients=["1", "3"]))
    assert world.standings() == {
        "0": (m.STANDING_OFFLINE, ""),
        "1": (m.STANDING_PREPARING, ""),
        "3": (m.STANDING_PREPARING, ""),
    }
    world.store.commit()
    assert world.store.rows("nodes", id="a")[0]["clients"] == ["1", "3"]


def test_tasks_wait_for_their_node():
    world = World()
    world.node("a", "0")
    world.tell(Lost("a1"))
    world.run()
    asked(world, "0")
    assert world.effects == []
    world.node("a", "0", number=2)
    assert [kind for kind, _ in world.said("a2")] == ["run_spec"]
    world.ready("a2")
    assert world.said("a2") == [("ask_spec", ask_of()), ("task", task_of("0"))]


def test_a_new_session_is_told_of_asks_anew_and_only_of_tasks_without_an_answer(world):
    asked(world, "0", "1")
    world.say("a1", result=done_of("0"))
    world.node("a", "0", "1", number=2)
    world.ready("a2")
    assert world.said("a2") == [("ask_spec", ask_of()), ("task", task_of("1"))]


def test_what_a_node_says_is_its_problem_is_known_while_it_is_there():
    world = World()
    assert world.router.nodes.problem("a") == world.router.nodes.problem("nobody") == ""
    world.node("a", "0")
    world.say("a1", notice=m.Notice(text="no room" * 1000))
    assert world.router.nodes.problem("a") == ("no room" * 1000)[:1000]
    world.tell(Lost("a1"))
    assert world.router.nodes.problem("a") == ""
    world.node("a", "0", number=2)
    assert world.router.nodes.problem("a") == ""
    world.say("a2", notice=m.Notice(text="no room"))
    world.say("a2", notice=m.Notice())
    assert world.router.nodes.problem("a") == ""


def test_a_mailbox_has_an_end():
    world = World(mailbox=2)
    world.node("a", *"0123")
    world.run()
    asked(world, *"012")
    (result,) = world.said("r1", "result")
    assert result.task == "0.2"
    assert "the mailbox of node node a is full: 2 tasks" in result.failure.reason
    world.ready("a1")
    assert len(world.said("a1", "task")) == 2
    world.say("a1", result=done_of("0"))
    world.say("r1", task=task_of("3"))
    assert world.said("r1") == []
    assert world.said("a1", "task")
    world.say("r1", cancel=m.Cancel(run="r", tasks=["0.1", "0.3"]))
    world.say("r1", ask_spec=ask_of(1))
    for client in "01":
        world.say("r1", task=task_of(client, ask=1))
        assert world.said("a1", "task")
    world.say("r1", task=task_of("2", ask=1))
    assert world.said("r1", "result")


@pytest.fixture
def alone():
    """Three approved nodes, a known to host client 0 of old, without a router; those that came to more clients."""
    store = MemoryStore()
    for name, clients in (("a", ["0"]), ("b", None), ("c", None)):
        store.put("nodes", {"id": name, "name": f"node {name}", "status": "approved", "clients": clients})
    store.put("nodes", {"id": "d", "name": "node d", "status": "pending", "clients": ["9"]})
    store.commit()
    heirs = []
    return Nodes(store, Outbox(), lambda node: heirs.append(node.id), Claims(store)), heirs


def test_a_released_client_passes_to_the_first_that_named_it_and_nobody_else_is_told(alone):
    nodes, heirs = alone
    assert nodes.by_client == {"0": "a"}
    for name in ("b", "c"):
        nodes.host(nodes.by_id[name], ["0", name])
        assert nodes.refused(name) == {"0": "bound to node a"}
    nodes.host(nodes.by_id["a"], [])
    assert heirs == []
    nodes.claims.release("0")
    nodes.let_go(["0"])
    assert heirs == ["b"]
    assert nodes.by_client == {"0": "b", "b": "b", "c": "c"}
    nodes.remove("b")
    assert nodes.clients() == {"c"}
    assert nodes.remove("b") is None


def test_a_task_waits_once_and_not_when_it_is_answered_and_not_for_a_node_that_is_gone(alone):
    nodes, _ = alone
    task, answered, lost = TaskEntry(task_of("0"), "a"), TaskEntry(task_of("1"), "a", "1"), TaskEntry(task_of("2"), "d")
    for each in (task, task, answered, lost):
        nodes.wait(each)
    assert nodes.by_id["a"].waiting == 1
    assert [each.waiting for each in (task, answered, lost)] == [True, False, False]
    nodes.settle(task)
    nodes.settle(task)
    assert nodes.by_id["a"].waiting == 0
