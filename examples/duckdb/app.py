"""Clients whose data is a query: hospitals keep patients in databases, and say together how long they lived.

python examples/duckdb/app.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import duckdb
import lifelines.datasets

import umbel
from umbel import analytics
from umbel.data import query

HOSPITALS = (1, 11, 12, 22)


def load(source):
    """A hospital's patients: what its own database says of them."""
    return query("select age, sex, time from patients where status = $died", source, died=1)


client = analytics.client(load, minimum=3)


def main():
    lung = lifelines.datasets.load_lung()
    question = analytics.Statistics(["age", "time"], by={"sex": (1, 2)})
    with tempfile.TemporaryDirectory() as folder:
        files = {f"hospital {number}": str(Path(folder, f"{number}.duckdb")) for number in HOSPITALS}
        for number, file in zip(HOSPITALS, files.values(), strict=True):
            mine = lung[lung.inst == number]  # noqa: F841  (the statement names it)
            with duckdb.connect(file) as opened:
                opened.execute("create table patients as select * from mine")
        result = umbel.run(analytics.app(client, question), on=umbel.Simulation(clients=files), folder=None)
    pooled = lung[lung.inst.isin(HOSPITALS) & (lung.status == 1)].groupby("sex").time.mean()
    print("days until death   federated  pooled")
    for sex, name in ((1, "men"), (2, "women")):
        print(f"{name:18} {question.read(result.model)['time'][sex]['mean']:.2f}     {pooled[sex]:.2f}")


if __name__ == "__main__":
    main()
