"""Umbel: train, evaluate and query models on data that never leaves its holder."""

from __future__ import annotations

from .app import App, EarlyStop, KeepBest
from .arrays import Arrays
from .ask import Ask, Correction
from .client import Client, Context
from .errors import UmbelError
from .folds import Answer, collect, mean, total, weighted_mean
from .remote.federation import Remote
from .run import Result, load_model, resume, run
from .sampling import Everyone, Fixed, Fraction, Poisson, Uniform, Weighted
from .simulation import Simulation
from .strategies import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi
from .strategy import State, Strategy
from .transforms import Transform, chain, clip_by_norm, top_k
from .update import Free, Like, Metrics, Update
from .window import Window

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
    "load_model",
    "mean",
    "resume",
    "run",
    "top_k",
    "total",
    "weighted_mean",
]
