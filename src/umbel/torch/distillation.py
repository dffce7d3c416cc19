"""A student that learns what several models say together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from ..core.arrays import Arrays
from .modules import arrays, load_


def distil(
    make: Callable[[], nn.Module],
    inputs: Iterable[Tensor],
    *,
    epochs: int = 1,
    lr: float = 1e-3,
    temperature: float = 1.0,
) -> Callable[[Arrays, Sequence[Arrays]], Arrays]:
    """For `FedDF`: what trains a student, by Adam, to say what its teachers say on average.

    `make` makes the module; `inputs` are batches without labels that the server may use, gone through in order. The
    loss is the divergence of the student's distribution from that of the teachers' mean logits at the `temperature`.
    """

    def train(student: Arrays, teachers: Sequence[Arrays]) -> Arrays:
        net, masters = load_(make(), student), [load_(make(), each).eval() for each in teachers]
        optimizer = torch.optim.Adam(net.parameters(), lr=lr)
        net.train()
        for _ in range(epochs):
            for x in inputs:
                with torch.no_grad():
                    wanted = torch.stack([master(x) for master in masters]).mean(0) / temperature
                said, wanted = (nn.functional.log_softmax(each, 1) for each in (net(x) / temperature, wanted))
                loss = nn.functional.kl_div(said, wanted, reduction="batchmean", log_target=True)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
        return arrays(net)

    return train
