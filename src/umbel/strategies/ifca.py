"""IFCA: clients in clusters, each with a model of its own (Ghosh et al. 2020, arXiv 2006.04088)."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

from ..core.answer import Answer
from ..core.arrays import Arrays
from ..core.ask import Ask, PerClient
from ..core.randomness import Key
from ..core.settings import not_negative, whole
from ..core.strategy import Asks, State
from ..errors import ClientId, StrategyError
from ..folds.total import total
from .fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class IFCA(FedAvg):
    """FedAvg of `clusters` models: each round the cohort evaluates all of them, and each client trains the one that has
    the lowest `loss` for it.

    The models begin as the app's, moved by normal noise of the standard deviation `spread`, drawn by `seed`. Needs a
    handler for `evaluate` that gives the metric `loss`. `State.members` has each client's cluster, `State.clusters` the
    models; the run's result is that of the largest cluster, and clients evaluate their own.
    """

    clusters: int = 2
    spread: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, clusters=1, seed=-math.inf)
        not_negative(self, "spread")

    def start(self, model: Arrays) -> State:
        begun = []
        for j in range(self.clusters):
            draws = Key.from_seed(self.seed).derive("ifca", j).draws()
            noise = {n: self.spread * draws.normal(a.size).reshape(a.shape) for n, a in model.items()}
            moved = {n: (a + noise[n]).astype(a.dtype) for n, a in model.of_role("parameter").items()}
            begun.append(super().start(model.replace(moved)))
        return State(begun[0].model, clusters=begun, members={})

    def served(self, state: State) -> PerClient[Arrays]:
        return lambda client: state.clusters[state.members.get(client, self._largest(state))].model

    def round(self, state: State, r: int) -> Asks:
        judged = [
            Ask(kind="evaluate", clients=self.cohort, model=s.model, config=self.config, fold=total())
            for s in state.clusters
        ]
        first = yield judged[0]
        others = (yield [replace(ask, clients=first.clients) for ask in judged[1:]]) if judged[1:] else []
        members = {**state.members, **_best([first, *others])}
        groups: dict[int, list[ClientId]] = {}
        for client in first.clients:
            groups.setdefault(members[client], []).append(client)
        asked = sorted(groups)
        answers = yield [
            replace(
                self.ask(state.clusters[j], r),
                clients=groups[j],
                lane=f"train-{j}",
                window=replace(self.window, quorum=0),  # a cluster may lack for once
            )
            for j in asked
        ]
        clusters = list(state.clusters)
        for j, answer in zip(asked, answers, strict=True):
            clusters[j] = self.apply(clusters[j], answer)
        after = state.replace(clusters=clusters, members=members)
        return after.replace(model=clusters[self._largest(after)].model)

    def _largest(self, state: State) -> int:
        counts = Counter(state.members.values())
        return max(range(self.clusters), key=lambda j: (counts[j], -j))


def _best(answers: list[Answer]) -> dict[ClientId, int]:
    """The cluster whose model each client likes best."""
    losses: dict[ClientId, list[float]] = {}
    for j, answer in enumerate(answers):
        for receipt in answer.receipts:
            loss = receipt.metrics.get("loss", math.nan)
            losses.setdefault(receipt.client, [math.inf] * len(answers))[j] = math.inf if math.isnan(loss) else loss
    if losses and not any("loss" in receipt.metrics for answer in answers for receipt in answer.receipts):
        raise StrategyError(
            "IFCA compares losses, and the evaluations of all clients give none",
            hint='Have the evaluate handler return Metrics({"loss": ...}).',
        )
    return {client: min(range(len(found)), key=found.__getitem__) for client, found in losses.items()}
