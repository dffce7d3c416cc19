"""What a run's bits depend on besides its inputs: versions, instruction set, threads, and how tasks are executed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache

import numpy as np

UNSEEDED = ("cupy", "mindspore", "mlx", "mxnet", "paddle", "tf_keras", "tinygrad")
"""Frameworks with generators of their own that nobody seeds for each task."""

_PACKAGES = ("umbel", "numpy", "torch", "jax", "keras", "tensorflow", "sklearn", "xgboost")


def software(plan: Mapping[str, str]) -> dict[str, str]:
    """Name and version of what computes here, packages where they are loaded; `plan` says how tasks are done."""
    import platform

    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for package in _PACKAGES:
        if package in sys.modules:
            found[package] = _version({"sklearn": "scikit-learn"}.get(package, package))
    simd = np.show_config(mode="dicts") or {}
    found["instructions"] = " ".join(simd.get("SIMD Extensions", {}).get("found", []))
    if names := unseeded():
        found["unseeded"] = " ".join(names)
    return {**found, **plan}


@cache
def _version(distribution: str) -> str:
    """The version of what is loaded, which stays what it is; looking it up reads a file."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"


def unseeded() -> list[str]:
    """The frameworks loaded here whose random numbers no seed of a run decides."""
    return [name for name in UNSEEDED if name in sys.modules]


def changes(before: dict[str, str], now: dict[str, str]) -> dict[str, list[str]]:
    """What differs between two descriptions, as [before, now]."""
    names = sorted({*before, *now})
    return {n: [before.get(n, ""), now.get(n, "")] for n in names if before.get(n, "") != now.get(n, "")}
