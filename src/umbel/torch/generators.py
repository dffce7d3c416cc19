"""A generator of features for labels, which needs no data: FedGen's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..core.arrays import Array, Arrays
from .modules import arrays, load_
from .seeds import restore_rng, save_rng, seed

Head = Callable[[nn.Module, Tensor], Tensor]
"""What a module makes of features: its logits."""


class FeatureGenerator:
    """A perceptron from noise and a label to `features` features (Zhu, Hong & Zhou 2021, arXiv 2105.10056).

    `make` makes the clients' module, ``head(net, features)`` gives its logits for features. Called with a generator,
    clients' models and their labels it gives the generator after `steps` steps of Adam, so that the heads, each weighed
    by its share of a label, say the label, and unlike noise gives unlike features. Draws are seeded by `value`.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        head: Head,
        *,
        features: int,
        classes: int,
        noise: int = 16,
        hidden: int = 64,
        steps: int = 100,
        batch: int = 64,
        lr: float = 1e-3,
        diversity: float = 1.0,
        value: int = 0,
    ) -> None:
        self.make, self.head, self.features, self.classes = make, head, features, classes
        self.noise, self.hidden, self.steps, self.batch = noise, hidden, steps, batch
        self.lr, self.diversity, self.value = lr, diversity, value

    def arrays(self) -> Arrays:
        """The generator to begin with."""
        before = save_rng()
        seed(self.value)
        try:
            return arrays(self._net())
        finally:
            restore_rng(before)

    def drawn(self, generator: Arrays, labels: Tensor) -> Tensor:
        """Features for labels, by the generator and torch's own draws."""
        net = load_(self._net().to(labels.device), generator).eval()
        with torch.no_grad():
            return self._features(net, torch.randn(len(labels), self.noise, device=labels.device), labels)

    def __call__(self, generator: Arrays, models: Sequence[Arrays], labels: Array) -> Arrays:
        before = save_rng()
        seed(self.value + 1)
        try:
            return self._learned(generator, models, torch.as_tensor(labels, dtype=torch.float32))
        finally:
            restore_rng(before)

    def _learned(self, generator: Arrays, models: Sequence[Arrays], counts: Tensor) -> Arrays:
        net, heads = load_(self._net(), generator).train(), [load_(self.make(), model).eval() for model in models]
        optimizer = torch.optim.Adam(net.parameters(), lr=self.lr)
        shares = counts / counts.sum(0).clamp(min=1)  # of each label, over the clients
        for _ in range(self.steps):
            labels = torch.multinomial(counts.sum(0), self.batch, replacement=True)
            noise = torch.randn(self.batch, self.noise)
            made = self._features(net, noise, labels)
            told = torch.stack(
                [nn.functional.cross_entropy(self.head(h, made), labels, reduction="none") for h in heads]
            )
            loss = (told * shares[:, labels]).sum(0).mean() + self.diversity * _alike(made, noise)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        return arrays(net)

    def _net(self) -> nn.Module:
        first = nn.Linear(self.noise + self.classes, self.hidden)
        return nn.Sequential(first, nn.ReLU(), nn.Linear(self.hidden, self.features))

    def _features(self, net: nn.Module, noise: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = net(torch.cat([noise, nn.functional.one_hot(labels, self.classes).to(noise)], 1))
        return found


def _alike(made: Tensor, noise: Tensor) -> Tensor:
    """How alike the features of unlike noise are, from 0 to 1."""
    apart, wanted = ((each[:, None] - each[None]).abs().mean(2) for each in (made, noise))
    return torch.exp(-(apart * wanted).mean())
