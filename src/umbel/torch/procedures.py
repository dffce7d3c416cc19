"""Ways to train that are more than a corrected step, by their names: see `umbel.Correction`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.correction import Correction
from ..errors import AppError, UpdateRejected
from .corrections import add_gradients_
from .modules import arrays, load_, plain
from .personal import load_personal_
from .training import Training

Settings = Mapping[str, Any]


def fedrep(training: Training, settings: Settings) -> None:
    """Train what is personal, then all else."""
    mine = frozenset(training.ctx.personal)
    if not mine:
        raise AppError("FedRep trains a personal head first, and the model has none")
    trainable = {n: w for n, w in plain(training.net).named_parameters() if w.requires_grad}
    for epochs, head in ((settings["head_epochs"], True), (None, False)):
        for name, weight in trainable.items():
            weight.requires_grad_((name in mine) == head)
            weight.grad = None
        training.metrics.update(steps=0, loss=0.0)  # what is common takes those of the last phase
        training.train(epochs)
    for weight in trainable.values():
        weight.requires_grad_(True)


def ditto(training: Training, settings: Settings) -> None:
    """Train the common model, and one of the client's own that stays close to what was sent."""
    own = load_personal_(copy.deepcopy(training.net), training.ctx)
    training.train()
    own.train()
    optimizer, near, anchor = training.optimizer(own), Correction(proximal=settings["mu"]), training.anchor
    assert anchor is not None
    for _ in range(training.epochs):
        for batch in training.batches:
            optimizer.zero_grad()
            torch.autograd.backward(training.loss(own, batch))
            add_gradients_(own, near, anchor)
            optimizer.step()
            training.ctx.step()
    training.ctx.state["personal"] = dict(arrays(own))


def pfedme(training: Training, settings: Settings) -> None:
    """For each batch find the personal model close by, and move towards it."""
    net, own, lamda = training.net.train(), copy.deepcopy(training.net).train(), settings["lamda"]
    pairs = [(w, v) for w, v in zip(net.parameters(), own.parameters(), strict=True) if w.requires_grad]
    for _ in range(training.epochs):
        for batch in training.batches:
            for _ in range(settings["inner"]):
                own.zero_grad()
                loss = training.loss(own, batch)
                torch.autograd.backward(loss)
                with torch.no_grad():
                    for w, v in pairs:
                        v.sub_(settings["lr"] * ((0 if v.grad is None else v.grad) + lamda * (v - w)))
            with torch.no_grad():
                for w, v in pairs:
                    w.sub_(training.lr * lamda * (w - v))
            training.stepped(loss)
    for mine, theirs in zip(net.buffers(), own.buffers(), strict=True):
        mine.copy_(theirs)
    training.ctx.state["personal"] = dict(arrays(own))


def apfl(training: Training, settings: Settings) -> None:
    """Train the common model, and one of the client's own by the gradient of their mixture."""
    ctx, net = training.ctx, training.net.train()
    kept = ctx.state.get("apfl", {"alpha": settings["alpha"], "own": {}})
    alpha, own, mixed = kept["alpha"], copy.deepcopy(net).train(), copy.deepcopy(net).train()
    load_(own, kept["own"], strict=False)
    rows = [r for r in zip(*(m.parameters() for m in (net, own, mixed)), strict=True) if r[0].requires_grad]
    optimizer, adapt = training.optimizer(net), settings["adaptive"]
    for _ in range(training.epochs):
        for batch in training.batches:
            _mix(rows, alpha)
            mixed.zero_grad()
            torch.autograd.backward(training.loss(mixed, batch))
            with torch.no_grad():
                slopes = [(w, v, torch.zeros_like(v) if m.grad is None else m.grad) for w, v, m in rows]
                turn = sum(float(((v - w) * slope).sum()) for w, v, slope in slopes)
                for _, v, slope in slopes:
                    v -= training.lr * alpha * slope
            if adapt:  # once a task
                alpha, adapt = min(max(alpha - training.lr * turn, 0.0), 1.0), False
            training.step(batch, optimizer, training.loss)
    _mix(rows, alpha)
    ctx.state |= {"apfl": {"alpha": alpha, "own": dict(arrays(own))}, "personal": dict(arrays(mixed))}


def perfedavg(training: Training, settings: Settings) -> None:
    """Step by the gradient of every second batch at the weights that a step by the one before it leads to."""
    net = training.net.train()
    optimizer = training.optimizer(net)
    for _ in range(training.epochs):
        batches = list(training.batches)
        for first, second in zip(batches[::2], batches[1::2] or batches[::2], strict=False):
            weights: list[Tensor] = [w for w in net.parameters() if w.requires_grad]
            before = [w.detach().clone() for w in weights]
            net.zero_grad()
            torch.autograd.backward(training.loss(net, first))
            with torch.no_grad():
                for w in weights:
                    w.sub_(settings["alpha"] * (0 if w.grad is None else w.grad))
            optimizer.zero_grad()
            loss = training.loss(net, second)
            torch.autograd.backward(loss)
            with torch.no_grad():
                torch._foreach_copy_(weights, before)
            optimizer.step()
            training.stepped(loss)


def moon(training: Training, settings: Settings) -> None:
    """Train with a contrastive term: features like those of the model that was sent, unlike those of the last one."""
    features, ctx = _features(training, "MOON"), training.ctx
    sent = copy.deepcopy(training.net).eval()
    last = load_(copy.deepcopy(sent), ctx.state["moon"]) if "moon" in ctx.state else None

    def loss(net: nn.Module, batch: Any) -> Tensor:
        plain = training.loss(net, batch)
        if last is None:
            return plain
        here = features(net, batch)
        with torch.no_grad():
            others = [features(other, batch) for other in (sent, last)]
        alike = torch.stack([nn.functional.cosine_similarity(here, other) for other in others], dim=1)
        wanted = torch.zeros(len(here), dtype=torch.long, device=here.device)
        apart: Tensor = settings["mu"] * nn.functional.cross_entropy(alike / settings["temperature"], wanted)
        return plain + apart

    training.train(loss=loss)
    ctx.state["moon"] = dict(arrays(training.net))


def fedproto(training: Training, settings: Settings) -> None:
    """Train the client's own model, its features close to their classes' prototypes, and answer with their sums."""
    features, ctx = _features(training, "FedProto"), training.ctx
    net = load_personal_(training.net, ctx)
    where = next(net.parameters()).device
    inbox = {name: torch.as_tensor(np.array(array)).to(where) for name, array in ctx.inbox.items()}

    def loss(net: nn.Module, batch: Any) -> Tensor:
        plain = training.loss(net, batch)
        if not inbox:
            return plain
        known, wanted = inbox["known"][batch[1]], inbox["prototypes"][batch[1]]
        apart = ((features(net, batch) - wanted) ** 2).mean(1)
        pulled: Tensor = settings["weight"] * (apart * known).sum() / known.sum().clamp(min=1)
        return plain + pulled

    training.train(loss=loss)
    net.eval()
    sums = counts = None
    with torch.no_grad():
        for batch in training.batches:
            found = features(net, batch)
            if sums is None or counts is None:
                sums = torch.zeros(net(batch[0]).shape[1], found.shape[1], dtype=torch.float64)
                counts = torch.zeros(len(sums), dtype=torch.float64)
            sums.index_add_(0, batch[1].cpu(), found.double().cpu())
            counts += torch.bincount(batch[1].cpu(), minlength=len(sums))
    if sums is None or counts is None:
        raise UpdateRejected("this client has no data, of which FedProto could take prototypes")
    ctx.state["personal"] = dict(arrays(net))
    training.answer = {"sums": sums.numpy(), "counts": counts.numpy()}


def fedgen(training: Training, settings: Settings) -> None:
    """Train on features that the server's generator makes as well, and say how many examples each label has."""
    generator, inbox = training.generator, training.ctx.inbox
    if generator is None:
        raise AppError(
            "FedGen trains on generated features, and fit does not know by what they are made",
            hint="Pass generator=umbel.torch.FeatureGenerator(...), the same that the strategy has.",
        )
    counts = torch.zeros(generator.classes)
    for batch in training.batches:
        counts += torch.bincount(batch[1].cpu(), minlength=generator.classes)

    def loss(net: nn.Module, batch: Any) -> Tensor:
        plain = training.loss(net, batch)
        if not len(inbox):
            return plain
        labels = torch.randint(generator.classes, (len(batch[1]),), device=batch[1].device)
        said = generator.head(net, generator.drawn(inbox, labels))
        generated: Tensor = settings["weight"] * nn.functional.cross_entropy(said, labels)
        return plain + generated

    training.train(loss=loss)
    training.aux = {"labels": counts.numpy()}


def fedala(training: Training, settings: Settings) -> None:
    """Begin from a learned mixture of the client's last model and the one that was sent."""
    state = training.ctx.state
    shares = _mixed(training, settings, **state["fedala"]) if "fedala" in state else {}
    training.train()
    kept = {n: (s.float() if s.dtype is torch.bfloat16 else s).numpy(force=True) for n, s in shares.items()}
    state["fedala"] = {"model": dict(arrays(training.net)), "shares": kept}


def _mixed(training: Training, settings: Settings, model: Any, shares: Any) -> dict[str, Tensor]:
    """Make the module a mixture with the client's last model, and give the shares, moved by the gradient of it; the
    first time until the loss stands still, or ten times.
    """
    net, ours = training.net, dict(training.net.named_parameters())
    olds = dict(load_(copy.deepcopy(net), model).named_parameters())
    names = [n for n, w in ours.items() if w.requires_grad][-settings["layers"] :]
    sent = {n: ours[n].detach().clone() for n in names}
    ones = {n: torch.ones_like(sent[n]) for n in names}
    moved = {n: torch.as_tensor(np.array(shares[n])).to(one.device) if n in shares else one for n, one in ones.items()}

    @torch.no_grad()
    def mix() -> None:
        for n, share in moved.items():
            ours[n].copy_(olds[n] + share * (sent[n] - olds[n]))

    for _ in range(1 if shares else 10):
        losses = []
        batches = list(training.batches)
        for batch in batches[: max(1, round(settings["share"] * len(batches)))]:
            mix()
            net.zero_grad()
            loss = training.loss(net, batch)
            torch.autograd.backward(loss)
            losses.append(float(loss.detach()))
            with torch.no_grad():
                for n, share in moved.items():
                    slope = ours[n].grad
                    if slope is not None:
                        share.sub_(settings["eta"] * slope * (sent[n] - olds[n])).clamp_(0, 1)
            training.ctx.step()
        if len(losses) > 1 and float(np.std(losses)) < 0.01:
            break
    mix()
    return moved


def _features(training: Training, who: str) -> Callable[[nn.Module, Any], Tensor]:
    """What a module makes of a batch, a row an example."""
    if (features := training.features) is None:
        raise AppError(
            f"{who} compares features, and fit does not know what they are",
            hint="Pass features=lambda net, batch: net.features(batch[0]), say.",
        )
    return lambda net, batch: features(net, batch).flatten(1)


def _mix(rows: Any, alpha: float) -> None:
    with torch.no_grad():
        for w, v, m in rows:
            m.copy_(alpha * v + (1 - alpha) * w)


UNCORRECTED = ("apfl", "perfedavg", "pfedme")
"""Procedures whose steps take no correction."""
WITH_MODELS = ("apfl", "ditto", "fedproto", "pfedme")
"""Procedures that keep a whole model at the client."""
PROCEDURES: dict[str, Callable[[Training, Settings], None]] = {
    each.__name__: each for each in (apfl, ditto, fedala, fedgen, fedproto, fedrep, moon, perfedavg, pfedme)
}
