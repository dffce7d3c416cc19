"""What is handed to which worker: everything once, the longest first, at home where possible."""

from __future__ import annotations

import zlib
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel import Arrays, Ask, Window
from umbel.core.task import Task
from umbel.simulation.backlog import LEAST, MOST_AT_ONCE, NOTED, Backlog, Durations, SimulatedAsk, Ticket, home_of
from umbel.simulation.devices import TaskFate

MODEL = Arrays({"w": np.zeros(1)})


def asked(id=0, *, plain=True, kind="train", **more):
    return SimulatedAsk(id, Ask(clients=2, kind=kind, model=MODEL, **more), 1, id, None, plain=plain)


PLAIN, ORDERED, EVALUATE = asked(0), asked(1, plain=False), asked(2, kind="evaluate")


def ticket(client, sent=PLAIN, ends=None):
    trip = None if ends is None else TaskFate(0.0, ends, 0.0, ends, 0.0, 0, 0, 0.0, None)
    made = Ticket(Task(f"{sent.id}.{client}", sent.id, client), sent)
    made.trip = trip
    return made


def clients(tickets):
    return [ticket.task.client for ticket in tickets]


def drained(backlog, workers=1, limit=10_000):
    """All that is left, as workers take it in turn."""
    found = []
    for turn in range(limit):
        if not backlog:
            return found
        found.append(backlog.portion(turn % workers)[0])
    raise AssertionError("it never becomes empty")


seconds = st.sampled_from([0.0, 1e-6, 1e-4, 0.004, 0.005, 0.1, 0.2, 0.3, 30.0])
steps = st.one_of(
    st.tuples(st.just("plain"), st.integers(1, 40)),
    st.tuples(st.just("evaluate"), st.integers(1, 5)),
    st.tuples(st.just("ordered"), st.lists(st.none() | st.sampled_from([0.0, 1.0, 2.0]), max_size=5)),
    st.tuples(st.just("portion"), st.integers(0, 2)),
    st.tuples(st.just("again"), st.integers(0, 5)),
    st.tuples(st.just("unwanted"), st.integers(0, 50)),
    st.tuples(st.just("note"), st.tuples(st.sampled_from(["train", "evaluate"]), st.integers(0, 50), seconds)),
    st.tuples(st.just("reconsider"), st.none()),
)


@given(workers=st.integers(1, 3), plan=st.lists(steps, max_size=40))
def test_every_ticket_is_handed_out_once(workers, plan):
    backlog, tickets, waiting, handed = Backlog(workers), [], Counter(), []

    def add(new):
        tickets.append(new)
        waiting[id(new)] += 1
        backlog.add(new)

    def took(portion):
        assert len(portion) <= MOST_AT_ONCE
        for each in portion:
            assert each.wanted
            waiting[id(each)] -= 1
            assert not waiting[id(each)]
        handed.extend(portion)

    for step, what in plan:
        if step in ("plain", "evaluate"):
            for _ in range(what):
                add(ticket(len(tickets), PLAIN if step == "plain" else EVALUATE))
        elif step == "ordered":
            for ends in what:
                add(ticket(len(tickets), ORDERED, ends))
        elif step == "portion":
            portion, guess = backlog.portion(what % workers)
            assert guess >= 0
            took(portion)
        elif step == "again":
            for lost in handed[:what]:
                waiting[id(lost)] += 1
                backlog.again(lost)
            del handed[:what]
        elif step == "unwanted" and tickets:
            tickets[what % len(tickets)].wanted = False
        elif step == "note":
            backlog.durations.note(*what)
        elif step == "reconsider":
            backlog.reconsider()
    for portion in drained(backlog, workers):
        took(portion)
    assert not any(waiting[id(each)] for each in tickets if each.wanted)


def test_one_by_one_while_nothing_is_known():
    backlog = Backlog(2)
    for client in range(4):
        backlog.add(ticket(client))
    portions = [backlog.portion(worker) for worker in (0, 1, 0, 1)]
    assert [clients(portion) for portion, _ in portions] == [[0], [1], [2], [3]]
    assert [guess for _, guess in portions] == [0.0] * 4  # it may take any time: this worker is handed no more
    assert not backlog


def test_many_at_once_where_they_are_short():
    backlog = Backlog(1)
    backlog.durations.note("train", 0, 1e-6)
    for client in range(1000):
        backlog.add(ticket(client))
    portions = drained(backlog)
    assert [len(portion) for portion in portions] == [256, 256, 256, 232]
    assert clients(chain(*portions)) == list(range(1000))


def test_a_portion_is_a_part_of_what_is_left():
    backlog = Backlog(2)
    backlog.durations.note("train", 0, 0.001)
    for client in range(20):
        backlog.add(ticket(client))
    portion, guess = backlog.portion(0)
    assert 1 <= len(portion) <= 5  # of 20 ms of work two workers take less than a half of their halves at once
    assert guess == pytest.approx(0.001 * len(portion))


def test_the_longest_go_first():
    backlog = Backlog(1)
    for client in range(6):
        backlog.durations.note("train", client, (client * 5 % 6 + 1) / 10)
    for client in range(6):
        backlog.add(ticket(client))
    order = clients(chain(*drained(backlog)))
    assert order == sorted(range(6), key=lambda client: -(client * 5 % 6))


def test_what_is_learned_meanwhile_is_thought_of_when_reconsidered():
    backlog = Backlog(1)
    for client in range(4):
        backlog.add(ticket(client))
    assert clients(backlog.portion(0)[0]) == [0]
    backlog.durations.note("train", 3, 2.0)
    backlog.durations.note("train", 1, 0.5)
    backlog.reconsider()
    assert clients(backlog.portion(0)[0]) == [3]


def test_what_is_added_later_is_sorted_in():
    backlog = Backlog(1)
    for client in range(4):
        backlog.durations.note("train", client, client + 1.0)
    for client in (0, 2):
        backlog.add(ticket(client))
    assert clients(backlog.portion(0)[0]) == [2]
    backlog.add(ticket(1))
    assert [clients(portion) for portion in drained(backlog)] == [[1], [0]]


def test_a_client_goes_to_the_worker_that_may_have_its_data():
    for _ in range(2):
        backlog = Backlog(3)
        backlog.durations.note("train", 0, 1e-6)
        names = [f"site {n}" for n in range(60)]
        for name in names:
            backlog.add(ticket(name))
        for worker in range(3):
            first = clients(backlog.portion(worker)[0])
            assert first == [name for name in names if home_of(name, 3) == worker][: len(first)]
            assert first


@pytest.mark.parametrize("client", [0, 1, 10**9, "north", ""])
def test_homes(client):
    assert home_of(client, 1) == 0
    assert home_of(client, 3) in range(3)
    assert home_of(client, 3) == home_of(client, 3)


def test_homes_are_the_same_in_every_process():
    assert home_of("north", 1000) == zlib.crc32(b"north") % 1000 == 514


def test_an_idle_worker_takes_from_whoever_has_most_left():
    backlog = Backlog(3)
    backlog.durations.note("train", 0, 1.0)
    for client in (0, 3, 6, 1, 4):
        backlog.add(ticket(client))
    assert clients(backlog.portion(2)[0]) == [0]  # worker 0 has three left
    assert {home_of(client, 3) for client in clients(backlog.portion(0)[0])} == {0}
    assert clients(backlog.portion(2)[0]) == [1]  # now worker 1 has most
    assert sorted(clients(chain(*drained(backlog, 3)))) == [4, 6]


def test_what_nobody_wants_is_not_handed_out():
    backlog = Backlog(2)
    tickets = [ticket(n) for n in range(4)] + [ticket(n, ORDERED) for n in range(4, 8)]
    for each in tickets:
        backlog.add(each)
    backlog.again(lost := ticket(9))
    for each in (tickets[0], tickets[3], tickets[5], lost):
        each.wanted = False
    assert sorted(clients(chain(*drained(backlog, 2)))) == [1, 2, 4, 6, 7]
    assert backlog.portion(0) == ([], 0.0)


def test_what_has_a_time_is_handed_out_by_it():
    backlog = Backlog(2)
    for client, ends in enumerate([3.0, 1.0, 2.0, 1.0]):
        backlog.add(ticket(client, ORDERED, ends))
    assert clients(backlog.portion(1)[0]) == [1]
    assert [clients(portion) for portion in drained(backlog, 2)] == [[3], [2], [0]]


def test_what_has_a_turn_is_handed_out_by_it_several_at_once_where_short():
    backlog = Backlog(2)
    for client in range(6):
        backlog.add(ticket(client, ORDERED))
    assert clients(backlog.portion(1)[0]) == [0]  # nothing is known
    backlog.durations.note("train", 0, 0.4 * LEAST)
    assert clients(backlog.portion(1)[0]) == [1, 2]
    backlog.durations.note("train", 4, 1.0)
    assert [clients(portion) for portion in drained(backlog, 2)] == [[3], [4], [5]]


def test_what_was_lost_goes_first_and_alone():
    backlog = Backlog(1)
    backlog.durations.note("train", 0, 1e-6)
    for client in range(3):
        backlog.add(ticket(client))
    backlog.add(ticket(3, ORDERED))
    for client in (4, 5):
        backlog.again(ticket(client, ORDERED if client == 4 else PLAIN))
    assert [clients(portion) for portion in drained(backlog)] == [[4], [5], [3], [0, 1, 2]]


def test_a_backlog_knows_when_it_is_empty():
    backlog = Backlog(0)
    assert not backlog
    assert backlog.portion(0) == ([], 0.0)
    for add in (backlog.add, backlog.again):
        add(ticket(1))
        assert backlog
        backlog.portion(0)
        assert not backlog
    backlog.add(ticket(1, ORDERED))
    assert backlog


def test_durations_are_those_of_the_client_or_the_mean_of_the_kind():
    durations = Durations()
    assert durations.guess("train", 1) is None
    durations.note("train", 1, 1.0)
    assert durations.guess("train", 1) == durations.guess("train", 2) == 1.0
    assert durations.guess("evaluate", 1) is None
    durations.note("train", 2, 3.0)
    assert durations.guess("train", 1) == 1.0
    assert durations.guess("train", 2) == 3.0
    assert 1.0 < durations.guess("train", 3) < 3.0
    durations.note("train", 1, 2.0)
    assert durations.guess("train", 1) == 2.0


def test_durations_remember_so_many_clients_and_none_that_are_short():
    durations = Durations()
    durations.note("train", "short", 0.001)
    durations.note("train", "long", 7.0)
    assert durations.guess("train", "short") == durations.guess("train", "somebody") != 0.001
    for client in range(NOTED - 1):
        durations.note("train", client, 1.0)
    assert durations.guess("train", "long") == 7.0
    durations.note("train", 0, 2.0)  # known again
    durations.note("train", "one more", 1.0)
    assert durations.guess("train", "long") != 7.0
    assert durations.guess("train", 0) == 2.0


def test_what_a_simulation_knows_of_an_ask():
    sent = SimulatedAsk(0, Ask(clients=2, model=MODEL), 1, 0, None, (1, "a"))
    assert (sent.lane, sent.ask.window.takes_all, sent.routed, sent.clients) == ("train", True, (), {1, "a"})
    assert asked(window=Window(quorum=3)).ask.window.takes_all
    for window in (Window(close_after=1), Window(deadline=1.0), Window(late="keep"), Window(in_flight=1)):
        assert not asked(window=window).ask.window.takes_all
    routed = asked(lane="x", config=lambda client: {}, inbox=lambda client: None)
    assert (routed.lane, routed.routed) == ("x", ("config", "inbox"))
