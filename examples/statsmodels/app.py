"""Who has heart disease, over four hospitals: a generalized linear model with the standard errors of a pooled fit.

python examples/statsmodels/app.py FOLDER
HEART=FOLDER umbel run examples/statsmodels/app.py; umbel export last glm.joblib
"""

from __future__ import annotations

import os
import sys

import numpy as np
import statsmodels.api as sm

import umbel
from umbel.data import HEART_COLUMNS, HOSPITALS, heart
from umbel.strategies import Newton

COLUMNS = ["age", "sex", "cp", "thalach", "exang", "oldpeak"]
glm = umbel.statsmodels.model(COLUMNS, sm.families.Binomial, target="disease")
client = umbel.Client()


@client.data
def data(source):
    """The hospital's patients of whom all of this is known."""
    x, y = heart(source["folder"])[source["hospital"]]
    x = x[:, [HEART_COLUMNS.index(name) for name in COLUMNS]]
    whole = ~np.isnan(x).any(1)
    return x[whole], y[whole]


@client.train
def train(model, data, ctx):
    return umbel.statsmodels.fit(glm.loaded(model), *data, ctx)


def federation(folder):
    return umbel.Simulation(clients={name: {"folder": folder, "hospital": name} for name in HOSPITALS})


app = umbel.App(
    client,
    model=glm,
    strategy=Newton(),
    rounds=8,
    evaluate_every=0,
    federation=federation(os.environ.get("HEART", "data/heart")),
)


def main(folder):
    found = glm.loaded(umbel.run(app, on=federation(folder), folder=None).model)
    parts = (data({"folder": folder, "hospital": name}) for name in HOSPITALS)
    x, y = map(np.concatenate, zip(*parts, strict=True))
    pooled = sm.GLM(y, sm.add_constant(x), family=sm.families.Binomial()).fit()
    print(found.summary())
    print(
        f"pooled: log-likelihood {pooled.llf:.3f}, coefficients off by {np.abs(found.params - pooled.params).max():.0e}"
    )
    right = [((each.predict(sm.add_constant(x)) > 0.5) == y).mean() for each in (found, pooled)]
    print(f"accuracy     federated {right[0]:.3f}  pooled {right[1]:.3f}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
