"""The same training where each hospital is a node, and each of its patients a client there.

python examples/private-hospitals/nodes.py TABLE > clients.toml   # at a hospital: a client for each row
umbel run examples/private-hospitals/nodes.py --on SERVER         # whoever trains
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from app import CENTRE, ROUNDS, SCALE, private, train

import umbel

PATIENTS = 920  # of all four, about: a figure that anybody may know
table = cache(lambda path: np.genfromtxt(path, delimiter=",", skip_header=1))
client = umbel.Client()
client.train(train)


@client.data
def data(source):
    """One patient; what is missing counts as the centre, as does a pressure or cholesterol of 0."""
    row = table(source["path"])[source["row"]]
    x = np.where((row[:-1] == 0) & np.isin(np.arange(13), (3, 4)), np.nan, row[:-1])
    return (np.nan_to_num((x - CENTRE) / SCALE)[None], (row[-1:] > 0).astype(float)), None


app = umbel.App(
    client,
    model={"weights": np.zeros(13), "bias": np.zeros(1)},
    strategy=umbel.FedAvg(cohort="all", fold=umbel.total(), transforms=replace(private, expected=PATIENTS)),
    rounds=ROUNDS,
    config={"lr": 1.0},
)

if __name__ == "__main__":
    name = Path(sys.argv[1]).resolve()
    for row in range(len(table(name))):
        print(f'[{name.stem}-{row}]\npath = "{name}"\nrow = {row}')
