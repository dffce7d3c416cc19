"""Federated analytics: questions to tables that stay with their holders, of which sums alone come back.

A holder runs `client(load)`. An analysis is a strategy: ``umbel.run(umbel.App(client, strategy=Statistics(["age"])),
on=...)``, of whose result `answer` has the answer by name. All fold by `total`, so that whoever adds up need not see
single answers.
"""

from __future__ import annotations

from .analysis import Analysis, app
from .client import QUERIES, client, handler
from .covariance import Covariance
from .cox import Cox
from .heavy_hitters import HeavyHitters
from .histogram import Histogram
from .kaplan_meier import KaplanMeier
from .kmeans import KMeans
from .linear_regression import LinearRegression
from .logistic_regression import LogisticRegression
from .pca import PCA
from .quantiles import Quantiles
from .statistics import Statistics

__all__ = [
    "PCA", "QUERIES", "Analysis", "Covariance", "Cox", "HeavyHitters", "Histogram", "KMeans", "KaplanMeier",
    "LinearRegression", "LogisticRegression", "Quantiles", "Statistics", "app", "client", "handler",
]  # fmt: skip
