"""fastai: four hospitals train a tabular Learner to tell who has heart disease.

HEART=FOLDER umbel run examples/fastai/app.py
"""

from __future__ import annotations

import os
import warnings
from functools import cache

import numpy as np
import pandas as pd
import torch
from fastai.tabular.all import CategoryBlock, TabularDataLoaders, tabular_config, tabular_learner

import umbel
import umbel.fastai
from umbel.data import HEART_COLUMNS, HOSPITALS, heart

MEANS = np.array([54, 0.8, 3.3, 132, 199, 0.2, 0.6, 138, 0.4, 0.9, 1.8, 0.7, 5.1])  # as in textbooks, not of the data
SCALES = np.array([9, 0.4, 0.9, 19, 110, 0.4, 0.8, 26, 0.5, 1.1, 0.6, 0.9, 1.9])
COLUMNS = [*HEART_COLUMNS[:13]]


@cache
def patients(hospital):
    """A table of those to train on and one of every third, held out; what was not measured counts as the mean."""
    x, y = heart(os.environ.get("HEART", "data/heart"))[hospital]
    table = pd.DataFrame(np.nan_to_num((x - MEANS) / SCALES).astype(np.float32), columns=COLUMNS).assign(ill=y)
    held = np.arange(len(table)) % 3 == 0
    return table[~held], table[held]


def learner(table):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas, whose arrays are read-only
        loaders = TabularDataLoaders.from_df(
            table.reset_index(drop=True), cont_names=COLUMNS, y_names="ill", y_block=CategoryBlock([0, 1]),
            bs=16, procs=[], valid_idx=[0],
        )  # fmt: skip
    # What a batch normalisation would learn of one hospital's patients does not fit another's.
    return tabular_learner(loaders, layers=[32], config=tabular_config(use_bn=False, bn_cont=False))


def start():
    torch.manual_seed(0)
    return learner(patients("cleveland")[0][:32])


client = umbel.Client()


@client.data
def data(source):
    return pd.concat([patients(name)[0] for name in source])


@client.train
def train(model, data, ctx):
    return umbel.fastai.fit(umbel.fastai.load_(learner(data), model), ctx)


app = umbel.App(
    client,
    model=umbel.fastai.model(start),
    strategy=umbel.FedAvg(cohort="all"),
    rounds=10,
    config={"lr": 0.003, "epochs": 2},
    federation=umbel.Simulation(clients={name: [name] for name in HOSPITALS}),
)


@app.test
@torch.inference_mode()
def test(model):
    table = pd.concat([patients(name)[1] for name in HOSPITALS])
    net = umbel.fastai.load_(start(), model).model.eval()
    scores = net(torch.zeros(len(table), 0, dtype=torch.long), torch.tensor(table[COLUMNS].to_numpy()))
    return {"accuracy": float((scores.argmax(1).numpy() == table["ill"]).mean())}
