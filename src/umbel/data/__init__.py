"""Data for a federation: splitting it over clients, looking at the split, and real data sets."""

from __future__ import annotations

from .cifar10 import CIFAR10_CLASSES, cifar10
from .datasets import HEART_COLUMNS, HOSPITALS, digits, heart, mnist5k
from .heterogeneity import Heterogeneity, heterogeneity
from .mnist import fashion_mnist, mnist
from .partition import Dealt, Partition, Spans
from .partitioner import Partitioner
from .partitioners import (
    by,
    continuous,
    dirichlet,
    grouped,
    iid,
    inner_dirichlet,
    pathological,
    shards,
    sizes,
    temporal,
    vertical,
)
from .parts import Part, Parts, hold_out, split
from .picture import draw, table
from .queries import query
from .rtables import flights, movielens
from .shakespeare import shakespeare, windows
from .tables import DataTable
from .view import Reading, View
from .views import concept_shift, noise, rotation

__all__ = [
    "CIFAR10_CLASSES", "HEART_COLUMNS", "HOSPITALS", "DataTable", "Dealt", "Heterogeneity", "Part", "Partition",
    "Partitioner", "Parts", "Reading", "Spans", "View", "by", "cifar10", "concept_shift", "continuous", "digits",
    "dirichlet", "draw", "fashion_mnist", "flights", "grouped", "heart", "heterogeneity", "hold_out", "iid",
    "inner_dirichlet", "mnist", "mnist5k", "movielens", "noise", "pathological", "query",
    "rotation", "shakespeare", "shards",
    "sizes", "split", "table", "temporal", "vertical", "windows",
]  # fmt: skip
