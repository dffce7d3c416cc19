"""Whatever a server says to a node or a relay: the session ends with a reason at the most, and other runs go on."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.mutations import mutated
from tests.node.bench import Bench, payload, refused, said, started

from umbel.errors import ProtocolError
from umbel.node.holdings import OwedAnswers
from umbel.node.hosted import HostedRun
from umbel.node.signals import HostReady, ServerSaid, SessionBegun
from umbel.server.relaying import Relaying
from umbel.server.signals import Asked, Reached
from umbel.store.records import MemoryStore
from umbel.wire import messages as m

ASK = m.AskSpec(run="r", ask=1, kind="train", digest=b"d", transforms="[]", model=payload("w"))
TASK = m.Task(run="r", task="1.a", ask=1, client="a", attempt=1, key=bytes(32), data_key=bytes(32))
ORDERS = [
    m.Message(run_spec=m.RunSpec(run="r", contract="{}", config="{}")),
    m.Message(run_spec=m.RunSpec(run="s", archive=payload("z"))),
    m.Message(ask_spec=ASK),
    m.Message(task=TASK),
    m.Message(cancel=m.Cancel(run="r", tasks=["1.a", "1.b"])),
    m.Message(close_ask=m.CloseAsk(run="r", ask=1)),
    m.Message(close_run=m.CloseRun(run="r", status="stopped")),
    m.Message(refold=m.Refold(run="r", ask=1, without=["1.a"])),
    m.Message(ack=m.Ack(run="r", tasks=["1.a"])),
    m.Message(notice=m.Notice(text="full")),
]
BOUNDED = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
HOSTILE = st.lists(mutated(st.sampled_from(ORDERS)) | st.sampled_from(ORDERS), min_size=1, max_size=6)


@BOUNDED
@given(HOSTILE)
def test_a_node_goes_on_with_other_runs_whatever_it_is_told(messages):
    bench = Bench(clients=["a", "b", "c", "honest"], slots=9)
    bench.host()
    bench.host("q")
    for message in messages:
        with contextlib.suppress(ProtocolError):
            bench(ServerSaid(message))
    bench.reconnect()
    bench.run("q")
    bench.ask(run="q")
    assert ("q", "1.honest") in started(bench.task("honest", run="q"))
    bench.restart()
    bench(SessionBegun(m.Welcome()))


@BOUNDED
@given(HOSTILE)
def test_a_relay_goes_on_with_other_runs_whatever_it_is_told(messages):
    relay = Relaying(MemoryStore(), ["a", "b"])
    relay.handle(Reached(frozenset("ab")), 0.0)
    for message in [m.Message(run_spec=m.RunSpec(run="q")), *ORDERS[:1], *messages]:
        with contextlib.suppress(ProtocolError):
            relay.handle(Asked(message), 0.0)
    honest, work = m.AskSpec(), m.Task()
    honest.CopyFrom(ASK)
    work.CopyFrom(TASK)
    honest.run = work.run = "q"
    relay.handle(Asked(m.Message(run_spec=m.RunSpec(run="q"))), 1.0)
    relay.handle(Asked(m.Message(ask_spec=honest)), 1.0)
    assert relay.handle(Asked(m.Message(task=work)), 1.0)


def test_what_cannot_be_handled_costs_the_run_that_it_is_about(monkeypatch):
    bench = Bench()
    bench.host()
    bench.host("q")
    bench.ask(run="q")

    def fails(self, spec):
        raise RecursionError("too deep")

    monkeypatch.setattr(HostedRun, "ask", fails)
    (answer,) = said(bench.ask(), "run_answer")
    assert (answer.run, answer.ready) == ("r", False)
    assert "too deep" in answer.reason
    monkeypatch.undo()
    assert bench.ask() == [], "also where it is said again"
    assert "too deep" in refused(bench.task())
    assert started(bench.task("b", run="q")) == [("q", "1.b")]
    bench.run(config="{}")
    bench(HostReady("r", frozenset({"train"}), frozenset()))
    bench.ask()
    assert started(bench.task()) == [("r", "1.a")], "until the run is said anew"


def test_what_cannot_be_handled_and_is_about_no_run_ends_the_session(monkeypatch):
    bench = Bench()

    def fails(self, ack):
        raise OverflowError("too large")

    monkeypatch.setattr(OwedAnswers, "acknowledged", fails)
    with pytest.raises(ProtocolError, match="too large"):
        bench.ack("1.a", run="unknown")
