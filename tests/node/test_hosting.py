"""The host of a run at its node: prepared, tried again, approved, refused, and what it cannot do."""

from __future__ import annotations

import json

from tests.node.bench import KINDS, STEPS, Bench, blob_of, of, payload, refused, said, started

from umbel.core.task import Ticked
from umbel.node.signals import (
    Approved,
    Denied,
    EndRun,
    FetchBlob,
    HostDied,
    HostReady,
    HostRefused,
    OwnerAsked,
    Prepare,
    SayToServer,
)
from umbel.wire import messages as m
from umbel.wire.blobs import Fetched, NotFetched
from umbel.work.retries import AGAIN_AT_MOST, HOST_TRIES


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
        bench.run(config=f'{{"now": {bench.now}}}')


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


def test_a_kind_or_a_transform_that_is_not_known_is_refused(hosted):
    hosted.ask(2, kind="query:height")
    assert refused(hosted.task(ask=2)) == "the client has no handler for query:height (it has: evaluate, train)"
    parts = [{"name": "clip_by_norm", "version": 1, "settings": {}}, {"name": "mask", "version": 2, "settings": {}}]
    hosted.ask(3, transforms=json.dumps(parts))
    assert refused(hosted.task(ask=3)) == "the transform 'mask' version 2 is not known on this node"
    parts.pop()
    hosted.ask(4, transforms=json.dumps(parts))
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
