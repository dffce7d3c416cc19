"""The state machine of a node: each rule by example, and random schedules of losses, repeats, cancels and crashes."""

from __future__ import annotations

import json
import random
from collections import defaultdict, deque

import pytest

from umbel.core.task import Ticked
from umbel.errors import ProtocolError
from umbel.node import machine
from umbel.node.machine import ALIVE_SECONDS, NodeMachine
from umbel.node.signals import (
    Approved,
    Denied,
    EndRun,
    FetchBlob,
    HostDied,
    HostReady,
    HostRefused,
    Moved,
    Note,
    OwnerAsked,
    Prepare,
    ReleaseBlob,
    SayToServer,
    ServerSaid,
    SessionBegun,
    SessionEnded,
    Start,
    Stepped,
    Stop,
    TaskDone,
    TaskFailed,
)
from umbel.node.spool import Spool
from umbel.wire import messages as m
from umbel.wire.blobs import Fetched, NotFetched
from umbel.work.retries import AGAIN_AT_MOST, HOST_TRIES

PLAIN = json.dumps({"name": "identity", "version": 1, "settings": {}})
KINDS, STEPS = frozenset({"train", "evaluate"}), frozenset({("identity", 1), ("clip_by_norm", 1)})


def blob_of(text):
    return m.Blob(sha256=text.encode().ljust(32, b"."), size=1)


def payload(text):
    return m.Payload(blob=blob_of(text))


class Bench:
    """A machine with its spool, and short ways to say what happens to it."""

    def __init__(self, *, spool=None, connected=True, **settings):
        self.spool = spool or Spool()
        self.settings = {"clients": ["a", "b", "c"], "slots": 2, **settings}
        self.now = 0.0
        self.machine = NodeMachine(self.spool, **self.settings)
        if connected:
            self(SessionBegun(m.Welcome()))

    def __call__(self, event, now=None):
        self.now = self.now if now is None else now
        return self.machine.handle(event, self.now)

    def get(self, **body):
        return self(ServerSaid(m.Message(**body)))

    def run(self, run="r", **fields):
        return self.get(run_spec=m.RunSpec(run=run, **fields))

    def host(self, run="r"):
        return [*self.run(run), *self(HostReady(run, KINDS, STEPS))]

    def ask(self, ask=1, run="r", **fields):
        fields = {"kind": "train", "digest": b"d", "transforms": PLAIN, **fields}
        return self.get(ask_spec=m.AskSpec(run=run, ask=ask, **fields))

    def task(self, client="a", ask=1, run="r", **fields):
        fields = {"attempt": 1, "key": bytes(32), "data_key": bytes(32), "task": f"{ask}.{client}", **fields}
        return self.get(task=m.Task(run=run, ask=ask, client=client, **fields))

    def done(self, client="a", ask=1, run="r", attempt=1, update=b"u", state=None):
        update = update if isinstance(update, m.Payload) else m.Payload(inline=update)
        return self(TaskDone(run, f"{ask}.{client}", attempt, m.Done(update=update), state))

    def failed(self, client="a", ask=1, run="r", attempt=1, retry=True):
        return self(TaskFailed(run, f"{ask}.{client}", attempt, "it died", retry))

    def ack(self, *tasks, run="r"):
        return self.get(ack=m.Ack(run=run, tasks=tasks))

    def reconnect(self):
        self(SessionEnded())
        return self(SessionBegun(m.Welcome()))

    def restart(self):
        """Kill the node and start it again, with what was written."""
        self.spool.crash()
        self.machine = NodeMachine(self.spool, **self.settings)
        return self(SessionBegun(m.Welcome()))


@pytest.fixture
def bench():
    return Bench()


@pytest.fixture
def hosted(bench):
    bench.host()
    bench.ask()
    return bench


def said(effects, kind):
    return [
        getattr(e.message, kind) for e in effects if isinstance(e, SayToServer) and e.message.WhichOneof("body") == kind
    ]


def started(effects):
    return [(effect.run, effect.task.task) for effect in effects if isinstance(effect, Start)]


def of(effects, kind):
    return [effect for effect in effects if isinstance(effect, kind)]


def refused(effects):
    (result,) = said(effects, "result")
    assert result.HasField("failure")
    assert not of(effects, Start)
    return result.failure.reason


# ------------------------------------------------------------------------------------------------------------ runs


def test_what_the_server_wants_known_is_told_to_the_owner():
    assert Bench().get(notice=m.Notice(text="no room")) == [Note("the server says: no room")]


def test_a_run_is_prepared_and_answered(bench):
    effects = bench.run(archive=m.Payload(inline=b"zip"))
    assert [(e.run, e.spec.archive.inline, e.approved) for e in of(effects, Prepare)] == [("r", b"zip", False)]
    assert not of(effects, SayToServer)
    (answer,) = said(bench(HostReady("r", KINDS, STEPS)), "run_answer")
    assert (answer.run, answer.ready) == ("r", True)
    again = bench.run(archive=m.Payload(inline=b"zip"))
    assert said(again, "run_answer") == [answer]
    assert not of(again, Prepare)


def test_an_archive_is_fetched_before_its_run_is_prepared(bench):
    effects = bench.run(archive=payload("zip"))
    assert of(effects, FetchBlob) == [FetchBlob("r", blob_of("zip"))]
    assert not of(effects, Prepare)
    assert of(bench.reconnect(), FetchBlob) == [FetchBlob("r", blob_of("zip"))]
    assert not of(bench.run(archive=payload("zip")), FetchBlob)
    assert of(bench(Fetched("r", blob_of("zip").sha256)), Prepare)
    assert not of(bench.reconnect(), FetchBlob)


def test_a_refused_run_says_why_and_refuses_its_tasks(bench):
    bench.run()
    bench.ask()
    assert bench.task() == []
    effects = bench(HostRefused("r", "needs torch>=2.6"))
    (answer,) = said(effects, "run_answer")
    assert (answer.ready, answer.reason) == (False, "needs torch>=2.6")
    assert refused(effects) == "needs torch>=2.6"
    assert refused(bench.task("b")) == "needs torch>=2.6"


def test_what_was_refused_is_tried_again_in_a_later_session(bench):
    bench.run()
    (answer,) = said(bench(HostRefused("r", "needs torch>=2.6")), "run_answer")
    assert said(bench.run(), "run_answer") == [answer]
    bench.reconnect()
    assert of(bench.run(), Prepare)


def test_a_host_that_dies_while_it_prepares_is_tried_again(bench):
    bench.run()
    bench.ask()
    bench.task()
    effects = bench(HostDied("r", "killed by SIGKILL"))
    (answer,) = said(effects, "run_answer")
    assert (answer.ready, answer.retry, answer.reason) == (False, True, "killed by SIGKILL")
    assert not said(effects, "result")
    assert not of(effects, Prepare)
    assert said(bench.run(), "run_answer") == [answer]
    assert not of(bench(Ticked(), bench.machine.next_tick - 1e-6), Prepare)
    (prepare,) = of(bench(Ticked(), bench.machine.next_tick), Prepare)
    assert not prepare.approved
    assert bench.machine.next_tick is None
    effects = bench(HostReady("r", KINDS, STEPS))
    assert said(effects, "run_answer") == [m.RunAnswer(run="r", ready=True)]
    assert started(effects) == [("r", "1.a")]


def test_a_host_that_always_dies_is_refused_in_the_end(bench):
    bench.run()
    bench.ask()
    bench.task()
    waits = []
    for _ in range(HOST_TRIES - 1):
        assert said(bench(HostDied("r", "no memory")), "run_answer")[0].retry
        waits.append(bench.machine.next_tick - bench.now)
        assert of(bench(Ticked(), bench.machine.next_tick), Prepare)
    assert waits == [min(2.0**k / 4, AGAIN_AT_MOST) for k in range(HOST_TRIES - 1)]
    effects = bench(HostDied("r", "no memory"))
    assert said(effects, "run_answer") == [m.RunAnswer(run="r", reason=f"no memory ({HOST_TRIES} times in a row)")]
    assert refused(effects).startswith("no memory")
    assert bench.machine.next_tick is None
    bench.reconnect()
    assert of(bench.run(), Prepare)
    assert said(bench(HostDied("r", "no memory")), "run_answer")[0].retry


def test_deaths_count_anew_once_a_host_was_ready(bench):
    bench.run()
    for _ in range(HOST_TRIES):
        assert said(bench(HostDied("r", "no memory")), "run_answer")[0].retry
        bench(Ticked(), bench.machine.next_tick)
        assert said(bench(HostReady("r", KINDS, STEPS)), "run_answer")[0].ready
        bench.run(config=str(bench.now))


def test_a_host_that_dies_is_not_tried_for_a_run_that_is_over(bench):
    bench.run()
    bench(HostDied("r", "killed"))
    bench.get(close_run=m.CloseRun(run="r", status="stopped"))
    assert bench.machine.next_tick is None
    assert bench(Ticked(), 1000.0) == []


def test_the_owner_is_not_asked_again_for_a_host_that_died(bench):
    bench.run()
    bench(OwnerAsked("r"))
    bench(Approved("r"))
    bench(HostDied("r", "killed"))
    assert [prepare.approved for prepare in of(bench(Ticked(), bench.machine.next_tick), Prepare)] == [True]
    assert [prepare.approved for prepare in of(bench.run(config="{}"), Prepare)] == [False]


def test_an_archive_that_cannot_be_fetched_is_tried_again(bench):
    bench.run(archive=payload("zip"))
    (answer,) = said(bench(NotFetched("r", blob_of("zip").sha256, "the disk is full")), "run_answer")
    assert (answer.reason, answer.retry) == ("its archive cannot be fetched: the disk is full", True)
    assert of(bench(Ticked(), bench.machine.next_tick), FetchBlob) == [FetchBlob("r", blob_of("zip"))]
    assert of(bench(Fetched("r", blob_of("zip").sha256)), Prepare)


def test_the_owner_is_asked_and_allows_it(bench):
    bench.run()
    assert not said(bench(OwnerAsked("r")), "run_answer")
    assert not of(bench.run(), Prepare)
    (prepare,) = of(bench(Approved("r")), Prepare)
    assert prepare.approved
    assert not of(bench(Approved("r")), Prepare)
    assert said(bench(HostReady("r", KINDS, STEPS)), "run_answer")[0].ready


def test_the_owner_says_no_and_is_not_asked_again(bench):
    bench.run()
    bench(OwnerAsked("r"))
    effects = bench(Denied("r"))
    assert of(effects, EndRun)
    assert said(effects, "run_answer")[0].reason == "the owner of this node does not allow it"
    bench.reconnect()
    effects = bench.run()
    assert not of(effects, Prepare)
    assert not said(effects, "run_answer")[0].ready


def test_a_run_that_comes_with_another_archive_is_prepared_anew_and_its_tasks_done_again(hosted):
    assert started(hosted.task()) == [("r", "1.a")]
    effects = hosted.run(config="{}")
    assert [type(e) for e in effects if not isinstance(e, SayToServer)] == [EndRun, Prepare]
    assert started(hosted(HostReady("r", KINDS, STEPS))) == [("r", "1.a")]


# ----------------------------------------------------------------------------------------------------------- tasks


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


def test_an_answer_is_said_in_each_session_until_it_is_acknowledged(hosted):
    hosted.task()
    (result,) = said(hosted.done(), "result")
    for _ in range(2):
        effects = hosted.reconnect()
        assert said(effects, "result") == [result]
        assert all(e.durable for e in of(effects, SayToServer) if e.message.WhichOneof("body") == "result")
    hosted.ack("1.a", "1.unknown")
    assert said(hosted.reconnect(), "result") == []
    hosted.spool.commit()
    assert hosted.spool.answers() == []


def test_an_answer_that_was_made_while_nobody_was_connected(hosted):
    hosted.task()
    hosted(SessionEnded())
    assert hosted.done() == []
    assert len(said(hosted(SessionBegun(m.Welcome())), "result")) == 1


def test_answers_and_states_outlive_the_node(hosted):
    hosted.task()
    (result,) = said(hosted.done(state=b"s", update=payload("big")), "result")
    hosted.spool.commit()
    assert said(hosted.restart(), "result") == [result]
    assert hosted.machine.needed() == {("r", blob_of("big").sha256)}
    hosted.host()
    hosted.ask()
    assert said(hosted.task(), "result") == [result]
    hosted.ask(2)
    (start,) = of(hosted.task(ask=2, base="1.a"), Start)
    assert start.base == b"s"


def test_what_was_not_on_disk_is_done_again(hosted):
    hosted.task()
    hosted.done(state=b"s")
    assert said(hosted.restart(), "result") == []
    hosted.host()
    hosted.ask()
    assert started(hosted.task()) == [("r", "1.a")]


def test_a_question_that_was_answered_is_never_answered_differently(hosted):
    hosted.task()
    hosted.done()
    hosted.ask(digest=b"other")
    assert "when it asked something else" in refused(hosted.task())
    hosted.ack("1.a")
    hosted.spool.commit()
    hosted.restart()
    hosted.host()
    hosted.ask(digest=b"other")
    assert "when it asked something else" in refused(hosted.task(attempt=2))
    hosted.ask()
    assert "and the answer was received" in refused(hosted.task())


def test_an_ask_that_now_asks_something_else_ends_its_tasks(hosted):
    for client in "abc":
        hosted.task(client)
    effects = hosted.ask(digest=b"other")
    assert [stop.task for stop in of(effects, Stop)] == ["1.a", "1.b"]
    assert hosted.task("a") == []
    assert started(hosted.failed("a")) == [("r", "1.a")]


def test_a_failure_is_kept_and_a_higher_attempt_takes_its_place(hosted):
    hosted.task()
    (failure,) = said(hosted.failed(), "result")
    assert (failure.failure.reason, failure.failure.retry, failure.attempt) == ("it died", True, 1)
    assert said(hosted.task(), "result") == [failure]
    assert started(hosted.task(attempt=2)) == [("r", "1.a")]
    (result,) = said(hosted.done(attempt=2), "result")
    assert result.attempt == 2
    hosted.ack("1.a")
    hosted.ack("1.a")
    assert said(hosted.reconnect(), "result") == [result], "both were for the failure, which was said twice"
    hosted.ack("1.a")
    assert said(hosted.reconnect(), "result") == []


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


# ---------------------------------------------------------------------------------------------------- what ends them


def test_a_cancelled_task_never_starts_and_one_that_runs_is_stopped(hosted):
    for client in "abc":
        hosted.task(client)
    effects = hosted.get(cancel=m.Cancel(run="r", tasks=["1.a", "1.c", "1.z", "nonsense"]))
    assert of(effects, Stop) == [Stop("r", "1.a", 1)]
    effects = hosted.done("a", state=b"s", update=payload("u"))
    assert effects == [ReleaseBlob("r", blob_of("u").sha256)]
    hosted.spool.commit()
    assert hosted.spool.answers() == []
    assert hosted.spool.state("r", "1.a") is None
    assert started(hosted.task("a")) == [("r", "1.a")], "asked for again"
    assert hosted.get(cancel=m.Cancel(run="unknown", tasks=["1.a"])) == []


def test_a_stopped_task_keeps_its_slot_until_it_has_ended(hosted):
    hosted.task("a")
    hosted.task("b")
    hosted.get(cancel=m.Cancel(run="r", tasks=["1.a", "1.b"]))
    assert hosted.task("c") == hosted.task("a") == []
    assert started(hosted.failed("b", retry=False)) == [("r", "1.c")]
    assert started(hosted.failed("a")) == [("r", "1.a")]


def test_a_closed_ask_drops_tasks_answers_and_blobs(bench):
    bench.host()
    bench.ask(model=payload("w"))
    bench.task("a")
    bench(Fetched("r", blob_of("w").sha256))
    bench.done("a", update=payload("u"))
    bench.task("b")
    effects = bench.get(close_ask=m.CloseAsk(run="r", ask=1))
    assert of(effects, Stop) == [Stop("r", "1.b", 1)]
    assert {effect.sha for effect in of(effects, ReleaseBlob)} == {blob_of("w").sha256, blob_of("u").sha256}
    assert said(bench.reconnect(), "result") == []
    with pytest.raises(ProtocolError):
        bench.task("c")


@pytest.fixture(autouse=True)
def nothing_finished_is_kept(monkeypatch):
    monkeypatch.setattr(machine, "FINISHED", 0)


def test_a_run_that_finished_can_get_further_rounds(hosted, monkeypatch):
    monkeypatch.setattr(machine, "FINISHED", 1)
    hosted.task("a")
    hosted.done("a", state=b"s")
    assert of(hosted.get(close_run=m.CloseRun(run="r", status="finished")), EndRun)
    hosted.spool.commit()
    assert hosted.spool.runs() == {"r"}
    (answer,) = said(hosted.host(), "run_answer")
    assert answer.ready


def test_a_run_that_finished_is_forgotten_and_never_done_again(hosted):
    for client in "abc":
        hosted.task(client)
    hosted.done("a", state=b"s")
    assert of(hosted.get(close_run=m.CloseRun(run="r", status="finished")), EndRun)
    assert said(hosted.reconnect(), "result") == said(hosted.reconnect(), "alive") == []
    for _ in range(2):
        (answer,) = said(hosted.run(), "run_answer")
        assert (answer.ready, answer.reason) == (False, "the run was finished before")
        assert hosted.ask() == []
        assert refused(hosted.task()) == "the run was finished before"
        hosted.spool.commit()
        assert hosted.spool.runs() == set()
        hosted.restart()


def test_a_run_that_was_stopped_can_go_on(hosted):
    hosted.task("a")
    (result,) = said(hosted.done("a", state=b"s", update=payload("u")), "result")
    hosted.task("b")
    effects = hosted.get(close_run=m.CloseRun(run="r", status="stopped"))
    assert of(effects, EndRun)
    assert not of(effects, ReleaseBlob)
    assert said(hosted.reconnect(), "result") == [result]
    hosted.host()
    hosted.ask()
    assert said(hosted.task("a"), "result") == [result]
    hosted.ask(2)
    assert started(hosted.task("b")) == [("r", "1.b")]
    (start,) = of(hosted.task("a", 2, base="1.a"), Start)
    assert start.base == b"s"


def test_a_new_session_tells_what_the_node_has_so_that_the_server_can_end_it(hosted):
    hosted.task("a")
    hosted.done("a")
    for client in "bc":
        hosted.task(client)
    hosted.host("q")
    hosted.spool.commit()
    held = {alive.run: list(alive.tasks) for alive in said(hosted.reconnect(), "alive")}
    assert {run: sorted(tasks) for run, tasks in held.items()} == {"q": [], "r": ["1.b", "1.c"]}
    hosted.ack("1.a")
    hosted.spool.commit()
    assert {alive.run: list(alive.tasks) for alive in said(hosted.restart(), "alive")} == {"r": []}


# ----------------------------------------------------------------------------------------------------------- slots


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


# ----------------------------------------------------------------------------------------------------------- blobs


def test_a_blob_is_fetched_once_and_tasks_wait_for_it(bench):
    bench.host()
    bench.ask(model=payload("w"), shared=payload("s"))
    effects = bench.task("a", own=payload("o"))
    assert [effect.blob for effect in of(effects, FetchBlob)] == [blob_of("w"), blob_of("s"), blob_of("o")]
    assert bench.task("b") == []
    assert started(bench(Fetched("r", blob_of("w").sha256))) == []
    assert [effect.blob for effect in of(bench.reconnect(), FetchBlob)] == [blob_of("s"), blob_of("o")]
    assert started(bench(Fetched("r", blob_of("s").sha256))) == [("r", "1.b")]
    assert started(bench(Fetched("r", blob_of("o").sha256))) == [("r", "1.a")]
    assert of(bench.done("a"), ReleaseBlob) == [ReleaseBlob("r", blob_of("o").sha256)]
    assert of(bench.get(close_ask=m.CloseAsk(run="r", ask=1)), ReleaseBlob) == [
        ReleaseBlob("r", blob_of("w").sha256),
        ReleaseBlob("r", blob_of("s").sha256),
    ]


def test_a_blob_that_two_asks_need_stays_until_both_are_closed(bench):
    bench.host()
    for ask in (1, 2):
        bench.ask(ask, model=payload("w"))
        bench.task("a", ask)
    assert not of(bench.get(close_ask=m.CloseAsk(run="r", ask=1)), ReleaseBlob)
    assert of(bench.get(close_ask=m.CloseAsk(run="r", ask=2)), ReleaseBlob)


def test_a_blob_that_is_not_to_be_had_fails_what_waits_for_it_until_it_is_asked_again(bench):
    bench.host()
    bench.ask(model=payload("w"))
    bench.task("a")
    effects = bench(NotFetched("r", blob_of("w").sha256, "the disk is full"))
    (result,) = said(effects, "result")
    assert result.failure.retry
    assert "cannot be fetched: the disk is full" in result.failure.reason
    assert of(bench.task("a", attempt=2), FetchBlob)
    assert started(bench(Fetched("r", blob_of("w").sha256))) == [("r", "1.a")]
    assert bench(NotFetched("r", blob_of("w").sha256, "late")) == []


def test_the_file_of_an_answer_is_needed_until_it_is_acknowledged(hosted):
    hosted.task()
    hosted.done(update=payload("u"))
    assert hosted.machine.needed() == {("r", blob_of("u").sha256)}
    assert hosted.ack("1.a") == [ReleaseBlob("r", blob_of("u").sha256)]


# ------------------------------------------------------------------------------------------------------ capabilities


def test_a_kind_or_a_transform_that_is_not_known_is_refused(hosted):
    hosted.ask(2, kind="query:height")
    assert refused(hosted.task(ask=2)) == "the client has no handler for query:height (it has: evaluate, train)"
    parts = [{"name": "clip_by_norm", "version": 1, "settings": {}}, {"name": "mask", "version": 2, "settings": {}}]
    chain = {"name": "chain", "version": 1, "settings": {"parts": parts}}
    hosted.ask(3, transforms=json.dumps(chain))
    assert refused(hosted.task(ask=3)) == "the transform 'mask' version 2 is not known on this node"
    parts.pop()
    hosted.ask(4, transforms=json.dumps(chain))
    assert started(hosted.task(ask=4)) == [("r", "4.a")]


def test_what_came_before_the_host_was_ready_is_judged_then(bench):
    bench.run()
    bench.ask(kind="query:x")
    assert bench.task() == []
    assert "no handler for query:x" in refused(bench(HostReady("r", KINDS, STEPS)))


def test_the_owners_policy_about_asks():
    bench = Bench(allows=lambda spec, ask: "the cohort is too small" if ask.cohort < 5 else "")
    bench.host()
    bench.ask(1, cohort=4)
    bench.ask(2, cohort=5)
    assert refused(bench.task(ask=1)) == "the cohort is too small"
    assert started(bench.task(ask=2)) == [("r", "2.a")]


# --------------------------------------------------------------------------------------------------- signs of life


def test_progress_is_told_at_most_every_so_often(hosted):
    for client in "abc":
        hosted.task(client)
    assert hosted.machine.next_tick is None
    assert said(hosted(Stepped("r", "1.a"), 1.0), "alive") == []
    assert hosted.machine.next_tick == ALIVE_SECONDS
    assert hosted(Ticked(), 2.0) == []
    (alive,) = said(hosted(Ticked(), ALIVE_SECONDS), "alive")
    assert (alive.run, list(alive.tasks)) == ("r", ["1.a", "1.c"]), "1.b hangs; 1.c waits for those that run"
    assert hosted.machine.next_tick is None
    assert hosted(Ticked(), 99.0) == []
    (alive,) = said(hosted(Stepped("r", "1.b")), "alive")
    assert list(alive.tasks) == ["1.b", "1.c"]


def test_transfers_are_progress(bench):
    bench.host()
    bench.ask(model=payload("w"))
    bench.task("a")
    bench.task("b")
    bench.now = 10.0
    assert [list(alive.tasks) for alive in said(bench(Moved("r", blob_of("w").sha256)), "alive")] == [["1.a", "1.b"]]
    bench(Fetched("r", blob_of("w").sha256))
    bench.done("a", update=payload("u"))
    bench.now = 20.0
    assert [list(alive.tasks) for alive in said(bench(Moved("r", blob_of("u").sha256)), "alive")] == [["1.a"]]
    assert bench(Moved("r", blob_of("x").sha256)) == []


def test_nothing_is_told_while_nobody_listens(hosted):
    hosted.task()
    hosted(SessionEnded())
    assert hosted(Stepped("r", "1.a"), 50.0) == []
    assert hosted.machine.next_tick is None
    assert [list(alive.tasks) for alive in said(hosted(SessionBegun(m.Welcome())), "alive")] == [["1.a"]]


# -------------------------------------------------------------------------------------------------- malformed messages

GOOD_TASK = {
    "run": "r", "task": "1.a", "ask": 1, "client": "a", "attempt": 1, "key": bytes(32), "data_key": bytes(32),
}  # fmt: skip
GOOD_ASK = {"run": "r", "ask": 2, "kind": "train", "digest": b"d", "transforms": PLAIN}
BAD = {
    "no body": {},
    "not for nodes": {"refold": m.Refold(run="r")},
    "not from servers": {"result": m.Result(run="r", task="1.a")},
    "run name": {"run_spec": m.RunSpec(run="../r")},
    "no run name": {"run_spec": m.RunSpec()},
    "archive": {"run_spec": m.RunSpec(run="x", archive=m.Payload())},
    "ask of no run": {"ask_spec": m.AskSpec(**{**GOOD_ASK, "run": "x"})},
    "no kind": {"ask_spec": m.AskSpec(**{**GOOD_ASK, "kind": ""})},
    "no digest": {"ask_spec": m.AskSpec(**{**GOOD_ASK, "digest": b""})},
    "huge ask": {"ask_spec": m.AskSpec(**{**GOOD_ASK, "ask": 2**63})},
    "no transforms": {"ask_spec": m.AskSpec(**{**GOOD_ASK, "transforms": ""})},
    "transforms of a strange form": {"ask_spec": m.AskSpec(**{**GOOD_ASK, "transforms": '{"name": "chain"}'})},
    "deep transforms": {"ask_spec": m.AskSpec(**{**GOOD_ASK, "transforms": "[" * 99999})},
    "short hash": {"ask_spec": m.AskSpec(**GOOD_ASK, model=m.Payload(blob=m.Blob(sha256=b"x")))},
    "task of no run": {"task": m.Task(**{**GOOD_TASK, "run": "x"})},
    "task of no ask": {"task": m.Task(**{**GOOD_TASK, "ask": 7, "task": "7.a"})},
    "other task id": {"task": m.Task(**{**GOOD_TASK, "task": "1.b"})},
    "no client": {"task": m.Task(**{**GOOD_TASK, "client": "", "task": "1."})},
    "no attempt": {"task": m.Task(**{**GOOD_TASK, "attempt": 0})},
    "no key": {"task": m.Task(**{**GOOD_TASK, "key": b""})},
    "no data key": {"task": m.Task(**{**GOOD_TASK, "data_key": b"short"})},
    "another client's state": {"task": m.Task(**GOOD_TASK, base="0.b")},
    "empty own": {"task": m.Task(**GOOD_TASK, own=m.Payload())},
    "huge close": {"close_ask": m.CloseAsk(run="r", ask=2**63)},
    "status": {"close_run": m.CloseRun(run="r", status="lost")},
    "run to close": {"close_run": m.CloseRun(run="", status="finished")},
}


@pytest.mark.parametrize("name", BAD)
def test_a_message_that_makes_no_sense_changes_nothing(hosted, name):
    hosted.spool.commit()
    with pytest.raises(ProtocolError) as caught:
        hosted.get(**BAD[name])
    assert caught.value.code in (m.CODE_MALFORMED, m.CODE_NOT_ALLOWED, m.CODE_UNKNOWN)
    assert not hosted.spool.take()
    assert started(hosted.task("a")) == [("r", "1.a")]
    assert said(hosted.ask(2), "result") == []


# ------------------------------------------------------------------------------------------------- random schedules


class World:
    """A model of the server and of the glue around a machine, driven by one random generator."""

    CLIENTS, SLOTS, ASKS = "abc", 2, 12

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.now = 0.0
        self.spool = Spool()
        self.machine = NodeMachine(self.spool, self.CLIENTS, slots=self.SLOTS)
        self.connected = False
        self.down, self.up = deque(), deque()
        self.held, self.batch = [], None
        self.fetching, self.preparing = set(), set()
        self.running = {}
        self.count, self.made = 0, {}
        # the server's side
        self.open = {run: {} for run in ("r", "q")}  # ask -> its tasks that are wanted: task -> attempt
        self.bases = {(run, client): "" for run in self.open for client in self.CLIENTS}
        self.based = {}
        self.accepted, self.ever_said, self.states = {}, defaultdict(set), {}
        self.cancelled, self.over, self.acks = set(), set(), []
        self.ready, self.next_ask, self.failures = set(), dict.fromkeys(self.open, 1), 60

    # the glue

    def tell(self, event):
        for effect in self.machine.handle(event, self.now):
            match effect:
                case SayToServer(message, durable):
                    (self.held if durable else self.up).append(message)
                case FetchBlob(run, blob):
                    self.fetching.add((run, blob.sha256))
                case ReleaseBlob(run, sha):
                    self.fetching.discard((run, sha))
                    self.released(run, sha)
                case Prepare(run):
                    self.preparing.add(run)
                case EndRun(run):
                    self.preparing.discard(run)
                    self.running = {key: start for key, start in self.running.items() if key[0] != run}
                case Start(run, task, _, base):
                    self.started(run, task, base)
        assert len(self.running) <= self.SLOTS

    def started(self, run, task, base):
        key = (run, task.task)
        assert key not in self.running
        assert all((of, id.partition(".")[2]) != (run, task.client) for of, id in self.running)
        assert base == (self.states[run, task.base] if task.base else None), "the state that was admitted"
        assert (run != "q") or (run, blob_of("q").sha256) not in self.fetching
        self.running[key] = task.attempt

    def released(self, run, sha):
        key = self.made.get(sha.rstrip(b".").decode())
        if key is not None and key in {(of, task) for of, task, _ in self.wanted()}:
            kept = map(m.Result.FromString, self.spool.answers())
            assert (run, sha) not in {(result.run, result.done.update.blob.sha256) for result in kept}, "still owed"

    def commit(self):
        """Begin a group commit, or end the one that has begun."""
        if self.batch is None:
            self.batch = (self.spool.take(), len(self.held))
            return
        batch, ready = self.batch
        self.spool.write(batch)
        self.up.extend(self.held[:ready])
        self.held, self.batch = self.held[ready:], None

    def lose_session(self):
        self.connected = False
        self.down.clear()
        self.up.clear()
        self.ready.clear()
        self.acks.clear()
        self.held.clear()
        if self.batch is not None:
            self.batch = (self.batch[0], 0)

    def connect(self):
        if self.connected:
            self.lose_session()
            self.tell(SessionEnded())
            return
        self.connected = True
        self.tell(SessionBegun(m.Welcome()))
        for run in self.random.sample(sorted(self.open), 2):
            if run not in self.over:
                self.down.append(m.Message(run_spec=m.RunSpec(run=run)))

    def crash(self):
        self.lose_session()
        self.spool.crash()
        self.batch = None
        self.fetching.clear()
        self.preparing.clear()
        self.running.clear()
        self.machine = NodeMachine(self.spool, self.CLIENTS, slots=self.SLOTS)

    def child(self):
        if not self.running:
            return
        (run, task), attempt = self.random.choice(sorted(self.running.items()))
        chance = self.random.random()
        if chance < 0.2:
            self.tell(Stepped(run, task))
            return
        del self.running[run, task]
        if chance < 0.4 and self.failures > 0:
            self.failures -= 1
            self.tell(TaskFailed(run, task, attempt, "it died", True))
            return
        self.count += 1
        text = f"update {self.count}"  # doing a task again makes another answer
        self.made[text] = (run, task)
        update = payload(text) if self.random.random() < 0.3 else m.Payload(inline=text.encode())
        self.tell(TaskDone(run, task, attempt, m.Done(update=update), f"state of {text}".encode()))

    def host(self):
        if self.preparing:
            run = self.random.choice(sorted(self.preparing))
            self.preparing.remove(run)
            self.tell(HostReady(run, KINDS, STEPS))

    def fetch(self):
        if self.fetching and self.connected:
            run, sha = self.random.choice(sorted(self.fetching))
            self.fetching.remove((run, sha))
            self.tell(Fetched(run, sha))

    # the server

    def push(self, run, task, attempt):
        if run in self.ready:
            ask, _, client = task.partition(".")
            base = self.based[run, task]
            self.down.append(
                m.Message(task=m.Task(run=run, task=task, ask=int(ask), client=client, attempt=attempt, key=bytes(32),
                                      data_key=bytes(32), base=base))
            )  # fmt: skip

    def push_ask(self, run, ask):
        if run in self.ready:
            model = payload("q") if run == "q" else None
            spec = m.AskSpec(run=run, ask=ask, kind="train", digest=b"%d" % ask, transforms=PLAIN, model=model)
            self.down.append(m.Message(ask_spec=spec))

    def new_ask(self):
        run = self.random.choice(sorted(self.open))
        if len(self.open[run]) < 2 and self.next_ask[run] <= self.ASKS and run not in self.over:
            ask = self.next_ask[run]
            self.next_ask[run] += 1
            self.open[run][ask] = {f"{ask}.{client}": 1 for client in self.CLIENTS}
            self.push_ask(run, ask)
            for task in self.open[run][ask]:
                self.based[run, task] = self.bases[run, task.partition(".")[2]]
                self.push(run, task, 1)

    def close(self):
        """Close an ask that has nothing to wait for, or the run after its last one."""
        for run, asks in self.open.items():
            for ask, tasks in list(asks.items()):
                if all((run, task) in self.accepted or (run, task) in self.cancelled for task in tasks):
                    del asks[ask]
                    self.send(m.Message(close_ask=m.CloseAsk(run=run, ask=ask)))
                    return

    def send(self, message):
        if self.connected:
            self.down.append(message)

    def wanted(self):
        return sorted(
            (run, task, attempt)
            for run, asks in self.open.items()
            for tasks in asks.values()
            for task, attempt in tasks.items()
            if (run, task) not in self.accepted and (run, task) not in self.cancelled
        )

    def cancel(self):
        if wanted := self.wanted():
            run, task, _ = self.random.choice(wanted)
            self.cancelled.add((run, task))
            self.send(m.Message(cancel=m.Cancel(run=run, tasks=[task])))

    def repeat(self):
        """Send a task once more, now and then as a further attempt."""
        if wanted := self.wanted():
            run, task, attempt = self.random.choice(wanted)
            if self.random.random() < 0.2:
                attempt += 1
                self.open[run][int(task.partition(".")[0])][task] = attempt
            self.push(run, task, attempt)

    def listen(self):
        if self.up:
            message = self.up.popleft()
            kind = message.WhichOneof("body")
            if kind == "run_answer":
                self.answered_run(message.run_answer)
            elif kind == "alive":
                wanted = {(run, task) for run, task, _ in self.wanted()}
                gone = [task for task in message.alive.tasks if (message.alive.run, task) not in wanted]
                self.send(m.Message(cancel=m.Cancel(run=message.alive.run, tasks=gone)))
            elif kind == "result":
                self.result(message.result)

    def answered_run(self, answer):
        assert answer.ready
        self.ready.add(answer.run)
        asks = sorted(self.open[answer.run])
        for ask in asks:
            self.push_ask(answer.run, ask)
        pending = [each for each in self.wanted() if each[0] == answer.run]
        for each in self.random.sample(pending, len(pending)):
            self.push(*each)

    def result(self, result):
        key = (result.run, result.task)
        self.acks.append(key)
        if result.HasField("done"):
            self.ever_said[key].add(result.done.SerializeToString(deterministic=True))
            assert len(self.ever_said[key]) == 1, f"{key} was answered in two ways"
        if key not in {(run, task) for run, task, _ in self.wanted()}:
            return
        tasks = self.open[result.run][result.ask]
        if result.HasField("done"):
            self.accepted[key] = result
            update = result.done.update
            text = update.inline or update.blob.sha256.rstrip(b".")
            self.states[key] = b"state of " + text
            self.bases[result.run, result.client] = result.task
        else:
            assert result.failure.retry, result.failure.reason
            if result.attempt >= tasks[result.task]:
                tasks[result.task] = result.attempt + 1
                self.push(*key, result.attempt + 1)

    def acknowledge(self):
        """Acknowledge in batches that may name a task once for two results."""
        if self.acks and self.connected:
            cut = self.random.randint(1, len(self.acks))
            now, self.acks = self.acks[:cut], self.acks[cut:]
            for run in sorted({run for run, _ in now}):
                tasks = list(dict.fromkeys(task for of, task in now if of == run))
                self.down.append(m.Message(ack=m.Ack(run=run, tasks=tasks)))

    def deliver(self):
        if self.down:
            self.tell(ServerSaid(self.down.popleft()))

    # all of it

    def play(self, steps=2500):
        often = [self.deliver, self.listen, self.child, self.commit] * 4
        seldom = [self.host, self.fetch, self.new_ask, self.close, self.acknowledge, self.repeat] * 2
        for _ in range(steps):
            self.now += self.random.random()
            chance = self.random.random()
            if chance < 0.008:
                self.crash()
            elif chance < 0.025 or not self.connected:
                self.connect()
            elif chance < 0.032:
                self.cancel()
            else:
                self.random.choice(often + seldom)()
        self.calm()

    def calm(self):
        """No more faults: all that is wanted is answered, and acknowledged in the end."""
        self.failures = 0
        for _ in range(3):
            while not self.connected:
                self.connect()
            for _ in range(200):
                for step in (self.deliver, self.listen, self.child, self.commit, self.host, self.fetch, self.new_ask,
                             self.acknowledge, self.close):  # fmt: skip
                    step()
            self.connect()


@pytest.mark.parametrize("block", range(10))
def test_random_schedules(block):
    for seed in range(block * 30, block * 30 + 30):
        world = World(seed)
        world.play()
        where = f"seed {seed}"
        assert world.wanted() == [], where
        assert all(ask > world.ASKS for ask in world.next_ask.values()), where
        asked = {(run, f"{ask}.{c}") for run in world.open for ask in range(1, world.ASKS + 1) for c in world.CLIENTS}
        assert asked - world.cancelled <= world.accepted.keys(), where
        assert world.spool.answers() == [], where
        for run in sorted(world.open):
            world.tell(ServerSaid(m.Message(close_run=m.CloseRun(run=run, status="finished"))))
        world.spool.commit()
        assert world.spool.runs() == set(), where
        assert world.machine.needed() == set(), where
        assert world.running == {}, where
