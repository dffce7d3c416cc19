"""The order in which results are told of."""

from __future__ import annotations

from collections import deque

from umbel import Ask
from umbel.core.task import Task
from umbel.simulation.backlog import SimulatedAsk, Ticket
from umbel.simulation.turns import Queues


def asked(id, lane="train", **state):
    return SimulatedAsk(id, Ask(clients=2, lane=lane), 1, id, None, **state)


def ticket(sent, client, attempt=1):
    return Ticket(Task(f"{sent.id}.{client}", sent.id, client, attempt), sent)


def told(queues, open):
    """All that are told of while these asks are open."""
    found = []
    while (head := queues.head(open)) is not None:
        found.append(head.task.id)
        queues.remove(head)
    return found


def queued(*tickets):
    queues = Queues()
    for each in tickets:
        queues.add(each)
    return queues


def test_tasks_are_told_of_in_the_order_in_which_they_were_sent():
    ask = asked(0)
    queues = queued(*(ticket(ask, client) for client in (5, 1, 3)))
    assert queues.head([ask]) is queues.head([ask])
    assert told(queues, [ask]) == ["0.5", "0.1", "0.3"]


def test_a_task_that_is_tried_again_goes_first():
    ask = asked(0)
    queues = queued(ticket(ask, 5), ticket(ask, 1))
    queues.add(ticket(ask, 3, attempt=2))
    queues.add(again := ticket(ask, 1, attempt=2))
    assert queues.head([ask]) is again
    assert told(queues, [ask]) == ["0.1", "0.3", "0.5"]


def test_asks_that_are_open_at_once_come_one_after_the_other():
    first, second = asked(0, "a"), asked(1, "b")
    queues = queued(ticket(second, 1), ticket(first, 1), ticket(second, 2), ticket(first, 2))
    assert told(queues, [first, second]) == ["0.1", "0.2", "1.1", "1.2"]


def test_late_tasks_wait_for_the_next_ask_of_their_lane():
    first, other, next_one = asked(0, "a"), asked(1, "b"), asked(2, "a")
    queues = queued(ticket(first, 1), ticket(first, 2), ticket(other, 1))
    assert told(queues, [other]) == ["1.1"]
    assert queues.head([]) is None
    queues.add(ticket(next_one, 7))
    assert told(queues, [other, next_one]) == ["0.1", "0.2", "2.7"]


def test_what_is_told_of_or_not_wanted_is_gone():
    ask = asked(0)
    queues = queued(ticket(ask, 1), second := ticket(ask, 2), third := ticket(ask, 3))
    queues.remove(second)
    queues.remove(second)
    assert told(queues, [ask]) == ["0.1", "0.3"]
    queues.add(third)
    queues.clear()
    assert queues.head([ask]) is None


def test_a_batch_is_of_one_ask_and_of_one_task_unless_the_ask_is_plain():
    first, second = asked(0, "a", plain=True), asked(1, "a", plain=False)
    tickets = [ticket(first, 1), ticket(first, 2), ticket(second, 1), ticket(second, 2)]
    queues = queued(*tickets)
    assert queues.batch([first], lambda sent: 1) == tickets[:1]
    assert queues.batch([first], lambda sent: 9) == tickets[:2]
    for each in tickets[:2]:
        queues.remove(each)
    assert queues.batch([second], lambda sent: 9) == [tickets[2]]
    assert queues.batch([], lambda sent: 9) == []


def test_who_is_due_is_whose_turn_it_is():
    ask = asked(0)
    queues = queued(*(tickets := [ticket(ask, client) for client in range(2)]))
    tickets[1].done = True
    assert queues.due([ask]) is None
    tickets[0].done = True
    assert queues.due([ask]) is tickets[0]
    assert queues.due([]) is None


def test_before_a_deadline_the_first_that_has_a_result_is_due():
    ask, other = asked(0, closes_at=5.0), asked(1, "other")
    tickets = [ticket(ask, client) for client in range(3)]
    queues = queued(*tickets, ticket(other, 1))
    assert queues.due([ask]) is None
    tickets[2].done = True
    assert queues.due([ask]) is tickets[2]
    tickets[1].done = True
    assert queues.due([ask]) is tickets[1]
    assert queues.due([other]) is None


def test_before_a_deadline_nobody_waits_for_another_ask():
    for first in (asked(0, "a"), asked(0, "a", plain=True, done=deque())):
        hurried = asked(1, "b", closes_at=5.0)
        tickets = [ticket(first, 1), ticket(hurried, 2), ticket(hurried, 3)]
        queues = queued(*tickets)
        assert queues.due([first, hurried]) is None
        tickets[2].done = True
        assert queues.due([first, hurried]) is tickets[2]
        assert queues.due([first]) is None
        tickets[0].done = True
        if first.plain:
            first.done.append(tickets[0])
        assert queues.due([first, hurried]) is tickets[0]


def test_any_of_a_plain_ask_is_due_that_has_come():
    ask = asked(0, plain=True, done=deque())
    tickets = [ticket(ask, client) for client in range(5)]
    queues = queued(*tickets)
    for each in tickets[:4]:
        each.done = True
    assert queues.due([ask]) is None
    ask.done.extend(reversed(tickets))  # the last is done again, the one before told of, the third not wanted
    tickets[3].told, tickets[2].wanted = True, False
    assert queues.due([ask]) is tickets[1]


def test_what_is_due_is_over_once_it_has_ticked():
    times = [0.0]
    queues = Queues(lambda: times[0])
    assert queues.wait() is None
    for at in (5.0, 3.0):
        queues.wake(at)
    assert (queues.wait(), queues.ticked()) == (3.0, False)
    times[0] = 4.0
    assert (queues.wait(), queues.ticked(), queues.wait(), queues.ticked()) == (0.0, True, 1.0, False)


def test_without_a_clock_no_deadline_passes():
    queues = Queues()
    queues.wake(0.0)
    assert (queues.wait(), queues.ticked()) == (None, False)


def test_whether_tasks_of_other_asks_end_in_an_open_one():
    first, second, third = asked(0, "a"), asked(1, "b"), asked(2, "a")
    queues = queued(ticket(first, 1), ticket(second, 1))
    assert not queues.overlap({0: first, 1: second})
    assert not queues.overlap({1: second})  # those of the first wait
    assert queues.overlap({2: third})
