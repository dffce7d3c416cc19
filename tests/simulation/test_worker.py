"""A worker's loop, driven over a socket pair in the test's own process."""

from __future__ import annotations

import os
import pickle
import socket
import sys
from contextlib import nullcontext, suppress
from types import SimpleNamespace

import cloudpickle
import numpy as np
import pytest

import umbel
from umbel import Arrays, Ask, Client, Metrics, Update, mean
from umbel.core.partial import Partial
from umbel.core.randomness import Key
from umbel.core.task import Admit, Task
from umbel.errors import AppError
from umbel.simulation import worker
from umbel.simulation.backlog import SimulatedAsk, Ticket
from umbel.simulation.channel import Channel, PackedMessage
from umbel.simulation.hosts import HostedWorker
from umbel.simulation.status import BATCH, CANCELLED, PLACE, STEPS, Status, row_of
from umbel.work.executor import Executor, RunKeys
from umbel.work.seeding import generators_kept
from umbel.work.state import ClientStates

MODEL = Arrays({"w": np.zeros(2)})
WENT_ON = 7
"""A word of a worker's row that nobody uses."""


class Bench:
    """What the main process does with a worker: `remote` is told what to do, then `answers` lets the worker do it."""

    def __init__(self, client=None, *, sources=10, data=None, config=None, place=None):
        self.status = Status(1, named=False)
        self.channel, self.theirs = Channel.pair()
        self.config = {"status": self.status.descriptor, **(config or {})}
        self.channel.send(place or worker.Workplace(list(sys.path), os.getcwd(), {}))
        beginning = worker.Beginning(
            client=cloudpickle.dumps(client or trains(plainly)) if data is None else data,
            sources=sources,
            device="cpu",
            data_cache=5,
            memory=None,
        )
        self.channel.send(beginning)
        process = SimpleNamespace(channel=self.channel)
        self.remote = HostedWorker(
            0, process, self.status.row(0), PackedMessage(("run", self.config, Key.from_seed(1)))
        )
        self.states = {}

    def ask(self, id=0, *, plain=True, **asked):
        ask = Ask(**{"clients": 3, "model": MODEL, "fold": mean(), **asked})
        return SimulatedAsk(id, ask, 1, 0, None, plain=plain)

    def do(self, sent, *clients):
        tickets = [Ticket(Task(f"{sent.id}.{client}", sent.id, client), sent) for client in clients]
        self.remote.do(tickets, 0.0, self.states.get)
        return tickets

    def answers(self):
        """All that the worker sends back until the main process is gone."""
        end = socket.socket(fileno=os.dup(self.channel.fileno()))
        end.shutdown(socket.SHUT_WR)
        end.close()
        with generators_kept():
            worker.serve(self.theirs, self.status.descriptor, 0)
        self.theirs.close()
        found = []
        with suppress(EOFError):
            while True:
                found.append(self.channel.receive())
        return found

    def close(self):
        self.theirs.close()
        self.channel.close()
        self.status.close()


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Makes benches; what a worker changes of its process is put back."""
    monkeypatch.setattr(worker, "active", False)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.chdir(os.getcwd())
    environment = dict(os.environ)
    made = []

    def bench(*arguments, **settings):
        made.append(Bench(*arguments, **settings))
        return made[-1]

    yield bench
    for each in made:
        each.close()
    os.environ.clear()
    os.environ.update(environment)


def trains(handler, load=None):
    client = Client()
    client.train(handler)
    if load is not None:
        client.data(load)
    return client


def plainly(model, data, ctx):
    return Update({"w": model["w"] + ctx.client})


def row(ctx):
    return row_of(ctx.config["status"], 0)


def report(answers):
    (found,) = [rest for kind, *rest in answers if kind == "report"]
    return found


def partial(sent, answers):
    """The partial that a worker sent, the clients' states and the refused."""
    (contents,) = [rest[1] for kind, *rest in answers if kind == "partial"]
    found = Partial(sent.ask.fold)
    found.merge_contents(contents[0])
    return found, *contents[1:]


def test_tasks_are_done_folded_and_reported(bench):
    here = bench()
    sent = here.ask()
    here.do(sent, 4, 2, 7)
    here.remote.ask_to_close(sent)
    answers = here.answers()
    assert [kind for kind, *_ in answers] == ["report", "partial"]
    told, account = report(answers)
    assert (told.batch, told.failed, told.skipped, len(told.seconds)) == (1, {}, [], 3)
    assert account.training > 0
    folded, states, refused, _ = partial(sent, answers)
    assert folded.receipts.keys() == {"0.4", "0.2", "0.7"}
    assert (states, refused) == ({}, {})
    status = here.status.row(0)
    assert (status[BATCH], status[PLACE], status[STEPS], status[CANCELLED]) == (1, 0, 0, 0)
    assert worker.active


def test_a_partial_has_the_bits_that_this_process_would_give(bench):
    here = bench(trains(lambda model, data, ctx: Update({"w": model["w"] + ctx.rng.random(2)}, weight=ctx.client)))
    sent = here.ask()
    here.do(sent, 3, 1)
    here.do(sent, 9)
    here.remote.ask_to_close(sent)
    folded, *_ = partial(sent, here.answers())
    states = ClientStates()
    client = trains(lambda model, data, ctx: Update({"w": model["w"] + ctx.rng.random(2)}, weight=ctx.client))
    executor = Executor(client, lambda c: c, config={}, keys=RunKeys(Key.from_seed(1)), states=states)
    executor.open(0, sent.ask, 1, 0, None)
    with generators_kept():
        for number in (9, 3, 1):
            executor.run_all(0, [number])
            executor.admit(Admit([f"0.{number}"], 0))
    assert folded.finish().value == executor.close(0).partial.finish().value
    states.close()


def test_a_client_that_fails_is_reported_and_the_others_are_done(bench):
    def train(model, data, ctx):
        if ctx.client == 2:
            raise ValueError("two")
        return Update(model)

    here = bench(trains(train))
    sent = here.ask()
    tickets = here.do(sent, 1, 2, 3)
    here.remote.ask_to_close(sent)
    answers = here.answers()
    told, _ = report(answers)
    assert told.failed.keys() == {"0.2"}
    assert told.failed["0.2"].reason.startswith("its train handler raised ValueError: two")
    assert partial(sent, answers)[0].receipts.keys() == {"0.1", "0.3"}
    assert here.remote.reported(told) == tickets
    assert [(ticket.done, ticket.failed is None) for ticket in tickets] == [(True, True), (True, False), (True, True)]


@pytest.mark.parametrize("at_once", [1, 16])
def test_a_batch_that_is_not_wanted_is_not_begun(bench, at_once):
    here = bench()
    sent = here.ask(**({} if at_once > 1 else {"window": umbel.Window(close_after=2)}))
    tickets = here.do(sent, 1, 2, 3)
    here.remote.ask_to_close(sent)
    here.status.row(0)[CANCELLED] = 1
    answers = here.answers()
    told, _ = report(answers)
    assert told.skipped == ["0.1", "0.2", "0.3"]
    assert told.seconds == []
    assert partial(sent, answers)[0].receipts == {}
    here.remote.reported(told)
    assert not any(ticket.done for ticket in tickets)


def test_only_batches_up_to_the_cancelled_one_are_skipped(bench):
    here = bench()
    sent = here.ask()
    here.do(sent, 1)
    here.do(sent, 2)
    here.status.row(0)[CANCELLED] = 1
    told = [rest[0] for kind, *rest in here.answers() if kind == "report"]
    assert [each.skipped for each in told] == [["0.1"], []]


@pytest.mark.parametrize("at_once", [1, 16])
@pytest.mark.parametrize("swallows", [False, True])
def test_a_task_that_is_not_wanted_any_more_ends_at_its_next_step(bench, swallows, at_once):
    """Also where the handler has a way of its own with errors."""

    def train(model, data, ctx):
        words = row(ctx)
        ctx.step()
        assert words[STEPS] == 1
        if ctx.client == 2:
            words[CANCELLED] = words[BATCH]
            with suppress(Exception) if ctx.config["swallows"] else nullcontext():
                ctx.step()
            words[WENT_ON] = 1
        return Update(model)

    here = bench(trains(train), config={"swallows": swallows})
    sent = here.ask(**({} if at_once > 1 else {"window": umbel.Window(close_after=2)}))
    here.do(sent, 1, 2, 3)
    here.remote.ask_to_close(sent)
    answers = here.answers()
    told, _ = report(answers)
    assert not here.status.row(0)[WENT_ON]
    assert (told.skipped, told.failed) == (["0.2", "0.3"], {})
    assert partial(sent, answers)[0].receipts.keys() == {"0.1"}


def test_the_place_in_the_batch_and_the_steps_can_be_seen(bench):
    def train(model, data, ctx):
        words = row(ctx)
        for _ in range(ctx.client):
            ctx.step()
        return Update(model, metrics={"batch": words[BATCH], "place": words[PLACE], "steps": words[STEPS]})

    here = bench(trains(train))
    sent = here.ask()
    here.do(sent, 5, 3)
    here.do(sent, 4)
    here.remote.ask_to_close(sent)
    receipts = partial(sent, here.answers())[0].receipts
    assert {task: tuple(receipt.metrics.values()) for task, receipt in receipts.items()} == {
        "0.5": (1.0, 1.0, 5.0),
        "0.3": (1.0, 2.0, 3.0),
        "0.4": (2.0, 1.0, 4.0),
    }


def test_what_is_printed_goes_to_the_main_process_line_by_line(bench):
    def train(model, data, ctx):
        print("one\ntwo")
        print("half", end="")
        print("an error", file=sys.stderr)
        print(" and half\nrest", end="")
        return Update(model)

    here = bench(trains(train))
    here.do(here.ask(), 1)
    answers = here.answers()
    assert [tuple(rest) for kind, *rest in answers if kind == "printed" and rest[0] == "stderr"] == [
        ("stderr", "an error\n")
    ]
    told = [rest[1] for kind, *rest in answers if kind == "printed" and rest[0] == "stdout"]
    assert "".join(told) == "one\ntwo\nhalf and half\nrest"
    assert all(text.endswith("\n") for text in told[:-1])
    assert [kind for kind, *_ in answers][-1] == "report"  # nothing of a batch comes after its report


def test_a_stream_like_others():
    channel, other = Channel.pair()
    told = worker.Told(channel, "stdout")
    assert told.writable()
    assert not told.isatty()
    assert told.write("a") == 1
    told.flush()
    told.flush()
    assert told.write("\n\nb") == 3
    receiver = Channel(other)
    assert [receiver.receive() for _ in range(2)] == [("printed", "stdout", "a"), ("printed", "stdout", "\n\n")]
    receiver.close()
    told.flush()  # nobody listens
    channel.close()


def test_an_error_of_the_caller_says_where_it_arose(bench):
    def train(model, data, ctx):
        raise AppError("no such layer", hint="Name another.")

    here = bench(trains(train))
    here.do(here.ask(), 3)
    ((kind, error),) = here.answers()
    assert kind == "fault"
    assert isinstance(error, AppError)
    assert (error.message, error.hint, error.client, error.round) == ("no such layer", "Name another.", 3, 1)
    (note,) = error.__notes__
    assert note.startswith("test_worker.py:")
    assert note.endswith('raise AppError("no such layer", hint="Name another.")')


def test_a_client_without_a_handler_is_told_of(bench):
    here = bench()
    here.do(here.ask(kind="evaluate"), 1)
    ((kind, error),) = here.answers()
    assert kind == "fault"
    assert "no handler" in error.message


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"cno_such_module\nClient\n.", "ModuleNotFoundError: No module named 'no_such_module'"),
     (b"cumbel\nNoSuchThing\n.", "AttributeError"),
     (b"", "EOFError"),
     (pickle.dumps(SystemExit(3))[:-20], "truncated"),
     (b"csys\nexit\n(I3\ntR.", "SystemExit: 3")],
)  # fmt: skip
def test_a_client_that_cannot_be_loaded(bench, data, words):
    ((kind, error),) = bench(data=data).answers()
    assert kind == "fault"
    assert isinstance(error, AppError)
    assert error.message.startswith("a worker process cannot load the client: ")
    assert words in error.message
    assert "workers=0" in error.hint


def test_a_client_module_with_a_mistake_of_its_own(bench):
    class Broken:
        def __reduce__(self):
            return exec, ("import umbel; umbel.Client().data(lambda: None)",)

    ((kind, error),) = bench(data=pickle.dumps(Broken())).answers()
    assert kind == "fault"
    assert error.message.startswith("the data handler")


class Unloadable:
    def __reduce__(self):
        return int, ("no number",)


def test_sources_that_cannot_be_loaded(bench):
    ((kind, error),) = bench(sources=[Unloadable()]).answers()
    assert kind == "fault"
    assert isinstance(error, AppError)
    assert error.message.startswith("a worker process cannot load what it was sent: ValueError: invalid literal")


def test_a_message_that_cannot_be_loaded(bench):
    here = bench()
    here.do(here.ask(), 1)
    here.channel.send(Unloadable())
    here.do(here.ask(1), 2)
    answers = here.answers()
    assert [kind for kind, *_ in answers] == ["report", "fault"]  # and then it ended
    assert "cannot load what it was sent" in answers[1][1].message


def test_it_moves_to_where_the_main_process_is(bench, tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_TEST", "before")
    (tmp_path / "somewhere_else.py").write_text("class Source:\n    number = 7\n")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import somewhere_else, pickle; "
    code += "sys.stdout.buffer.write(pickle.dumps(somewhere_else.Source()))"
    import subprocess

    data = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=True).stdout

    class Source:
        def __reduce__(self):
            return pickle.loads, (data,)

    def train(model, data, ctx):
        here = os.getcwd() == ctx.config["folder"] and os.environ["UMBEL_TEST"] == "after"
        return Update(model, metrics={"number": data.number, "here": here})

    place = worker.Workplace([*sys.path, str(tmp_path)], str(tmp_path), {"UMBEL_TEST": "after"})
    here = bench(trains(train), sources={"a": Source()}, place=place, config={"folder": str(tmp_path)})
    sent = here.ask()
    here.do(sent, "a")
    here.remote.ask_to_close(sent)
    folded, *_ = partial(sent, here.answers())
    assert folded.receipts["0.a"].metrics == {"number": 7.0, "here": 1.0}
    sys.modules.pop("somewhere_else")


def test_a_folder_that_is_gone_is_no_obstacle(bench, tmp_path):
    here = bench(place=worker.Workplace(list(sys.path), str(tmp_path / "gone"), {}))
    here.do(here.ask(), 1)
    assert report(here.answers())[0].failed == {}


def test_data_is_kept_for_so_many_clients(bench):
    here = bench(trains(plainly, load=lambda source: source["index"]))
    here.do(here.ask(0), 1, 2)
    here.do(here.ask(1), 1, 2, 3)
    accounts = [rest[1] for kind, *rest in here.answers() if kind == "report"]
    assert [(account.data_hits, account.data_loads) for account in accounts] == [(0, 2), (2, 1)]


def test_states_come_with_the_tasks_and_go_with_the_partial(bench):
    def train(model, data, ctx):
        ctx.state["count"] = ctx.state.get("count", 0) + 1
        return Update(model)

    here = bench(trains(train))
    sent = here.ask()
    here.do(sent, 1, 2)
    here.remote.ask_to_close(sent)
    _, states, _, _ = partial(sent, here.answers())
    assert states.keys() == {1, 2}

    again = bench(trains(train))
    again.states = {1: states[1]}
    again.do(sent := again.ask(), 1, 2)
    again.remote.ask_to_close(sent)
    _, new, _, _ = partial(sent, again.answers())
    assert new[2] == states[2]
    assert new[1] != states[1]


def test_each_client_gets_its_own(bench):
    def train(model, data, ctx):
        return Update({"w": model["w"] + ctx.inbox["x"]}, metrics={"rate": ctx.config["rate"]})

    here = bench(trains(train))
    sent = here.ask(
        model=lambda client: Arrays({"w": np.full(2, float(client))}),
        inbox=lambda client: {"x": np.full(2, 10.0 * client)},
        config=lambda client: {"rate": client / 4},
    )
    here.do(sent, 1, 3)
    here.do(sent, 5)
    here.remote.ask_to_close(sent)
    folded, *_ = partial(sent, here.answers())
    assert {task: receipt.metrics["rate"] for task, receipt in folded.receipts.items()} == {
        "0.1": 0.25, "0.3": 0.75, "0.5": 1.25,
    }  # fmt: skip


def test_results_wait_until_they_are_admitted_or_cancelled(bench):
    here = bench()
    sent, later = here.ask(plain=False), here.ask(1, plain=False)
    first, *_ = here.do(sent, 1, 2, 3)
    here.remote.admit(Admit(["0.3"], 0), sent)
    first.done = True
    here.remote.cancel(first)
    here.remote.ask_to_close(sent)
    here.remote.forget({0})
    here.remote.admit(Admit(["0.2"], 1, staleness=1, factor=0.5), later)
    here.remote.ask_to_close(later)
    answers = here.answers()
    found = {}
    for kind, *rest in answers:
        if kind == "partial":
            folded = Partial(sent.ask.fold)
            folded.merge_contents(rest[1][0])
            found[rest[0]] = folded.receipts
    assert found[0].keys() == {"0.3"}
    assert found[1].keys() == {"0.2"}
    assert found[1]["0.2"].staleness == 1


def test_evaluation(bench):
    client = Client()
    client.evaluate(lambda model, data, ctx: Metrics({"loss": ctx.client}))
    here = bench(client)
    sent = here.ask(kind="evaluate", fold=umbel.total(), expects=umbel.Free())
    here.do(sent, 1, 3)
    here.remote.ask_to_close(sent)
    folded, *_ = partial(sent, here.answers())
    assert {receipt.metrics["loss"] for receipt in folded.receipts.values()} == {1.0, 3.0}


def test_the_main_process_is_gone_before_it_has_said_anything(bench):
    here = bench()
    here.channel.close()
    connected, other = socket.socketpair()
    other.close()
    worker.serve(connected, here.status.descriptor, 0)
    connected.close()
    assert sys.stdout is sys.__stdout__


def hungry(model, data, ctx):
    if ctx.client == 1:
        np.ones(200_000_000, np.uint8)
    return Update({"w": model["w"] + 1})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory hold on Linux")
@pytest.mark.parametrize(("memory", "failed"), [(100_000_000, 1), (500_000_000, 0)])
def test_a_client_that_takes_too_much_memory_fails_and_the_run_goes_on(memory, failed):
    client = Client()
    client.train(hungry)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        app = umbel.App(client, model=lambda: MODEL, strategy=umbel.FedAvg(cohort=3), rounds=2)
        result = umbel.run(app, on=umbel.Simulation(3, workers=1, memory=memory), folder=None)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert result.model["w"].tolist() == [2.0, 2.0]
    assert [entry.dropped for entry in result.history] == [failed] * 2
