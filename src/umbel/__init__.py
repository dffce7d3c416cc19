"""Umbel: train, evaluate and query models on data that never leaves its holder."""

from __future__ import annotations

import sys

from .core.answer import Answer
from .core.app import App, EarlyStop, KeepBest
from .core.arrays import Arrays
from .core.ask import Ask, Correction
from .core.client import Client, Context
from .core.elementwise import mean, weighted_mean
from .core.strategy import State, Strategy
from .core.transform import Transform, chain
from .core.update import Free, Like, Metrics, Update
from .core.window import Window
from .errors import UmbelError
from .folds.collect import collect
from .folds.total import total
from .remote.federation import Remote
from .runs import events
from .runs.run import Result, load_model, resume, run
from .samplers.fixed import Everyone, Fixed
from .samplers.poisson import Poisson
from .samplers.uniform import Fraction, Uniform
from .samplers.weighted import Weighted
from .simulation import Simulation
from .strategies import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi
from .transforms.clip_by_norm import clip_by_norm
from .transforms.top_k import top_k

sys.modules[f"{__name__}.events"] = events  # what an observer imports stays where it was

__version__ = "0.1.0.dev0"
__all__ = [
    "Answer",
    "App",
    "Arrays",
    "Ask",
    "Client",
    "Context",
    "Correction",
    "EarlyStop",
    "Everyone",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedProx",
    "FedYogi",
    "Fixed",
    "Fraction",
    "Free",
    "KeepBest",
    "Like",
    "Metrics",
    "Poisson",
    "Remote",
    "Result",
    "Simulation",
    "State",
    "Strategy",
    "Transform",
    "UmbelError",
    "Uniform",
    "Update",
    "Weighted",
    "Window",
    "chain",
    "clip_by_norm",
    "collect",
    "events",
    "load_model",
    "mean",
    "resume",
    "run",
    "top_k",
    "total",
    "weighted_mean",
]
