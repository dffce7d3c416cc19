"""Who survives lung cancer how long: Cox's regression and Kaplan-Meier curves over 18 hospitals, as lifelines' fitters.

python examples/lifelines/app.py
umbel run examples/lifelines/app.py; umbel export last cox.joblib
"""

from __future__ import annotations

import lifelines
import numpy as np
from lifelines.datasets import load_lung

import umbel
from umbel import analytics

COLUMNS = ["age", "sex", "ph.ecog"]
LUNG = load_lung()[["inst", "time", "status", *COLUMNS]].dropna()
HOSPITALS = {f"hospital {int(name)}": table for name, table in LUNG.groupby("inst")}
client = analytics.client()
cox = umbel.lifelines.model(COLUMNS, "time", "status")
app = analytics.app(
    client, analytics.Cox("time", "status", COLUMNS), model=cox, federation=umbel.Simulation(clients=HOSPITALS)
)


def main():
    fitter = cox.loaded(umbel.run(app, folder=None).model)
    pooled = lifelines.CoxPHFitter().fit(LUNG.drop(columns="inst"), "time", "status")
    print("hazard ratio  federated             pooled")
    for name in COLUMNS:
        shown = (
            f"{row['exp(coef)']:.3f} (p {row['p']:.4f})" for row in (f.summary.loc[name] for f in (fitter, pooled))
        )
        print(f"{name:12}  {'     '.join(shown)}")
    curves = analytics.app(client, analytics.KaplanMeier("time", "status", by={"sex": [1, 2]}))
    found = umbel.run(curves, on=umbel.Simulation(clients=HOSPITALS), folder=None).model
    for group, (sex, name) in enumerate(((1, "men"), (2, "women"))):
        mine, own = umbel.lifelines.kaplan_meier(found, group, name), lifelines.KaplanMeierFitter()
        own.fit(LUNG.time[LUNG.sex == sex], LUNG.status[LUNG.sex == sex])
        off = np.abs(mine.survival_function_at_times(LUNG.time) - own.survival_function_at_times(LUNG.time)).max()
        print(f"half of the {name} live {mine.median_survival_time_:.0f} days; the curves differ by {off:.0e}")


if __name__ == "__main__":
    main()
