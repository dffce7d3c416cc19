"""Settings that make no sense are refused where a part of a strategy, or a split of data, is made."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest

import umbel
from umbel import folds, samplers, strategies, transforms
from umbel.core import optimizers
from umbel.data import partitioners, views
from umbel.errors import DataError, SettingError, StrategyError

REFUSED = (SettingError, StrategyError, DataError)
COHORT, WIDTHS = {"cohort": 1}, {"levels": {1.0: "all"}, "shapes": max}
GIVEN = {
    "FedPer": {"personal": ["head"]}, "FedRep": {"personal": ["head"]}, "FedBN": {"norms": ["bn"]},
    "LGFedAvg": {"local": ["head"]}, "FedDF": {"distil": max}, "Matched": {"neurons": []},
    "FedGen": {"generator": umbel.Arrays(), "learn": max}, "Poisson": {"rate": 0.5}, "Fraction": {"fraction": 0.5},
    "HeteroFL": WIDTHS, "FjORD": WIDTHS, "fltrust": {"server": max}, "AvailabilityAware": COHORT, "ByNorm": COHORT,
    "Clustered": COHORT, "FairRate": COHORT, "Oort": COHORT, "Uniform": COHORT, "Spaced": {"cohort": 1, "gap": 2},
    "Fixed": {"clients": [0]}, "Weighted": {"cohort": 1, "weights": [1]}, "noise": {"level": 1.0},
    "PowerOfChoice": {"cohort": 1, "candidates": 2}, "dirichlet": {"alpha": 0.3}, "inner_dirichlet": {"alpha": 0.3},
}  # fmt: skip
ROOMS = (strategies, folds, transforms, samplers, partitioners, views)
NO_PARTS = ("fold_from_spec", "as_sampler", "chain_from_spec", "transform_from_spec", "register_transform", "part")
PARTS = {
    name: part
    for room in ROOMS
    for name in room.__all__
    if name not in NO_PARTS and callable(part := getattr(room, name)) and not inspect.isabstract(part)
} | {each.__name__: each for each in (optimizers.sgd, optimizers.adam, optimizers.yogi, optimizers.adagrad)}
NUMBERS = [
    (name, setting)
    for name, part in PARTS.items()
    for setting, asked in inspect.signature(part).parameters.items()
    if type(GIVEN.get(name, {}).get(setting, asked.default)) in (int, float) and setting not in ("cohort", "candidates")
]


@pytest.mark.parametrize(("name", "setting"), NUMBERS)
def test_a_number_is_neither_text_nor_true_nor_nan(name, setting):
    given = GIVEN.get(name, {})
    PARTS[name](**given)
    for wrong in ("1", True, math.nan, [1]):
        if (setting, wrong) != ("staleness_exponent", True):  # of a window, which takes it as 1
            with pytest.raises(REFUSED):
                PARTS[name](**{**given, setting: wrong})


def test_all_catalogues_are_looked_through():
    named = {name for name, _ in NUMBERS}
    assert {"Ditto", "FedProto", "krum", "quantise", "Oort", "shards", "noise", "adam"} <= named
    assert len(NUMBERS) > 100


WHOLE = (0, -1, 1.5, math.inf)
POSITIVE = (0, -0.5, math.inf)
FROM_0 = (-0.5, math.inf)
SHARE = (0, -0.5, 1.1, math.inf)
SEED = (0.5, math.inf)
TABLE = {
    "AFL": {"lr": FROM_0}, "APFL": {"alpha": (-0.1, 1.1)}, "Ditto": {"mu": FROM_0}, "FedProx": {"mu": FROM_0},
    "FedALA": {"layers": WHOLE, "eta": POSITIVE, "share": SHARE}, "FedAsync": {"alpha": SHARE},
    "FedGen": {"weight": FROM_0}, "FedProto": {"weight": FROM_0, "max_bytes": WHOLE}, "FedRep": {"head_epochs": WHOLE},
    "FjORD": {"seed": SEED, "widths": ((), (0.0,), (1.1,), (math.nan,), (True,), ("1",), 0.5, None, "all")},
    "HeteroFL": {"levels": ({}, {0.0: 1}, {1.1: 1}, {math.nan: 1}, {True: 1}, {"1": 1}, [1.0], None, {1.0: "some"})},
    "IFCA": {"clusters": WHOLE, "spread": FROM_0, "seed": SEED}, "Matched": {"sweeps": WHOLE},
    "Mime": {"momentum": (-0.1, 1.0)}, "Moon": {"mu": FROM_0, "temperature": POSITIVE}, "PerFedAvg": {"alpha": FROM_0},
    "PFedHN": {"embedding": WHOLE, "hidden": WHOLE, "lr": POSITIVE, "seed": SEED},
    "PFedMe": {"lamda": POSITIVE, "inner": WHOLE, "lr": POSITIVE, "server": (optimizers.sgd, 1.0)},
    "XGBoostBagging": {"scale": ("max", None)}, "XGBoostCyclic": {"order": ("all", 3, [])},
    "weighted_mean": {"max_weight": (*POSITIVE, True, "1", math.nan)}, "krum": {"f": (-1, 1.5), "keep": (0, True)},
    "divide_and_conquer": {"seed": SEED, "share": POSITIVE}, "clip_by_norm": {"norm": POSITIVE},
    "quantise": {"bits": (8.0, 3), "kind": ("other", None)}, "lloyd_max": {"bits": (4.0, 8, [1])},
    "count_sketch": {"momentum": (1.0, -0.1, None)}, "Oort": {"explore": (-0.1, 1.1), "penalty": FROM_0},
    "ByNorm": {"uniform": (0.0, 1.1)}, "dirichlet": {"alpha": POSITIVE, "minimum": (-1, 1.5)},
    "continuous": {"mixed": (-0.1, 1.1, None), "minimum": (-1, 1.5), "bins": WHOLE, "alpha": POSITIVE},
    "shards": {"each": WHOLE}, "pathological": {"classes": WHOLE}, "noise": {"level": POSITIVE},
    "sizes": {"law": ("cubic", 1.5, None, [1.5, 2], [-1, 2], [True], ["1"]), "spread": POSITIVE},
    "inner_dirichlet": {"sizes": ("linear", partitioners.sizes, None)}, "vertical": {"labelled": (-1, 0.5)},
    "concept_shift": {"groups": WHOLE}, "rotation": {"degrees": ((), 90, [math.nan], ["90"], "90", None)},
}  # fmt: skip


@pytest.mark.parametrize(("name", "setting"), [(name, setting) for name, row in TABLE.items() for setting in row])
def test_what_cannot_work_is_refused(name, setting):
    for wrong in TABLE[name][setting]:
        with pytest.raises(REFUSED):
            PARTS[name](**{**GIVEN.get(name, {}), setting: wrong})


def test_the_error_says_whose_setting_it_is_and_what_it_takes():
    for make, said in (
        (lambda: strategies.Ditto(mu=-1), "Ditto takes a finite mu of at least 0, not -1"),
        (lambda: strategies.APFL(alpha=2), "APFL takes a finite alpha of at least 0 and up to 1, not 2"),
        (lambda: strategies.IFCA(clusters=0), "IFCA takes a whole clusters of at least 1, not 0"),
        (lambda: strategies.IFCA(seed="x"), "IFCA takes a whole seed of any size, not 'x'"),
        (lambda: folds.norm_bounded(norm=0), "norm_bounded takes a finite norm above 0, not 0"),
    ):
        with pytest.raises(SettingError) as caught:
            make()
        assert caught.value.message == said


def test_numbers_at_the_edges_are_taken():
    strategies.APFL(alpha=0), strategies.APFL(alpha=1), strategies.IFCA(clusters=1, spread=0, seed=-(10**400))
    strategies.Ditto(mu=np.float64(0.5)), strategies.FedALA(share=1.0), strategies.FjORD(**GIVEN["FjORD"], widths=[1])
    partitioners.sizes(np.array([1, 2])), partitioners.iid()(10, np.int64(2), np.int64(3))
