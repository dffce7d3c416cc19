"""Training that hides single examples: DP-SGD, with the gradients of single examples by opacus."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core.native import listed, missing_package
from ..entropy import SYSTEM
from ..errors import AppError
from .modules import plain
from .seeds import restore_rng, save_rng, seed
from .training import Loss, Optimizer, Training

if TYPE_CHECKING:
    from ..privacy.example import ExamplePrivacy

WIDE = (torch.float32, torch.float64)
BLOCK = 1024
OFF = 1e-2
"""So much of a mean norm gradients may be off by rounding."""
FEW = 32
"""So many examples, from all over the data, show whether a loss is a mean."""


@dataclass
class PrivateTraining(Training):
    """A training by DP-SGD: see `umbel.privacy.ExamplePrivacy`. `size` is how many a batch has on average.

    Of opacus there are the gradients of single examples. Its optimizer and loaders are not used: their noise is that of
    a generator with 32 bits of seed, and a parameter that a batch does not use, or a gradient that is not finite, would
    show in it.
    """

    privacy: ExamplePrivacy | None = None
    size: int = 1

    def train(self, epochs: int | None = None, loss: Loss | None = None) -> None:
        """Take all steps; random layers draw from a generator that nobody else knows, for what they draw for an example
        depends on which others there are.
        """
        hooks = _hooked(self.net)
        kept, before = save_rng(), {name: buffer.clone() for name, buffer in self.net.named_buffers()}
        seed(int(SYSTEM.words(1)[0]))
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Full backward hook is firing")  # of what has pixels as its input
                loss = _watched(loss or self.loss)
                self._check_loss(loss)
                super().train(epochs, loss)
        finally:
            hooks.to_standard_module()
            restore_rng(kept)
        del self.metrics["loss"]
        after = dict(self.net.named_buffers())
        if moved := [name for name, buffer in before.items() if not torch.equal(buffer, after[name])]:
            raise AppError(
                f"the buffers {listed(moved)} have changed in training, by examples that noise does not hide",
                hint="Take layers that keep no statistics, such as nn.GroupNorm or nn.LayerNorm.",
            )

    def taken(self, epochs: int) -> Iterator[Any]:
        """The examples of each step: their indices, in portions."""
        assert self.privacy is not None
        for _ in range(self.privacy.begin(self.ctx, self.size, epochs)):
            yield self.privacy.drawn(self.batches.examples, self.size)

    def step(self, batch: Any, optimizer: Optimizer, loss: Loss) -> None:
        """One step: clip, add up, add noise, divide; then correct that, by what is known without the data."""
        assert self.privacy is not None
        optimizer.zero_grad()
        weights = [weight for weight in self.net.parameters() if weight.requires_grad]
        sums = [torch.zeros_like(weight) for weight in weights]
        for portion in batch:
            for total, part in zip(sums, self._clipped(weights, portion, loss), strict=True):
                total += part
        for weight, total in zip(weights, sums, strict=True):
            noise = torch.from_numpy(self.privacy.drawn_noise(weight.numel())).view_as(weight)
            weight.grad = (total + noise.to(weight.dtype).to(weight.device)) / self.size
        self._correct(None, loss)
        optimizer.step()
        self.metrics["steps"] += 1
        self.ctx.step()

    def _clipped(self, weights: list[nn.Parameter], portion: Any, loss: Loss) -> list[Tensor]:
        """The sum over some examples of their gradients, each scaled to the bound at most."""
        assert self.privacy is not None
        slots: list[Any] = [*weights]
        for weight in slots:
            weight.grad = weight.grad_sample = None
        torch.autograd.backward(loss(self.net, self.batches.at(portion)))
        rows = [weight.grad_sample for weight in slots]
        with torch.no_grad():
            if not any(row is not None for row in rows):
                raise AppError("the loss goes by none of the module's layers")
            if any(row is not None and (isinstance(row, list) or len(row) != len(portion)) for row in rows):
                raise AppError(
                    "some layer sees another number of rows than there are examples, so that no row is an example",
                    hint="Keep the examples in the first dimension of all that layers are given.",
                )
            flat = [None if row is None else row.flatten(1) for row in rows]
            norms = torch.stack([_squared_norms(row) for row in flat if row is not None]).sum(0).sqrt()
            good = norms.isfinite()
            if not good.all():
                flat = [None if row is None else torch.where(good[:, None].to(row.device), row, 0) for row in flat]
            scales = torch.where(good, (self.privacy.limit / norms).clamp(max=1), 0)
            both = torch.stack([scales, torch.full_like(scales, 1 / len(portion))])
            sums, off = [], 0.0
            for weight, row in zip(weights, flat, strict=True):
                found = weight.new_zeros(2, weight.numel()) if row is None else both.to(row.dtype).to(row.device) @ row
                sums.append(found[0].view_as(weight))
                if weight.grad is not None:
                    off += float((found[1] - weight.grad.flatten()).square().sum())
            if off**0.5 > OFF * float(norms.mean()):
                raise AppError(
                    "the gradients of the examples do not add up to that of their loss: weights are used beside the "
                    "layers that they belong to",
                    hint="Call each layer as a whole in the loss, and have no penalty on weights there.",
                )
        return sums

    @torch.no_grad()
    def _check_loss(self, loss: Loss) -> None:
        """Raise `AppError` for a loss in which examples count by what others there are: no bound would hold."""
        if not self.batches.examples:
            return
        few = np.unique(np.linspace(0, self.batches.examples - 1, FEW).astype(int))
        self.net.eval()
        each = [float(loss(self.net, self.batches.at(few[i : i + 1]))) for i in range(len(few))]
        pairs = [slice(i, i + 2) for i in range(0, len(few), 2)]  # which differ by more than all together
        for some in (slice(None), *pairs):
            alone, whole = float(np.mean(each[some])), float(loss(self.net, self.batches.at(few[some])))
            if not np.isfinite(whole) or abs(whole - alone) <= OFF * (1 + abs(alone)):  # NaN of the ignored alone
                continue
            raise AppError(
                "the loss of a batch is not the mean of its examples' losses, so that one example changes what others "
                "count",
                hint="Give the plain mean: without weights of classes, ignored labels, or pairs of examples.",
            )


def _watched(loss: Loss) -> Loss:
    """The loss. Raises `AppError` where it changes weights itself, by examples that noise does not hide."""

    def watched(net: nn.Module, batch: Any) -> Tensor:
        before = [weight._version for weight in net.parameters()]
        found = loss(net, batch)
        if before != [weight._version for weight in net.parameters()]:
            raise AppError(
                "some layer changes its weights where it is called, by examples that noise does not hide",
                hint="Take layers that change in steps alone, such as nn.Embedding without max_norm.",
            )
        return found

    return watched


def _squared_norms(rows: Tensor) -> Tensor:
    """Those of rows, in float64: float32 adds up so few squares only that it errs by less than `SLACK` at worst."""
    blocks = rows.shape[1] // BLOCK
    parts = torch.linalg.vector_norm(rows[:, : blocks * BLOCK].reshape(len(rows), blocks, BLOCK), dim=2)
    rest = torch.linalg.vector_norm(rows[:, blocks * BLOCK :], dim=1, keepdim=True)
    return torch.cat([parts, rest], 1).cpu().double().square().sum(1)


def _hooked(net: nn.Module) -> Any:
    """Have a module's weights take the gradients of single examples. Raises `AppError` for layers that cannot."""
    try:
        from opacus.grad_sample import GradSampleModule
        from opacus.validators import ModuleValidator
    except ModuleNotFoundError as error:
        raise missing_package(error, "opacus", "opacus") from error
    if plain(net) is not net:
        raise AppError("a compiled module has no gradients of single examples", hint="Do not compile it here.")
    if odd := [n for n, w in net.named_parameters() if w.requires_grad and w.dtype not in WIDE]:
        raise AppError(f"{listed(odd)}: weights of few bits keep no bound", hint="Train in float32.")
    net.train()
    for name, layer in net.named_modules():
        where = f"the layer {name!r} ({type(layer).__name__})"
        if isinstance(layer, _BatchNorm) or getattr(layer, "track_running_stats", False):
            raise AppError(
                f"{where} mixes the examples of a batch or keeps their statistics, which no noise hides",
                hint="Take nn.GroupNorm, nn.LayerNorm or nn.InstanceNorm without statistics.",
            )
        if type(layer) in ModuleValidator.VALIDATORS and ModuleValidator.VALIDATORS[type(layer)](layer):
            raise AppError(
                f"opacus has no gradients of single examples for {where}",
                hint=f"Take opacus.layers.DP{type(layer).__name__}.",
            )
    try:
        return GradSampleModule(net)
    except NotImplementedError as error:
        raise AppError(
            f"opacus has no gradients of single examples: {error}", hint="Have no buffers beside weights."
        ) from error
