"""What a strategy has a training loop add to its loss."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..core.arrays import Arrays
from ..core.correction import Correction
from ..core.native import listed
from ..errors import AppError
from .modules import check_fit, plain, state_of, tensors_from


class OfferedCorrection(Protocol):
    """What `ctx.correction` holds: `added` and `take` mark it as used, `anchor` is the model that was sent."""

    @property
    def anchor(self) -> Arrays: ...

    def added(self) -> Correction: ...

    def take(self) -> Correction: ...


class Corrected(Protocol):
    """A context that may hold a correction."""

    @property
    def correction(self) -> OfferedCorrection | None: ...


def correction_loss(net: nn.Module, ctx: Corrected) -> Tensor:
    """The strategy's term of the local loss: ``proximal / 2 * |w - model|**2 + <linear, w>`` over trained weights `w`.

    A scalar to add to the loss before ``backward()``; zero where `ctx.correction` is None. Computed in float32 (float64
    if a parameter is float64), on the device of the first trainable parameter. Trainable parameters that were not sent
    with the model are personal and left out; a sent parameter that the module lacks is an `AppError`.
    """
    offered = ctx.correction
    terms = None if offered is None else _terms(net, offered.added(), offered.anchor)
    if terms is None:
        first = next(net.parameters(), None)
        return torch.zeros((), device=None if first is None else first.device)
    flat, loss = terms.flat(), None
    if terms.anchor is not None:
        gap = flat - terms.anchor
        loss = terms.proximal / 2 * gap.dot(gap)
    if terms.linear is not None:
        product = terms.linear.dot(flat)
        loss = product if loss is None else loss + product
    assert loss is not None
    return loss


def correct_gradients_(net: nn.Module, ctx: Corrected) -> None:
    """Add the gradient of `correction_loss` to the trainable parameters' ``grad``, in place; the cheaper of the two.

    Call it once a step: after ``backward()`` (and after unscaling, with a gradient scaler), before clipping and
    ``optimizer.step()``. A ``grad`` that is None is set. Does nothing where `ctx.correction` is None.
    """
    if ctx.correction is not None:
        add_gradients_(net, ctx.correction.added(), ctx.correction.anchor)


def add_gradients_(net: nn.Module, correction: Correction, anchor: Arrays) -> None:
    """Add the gradient of a correction's terms, around the anchor, to that of the trainable parameters."""
    terms = _terms(net, correction, anchor)
    if terms is None:
        return
    with torch.no_grad():
        change = terms.linear
        if terms.anchor is not None:
            change = (terms.flat() - terms.anchor).mul_(terms.proximal)
            if terms.linear is not None:
                change += terms.linear
        assert change is not None
        grads, pieces = [], []
        parts = change.split_with_sizes([weight.numel() for weight in terms.weights])
        for weight, part in zip(terms.weights, parts, strict=True):
            piece = part.view(weight.shape).to(device=weight.device, dtype=weight.dtype)
            if weight.grad is None:
                weight.grad = piece.clone()
            elif weight.grad.is_sparse:
                weight.grad = piece + weight.grad
            else:
                grads.append(weight.grad)
                pieces.append(piece)
        if grads:
            torch._foreach_add_(grads, pieces)


class _Terms(NamedTuple):
    """One step's correction: the parameters it is for; anchor and linear term end to end in their order, if used."""

    weights: list[nn.Parameter]
    proximal: float
    anchor: Tensor | None
    linear: Tensor | None

    def flat(self) -> Tensor:
        """The parameters end to end: one tensor, so that the cost of a step does not grow with their number."""
        like = self.anchor if self.anchor is not None else self.linear
        assert like is not None
        return torch.cat([w.reshape(-1).to(device=like.device, dtype=like.dtype) for w in self.weights])


def _terms(net: nn.Module, correction: Correction, anchor: Arrays) -> _Terms | None:
    if not correction.proximal and correction.linear is None:
        return None
    named = {n: w for n, w in plain(net).named_parameters() if w.requires_grad and n in anchor}
    if not named:
        _check_known(net, anchor)
        return None
    weights = list(named.values())
    return _Terms(
        weights,
        correction.proximal,
        _flat(net, anchor, named) if correction.proximal else None,
        _flat(net, correction.linear, named) if correction.linear is not None else None,
    )


def _flat(net: nn.Module, source: Arrays, named: dict[str, nn.Parameter]) -> Tensor:
    """The arrays of these names end to end, on the first parameter's device; made once for an `Arrays` object."""
    first = next(iter(named.values()))
    precise = any(w.dtype is torch.float64 for w in named.values())
    dtype = torch.float64 if precise else torch.float32
    key = (dtype, first.device, tuple((name, weight.shape) for name, weight in named.items()))
    cached = tensors_from(source)
    if key not in cached.flat:
        _check_known(net, source)
        for name, weight in named.items():
            if name not in cached.tensors:
                raise AppError(f"the strategy's correction lacks the trainable parameter {name!r}")
            if cached.tensors[name].shape != weight.shape:
                check_fit(name, weight, cached.tensors[name])
        # A tensor made in inference mode could not take part in a later backward pass.
        with torch.inference_mode(False), torch.no_grad():
            parts = [cached.tensors[name].reshape(-1).to(dtype) for name in named]
            cached.flat[key] = torch.cat(parts).to(first.device)
    return cached.flat[key]


def _check_known(net: nn.Module, source: Arrays) -> None:
    known, _, _ = state_of(plain(net))
    unknown = [name for name, role in source.roles.items() if role == "parameter" and name not in known]
    if unknown:
        raise AppError(
            f"the strategy corrects {listed(unknown)}, which {type(net).__name__} does not have",
            hint="Pass the module that the model was loaded into, not a part of it and not a wrapper.",
        )
