"""The next character, by role in Shakespeare's plays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial

import numpy as np

import umbel.data
from umbel.data.shakespeare import ALPHABET, windows
from umbel.strategies import FedAvg

from .experiment import Experiment
from .federation import Arrays4, Data
from .nets import Characters
from .papers import Paper
from .reference import Setup

ROLES, LENGTH, STEP = 100, 40, 8
MOST, TESTED = 10_000, 5_000
"""So many characters of a role count at most, and about so many windows of all are for the test."""


@cache
def roles(count: int) -> tuple[Arrays4, list[np.ndarray]]:
    """Windows of what the `count` roles say that say most, and the characters after them; and whose they are.

    Of each role the last fifth is for the test.
    """
    train, test, held = [], [], []
    for text in sorted(umbel.data.shakespeare().values(), key=len, reverse=True)[:count]:
        x, y = (part[::STEP] for part in windows(text[:MOST], LENGTH))
        cut = len(y) - len(y) // 5
        held.append(np.arange(cut) + sum(map(len, held)))
        train.append((x[:cut], y[:cut].astype(np.int64)))
        test.append((x[cut:], y[cut:].astype(np.int64)))
    parts = [np.concatenate(each) for part in (train, test) for each in zip(*part, strict=True)]
    some = slice(None, None, max(1, len(parts[3]) // TESTED))
    return (parts[0], parts[1], parts[2][some], parts[3][some]), held


def _items(count: int) -> Arrays4:
    return roles(count)[0]


def _owners(count: int, labels: np.ndarray, seed: int) -> Sequence[np.ndarray]:
    return roles(count)[1]


def experiments(quick: bool) -> list[Experiment]:
    """FedAvg over the roles that say most."""
    count = 4 if quick else ROLES
    data, over = Data("Shakespeare", partial(_items, count)), partial(_owners, count)
    setup = Setup(rounds=30, every=3, cohort=10, epochs=1, batch=10, lr=1.0)
    setup = replace(setup, rounds=1, every=1, cohort=2, batch=100) if quick else setup
    net = partial(Characters, len(ALPHABET) + 1)
    return [Experiment("FedAvg by role", "accuracy of the next character", FedAvg, data, over, over, net, setup)]


PAPER = Paper(
    "shakespeare",
    "Caldas et al. 2018, LEAF: A Benchmark for Federated Settings (arXiv 1812.01097)",
    "The next character, given those before it, at clients that are roles of Shakespeare's plays: the 100 that "
    "say most, 10 a round, one epoch in batches of 10. LEAF has two LSTM layers of 256 units and windows of 80 "
    "characters; here it is one of 64 units, windows of 40, and every eighth of them. Of each role the last fifth"
    " is for the test.",
    experiments,
    seeds=2,
)
