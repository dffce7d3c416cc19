"""Workers that a test plays are lost, hang, or go on with what nobody wants: what they had is done again."""

from __future__ import annotations

import pytest
from tests.simulation.stage import IN_TURN, opened, told
from tests.simulation.test_workers import FLEETS

from umbel import Window
from umbel.core.task import Admit, Cancel, Failed, Finished, Ticked
from umbel.errors import AppError
from umbel.runs.coordinator import Wake
from umbel.simulation.pool import IN_VAIN, REPLACED
from umbel.simulation.status import STEPS


def test_a_worker_that_is_lost_just_when_what_it_did_is_done_again(on_stage):
    session, stage, states = on_stage(1, fleet=FLEETS["alike"]())
    opened(session, 0, [1, 2])
    stage.pool._hand_out()
    stage.pool._listen()
    states.advance(0, {1: b"new", 2: b"new"}, since=0)
    stage.wires[0].hang_up()
    assert told(session, 2, admit=0) == ["0.1", "0.2"]
    session.close(0)
    assert [task for admit in stage.admitted for task in admit.tasks] == ["0.1", "0.2"]
    assert stage.tasks.count("0.1") == 2


# Lost workers


def test_what_a_lost_worker_held_is_done_again_and_folded_as_before(on_stage):
    session, stage, _ = on_stage(1)
    opened(session, 0, [1, 2, 3])
    assert told(session, 2) == ["0.1", "0.2"]
    session.do(Admit(["0.1"], 0, staleness=2, factor=0.25))
    session.do(Cancel(["0.2"]))
    stage.wires[0].hang_up()
    assert told(session, 1, admit=0) == ["0.3"]
    session.close(0)
    assert stage.tasks.count("0.1") >= 2
    assert stage.admitted[-2:].count(Admit(["0.1"], 0, staleness=2, factor=0.25)) == 1
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
        events += [Finished([t]) for t in event.tasks] if isinstance(event, Finished) else [event]
    assert [e for e in events if isinstance(e, Failed)] == [Failed("0.6", "its process fell over")]
    tasks = [task for e in events for task in (e.tasks if isinstance(e, Finished) else [e.task])]
    assert sorted(tasks) == ["0.1", "0.3", "0.4", "0.6"]
    assert stage.tasks.count("0.6") == attempts
    if window is IN_TURN:
        assert tasks == ["0.1", "0.6", "0.3", "0.4"]


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
    stage.pool._listen()
    stage.pool._hand_out()
    assert stage.waiting.keys() == {"0.1"}
    session.do(Admit(["0.1"], 0))
    stage.finish("0.1")
    told(session, 2, admit=0)
    session.close(0)
    assert {task for admit in stage.admitted for task in admit.tasks} == {"0.1", "0.2", "0.3"}


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
        worker.channel.hang_up()
        return worker

    stage.hire = stillborn
    for wire in stage.wires:
        wire.hang_up()
    opened(session, 0, [1, 2])
    with pytest.raises(AppError, match="worker processes end before they can do anything; the last fell over"):
        session.next_event()
    assert len(stage.wires) <= 2 + IN_VAIN


def test_a_worker_that_shows_no_progress_is_ended(on_stage, clock):
    ticks = iter(range(1000))
    session, stage, _ = on_stage(1, attempts=1, stall=3.0)
    stage.uses(lambda: next(ticks) if clock.now < 10 else 10_000)
    stage.plan = {"0.1": "wait"}
    opened(session, 0, [1, 2])
    event = session.next_event()
    assert event == Failed("0.1", "its process showed no progress for 3 seconds and was ended")
    assert 13.0 <= clock.now < 14.0
    assert told(session, 1) == ["0.2"]


def test_a_worker_that_takes_steps_is_not_ended_and_one_that_stopped_taking_them_is(on_stage, clock):
    session, stage, _ = on_stage(1, attempts=1, stall=3.0)
    stage.uses(lambda: int(clock.now * 100))
    stage.plan = {"0.1": "wait"}
    opened(session, 0, [1])
    watch = stage.pool._watch

    def stepping(closing):
        if clock.now < 20:
            stage.row[STEPS] += 1
        watch(closing)

    stage.pool._watch = stepping
    assert isinstance(session.next_event(), Failed)
    assert 23.0 <= clock.now < 24.0


@pytest.mark.parametrize("at_the_end", [True, False])
def test_a_worker_is_ended_that_goes_on_with_what_nobody_wants_while_others_wait(at_the_end, on_stage, clock):
    session, stage, _ = on_stage(1)
    stage.plan = {"0.2": "wait"}
    stage.pool.backlog.durations.note("train", 1, 0.5)
    opened(session, 0, [1, 2])
    assert told(session, 1, admit=0) == ["0.1"]
    stage.pool._hand_out()
    session.do(Cancel(["0.2"]))
    if not at_the_end:
        session.do(Cancel(["0.1"]))
        session._open.clear()
    if at_the_end:
        session.close(0)
        assert stage.tasks == ["0.1", "0.2", "0.1"]
    else:
        opened(session, 1, [3])
        assert told(session, 1) == ["1.3"]
    assert len(stage.wires) == 2
    # It is waited for as long as it would take to do again what it holds.
    assert (clock.now > REPLACED + 0.5) == at_the_end
    assert clock.now > REPLACED


def test_a_cancelled_task_that_was_not_handed_out_never_is(on_stage):
    session, stage, _ = on_stage(1)
    stage.plan = {"0.1": "wait"}
    opened(session, 0, [1, 2, 3])
    stage.pool._hand_out()
    session.do(Cancel(["0.2"]))
    session.do(Cancel(["0.77"]))
    stage.finish("0.1")
    assert told(session, 2) == ["0.1", "0.3"]
    assert "0.2" not in stage.tasks


def test_nothing_waits_behind_a_task_that_hangs_and_that_nobody_wants(on_stage):
    session, stage, _ = on_stage(1)
    stage.plan = {"0.2": "wait"}
    opened(session, 0, [1, 2])
    assert told(session, 1) == ["0.1"]
    stage.pool._hand_out()
    opened(session, 1, [3], lane="other")
    stage.pool._hand_out()
    assert len(stage.wires[0].worker.out) == 2
    session.do(Cancel(["0.2"]))
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
