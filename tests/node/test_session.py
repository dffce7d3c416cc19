"""What a node says to its server, and when: signs of life."""

from __future__ import annotations

from tests.node.bench import Bench, blob_of, payload, said

from umbel.core.task import Ticked
from umbel.node.session import ALIVE_SECONDS
from umbel.node.signals import Moved, Note, SessionBegun, SessionEnded, Stepped
from umbel.wire import messages as m
from umbel.wire.blobs import Fetched


def test_what_the_server_wants_known_is_told_to_the_owner():
    assert Bench().get(notice=m.Notice(text="no room")) == [Note("the server says: no room")]


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
