"""The coordinator keeps its promises under any schedule of results, failures, duplicates, late answers, deadlines."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel import Window
from umbel.core.task import Admit, Cancel, Failed, Finished, Send, Task, Ticked
from umbel.errors import InternalError
from umbel.runs import coordinator
from umbel.runs.coordinator import TRANSITIONS, Close, Coordinator, Opened, Step, TaskState, Wake, diagram
from umbel.testing import Schedule, replay

SEEDS = st.integers(0, 2**64)


@dataclass
class Book:
    """What is known of one ask from the commands alone."""

    opened: Opened
    number: int
    closes_at: float | None
    admitted: list[str] = field(default_factory=list)
    clients: set[object] = field(default_factory=set)
    closed: bool = False


def singles(commands):
    """The commands with a command for each task."""
    each = []
    for command in commands:
        blocks = [[task] for task in command.tasks] if isinstance(command, Send | Admit | Cancel) else [None]
        each += [command if tasks is None else replace(command, tasks=tasks) for tasks in blocks]
    return each


class Ledger:
    """Keeps its own books of a schedule and asserts, command by command, what the coordinator promises."""

    def __init__(self, attempts: int = 3) -> None:
        self.attempts = attempts
        self.books: dict[int, Book] = {}
        self.asks_of: Counter[str] = Counter()
        self.open: dict[str, Book] = {}
        self.out: dict[str, dict[str, tuple[Task, int]]] = {}
        self.results: set[str] = set()
        self.attempt: Counter[str] = Counter()
        self.may_retry: set[str] = set()
        self.admitted: set[str] = set()
        self.unwanted: set[str] = set()

    def check(self, log):
        for entry in log:
            self._event(entry)
            for command in singles(entry.commands):
                getattr(self, f"_{type(command).__name__.lower()}")(command, entry)
            for lane, book in self.open.items():
                # Whatever is open can still close: something is out, and it is neither full nor due.
                assert self._busy(lane), entry
                assert book.closes_at is None or entry.now < book.closes_at
                assert len(book.admitted) < (book.opened.window.close_after or 10**9)
        return self

    def _busy(self, lane):
        return [id for id in self.out[lane] if id not in self.results]

    def _event(self, entry):
        event = entry.event
        if isinstance(event, Opened):
            self.asks_of[event.lane] += 1
            deadline = event.window.deadline
            book = Book(event, self.asks_of[event.lane], None if deadline is None else entry.now + deadline)
            self.books[event.ask] = self.open[event.lane] = book
            self.out.setdefault(event.lane, {})
            wakes = [c.at for c in entry.commands if isinstance(c, Wake)]
            assert wakes == ([] if deadline is None else [book.closes_at])
        elif isinstance(event, Finished):
            self.results.update(task for task in event.tasks if any(task in out for out in self.out.values()))
        elif isinstance(event, Failed):
            for out in self.out.values():
                if event.task in out and event.task not in self.results:
                    del out[event.task]
                    if event.retry:
                        self.may_retry.add(event.task)

    def _wake(self, command, entry):
        assert isinstance(entry.event, Opened)

    def _send(self, command, entry):
        (task,) = command.tasks
        book = self.books[task.ask]
        out = self.out[book.opened.lane]
        assert not book.closed or task.attempt > 1, "only a late task that is tried again"
        assert task.client in book.opened.clients
        assert task.id not in out
        assert task.id not in self.admitted | self.unwanted
        assert task.client not in book.clients
        assert task.client not in {t.client for t, _ in out.values()}, "a client works on one task of a lane at a time"
        self.attempt[task.id] += 1
        assert task.attempt == self.attempt[task.id] <= self.attempts
        assert task.attempt == 1 or task.id in self.may_retry
        out[task.id] = (task, book.number)
        if book is self.open.get(book.opened.lane):  # a late task takes the place of its attempt that failed
            assert len(out) <= (book.opened.window.in_flight or 10**9)

    def _admit(self, command, entry):
        book = self.books[command.ask]
        window = book.opened.window
        assert not book.closed, "a closed ask admits nothing more"
        (id,) = command.tasks
        assert id in self.results
        assert id not in self.admitted | self.unwanted, "no task counts twice"
        task, number = self.out[book.opened.lane].pop(id)
        assert task.client not in book.clients, "a client counts once in an ask"
        assert command.staleness == book.number - number
        assert command.factor == window.discount(command.staleness)
        self.admitted.add(task.id)
        book.admitted.append(task.id)
        book.clients.add(task.client)
        assert len(book.admitted) <= (window.close_after or 10**9)

    def _cancel(self, command, entry):
        self.unwanted.update(command.tasks)
        for out in self.out.values():
            out.pop(command.tasks[0], None)

    def _close(self, command, entry):
        book = self.books[command.ask]
        window, lane = book.opened.window, book.opened.lane
        assert not book.closed
        book.closed = True
        del self.open[lane]
        full = window.close_after is not None and len(book.admitted) == window.close_after
        due = book.closes_at is not None and entry.now >= book.closes_at
        cancelled = sum(isinstance(c, Cancel) for c in singles(entry.commands))
        assert full or due or not self.out[lane]
        assert list(command.admitted) == book.admitted
        assert command.enough == (len(book.admitted) >= window.quorum)
        assert not book.clients & command.failed.keys()
        counted = len(book.admitted) + len(command.failed)
        assert counted <= command.asked <= counted + cancelled
        waiting = self.out[lane].values()
        assert list(command.late) == [(task, book.number + 1 - number) for task, number in waiting]
        assert not command.late or window.late == "keep"


@given(SEEDS, st.integers(1, 3), st.integers(1, 3))
def test_any_schedule_keeps_the_promises_and_closes_every_ask(seed, lanes, attempts):
    schedule = Schedule(seed, lanes=lanes, attempts=attempts)
    ledger = Ledger(attempts).check(schedule.run())
    assert all(book.closed for book in ledger.books.values())
    assert not ledger.open


@given(SEEDS, st.sampled_from(["keep", "drop"]))
def test_many_asks_of_few_clients_in_one_lane(seed, late):
    ledger = Ledger().check(Schedule(seed, asks=20, clients=3, lanes=1, late=late).run())
    assert all(book.closed for book in ledger.books.values())


@given(SEEDS)
def test_the_same_log_replays_to_the_same_commands_and_the_same_seed_to_the_same_log(seed):
    log = Schedule(seed).run()
    assert replay(log) == [entry.commands for entry in log]
    assert Schedule(seed).run() == log


def test_the_schedules_take_every_transition_of_the_table(monkeypatch):
    taken = Counter()

    class Counting(dict):
        def get(self, key):
            taken[key] += key in self
            return super().get(key)

    monkeypatch.setattr(coordinator, "TRANSITIONS", Counting(TRANSITIONS))
    for seed in range(300):
        Schedule(seed).run()
    assert taken.keys() == TRANSITIONS.keys()
    assert min(taken.values()) >= 5, taken


def test_the_schedules_bring_about_everything_worth_checking():
    seen = Counter()
    for seed in range(60):
        for entry in Schedule(seed).run():
            for command in entry.commands:
                seen["stale"] += isinstance(command, Admit) and command.staleness > 0
                seen["held"] += isinstance(command, Admit) and isinstance(entry.event, Opened)
                if isinstance(command, Close):
                    seen["enough"] += command.enough
                    seen["short"] += not command.enough
                    seen["late"] += bool(command.late)
                    seen["failed"] += bool(command.failed)
                    seen["due"] += isinstance(entry.event, Ticked)
                    seen["at once"] += isinstance(entry.event, Opened)
                seen["another attempt"] += isinstance(command, Send) and command.tasks[0].attempt > 1
    assert min(seen.values()) >= 10, seen


@given(st.data())
def test_one_that_is_restarted_between_two_asks_goes_on_like_one_that_is_not(data):
    """`Opened.late` restores a lane: from there on both command the same."""
    draw = data.draw
    old, asks, out = Coordinator(), 3, []
    for ask in range(asks):
        out, late = _run_one_ask(draw, old, ask, out)
    window = draw(_windows())
    clients = draw(st.permutations(range(6)))
    new = Coordinator()
    first = old.handle(Opened(asks, "a", clients, window), 0.0)
    again = new.handle(Opened(asks, "a", clients, window, late), 0.0)
    sends = [Send([task]) for task, _ in late]
    assert [c for c in singles(again) if c not in sends] == singles(first)
    assert [c for c in singles(again) if c in sends] == sends
    out += sent(first)
    while out:
        task = out.pop(draw(st.integers(0, len(out) - 1)))
        event = Finished([task]) if draw(st.booleans()) else Failed(task, "no", retry=draw(st.booleans()))
        commands = old.handle(event, 0.0)
        assert new.handle(event, 0.0) == commands
        out += sent(commands)
        if any(isinstance(c, Close) for c in commands):
            break


def _windows():
    def build(in_flight, close_after):
        return Window(in_flight=in_flight, close_after=close_after, quorum=0, late="keep")

    return st.builds(build, st.sampled_from([None, 1, 3]), st.sampled_from([None, 1, 2, 4]))


def _run_one_ask(draw, target, ask, out):
    commands = target.handle(Opened(ask, "a", draw(st.permutations(range(6))), draw(_windows())), 0.0)
    while True:
        out += sent(commands)
        closed = [c for c in commands if isinstance(c, Close)]
        if closed:
            return out, closed[0].late
        commands = target.handle(Finished([out.pop(draw(st.integers(0, len(out) - 1)))]), 0.0)


# One at a time: what each kind of window does


def opened(window=Window(), clients=range(4), ask=0, lane="a", late=()):  # noqa: B008
    return Opened(ask, lane, list(clients), window, late)


def sent(commands):
    return [task.id for c in commands if isinstance(c, Send) for task in c.tasks]


def close_of(commands):
    (found,) = [c for c in commands if isinstance(c, Close)]
    return found


def test_by_default_all_are_sent_at_once_and_waited_for():
    machine = Coordinator()
    assert sent(machine.handle(opened(), 0.0)) == ["0.0", "0.1", "0.2", "0.3"]
    for client in (2, 0, 3):
        assert machine.handle(Finished([f"0.{client}"]), 1.0) == [Admit([f"0.{client}"], 0)]
    last = machine.handle(Failed("0.1", "it broke"), 2.0)
    assert last == [Close(0, True, ("0.2", "0.0", "0.3"), {1: "it broke"}, 4)]


def test_over_selection_closes_early_and_cancels_the_rest():
    machine = Coordinator()
    machine.handle(opened(Window(close_after=2)), 0.0)
    machine.handle(Finished(["0.3"]), 1.0)
    commands = machine.handle(Finished(["0.1"]), 1.0)
    assert commands[:2] == [Admit(["0.1"], 0), Cancel(["0.0", "0.2"])]
    assert close_of(commands) == Close(0, True, ("0.3", "0.1"), {}, 4)
    assert machine.handle(Finished(["0.0"]), 2.0) == [Cancel(["0.0"])]  # too late: let go of it
    assert machine.handle(Failed("0.2", "cancelled"), 2.0) == []


def test_as_many_fly_as_the_window_says():
    machine = Coordinator()
    assert sent(machine.handle(opened(Window(in_flight=2)), 0.0)) == ["0.0", "0.1"]
    assert sent(machine.handle(Finished(["0.1"]), 0.0)) == ["0.2"]
    assert sent(machine.handle(Failed("0.2", "no"), 0.0)) == ["0.3"]
    assert sent(machine.handle(Finished(["0.0"]), 0.0)) == []
    assert close_of(machine.handle(Finished(["0.3"]), 0.0)).admitted == ("0.1", "0.0", "0.3")


def test_a_deadline_closes_with_what_there_is_and_below_the_quorum_that_is_not_enough():
    for quorum, enough in ((1, True), (2, False)):
        machine = Coordinator()
        assert Wake(7.0) in machine.handle(opened(Window(deadline=5.0, quorum=quorum)), 2.0)
        machine.handle(Finished(["0.2"]), 3.0)
        assert machine.handle(Ticked(), 6.9) == []
        commands = machine.handle(Ticked(), 7.0)
        assert [c for c in commands if isinstance(c, Cancel)] == [Cancel(["0.0", "0.1", "0.3"])]
        assert close_of(commands).enough is enough


def test_an_ask_of_nobody_closes_at_once():
    machine = Coordinator()
    assert machine.handle(opened(clients=[]), 0.0) == [Close(0, False, (), {}, 0)]
    assert machine.handle(opened(Window(quorum=0), clients=[], ask=1), 0.0) == [Close(1, True, (), {}, 0)]


def test_late_answers_are_kept_discounted_and_make_room():
    machine = Coordinator()
    window = Window(in_flight=3, close_after=1, late="keep", staleness_exponent=1.0)
    assert sent(machine.handle(opened(window), 0.0)) == ["0.0", "0.1", "0.2"]
    closed = close_of(machine.handle(Finished(["0.1"]), 0.0))
    assert [(task.id, age) for task, age in closed.late] == [("0.0", 1), ("0.2", 1)]
    assert machine.handle(Finished(["0.2"]), 0.0) == []
    assert machine.state_of("0.2") is TaskState.HELD
    commands = machine.handle(opened(window, ask=1), 0.0)
    assert commands[0] == Admit(["0.2"], 1, 1, 0.5)
    assert close_of(commands).late == ((Task("0.0", 0, 0), 2),)
    commands = machine.handle(opened(window, ask=2), 0.0)
    assert sent(commands) == ["2.1", "2.2"]  # client 0 is busy, and with it three are flying
    assert machine.handle(Finished(["0.0"]), 0.0)[0] == Admit(["0.0"], 2, 2, 1 / 3)


def test_what_was_held_and_is_dropped_does_not_come_back():
    machine = Coordinator()
    machine.handle(opened(Window(close_after=1, late="keep")), 0.0)
    for client in (0, 1, 2):
        machine.handle(Finished([f"0.{client}"]), 0.0)
    commands = machine.handle(opened(Window(close_after=1), ask=1), 0.0)
    assert commands[:2] == [Admit(["0.1"], 1, 1, 2**-0.5), Cancel(["0.2", "0.3"])]
    commands = machine.handle(opened(ask=2), 0.0)
    assert sent(commands) == ["2.0", "2.1", "2.2", "2.3"]
    assert not [c for c in commands if isinstance(c, Admit)]


def test_a_client_whose_old_task_failed_and_whose_new_one_counts_has_not_failed():
    machine = Coordinator()
    machine.handle(opened(Window(close_after=1, late="keep"), clients=[0, 1]), 0.0)
    machine.handle(Finished(["0.0"]), 0.0)
    assert sent(machine.handle(opened(Window(in_flight=1), clients=[2, 1], ask=1), 0.0)) == []  # 0.1 is still out
    assert sent(machine.handle(Failed("0.1", "old"), 0.0)) == ["1.2"]
    assert sent(machine.handle(Finished(["1.2"]), 0.0)) == ["1.1"]
    assert close_of(machine.handle(Finished(["1.1"]), 0.0)) == Close(1, True, ("1.2", "1.1"), {}, 2)


def test_attempts_are_counted_and_errors_of_the_client_have_only_one():
    machine = Coordinator(attempts=3)
    machine.handle(opened(clients=[7, 8]), 0.0)
    for attempt in (2, 3):
        assert machine.handle(Failed("0.7", "died", retry=True), 0.0) == [Send([Task("0.7", 0, 7, attempt)])]
    assert machine.handle(Failed("0.7", "died again", retry=True), 0.0) == []
    assert machine.state_of("0.7") is TaskState.FAILED
    assert close_of(machine.handle(Failed("0.8", "its code raised"), 0.0)) == Close(
        0, False, (), {7: "died again", 8: "its code raised"}, 2
    )


def test_a_late_task_is_tried_again_whether_or_not_an_ask_is_open():
    machine = Coordinator(attempts=2)
    machine.handle(opened(Window(close_after=1, late="keep")), 0.0)
    machine.handle(Finished(["0.0"]), 0.0)
    assert machine.handle(Failed("0.1", "died", retry=True), 0.0) == [Send([Task("0.1", 0, 1, 2)])]
    assert machine.handle(Failed("0.1", "died", retry=True), 0.0) == []
    machine.handle(opened(clients=[9], ask=1), 0.0)
    assert machine.handle(Failed("0.2", "died", retry=True), 0.0) == [Send([Task("0.2", 0, 2, 2)])]
    assert machine.handle(Failed("0.2", "died", retry=True), 0.0) == []
    machine.handle(Finished(["0.3"]), 0.0)
    assert close_of(machine.handle(Finished(["1.9"]), 0.0)).failed == {2: "died"}


def test_duplicates_and_strangers_change_nothing():
    machine = Coordinator()
    machine.handle(opened(clients=[0, 1]), 0.0)
    machine.handle(Finished(["0.0"]), 0.0)
    assert machine.handle(Finished(["0.0"]), 0.0) == []
    assert machine.handle(Failed("0.0", "no", retry=True), 0.0) == []
    assert machine.handle(Finished(["0.77"]), 0.0) == [Cancel(["0.77"])]
    assert machine.handle(Failed("0.77", "who?"), 0.0) == []
    assert machine.handle(Finished(["0.1"]), 0.0)[0] == Admit(["0.1"], 0)


def test_lanes_do_not_wait_for_each_other_but_share_the_clock():
    machine = Coordinator()
    machine.handle(opened(Window(deadline=1.0)), 0.0)
    machine.handle(opened(ask=1, lane="b"), 0.5)
    commands = machine.handle(Finished(["1.0"]), 1.0)
    assert commands[0] == Admit(["1.0"], 1)
    assert close_of(commands).ask == 0


def test_asks_that_close_at_once_do_so_in_their_order_also_after_a_restart():
    for before in ((), ("a", "b"), ("b", "a")):
        machine = Coordinator()
        for ask, lane in enumerate(before):
            machine.handle(opened(ask=ask, lane=lane, clients=[]), 0.0)
        for ask, lane in ((5, "b"), (6, "a")):
            machine.handle(opened(Window(deadline=1.0), ask=ask, lane=lane), 0.0)
        assert [c.ask for c in machine.handle(Ticked(), 1.0) if isinstance(c, Close)] == [5, 6]


def test_its_caller_is_told_of_broken_promises():
    machine = Coordinator()
    machine.handle(opened(), 0.0)
    with pytest.raises(InternalError, match=r"ask 1 opens in lane 'a', where ask 0 came last"):
        machine.handle(opened(ask=1), 0.0)
    with pytest.raises(InternalError, match=r"ask 0 opens in lane 'b', where ask 0 came last"):
        machine.handle(opened(lane="b"), 0.0)
    with pytest.raises(InternalError, match=r"task 2\.5 exists already") as caught:
        machine.handle(opened(clients=[5, 5], ask=2, lane="c"), 0.0)
    (story,) = caught.value.__notes__
    assert story.startswith("what led to it: Opened(ask=0, ")
    assert "clients=[5, 5]" in story


def test_the_table_leads_from_queued_to_an_end():
    ends = set(TRANSITIONS.values()) - {state for state, _ in TRANSITIONS}
    assert ends == {TaskState.ADMITTED, TaskState.FAILED, TaskState.CANCELLED}
    assert {step for _, step in TRANSITIONS} == set(Step)
    reached = {TaskState.QUEUED}
    for _ in TaskState:
        reached |= {after for (before, _), after in TRANSITIONS.items() if before in reached}
    assert reached == set(TaskState)


def test_the_diagram_in_the_documentation_is_drawn_from_the_table():
    page = Path(__file__).parents[2] / "docs" / "architecture.md"
    drawn = re.findall(r"```mermaid\n(stateDiagram.*?)\n```", page.read_text("utf-8"), re.S)
    assert diagram() in drawn


@given(SEEDS)
def test_several_at_once_are_as_one_after_the_other(seed):
    log = Schedule(seed).run()
    one, all_at_once, at = Coordinator(), Coordinator(), 0
    while at < len(log):
        event, now = log[at].event, log[at].now
        entries = [log[at]]
        while isinstance(event, Finished) and at + len(entries) < len(log):
            after = log[at + len(entries)]
            if not isinstance(after.event, Finished) or after.now != now or any(map(ends, entries[-1].commands)):
                break
            entries.append(after)
        at += len(entries)
        each = [command for entry in entries for command in one.handle(entry.event, now)]
        together = Finished([task for entry in entries for task in entry.event.tasks]) if len(entries) > 1 else event
        assert sorted(map(repr, singles(all_at_once.handle(together, now)))) == sorted(map(repr, singles(each)))


def ends(command):
    return isinstance(command, Close)


def test_what_one_result_costs_does_not_grow_with_how_many_are_out(monkeypatch):
    """Counted in moves of tasks and looks at them, not in seconds."""

    class Counting(dict):
        looks = 0

        def __getitem__(self, key):
            Counting.looks += 1
            return super().__getitem__(key)

        def __iter__(self):
            Counting.looks += len(self)
            return super().__iter__()

        def values(self):
            Counting.looks += len(self)
            return super().values()

        items = values

    costs = []
    for size in (200, 3000):
        machine = Coordinator()
        machine.handle(opened(clients=range(size)), 0.0)
        lane = machine._open_lanes[0]
        lane.out, lane.states = Counting(lane.out), Counting(lane.states)
        Counting.looks = 0
        for client in range(100):
            machine.handle(Finished([f"0.{client}"]), 0.0)
        costs.append(Counting.looks)
    assert costs[0] == costs[1]
