"""What a session tells the coordinator of, when, and what it hands to which worker: with workers that a test plays."""

from __future__ import annotations

from contextlib import closing

import pytest
from tests.simulation.stage import IN_TURN, opened, send, told
from tests.simulation.test_workers import ASYNC, FLEETS, app_of

import umbel
from umbel import Client, FedAvg, Simulation, Update, Window, collect, mean
from umbel.core.randomness import Key
from umbel.core.task import Admit, Cancel, Failed, Finished, Task, Ticked
from umbel.runs.coordinator import Wake
from umbel.simulation.session import SimulationSession
from umbel.work.state import ClientStates

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
    session.do(Admit(["0.2"], 0, staleness=1, factor=0.5))
    for id in ("0.1", "0.3"):
        session.do(Cancel([id]))
    session.close(0)
    assert stage.admitted == [Admit(["0.2"], 0, staleness=1, factor=0.5)]
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
        Finished(["0.5"]),
        Failed("0.7", "no such table"),
        Finished(["0.2"]),
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
    assert {(*a.tasks, a.ask) for a in stage.admitted} == {("0.1", 0), ("0.2", 2), ("2.3", 2)}


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
    assert [task for admit in stage.admitted for task in admit.tasks] == ["0.1", "0.2"]


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


# Time


def test_a_deadline_comes_when_nothing_else_does(on_stage, clock):
    session, stage, _ = on_stage()
    stage.plan = {"0.1": "wait"}
    opened(session, 0, [1, 2, 3], Window(deadline=5.0))
    session.do(Wake(5.0))
    assert sorted(told(session, 2, admit=0)) == ["0.2", "0.3"]
    assert session.next_event() == Ticked()
    assert clock.now == 5.0


@pytest.mark.parametrize("days", [25, 3000])
def test_a_deadline_may_be_far_away(days, on_stage, clock):
    session, stage, _ = on_stage()
    stage.plan = {"0.1": "wait"}
    opened(session, 0, [1, 2], Window(deadline=days * 86400.0))
    session.do(Wake(days * 86400.0))
    assert told(session, 1, admit=0) == ["0.2"]
    assert session.next_event() == Ticked()
    assert clock.now == days * 86400.0


@pytest.mark.parametrize("window", [Window(), IN_TURN], ids=["plain", "in turn"])
def test_before_a_deadline_nobody_waits_for_another_ask(window, on_stage, clock):
    session, stage, _ = on_stage()
    stage.plan = {"0.1": "wait"}
    opened(session, 0, [1], window)
    opened(session, 1, [2, 3], Window(deadline=5.0), lane="other")
    session.do(Wake(5.0))
    assert sorted(told(session, 2, admit=1)) == ["1.2", "1.3"]
    assert session.next_event() == Ticked()
    stage.finish("0.1")
    assert told(session, 1, admit=0) == ["0.1"]


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
        assert [task for e in events for task in getattr(e, "tasks", None) or [e.task]] == ["0.4", "0.2", "0.3", "0.9"]
        assert "SystemExit" in events[2].reason
        for task in ("0.4", "0.9"):
            session.do(Admit([task], 0))
        session.do(Cancel(["0.2"]))
        closed = session.close(0)
        assert {c: u.arrays["w"][0] for c, u in closed.partial.finish().value.items()} == {4: 4.0, 9: 9.0}
        assert sorted(closed.states) == [4, 9]
        session.disconnect()


@pytest.mark.parametrize("fleet", [None, "spread", "part of the day"])
def test_what_is_over_is_let_go_of(fleet, monkeypatch):
    """However many rounds there were, what a session keeps is what the last of them left."""
    sizes = {}
    disconnect = SimulationSession.disconnect

    def measured(self, whole=False):
        turns = self._turns
        over = (turns._sent, turns._timeline._heap) if self.virtual else turns._queues.values()
        kept = (self._tickets, self._asks, self._blocked, *over)
        sizes.setdefault(rounds, [len(part) for part in kept])
        disconnect(self, whole)

    monkeypatch.setattr(SimulationSession, "disconnect", measured)
    for window in (Window(close_after=4), ASYNC):
        sizes.clear()
        for rounds in (5, 40):
            on = {"devices": FLEETS[fleet]()} if fleet else {}
            app = app_of(FedAvg(cohort=8, window=window, fold=mean()), rounds=rounds)
            umbel.run(app, on=Simulation(30, workers=0, **on), seed=1, folder=None)
        assert all(after <= before + 16 for before, after in zip(sizes[5], sizes[40], strict=True)), sizes
