"""FoolsGold (Fung, Yoon & Beschastnikh 2018, arXiv 1808.04866)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..core.arrays import Array, Arrays
from ..core.fold import Fold
from ..core.settings import positive
from ..core.update import NO_ARRAYS
from .gathered import Gathered, Gathering, Updates, knowing
from .geometry import Floats, cosines, products

if TYPE_CHECKING:
    from ..core.answer import Answer

_PLACE = "foolsgold/"


@dataclass(frozen=True)
class foolsgold(Gathered):
    """The mean of the updates, those counting less whose clients have said the same as others over the rounds.

    A client's weight follows from the largest cosine between the sum of all its updates so far and that of another's,
    which honest clients, who pardon each other, do not have with those who act in concert; `confidence` is the paper's
    kappa. Takes any number of such sybils, and assumes that honest clients' data differ: where all say the same, all
    count alike. The mean is by these weights, where the paper takes the sum, so that the server's learning rate means
    what it does elsewhere. A strategy remembers the sum of every client's updates (`Fold.for_round`): in its state, so
    in every checkpoint, as many numbers as there are clients times parameters. Needs differences. Costs 2 n**2 d
    multiplications.
    """

    name: ClassVar[str] = "foolsgold"
    needs_differences: ClassVar[bool] = True
    measures: ClassVar[bool] = True
    confidence: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "confidence")

    def for_round(self, memory: Any, model: Arrays, r: int) -> Fold:
        return knowing(self, memory)

    def remember(self, memory: Any, answer: Answer) -> Any:
        found = {n.removeprefix(_PLACE): a for n, a in answer.aux.items() if n.startswith(_PLACE)}
        histories = dict(memory or {})
        for place, client in enumerate(answer.clients):
            histories[client] = Arrays({name: array[place] for name, array in found.items()})
        return histories

    def beside(self, acc: Gathering) -> Arrays:
        if not acc.rows:
            return NO_ARRAYS
        updates = Updates(acc)
        histories = self._histories(updates)
        return Arrays({_PLACE + n: np.stack([each[n] for each in histories]) for n in histories[0]})

    def made(self, updates: Updates) -> Arrays:
        clients = list(dict.fromkeys(updates.clients))
        first = [updates.clients.index(client) for client in clients]
        histories = self._histories(updates)
        trust = weights(cosines(products([histories[at] for at in first])), self.confidence)
        each = dict(zip(clients, trust.tolist(), strict=True))
        return updates.combined(
            [each[client] for client in updates.clients], math.fsum(each[c] for c in updates.clients)
        )

    def _histories(self, updates: Updates) -> list[Arrays]:
        """The sum of all updates of each update's client, with those that came now."""
        sums: dict[Any, dict[str, Array]] = {}
        for client, factor, arrays in zip(updates.clients, updates.factors, updates.arrays, strict=True):
            before = sums.get(client) or (self.kept or {}).get(client) or {}
            sums[client] = {
                n: a * np.asarray(factor, a.dtype) + before.get(n, np.zeros((), a.dtype))
                for n, a in arrays.of_role("parameter").items()
            }
        return [Arrays(sums[client]) for client in updates.clients]


def weights(alike: Floats, confidence: float) -> Floats:
    """How much each client counts, from 0 to 1, by how much alike they are; all alike where nobody stands out."""
    alike = alike.copy()
    np.fill_diagonal(alike, 0.0)
    count = len(alike)
    if count < 2:
        return np.ones(count)
    most = alike.max(axis=1)
    # Whoever is less like others than somebody else is, is pardoned for what is alike in the two.
    with np.errstate(divide="ignore", invalid="ignore"):
        pardon = np.where(most > most[:, None], most[:, None] / most, 1.0)
    found = np.clip(np.round(1 - np.max(alike * pardon, axis=1), 9), 0.0, 1.0)
    if not found.max() > 0:
        return np.ones(count)
    found = np.minimum(found / found.max(), 0.99)
    # The logarithm's last bits differ by machine, so they are rounded away.
    odds = [confidence * (math.log(x / (1 - x)) + 0.5) if x > 0 else 0.0 for x in found.tolist()]
    trusted: Floats = np.clip(np.round(odds, 9), 0.0, 1.0)
    return trusted
