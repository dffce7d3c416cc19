"""The order in which results are told of."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from umbel import Ask
from umbel.core.task import Task
from umbel.simulation.backlog import SimulatedAsk, Ticket
from umbel.simulation.devices import TaskFate
from umbel.simulation.turns import Queues, Timeline


def asked(id, lane="train"):
    return SimulatedAsk(id, Ask(clients=2, lane=lane), 1, id, None)


def ticket(sent, client, attempt=1, ends=None):
    trip = None if ends is None else TaskFate(0.0, ends, 0.0, ends, 0.0, 0, 0, 0.0, None)
    return Ticket(Task(f"{sent.id}.{client}", sent.id, client, attempt), sent, trip=trip)


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
    queues = queued(first := ticket(ask, 1), second := ticket(ask, 2), third := ticket(ask, 3))
    queues.remove(second)
    queues.remove(second)
    assert queues.following(first, 5) == [first, third]
    queues.clear()
    assert queues.head([ask]) is None


def test_those_that_follow_are_of_the_same_ask():
    first, second = asked(0, "a"), asked(1, "a")
    tickets = [ticket(first, 1), ticket(first, 2), ticket(second, 1), ticket(first, 3)]
    queues = queued(*tickets)
    assert queues.following(tickets[0], 1) == tickets[:1]
    assert queues.following(tickets[0], 9) == tickets[:2]


def test_the_first_that_has_a_result():
    ask, other = asked(0), asked(1, "other")
    tickets = [ticket(ask, client) for client in range(3)]
    queues = queued(*tickets, ticket(other, 1))
    assert queues.first_done("train") is None
    tickets[2].done = True
    assert queues.first_done("train") is tickets[2]
    tickets[1].done = True
    assert queues.first_done("train") is tickets[1]
    assert queues.first_done("other") is None


def test_whether_tasks_of_other_asks_end_in_an_open_one():
    first, second, third = asked(0, "a"), asked(1, "b"), asked(2, "a")
    queues = queued(ticket(first, 1), ticket(second, 1))
    assert not queues.late({0: first, 1: second})
    assert not queues.late({1: second})  # those of the first wait
    assert queues.late({2: third})


times = st.sampled_from([0.0, 0.5, 1.0, 1.5, 1e6])


@given(entries=st.lists(st.tuples(st.booleans(), times), max_size=20))
def test_time_goes_on_and_what_arrives_at_a_deadline_is_in_time(entries):
    timeline, sent, ask = Timeline(), [], asked(0)
    for number, (deadline, at) in enumerate(entries):
        if deadline:
            timeline.wake(at)
            sent.append((at, 1, None))
        else:
            arriving = ticket(ask, number, ends=at)
            timeline.add(arriving)
            sent.append((at, 0, arriving))
    found = []
    while (head := timeline.head([ask])) is not None:
        assert timeline.head([ask]) == head  # looking changes nothing
        timeline.pop()
        found.append(head)
    expected = sorted(sent, key=lambda entry: entry[:2])  # stable: else as they were sent
    assert [at for at, _ in found] == [at for at, _, _ in expected]
    assert all(mine is theirs for (_, mine), (_, _, theirs) in zip(found, expected, strict=True))


def test_what_is_not_wanted_or_told_of_does_not_arrive():
    timeline, ask = Timeline(), asked(0)
    tickets = [ticket(ask, number, ends=float(number)) for number in range(4)]
    for each in tickets:
        timeline.add(each)
    tickets[0].wanted, tickets[1].told = False, True
    assert timeline.head([ask]) == (2.0, tickets[2])
    tickets[2].wanted = False
    timeline.wake(2.5)
    assert timeline.head([ask]) == (2.5, None)
    timeline.clear()
    assert timeline.head([ask]) is None


@given(wanted=st.lists(st.booleans(), max_size=30))
def test_what_is_forgotten_leaves_the_others_as_they_were(wanted):
    timeline, ask = Timeline(), asked(0)
    tickets = [ticket(ask, number, ends=float(number * 7 % 10)) for number in range(len(wanted))]
    for each in tickets:
        timeline.add(each)
    timeline.wake(4.0)
    for each, stays in zip(tickets, wanted, strict=True):
        if not stays:
            each.wanted = False
            timeline.forget()
    found = []
    while (head := timeline.head([ask])) is not None:
        timeline.pop()
        found.append(head)
    left = [(each.trip.ends, each) for each, stays in zip(tickets, wanted, strict=True) if stays]
    assert found == sorted([*left, (4.0, None)], key=lambda row: (row[0], row[1] is None))


def test_what_arrives_while_no_ask_of_its_lane_is_open_waits_for_the_next():
    timeline, first, other, second = Timeline(), asked(0, "a"), asked(1, "b"), asked(2, "a")
    late, later, mine = ticket(first, 1, ends=1.0), ticket(first, 2, ends=2.0), ticket(other, 1, ends=3.0)
    for each in (late, later, mine):
        timeline.add(each)
    assert timeline.head([other]) == (3.0, mine)
    timeline.pop()
    assert timeline.head([other]) is None
    later.wanted = False
    timeline.resume()
    timeline.resume()
    timeline.add(newest := ticket(second, 1, ends=0.5))
    for expected in (newest, late):
        assert timeline.head([second]) == (expected.trip.ends, expected)
        timeline.pop()
    assert timeline.head([second]) is None
    timeline.add(late)
    assert timeline.head([other]) is None
    timeline.clear()
    timeline.resume()
    assert timeline.head([second]) is None
