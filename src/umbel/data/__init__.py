"""Data for a federation: splitting it over clients, looking at the split, and small real data sets."""

from __future__ import annotations

from .datasets import HEART_COLUMNS, HOSPITALS, digits, heart, mnist5k
from .partition import Partition, by, dirichlet, iid, shards
from .picture import draw, table

__all__ = [
    "HEART_COLUMNS", "HOSPITALS", "Partition", "by", "digits", "dirichlet", "draw", "heart", "iid", "mnist5k", "shards",
    "table",
]  # fmt: skip
