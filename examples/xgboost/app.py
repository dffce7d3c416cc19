"""Five clinics boost one ensemble of XGBoost's trees on breast cancer's measures.

python examples/xgboost/app.py
umbel run examples/xgboost/app.py; umbel export last trees.ubj
"""

from __future__ import annotations

import xgboost
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

import umbel
from umbel.data import iid, split
from umbel.strategies import XGBoostBagging

X, x_test, Y, y_test = train_test_split(*load_breast_cancer(return_X_y=True), test_size=0.3, random_state=1)
CLINICS = split((X, Y), iid(), clients=5, seed=1)
PARAMS = {"objective": "binary:logistic", "max_depth": 3, "eta": 0.3, "eval_metric": "logloss"}
client = umbel.Client()


@client.data
def data(source):
    return CLINICS[source["index"]].all


@client.train
def train(model, data, ctx):
    return umbel.xgboost.fit(model, data, ctx, PARAMS)


def accuracy(booster):
    return ((booster.predict(xgboost.DMatrix(x_test)) > 0.5) == y_test).mean()


app = umbel.App(
    client,
    model=umbel.xgboost.model(PARAMS, X.shape[1]),
    strategy=XGBoostBagging(),
    rounds=20,
    federation=umbel.Simulation(clients=5),
)


@app.test
def test(model):
    return {"accuracy": accuracy(umbel.xgboost.booster(model))}


if __name__ == "__main__":
    result = umbel.run(app, seed=1, folder=None)
    pooled = xgboost.train({**PARAMS, "nthread": 1}, xgboost.DMatrix(X, Y), app.rounds)
    print("accuracy     federated  pooled")
    print(f"XGBoost      {result.metrics['test.accuracy']:.3f}      {accuracy(pooled):.3f}")
