"""fastai: a Learner's arrays, training by its loop, and files."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from tests.adapters.cases import context

import umbel
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


def test_training_says_nothing_and_takes_rates_of_groups(capfd):
    update = adapter.fit(make(), context(), lr=slice(0.001, 0.01), epochs=2)
    assert capfd.readouterr().out == ""
    assert (update.weight, update.metrics["steps"], update.metrics["lr"]) == (39, 4, 0.01)


def test_rows_are_shuffled_by_the_task():
    def plain():
        learner = make()
        learner.dls.loaders[0] = tabular.TabDataLoader(learner.dls.train.dataset, bs=16, shuffle=True, drop_last=True)
        return learner

    learner, start = plain(), adapter.arrays(make())
    found = [adapter.fit(adapter.load_(each, start), context(), lr=0.01).arrays for each in (learner, learner, plain())]
    assert umbel.Arrays(found[0]) == umbel.Arrays(found[1]) == umbel.Arrays(found[2])


def test_what_is_wrong_is_said():
    with pytest.raises(AppError, match="fastai leaves out the rest"):
        adapter.fit(make(10, 64), context())
