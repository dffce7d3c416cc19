"""What a node has in hand: answers until they are acknowledged, blobs as long as something needs them."""

from __future__ import annotations

from tests.node.bench import blob_of, of, payload, refused, said, started

from umbel.node.signals import FetchBlob, ReleaseBlob, SayToServer, SessionBegun, SessionEnded, Start
from umbel.wire import messages as m
from umbel.wire.blobs import Fetched, NotFetched


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


def test_a_failure_is_kept_and_a_higher_attempt_takes_its_place(hosted):
    hosted.task()
    (failure,) = said(hosted.failed(), "result")
    assert (failure.failure.reason, failure.failure.retry, failure.attempt) == ("it died", True, 1)
    assert said(hosted.task(), "result") == [failure]
    assert started(hosted.task(attempt=2)) == [("r", "1.a")]
    (result,) = said(hosted.done(attempt=2), "result")
    assert result.attempt == 2
    for _ in range(3):
        hosted.ack("1.a", failed=True)
    hosted.ack("1.a", failed=True, attempt=2)
    hosted.ack("1.a")
    assert said(hosted.reconnect(), "result") == [result], "all were for something else, however often they came"
    hosted.ack("1.a", attempt=2)
    assert said(hosted.reconnect(), "result") == []


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
    assert of(effects, ReleaseBlob) == [ReleaseBlob("r", blob_of("w").sha256)]  # what there is of it is in the way
    assert of(bench.task("a", attempt=2), FetchBlob)
    assert started(bench(Fetched("r", blob_of("w").sha256))) == [("r", "1.a")]
    assert bench(NotFetched("r", blob_of("w").sha256, "late")) == []


def test_the_file_of_an_answer_is_needed_until_it_is_acknowledged(hosted):
    hosted.task()
    hosted.done(update=payload("u"))
    assert hosted.machine.needed() == {("r", blob_of("u").sha256)}
    assert hosted.ack("1.a") == [ReleaseBlob("r", blob_of("u").sha256)]
