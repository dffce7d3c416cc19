"""A client that trains and evaluates a PyTorch classifier, for the problems that come with the bench."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..core.client import Client
from ..core.update import Metrics, Update

if TYPE_CHECKING:
    from torch import Tensor, nn

Items = tuple[npt.NDArray[Any], npt.NDArray[np.int64]]
"""Features, float32 [n, ...], and classes [n]."""


def classifier(load: Callable[[Any], Mapping[str, Items]], net: Callable[[], nn.Module]) -> Client:
    """A client that loads its ``train``, ``validation`` and ``test`` items from a source, and trains `net` by SGD:
    ``config`` has ``epochs``, ``batch`` (0 for all items) and ``lr``.

    It evaluates on the part that the config names. Corrections of the loss are applied to each gradient.
    """
    adapter()  # so that PyTorch is loaded before a run, and workers are made with it
    client = Client()

    @client.data
    def data(source: Any) -> dict[str, tuple[Tensor, Tensor]]:
        import torch

        loaded = load(source)
        return {part: (torch.from_numpy(x), torch.from_numpy(y)) for part, (x, y) in loaded.items()}

    @client.train
    def train(model: Any, data: Any, ctx: Any) -> Update:
        return fit(adapter().load_(net(), model, strict=False), data["train"], ctx)

    @client.query("gradient")
    def gradient(model: Any, data: Any, ctx: Any) -> Update:
        answer: Update = adapter().gradient(adapter().load_(net(), model), data["train"], ctx)
        return answer

    @client.evaluate
    def evaluate(model: Any, data: Any, ctx: Any) -> Metrics:
        x, y = data[ctx.config["part"]]
        if not len(y):
            return Metrics({}, weight=0)
        module = adapter().load_(net(), model, strict=False)
        module = adapter().load_personal_(module, ctx)
        if "adapt" in ctx.config:
            module = adapter().adapt_(module, data["train"], ctx.config["adapt"])
        return Metrics(scores(module, x, y), weight=len(y))

    return client


def adapter() -> Any:
    """`umbel.torch`, which loads PyTorch."""
    from .. import torch

    return torch


def fit(net: nn.Module, data: tuple[Tensor, Tensor], ctx: Any, epochs: int | None = None) -> Update:
    """Train a module as the strategy wants it done."""
    epochs = ctx.config["epochs"] if epochs is None else epochs
    update: Update = adapter().fit(net, data, ctx, epochs=epochs, features=_features)
    return update


def _features(net: Any, batch: Any) -> Tensor:
    """What MOON compares: what goes into the last layer."""
    features: Tensor = net[:-1](batch[0]) if hasattr(net, "__getitem__") else net(batch[0])
    return features


def scores(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """The accuracy and the mean loss of a module."""
    import torch
    from torch.nn.functional import cross_entropy

    with torch.inference_mode():
        logits = net(x)
        loss = cross_entropy(logits, y).item()
        return {"accuracy": (logits.argmax(1) == y).float().mean().item(), "loss": loss}


def parted(items: npt.NDArray[np.int64], order: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
    """Items in an order as a client's parts: 8 in 10 to train on, one each for validation and test."""
    shuffled = items[order]
    held = len(items) // 10
    return {"validation": shuffled[:held], "test": shuffled[held : 2 * held], "train": shuffled[2 * held :]}
