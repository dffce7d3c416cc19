"""The field's algorithms, one a file, each with its paper. A name is imported when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .afl import AFL
    from .apfl import APFL
    from .ditto import Ditto
    from .fedadagrad import FedAdagrad
    from .fedadam import FedAdam
    from .fedala import FedALA
    from .fedasync import FedAsync
    from .fedavg import FedAvg
    from .fedavgm import FedAvgM
    from .fedbn import FedBN
    from .fedbuff import FedBuff
    from .feddc import FedDC
    from .feddf import FedDF
    from .feddyn import FedDyn
    from .fedexp import FedExP
    from .fedgen import FedGen
    from .fednova import FedNova
    from .fedper import FedPer
    from .fedproto import FedProto
    from .fedprox import FedProx
    from .fedrep import FedRep
    from .fedsgd import FedSGD
    from .fedspeed import FedSpeed
    from .fedyogi import FedYogi
    from .fjord import FjORD
    from .heterofl import HeteroFL
    from .ifca import IFCA
    from .lgfedavg import LGFedAvg
    from .matched import Matched
    from .mime import Mime, MimeLite
    from .moon import Moon
    from .newton import Newton
    from .one_shot import OneShot
    from .perfedavg import PerFedAvg
    from .pfedhn import PFedHN
    from .pfedme import PFedMe
    from .qfedavg import QFedAvg
    from .scaffold import Scaffold
    from .term import TERM
    from .xgboost_bagging import CatBoostBagging, LightGBMBagging, XGBoostBagging
    from .xgboost_cyclic import XGBoostCyclic

__all__ = [
    "AFL", "APFL", "IFCA", "TERM", "CatBoostBagging", "Ditto", "FedALA", "FedAdagrad", "FedAdam", "FedAsync", "FedAvg",
    "FedAvgM", "FedBN", "FedBuff", "FedDC", "FedDF", "FedDyn", "FedExP", "FedGen", "FedNova", "FedPer", "FedProto",
    "FedProx", "FedRep", "FedSGD", "FedSpeed", "FedYogi", "FjORD", "HeteroFL", "LGFedAvg", "LightGBMBagging",
    "Matched", "Mime", "MimeLite", "Moon", "Newton", "OneShot", "PFedHN", "PFedMe", "PerFedAvg", "QFedAvg", "Scaffold",
    "XGBoostBagging", "XGBoostCyclic",
]  # fmt: skip
_PLACES = {
    "CatBoostBagging": "xgboost_bagging",
    "LightGBMBagging": "xgboost_bagging",
    "MimeLite": "mime",
    "OneShot": "one_shot",
    "XGBoostBagging": "xgboost_bagging",
    "XGBoostCyclic": "xgboost_cyclic",
}
"""The modules of names that are not their names in small letters."""

if not TYPE_CHECKING:  # else every name would be taken to be there

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f".{_PLACES.get(name, name.lower())}", __name__), name)
        return value
