"""A simulated federation: who its clients are, and how their tasks are done in this process."""

from __future__ import annotations

import numpy as np
import pytest

from umbel import Arrays, Ask, Client, Simulation, Update, Window, mean
from umbel.core.randomness import Key
from umbel.core.task import Admit, Cancel, Failed, Finished, Send, Task
from umbel.errors import SettingError
from umbel.work.state import ClientStates

MODEL = Arrays({"w": np.zeros(2)})


def test_clients_are_numbers_a_list_of_sources_or_named_sources():
    numbered = Simulation(3)
    assert list(numbered.clients) == [0, 1, 2]
    assert numbered.source(2) == {"index": 2, "count": 3}
    listed = Simulation(["a.csv", "b.csv"])
    assert list(listed.clients) == [0, 1]
    assert listed.source(1) == "b.csv"
    named = Simulation({"north": 1, "south": 2})
    assert list(named.clients) == ["north", "south"]
    assert named.source("south") == 2
    assert [repr(s) for s in (numbered, listed, named)] == [f"Simulation(clients={n})" for n in (3, 2, 2)]


def test_millions_of_clients_cost_nothing():
    assert Simulation(15_000_000).clients == range(15_000_000)


@pytest.mark.parametrize("clients", [0, -1, True, 2.0, None, "100", b"1", [], {}, (), {1, 2}])
def test_who_is_no_federation(clients):
    with pytest.raises(SettingError, match="a simulation"):
        Simulation(clients)


@pytest.mark.parametrize("size", [-1, True, 1.0, None])
def test_how_much_data_cannot_be_kept(size):
    with pytest.raises(SettingError, match="data_cache is a number of clients"):
        Simulation(3, data_cache=size)


@pytest.fixture
def done():
    """The tasks that were done, in order."""
    return []


@pytest.fixture
def session(done):
    client = Client()

    @client.train
    def train(model, data, ctx):
        done.append((ctx.client, ctx.device))
        if ctx.client == 9:
            raise ValueError("nine")
        return Update({"w": model["w"] + ctx.client})

    states = ClientStates()
    found = Simulation(10, device="tpu").connect(client, {}, Key.from_seed(0), states)
    yield found
    found.disconnect()
    states.close()


def opened(session, id, lane="train"):
    window = Window(close_after=2, late="keep")
    session.open(id, Ask(clients=2, model=MODEL, lane=lane, fold=mean(), window=window), 1, id, None)


def send(session, *ids):
    for id in ids:
        ask, client = map(int, id.split("."))
        session.do(Send([Task(id, ask, client)]))


def test_tasks_are_done_in_the_order_in_which_they_were_sent(session, done):
    opened(session, 0)
    send(session, "0.4", "0.2", "0.9")
    assert session.next_event() == Finished(["0.4"])
    assert session.next_event() == Finished(["0.2"])
    failed = session.next_event()
    assert isinstance(failed, Failed)
    assert failed.reason.startswith("its train handler raised ValueError: nine")
    assert not failed.retry
    assert session.next_event() is None
    assert done == [(4, "tpu"), (2, "tpu"), (9, "tpu")]


def test_results_are_folded_when_they_are_admitted_and_only_those(session):
    opened(session, 0)
    send(session, "0.4", "0.2")
    session.next_event(), session.next_event()
    session.do(Cancel(["0.2"]))
    session.do(Admit(["0.4"], 0))
    partial = session.close(0).partial
    assert partial.receipts.keys() == {"0.4"}
    assert partial.finish().value["w"].tolist() == [4.0, 4.0]


def test_a_task_that_is_cancelled_is_not_done(session, done):
    opened(session, 0)
    send(session, "0.1", "0.2", "0.3")
    session.do(Cancel(["0.2"]))
    session.do(Cancel(["0.77"]))
    assert [session.next_event() for _ in range(3)] == [Finished(["0.1"]), Finished(["0.3"]), None]
    assert [client for client, _ in done] == [1, 3]


def test_asks_that_are_open_at_once_are_done_one_after_the_other(session):
    opened(session, 0, "a")
    opened(session, 1, "b")
    send(session, "0.1", "1.1", "1.2")
    assert session.next_event() == Finished(["0.1"])
    send(session, "0.2")
    assert [session.next_event() for _ in range(3)] == [Finished(["0.2"]), Finished(["1.1"]), Finished(["1.2"])]


def test_late_tasks_wait_for_the_next_ask_of_their_lane(session):
    opened(session, 0, "a")
    send(session, "0.1", "0.2")
    assert session.next_event() == Finished(["0.1"])
    session.close(0)
    opened(session, 1, "b")
    send(session, "1.1")
    assert session.next_event() == Finished(["1.1"])
    assert session.next_event() is None
    session.close(1)
    session.forget({0})
    opened(session, 2, "a")
    send(session, "2.3")
    assert [session.next_event() for _ in range(3)] == [Finished(["0.2"]), Finished(["2.3"]), None]


def test_late_tasks_are_known_again_after_a_restart(session, done):
    opened(session, 0)
    saved = session.save_asks([Task("0.5", 0, 5)])
    client = Client()
    client.train(lambda model, data, ctx: Update({"w": model["w"] - ctx.client}))
    states = ClientStates()
    again = Simulation(10).connect(client, {}, Key.from_seed(0), states)
    again.restore_asks(saved)
    opened(again, 1)
    send(again, "0.5")
    assert again.next_event() == Finished(["0.5"])
    again.do(Admit(["0.5"], 1, staleness=1, factor=0.5))
    partial = again.close(1).partial
    assert partial.receipts["0.5"].staleness == 1
    assert partial.finish().value["w"].tolist() == [-2.5, -2.5]  # the mean of one, discounted, and still one
    states.close()
