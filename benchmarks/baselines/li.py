"""FedProx with stragglers, on the paper's synthetic data."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import numpy as np

from umbel.strategies import FedAvg, FedProx

from .experiment import Experiment
from .federation import Arrays4, Data
from .nets import logistic
from .papers import Paper
from .reference import Setup

CLIENTS, MOST = 30, 1000


@cache
def synthetic(clients: int, most: int) -> tuple[Arrays4, list[np.ndarray]]:
    """Synthetic(1, 1) of section 5.1: each device has a softmax model and a distribution of features of its own; and
    who has which item. Of each device a fifth is for the test. Sizes follow the paper's code, lognormal(4, 2) + 50, up
    to `most`.
    """
    rng = np.random.default_rng(0)
    sizes = np.minimum(rng.lognormal(4, 2, clients).astype(int) + 50, most)
    deviations = np.diag(np.arange(1, 61) ** -1.2)
    train, test, held = [], [], []
    for size in sizes:
        u, b = rng.normal(0, 1), rng.normal(0, 1)
        w, c, v = rng.normal(u, 1, (60, 10)), rng.normal(u, 1, 10), rng.normal(b, 1, 60)
        x = rng.multivariate_normal(v, deviations, size)
        y = (x @ w + c).argmax(1)
        cut = size - size // 5
        held.append(np.arange(cut) + sum(map(len, held)))
        train.append((x[:cut], y[:cut]))
        test.append((x[cut:], y[cut:]))
    joined = [np.concatenate(each) for part in (train, test) for each in zip(*part, strict=True)]
    return (joined[0].astype(np.float32), joined[1], joined[2].astype(np.float32), joined[3]), held


def _items(clients: int, most: int) -> Arrays4:
    return synthetic(clients, most)[0]


def _owners(clients: int, most: int, labels: np.ndarray, seed: int) -> list[np.ndarray]:
    return synthetic(clients, most)[1]


def experiments(quick: bool) -> list[Experiment]:
    """No device or nine in ten come to a part of their 20 epochs, with and without the proximal term."""
    size = (4, 60) if quick else (CLIENTS, MOST)
    data, over = Data("Synthetic(1, 1)", partial(_items, *size)), partial(_owners, *size)
    made = []
    for share in (0.0, 0.9):
        for mu in (0.0, 1.0):
            setup = Setup(rounds=60, every=2, cohort=10, epochs=20, batch=10, lr=0.01, mu=mu, stragglers=share)
            setup = replace(setup, rounds=2, every=1, cohort=2, epochs=2) if quick else setup
            strategy = partial(FedProx, mu=mu) if mu else FedAvg
            setting = f"mu = {mu:g}, {share:.0%} stragglers"
            net = partial(logistic, 60)
            made.append(Experiment(setting, "Figure 1, Synthetic(1, 1)", strategy, data, over, over, net, setup))
    return made


PAPER = Paper(
    "li",
    "Li et al. 2020, Federated Optimization in Heterogeneous Networks (arXiv 1812.06127)",
    "Synthetic(1, 1) is made by the paper's rule: 30 devices, logistic regression, 10 devices a round, 20 epochs "
    "in batches of 10 at 0.01, mu = 1; 60 of the paper's 200 rounds. Stragglers come to 1 to 20 epochs, and "
    "what they have counts, in FedAvg (mu = 0) too. The paper shows curves and no figures. Both sides have the "
    "same items at the same devices, of which the largest have 1,000 here.",
    experiments,
)
