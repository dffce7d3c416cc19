"""fastai: a Learner's arrays, training by its loop, and files."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import umbel
import umbel.strategies
from umbel.errors import AppError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
torch = pytest.importorskip("torch", exc_type=ImportError)
tabular = pytest.importorskip("fastai.tabular.all")

import umbel.fastai as adapter  # noqa: E402

RNG = np.random.default_rng(1)
TABLE = pd.DataFrame(RNG.normal(size=(40, 3)).astype(np.float32), columns=list("abc"))
TABLE["y"] = (TABLE.a + TABLE.b > 0).astype(int)


def make(rows=40, size=16):
    loaders = tabular.TabularDataLoaders.from_df(
        TABLE.iloc[:rows], cont_names=list("abc"), y_names="y", y_block=tabular.CategoryBlock([0, 1]),
        bs=size, valid_idx=[0], procs=[],
    )  # fmt: skip
    return tabular.tabular_learner(loaders, layers=[8], metrics=tabular.accuracy)


def federated(train, *, strategy=None, model=None, rounds=2):
    client = umbel.Client()
    client.train(train)
    app = umbel.App(
        client, model=model or adapter.model(make), strategy=strategy or umbel.FedAvg(cohort=1), rounds=rounds,
        federation=umbel.Simulation(clients=1, workers=0),
    )  # fmt: skip
    return umbel.run(app, folder=None, seed=1)


def test_training_keeps_its_optimizer_and_says_nothing(capfd):
    updates, steps = [], []

    def train(model, data, ctx):
        updates.append(adapter.fit(adapter.load_(make(), model), ctx, lr=0.01, epochs=2, keep_optimizer=True))
        steps.append(ctx.state["optimizer"][0]["step"])
        return updates[-1]

    result = federated(train)
    assert capfd.readouterr().out == ""
    assert steps == [4, 8]
    assert (updates[0].weight, updates[0].metrics["steps"], updates[0].metrics["lr"]) == (39, 4, 0.01)
    assert result.model.roles["bn_cont.running_mean"] == "buffer"


def test_corrections_hold_a_client_near():
    def train(model, data, ctx):
        return adapter.fit(adapter.load_(make(), model), ctx, lr=0.01, epochs=8, wd=0.0)

    start = adapter.arrays(make())
    free = federated(train, model=start, rounds=1)
    held = federated(train, model=start, rounds=1, strategy=umbel.FedProx(cohort=1, mu=1000.0))
    moved = [np.abs(result.model["layers.0.0.weight"] - start["layers.0.0.weight"]).sum() for result in (free, held)]
    assert 0 < moved[1] < moved[0]


def test_files_and_what_is_wrong(tmp_path):
    model = adapter.model(make)
    trained = model()
    model.save(trained, tmp_path / "model.pkl")
    assert adapter.arrays(tabular.load_learner(tmp_path / "model.pkl")) == trained
    model.save(trained, tmp_path / "model.pt")
    assert torch.load(tmp_path / "model.pt").keys() == trained.keys()
    with pytest.raises(AppError, match="fastai leaves out the rest"):
        federated(lambda model, data, ctx: adapter.fit(make(10, 64), ctx))
    with pytest.raises(AppError, match="holds 'other'"):
        adapter.load_(make(), trained.replace({"other": np.zeros(1)}))
