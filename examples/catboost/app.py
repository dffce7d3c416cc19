"""Five clinics boost one ensemble of CatBoost's trees on breast cancer's measures.

python examples/catboost/app.py
umbel run examples/catboost/app.py; umbel export last trees.cbm
"""

from __future__ import annotations

import catboost
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

import umbel
from umbel.data import iid, split
from umbel.strategies import CatBoostBagging

X, x_test, Y, y_test = train_test_split(*load_breast_cancer(return_X_y=True), test_size=0.3, random_state=1)
CLINICS = split((X, Y), iid(), clients=5, seed=1)
PARAMS = {"loss_function": "Logloss", "depth": 4, "learning_rate": 0.3}
client = umbel.Client()


@client.data
def data(source):
    return CLINICS[source["index"]].all


@client.train
def train(model, data, ctx):
    return umbel.catboost.fit(model, data, ctx, PARAMS)


def accuracy(booster):
    return ((booster.predict(x_test) > 0) == y_test).mean()


app = umbel.App(
    client,
    model=umbel.catboost.model(PARAMS, X.shape[1]),
    strategy=CatBoostBagging(),
    rounds=15,
    federation=umbel.Simulation(clients=5),
)


@app.test
def test(model):
    return {"accuracy": accuracy(umbel.catboost.booster(model))}


if __name__ == "__main__":
    result = umbel.run(app, seed=1, folder=None)
    plain = {"thread_count": 1, "logging_level": "Silent", "allow_writing_files": False, "iterations": app.rounds}
    pooled = catboost.CatBoost({**PARAMS, **plain}).fit(X, Y)
    print("accuracy     federated  pooled")
    print(f"CatBoost     {result.metrics['test.accuracy']:.3f}      {accuracy(pooled):.3f}")
