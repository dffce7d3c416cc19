"""A run's session, with a link that follows a script: what comes, and how much served time passes."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.effort import lines

from umbel import Arrays, Free, Window, mean, total, weighted_mean
from umbel.core import encoding
from umbel.core.ask import Ask
from umbel.core.partial import Partial
from umbel.core.randomness import Key
from umbel.core.task import Admit, Cancel, Failed, Finished, Send, Task, Ticked
from umbel.core.update import Like, Receipt, Update, check
from umbel.remote.payloads import answer_bytes
from umbel.remote.session import PARTING, Arrived, Down, Missing, RemoteSession, Up
from umbel.runs.coordinator import Wake
from umbel.runs.events import AskClosed, RoundCommitted, RoundStarted, RunFinished, RunInterruption, RunResumed
from umbel.wire import messages as m
from umbel.wire.portions import PORTION_BYTES
from umbel.work.executor import RunKeys

MODEL = Arrays({"w": np.zeros(2)})
SPEC = m.RunSpec(run="r", name="mnist")
KEEP = Window(in_flight=1, close_after=1, late="keep")


class Script:
    """A link: what comes is a list of items, in which a number is served time that passes."""

    def __init__(self, folder, inline=10_000):
        self.folder = folder
        self.inline = inline
        self.sent, self.items = [], deque()
        self.fetched, self.released = [], []
        self.time = 0.0
        self.closed = False

    def keep(self, data):
        return m.Payload(inline=data)

    def store(self, value):
        data = value.to_bytes() if isinstance(value, Arrays) else encoding.encode(value)
        if len(data) <= self.inline:
            return m.Payload(inline=data)
        return m.Payload(blob=m.Blob(sha256=hashlib.sha256(data).digest(), size=len(data)))

    def send(self, message):
        self.sent.append(message)

    def receive(self, timeout):
        if not self.items and timeout is None:
            raise AssertionError("it would wait for ever")
        if not self.items:
            self.time += timeout
            return None
        item = self.items.popleft()
        if not isinstance(item, int | float):
            return item
        if timeout is not None and item >= timeout:
            self.time += timeout
            if item > timeout:
                self.items.appendleft(item - timeout)
            return None
        self.time += item
        return self.receive(None if timeout is None else timeout - item)

    def fetch(self, blob):
        self.fetched.append(blob.sha256)

    def release(self, sha):
        self.released.append(sha)

    def served(self):
        return self.time

    def close(self):
        self.closed = True


class Stage:
    """A session, its link, and the client states as the conductor keeps them."""

    def __init__(self, folder, *, log=(), stall=100.0, **link):
        self.link = Script(folder, **link)
        self.states = {}
        self.session = RemoteSession(self.link, SPEC, self, keys=RunKeys(Key.from_seed(1)), stall=stall, log=log)

    def get(self, client):
        return self.states.get(client, {})

    def open(self, id=0, cohort=(0, 1), **fields):
        ask = Ask(**{"clients": cohort, "model": MODEL, "fold": weighted_mean(), **fields})
        self.session.open(id, ask, 1, id, None, cohort)

    def send(self, *clients, ask=0, attempt=1):
        for client in clients:
            self.session.do(Send([Task(f"{ask}.{client}", ask, client, attempt)]))

    def said(self, kind=None):
        """What the server was told since this was last called: all, or the bodies of one kind."""
        found, self.link.sent = self.link.sent, []
        if kind is None:
            return [message.WhichOneof("body") for message in found]
        return [getattr(message, kind) for message in found if message.WhichOneof("body") == kind]

    def comes(self, *items):
        self.link.items += [m.Message(**item) if isinstance(item, dict) else item for item in items]

    def next(self, *items):
        self.comes(*items)
        return self.session.next_event()


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


@pytest.fixture
def asked(stage):
    """A stage with one ask, whose tasks are out."""
    stage.open()
    stage.send(0, 1)
    stage.said()
    return stage


def update_of(value=1.0, **more):
    return Update({"w": np.full(2, value)}, weight=2.0, delta=True, **more)


def payload_of(update):
    return m.Payload(inline=encoding.encode(update))


def blob_of(payload):
    data = payload.inline
    return m.Payload(blob=m.Blob(sha256=hashlib.sha256(data).digest(), size=len(data)))


def done(client, ask=0, attempt=1, update=None, kept=False, seconds=0.5):
    id = f"{ask}.{client}"
    receipt = m.Receipt(task=id, client=str(client), weight=9.0, metrics={"loss": 0.25}, seconds=seconds, kept=kept)
    body = m.Done(receipt=receipt, update=update if update is not None else payload_of(update_of()))
    return {"result": m.Result(run="r", task=id, ask=ask, client=str(client), attempt=attempt, done=body)}


def failed(client, ask=0, attempt=1, retry=False):
    failure = m.Failure(reason="it failed", retry=retry)
    id = f"{ask}.{client}"
    return {"result": m.Result(run="r", task=id, ask=ask, client=str(client), attempt=attempt, failure=failure)}


def partial_of(*clients, ask=0, fold=None, kept=(), receipts=None, tree=None):
    partial = Partial(fold or weighted_mean())
    for client in clients:
        contribution = check(update_of(), Like(MODEL), MODEL, client)
        partial.add(contribution, Receipt(f"{ask}.{client}", client, 2.0, {"loss": 0.25}))
    named = receipts if receipts is not None else [f"{ask}.{client}" for client in clients]
    told = [m.Receipt(task=task, client=task.split(".")[1], kept=task in kept) for task in named]
    data = encoding.encode(tree if tree is not None else partial.to_tree())
    return {"partial": m.Partial(run="r", ask=ask, receipts=told, partial=m.Payload(inline=data))}


def finish(stage, *items):
    """Take these in, admit what finished, and close the ask."""
    stage.comes(*items)
    left = sum(len(item["partial"].receipts) if "partial" in item else 1 for item in items)
    while left > 0:
        event = stage.session.next_event()
        tasks = event.tasks if isinstance(event, Finished) else [event.task]
        for task in tasks:
            stage.session.do(Admit([task], int(task.split(".")[0])))
        left -= len(tasks)
    return stage.session.close(0)


# Tasks and their answers


@pytest.mark.parametrize("make", [done, lambda client, update: partial_with(update)], ids=["update", "partial"])
def test_an_answer_larger_than_what_is_expected_is_not_fetched(asked, make):
    (most,) = {answer_bytes(Ask(clients=(0, 1), model=MODEL, fold=weighted_mean()))}
    most = most if make is done else 2 * most + (2 << 20)
    for size, fetched in ((most + 1, 0), (2**62, 0), (most, 1)):
        asked.send(0, attempt=2)
        update = m.Payload(blob=m.Blob(sha256=bytes([fetched] * 32), size=size))
        asked.comes(make(0, update=update))
        if fetched:
            asked.comes(failed(0, attempt=9))
        event = asked.session.next_event()
        assert len(asked.link.fetched) == fetched
        assert isinstance(event, Failed)
        assert ("bytes" in event.reason) is not bool(fetched)


def partial_with(payload):
    body = partial_of(0)
    body["partial"].partial.CopyFrom(payload)
    return body


def test_an_answer_is_folded_and_leaves_a_marker_for_the_clients_state(stage):
    stage.open()
    assert stage.said() == ["ask_spec"]
    stage.send(0, 1)
    assert [task.task for task in stage.said("task")] == ["0.0", "0.1"]
    closed = finish(stage, done(0, kept=True), done(1))
    assert {id: r.client for id, r in closed.partial.receipts.items()} == {"0.0": 0, "0.1": 1}
    receipt = closed.partial.receipts["0.0"]
    assert (receipt.weight, receipt.metrics, receipt.seconds) == (2.0, {"loss": 0.25}, 0.5)
    assert {client: encoding.decode(state) for client, state in closed.states.items()} == {0: {"held": "0.0"}}
    assert closed.account.training == 1.0
    assert stage.session.next_event() is None


def test_a_task_names_the_state_that_it_begins_with(stage):
    stage.states = {0: {"held": "5.0"}}
    stage.open(6)
    stage.send(0, 1, ask=6)
    assert [task.base for task in stage.said("task")] == ["5.0", ""]


def test_a_failure_is_passed_on_and_a_stale_one_is_not(asked):
    assert asked.next(failed(0, retry=True)) == Failed("0.0", "it failed", True)
    asked.send(0, attempt=2)
    assert asked.next(failed(0, attempt=1), failed(0, attempt=2)) == Failed("0.0", "it failed", False)
    assert asked.link.items == deque()


def test_what_the_server_wants_known_is_a_warning(asked):
    asked.next({"notice": m.Notice(text="no room")})
    assert asked.session.reporting.warnings() == [(None, "the server: no room")]


def test_a_second_answer_changes_nothing(asked):
    assert asked.next(done(0)) == Finished(["0.0"])
    assert asked.next(done(0, update=payload_of(update_of(5))), failed(0), done(7), done(1)) == Finished(["0.1"])


def test_an_answer_to_an_earlier_attempt_counts(asked):
    asked.next(failed(0, retry=True))
    asked.send(0, attempt=2)
    assert asked.next(done(0, attempt=1)) == Finished(["0.0"])


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        (m.Payload(inline=b"nonsense"), "its update cannot be read"),
        (m.Payload(), "its update cannot be read"),
        (m.Payload(inline=encoding.encode([1])), "its answer holds a list, not an update"),
        (payload_of(Update({"x": np.zeros(2)}, weight=1.0, delta=True)), "'x'"),
        (payload_of(update_of(math.nan)), "'w'"),
    ],
)
def test_a_wrong_update_fails_its_task_alone(asked, update, reason):
    event = asked.next(done(0, update=update))
    assert isinstance(event, Failed)
    assert reason in event.reason
    assert not event.retry
    assert asked.next(done(1)) == Finished(["0.1"])


def test_a_time_that_is_none_counts_for_nothing(asked):
    closed = finish(asked, done(0, seconds=math.nan), done(1, seconds=-1.0))
    assert closed.account.training == 0.0


def test_a_cancelled_task_is_not_waited_for(asked):
    asked.session.do(Cancel(["0.0"]))
    asked.session.do(Cancel(["0.0"]))
    assert asked.said("cancel") == [m.Cancel(run="r", tasks=["0.0"])]
    assert asked.next(done(0), done(1)) == Finished(["0.1"])
    asked.session.do(Cancel(["0.1"]))
    assert asked.said() == []
    assert asked.session.next_event() is None


def test_many_are_cancelled_in_messages_that_fit_into_a_frame(stage):
    names = [f"{number:0250}" for number in range(5000)]
    stage.open(cohort=names)
    stage.send(*names)
    stage.said()
    stage.session.do(Cancel([f"0.{name}" for name in names]))
    told = stage.said("cancel")
    assert [task for each in told for task in each.tasks] == [f"0.{name}" for name in names]
    assert len(told) == 2
    assert all(each.ByteSize() < PORTION_BYTES + 1000 for each in told)


def test_moments_are_told_of_when_they_have_come(asked):
    asked.session.do(Wake(30.0))
    asked.session.do(Wake(10.0))
    assert asked.next(9.0) == Ticked()
    assert asked.link.time == 10.0
    assert asked.session.next_event() == Ticked()
    assert asked.link.time == 30.0


# Clients that are in two asks


def test_a_client_in_an_earlier_ask_waits_until_that_one_is_recorded(asked):
    asked.open(1, cohort=(0, 2))
    asked.send(0, 2, ask=1)
    assert [task.task for task in asked.said("task")] == ["1.2"]
    finish(asked, done(0, kept=True), done(1))
    asked.states = {0: {"held": "0.0"}}
    assert asked.said() == []
    asked.next(done(2, ask=1))
    (task,) = asked.said("task")
    assert (task.task, task.base) == ("1.0", "0.0")


def test_a_blocked_task_may_be_cancelled(asked):
    asked.open(1, cohort=(0,))
    asked.send(0, ask=1)
    asked.session.do(Cancel(["1.0"]))
    finish(asked, done(0), done(1))
    asked.said()
    assert asked.session.next_event() is None
    assert asked.said() == []


# Who takes part


def test_clients_that_refuse_or_are_tried_again_are_told_of(asked):
    told = [
        m.Member(client="0", standing=m.STANDING_PREPARING, reason="killed by SIGKILL"),
        m.Member(client="1", standing=m.STANDING_REFUSED, reason="no data"),
        m.Member(client="2", standing=m.STANDING_PREPARING),
    ]
    assert asked.next({"members": m.Members(run="r", members=told)}) == Ticked()
    assert asked.session.reporting.warnings() == [
        (0, "it is not ready, and is tried again: killed by SIGKILL"),
        (1, "it does not take part: no data"),
    ]


# Signs of life


def test_a_client_without_a_sign_of_life_is_warned_of_and_given_up(asked):
    asked.next(done(1))
    asked.session.members[0] = (m.STANDING_OFFLINE, "")
    assert asked.session.next_event() == Ticked()
    assert asked.link.time == 50.0
    ((client, text),) = asked.session.reporting.warnings()
    assert client == 0
    assert text == "no sign of life for 50 s (its node is not connected); after 100 s the run goes on without it"
    assert asked.session.reporting.warnings() == []
    event = asked.session.next_event()
    assert event == Failed("0.0", "no sign of life for 100 s (its node is not connected)")
    assert asked.link.time == 100.0
    assert asked.said("cancel")[0].tasks == ["0.0"]
    assert asked.session.next_event() is None


def test_signs_of_life_put_it_off(asked):
    alive = {"alive": m.Alive(run="r", tasks=["0.0", "0.1", "9.9"])}
    assert asked.next(45.0, alive, 45.0, alive, 45.0, done(0)) == Finished(["0.0"])
    assert asked.link.time == 135.0
    assert asked.session.reporting.warnings() == []
    assert asked.session.next_event() == Ticked()
    assert asked.link.time == 140.0


# Outages


def test_what_is_open_is_said_again_when_the_server_is_back(asked):
    asked.session.reporting.observe(RunInterruption(run="r", round=1))
    asked.next(40.0, done(0))
    asked.said()
    asked.comes(Down())
    asked.comes(Up())
    asked.comes(done(1))
    assert asked.session.next_event() == Finished(["0.1"])
    assert asked.said() == ["run_spec", "ask_spec", "task", "log_event"]


def test_nothing_is_said_while_the_server_is_away(asked):
    asked.next(Down(), done(0))
    asked.send(0, attempt=2)
    asked.session.reporting.observe(RunInterruption(run="r", round=1))
    assert asked.said() == []
    asked.comes(Up())
    asked.next(done(1))
    assert [task.attempt for task in asked.link.sent and asked.said("task")] == [1, 2]


def test_after_an_outage_the_patience_begins_anew(asked):
    asked.next(done(1))
    assert asked.next(49.0, Down(), Up(), 40.0, done(0)) == Finished(["0.0"])
    assert asked.session.reporting.warnings() == []


# Blobs


def test_a_large_update_is_fetched_and_let_go_of_with_its_ask(asked, tmp_path):
    inline = payload_of(update_of())
    blob = blob_of(inline)
    path = tmp_path / "update"
    path.write_bytes(inline.inline)
    sha = blob.blob.sha256
    asked.comes(done(0, update=blob), done(1, update=blob), Down(), Up(), Arrived(sha, path))
    assert asked.session.next_event() == Finished(["0.0", "0.1"])
    assert asked.link.fetched == [sha, sha]
    for client in (0, 1):
        asked.session.do(Admit([f"0.{client}"], 0))
    assert len(asked.session.close(0).partial.receipts) == 2
    assert asked.link.released == []
    asked.session.next_event()
    assert asked.link.released == []
    asked.session.forget(set())
    assert asked.link.released == [sha]


def test_an_update_that_is_not_to_be_had_may_be_made_again(asked):
    blob = blob_of(payload_of(update_of()))
    event = asked.next(done(0, update=blob), Missing(blob.blob.sha256, "it is gone"))
    assert event == Failed("0.0", "its update is not to be had: it is gone", True)


def test_an_update_that_nobody_wants_any_more_is_let_go_of(asked, tmp_path):
    inline = payload_of(update_of())
    blob = blob_of(inline)
    path = tmp_path / "update"
    path.write_bytes(inline.inline)
    asked.next(done(0, update=blob), done(1))
    asked.session.do(Cancel(["0.0"]))
    asked.send(1, attempt=2)
    asked.next(done(0, update=blob), Arrived(blob.blob.sha256, path), failed(1, attempt=2))
    assert asked.link.released == [blob.blob.sha256]
    assert len(asked.link.fetched) == 1


def test_the_model_of_an_ask_is_let_go_of_unless_another_ask_needs_it(tmp_path):
    stage = Stage(tmp_path, inline=0)
    stage.open(0, cohort=(0,), config=lambda client: {})
    stage.send(0)
    (task,) = stage.said("task")
    stage.open(1, cohort=(1,))
    (spec,) = stage.said("ask_spec")
    model, shared = spec.model.blob.sha256, spec.shared.blob.sha256
    stage.next(done(0))
    stage.session.close(0)
    stage.session.forget({1})
    assert task.own.blob.sha256 in stage.link.released
    assert model not in stage.link.released
    stage.session.close(1)
    stage.session.forget(set())
    assert {model, shared} <= set(stage.link.released)


# Partials


def test_a_partial_answers_several_tasks_at_once(asked):
    assert asked.next(partial_of(0, 1, kept=["0.1"])) == Finished(["0.0", "0.1"])
    for client in (0, 1):
        asked.session.do(Admit([f"0.{client}"], 0))
    closed = asked.session.close(0)
    assert set(closed.partial.receipts) == {"0.0", "0.1"}
    assert {client: encoding.decode(state) for client, state in closed.states.items()} == {1: {"held": "0.1"}}


def test_partials_and_results_give_the_same_bits(tmp_path):
    found = []
    for items in ([done(0), done(1)], [partial_of(0), done(1)], [partial_of(1, 0)]):
        stage = Stage(tmp_path)
        stage.open()
        stage.send(0, 1)
        found.append(encoding.encode(finish(stage, *items).partial.to_tree()["sums"]))
    assert len(set(found)) == 1


def test_a_partial_with_tasks_that_are_over_is_to_be_folded_again(asked):
    asked.next(done(0))
    assert asked.next(partial_of(0, 1), partial_of(0), partial_of(1)) == Finished(["0.1"])
    assert asked.said("refold") == [m.Refold(run="r", ask=0, without=["0.0"])]


@pytest.mark.parametrize(
    ("partial", "reason"),
    [
        (partial_of(0, 1, tree=[1]), "this is no partial"),
        (partial_of(0, 1, fold=mean()), "the ask folds by"),
        (partial_of(0, receipts=["0.0", "0.1"]), "does not hold what its receipts say"),
        (partial_of(0, 1, receipts=["0.0", "0.1"], tree={"version": 1}), "this is no partial"),
        (partial_of(0, 1, receipts=["0.0", "0.1"], ask=5), "another ask"),
    ],
)
def test_a_wrong_partial_fails_its_tasks(asked, partial, reason):
    asked.comes(partial)
    for id in ("0.0", "0.1"):
        event = asked.session.next_event()
        assert isinstance(event, Failed)
        assert event.task == id
        assert "a relay's partial cannot be folded: " in event.reason
        assert reason in event.reason
    assert asked.session.close(0).partial.receipts == {}


def test_a_window_that_does_not_take_all_takes_no_partials(stage):
    stage.open(window=Window(close_after=1))
    stage.send(0)
    event = stage.next(partial_of(0))
    assert "does not take partials" in event.reason


# The end of asks


def test_an_ask_is_closed_on_the_server_only_after_its_round_is_committed(asked):
    finish(asked, done(0), done(1))
    asked.open(1)
    assert asked.session.next_event() is None
    assert asked.said() == ["ask_spec"]
    asked.session.close(1)
    assert asked.said() == []
    asked.session.forget(set())
    assert asked.said("close_ask") == [m.CloseAsk(run="r", ask=0), m.CloseAsk(run="r", ask=1)]


def test_a_run_that_goes_on_closes_what_its_last_round_may_have_left_open(tmp_path):
    fields = {"kind": "train", "lane": "train", "digest": "", "asked": 1, "count": 1}
    closed = [AskClosed(ask=k, round=1 + k // 2, **fields) for k in range(5)]
    committed = [RoundCommitted(round=r, asks=2 * r, clients=2, dropped=0) for r in (1, 2)]
    log = [*closed[:2], committed[0], *closed[2:4], committed[1], closed[4]]
    stage = Stage(tmp_path, log=log)
    stage.session.forget(set())
    assert [body.ask for body in stage.said("close_ask")] == [2, 3]
    stage.session.forget(set())
    assert stage.said() == []


def test_the_end_of_an_ask_is_said_again_unless_the_server_has_heard_of_it(asked):
    finish(asked, done(0), done(1))
    asked.session.forget(set())
    asked.open(1)
    asked.send(0, ask=1)
    asked.said()
    asked.next(Down(), Up(), failed(0, ask=1))
    assert asked.said("close_ask") == [m.CloseAsk(run="r", ask=0)]
    asked.session.reporting.observe(RunInterruption(run="r", round=1))
    asked.send(0, ask=1, attempt=2)
    asked.said()
    acknowledged = {"log_ack": m.LogAck(run="r", number=1)}
    asked.next(acknowledged, Down(), Up(), failed(0, ask=1, attempt=2))
    assert asked.said() == ["run_spec", "ask_spec", "task"]


def test_asks_whose_tasks_may_come_late_stay_until_they_are_forgotten(stage):
    stage.open(window=KEEP, lane="l")
    stage.send(0, 1)
    stage.next(done(0))
    stage.session.do(Admit(["0.0"], 0))
    stage.session.close(0)
    stage.session.forget({0})
    stage.open(1, window=KEEP, lane="l")
    stage.said()
    assert stage.next(done(1, kept=True)) == Finished(["0.1"])
    stage.session.do(Admit(["0.1"], 1, staleness=1, factor=0.5))
    closed = stage.session.close(1)
    assert closed.partial.receipts["0.1"].staleness == 1
    assert encoding.decode(closed.states[1]) == {"held": "0.1"}
    stage.session.forget(set())
    assert {body.ask for body in stage.said("close_ask")} == {0, 1}


def test_late_tasks_outlive_a_restart(stage, tmp_path):
    stage.open(window=KEEP, lane="l", config=lambda client: {"who": client}, fold=total())
    stage.send(0, 1)
    late = Task("0.1", 0, 1, 1)
    saved = encoding.decode(encoding.encode(stage.session.save_asks([late])))
    again = Stage(tmp_path)
    again.session.restore_asks(saved)
    (spec,) = again.said("ask_spec")
    first = stage.said("ask_spec")[0]
    assert (spec.ask, spec.digest, spec.fold) == (0, first.digest, first.fold)
    again.open(1, window=KEEP, lane="l")
    again.session.do(Send([late]))
    assert encoding.decode(again.said("task")[0].own.inline)["config"] == {"who": 1}
    assert again.next(done(1)) == Finished(["0.1"])


# The log


def test_events_are_numbered_and_kept_until_the_server_has_them(asked):
    asked.session.reporting.observe(RunInterruption(run="r", round=1))
    asked.session.reporting.observe(RoundStarted(round=2, rounds=3))
    asked.session.reporting.observe(RunInterruption(run="r", round=2))
    told = asked.said("log_event")
    assert [event.number for event in told] == [1, 0, 2]
    assert json.loads(told[1].event)["event"] == "round_started"
    asked.next({"log_ack": m.LogAck(run="r", number=1)}, Down(), Up(), done(0))
    assert [event.number for event in asked.said("log_event")] == [2]
    asked.next({"log_ack": m.LogAck(run="r", number=2)}, done(1))
    asked.session.reporting.observe(RunInterruption(run="r", round=3))
    assert [event.number for event in asked.said("log_event")] == [3]


def test_a_run_that_goes_on_says_its_log_from_the_beginning(tmp_path):
    log = [RunInterruption(run="r", round=1), RoundStarted(round=2, rounds=3), RunInterruption(run="r", round=2)]
    stage = Stage(tmp_path, log=log)
    stage.session.reporting.observe(RunResumed(run="r", round=1))
    assert [event.number for event in stage.said("log_event")] == [1, 2, 3]


# The end of the run


def finished(error=None):
    return RunFinished(run="r", rounds=1, reason="rounds", error=error)


@pytest.mark.parametrize(("error", "status"), [(None, "finished"), ("no updates", "failed")])
def test_a_run_that_is_over_says_so_once_its_log_is_stored(stage, error, status):
    stage.session.reporting.observe(finished(error))
    stage.comes({"log_ack": m.LogAck(run="r", number=1)})
    stage.session.disconnect()
    assert stage.said() == ["log_event", "close_run"]
    assert stage.link.closed
    again = Stage(stage.link.folder, log=[finished(error)])
    again.comes({"log_ack": m.LogAck(run="r", number=1)})
    again.session.disconnect()
    assert again.said("close_run") == [m.CloseRun(run="r", status=status)]


def test_it_waits_so_long_and_no_longer(stage):
    stage.session.reporting.observe(finished())
    stage.session.disconnect()
    assert stage.link.time == PARTING
    assert stage.link.closed


def test_a_run_that_is_not_over_leaves_the_server_what_it_has(tmp_path):
    for log in ([], [RunInterruption(run="r", round=1)], [finished(), RunResumed(run="r", round=1)]):
        stage = Stage(tmp_path, log=log)
        stage.session.disconnect()
        assert "close_run" not in stage.said()
        assert stage.link.closed


# Who takes part


def test_a_client_that_does_not_take_part_is_told_of(asked):
    members = [
        m.Member(client="0", standing=m.STANDING_READY),
        m.Member(client="1", standing=m.STANDING_REFUSED, reason="no data"),
    ]
    assert asked.next({"members": m.Members(run="r", members=members)}) == Ticked()
    assert asked.session.reporting.warnings() == [(1, "it does not take part: no data")]
    assert asked.session.members == {0: (m.STANDING_READY, ""), 1: (m.STANDING_REFUSED, "no data")}


# What nobody honest sends

KINDS = ("update", "receipt", "like", "free", "state", "correction", "answer", "none")
PARTS = ("[]", "3", "[1, 2, 3, 4, 5]", "[null, null, null, null, null, null]", '["a", "b"]', "[{}, -1]")
JUNK = [
    *("null", "true", "-1", "3", "Infinity", "NaN", "1e999", str(2**70), '""', '"w"', "[]", "{}", "[[[[1]]]]"),
    *("[" * depth + "]" * depth for depth in (60, 990)),
    *(f'{{"~": "{kind}", "at": "3/a"}}' for kind in ("array", "scalar", "bytes")),
    *('{"~": "array", "at": "w"}', '{"~": "tuple", "items": 3}', '{"~": "map", "pairs": [[[], 1]]}'),
    *('{"~": "map", "pairs": [3]}', '{"~": "arrays", "names": 3, "roles": 3}'),
    '{"~": "arrays", "names": {"w": "3/a"}, "roles": {"w": "queen"}}',
    *(f'{{"~": "{kind}", "parts": {parts}}}' for kind in KINDS for parts in PARTS),
]


def forged(data, place, junk):
    """What `encoding.encode` made, with junk in one place of its tree."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    told = json.loads(header["__metadata__"]["umbel"])
    places = []

    def walk(tree, at):
        places.append(at)
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
            walk(value, (*at, key))

    walk(told, ())
    at = places[place % len(places)]
    if not at:
        told = "@"
    else:
        tree = told
        for key in at[:-1]:
            tree = tree[key]
        tree[at[-1]] = "@"
    header["__metadata__"]["umbel"] = json.dumps(told).replace('"@"', junk)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


@given(place=st.integers(0, 40), junk=st.sampled_from(JUNK))
def test_whatever_a_node_sends_costs_it_its_task_at_the_most(place, junk):
    honest = encoding.encode(update_of(metrics={"loss": 1.0}, aux={"a": np.ones(1)}))
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder))
        stage.open(expects=Like(aux=Free()))
        stage.send(0, 1)
        forgery = m.Payload(inline=forged(honest, place, junk))
        assert isinstance(stage.next(done(0, update=forgery)), Finished | Failed)
        assert stage.next(done(1)) == Finished(["0.1"])
        stage.session.close(0)


@given(place=st.integers(0, 60), junk=st.sampled_from(JUNK))
def test_whatever_a_relay_sends_costs_it_its_tasks_at_the_most(place, junk):
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder))
        stage.open()
        stage.send(0, 1)
        message = partial_of(0, 1)
        message["partial"].partial.inline = forged(message["partial"].partial.inline, place, junk)
        assert isinstance(stage.next(message), Finished | Failed)
        stage.session.close(0)


@pytest.mark.parametrize("what", ["result", "alive", "cancel", "nothing"])
def test_what_comes_of_one_task_looks_at_no_other(tmp_path, what):
    def effort(count):
        stage = Stage(tmp_path)
        stage.open(0, tuple(range(count)))
        stage.open(1, tuple(range(count)))
        stage.send(*range(count))
        stage.send(*range(count), ask=1)  # these wait for their clients
        alive = {"alive": m.Alive(run="r", tasks=["0.0", "0.1"])}
        stage.comes(
            *{"result": [done(0)], "alive": [alive, done(0)], "cancel": [done(0)], "nothing": [5.0, done(0)]}[what]
        )
        if what == "cancel":
            return lines(lambda: stage.session.do(Cancel("1.5")))
        return lines(stage.session.next_event)

    assert effort(300) <= 1.2 * effort(10)
