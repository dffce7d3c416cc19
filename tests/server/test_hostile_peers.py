"""Whatever a peer says to a router, and a router passes on: nobody dies of it, and whoever is honest goes on."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.mutations import mutated
from tests.server.routing import KEY, SPEC, ask_of, asked, blob_of, done_of, failed_of, partial_of, task_of, two_nodes

from umbel.node.machine import NodeMachine
from umbel.node.signals import HostReady, Prepare, ServerSaid, SessionBegun
from umbel.node.spool import Spool
from umbel.server.signals import Drop, Received, Say
from umbel.wire import messages as m

BLOB = m.Payload(blob=blob_of("m"))
FROM_RUN = [
    m.Message(run_spec=SPEC),
    m.Message(run_spec=m.RunSpec(run="r", archive=BLOB, clients=["0", "1"], config='{"lr": 1}')),
    m.Message(ask_spec=ask_of(1, model=BLOB, shared=m.Payload(inline=b"tree"), cohort=2)),
    m.Message(ask_spec=ask_of(0)),
    m.Message(task=task_of("0", own=BLOB)),
    m.Message(task=task_of("1", attempt=2)),
    m.Message(task=task_of("0", ask=1)),
    m.Message(cancel=m.Cancel(run="r", tasks=["0.0", "0.1"])),
    m.Message(close_ask=m.CloseAsk(run="r", ask=1)),
    m.Message(refold=m.Refold(run="r", ask=0, without=["0.0"])),
    m.Message(log_event=m.LogEvent(run="r", number=1, event="{}")),
]
FROM_NODE = [
    m.Message(run_answer=m.RunAnswer(run="r", ready=True)),
    m.Message(run_answer=m.RunAnswer(run="r", reason="no", clients=["0"])),
    m.Message(result=done_of("0")),
    m.Message(result=done_of("1", update=BLOB)),
    m.Message(result=failed_of("0")),
    m.Message(partial=partial_of("0", "1")),
    m.Message(alive=m.Alive(run="r", tasks=["0.0", "0.1"])),
    m.Message(hosted=m.Hosted(clients=["0", "1"])),
]
BOUNDED = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def goes_on(world, peer="b1"):
    """The honest node is asked, by an honest run, and its answer is acknowledged."""
    world.tell(Received(peer, m.Message(alive=m.Alive(run="r"))))
    assert not [effect for effect in world.effects if isinstance(effect, Drop) and effect.peer == peer]
    for ask, task in world.router.ledger.runs["r"].tasks() if "r" in world.router.ledger.runs else ():
        if task.node == "b" and task.answer is None and task.message.client == "2":
            result = done_of("2", ask=ask.spec.ask, attempt=task.message.attempt)
            world.tell(Received(peer, m.Message(result=result)))
            assert world.said(peer, "ack")


@BOUNDED
@given(st.lists(mutated(st.sampled_from(FROM_NODE)), min_size=1, max_size=4))
def test_nothing_that_a_node_says_harms_the_others(messages):
    world = two_nodes()
    asked(world, "0", "1", "2", model=BLOB)
    for message in messages:
        world.tell(Received("a1", message))
        for effect in world.effects:
            assert not isinstance(effect, Drop) or effect.peer == "a1"
            assert not isinstance(effect, Drop) or effect.code != m.CODE_INTERNAL, effect.text
    goes_on(world)
    world.start()
    world.run(2)
    world.node("b", "2", number=2)
    goes_on(world, "b2")


class Nodes:
    """The real machines of both nodes, which take whatever the router says to them."""

    def __init__(self):
        self.machines = {f"{name}1": NodeMachine(Spool(), clients) for name, clients in (("a", "01"), ("b", "2"))}
        for machine in self.machines.values():
            machine.handle(SessionBegun(m.Welcome()), 0.0)
        self.started = 0

    def take(self, effects):
        """Hear what the router says. An error would end the node's connection, and the next one, for ever."""
        for effect in effects:
            if isinstance(effect, Say) and effect.peer in self.machines:
                self._hear(
                    self.machines[effect.peer], ServerSaid(m.Message.FromString(effect.message.SerializeToString()))
                )

    def _hear(self, machine, event):
        for effect in machine.handle(event, 0.0):
            if isinstance(effect, Prepare):
                self._hear(machine, HostReady(effect.run, frozenset({"train"}), frozenset({("clip_by_norm", 1)})))
            self.started += type(effect).__name__ == "Start"


@BOUNDED
@given(st.lists(mutated(st.sampled_from(FROM_RUN)) | st.sampled_from(FROM_RUN), min_size=1, max_size=5))
def test_nothing_that_a_run_says_harms_its_nodes(messages):
    world, nodes = two_nodes(), Nodes()
    for peer in nodes.machines:  # as they were told when they connected
        nodes.take(
            [Say(peer, m.Message(run_spec=SPEC)), Say(peer, m.Message(run_spec=m.RunSpec(run="q", clients=["2"])))]
        )
    for message in messages:
        nodes.take(world.tell(Received("r1", message)))
        for effect in world.effects:
            assert not isinstance(effect, Drop) or effect.peer == "r1"
            assert not isinstance(effect, Drop) or effect.code != m.CODE_INTERNAL, effect.text
    before = nodes.started
    honest = m.AskSpec(run="q", ask=0, kind="train", digest=b"d", transforms="[]")
    work = m.Task(run="q", task="0.2", ask=0, client="2", attempt=1, key=KEY, data_key=KEY)
    machine = nodes.machines["b1"]
    for body in ({"ask_spec": honest}, {"task": work}):
        nodes._hear(machine, ServerSaid(m.Message(**body)))
    waits = [task for run in machine._runs.values() if run.id != "q" for task in run._busy]
    assert nodes.started == before + 1 or waits, "an honest run's task starts, or waits for the only slot"
