"""The same bits with any number of workers, in whatever order they finish what they are handed."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.conftest import PATIENCE, some
from tests.test_resume import MAKE, learned

import umbel
from umbel import (
    App,
    Arrays,
    Ask,
    Client,
    FedAvg,
    FedAvgM,
    Free,
    Like,
    Metrics,
    Simulation,
    Strategy,
    Update,
    Window,
    clip_by_norm,
    collect,
    mean,
    top_k,
    total,
)
from umbel.core import encoding
from umbel.errors import AppError, CallerError, RunFailed
from umbel.runs.events import RunFinished, TaskEnded
from umbel.simulation import Fleet, Kind, Spread, crew

SOURCE = Path(__file__).resolve().parents[2] / "src"
ASYNC = Window(in_flight=4, close_after=2, late="keep")
MODULES = crew._modules
WRITTEN_WITH = ["hypothesis", "pytest"]


def burning_client(hook=None) -> Client:
    """Its answers depend on all that it is given and keeps, and take very different times."""
    client = Client()

    def burn(ctx):
        digest = b""
        for _ in range((hash((ctx.client, ctx.round)) * 7919 + os.getpid()) % 5 * 150):
            digest = hashlib.sha256(digest).digest()
        if hook is not None:
            hook(ctx)

    @client.data
    def data(source):
        index = source["index"] if isinstance(source, dict) else int(np.sum(source)) % 97
        return np.random.default_rng(index).normal(loc=index % 7, size=4)

    @client.train
    def train(model, data, ctx):
        burn(ctx)
        seen = ctx.state["seen"] = ctx.state.get("seen", 0) + 1
        mine = sum(map(ord, str(ctx.client)))
        if mine % 10 in ctx.config.get("fail", ()):
            raise OSError("no such table")
        if mine % 10 in ctx.config.get("diverge", ()):
            return Update({"w": model["w"] * np.nan})
        extra = sum(float(np.sum(a, dtype=np.float64)) for a in ctx.inbox.values()) + ctx.config.get("pull", 0.0)
        target = data + 0.1 * ctx.rng.normal(size=4) + ctx.state.get("drift", np.zeros(4)) + extra
        target += np.random.normal(size=4)
        ctx.state["drift"] = 0.1 * target
        new = {n: (a + (target.sum() - a) / (1 + seen)).astype(a.dtype) for n, a in model.items()}
        return Update(new, weight=1 + mine % 5, metrics={"seen": seen, f"of{mine % 2}": extra})

    @client.evaluate
    def evaluate(model, data, ctx):
        burn(ctx)
        times = ctx.state["evaluated"] = ctx.state.get("evaluated", 0) + 1
        return Metrics({"loss": float(np.abs(model["w"].astype(float).sum() - data).mean()), "times": times})

    @client.query("mean")
    def query(model, data, ctx):
        burn(ctx)
        asked = ctx.state["asked"] = ctx.state.get("asked", 0) + ctx.state.get("seen", 0) + 1
        return Update({"sum": data + asked, "n": np.float64(1)}, metrics={"asked": asked})

    return client


class Moving(Strategy):
    """Yields what `asks` says of the model, and moves by all answers."""

    def __init__(self, *asks):
        self.asks = asks

    def round(self, state, r):
        asked = [ask(state.model, r) for ask in self.asks]
        answers = yield asked
        step = sum(self.step(answer) for answer in answers)
        return state.replace(model=state.model.replace({"w": state.model["w"] + step}))

    @staticmethod
    def step(answer):
        values = [u.arrays for u in answer.value.values()] if isinstance(answer.value, dict) else [answer.value]
        # Whatever order a strategy sees is the same as well.
        order = 1e-3 * sum(i * r.weight * len(r.task) for i, r in enumerate(answer.receipts))
        return sum(float(np.sum(a)) * 0.01 for value in values for a in value.values()) + order + len(answer.failed)


def train(**how):
    return lambda model, r: Ask(**{"clients": 4, "model": model, **how})


def routed(model, r):
    return Ask(
        clients=5,
        model=lambda c: model.replace({"w": model["w"] + c}),
        config=lambda c: {"pull": c / 10 + r},
        inbox=lambda c: {"share": np.full(3, float(c))},
        expects=lambda c: Like(model),
        window=Window(quorum=2),
    )


class Rebinding(Strategy):
    """Its functions of the client see what it does later; its late tasks must not."""

    def round(self, state, r):
        model, pull = state.model, {"pull": float(r)}
        answer = yield Ask(
            clients=4,
            model=lambda c: model.replace({"w": model["w"] + c}),
            config=lambda c: pull,
            expects=Like(state.model),
            fold=mean(),
            window=ASYNC,
        )
        pull = {"pull": 1000.0}
        model = state.model.replace({"w": state.model["w"] + answer.value["w"]})
        return state.replace(model=model)


MEAN = lambda model, r: Ask(kind="query:mean", clients=5, expects=Free(), fold=total())  # noqa: E731
LATE = train(clients=4, fold=mean(), window=ASYNC)
STRATEGIES = {
    "a cohort that workers do not divide": lambda: FedAvg(cohort=7),
    "everyone": lambda: FedAvg(cohort="all"),
    "one at a time": lambda: FedAvg(cohort=5, window=Window(in_flight=1)),
    "over-selection": lambda: FedAvg(cohort=7, window=Window(close_after=3)),
    "over-selection, few at once": lambda: FedAvg(cohort=8, window=Window(in_flight=3, close_after=5)),
    "clients that fail": lambda: FedAvg(cohort=8, config={"fail": [0, 3, 8], "diverge": [1, 4]}),
    "all clients fail": lambda: FedAvg(cohort=6, config={"fail": range(10)}),
    "below the quorum": lambda: FedAvg(cohort=8, config={"fail": [0, 3, 8]}, window=Window(quorum=7)),
    "over-selection with failures": lambda: FedAvg(cohort=8, config={"fail": [0, 8]}, window=Window(close_after=4)),
    "transforms with state": lambda: FedAvgM(cohort=5, transforms=(top_k(0.5), clip_by_norm(0.7)), fold=mean()),
    "collected": lambda: Moving(train(fold=collect(), expects=Free(), clients=6)),
    "functions of the client": lambda: Moving(routed),
    "two at once": lambda: Moving(train(clients=6), MEAN),
    "two that train at once": lambda: Moving(train(clients=6, lane="a"), train(clients=6, lane="b")),
    "over-selection beside another": lambda: Moving(train(clients=6, window=Window(close_after=3)), MEAN),
    "asynchronous": lambda: Moving(LATE),
    "asynchronous after another": lambda: Moving(MEAN, LATE),
    "asynchronous before another": lambda: Moving(LATE, MEAN),
    "asynchronous with functions": lambda: Rebinding(),
}


def run(app, workers, clients=10, *, folder=None, observers=(), seed=5, **on):
    """What a run comes to, also where it fails."""
    federation = Simulation(clients, workers=workers, **on)
    try:
        return umbel.run(app, on=federation, seed=seed, folder=folder, observers=observers)
    except RunFailed as error:
        return error.result


def resumed(app, place, clients, **on):
    """What a run comes to that goes on, also where it fails."""
    try:
        return umbel.resume(app, place, on=Simulation(clients, **on))
    except RunFailed as error:
        return error.result


def app_of(strategy, *, hook=None, model=None, **settings) -> App:
    settings = {"rounds": 4, "evaluate_every": 2, "max_failed_rounds": 9, **settings}
    return App(burning_client(hook), model=model or {"w": np.zeros(4)}, strategy=strategy, **settings)


def the_same(made, clients=10, workers=(1, 3), **on):
    """Run what `made` makes with each number of workers and return what it comes to."""
    whole = learned(run(made(), 0, clients, **on))
    for count in workers:
        assert learned(run(made(), count, clients, **on)) == whole, count
    return whole


@pytest.mark.parametrize("name", some(STRATEGIES, 7))
def test_any_number_of_workers_gives_the_same_bits(name):
    _, rounds, _, _ = the_same(lambda: app_of(STRATEGIES[name]()))
    assert len(rounds) == (1 if name == "all clients fail" else 4)


@pytest.mark.parametrize("name", MAKE)
def test_what_is_resumed_too(name):
    the_same(MAKE[name], clients=6)


def test_the_scenarios_hold_what_they_are_for():
    fails = run(app_of(STRATEGIES["all clients fail"]()), 2).history
    assert all(r.failed and "6 failed" in r.failed for r in fails)
    assert any(r.failed for r in run(app_of(STRATEGIES["below the quorum"]()), 2).history)
    late = run(app_of(STRATEGIES["asynchronous before another"](), rounds=6), 2).history
    assert max(r.train["seen"] for r in late) > 1.5


@pytest.mark.parametrize("workers", [2, 3])
def test_tasks_that_finish_in_the_opposite_order(workers, tmp_path):
    """The first client of the cohort waits for the last one: what is told in turn is told in turn all the same."""
    ended = []

    def note(event):
        if isinstance(event, TaskEnded) and event.reason is None:
            ended.append(event.task)

    def hook(ctx):
        if ctx.round == 1 and (tmp_path / "first").exists():
            first, last = ((tmp_path / name).read_text() for name in ("first", "last"))
            if str(ctx.client) == first:
                (tmp_path / "gate").read_bytes()
            elif str(ctx.client) == last:
                (tmp_path / "gate").write_bytes(b"go on")

    for window in (Window(), Window(close_after=6)):
        made = lambda hook=None, window=window: app_of(  # noqa: E731
            FedAvg(cohort=[3, 7, 1, 4, 9, 2], window=window), hook=hook, evaluate_every=0
        )
        (tmp_path / "first").unlink(missing_ok=True)
        whole = learned(run(made(), 0))
        (tmp_path / "gate").unlink(missing_ok=True)
        os.mkfifo(tmp_path / "gate")
        (tmp_path / "first").write_text("3")
        (tmp_path / "last").write_text("9")
        ended.clear()
        assert learned(run(made(hook), workers, observers=[note])) == whole
        if window == Window():
            assert ended[0] != "0.3"
        else:
            assert ended[:6] == ["0.3", "0.7", "0.1", "0.4", "0.9", "0.2"]


def test_clients_with_names():
    names = {f"clinic {i}": {"index": i} for i in range(7)}
    made = lambda: app_of(FedAvg(cohort=5, transforms=top_k(0.5), window=Window(close_after=4)))  # noqa: E731
    the_same(made, clients=names)


def test_large_sources_are_shared_and_models_of_all_sizes_travel():
    sources = [np.full(40_000 + i, i, np.int64) for i in range(7)]
    model = {
        "w": np.zeros(50_001, np.float32),
        "b": np.ones((), np.float64),
        "none": np.zeros((0, 3)),
        "n": np.int64(3),
    }
    the_same(lambda: app_of(FedAvg(cohort=5), model=model, rounds=2), clients=sources)
    the_same(lambda: app_of(FedAvg(cohort=5, window=ASYNC, fold=mean()), model=model, rounds=4), clients=sources)


@pytest.mark.parametrize("size", [5, 40_000])
def test_bfloat16(size):
    import ml_dtypes

    model = {"w": np.linspace(-1, 1, size).astype(ml_dtypes.bfloat16), "f": np.ones(size, np.float16)}
    sha, *_ = the_same(lambda: app_of(FedAvg(cohort=5), model=model, rounds=3))
    assert sha != learned(run(app_of(FedAvg(cohort=5), model=model, rounds=2), 0))[0]


def test_handlers_may_change_nothing_that_is_shared():
    client = Client()

    @client.train
    def train(model, data, ctx):
        data += 1
        return Update({"w": model["w"] + data.sum()})

    app = App(client, model={"w": np.zeros(2)}, strategy=FedAvg(cohort=2), rounds=1, evaluate_every=0)
    result = run(app, 2, [np.zeros(50_000), np.zeros(50_000)])
    assert "read-only" in result.history[0].failed


@pytest.mark.parametrize("workers", [1, 2])
def test_what_handlers_print_is_printed_here(workers, capsys):
    client = Client()

    @client.train
    def train(model, data, ctx):
        print(f"line of {ctx.client}\nanother ", end="")
        print("half", file=sys.stderr, flush=True)
        return Update({"w": model["w"]})

    app = App(client, model={"w": np.zeros(2)}, strategy=FedAvg(cohort=3), rounds=1, evaluate_every=0)
    run(app, workers, 3)
    out, err = capsys.readouterr()
    assert all(f"line of {client}\n" in out for client in range(3))
    assert out.count("another ") == 3
    assert err == "half\n" * 3


def test_errors_of_the_caller_come_out_as_they_would_here():
    client = Client()
    client.train(lambda model, data, ctx: Update({"w": np.zeros(2)}))

    class Other(Strategy):
        def round(self, state, r):
            yield Ask(kind="query:range", clients=2, expects=Free(), fold=total())

    for strategy in (Other(), Moving(lambda model, r: Ask(clients=2, model=None))):
        app = App(client, model={"w": np.zeros(2)}, strategy=strategy, rounds=1, evaluate_every=0)
        errors = []
        for workers in (0, 2):
            with pytest.raises(CallerError) as caught:
                run(app, workers, 2)
            errors.append((type(caught.value), caught.value.message, caught.value.hint, caught.value.round))
        assert errors[0] == errors[1]


def test_a_client_that_cannot_be_sent_is_told_of_at_once():
    client = Client()
    lock = threading.Lock()
    client.train(lambda model, data, ctx: lock.acquire())
    app = App(client, model={"w": np.zeros(2)}, strategy=FedAvg(cohort=1), rounds=1, evaluate_every=0)
    with pytest.raises(AppError, match="the client cannot be sent to worker processes"):
        run(app, 1, 2)


# Virtual time

FLEETS = {
    "spread": lambda: Fleet(Kind("pc", speed=Spread(1.0, 0.9), drop_out=0.1), work=5.0),
    "alike": lambda: Fleet(Kind("pc"), work=5.0),
    "part of the day": lambda: Fleet(Kind("pc", speed=Spread(1.0, 0.5), opens=(0, 86399), lasts=40_000), work=20_000.0),
    "phones": lambda: Fleet.preset("phones", work=300.0),
    "boards": lambda: Fleet.preset("boards", work=3.0),
    "workstations": lambda: Fleet.preset("workstations", work=3.0),
}
WINDOWS = {
    "all": Window(),
    "deadline": Window(deadline=12.0, quorum=2),
    "over-selection": Window(close_after=4),
    "buffered": Window(in_flight=5, close_after=2, late="keep"),
    "buffered until a deadline": Window(in_flight=5, deadline=7.5, quorum=0, late="keep"),
}


@pytest.mark.parametrize(("fleet", "window"), some(itertools.product(FLEETS, WINDOWS), 8))
def test_virtual_time(fleet, window):
    made = lambda: app_of(  # noqa: E731
        FedAvg(cohort=8, window=WINDOWS[window], fold=mean(), transforms=top_k(0.5)), evaluate_every=1
    )
    workers = 1 + len(fleet + window) % 3
    _, rounds, *_ = the_same(made, clients=20, workers=(workers,), devices=FLEETS[fleet]())
    clocks = [r.clock for r in rounds]
    assert clocks == sorted(clocks)
    assert clocks[-1] > 0


@pytest.mark.parametrize("fleet", ["alike", "spread", "part of the day"])
def test_two_asks_at_once_in_virtual_time(fleet):
    for strategy in (lambda: Moving(train(clients=6), MEAN), lambda: Moving(LATE, MEAN), lambda: Moving(routed, LATE)):
        the_same(lambda strategy=strategy: app_of(strategy()), clients=12, workers=(2,), devices=FLEETS[fleet]())


class Died(BaseException):
    """Ends a run as a kill does."""


RESTARTED = {
    **{
        name: lambda window=WINDOWS[name]: FedAvg(cohort=8, window=window, fold=mean())
        for name in ("deadline", "buffered", "buffered until a deadline")
    },
    "two at once": lambda: Moving(train(clients=6, lane="a"), train(clients=7, lane="b"), MEAN),
    "two that are late at once": lambda: Moving(LATE, train(clients=4, fold=mean(), window=ASYNC, lane="b")),
}


@pytest.mark.parametrize(
    ("fleet", "name"), some(itertools.product(["alike", "part of the day", "phones"], RESTARTED), 4)
)
def test_virtual_time_goes_on_after_a_restart(fleet, name, tmp_path):
    """With evaluations between, during which late tasks arrive, and asks that overlap, of which some had closed."""

    def made():
        return app_of(RESTARTED[name](), rounds=3, evaluate_every=1)

    on = {"devices": FLEETS[fleet]()}
    whole = learned(run(made(), 0, 20, **on))
    for moment in (2, 3, 4, 5, 7):
        seen = []

        def die(event, seen=seen, moment=moment):
            seen += [event] if event.logged else []
            if len(seen) == moment and not isinstance(event, RunFinished):
                raise Died

        try:
            assert learned(run(made(), 0, 20, folder=tmp_path / str(moment), observers=[die], **on)) == whole
        except Died:
            pass
        else:  # it had failed by then; to resume it would be to try its failed rounds again
            assert whole[-1] == "failed" or "failed" in str(whole[-2])
            continue
        (place,) = (tmp_path / str(moment)).iterdir()
        assert learned(resumed(made(), place, 20, workers=moment % 3, **on)) == whole, moment


# Any scenario

WHOLE = st.integers
ASKS = st.builds(
    lambda kind, clients, window, shape: (kind, clients, window, shape),
    st.sampled_from(["train", "train", "query:mean"]),
    WHOLE(1, 7),
    st.sampled_from(
        [Window(), Window(quorum=3), Window(in_flight=2), Window(close_after=3), Window(in_flight=4, close_after=1)]
        + [Window(in_flight=n, close_after=m, late="keep") for n, m in ((3, 1), (4, 2), (5, 4), (None, 3))]
    ),
    st.sampled_from(["plain", "plain", "routed", "transformed", "collected"]),
)


def asked(kind, clients, window, shape):
    def make(model, r):
        how = {"clients": clients, "window": window, "kind": kind, "model": model, "config": {"fail": [2]}}
        how["fold"] = collect() if shape == "collected" else total()
        if kind != "train":
            how["expects"] = Free()
        if shape == "routed":
            how["config"] = lambda c: {"pull": c + r}
            how["inbox"] = lambda c: {"x": np.full(2, c + r)}
        if shape == "transformed" and kind == "train":
            how["transforms"] = top_k(0.5)
        return Ask(**how)

    return make


@example([("train", 4, ASYNC, "plain"), ("query:mean", 5, Window(), "plain")], None, 2, 1)
@given(
    asks=st.lists(ASKS, min_size=1, max_size=3),
    fleet=st.sampled_from([None, None, *FLEETS]),
    workers=WHOLE(1, 4),
    every=WHOLE(0, 2),
)
@settings(max_examples=max(12, settings.default.max_examples // 10))
def test_any_scenario(asks, fleet, workers, every):
    made = lambda: app_of(Moving(*(asked(*ask) for ask in asks)), evaluate_every=every)  # noqa: E731
    the_same(made, clients=8, workers=(workers,), devices=FLEETS[fleet]() if fleet else None)


# Where an app may live

APP = """
import os
import numpy as np
import umbel

class Shift:
    def __init__(self, by): self.by = by

def shifted(values, by):
    return values + by.by

client = umbel.Client()

@client.train
def train(model, data, ctx):
    ctx.state["n"] = ctx.state.get("n", 0) + 1
    where = "here" if os.getpid() == MAIN else "there"
    return umbel.Update({"w": shifted(model["w"], Shift(data["index"] + ctx.rng.normal()))}, metrics={where: 1})

app = umbel.App(client, model={"w": np.zeros(3)}, strategy=umbel.FedAvg(cohort=5), rounds=3, evaluate_every=0)
"""
RUN = """
import sys
result = umbel.run(app, on=umbel.Simulation(8, workers=int(sys.argv[1])), seed=3, folder=None)
print(result.model_sha256, *sorted(result.metrics))
"""
MAIN = "MAIN = int(os.environ.setdefault('MAIN_PID', str(os.getpid())))\n"


def python(*arguments, folder, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "error", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(SOURCE), **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" or "umbel.cli" in arguments
    return done.stdout.split()


@pytest.fixture
def scripts(tmp_path):
    whole = APP.replace("client = ", MAIN + "client = ", 1)
    (tmp_path / "script.py").write_text(whole + RUN)
    (tmp_path / "parts.py").write_text(whole)
    (tmp_path / "user.py").write_text("import umbel\nfrom parts import app\n" + RUN)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("from .inner import app\n")
    (tmp_path / "package" / "inner.py").write_text(whole)
    (tmp_path / "deep.py").write_text("import umbel\nfrom package import app\n" + RUN)
    return tmp_path


@pytest.mark.slow
def test_an_app_may_live_in_a_script_in_a_module_or_on_the_command_line(scripts):
    here = python("script.py", 0, folder=scripts)
    assert here[1] == "train.here"
    ways = [("script.py", 2), ("user.py", 2), ("deep.py", 2), ("-c", (scripts / "script.py").read_text(), 2)]
    for way in ways:
        assert python(*way, folder=scripts) == [here[0], "train.there"], way
    assert python("-m", "user", 2, folder=scripts) == [here[0], "train.there"]


@pytest.mark.slow
def test_umbel_run_uses_workers(scripts):
    shas = set()
    for workers in ("0", "2"):
        arguments = ("-m", "umbel.cli", "run", "parts.py", "--clients", 8, "--seed", 3, "--json")
        out = python(*arguments, folder=scripts, UMBEL_WORKERS=workers, NO_COLOR="1", TERM="dumb")
        summary = json.loads(" ".join(out))
        shas.add(summary["model_sha256"])
        assert list(summary["metrics"]) == ["train.there" if workers == "2" else "train.here"]
    assert len(shas) == 1


@pytest.mark.slow
def test_workers_that_are_started_with_an_interpreter_of_their_own():
    for window in (Window(), ASYNC):
        made = lambda window=window: app_of(FedAvg(cohort=5, window=window, fold=mean()), rounds=3)  # noqa: E731
        assert learned(run(made(), 2, start="spawn")) == learned(run(made(), 0))
    large = {"w": np.zeros(50_001, np.float32)}
    made = lambda: app_of(FedAvg(cohort=5), model=large, rounds=2)  # noqa: E731
    assert learned(run(made(), 1, start="spawn")) == learned(run(made(), 0))


@pytest.mark.slow
def test_torch(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(crew, "_modules", MODULES)
    client = Client()

    @client.train
    def train(model, data, ctx):
        net = umbel.torch.load_(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)), model)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            net(torch.randn(8, 3) + data["index"]).square().mean().backward()
            optimizer.step()
        assert torch.get_num_threads() == 1
        return Update(umbel.torch.arrays(net), metrics={"seen": 1.0})

    def made():
        net = lambda: umbel.torch.arrays(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)))  # noqa: E731
        return App(client, model=net, strategy=FedAvg(cohort=5), rounds=2, evaluate_every=0)

    whole = learned(run(made(), 0))
    assert learned(run(made(), 2)) == whole


def test_arrays_come_back_whole():
    """What a fold collects is what clients sent, to the bit, whichever worker it came through."""
    client = Client()
    special = np.array([0.0, -0.0, 5e-324, 1e200, -1.5])
    client.train(lambda model, data, ctx: Update({"x": special * (1 + data["index"]), "big": np.arange(20_000)}))
    kept = {}

    class Keeping(Strategy):
        def round(self, state, r):
            answer = yield Ask(clients="all", model=state.model, expects=Free(), fold=collect())
            kept[r] = {c: (u.arrays["x"].tobytes(), u.arrays["big"].sum()) for c, u in answer.value.items()}
            assert list(answer.value) == list(range(5))
            return state.replace(model=Arrays({"w": np.zeros(1)}))

    for workers in (0, 2):
        app = App(client, model={"w": np.zeros(1)}, strategy=Keeping(), rounds=1, evaluate_every=0)
        run(app, workers, 5)
        assert kept[1] == {i: ((special * (1 + i)).tobytes(), np.arange(20_000).sum()) for i in range(5)}


class Counts(Strategy):
    """Totals what clients count."""

    def round(self, state, r):
        answer = yield Ask(kind="query:count", clients="all", expects=Free(), fold=total())
        return state.replace(total=answer.value["n"], failed=sorted(answer.failed))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_whose_integers_are_too_large_does_not_depend_on_the_workers(workers, tmp_path):
    client = Client()

    @client.query("count")
    def count(model, data, ctx):
        return Update({"n": np.array([2**62 if ctx.client in (0, 3) else ctx.client])})

    app = App(client, model={"w": np.zeros(1)}, strategy=Counts(), rounds=1, evaluate_every=0)
    result = umbel.run(app, on=Simulation(6, workers=workers), folder=tmp_path)
    state = encoding.load_file(result.folder / "checkpoints" / "round-0001.safetensors")["state"]
    assert state.total.tolist() == [1 + 2 + 4 + 5]
    assert state.failed == [0, 3]
