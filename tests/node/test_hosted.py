"""The tasks of a run at its node: done, repeated, dropped, and who gets a slot."""

from __future__ import annotations

from tests.node.bench import Bench, of, payload, refused, said, started

from umbel.node.signals import ReleaseBlob, SayToServer, ServerSaid, Start, Stepped, Stop, TaskDone
from umbel.wire import messages as m


def test_a_task_is_done_kept_and_said_when_it_is_on_disk(hosted):
    (start,) = of(hosted.task(), Start)
    assert (start.task.client, start.ask.kind, start.base) == ("a", "train", None)
    (say,) = hosted.done(state=b"next")
    assert say.durable
    result = say.message.result
    assert (result.run, result.task, result.ask, result.client, result.attempt) == ("r", "1.a", 1, "a", 1)
    receipt = result.done.receipt
    assert (receipt.task, receipt.client, receipt.kept) == ("1.a", "a", True)
    hosted.spool.commit()
    assert hosted.spool.answers() == [result.SerializeToString(deterministic=True)]
    assert hosted.spool.state("r", "1.a") == b"next"
    assert hosted.spool.digest("r", "1.a") == b"d"


def test_a_client_that_keeps_nothing_says_so(hosted):
    hosted.task()
    (result,) = said(hosted.done(), "result")
    assert not result.done.receipt.kept


def test_duplicates_of_waiting_running_and_done_tasks_do_nothing_twice(hosted):
    assert started(hosted.task("a")) == [("r", "1.a")]
    assert started(hosted.task("b")) == [("r", "1.b")]
    assert hosted.task("c") == []
    assert hosted.task("a") == hosted.task("c") == hosted.ask() == []
    (first,) = said(hosted.done("a"), "result")
    effects = hosted.task("a", attempt=3)
    assert said(effects, "result") == [first]
    assert not of(effects, Start)


def test_what_was_not_on_disk_is_done_again(hosted):
    hosted.task()
    hosted.done(state=b"s")
    assert said(hosted.restart(), "result") == []
    hosted.host()
    hosted.ask()
    assert started(hosted.task()) == [("r", "1.a")]


def test_an_ask_that_now_asks_something_else_ends_its_tasks(hosted):
    for client in "abc":
        hosted.task(client)
    effects = hosted.ask(digest=b"other")
    assert [stop.task for stop in of(effects, Stop)] == ["1.a", "1.b"]
    assert hosted.task("a") == []
    assert started(hosted.failed("a")) == [("r", "1.a")]


def test_a_higher_attempt_ends_the_one_that_runs(hosted):
    hosted.task()
    effects = hosted.task(attempt=2)
    assert of(effects, Stop) == [Stop("r", "1.a", 1)]
    assert not of(effects, Start), "its client still works on the first"
    effects = hosted.done(attempt=1)
    assert not said(effects, "result")
    assert [start.task.attempt for start in of(effects, Start)] == [2]


def test_reports_of_tasks_that_nobody_started_are_ignored(hosted):
    assert hosted.done() == hosted.failed() == hosted(Stepped("r", "1.a")) == []
    assert of(hosted.done(run="x", update=payload("u")), ReleaseBlob)
    hosted.task(attempt=2)
    assert hosted.done(attempt=1) == []


def test_a_client_that_is_not_hosted(hosted):
    assert refused(hosted.task("z")) == "client z is not hosted on this node"


def test_a_state_that_is_not_there(hosted):
    hosted.ask(2)
    assert "the state that task 1.a left at client a is not on this node: its disk was lost" in refused(
        hosted.task(ask=2, base="1.a")
    )
    assert started(hosted.task(ask=2)) == [("r", "2.a")]


def test_old_states_go_when_their_asks_are_closed_and_a_newer_one_begins(hosted):
    for ask in (1, 2, 3):
        hosted.ask(ask)
        hosted.task(ask=ask, base=f"{ask - 1}.a" if ask > 1 else "")
        hosted.done(ask=ask, state=b"%d" % ask)
        hosted.get(close_ask=m.CloseAsk(run="r", ask=ask))
    hosted.spool.commit()
    assert [hosted.spool.state("r", f"{ask}.a") for ask in (1, 2, 3)] == [None, b"2", b"3"]


def test_a_state_of_an_open_ask_stays_though_another_begins_elsewhere(hosted):
    hosted.task()
    hosted.done(state=b"1")
    hosted.ask(2)
    hosted.task(ask=2)
    hosted.get(close_ask=m.CloseAsk(run="r", ask=1))
    hosted.done(ask=2, state=b"2")
    hosted.task(ask=2, attempt=2)
    hosted.spool.commit()
    hosted.ask(3)
    (start,) = of(hosted.task(ask=3, base="1.a"), Start)
    assert start.base == b"1"


def test_never_more_than_the_slots_nor_two_of_a_client(hosted):
    hosted.ask(2)
    effects = hosted.task("a", 1) + hosted.task("a", 2) + hosted.task("b", 1) + hosted.task("c", 1)
    assert started(effects) == [("r", "1.a"), ("r", "1.b")]
    assert started(hosted.done("b", 1)) == [("r", "1.c")]
    assert started(hosted.done("a", 1)) == [("r", "2.a")]


def test_the_run_that_has_used_the_least_goes_first_then_the_older():
    bench = Bench(slots=1)
    for run in ("r", "q"):
        bench.host(run)
        bench.ask(run=run)
    order = started(bench.task("a"))
    for client in "abc":
        bench.task(client, run="q")
        if client != "a":
            bench.task(client)
    for seconds in (3, 1, 1, 1, 1):
        run, task = order[-1]
        order += started(bench(TaskDone(run, task, 1, m.Done(), None), bench.now + seconds))
    assert order == [("r", "1.a"), ("q", "1.a"), ("q", "1.b"), ("q", "1.c"), ("r", "1.b"), ("r", "1.c")]


def test_an_update_waits_for_others_only_while_its_window_takes_all_and_there_is_more_to_do():
    def lazy(effects):
        return [effect.lazy > 0 for effect in of(effects, SayToServer)]

    bench = Bench(slots=1)
    bench.host()
    bench.ask(1, whole=True)
    for client in "abc":
        bench.task(client)
    assert lazy(bench.done("a")) == [True]
    assert lazy(bench.failed("b")) == [False]
    assert lazy(bench.done("c")) == [False]
    bench.ask(2)
    bench.task("a", 2)
    bench.task("b", 2)
    assert lazy(bench.done("a", 2)) == [False]


def test_tasks_are_begun_once_all_of_their_frame_was_heard(hosted):
    def said(more, **fields):
        task = m.Task(run="r", ask=1, attempt=1, key=bytes(32), data_key=bytes(32), **fields)
        return hosted(ServerSaid(m.Message(task=task), more))

    assert started(said(True, client="a", task="1.a")) == []
    assert started(said(False, client="b", task="1.b")) == [("r", "1.a"), ("r", "1.b")]
