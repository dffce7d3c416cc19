"""A child process as its node sees it: what it is told of asks, and what its environment holds."""

from __future__ import annotations

import pytest

from umbel.node.processes import KEPT_ASKS, KEPT_BYTES, Child, scrubbed
from umbel.node.signals import Start
from umbel.wire import messages as m


class Noting(Child):
    """A child that notes what it is sent."""

    def __init__(self):
        super().__init__(0)
        self.sent = []

    def send(self, type, *, with_next=False, **message):
        self.sent.append((type, message.get("id", message.get("asks"))))


def ask(number, size=0):
    model = m.Payload(blob=m.Blob(sha256=bytes(32), size=size)) if size else m.Payload(inline=b"")
    return m.AskSpec(run="r", ask=number, model=model)


def told(child, *asks):
    child.sent.clear()
    for each in asks:
        child.tell_of(each, lambda payload: {})
    return child.sent


def test_a_child_is_told_of_an_ask_once_and_forgets_the_one_used_longest_ago():
    child = Noting()
    first = [ask(number) for number in range(KEPT_ASKS)]
    assert told(child, *first, first[0]) == [("ask", number) for number in range(KEPT_ASKS)]
    assert told(child, ask(9)) == [("forget", [1]), ("ask", 9)]
    assert told(child, first[0]) == []


def test_a_child_does_what_was_judged_and_not_an_earlier_ask_of_the_same_number():
    child, other = Noting(), ask(1)
    other.transforms = '[{"name": "local_gaussian", "version": 1, "settings": {"norm": 1.0, "noise": 100.0}}]'
    assert told(child, ask(1), ask(1)) == [("ask", 1)]
    assert told(child, other, other) == [("forget", [1]), ("ask", 1)]
    assert told(child, ask(1)) == [("forget", [1]), ("ask", 1)]
    others = [ask(number) for number in range(2, 2 + KEPT_ASKS)]
    assert told(child, *others, other)[-2:] == [("forget", [2]), ("ask", 1)]


def test_of_large_asks_a_child_keeps_fewer():
    child = Noting()
    told(child, ask(1), ask(2, KEPT_BYTES))
    assert told(child, ask(3, KEPT_BYTES)) == [("forget", [1, 2]), ("ask", 3)]


def test_a_child_does_one_attempt_of_one_task():
    child = Child(0)
    assert not child.does("1.a", 1)
    child.task = Start("r", m.Task(task="1.a", attempt=2), ask(1), None)
    assert child.does("1.a", 2)
    assert not child.does("1.a", 1)
    assert not child.does("1.b", 2)


@pytest.mark.parametrize("name", ["AWS_SECRET", "UMBEL_TOKEN", "PASSWORD"])
def test_an_environment_without_secrets_but_for_what_is_given(monkeypatch, name):
    monkeypatch.setenv(name, "x")
    monkeypatch.setenv("LC_TEST", "y")
    assert name not in scrubbed({})
    assert scrubbed({name: "given"})[name] == "given"
    assert (scrubbed({})["LC_TEST"], scrubbed({})["OMP_NUM_THREADS"]) == ("y", "1")
    assert scrubbed({"OMP_NUM_THREADS": "2"})["OMP_NUM_THREADS"] == "2"
