"""What of a model is a client's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core.arrays import Array
from .modules import Net, load_, plain
from .training import classified

if TYPE_CHECKING:
    from ..core.client import Context


def load_personal_(net: Net, ctx: Context) -> Net:
    """Copy what of the model is this client's own into a module, in place, and return it: personal arrays, or a whole
    personal model (Ditto, APFL, pFedMe). What the client has not trained yet stays as it is in the module.

    Call it after `load_`, to evaluate or to use a personalised model.
    """
    own: Mapping[str, Array] = ctx.state.get("personal", {})
    return load_(net, own, strict=False) if own else net


def norm_layers(net: nn.Module) -> list[str]:
    """The names of all arrays of the module's normalisation layers (batch, layer, group, instance): for `FedBN`."""
    kinds = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    mine = [name for name, module in plain(net).named_modules() if isinstance(module, kinds)]
    return [name for name in plain(net).state_dict() if name.rpartition(".")[0] in mine]


def adapt_(net: Net, batch: Any, alpha: float, loss: Callable[[nn.Module, Any], Tensor] | None = None) -> Net:
    """Take one step of size `alpha` against the gradient of a batch, in place, and return the module: what makes a
    model of `PerFedAvg` personal. `loss` is as for `fit`.
    """
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad((loss or classified())(net, batch), weights, allow_unused=True)
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                weight.sub_(alpha * gradient)
    return net
