"""What a run's bits depend on besides its inputs: versions, instruction set, threads, and how tasks are executed."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np

_PACKAGES = ("umbel", "numpy", "torch", "jax", "tensorflow", "sklearn", "xgboost")


def software(plan: Mapping[str, str]) -> dict[str, str]:
    """Name and version of what computes here, packages where they are loaded; `plan` says how tasks are done."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for package in _PACKAGES:
        if package in sys.modules:
            try:
                found[package] = version({"sklearn": "scikit-learn"}.get(package, package))
            except PackageNotFoundError:
                found[package] = "unknown"
    simd = np.show_config(mode="dicts") or {}
    found["instructions"] = " ".join(simd.get("SIMD Extensions", {}).get("found", []))
    return {**found, **plan}


def changes(before: dict[str, str], now: dict[str, str]) -> dict[str, list[str]]:
    """What differs between two descriptions, as [before, now]."""
    names = sorted({*before, *now})
    return {n: [before.get(n, ""), now.get(n, "")] for n in names if before.get(n, "") != now.get(n, "")}
