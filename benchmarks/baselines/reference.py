"""The algorithms of the baselines once more, as plain loops in one process: they use nothing of Umbel.

Partitions, cohorts, batches and initial models are drawn by other generators than Umbel's, so that what agrees does so
as two experiments do, within their spread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

Items = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Setup:
    """An algorithm and its settings. `epochs` is a number, or the least and the most of those that a client draws each
    time; `stragglers` the share of a cohort that comes to a part of its epochs; `mu` also FedDyn's alpha.
    """

    algorithm: str = "fedavg"
    rounds: int = 10
    every: int = 1
    cohort: int = 10
    epochs: int | tuple[int, int] = 1
    batch: int = 0
    lr: float = 0.1
    server_lr: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    mu: float = 0.0
    stragglers: float = 0.0


def train(
    s: Setup,
    net: Callable[[], nn.Module],
    clients: Sequence[Items],
    test: Items,
    seed: int,
    target: float | None = None,
) -> list[list[float]]:
    """How it does on the test items after every so many rounds, as [round, accuracy, loss]; up to the target."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = net()
    w = parameters_to_vector(model.parameters()).detach()
    memory: dict[str, Any] = {"own": {}, "all": torch.zeros_like(w), "first": torch.zeros_like(w)}
    memory["second"] = torch.full_like(w, s.tau**2)
    curve = []
    for r in range(1, s.rounds + 1):
        cohort = rng.choice(len(clients), s.cohort, replace=False)
        late = rng.random(s.cohort) < s.stragglers
        done = [
            local(s, model, w, clients[i], int(i), bool(slow), memory, rng)
            for i, slow in zip(cohort, late, strict=True)
        ]
        w = stepped(s, w, done, len(clients), memory)
        if r % s.every == 0 or r == s.rounds:
            vector_to_parameters(w, model.parameters())
            with torch.inference_mode():
                logits = model(test[0])
                accuracy = (logits.argmax(1) == test[1]).float().mean().item()
                curve.append([r, accuracy, cross_entropy(logits, test[1]).item()])
                if target is not None and accuracy >= target:
                    break
    return curve


def local(
    s: Setup, model: nn.Module, w: Tensor, items: Items, i: int, late: bool, memory: dict[str, Any], rng: Any
) -> tuple[Tensor, int, int, Tensor]:
    """One client: how far it went, its examples, its steps, and what its own memory changed by."""
    x, y = items
    vector_to_parameters(w.clone(), model.parameters())
    weights = list(model.parameters())
    epochs = s.epochs if isinstance(s.epochs, int) else int(rng.integers(s.epochs[0], s.epochs[1] + 1))
    epochs = int(rng.integers(1, epochs + 1)) if late else epochs
    own = memory["own"].get(i, torch.zeros_like(w))
    linear = {"scaffold": memory["all"] - own, "feddyn": -own}.get(s.algorithm)
    sizes = [each.numel() for each in weights]
    starts = [part.view_as(each) for part, each in zip(w.split(sizes), weights, strict=True)]
    terms = [None] * len(sizes) if linear is None else linear.split(sizes)
    steps = 0
    for _ in range(epochs):
        for batch in torch.randperm(len(y)).split(s.batch or len(y)):
            slopes = torch.autograd.grad(cross_entropy(model(x[batch]), y[batch]), weights)
            with torch.no_grad():
                for now, slope, start, term in zip(weights, slopes, starts, terms, strict=True):
                    slope = slope + s.mu * (now - start) if s.mu else slope
                    slope = slope if term is None else slope + term.view_as(slope)
                    now -= s.lr * slope
            steps += 1
    moved = parameters_to_vector(weights).detach() - w
    new = own
    if s.algorithm == "scaffold":  # option II of the paper
        new = own - memory["all"] - moved / (steps * s.lr)
    if s.algorithm == "feddyn":
        new = own - s.mu * moved
    memory["own"][i] = new
    return moved, len(y), steps, new - own


def stepped(
    s: Setup, w: Tensor, done: Sequence[tuple[Tensor, int, int, Tensor]], clients: int, m: dict[str, Any]
) -> Tensor:
    """The server's step."""
    alike = s.algorithm in ("scaffold", "feddyn")
    shares = torch.tensor([1.0 if alike else float(n) for _, n, _, _ in done])
    shares /= shares.sum()
    if s.algorithm == "fednova":
        steps = torch.tensor([float(k) for _, _, k, _ in done])
        return w + (shares * steps).sum() * sum(p * d / k for p, (d, _, k, _) in zip(shares, done, strict=True))
    move = sum(p * d for p, (d, _, _, _) in zip(shares, done, strict=True))
    if s.algorithm == "scaffold":
        m["all"] = m["all"] + sum(c for *_, c in done) / clients
    if s.algorithm == "feddyn":
        m["all"] = m["all"] - s.mu * sum(d for d, *_ in done) / clients
        return w + move - m["all"] / s.mu
    if s.algorithm in ("fedavg", "scaffold"):
        return w + s.server_lr * move
    m["first"] = s.beta1 * m["first"] + (1.0 if s.algorithm == "fedavgm" else 1 - s.beta1) * move
    if s.algorithm == "fedavgm":
        return w + s.server_lr * m["first"]
    square, v = move**2, m["second"]
    m["second"] = {
        "fedadagrad": v + square,
        "fedadam": s.beta2 * v + (1 - s.beta2) * square,
        "fedyogi": v - (1 - s.beta2) * square * torch.sign(v - square),
    }[s.algorithm]
    return w + s.server_lr * m["first"] / (m["second"].sqrt() + s.tau)
