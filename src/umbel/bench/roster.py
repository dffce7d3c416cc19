"""Every strategy of the catalogue as it is compared: with what settings, and what is tried for its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import strategies
from ..core.optimizers import sgd
from ..core.strategy import Strategy
from ..core.window import Window
from .algorithm import SERVER_RATES, Algorithm

GRIDS: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "AFL": {"lr": SERVER_RATES},
    "APFL": {"alpha": (0.5,)},
    "Ditto": {"mu": (0.01, 0.1, 1.0)},
    "FedAdagrad": {"lr": SERVER_RATES},
    "FedAdam": {"lr": SERVER_RATES},
    "FedAsync": {"alpha": (0.1, 0.3, 0.6)},
    "FedAvgM": {"lr": SERVER_RATES, "momentum": (0.9,)},
    "FedBuff": {"lr": SERVER_RATES},
    "FedDC": {"alpha": (0.001, 0.01, 0.1)},
    "FedDyn": {"alpha": (0.001, 0.01, 0.1)},
    "FedProto": {"weight": (0.1, 1.0)},
    "FedProx": {"mu": (0.001, 0.01, 0.1)},
    "FedSGD": {"lr": (0.1, 0.3, 1.0)},
    "FedSpeed": {"lamda": (10.0, 100.0, 1000.0)},
    "FedYogi": {"lr": SERVER_RATES},
    "IFCA": {"clusters": (2, 4)},
    "Mime": {"momentum": (0.9,)},
    "MimeLite": {"momentum": (0.9,)},
    "Moon": {"mu": (0.1, 1.0, 5.0)},
    "PFedHN": {"lr": SERVER_RATES},
    "PFedMe": {"lamda": (1.0, 15.0), "lr": (0.005, 0.05)},
    "PerFedAvg": {"alpha": (0.01,)},
    "QFedAvg": {"q": (0.001, 0.1, 1.0)},
    "TERM": {"t": (0.1, 1.0, 5.0)},
}
"""The values that are tried for a strategy's own settings, by the names of its parameters. A strategy that is not here
is compared as it is made without settings.
"""
PERSONAL = (
    "APFL", "Ditto", "FedALA", "FedPer", "FedProto", "FedRep", "IFCA", "LGFedAvg", "PFedHN", "PFedMe", "PerFedAvg",
)  # fmt: skip
"""Those that make a model for each client: tuned, and to be judged, by what clients evaluate."""
LEFT_OUT: Mapping[str, str] = {
    "CatBoostBagging": "grows trees",
    "FedBN": "needs a model with normalisation layers",
    "FedDF": "distils on data of the server's",
    "FedGen": "needs a generator of features that fits the model",
    "FjORD": "needs clients that train a model of another width",
    "HeteroFL": "needs clients that train a model of another width",
    "LightGBMBagging": "grows trees",
    "Matched": "is one round",
    "Newton": "takes sums of gradients and informations",
    "OneShot": "ends with models that vote",
    "XGBoostBagging": "grows trees",
    "XGBoostCyclic": "grows trees",
}
"""Strategies that are in no comparison, and why."""


def catalogue(*, head: Sequence[str] = ("2.*",), base: Sequence[str] = ("0.*",)) -> dict[str, Algorithm]:
    """All strategies that classifiers can be trained by, by name, with what is tuned of each: for `bench.run`.

    `head` and `base` are patterns of the model's arrays, of which personalised strategies leave one part with clients;
    by default those of a perceptron in a `torch.nn.Sequential`.
    """
    makers: dict[str, tuple[Any, dict[str, Any]]] = {
        "FedAsync": (_asynchronous, {"given": ("cohort",)}),
        "FedBuff": (_buffered, {"given": ("cohort",)}),
        "FedPer": (_part("FedPer", personal=head), {}),
        "FedRep": (_part("FedRep", personal=head), {}),
        "FedSGD": (_descending, {"rates": (1.0,)}),
        "IFCA": (_clustered, {}),
        "LGFedAvg": (_part("LGFedAvg", local=base), {}),
        "PerFedAvg": (None, {"config": {"adapt": 0.01}}),
        "QFedAvg": (_fair, {"given": ("rate",)}),
    }
    found = {}
    for name in strategies.__all__:
        if name not in LEFT_OUT:
            made, more = makers.get(name, (None, {}))
            metric = "evaluate.accuracy" if name in PERSONAL else None
            grid = GRIDS.get(name, {})
            found[name] = Algorithm(made or getattr(strategies, name), grid, metric=metric, **more)
    return found


def _made(name: str, **settings: Any) -> Strategy:
    made: Strategy = getattr(strategies, name)(**settings)
    return made


def _part(name: str, **patterns: Sequence[str]) -> Any:
    return lambda **settings: _made(name, **patterns, **settings)


def _asynchronous(alpha: float, cohort: int) -> Strategy:
    return _made("FedAsync", alpha=alpha, cohort=cohort, window=Window(in_flight=cohort, close_after=1, late="keep"))


def _buffered(lr: float, cohort: int) -> Strategy:
    return _made("FedBuff", lr=lr, concurrency=cohort, buffer=max(1, cohort // 2))


def _clustered(clusters: int) -> Strategy:
    return _made("IFCA", clusters=clusters, config={"part": "train"})  # nobody chooses by the items of the test


def _descending(lr: float) -> Strategy:
    return _made("FedSGD", server=sgd(lr))


def _fair(q: float, rate: float) -> Strategy:
    return _made("QFedAvg", q=q, lr=rate)
