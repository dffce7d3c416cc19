"""What a session tells the coordinator of, when, and what it hands to which worker: with workers that a test plays."""

from __future__ import annotations

import socket
from collections import deque
from contextlib import closing

import numpy as np
import pytest
from tests.simulation.test_workers import ASYNC, FLEETS, app_of

import umbel
from umbel import Arrays, Ask, Client, FedAvg, Simulation, Update, Window, collect, mean
from umbel.core.partial import Partial
from umbel.core.randomness import Key
from umbel.core.task import Admit, AllFinished, Cancel, Failed, Finished, Send, Task, Ticked
from umbel.errors import AppError
from umbel.runs.coordinator import Wake
from umbel.simulation import hosts
from umbel.simulation import session as session_module
from umbel.simulation.hosts import WorkerHost
from umbel.simulation.processes import Process
from umbel.simulation.session import IN_VAIN, SimulationSession
from umbel.simulation.status import BATCH, PLACE, STEPS
from umbel.simulation.worker import Report
from umbel.work.account import Account
from umbel.work.state import ClientStates

MODEL = Arrays({"w": np.zeros(2)})
IN_TURN = Window(close_after=50)
"""Not plain: its results are told of in turn."""


class Wire:
    """The main process's end of the channel to a worker that is played; what it sends goes to the stage at once."""

    def __init__(self, stage, index):
        self.stage, self.index = stage, index
        self.near, self.far = socket.socketpair()
        self.inbox, self.outbox = deque(), deque()
        self.work = None
        self.dead = False

    def fileno(self):
        return self.near.fileno()

    def tell(self, *message):
        self.inbox.append(message)
        self.far.send(b".")

    def hang_up(self):
        self.dead = True
        self.inbox.append(None)
        self.far.send(b".")

    waiting = False

    def post(self, message):
        self.send(message)

    def post_parcel(self, parcel):
        self.send_parcel(parcel)

    def send(self, message):
        self.outbox.append(message)
        self.stage.go_on(self)

    def send_parcel(self, parcel):
        pass

    def receive(self):
        self.near.recv(1)
        message = self.inbox.popleft()
        if message is None:
            raise EOFError
        return message

    def close(self):
        self.near.close()
        self.far.close()


class Played(Process):
    """A worker process that is not one."""

    pid = 0

    def kill(self):
        pass

    def ended(self):
        return "fell over"

    def dismiss(self):
        pass


class Clock:
    """Stands for the `time` module."""

    now = 0.0

    def monotonic(self):
        return self.now

    perf_counter = monotonic


class Stage:
    """Plays the workers of a session. `plan` maps a task's id to what comes of it, the next time it is done: a text, it
    fails; `"crash"`; `"wait"`, until `finish` is called for it; a list, one after the other. All else succeeds at once.
    """

    def __init__(self, size, clock):
        self.size, self.clock = size, clock
        self.plan = {}
        self.waiting = {}
        self.wires = []
        self.handed = []
        self.admitted = []
        self.cancelled = []
        self.folded = {}
        self.dismissed = False
        self.after = lambda task: None

    def hire(self, index):
        wire = Wire(self, index)
        self.wires.append(wire)
        self.row = memoryview(bytearray(64)).cast("Q")
        wire.worker = WorkerHost(index, Played(wire), self.row, None)
        return wire.worker

    def dismiss(self):
        self.dismissed = True

    def go_on(self, wire):
        """Do what a worker has been sent, as far as it gets."""
        while wire.outbox and wire.work is None and not wire.dead:
            self.heard(wire, wire.outbox.popleft())

    def heard(self, wire, message):
        kind, *rest = message
        if kind == "do":
            wire.work = self.do(wire, *rest)
            self.finish_or_wait(wire)
        elif kind == "admit":
            self.admitted += rest[0]
        elif kind == "cancel":
            self.cancelled += rest[0]
        elif kind == "close":
            wire.tell("partial", rest[0], (Partial(mean()).contents(), {}, {}, Account()))

    def finish_or_wait(self, wire):
        if next(wire.work, "done") == "done":
            wire.work = None

    def do(self, wire, batch, portions):
        """A batch, task by task; yields where it waits."""
        report, row = Report(batch), wire.worker.row
        row[BATCH], row[PLACE] = batch, 0
        for ask, clients, folded, states, _, admits in portions:
            self.admitted += admits
            for client in clients:
                task = f"{ask}.{client}"
                row[PLACE] += 1
                row[STEPS] = 0
                self.handed.append((wire.index, task, states.get(client)))
                self.folded[task] = folded
                what = self.plan.get(task)
                if isinstance(what, list):
                    what = what.pop(0) if what else None
                if what == "crash":
                    wire.hang_up()
                    return
                if what == "wait":
                    self.waiting[task] = wire
                    yield "waiting"
                elif what is not None:
                    report.failed[task] = Failed(task, what)
                report.seconds.append(0.001)
                self.after(task)
        row[PLACE] = 0
        wire.tell("report", report, Account())

    def finish(self, task):
        """A task that waits is done now."""
        wire = self.waiting.pop(task)
        self.finish_or_wait(wire)
        self.go_on(wire)

    @property
    def tasks(self):
        return [task for _, task, _ in self.handed]


class Impatient:
    """A selector that never waits: time passes instead, and waiting for what cannot come is an error."""

    def __init__(self, selector, clock):
        self.selector, self.clock = selector, clock

    def __getattr__(self, name):
        return getattr(self.selector, name)

    def select(self, timeout=None):
        found = self.selector.select(0)
        assert found or timeout is not None, "the session waits for what never comes"
        if not found:
            self.clock.now += timeout
        return found


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(session_module, "time", made)
    monkeypatch.setattr(hosts, "time", made)
    return made


@pytest.fixture
def on_stage(clock):
    """Make sessions with played workers."""
    made = []

    def make(workers=2, **settings):
        stage, states = Stage(workers, clock), ClientStates()
        session = SimulationSession(states, crew=stage, key=Key.from_seed(0), clock=clock.monotonic, **settings)
        session._selector = Impatient(session._selector, clock)
        made.append((session, states))
        return session, stage, states

    yield make
    for session, states in made:
        session.disconnect()
        states.close()


def opened(session, id, clients=(), window=IN_TURN, lane="train", **how):
    ask = Ask(clients=2, **{"model": MODEL, "lane": lane, "fold": mean(), "window": window, **how})
    session.open(id, ask, 1, id, None, tuple(clients))
    send(session, *(f"{id}.{client}" for client in clients))


def send(session, *ids):
    for id in ids:
        ask, client = map(int, id.split("."))
        session.do(Send(Task(id, ask, client)))


def told(session, count, *, admit=None):
    """The tasks that so many events tell of, each admitted into an ask if one is given."""
    found = []
    while len(found) < count:
        event = session.next_event()
        tasks = event.tasks if isinstance(event, AllFinished) else [event.task]
        for task in tasks:
            if admit is not None and not isinstance(event, Failed):
                session.do(Admit(task, admit))
        found += tasks
    return found


# The order of telling


def test_results_are_told_of_in_turn_whatever_finishes_first(on_stage):
    session, stage, _ = on_stage(3)
    stage.plan = {"0.5": "wait", "0.7": "wait"}
    stage.after = lambda task: [stage.finish(t) for t in ("0.7", "0.5")] if task == "0.3" else None
    opened(session, 0, [5, 7, 2, 3])
    assert told(session, 4) == ["0.5", "0.7", "0.2", "0.3"]
    assert stage.tasks == ["0.5", "0.7", "0.2", "0.3"]
    assert [index for index, _, _ in stage.handed] == [0, 1, 2, 2]


def test_results_of_a_plain_ask_are_told_of_as_they_come(on_stage):
    session, stage, _ = on_stage(2)
    stage.plan = {"0.4": "wait"}
    stage.after = lambda task: stage.finish("0.4") if task == "0.3" else None
    opened(session, 0, [4, 7, 2, 3], Window())
    assert "0.4" in told(session, 4, admit=0)[2:]
    assert all(stage.folded.values())
    assert stage.admitted == []
    session.close(0)


def test_only_what_is_admitted_is_folded_where_a_window_may_refuse(on_stage):
    session, stage, _ = on_stage()
    opened(session, 0, [1, 2, 3])
    told(session, 3)
    assert not any(stage.folded.values())
    session.do(Admit("0.2", 0, staleness=1, factor=0.5))
    for id in ("0.1", "0.3"):
        session.do(Cancel(id))
    session.close(0)
    assert stage.admitted == [Admit("0.2", 0, staleness=1, factor=0.5)]
    opened(session, 1, [4, 5])
    told(session, 2)
    assert set(stage.cancelled) <= {"0.1", "0.3"}
    assert stage.cancelled


def test_asks_that_are_open_at_once_come_one_after_the_other(on_stage):
    session, _, _ = on_stage()
    opened(session, 0, lane="a")
    opened(session, 1, lane="b")
    send(session, "1.1", "1.2", "0.3", "0.4")
    assert told(session, 4) == ["0.3", "0.4", "1.1", "1.2"]


def test_failures_have_their_turn_too(on_stage):
    session, stage, _ = on_stage()
    stage.plan = {"0.7": "no such table"}
    opened(session, 0, [5, 7, 2])
    assert [session.next_event() for _ in range(3)] == [
        Finished("0.5"),
        Failed("0.7", "no such table"),
        Finished("0.2"),
    ]


def test_there_is_no_event_where_nothing_is_to_come(on_stage):
    session, _, _ = on_stage()
    opened(session, 0, [1])
    told(session, 1)
    assert session.next_event() is None


# Late tasks


def test_late_tasks_wait_for_the_next_ask_of_their_lane(on_stage):
    session, stage, _ = on_stage()
    opened(session, 0, [1, 2], ASYNC)
    assert told(session, 1, admit=0) == ["0.1"]
    session.close(0)
    opened(session, 1, [1], Window(), lane="evaluate", kind="evaluate")
    assert told(session, 1, admit=1) == ["1.1"]
    assert session.next_event() is None
    session.close(1)
    session.forget({0})
    opened(session, 2, [3], ASYNC)
    assert told(session, 2, admit=2) == ["0.2", "2.3"]
    session.close(2)
    assert {(a.task, a.ask) for a in stage.admitted} == {("0.1", 0), ("0.2", 2), ("2.3", 2)}


def test_a_function_of_the_client_is_called_when_the_task_is_sent_and_once_where_it_may_be_late(on_stage):
    session, _, _ = on_stage()
    calls = []
    opened(session, 0, [1, 2], ASYNC, config=lambda c: calls.append(c) or {"c": c})
    assert calls == [1, 2]
    told(session, 2)
    session.save_asks([Task("0.1", 0, 1)])
    assert calls == [1, 2]


# State


def test_a_client_of_two_asks_is_done_with_the_first_before_the_second(on_stage):
    session, stage, states = on_stage(3)
    opened(session, 0, [1, 2], lane="a")
    opened(session, 1, [2, 3], lane="b")
    assert told(session, 2, admit=0) == ["0.1", "0.2"]
    assert "1.2" not in stage.tasks
    session.close(0)
    states.advance(0, {2: b"after the first"}, since=0)
    assert told(session, 2, admit=1) == ["1.2", "1.3"]
    assert [state for _, task, state in stage.handed if task == "1.2"] == [b"after the first"]
    session.close(1)


def test_what_was_done_with_a_state_that_has_changed_since_is_done_again(on_stage):
    session, stage, states = on_stage()
    opened(session, 0, [1, 2], ASYNC)
    told(session, 1, admit=0)
    session.close(0)
    opened(session, 1, [2], Window(), lane="evaluate", kind="evaluate")
    told(session, 1, admit=1)
    session.close(1)
    assert stage.tasks.count("0.2") == 1
    states.advance(1, {2: b"evaluated"}, since=0)
    opened(session, 2, [], ASYNC)
    assert told(session, 1, admit=2) == ["0.2"]
    assert [state for _, task, state in stage.handed if task == "0.2"] == [None, b"evaluated"]
    session.close(2)
    assert [admit.task for admit in stage.admitted] == ["0.1", "0.2"]


def test_a_worker_that_is_lost_just_when_what_it_did_is_done_again(on_stage):
    session, stage, states = on_stage(1, fleet=FLEETS["alike"]())
    opened(session, 0, [1, 2])
    session._hand_out()
    session._listen()
    states.advance(0, {1: b"new", 2: b"new"}, since=0)
    stage.wires[0].hang_up()
    assert told(session, 2, admit=0) == ["0.1", "0.2"]
    session.close(0)
    assert [admit.task for admit in stage.admitted] == ["0.1", "0.2"]
    assert stage.tasks.count("0.1") == 2


def test_what_ends_beside_late_tasks_is_told_of_in_turn(on_stage):
    """Its client may be one whose late task ends, and leaves a state, in an ask before."""
    session, stage, states = on_stage()
    opened(session, 0, [1, 2], ASYNC)
    told(session, 1, admit=0)
    session.close(0)
    opened(session, 1, [3], ASYNC)
    opened(session, 2, [2], Window(), lane="other")
    assert told(session, 2, admit=1) == ["0.2", "1.3"]
    session.close(1)
    states.advance(1, {2: b"late"}, since=0)
    assert told(session, 1, admit=2) == ["2.2"]
    assert [state for _, task, state in stage.handed if task == "2.2"][-1] == b"late"
    session.close(2)


# Lost workers


def test_what_a_lost_worker_held_is_done_again_and_folded_as_before(on_stage):
    session, stage, _ = on_stage(1)
    opened(session, 0, [1, 2, 3])
    assert told(session, 2) == ["0.1", "0.2"]
    session.do(Admit("0.1", 0, staleness=2, factor=0.25))
    session.do(Cancel("0.2"))
    stage.wires[0].hang_up()
    assert told(session, 1, admit=0) == ["0.3"]
    session.close(0)
    assert stage.tasks.count("0.1") >= 2
    assert stage.admitted[-2:].count(Admit("0.1", 0, staleness=2, factor=0.25)) == 1
    assert "0.2" not in stage.tasks[3:]


def test_it_is_done_again_with_the_state_of_the_first_time(on_stage):
    session, stage, states = on_stage(1)
    states.advance(0, {1: b"first"}, since=0)
    opened(session, 1, [1, 2, 3])
    assert told(session, 1, admit=1) == ["1.1"]
    states.advance(2, {1: b"since then", 2: b"new"}, since=0)
    stage.wires[0].hang_up()
    assert told(session, 2, admit=1) == ["1.2", "1.3"]
    session.close(1)
    handed = [(task, state) for _, task, state in stage.handed]
    assert set(handed) == {("1.1", b"first"), ("1.2", b"new"), ("1.3", None)}
    assert handed.count(("1.1", b"first")) == 2


@pytest.mark.parametrize("attempts", [1, 2, 4])
@pytest.mark.parametrize("window", [IN_TURN, Window()])
def test_only_who_was_at_work_is_suspected_and_fails_after_so_many_attempts(window, attempts, on_stage):
    session, stage, _ = on_stage(2, attempts=attempts)
    stage.plan = {"0.6": "crash"}
    opened(session, 0, [1, 6, 3, 4], window)
    events = []
    while len(events) < 4:
        event = session.next_event()
        events += [Finished(t) for t in event.tasks] if isinstance(event, AllFinished) else [event]
    assert [e for e in events if isinstance(e, Failed)] == [Failed("0.6", "its process fell over")]
    assert {e.task for e in events} == {"0.1", "0.6", "0.3", "0.4"}
    assert stage.tasks.count("0.6") == attempts
    if window is IN_TURN:
        assert [e.task for e in events] == ["0.1", "0.6", "0.3", "0.4"]


def test_the_turn_of_a_client_is_kept_while_it_is_tried_again(on_stage):
    session, stage, _ = on_stage(3)
    stage.plan = {"0.1": ["crash", "crash"], "0.3": ["crash"]}
    opened(session, 0, [1, 2, 3])
    assert told(session, 3) == ["0.1", "0.2", "0.3"]


def test_a_task_that_fails_when_its_lost_result_is_done_again_is_refused(on_stage):
    session, stage, _ = on_stage(1, attempts=2)
    opened(session, 0, [1, 2])
    told(session, 1, admit=0)
    stage.plan = {"0.1": "no such table"}
    stage.wires[0].hang_up()
    told(session, 1, admit=0)
    assert session.close(0).refused == {1: "no such table"}


def test_a_result_that_is_admitted_while_it_is_done_again_is_folded(on_stage):
    session, stage, _ = on_stage(1, fleet=FLEETS["alike"]())
    opened(session, 0, [1, 2, 3])
    assert told(session, 1) == ["0.1"]
    stage.plan = {"0.1": ["wait"]}
    stage.wires[0].hang_up()
    stage.after = lambda task: None
    session._listen()
    session._hand_out()
    assert stage.waiting.keys() == {"0.1"}
    session.do(Admit("0.1", 0))
    stage.finish("0.1")
    told(session, 2, admit=0)
    session.close(0)
    assert {admit.task for admit in stage.admitted} == {"0.1", "0.2", "0.3"}


def test_a_worker_lost_while_an_ask_closes(on_stage):
    session, stage, _ = on_stage(2)
    opened(session, 0, [1, 2, 3, 4], Window())
    told(session, 4, admit=0)
    heard, crashed = stage.heard, []

    def deadly(wire, message):
        if message[0] == "close" and not crashed and wire.index == 1:
            crashed.append(set(stage.tasks))
            wire.hang_up()
        else:
            heard(wire, message)

    stage.heard = deadly
    before = [task for index, task, _ in stage.handed if index == 1]
    session.close(0)
    again = stage.tasks[4:]
    assert sorted(again) == sorted(before)
    assert session._tickets == {}


def test_workers_that_end_before_they_do_anything_end_the_run(on_stage):
    session, stage, _ = on_stage(2)
    hire = stage.hire

    def stillborn(index):
        worker = hire(index)
        worker.process.channel.hang_up()
        return worker

    stage.hire = stillborn
    for wire in stage.wires:
        wire.hang_up()
    opened(session, 0, [1, 2])
    with pytest.raises(AppError, match="worker processes end before they can do anything; the last fell over"):
        session.next_event()
    assert len(stage.wires) <= 2 + IN_VAIN


# Time


def test_a_deadline_comes_when_nothing_else_does(on_stage, clock):
    session, stage, _ = on_stage()
    stage.plan = {"0.1": "wait"}
    opened(session, 0, [1, 2, 3], Window(deadline=5.0))
    session.do(Wake(5.0))
    assert sorted(told(session, 2, admit=0)) == ["0.2", "0.3"]
    assert session.next_event() == Ticked()
    assert clock.now == 5.0


def test_before_a_deadline_nobody_waits_for_late_tasks(on_stage, clock):
    session, stage, _ = on_stage()
    window = Window(deadline=5.0, late="keep")
    stage.plan = {"0.1": "wait"}
    opened(session, 0, [1, 2], window)
    session.do(Wake(5.0))
    assert told(session, 1, admit=0) == ["0.2"]
    assert session.next_event() == Ticked()
    session.close(0)
    opened(session, 1, [3, 4], window)
    assert told(session, 2, admit=1) == ["1.3", "1.4"]
    stage.finish("0.1")
    assert told(session, 1, admit=1) == ["0.1"]


def test_a_worker_that_shows_no_progress_is_ended(on_stage, clock, monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(hosts, "_processor_time", lambda pid: next(ticks) if clock.now < 10 else 10_000)
    session, stage, _ = on_stage(1, attempts=1, stall=3.0)
    stage.plan = {"0.1": "wait"}
    opened(session, 0, [1, 2])
    event = session.next_event()
    assert event == Failed("0.1", "its process showed no progress for 3 seconds and was ended")
    assert 13.0 <= clock.now < 14.0
    assert told(session, 1) == ["0.2"]


def test_a_worker_that_takes_steps_is_not_ended_and_one_that_stopped_taking_them_is(on_stage, clock, monkeypatch):
    monkeypatch.setattr(hosts, "_processor_time", lambda pid: int(clock.now * 100))
    session, stage, _ = on_stage(1, attempts=1, stall=3.0)
    stage.plan = {"0.1": "wait"}
    opened(session, 0, [1])
    watch = session._watch

    def stepping(closing):
        if clock.now < 20:
            stage.row[STEPS] += 1
        watch(closing)

    session._watch = stepping
    assert isinstance(session.next_event(), Failed)
    assert 23.0 <= clock.now < 24.0


@pytest.mark.parametrize("at_the_end", [True, False])
def test_a_worker_is_ended_that_goes_on_with_what_nobody_wants_while_others_wait(at_the_end, on_stage, clock):
    session, stage, _ = on_stage(1)
    stage.plan = {"0.2": "wait"}
    opened(session, 0, [1, 2])
    assert told(session, 1, admit=0) == ["0.1"]
    session._hand_out()
    session.do(Cancel("0.2"))
    if not at_the_end:
        session.do(Cancel("0.1"))
        session._open.clear()
    if at_the_end:
        session.close(0)
        assert stage.tasks == ["0.1", "0.2", "0.1"]
    else:
        opened(session, 1, [3])
        assert told(session, 1) == ["1.3"]
    assert len(stage.wires) == 2
    assert clock.now > session_module.REPLACED


def test_a_cancelled_task_that_was_not_handed_out_never_is(on_stage):
    session, stage, _ = on_stage(1)
    stage.plan = {"0.1": "wait"}
    opened(session, 0, [1, 2, 3])
    session._hand_out()
    session.do(Cancel("0.2"))
    session.do(Cancel("0.77"))
    stage.finish("0.1")
    assert told(session, 2) == ["0.1", "0.3"]
    assert "0.2" not in stage.tasks


def test_nothing_waits_behind_a_task_that_hangs_and_that_nobody_wants(on_stage):
    session, stage, _ = on_stage(1)
    stage.plan = {"0.2": "wait"}
    opened(session, 0, [1, 2])
    assert told(session, 1) == ["0.1"]
    session._hand_out()
    opened(session, 1, [3], lane="other")
    session._hand_out()
    assert len(stage.wires[0].worker.out) == 2
    session.do(Cancel("0.2"))
    assert told(session, 1) == ["1.3"]
    assert stage.tasks[-1] == "1.3"


def test_tasks_with_a_deadline_are_handed_out_one_by_one(on_stage):
    session, stage, _ = on_stage(1)
    opened(session, 0, [9])
    told(session, 1)
    stage.plan = {"1.3": "wait"}
    opened(session, 1, [1, 2, 3, 4], Window(deadline=5.0), lane="other")
    session.do(Wake(5.0))
    assert told(session, 2) == ["1.1", "1.2"]
    assert session.next_event() == Ticked()


# Real workers


def test_a_session_with_real_workers(tmp_path):
    client = Client()

    @client.train
    def train(model, data, ctx):
        ctx.state["n"] = ctx.state.get("n", 0) + 1
        if ctx.client == 3:
            with (tmp_path / "count").open("ab") as file:
                file.write(b"x")
                file.flush()
                if file.tell() == 1:
                    raise SystemExit(1)
        return Update({"w": model["w"] + ctx.client})

    with closing(ClientStates()) as states:
        session = Simulation(10, workers=2).connect(client, {}, Key.from_seed(0), states)
        opened(session, 0, [4, 2, 3, 9], fold=collect())
        events = [session.next_event() for _ in range(4)]
        assert [e.task for e in events] == ["0.4", "0.2", "0.3", "0.9"]
        assert "SystemExit" in events[2].reason
        for task in ("0.4", "0.9"):
            session.do(Admit(task, 0))
        session.do(Cancel("0.2"))
        closed = session.close(0)
        assert {c: u.arrays["w"][0] for c, u in closed.partial.finish().value.items()} == {4: 4.0, 9: 9.0}
        assert sorted(closed.states) == [4, 9]
        session.disconnect()


@pytest.mark.parametrize("fleet", [None, "spread", "part of the day"])
def test_what_is_over_is_let_go_of(fleet, monkeypatch):
    """However many rounds there were, what a session keeps is what the last of them left."""
    sizes = {}
    disconnect = SimulationSession.disconnect

    def measured(self):
        kept = (self._tickets, self._asks, self._time.sent, self._blocked, self._sizes, self._timeline._heap)
        sizes.setdefault(rounds, [len(part) for part in kept])
        disconnect(self)

    monkeypatch.setattr(SimulationSession, "disconnect", measured)
    for window in (Window(close_after=4), ASYNC):
        sizes.clear()
        for rounds in (5, 40):
            on = {"devices": FLEETS[fleet]()} if fleet else {}
            app = app_of(FedAvg(cohort=8, window=window, fold=mean()), rounds=rounds)
            umbel.run(app, on=Simulation(30, workers=0, **on), seed=1, folder=None)
        assert all(after <= before + 16 for before, after in zip(sizes[5], sizes[40], strict=True)), sizes
