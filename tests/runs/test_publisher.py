"""Who is told of what happens in a run, and how many like warnings become few."""

from __future__ import annotations

from dataclasses import replace

from umbel.runs import publisher
from umbel.runs.events import AskClosed, RoundStarted, Warned
from umbel.runs.journal import LOG, Journal
from umbel.runs.observers import Observers
from umbel.runs.publisher import MOST_WARNINGS, Publisher
from umbel.runs.receipts import MOST_CLIENTS


class Server:
    def __init__(self, *warnings):
        self.events, self.left = [], list(warnings)

    def observe(self, event):
        self.events.append(event)

    def warnings(self):
        said, self.left = self.left, []
        return said


def closed(ask: int, clients: int) -> AskClosed:
    columns = {"client": list(range(clients))}
    return AskClosed(
        ask=ask, round=1, kind="train", lane="train", digest="", asked=clients, count=clients, clients=columns
    )


def test_an_event_is_in_the_log_before_anybody_hears_of_it(tmp_path):
    seen = []

    def look(event):
        seen.append((event, (tmp_path / LOG).read_bytes().count(b"\n")))

    server = Server()
    told = Publisher(Journal(tmp_path), Observers([look]), server)
    told.tell(Warned(round=1, text="a"))
    told.tell(RoundStarted(round=2, rounds=3))  # which is not logged
    told.tell(Warned(round=2, text="b"), durable=True)
    assert [lines for _, lines in seen] == [1, 1, 2]
    assert server.events == [event for event, _ in seen]
    assert told.watched
    assert not Publisher(Journal(None), Observers(), None).watched


def test_an_observer_that_raises_is_warned_of_in_the_round_at_hand():
    def broken(event):
        raise OSError("no disk")

    server = Server()
    Publisher(Journal(None), Observers([broken]), server).tell(RoundStarted(round=7, rounds=9))
    (first, second) = server.events
    assert isinstance(second, Warned)
    assert (first.round, second.round) == (7, 7)
    assert "no disk" in second.text


def test_of_many_like_warnings_the_first_are_told_and_the_others_counted():
    server = Server((4, "it is slow"), (None, "the disk is nearly full"))
    told = Publisher(Journal(None), Observers(), server)
    for client in range(MOST_WARNINGS + 5):
        told.warn(1, f"client {client} sent too much", client)
    told.warn_of_session(1)
    told.count_warnings(1)
    texts = [event.text for event in server.events]
    assert len(texts) == MOST_WARNINGS + 3
    assert texts[-1] == "5 further warnings like this: client # sent too much"
    told.count_warnings(2)
    told.warn(2, "client 9 sent too much", 9)
    assert len(server.events) == MOST_WARNINGS + 4
    assert [event.client for event in server.events[-4:-2]] == [4, None]


def test_what_matters_once_is_told_once():
    server = Server()
    told = Publisher(Journal(None), Observers(), server)
    for round in (1, 2):
        told.warn_once(round, f"metric 'a1' of {round} clients is not finite", about="a1")
        told.warn_once(round, f"metric 'a2' of {round} clients is not finite", about="a2")
    assert [(event.round, event.text[:11]) for event in server.events] == [(1, "metric 'a1'"), (1, "metric 'a2'")]


def test_libraries_that_no_seed_holds_are_named_once(monkeypatch):
    monkeypatch.setattr(publisher, "unseeded", lambda: ["dice", "cards"])
    server = Server()
    told = Publisher(Journal(None), Observers(), server)
    for round in (1, 2):
        told.warn_of_unseeded(round)
    assert [event.text.split()[0] for event in server.events] == ["dice", "cards"]


def test_only_a_run_that_is_kept_nowhere_else_keeps_what_became_of_its_clients(tmp_path, monkeypatch):
    monkeypatch.setattr(publisher, "MOST_ROWS", 10)
    for folder, kept in ((None, [2, 3]), (tmp_path, [])):
        told = Publisher(Journal(folder), Observers(), None)
        for ask in range(4):
            told.tell(closed(ask, 5))
        assert [event.ask for event in told.closed] == kept


def test_asks_of_clients_that_are_too_many_for_rows_are_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(publisher, "MOST_ROWS", 3 * MOST_CLIENTS)
    told = Publisher(Journal(None), Observers(), None)
    for ask in range(5):
        spread = {"weight": {"count": MOST_CLIENTS + 1}}
        told.tell(replace(closed(ask, 0), spread=spread, asked=MOST_CLIENTS + 1))
    assert [event.ask for event in told.closed] == [2, 3, 4]
