"""All strategies on the same problems: `python -m benchmarks.leaderboard [--quick] [--only NAME ...]`.

Writes docs/leaderboard.md, with its figures as JSON and CSV and a picture for each problem. What is done is kept in a
folder, so that a run that was stopped goes on, and a new strategy costs its own runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import umbel
from umbel import bench
from umbel.bench.fashion import SPLITS

DOCS = Path(__file__).resolve().parent.parent / "docs"
FULL: dict[str, Any] = {
    "fashion": {"rounds": 30, "rates": (0.03, 0.1, 0.3)},
    "heart": {},
    "seeds": 3,
    "tuning": bench.Tuning(rounds=12),
}
QUICK: dict[str, Any] = {
    "fashion": {"rounds": 4, "evaluate_every": 2, "rates": (0.1,)},
    "heart": {"rounds": 4, "rates": (0.03,)},
    "seeds": 2,
    "tuning": bench.Tuning(rounds=2),
}
INTRO = """\
All strategies of Umbel on the same problems, with the same cohorts, local work and rounds, each with the clients'
learning rate and its own settings tuned by the same rule. `{command}` makes this page; `umbel.bench` makes one of your
own algorithms on your own problems: [compare.md](compare.md).

Fashion-MNIST: 55,000 images at 100 clients, a perceptron of 50,890 parameters; `evaluate.accuracy` is that over the
clients' own held-out images. Heart disease: logistic regression at four hospitals, scored by all hospitals' held-out
patients, 91 in all, so that a patient is a point of accuracy. Splits, models and cohorts are drawn anew for each seed.
FedPer, FedRep and LG-FedAvg share a part of the layers, which a logistic regression does not have, and fail there.
"""
OWN = """\
## What clients have of it

The accuracy on clients' own held-out items, for which personalised models (APFL, Ditto, ...) are made and tuned:
"""
ALL = """\
## What the server has of it

The accuracy of the server's model on the test of all, for which all others are made. Personalised strategies keep a
part of the model with clients, or all of it, and come to little here.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is not done, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.leaderboard", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works; the figures are void")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these strategies, and not all")
    parser.add_argument("--folder", default="umbel-bench/leaderboard", help="where what is done is kept")
    parser.add_argument("--out", type=Path, help="the page's folder; by default docs, with --quick none")
    parser.add_argument("--fashion", help="the folder of Fashion-MNIST; by default where `make data` or Debian puts it")
    parser.add_argument("--heart", help="the folder of the heart disease data; by default heart in UMBEL_DATA")
    parser.add_argument("--workers", default="auto", help="worker processes; the figures do not depend on them")
    chosen = parser.parse_args(arguments)
    size = QUICK if chosen.quick else FULL
    algorithms = bench.catalogue()
    if unknown := {*(chosen.only or ())} - algorithms.keys():
        parser.error(f"no such strategy: {', '.join(unknown)}; there are {', '.join(algorithms)}")
    try:
        problems = [bench.fashion_mnist(split, folder=chosen.fashion, **size["fashion"]) for split in SPLITS]
        problems.append(bench.heart_disease(chosen.heart, **size["heart"]))
    except umbel.UmbelError as error:
        raise SystemExit(str(error)) from None
    table = bench.run(
        problems,
        {name: algorithm for name, algorithm in algorithms.items() if not chosen.only or name in chosen.only},
        seeds=size["seeds"],
        tuning=size["tuning"],
        folder=chosen.folder,
        workers=chosen.workers if chosen.workers == "auto" else int(chosen.workers),
    )
    out = chosen.out or (None if chosen.quick else DOCS)
    print(f"{table.overview()}\n{table}")
    if out is not None:
        intro = f"{INTRO.format(command='make leaderboard')}\n{OWN}\n{table.overview('evaluate.accuracy')}\n{ALL}"
        table.write(out / "leaderboard.md", title="Leaderboard", intro=intro, pictures=out / "pictures")


if __name__ == "__main__":
    from benchmarks.leaderboard import main  # by its own name, so that worker processes find its functions

    main()
