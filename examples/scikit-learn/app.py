"""Ten clinics learn from breast cancer's measures: a scaler, a linear model, naive Bayes and a forest.

python examples/scikit-learn/app.py
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split
from sklearn.naive_bayes import GaussianNB
from sklearn.preprocessing import StandardScaler

import umbel
from umbel.data import iid, split
from umbel.strategies import OneShot

X, x_test, Y, y_test = train_test_split(*load_breast_cancer(return_X_y=True), test_size=0.3, random_state=1)
CLINICS = [part.all for part in split((X, Y), iid(), clients=10, seed=1)]
sums = umbel.FedAvg(cohort="all", fold=umbel.total())  # what one round adds up to is exact


def federated(native, strategy, rounds=1, scale=None):
    """A model that ten clinics train, each on its own rows, scaled alike."""
    client = umbel.Client()

    @client.data
    def data(part):
        x, y = part
        return (x if scale is None else scale.transform(x)), y

    @client.train
    def train(model, data, ctx):
        return umbel.sklearn.fit(native.loaded(model), *data, ctx, epochs=2)

    app = umbel.App(client, model=native, strategy=strategy, rounds=rounds, evaluate_every=0)
    result = umbel.run(app, on=umbel.Simulation(clients=CLINICS, workers=0), seed=1, folder=None)
    return native.loaded(result.model)


def main():
    scale = federated(umbel.sklearn.model(StandardScaler, 30), sums)
    kinds = {
        "linear": (lambda: SGDClassifier(loss="log_loss", alpha=0.01, random_state=1), umbel.FedAvg(cohort="all"), 10),
        "naive Bayes": (GaussianNB, sums, 1),
        "forest": (lambda: RandomForestClassifier(20, random_state=1), OneShot(), 1),
    }
    print("accuracy     federated  pooled")
    for name, (make, strategy, rounds) in kinds.items():
        model = federated(umbel.sklearn.model(make, 30, [0, 1]), strategy, rounds, scale)
        pooled = make().fit(scale.transform(X), Y)
        scores = [(each.predict(scale.transform(x_test)) == y_test).mean() for each in (model, pooled)]
        print(f"{name:12} {scores[0]:.3f}      {scores[1]:.3f}")
    own = np.abs(scale.mean_ - X.mean(0)).max()
    print(f"the scaler's means are off by {own:.0e}")


if __name__ == "__main__":
    main()
