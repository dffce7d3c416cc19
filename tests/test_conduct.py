"""What the conductor, the journal and the executor promise together, where it is easy to break."""

import os

import numpy as np
import pytest

import umbel
from umbel import App, Arrays, Ask, Client, EarlyStop, FedAvg, Free, Simulation, State, Strategy, Update, collect, mean
from umbel.coordinator import Failed
from umbel.errors import NothingToFold, RunStopped, SettingError, StorageError
from umbel.events import TaskEnded
from umbel.journal import Journal


def app_of(train, model=None, **settings):
    client = Client()
    client.train(train)
    model = {"w": np.zeros(2)} if model is None else model
    settings = {"strategy": FedAvg(cohort=1.0), "rounds": 2, "evaluate_every": 1, **settings}
    return App(client, model=model, **settings)


@pytest.mark.parametrize("delta", [True, False])
def test_a_handler_may_use_its_arrays_again(delta):
    scratch = {"w": np.zeros(2), "seen": np.zeros(1)}

    def train(model, data, ctx):
        for array in scratch.values():
            array[:] = ctx.client
        return Update(scratch, delta=delta)

    start = Arrays({"w": np.zeros(2), "seen": np.zeros(1)}, {"seen": "buffer"})
    app = app_of(train, start, rounds=1, strategy=FedAvg(cohort=1.0, fold=mean()))
    model = umbel.run(app, on=Simulation(4), folder=None).model
    assert model["w"].tolist() == [1.5, 1.5]
    assert model["seen"] == 1.5


class Everything(Strategy):
    """Asks for anything and keeps what came."""

    def round(self, state, r):
        answer = yield Ask(clients="all", model=state.model, expects=Free(), fold=collect())
        return State(state.model, came=[sorted(u.arrays) for u in answer.value.values()])


def test_personal_arrays_stay_even_where_anything_is_expected():
    came = []

    class Watched(Everything):
        def round(self, state, r):
            after = yield from super().round(state, r)
            came.extend(after.came)
            return after

    start = Arrays({"w": np.zeros(2), "p": np.zeros(2)}, {"p": "personal"})
    app = app_of(lambda m, d, c: Update({"w": np.ones(2), "p": np.ones(2)}), start, strategy=Watched(), rounds=1)
    umbel.run(app, on=Simulation(2), folder=None)
    assert came == [["w"], ["w"]]


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError


def stubborn(ctx):
    ctx.state = "text"


ODDITIES = {
    "exit": lambda ctx: os.sys.exit(0),
    "its own NothingToFold": lambda ctx: (_ for _ in ()).throw(NothingToFold("mine")),
    "its own RunStopped": lambda ctx: (_ for _ in ()).throw(RunStopped("mine")),
    "an unprintable error": lambda ctx: (_ for _ in ()).throw(Unprintable()),
    "ragged lists": lambda ctx: Update({"w": [[1, 2], [3]]}),
    "an odd state": lambda ctx: ctx.state.update(x=object()),
    "no dictionary for a state": stubborn,
}


@pytest.mark.parametrize("oddity", ODDITIES.values(), ids=ODDITIES)
def test_whatever_one_client_does_costs_its_own_update_only(oddity):
    def train(model, data, ctx):
        odd = oddity(ctx) if ctx.client == 1 else None
        return odd or Update({"w": model["w"] + 1})

    result = umbel.run(app_of(train), on=Simulation(3), folder=None)
    assert [(r.clients, r.dropped) for r in result.history] == [(2, 1)] * 2
    assert result.model["w"].tolist() == [2, 2]


def test_one_process_writes_a_run(tmp_path):
    app = app_of(lambda m, d, c: Update(m))
    result = umbel.run(app, on=Simulation(2), folder=tmp_path)
    journal = Journal(result.folder)
    with pytest.raises(StorageError, match="still going on in another process"):
        umbel.resume(app, result.folder, on=Simulation(2))
    journal.close()
    assert umbel.resume(app, result.folder, on=Simulation(2)).model_sha256 == result.model_sha256


def test_the_operators_test_is_seeded_like_everything_else(tmp_path):
    seen = []
    app = app_of(lambda m, d, c: Update(m), rounds=3)
    app.test(lambda model: seen.append(float(np.random.random())) or {"r": seen[-1]})
    first = umbel.run(app, on=Simulation(2), folder=None)
    half = umbel.run(app, on=Simulation(2), folder=tmp_path, rounds=1)
    resumed = umbel.resume(app, half.folder, on=Simulation(2), rounds=3)
    assert resumed.history.series("test.r") == first.history.series("test.r")
    assert len(set(seen)) == 3


def test_the_config_is_what_a_resumed_run_will_see(tmp_path):
    seen = []
    app = app_of(lambda m, d, c: seen.append(c.config["lrs"]) or Update(m), config={"lrs": (1, 2)}, rounds=1)
    result = umbel.run(app, on=Simulation(1), folder=tmp_path)
    umbel.resume(app, result.folder, on=Simulation(1), rounds=2)
    assert seen == [[1, 2], [1, 2]]
    for config in ({"lrs": {1: 0.5}}, {"lrs": {1, 2}}, {"lrs": np.ones(2)}):
        with pytest.raises(SettingError, match="config"):
            umbel.run(app, on=Simulation(1), folder=tmp_path, config=config)
    assert len(list(tmp_path.iterdir())) == 1


def test_rounds_that_brought_nothing_are_not_success_after_a_resume(tmp_path):
    broken = [True]

    def train(model, data, ctx):
        if broken[0]:
            raise OSError("no data")
        return Update({"w": model["w"] + 1})

    app = app_of(train, rounds=3)
    with pytest.raises(RunStopped, match="no data") as caught:
        umbel.run(app, on=Simulation(2), folder=tmp_path)
    assert "--rounds 6" in caught.value.hint
    broken[0] = False
    (folder,) = tmp_path.iterdir()
    with pytest.raises(RunStopped):
        umbel.resume(app, folder, on=Simulation(2))
    assert umbel.resume(app, folder, on=Simulation(2), rounds=6).model["w"].tolist() == [3, 3]


@pytest.mark.parametrize("watch", [{"keep_best": "train.nope"}, {"early_stop": EarlyStop("train.nope")}], ids=str)
def test_a_metric_that_no_round_has_is_told_early_and_nothing_is_lost(watch, tmp_path):
    app = app_of(lambda m, d, c: Update(m, metrics={"loss": 1.0}), **watch)
    with pytest.raises(SettingError, match=r"(?s)'train.nope'.*train\.loss"):
        umbel.run(app, on=Simulation(2), folder=tmp_path)
    (folder,) = tmp_path.iterdir()
    mended = app_of(lambda m, d, c: Update(m, metrics={"loss": 1.0}))
    assert umbel.resume(mended, folder, on=Simulation(2)).rounds == 2


class Twofold(Strategy):
    """Draws a client twice."""

    def round(self, state, r):
        yield Ask(clients=Doubled(), model=state.model)
        return state


class Doubled:
    def draw(self, clients, key):
        return (0, 0)

    def spec(self):
        return {"name": "doubled"}


def test_a_cohort_has_no_client_twice():
    app = app_of(lambda m, d, c: Update(m), strategy=Twofold())
    with pytest.raises(umbel.UmbelError, match="client twice"):
        umbel.run(app, on=Simulation(2), folder=None)


class Stumbling(Simulation):
    """Loses the first task once, and tells of the last one's end twice."""

    def connect(self, *given):
        session = super().connect(*given)
        ends = session.next_event
        told = []

        def next_event():
            if not told:
                told.append(Failed("0.0", "its process is gone", retry=True))
            elif len(told) == 4:
                told.append(told[-1])
            else:
                told.append(ends())
            return told[-1]

        session.next_event = next_event
        return session


def test_the_end_of_a_task_is_told_once_and_not_before_it_is_tried_no_more():
    ended = []
    app = app_of(lambda m, d, c: Update({"w": m["w"] + 1}), rounds=1)
    see = lambda event: ended.append(event) if isinstance(event, TaskEnded) else None  # noqa: E731
    result = umbel.run(app, on=Stumbling(4, workers=0), folder=None, observers=[see])
    assert result.history[0].clients == 4
    assert sorted(event.task for event in ended) == ["0.0", "0.1", "0.2", "0.3"]
    assert {event.reason for event in ended} == {None}
