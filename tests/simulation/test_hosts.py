"""Where tasks are done: in this process, or in a worker as the main process sees it."""

from __future__ import annotations

import os
import threading
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest

from umbel import Arrays, Ask, Client, Update, mean
from umbel.core.randomness import Key
from umbel.core.task import Admit, Failed, Task
from umbel.simulation import hosts
from umbel.simulation.backlog import SimulatedAsk, Ticket
from umbel.simulation.channel import Channel, PackedMessage
from umbel.simulation.hosts import HostedWorker, Local
from umbel.simulation.status import BATCH, CANCELLED, PLACE, STEPS, Status
from umbel.simulation.threads import OneThread
from umbel.simulation.worker import Report
from umbel.work.executor import Executor, RunKeys
from umbel.work.seeding import generators_kept
from umbel.work.state import ClientStates

MODEL = Arrays({"w": np.zeros(2)})


def asked(id=0, *, plain=True, **more):
    ask = Ask(**{"clients": 3, "model": MODEL, "fold": mean(), **more})
    return SimulatedAsk(id, ask, 1, 0, None, plain=plain)


def tickets(sent, *clients):
    return [Ticket(Task(f"{sent.id}.{client}", sent.id, client), sent) for client in clients]


class Process:
    """A worker process that only listens."""

    def __init__(self):
        self.channel, other = Channel.pair()
        self.other = Channel(other)
        self.calls = []
        self.ticks = 0
        self.usage = SimpleNamespace(processor_time=lambda: self.ticks)

    def kill(self):
        self.calls.append("kill")

    def dismiss(self):
        self.calls.append("dismiss")

    def heard(self):
        """The kinds of messages that have come, the first left out: what a worker begins with."""
        kinds = []
        os.set_blocking(self.other.fileno(), False)
        try:
            while True:
                kinds.append(self.other.receive())
        except (EOFError, BlockingIOError):
            return [message[0] for message in kinds if isinstance(message, tuple)]


@pytest.fixture
def now(monkeypatch):
    """The clock, to be set."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(
        hosts,
        "time",
        SimpleNamespace(monotonic=lambda: clock.now, monotonic_ns=count().__next__, perf_counter=lambda: 0.0),
    )
    return clock


@pytest.fixture
def remote(now):
    status, process = Status(1, named=False), Process()
    status.row(0)[BATCH] = 9  # left behind by a worker that died
    found = HostedWorker(0, process, status.row(0), PackedMessage(["beginning"]))
    yield found
    process.channel.close()
    process.other.close()
    status.close()


def handed(remote, *clients, sent=None, **asks):
    batch = tickets(sent or asked(**asks), *clients)
    remote.do(batch, 0.5, lambda client: None)
    return batch


def test_a_new_worker_finds_nothing_of_its_predecessor(remote):
    assert not any(remote.row)
    assert remote.running() is None
    assert remote.host.other.receive() == ["beginning"]


def test_an_ask_is_sent_once_and_batches_are_numbered(remote):
    sent = asked()
    one = handed(remote, 1, 2, sent=sent)
    other = handed(remote, 3, sent=sent)
    assert remote.host.heard() == ["open", "do", "do"]
    assert remote.out == {1: one, 2: other}
    assert remote.seconds_out == 1.0
    assert remote.holds == {0}
    assert all(ticket.holder is remote for ticket in one + other)


def test_what_is_a_function_of_the_client_never_leaves_this_process(remote):
    lock = threading.Lock()

    def inbox(client):
        with lock:
            return {"x": np.full(2, client)}

    handed(remote, 1, inbox=inbox)
    assert remote.host.heard() == ["open", "do"]


def test_what_is_running(remote):
    one, other = handed(remote, 1, 2), handed(remote, 3)
    assert remote.running() is None
    for batch, place, ticket in ((1, 1, one[0]), (1, 2, one[1]), (1, 0, None), (2, 1, other[0]), (3, 1, None)):
        remote.row[BATCH], remote.row[PLACE] = batch, place
        assert remote.running() is ticket
    remote.row[BATCH], remote.row[PLACE] = 1, 3
    assert remote.running() is None


def test_a_report_brings_tickets_back(remote):
    batch = handed(remote, 1, 2, 3, 4)
    batch[3].wanted = False
    failure = Failed("0.2", "no")
    assert remote.reported(Report(1, {"0.2": failure}, ["0.3"], [0.1, 0.2])) == batch
    assert [(ticket.done, ticket.failed) for ticket in batch] == [
        (True, None), (True, failure), (False, None), (True, None),
    ]  # fmt: skip
    assert remote.out == {}
    assert remote.seconds_out == 0.0
    remote.host.heard()
    remote.flush()
    assert remote.host.heard() == ["cancel"]  # of the one that nobody wanted


def test_a_worker_without_work_is_not_stalled(remote):
    assert not remote.stalled(1e9, 1.0)


def test_a_worker_that_never_steps_shows_progress_by_time_of_the_processor(remote, now):
    handed(remote, 1)
    assert not remote.stalled(100.0, 10)
    assert not remote.stalled(110.0, 10)
    assert remote.stalled(110.5, 10)
    remote.host.ticks = 1
    assert not remote.stalled(111.0, 10)
    assert not remote.stalled(121.0, 10)
    assert remote.stalled(121.5, 10)


def test_a_worker_that_steps_has_to_go_on_stepping(remote, now):
    handed(remote, 1, 2)
    remote.row[BATCH], remote.row[PLACE], remote.row[STEPS] = 1, 1, 1
    assert not remote.stalled(109.0, 10)
    remote.host.ticks = 500
    assert remote.stalled(120.0, 10)  # an endless loop takes time, too
    remote.row[STEPS] = 2
    assert not remote.stalled(121.0, 10)
    remote.row[PLACE], remote.row[STEPS] = 2, 0
    assert not remote.stalled(140.0, 10)  # the next task has begun
    assert remote.stalled(151.0, 10)


def test_whoever_loops_for_ever_takes_no_step(remote, now):
    assert remote.steps_since(50.0) == 0.0, "it has nothing to do"
    handed(remote, 1, 2)
    assert remote.steps_since(100.0) == 0.0
    remote.host.ticks = 500
    assert remote.steps_since(130.0) == 30.0, "time of the processor is no step"
    remote.row[BATCH], remote.row[PLACE] = 1, 1
    assert remote.steps_since(140.0) == 0.0
    remote.row[STEPS] = 1
    assert remote.steps_since(150.0) == 0.0
    assert remote.steps_since(175.0) == 25.0
    remote.reported(Report(1))
    assert remote.steps_since(200.0) == 0.0


def test_a_report_and_a_new_batch_are_signs_of_progress(remote, now):
    batch = handed(remote, 1)
    assert not remote.stalled(100.0, 10)
    now.now = 111.0
    handed(remote, 2)
    assert remote.stalled(111.0, 10)  # more work is none
    remote.reported(Report(1))
    assert batch[0].done
    assert not remote.stalled(111.0, 10)
    now.now = 115.0
    remote.reported(Report(2))
    now.now = 300.0
    handed(remote, 3)
    assert not remote.stalled(301.0, 10)


def test_where_nobody_tells_of_the_processor_it_is_taken_for_progress(remote, now):
    remote.host.usage = None
    handed(remote, 1)
    assert not any(remote.stalled(at, 10) for at in (100.0, 115.0, 130.0))
    assert remote.peak_memory() == 0


def test_for_how_long_it_has_been_at_what_nobody_wants(remote, now):
    assert remote.unwanted_since(500.0) == 0.0
    batch = handed(remote, 1, 2)
    remote.row[BATCH] = 1
    batch[0].wanted = False
    assert remote.unwanted_since(105.0) == 0.0
    batch[1].wanted = False
    assert remote.unwanted_since(105.0) == 0.0  # when it is first seen
    handed(remote, 3)
    assert remote.unwanted_since(106.0) == 1.0
    remote.stalled(107.0, 60.0)  # signs of progress are none of being wanted
    assert remote.unwanted_since(108.0) == 3.0
    remote.row[BATCH] = 2
    assert remote.unwanted_since(109.0) == 0.0
    remote.row[BATCH] = 1
    assert remote.unwanted_since(110.0) == 0.0


def test_a_batch_is_broken_off_once_nothing_in_it_is_wanted(remote):
    one, other = handed(remote, 1, 2), handed(remote, 3)
    one[0].wanted = False
    remote.cancel(one[0])
    assert remote.row[CANCELLED] == 0
    one[1].wanted = False
    remote.cancel(one[1])
    assert remote.row[CANCELLED] == 1
    other[0].wanted = False
    remote.cancel(other[0])
    assert remote.row[CANCELLED] == 2
    remote.cancel(one[0])
    assert remote.row[CANCELLED] == 2  # it never goes back


def test_what_has_time_is_kept_back_until_something_else_is_sent(remote):
    sent = asked(plain=False)
    _, other = handed(remote, 1, 2, sent=sent)
    assert remote.holds == set()
    remote.host.heard()
    remote.admit(Admit(["0.1"], 0), sent)
    other.done = True
    remote.cancel(other)
    assert remote.host.heard() == []
    assert remote.holds == {0}
    remote.ask_to_close(sent)
    assert remote.host.heard() == ["admit", "cancel", "close"]
    assert remote.holds == set()
    remote.flush()
    assert remote.host.heard() == []


def test_asks_are_forgotten_and_sent_again_when_they_are_needed(remote):
    sent = asked()
    handed(remote, 1, sent=sent)
    remote.host.heard()
    remote.forget({0})
    assert remote.host.heard() == []
    remote.forget(set())
    assert remote.host.heard() == ["forget"]
    handed(remote, 2, sent=sent)
    assert remote.host.heard() == ["open", "do"]


def test_what_would_have_to_be_done_again_without_it(remote):
    sent, into = asked(plain=False), asked(1, plain=False)
    given, held, _, unwanted, skipped = handed(remote, 1, 2, 3, 4, 5, sent=sent)
    (out,) = handed(remote, 6, sent=sent)
    remote.reported(Report(1, {"0.3": Failed("0.3", "no")}, ["0.5"]))
    skipped.holder, unwanted.wanted = None, False
    assert remote.tickets == [given, held, out]
    given.into, out.into = into, into
    remote.gave(into)
    assert (given.holder, held.holder, out.holder) == (None, remote, remote)
    assert remote.tickets == [held, out]


def test_what_is_on_its_way_for_the_second_time_is_not_safe_yet(remote):
    sent, into = asked(plain=False), asked(1, plain=False)
    batch = handed(remote, 1, sent=sent)
    remote.reported(Report(1))
    batch[0].into, batch[0].done = into, False
    remote.do(batch, 0.5, lambda client: None)
    remote.gave(into)
    assert remote.tickets == batch
    assert batch[0].holder is remote


def test_nothing_happens_to_a_worker_that_is_gone(remote):
    remote.host.other.close()
    sent = asked(plain=False)
    batch = handed(remote, 1, sent=sent)
    remote.admit(Admit(["0.1"], 0), sent)
    batch[0].done = True
    remote.cancel(batch[0])
    remote.flush()
    remote.ask_to_close(sent)
    remote.forget(set())
    assert remote.out == {1: batch}


@pytest.mark.parametrize("busy", [False, True])
def test_a_worker_is_ended_at_once_only_if_it_is_at_work(remote, busy):
    if busy:
        handed(remote, 1)
    remote.end()
    assert remote.host.calls == ["kill", "dismiss"][not busy :]
    assert not remote.alive
    assert remote.host.channel.fileno() == -1


@pytest.fixture
def local():
    def train(model, data, ctx):
        if ctx.client == 9:
            raise ValueError("nine")
        return Update({"w": model["w"] + ctx.client})

    client, states = Client(), ClientStates()
    client.train(train)
    executor = Executor(client, lambda c: c, config={}, keys=RunKeys(Key.from_seed(0)), states=states)
    with generators_kept():
        yield Local(executor, OneThread())
    states.close()


def test_this_process_does_tasks_when_they_are_handed_over(local):
    sent = asked(plain=False)
    batch = tickets(sent, 1, 9, 2)
    local.do(batch, until=float("inf"))
    assert [ticket.done for ticket in batch] == [True] * 3
    assert [ticket.failed is None for ticket in batch] == [True, False, True]
    local.admit(Admit(["0.2"], 0), sent)
    local.cancel(batch[0])
    closed = local.close(sent)
    assert closed.partial.receipts.keys() == {"0.2"}
    assert (closed.states, closed.refused) == ({}, {})
    assert closed.account.training > 0


def test_the_first_task_is_done_whatever_time_it_is(local):
    batch = tickets(asked(), 1, 2, 3)
    local.do(batch, until=0.0)
    assert [ticket.done for ticket in batch] == [True, False, False]


def test_an_ask_to_which_nothing_came_has_an_empty_partial(local):
    assert not local.close(asked()).partial.receipts
    local.forget(set())


def test_several_tasks_at_once_only_where_the_window_takes_whatever_comes(local):
    from umbel import Window

    assert local.at_once(asked(0)) > 1
    assert local.at_once(asked(1, window=Window(close_after=2))) == 1
