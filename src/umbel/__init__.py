"""Umbel: train, evaluate and query models on data that never leaves its holder.

A name is imported when it is first used, so that `import umbel` takes no longer than what is used of it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import errors, events
    from .bench.sweep import sweep
    from .core.answer import Answer
    from .core.app import App, EarlyStop, KeepBest
    from .core.arrays import Arrays
    from .core.ask import Ask
    from .core.client import Client, Context
    from .core.correction import Correction
    from .core.elementwise import mean, weighted_mean
    from .core.schedules import cosine, steps
    from .core.strategy import Question, State, Strategy
    from .core.transform import Transform, chain
    from .core.trees import as_tree
    from .core.update import Free, Like, Metrics, Update
    from .core.window import Window
    from .errors import UmbelError
    from .folds.collect import collect
    from .folds.total import total
    from .remote.federation import Remote
    from .runs.past import open
    from .runs.run import Result, load_model, resume, run
    from .samplers.fixed import Everyone, Fixed
    from .samplers.poisson import Poisson
    from .samplers.uniform import Fraction, Uniform
    from .samplers.weighted import Weighted
    from .simulation.federation import Simulation
    from .strategies import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi
    from .trackers.tracking import track
    from .transforms.clip_by_norm import clip_by_norm
    from .transforms.top_k import top_k

__version__ = "0.1.0.dev0"
__all__ = [
    "Answer", "App", "Arrays", "Ask", "Client", "Context", "Correction", "EarlyStop", "Everyone", "FedAdagrad",
    "FedAdam", "FedAvg", "FedAvgM", "FedProx", "FedYogi", "Fixed", "Fraction", "Free", "KeepBest", "Like", "Metrics",
    "Poisson", "Question", "Remote", "Result", "Simulation", "State", "Strategy", "Transform", "UmbelError", "Uniform",
    "Update", "Weighted", "Window", "as_tree", "chain", "clip_by_norm", "collect", "cosine", "errors", "events",
    "load_model", "mean", "open", "resume", "run", "steps", "sweep", "top_k", "total", "track", "weighted_mean",
]  # fmt: skip
_PLACES = {
    "bench.sweep": "sweep",
    "core.answer": "Answer", "core.app": "App EarlyStop KeepBest", "core.arrays": "Arrays",
    "core.ask": "Ask", "core.client": "Client Context", "core.correction": "Correction",
    "core.elementwise": "mean weighted_mean", "core.strategy": "Question State Strategy",
    "core.transform": "Transform chain", "core.schedules": "cosine steps", "core.trees": "as_tree",
    "core.update": "Free Like Metrics Update", "core.window": "Window", "errors": "UmbelError",
    "folds.collect": "collect", "folds.total": "total",
    "remote.federation": "Remote", "runs.past": "open", "runs.run": "Result load_model resume run",
    "samplers.fixed": "Everyone Fixed", "samplers.poisson": "Poisson",
    "samplers.uniform": "Fraction Uniform", "samplers.weighted": "Weighted",
    "simulation.federation": "Simulation", "strategies": "FedAdagrad FedAdam FedAvg FedAvgM FedProx FedYogi",
    "trackers.tracking": "track", "transforms.clip_by_norm": "clip_by_norm", "transforms.top_k": "top_k",
}  # fmt: skip

if not TYPE_CHECKING:  # else every name would be taken to be there

    def __getattr__(name: str) -> object:
        place = next((place for place, names in _PLACES.items() if name in names.split()), name)
        if find_spec(f".{place}", __name__) is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(f".{place}", __name__)
        value = globals()[name] = module if place == name else getattr(module, name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
