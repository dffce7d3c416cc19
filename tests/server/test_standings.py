"""Who takes part in a run, and what it learns of that."""

from __future__ import annotations

import pytest
from tests.server.routing import (
    SPEC,
    World,
    asked,
    task_of,
    two_nodes,
)

from umbel.server.claims import Claims
from umbel.server.ledger import NodeEntry, RunEntry
from umbel.server.nodes import Nodes
from umbel.server.signals import Lost, Outbox
from umbel.server.standings import MEMBERS, Standings
from umbel.store.records import MemoryStore
from umbel.wire import messages as m


@pytest.fixture
def world():
    return two_nodes()


def test_a_run_learns_who_takes_part():
    world = World()
    world.node("a", "0", "1")
    world.run()
    assert world.standings() == {"0": (m.STANDING_PREPARING, ""), "1": (m.STANDING_PREPARING, "")}
    (member, _) = world.said("r1", "members")[0].members
    assert member.node == "node a"
    assert world.said("a1", "run_spec") == [SPEC]
    assert world.durable("run_spec")
    world.ready("a1", clients=["0"])
    assert world.standings() == {"0": (m.STANDING_READY, "")}
    world.say("a1", run_answer=m.RunAnswer(run="r", reason="no data", clients=["1"]))
    assert world.standings() == {"1": (m.STANDING_REFUSED, "no data")}
    world.tell(Lost("a1"))
    assert world.standings() == {"0": (m.STANDING_OFFLINE, ""), "1": (m.STANDING_OFFLINE, "")}


def test_nodes_that_come_later_are_invited():
    world = World()
    world.run()
    world.node("a", "0")
    assert world.said("a1", "run_spec") == [SPEC]
    assert world.standings() == {"0": (m.STANDING_PREPARING, "")}


def test_a_run_concerns_the_clients_that_it_wants():
    world = World()
    world.node("a", "0")
    world.node("b", "2")
    world.run(spec=m.RunSpec(run="r", clients=["2"]))
    assert world.said("a1") == []
    assert world.said("b1", "run_spec")
    assert set(world.standings()) == {"2"}
    assert world.ready("a1") == []


def test_a_spec_that_differs_is_sent_again_and_the_same_is_not(world):
    world.say("r1", run_spec=SPEC)
    assert world.said("a1") == []
    assert world.standings()["0"] == (m.STANDING_READY, "")
    changed = m.RunSpec(run="r", config='{"lr": 2}', owner="ann")
    world.say("r1", run_spec=m.RunSpec(run="r", config='{"lr": 2}', owner="who it likes"))
    assert world.said("a1", "run_spec") == [changed], "the server says whose it is"
    assert world.standings()["0"] == (m.STANDING_PREPARING, "")


def test_long_lists_of_members_come_in_parts():
    world = World()
    world.run()
    world.node("a", *map(str, range(2 * MEMBERS + 1)))
    assert [len(body.members) for body in world.said("r1", "members")] == [MEMBERS, MEMBERS, 1]


def test_so_do_members_whose_reasons_are_long():
    world = World()
    world.run()
    world.node("a", *map(str, range(MEMBERS)))
    world.said("r1", "members")
    world.say("a1", run_answer=m.RunAnswer(run="r", reason="\U0001f4c8" * 2000))
    found = world.said("r1", "members")
    assert max(body.ByteSize() for body in found) <= 2 << 20
    assert sum(len(body.members) for body in found) == MEMBERS


def test_a_client_that_refused_and_left_has_refused_still(world):
    world.say("b1", run_answer=m.RunAnswer(run="r", reason="no data"))
    world.say("b1", hosted=m.Hosted())
    assert world.said("r1") == []
    assert world.router.ledger.standings("r")["2"] == (m.STANDING_REFUSED, "no data")


def test_a_refusal_ends_the_tasks_that_wait(world):
    asked(world, "2")
    world.say("b1", run_answer=m.RunAnswer(run="r", reason="changed my mind"))
    assert world.said("r1", "result")[0].failure.reason == "client 2 cannot take part: changed my mind"
    assert world.router.ledger.waiting("r") == 0


def test_a_host_that_died_and_is_tried_again_is_no_refusal(world):
    asked(world, "0")
    world.say("a1", run_answer=m.RunAnswer(run="r", retry=True, reason="killed"))
    assert world.standings() == {"0": (m.STANDING_PREPARING, "killed"), "1": (m.STANDING_PREPARING, "killed")}
    assert not world.said("r1", "result")
    world.say("r1", task=task_of("1"))
    assert world.said("a1") == world.said("r1") == []
    world.ready("a1")
    assert [body.task for body in world.said("a1", "task")] == ["0.0", "0.1"]


def test_clients_are_those_that_are_hosted_and_wanted_and_changes_are_told_to_who_is_there():
    store, out = MemoryStore(), Outbox()
    for name, clients in (("a", ["0", "1"]), ("b", ["2"])):
        store.put("nodes", {"id": name, "name": name, "status": "approved", "clients": clients})
    store.commit()
    nodes = Nodes(store, out, lambda node: None, Claims(store))
    standings, (a, b), nobody = Standings(nodes, out), nodes.by_id.values(), NodeEntry("c", "c")
    run = RunEntry("r")
    assert standings.clients(run) == []
    assert not standings.involves(run, a)
    run.spec = m.RunSpec(run="r")
    assert [standings.involves(run, node) for node in (a, b, nobody)] == [True, True, False]
    run.spec = m.RunSpec(run="r", clients=["0", "9"])
    assert [standings.involves(run, node) for node in (a, b, nobody)] == [True, False, False]
    run.spec = m.RunSpec(run="r", clients=["1", "2", "9"])
    assert (standings.clients(run), standings.clients(run, "a"), standings.clients(run, "z")) == (["1", "2"], ["1"], [])
    standings.stand(run, ["1"], m.STANDING_READY)
    assert (run.standings, out.effects) == ({"1": (m.STANDING_READY, "")}, [])
    run.peer = "r1"
    standings.stand(run, ["1"], m.STANDING_READY)
    assert out.effects == [], "nothing has changed"
    standings.stand(run, ["2"], m.STANDING_REFUSED, "no")
    (said,) = out.effects
    assert [(each.client, each.node, each.reason) for each in said.message.members.members] == [("2", "b", "no")]
