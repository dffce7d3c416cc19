"""Who has heart disease, over four hospitals: statistics, quantiles, and a logistic regression with its errors.

python examples/analytics/app.py FOLDER                 # all of them
HEART=FOLDER umbel run examples/analytics/app.py        # the regression, as a run of its own
"""

from __future__ import annotations

import math
import os
import sys

from client import client
from rich.console import Console
from rich.table import Table

import umbel
from umbel import analytics
from umbel.data import HOSPITALS

MEASURES = ["age", "trestbps", "chol", "thalach", "oldpeak"]
BY = {"target": (0, 1)}
RISKS = analytics.LogisticRegression("target", ["age", "sex", "thalach", "exang", "oldpeak"])


def federation(folder):
    """One client a hospital."""
    return umbel.Simulation(clients={name: {"folder": folder, "hospital": name} for name in HOSPITALS})


def ask(question, folder):
    """What the hospitals together say; each tells sums over its own patients."""
    return umbel.run(umbel.App(client, strategy=question), on=federation(folder), folder=None)


def main(folder):
    about = ask(analytics.Statistics(MEASURES, by=BY), folder).answer
    median = ask(analytics.Quantiles(MEASURES, at=[0.5], by=BY, tolerance=0.5), folder).model
    table = Table("", *("healthy", "mean ± sd", "median", "ill", "mean ± sd", "median"))
    for column, name in enumerate(MEASURES):
        cells = []
        for group in BY["target"]:
            row = about[name][group]
            low, high = (median[end][column, group, 0] for end in ("low", "high"))
            cells += [str(row["count"]), f"{row['mean']:.1f} ± {row['sd']:.1f}", f"{low:.1f} to {high:.1f}"]
        table.add_row(name, *cells)
    risks = Table("", "odds ratio", "95 % interval", "p")
    for name, row in ask(RISKS, folder).answer.items():
        odds, low, high = (f"{math.exp(row[k]):.3f}" for k in ("coefficient", "low", "high"))
        risks.add_row(name, odds, f"{low} to {high}", f"{row['p']:.2g}")
    Console().print(table, risks)


app = umbel.App(client, strategy=RISKS, federation=federation(os.environ.get("HEART", "data/heart")))

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        main(sys.argv[1])
    except umbel.UmbelError as error:
        sys.exit(str(error))
