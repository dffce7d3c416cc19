"""What was spent, and what attacks still find: with noise, and without.

HEART=FOLDER python examples/private-hospitals/attack.py
"""

from __future__ import annotations

import os
import sys

import numpy as np
from app import DELTA, PATIENTS, ROUNDS, app, likelihood, patients, unprotected
from rich.console import Console
from rich.table import Table

import umbel
from umbel.privacy.accounting import spent
from umbel.privacy.membership import infer_membership, likelihood_ratios
from umbel.privacy.release import NoisyRelease
from umbel.testing.leaks import Victims

SHADOWS = 64


def everybody():
    """All patients, those first on whom models are trained."""
    return map(np.concatenate, zip(*patients(os.environ.get("HEART", "data/heart")), strict=True))


def shadow(x, y, rounds=ROUNDS):
    """The attacker's own model, of patients whom it knows to be in it."""
    model = {"weights": np.zeros(13), "bias": np.zeros(1)}
    for _ in range(rounds):
        error = 1 / (1 + np.exp(-x @ model["weights"] - model["bias"])) - y
        model = {"weights": model["weights"] - x.T @ error / len(y), "bias": model["bias"] - error.mean()}
    return model


def by_shadows(model):
    """The likelihood-ratio attack."""
    x, y = everybody()
    taken = np.random.default_rng(1).random((SHADOWS, len(y))) < 0.5
    known = [likelihood(shadow(x[mine], y[mine]), x, y) for mine in taken]
    scores = likelihood_ratios(likelihood(model, x, y), known, taken)
    return infer_membership(scores[:PATIENTS], scores[PATIENTS:])


def said(found):
    low, high = found.auc_interval
    return f"{found.auc:.3f} ({low:.3f} to {high:.3f})"


def attacked(app):
    """A run, what it has spent, and what attacks find: rows of what is said and numbers."""
    releases = []

    def heard(event):
        releases.extend(NoisyRelease.of(each) for each in getattr(event, "releases", ()))

    result = umbel.run(app, on=umbel.Simulation(PATIENTS, workers=0), folder=None, observers=[heard])
    victims = Victims(app, umbel.Simulation(PATIENTS, workers=0), app.config)
    members, ratios = victims.membership(result.model), by_shadows(result.model)
    inputs = {stage: int((found > 0.999).sum()) for stage, found in victims.inversion(app.initial_model()).items()}
    epsilon = spent(releases, DELTA).epsilon if releases else np.inf
    return {
        "accuracy": f"{result.metrics['test.accuracy']:.3f}",
        f"epsilon at delta {DELTA:g}": f"{epsilon:.2f}",
        "AUC, by losses": said(members),
        "AUC, by ratios": said(ratios),
        "TPR at FPR 1 %": f"{ratios.tpr:.1%}",
        "server reads, of 100": f"{inputs['sent']}",
        "others read, of 100": f"{inputs['released']}",
    }


def main():
    without, with_noise = attacked(unprotected), attacked(app)
    table = Table(title="One model of 644 patients of four hospitals")
    for column in ("", "without noise", "with noise"):
        table.add_column(column, justify="left" if not column else "right")
    for name, value in without.items():
        table.add_row(name, value, with_noise[name])
    Console().print(table)
    return without, with_noise


if __name__ == "__main__":
    try:
        main()
    except umbel.UmbelError as error:
        sys.exit(str(error))
