"""A client's training: steps whose gradients are corrected."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..core.correction import Correction
from .batches import Batches, rows_of
from .corrections import add_gradients_
from .generators import FeatureGenerator
from .native import load_optimizer_

if TYPE_CHECKING:
    from ..core.client import Context

Loss = Callable[[nn.Module, Any], Tensor]


class Optimizer(Protocol):
    """What of torch's optimizers a training uses."""

    def zero_grad(self) -> None: ...

    def step(self) -> Any: ...


MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


class Descent:
    """Plain SGD. The first of `torch.optim` of a process loads a compiler, which takes seconds."""

    def __init__(self, weights: Iterable[nn.Parameter], lr: float) -> None:
        self._weights, self._lr = list(weights), lr
        self.param_groups = [{"params": self._weights, "lr": lr}]

    def zero_grad(self) -> None:
        """Forget gradients."""
        for weight in self._weights:
            weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Step against them."""
        moved: list[Tensor] = [weight for weight in self._weights if weight.grad is not None]
        if moved:
            torch._foreach_add_(moved, [weight.grad for weight in moved], alpha=-self._lr)  # type: ignore[misc]


def classified(criterion: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy) -> Loss:
    """The loss of a module on batches ``(x, y)``."""
    return lambda net, batch: criterion(net(batch[0]), batch[1])


PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def in_precision(loss: Loss, precision: str, where: torch.device) -> Loss:
    """The loss computed in mixed precision: weights stay as they are, what is fast and safe is done in fewer bits."""
    if precision == "float32":
        return loss

    def mixed(net: nn.Module, batch: Any) -> Tensor:
        with torch.autocast(where.type, dtype=PRECISIONS[precision]):
            return loss(net, batch)

    return mixed


def plain_steps(steps: int, group: Mapping[str, Any]) -> float:
    """How many steps of plain SGD move as far along one gradient as so many of an optimizer with the settings of this
    group, which may have momentum: what strategies that go by steps need (FedNova's ``|a|_1``).
    """
    momentum, dampening, nesterov = (float(group.get(n, 0)) for n in ("momentum", "dampening", "nesterov"))
    if not momentum:
        return steps
    speed = moved = 0.0
    for step in range(steps):
        speed = momentum * speed + (1 - dampening if step else 1)
        moved += 1 + momentum * speed if nesterov else speed
    return moved


@dataclass
class Training:
    """One client's training: `step` and `train` apply the correction; procedures make other ways to train of them."""

    net: nn.Module
    batches: Batches
    ctx: Context
    correction: Correction
    loss: Loss
    lr: float
    epochs: int
    make: MakeOptimizer | None
    features: Callable[[nn.Module, Any], Tensor] | None
    generator: FeatureGenerator | None
    scaler: torch.amp.GradScaler | None = None
    keep_optimizer: bool = False
    answer: dict[str, Any] | None = None
    aux: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.anchor = None if self.ctx.correction is None else self.ctx.correction.anchor
        self.metrics: dict[str, float] = {"steps": 0, "lr": self.lr, "loss": 0.0}
        self._sent = copy.deepcopy(self.net) if self.correction.control else None

    def train(self, epochs: int | None = None, loss: Loss | None = None) -> None:
        """Train for some epochs."""
        self.net.train()
        optimizer = self.optimizer(self.net)
        if groups := getattr(optimizer, "param_groups", None):
            self.metrics["lr"] = float(groups[0]["lr"])
        keeps: Any = optimizer if self.keep_optimizer and hasattr(optimizer, "load_state_dict") else None
        if keeps is not None:
            load_optimizer_(keeps, self.ctx.state.get("optimizer"))
        for batch in self.taken(self.epochs if epochs is None else epochs):
            self.step(batch, optimizer, loss or self.loss)
        if "steps" in self.correction.reports and groups:
            self.metrics["steps"] = plain_steps(int(self.metrics["steps"]), groups[0])
        if keeps is not None:
            self.ctx.state["optimizer"] = keeps.state_dict()

    def taken(self, epochs: int) -> Iterator[Any]:
        """What the steps of some epochs are taken on."""
        for _ in range(epochs):
            yield from self.batches

    def optimizer(self, net: nn.Module) -> Optimizer:
        """An optimizer of what of a module is trained."""
        weights = (weight for weight in net.parameters() if weight.requires_grad)
        return Descent(weights, self.lr) if self.make is None else self.make(weights)

    def step(self, batch: Any, optimizer: Optimizer, loss: Loss) -> None:
        """One step on a batch, corrected."""
        optimizer.zero_grad()
        found = loss(self.net, batch)
        scaler: Any = self.scaler
        torch.autograd.backward(found if scaler is None else scaler.scale(found))
        if scaler is not None:
            scaler.unscale_(optimizer)
        self._correct(batch, loss)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)  # not at all where a gradient is infinite
            scaler.update()
        self.stepped(found)

    def stepped(self, loss: Tensor) -> None:
        """The common model was stepped by the gradient of this loss."""
        self.metrics["steps"] += 1
        self.metrics["loss"] += (float(loss.detach()) - self.metrics["loss"]) / self.metrics["steps"]
        self.ctx.step()

    def _correct(self, batch: Any, loss: Loss) -> None:
        correction = self.correction
        if correction.perturbation is not None:
            self._perturb(batch, loss, *correction.perturbation)
        pairs = [(n, w.grad) for n, w in self.net.named_parameters() if w.grad is not None]
        with torch.no_grad():
            if self._sent is not None:
                self._sent.zero_grad()
                with torch.enable_grad():
                    torch.autograd.backward(loss(self._sent, batch))
                sent = dict(self._sent.named_parameters())
                for name, slope in pairs:
                    if (other := sent[name].grad) is not None:
                        slope -= other
            if correction.scale != 1.0:
                torch._foreach_mul_([slope for _, slope in pairs], correction.scale)
        if self.anchor is not None:
            add_gradients_(self.net, correction, self.anchor)

    def _perturb(self, batch: Any, loss: Loss, step: float, share: float) -> None:
        """Mix into the gradients, by a share, those at the weights that a step along them leads to."""
        weights: list[Tensor] = [w for w in self.net.parameters() if w.grad is not None]
        here = [w.grad.detach().clone() for w in weights if w.grad is not None]
        with torch.no_grad():
            torch._foreach_add_(weights, here, alpha=step)
        self.net.zero_grad()
        torch.autograd.backward(loss(self.net, batch))
        with torch.no_grad():
            torch._foreach_sub_(weights, here, alpha=step)
            for weight, before in zip(weights, here, strict=True):
                assert weight.grad is not None
                weight.grad.mul_(share).add_(before, alpha=1 - share)

    @torch.no_grad()
    def mean_loss(self) -> float:
        """The mean loss over all data of the model as it is, without dropout and running statistics."""
        self.net.eval()
        losses = [(float(self.loss(self.net, batch)), rows_of(batch)) for batch in self.batches]
        self.net.train()
        return sum(loss * rows for loss, rows in losses) / max(1, sum(rows for _, rows in losses))
