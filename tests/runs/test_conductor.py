"""What the conductor, the journal and the executor promise together, where it is easy to break."""

import dataclasses
import os
import pickle
import sys

import numpy as np
import pytest
from tests.conftest import some

import umbel
from umbel import (
    App,
    Arrays,
    Ask,
    Client,
    EarlyStop,
    FedAvg,
    Free,
    Simulation,
    State,
    Strategy,
    Update,
    Window,
    collect,
    mean,
    top_k,
)
from umbel.core import arrays as core_arrays
from umbel.core import encoding
from umbel.core.optimizers import adam
from umbel.core.task import Failed
from umbel.errors import NothingToFold, RunFailed, RunInterrupted, SettingError, StorageError, StrategyError
from umbel.runs.events import (
    AskClosed,
    RoundCommitted,
    RunFinished,
    RunInterruption,
    RunResumed,
    TaskEnded,
    Warned,
)
from umbel.runs.journal import Journal, read_log
from umbel.simulation import Fleet, Kind


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


class Talkative(FedAvg):
    """Its state is longer with each round."""

    words = 2000

    def round(self, state, r):
        after = yield from super().round(state, r)
        return after.replace(notes="x" * (self.words * r))


def test_a_state_that_could_not_be_read_again_is_an_error_before_its_round_is_committed(monkeypatch, tmp_path):
    def app(kind):
        return app_of(lambda model, data, ctx: Update({"w": model["w"] + 1}), strategy=kind(cohort=2), rounds=3)

    monkeypatch.setattr(core_arrays, "_LONGEST_HEADER", 5000)
    with pytest.raises(StrategyError, match=r"header of .* bytes, of at most 5,000") as caught:
        umbel.run(app(Talkative), on=Simulation(2), folder=tmp_path, id="r")
    assert caught.value.round == 3
    assert [event.round for event in read_log(tmp_path / "r").rounds] == [1, 2]
    monkeypatch.setattr(Talkative, "words", 100)
    assert umbel.resume(app(Talkative), tmp_path / "r", on=Simulation(2)).rounds == 3


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
    "its own RunFailed": lambda ctx: (_ for _ in ()).throw(RunFailed("mine")),
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


def failing(*rounds, **settings):
    """An app whose handler raises in these rounds, and counts by one in the others."""

    def train(model, data, ctx):
        if ctx.round in rounds:
            raise OSError("no data")
        return Update({"w": model["w"] + 1})

    return app_of(train, **settings)


def test_a_run_that_learned_nothing_has_failed(tmp_path):
    with pytest.raises(RunFailed, match=r"round 1 brought no update: 0 of 2 .* \(client 0\): .* OSError: no") as caught:
        umbel.run(failing(1, 2), on=Simulation(2), folder=tmp_path)
    error, log = caught.value, read_log(next(tmp_path.iterdir()))
    assert (log.finished.reason, log.finished.error) == ("failed", error.message)
    assert (error.result.failed, error.result.reason, error.result.rounds) == (error.message, "failed", 1)
    assert f"umbel resume {error.run}" in error.hint
    again = pickle.loads(pickle.dumps(error))
    assert (again.result.model, again.message) == (error.result.model, error.message)


def test_a_run_whose_last_round_brought_nothing_has_failed_and_loses_nothing():
    with pytest.raises(RunFailed, match="round 4 brought no update") as caught:
        umbel.run(failing(2, 4, rounds=4), on=Simulation(2), folder=None)
    assert caught.value.result.model["w"].tolist() == [2, 2]
    assert [(r.clients, r.dropped) for r in caught.value.result.history] == [(2, 0), (0, 2), (2, 0), (0, 2)]
    assert umbel.run(failing(2, 3, rounds=4), on=Simulation(2), folder=None).failed is None


@pytest.mark.parametrize(
    ("broken", "rounds"), [((1, 2, 3), [1]), ((3, 4, 5), [1, 2, 3, 4, 5]), ((6,), [1, 2, 3, 4, 5, 6])]
)
def test_a_failed_run_that_is_mended_makes_up_for_its_failed_rounds(broken, rounds, tmp_path):
    on = Simulation(2)
    with pytest.raises(RunFailed) as caught:
        umbel.run(failing(*broken, rounds=6), on=on, folder=tmp_path)
    assert [r.round for r in caught.value.result.history] == rounds
    folder = caught.value.result.folder
    lost = sum(r.failed is not None for r in caught.value.result.history)
    with pytest.raises(RunFailed):  # not mended: it fails again, and at once
        umbel.resume(failing(*range(1, 99), rounds=6), folder, on=on)
    assert len(read_log(folder).rounds) == len(rounds) + 1

    def die(event):
        if isinstance(event, RunResumed):
            raise KeyboardInterrupt

    with pytest.raises(RunInterrupted):
        umbel.resume(failing(rounds=6), folder, on=on, observers=[die])
    result = umbel.resume(failing(rounds=6), folder, on=on)
    assert (result.failed, result.reason) == (None, "rounds")
    assert result.model["w"].tolist() == [6, 6]
    assert result.rounds == 6 + lost + 1
    assert umbel.resume(failing(rounds=6), folder, on=on).rounds == result.rounds


class Cohorts:
    """Draws these cohorts, one after the other, as a sampler may that throws dice."""

    def __init__(self, *cohorts):
        self.left = list(cohorts)

    def draw(self, clients, key):
        return self.left.pop(0)

    def spec(self):
        return {"name": "cohorts"}


@pytest.mark.parametrize("settings", [{}, {"transforms": top_k(0.5)}, {"server": adam()}], ids=str)
@pytest.mark.parametrize("quorum", [0, 1])
def test_a_round_in_which_nobody_is_drawn_is_legal(quorum, settings):
    window = Window(quorum=quorum)
    for drawn in ([(), (0, 1), ()], [(0, 1), (), (), (), ()], [()] * 5):
        strategy = FedAvg(cohort=Cohorts(*drawn), window=window, **settings)
        result = umbel.run(failing(rounds=len(drawn), strategy=strategy), on=Simulation(2), folder=None)
        assert result.failed is None
        assert [(r.clients, r.failed) for r in result.history] == [(len(cohort), None) for cohort in drawn]
        assert bool(result.model["w"].any()) == any(drawn)
    strategy = FedAvg(cohort=Cohorts((), (0, 1), ()), window=window, **settings)
    with pytest.raises(RunFailed, match=r"round 2 brought no update: 0 of 2 .*no data"):
        umbel.run(failing(2, rounds=3, strategy=strategy), on=Simulation(2), folder=None)
    strategy = FedAvg(cohort=Cohorts((0, 1), (0, 1), ()), window=window, **settings)
    with pytest.raises(RunFailed, match=r"round 2 brought no update: 0 of 2 .*no data"):
        umbel.run(failing(2, rounds=3, strategy=strategy), on=Simulation(2), folder=None)


def test_an_empty_cohort_is_legal_after_a_resume_too(tmp_path):
    class Twice(FedAvg):
        def round(self, state, r):
            state = self.apply(state, (yield self.ask(state, r)))
            return self.apply(state, (yield self.ask(state, r)))

    def die(event):
        if isinstance(event, AskClosed) and event.ask == 0:
            raise KeyboardInterrupt

    made = lambda quorum: failing(strategy=Twice(cohort=Cohorts((), (0,), ()), window=Window(quorum=quorum)), rounds=1)  # noqa: E731
    for quorum in (0, 1):
        with pytest.raises(RunInterrupted) as caught:
            umbel.run(made(quorum), on=Simulation(2), folder=tmp_path, observers=[die])
        result = umbel.resume(made(quorum), tmp_path / caught.value.run, on=Simulation(2))
        assert [(r.clients, r.failed) for r in result.history] == [(1 - quorum, None)]


def test_clients_none_of_whom_is_online_are_no_empty_cohort():
    asleep = Simulation(2, devices=Fleet(Kind("pc", opens=3600.0, lasts=60.0), work=1.0))
    with pytest.raises(RunFailed, match="nobody was asked: no client that the sampler drew is online") as caught:
        umbel.run(failing(), on=asleep, folder=None)
    assert [(r.clients, r.dropped) for r in caught.value.result.history] == [(0, 2)]


class Patient(Strategy):
    """Takes it calmly when nobody answers."""

    def round(self, state, r):
        try:
            yield Ask(clients="all", model=state.model)
        except NothingToFold as error:
            return state.replace(told=(error.asked, error.came))
        return state


def test_a_strategy_that_makes_do_with_nothing_does_not_make_it_a_success():
    with pytest.raises(RunFailed, match="round 1 brought no update: 0 of 2 clients"):
        umbel.run(failing(1, 2, strategy=Patient()), on=Simulation(2), folder=None)


def test_a_strategy_may_say_itself_that_there_is_nothing():
    class Choosy(Strategy):
        def round(self, state, r):
            yield Ask(clients="all", model=state.model)
            raise NothingToFold("it is not good enough")

    with pytest.raises(RunFailed, match="2 rounds in a row brought no update; the last: it is not good enough"):
        umbel.run(failing(strategy=Choosy()), on=Simulation(2), folder=None)


def test_a_run_whose_evaluation_fails_has_learned_and_says_so_once(tmp_path):
    app, seen = failing(rounds=5), []

    @app.client.evaluate
    def evaluate(model, data, ctx):
        if ctx.round != 3:
            raise OSError("no table")
        return umbel.Metrics({"accuracy": 1.0})

    result = umbel.run(app, on=Simulation(2), folder=tmp_path, observers=[seen.append])
    warned = [event for event in seen if isinstance(event, Warned)]
    assert [event.round for event in warned] == [1, 4]
    assert "no client could evaluate the model: 0 of 2 clients" in warned[0].text
    assert "no table" in warned[0].text
    assert (result.failed, result.history.series("evaluate.accuracy")) == (None, [(3, 1.0)])
    assert result.model["w"].tolist() == [5, 5]


@pytest.mark.parametrize("watch", [{"keep_best": "train.nope"}, {"early_stop": EarlyStop("train.nope")}], ids=str)
def test_a_metric_that_no_round_has_is_told_early_and_nothing_is_lost(watch, tmp_path):
    app = app_of(lambda m, d, c: Update(m, metrics={"loss": 1.0}), **watch)
    with pytest.raises(SettingError, match=r"(?s)'train.nope'.*train\.loss"):
        umbel.run(app, on=Simulation(2), folder=tmp_path)
    (folder,) = tmp_path.iterdir()
    mended = app_of(lambda m, d, c: Update(m, metrics={"loss": 1.0}))
    assert umbel.resume(mended, folder, on=Simulation(2)).rounds == 2


@pytest.mark.parametrize("watch", [{"keep_best": "evaluate.accuracy"}, {"early_stop": EarlyStop("evaluate.accuracy")}])
@pytest.mark.parametrize("asked", ["everybody", "nobody"])
def test_an_evaluation_that_fails_does_not_make_a_slip_of_the_metric_that_is_watched(watch, asked):
    app, seen = failing(rounds=2, **watch, evaluate_clients=None if asked == "everybody" else Cohorts([], [0, 1])), []
    app.test(lambda model: {"size": 1.0})

    @app.client.evaluate
    def evaluate(model, data, ctx):
        if ctx.round == 1:
            raise OSError("no table")
        return umbel.Metrics({"accuracy": 1.0})

    result = umbel.run(app, on=Simulation(2), folder=None, observers=[seen.append])
    assert (result.failed, result.history.series("evaluate.accuracy")) == (None, [(2, 1.0)])
    assert len([event for event in seen if isinstance(event, Warned)]) == (asked == "everybody")


def test_a_metric_of_clients_who_can_evaluate_nothing_is_a_slip():
    app = app_of(lambda m, d, c: Update(m), keep_best="evaluate.accuracy")
    app.test(lambda model: {"size": 1.0})
    with pytest.raises(SettingError, match=r"no round has a metric 'evaluate.accuracy'"):
        umbel.run(app, on=Simulation(2), folder=None)


def test_metrics_whose_names_differ_by_numbers_are_warned_of_each():
    seen = []

    def train(model, data, ctx):
        return Update(model, metrics={f"acc{r}": float("nan") if ctx.round == r else 1.0 for r in (1, 2)})

    umbel.run(app_of(train), on=Simulation(2), folder=None, observers=[seen.append])
    warned = [(event.round, event.text[:13]) for event in seen if isinstance(event, Warned)]
    assert warned == [(1, "metric 'acc1'"), (2, "metric 'acc2'")]


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_that_is_stopped_while_a_commit_is_told_is_stopped_after_that_round(kept, tmp_path):
    def stop(event):
        if isinstance(event, RoundCommitted):
            raise KeyboardInterrupt

    app = failing(rounds=2)
    with pytest.raises(RunInterrupted, match="stopped after round 1;"):
        umbel.run(app, on=Simulation(2), folder=tmp_path if kept else None, id="run", observers=[stop])
    if kept:
        assert [e.round for e in read_log(tmp_path / "run").events if isinstance(e, RunInterruption)] == [1]
        assert umbel.resume(app, tmp_path / "run", on=Simulation(2)).rounds == 2


def test_a_run_whose_end_is_told_was_not_stopped_before(tmp_path):
    def stop(event):
        if isinstance(event, RunFinished):
            raise KeyboardInterrupt

    with pytest.raises(RunInterrupted, match="stopped after round 2;"):
        umbel.run(failing(), on=Simulation(2), folder=tmp_path, id="run", observers=[stop])
    assert isinstance(read_log(tmp_path / "run").events[-1], RunFinished)
    assert umbel.resume(failing(), tmp_path / "run", on=Simulation(2)).reason == "rounds"


def test_a_run_that_ended_early_is_at_its_end_until_its_app_says_otherwise(tmp_path):
    def made(**settings):
        return app_of(lambda m, d, c: Update(m, metrics={"loss": 1.0}), rounds=6, **settings)

    early = EarlyStop("train.loss", patience=2)
    place = umbel.run(made(early_stop=early), on=Simulation(2), folder=tmp_path).folder
    before = (place / "events.jsonl").read_bytes()
    for rounds in (None, 9):
        again = umbel.resume(made(early_stop=early), place, on=Simulation(2), rounds=rounds)
        assert (again.reason, again.rounds) == ("early stop", 3)
        assert (place / "events.jsonl").read_bytes() == before
    again = umbel.resume(made(), place, on=Simulation(2))
    assert (again.reason, again.rounds) == ("rounds", 6)


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


# What transforms keep


class Script(Strategy):
    """Asks one thing after the other, all in one lane, and keeps what it is told."""

    def __init__(self, *asks):
        self.asks = asks
        self.told = []

    def round(self, state, r):
        answer = yield umbel.Ask(**{"clients": "all", "lane": "one", "fold": mean(), **self.asks[r - 1]})
        self.told.append({n: a.tolist() for n, a in answer.value.items()})
        return state


def steps(model, data, ctx):
    return Update({n: a + np.arange(1, 1 + a.size, dtype=a.dtype).reshape(a.shape) for n, a in model.items()})


W = Arrays({"w": np.zeros(2)})
HALF = umbel.top_k(0.5)


def scripted(*asks, on=None, folder=None, **settings):
    strategy = Script(*asks)
    app = app_of(steps, W, strategy=strategy, rounds=len(asks), evaluate_every=0)
    umbel.run(app, on=on or Simulation(1), folder=folder, **settings)
    return strategy.told


@pytest.mark.parametrize(
    "other",
    [
        {"model": Arrays({"w": np.zeros(3)}), "transforms": HALF},
        {"model": Arrays({"other": np.zeros(2)}), "transforms": HALF},
        {"model": Arrays({"w": np.zeros(2, np.float32)}), "transforms": HALF},
        {"model": W},
        {"model": W, "transforms": (HALF, umbel.clip_by_norm(9.0))},
        {"model": W, "transforms": umbel.clip_by_norm(9.0)},
    ],
    ids=["another shape", "other names", "another dtype", "no transform", "a chain", "another transform"],
)
def test_an_ask_between_that_is_another_question_leaves_what_transforms_keep(other):
    same = {"model": W, "transforms": HALF}
    first, _, third = scripted(same, other, same)
    assert first == {"w": [0.0, 2.0]}
    assert third == {"w": [2.0, 0.0]}  # the 1 of the first and that of this one


def test_nothing_is_kept_of_transforms_that_keep_nothing(tmp_path):
    places = {}
    for name, transforms in (("none", ()), ("plain", HALF), ("counting", (HALF, Count()))):
        asks = [{"model": W, "lane": f"lane {r}", "transforms": transforms} for r in (1, 2, 3)]
        scripted(*asks, folder=tmp_path, id=name)
        (last,) = (tmp_path / name / "checkpoints").glob("round-0003.*")
        places[name] = len(encoding.load_file(last)["transforms"])
    assert places == {"none": 0, "plain": 0, "counting": 3}


def test_what_is_left_out_survives_other_settings_of_the_same_transform():
    assert scripted({"model": W, "transforms": HALF}, {"model": W, "transforms": umbel.top_k(1.0)})[1] == {
        "w": [2.0, 2.0]
    }


def test_an_evaluation_in_the_same_lane_leaves_what_transforms_keep():
    client = umbel.Client()
    client.train(steps)
    client.evaluate(lambda model, data, ctx: {"x": 1.0})
    same = {"model": W, "transforms": HALF}
    strategy = Script(same, {**same, "kind": "evaluate"}, same)
    umbel.run(umbel.App(client, model=W, strategy=strategy, rounds=3, evaluate_every=0), on=Simulation(1), folder=None)
    assert strategy.told == [{"w": [0.0, 2.0]}, {}, {"w": [2.0, 0.0]}]


@dataclasses.dataclass(frozen=True)
class Count(umbel.Transform):
    """Counts its asks in its state and adds that to the answer."""

    name = "test_count"

    def init(self, schema):
        return {"arrays": sorted(schema or ()), "asks": 0}

    def finish(self, answer, state, key, own):
        state = {**state, "asks": state["asks"] + 1}
        return dataclasses.replace(answer, value=answer.value.map(lambda n, a: a + 100 * state["asks"])), state


def test_so_it_is_with_what_the_coordinator_keeps_after_a_restart_too(tmp_path):
    count = {"model": W, "transforms": Count()}
    other = {"model": Arrays({"w": np.zeros(3)}), "transforms": Count()}
    strategy = Script({"model": W}, count, other, {"model": W, "transforms": (Count(), umbel.top_k(1.0))}, count, count)
    app = app_of(steps, W, strategy=strategy, rounds=5, evaluate_every=0)
    folder = umbel.run(app, on=Simulation(1), folder=tmp_path).folder
    umbel.resume(app, folder, on=Simulation(1), rounds=6)
    assert [told["w"] for told in strategy.told] == [
        [1.0, 2.0], [101.0, 102.0], [101.0, 102.0, 103.0], [101.0, 102.0], [201.0, 202.0], [301.0, 302.0],
    ]  # fmt: skip


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


def test_a_framework_whose_generators_nobody_seeds_is_named_once(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cupy", object())
    seen = []
    result = umbel.run(app_of(lambda m, d, c: Update(m)), on=Simulation(2), folder=tmp_path, observers=[seen.append])
    (warned,) = [event for event in seen if isinstance(event, Warned)]
    assert "cupy draws from generators that are not seeded" in warned.text
    assert read_log(result.folder).started.software["unseeded"] == "cupy"


@pytest.mark.slow
@pytest.mark.parametrize("workers", some([0, 1, 2], 1))
def test_which_updates_count_where_arrays_differ_does_not_depend_on_who_did_them(workers):
    def facts(model, data, ctx):
        before = ctx.state.get("n", 0)
        ctx.state["n"] = before + 1
        return Update({"x": np.ones(2 if ctx.client in (0, 3) else 1)}, metrics={"before": before})

    class Facts(Strategy):
        def round(self, state, r):
            answer = yield Ask(clients="all", model=None, kind="query:facts", expects=Free(), fold=mean())
            told.append((answer.clients, sorted(answer.failed), answer.metrics["before"]))
            return state

    told = []
    app = App(Client(), model={"w": np.zeros(1)}, strategy=Facts(), rounds=2, evaluate_every=0)
    app.client.query("facts")(facts)
    umbel.run(app, on=Simulation(5, workers=workers), folder=None)
    assert told == [((1, 2, 4), [0, 3], 0.0), ((1, 2, 4), [0, 3], 1.0)]


def test_a_watched_metric_is_not_missed_in_a_round_that_drew_nobody():
    app = app_of(lambda m, d, c: Update(m, metrics={"l": 1.0}), rounds=3, evaluate_every=0)
    app.strategy = FedAvg(cohort=Cohorts((), (0, 1), (1,)), window=Window(quorum=0))
    app.early_stop = EarlyStop("train.l", patience=9)
    assert umbel.run(app, on=Simulation(2), folder=None).rounds == 3
