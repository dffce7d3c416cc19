"""The workloads' models in PyTorch, and the training step that every side with a loop of its own shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..workloads import CLASSES, PIXELS, Model, Workload, initial

torch.set_num_threads(1)

Tensors = tuple[Tensor, Tensor]


class Net(nn.Module):
    """Layers and their loss."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(x)
        return scores

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean cross-entropy of a batch."""
        return cross_entropy(self.layers(x), y)


class Still(nn.Module):
    """A model that nobody trains."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1_000))

    def loss(self) -> Tensor:
        """Nothing."""
        return torch.zeros(())


def net(workload: Workload) -> nn.Module:
    """The model of a workload, as it begins."""
    made: nn.Module
    if workload.model == "noop":
        made = Still()
    elif workload.model == "regression":
        made = Net(nn.Linear(PIXELS * PIXELS, CLASSES))
    else:
        made = Net(
            *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, CLASSES)),
        )
    made.load_state_dict(tensors(initial(workload)))
    return made


def tensors(model: Model) -> dict[str, Tensor]:
    """Arrays as tensors that share their memory."""
    return {name: torch.from_numpy(array) for name, array in model.items()}


def arrays(net: nn.Module) -> Model:
    """A copy of the parameters as arrays."""
    return {name: np.array(value.detach().numpy()) for name, value in net.state_dict().items()}


def fit(net: Any, examples: Tensors, workload: Workload) -> None:
    """One epoch of SGD, batches in the order of the data; of no-ops nothing."""
    if workload.model == "noop":
        return
    x, y = examples
    optimizer = torch.optim.SGD(net.parameters(), lr=workload.rate)
    for start in range(0, len(y), workload.batch):
        optimizer.zero_grad()
        net.loss(x[start : start + workload.batch], y[start : start + workload.batch]).backward()
        optimizer.step()
