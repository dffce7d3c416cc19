"""One comparison for all algorithms: problems, equal budgets, settings tuned by one rule, seeds, tables and pictures.

Used as ``umbel.bench``::

    table = bench.run(bench.fashion_mnist("dirichlet 0.5"), {"FedAvg": FedAvg(), "mine": Mine()}, seeds=3)
    print(table)
    table.write("comparison.md")

The folder of a comparison keeps what is done: one that was stopped goes on, and one more algorithm costs its own runs.
"""

from __future__ import annotations

from .algorithm import SERVER_RATES, Algorithm
from .comparison import Tuning, run
from .fashion import fashion_mnist
from .hospitals import heart_disease
from .problem import Problem
from .roster import catalogue
from .table import ResultCell, ResultRow, ResultTable
from .trial import Outcome, Trial

__all__ = [
    "SERVER_RATES", "Algorithm", "Outcome", "Problem", "ResultCell", "ResultRow", "ResultTable", "Trial", "Tuning",
    "catalogue", "fashion_mnist", "heart_disease", "run",
]  # fmt: skip
