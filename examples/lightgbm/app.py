"""Five clinics boost one ensemble of LightGBM's trees on breast cancer's measures.

python examples/lightgbm/app.py
umbel run examples/lightgbm/app.py; umbel export last trees.txt
"""

from __future__ import annotations

import lightgbm
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

import umbel
from umbel.data import iid, split
from umbel.strategies import LightGBMBagging

X, x_test, Y, y_test = train_test_split(*load_breast_cancer(return_X_y=True), test_size=0.3, random_state=1)
CLINICS = split((X, Y), iid(), clients=5, seed=1)
PARAMS = {"objective": "binary", "num_leaves": 8, "min_data_in_leaf": 4, "learning_rate": 0.3, "verbosity": -1}
client = umbel.Client()


@client.data
def data(source):
    return CLINICS[source["index"]].all


@client.train
def train(model, data, ctx):
    return umbel.lightgbm.fit(model, data, ctx, PARAMS)


def accuracy(booster):
    return ((booster.predict(x_test) > 0.5) == y_test).mean()


app = umbel.App(
    client,
    model=umbel.lightgbm.model(PARAMS, X.shape[1]),
    strategy=LightGBMBagging(),
    rounds=15,
    federation=umbel.Simulation(clients=5),
)


@app.test
def test(model):
    return {"accuracy": accuracy(umbel.lightgbm.booster(model))}


if __name__ == "__main__":
    result = umbel.run(app, seed=1, folder=None)
    pooled = lightgbm.train({**PARAMS, "num_threads": 1}, lightgbm.Dataset(X, Y), app.rounds)
    print("accuracy     federated  pooled")
    print(f"LightGBM     {result.metrics['test.accuracy']:.3f}      {accuracy(pooled):.3f}")
