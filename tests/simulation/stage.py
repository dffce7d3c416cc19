"""Workers that a test plays, for sessions without processes."""

from __future__ import annotations

import socket
from collections import deque
from types import SimpleNamespace

import numpy as np

from umbel import Arrays, Ask, Window, mean
from umbel.core.partial import Partial
from umbel.core.task import Admit, Failed, Finished, Send, Task
from umbel.simulation.hosts import HostedWorker
from umbel.simulation.status import BATCH, PLACE, STEPS
from umbel.simulation.worker import Report
from umbel.work.account import Account

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

    def send(self, message):
        if isinstance(message, tuple):  # and no ask, nor what a worker begins with
            self.outbox.append(message)
            self.stage.go_on(self)

    def receive(self):
        self.near.recv(1)
        message = self.inbox.popleft()
        if message is None:
            raise EOFError
        return message

    def close(self):
        self.near.close()
        self.far.close()


class Played:
    """Where a worker is that is played."""

    usage = None

    def __init__(self, channel):
        self.channel = channel

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
        wire.worker = HostedWorker(index, Played(wire), self.row, None)
        return wire.worker

    def keep(self, worker):
        return False

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

    def uses(self, processor_time):
        """Has the system say how much time of the processor the workers have had."""
        for wire in self.wires:
            wire.worker.host.usage = SimpleNamespace(processor_time=processor_time)

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
        if timeout is not None and timeout * 1000 >= 1 << 31:
            raise OverflowError("timeout is too large")  # as the system's own does
        found = self.selector.select(0)
        assert found or timeout is not None, "the session waits for what never comes"
        if not found:
            self.clock.now += timeout
        return found


def opened(session, id, clients=(), window=IN_TURN, lane="train", **how):
    ask = Ask(clients=2, **{"model": MODEL, "lane": lane, "fold": mean(), "window": window, **how})
    session.open(id, ask, 1, id, None, tuple(clients))
    send(session, *(f"{id}.{client}" for client in clients))


def send(session, *ids):
    for id in ids:
        ask, client = map(int, id.split("."))
        session.do(Send([Task(id, ask, client)]))


def told(session, count, *, admit=None):
    """The tasks that so many events tell of, each admitted into an ask if one is given."""
    found = []
    while len(found) < count:
        event = session.next_event()
        tasks = event.tasks if isinstance(event, Finished) else [event.task]
        for task in tasks:
            if admit is not None and not isinstance(event, Failed):
                session.do(Admit([task], admit))
        found += tasks
    return found
