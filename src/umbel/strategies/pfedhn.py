"""pFedHN: a network at the server makes everyone's model (Shamsian et al. 2021, arXiv 2103.04628)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ..core.answer import Answer
from ..core.arrays import Array, Arrays, is_floating, wide
from ..core.ask import PerClient
from ..core.fold import Fold
from ..core.randomness import Key
from ..core.settings import positive, whole
from ..core.strategy import Asks, State
from ..errors import ClientId
from ..folds.collect import collect
from .fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class PFedHN(FedAvg):
    """A hypernetwork turns a vector that it learns of each client into that client's model: the app's model plus a
    linear map of ``tanh(A v + a)``. Clients train what they get; network and vectors step by `lr` times the
    gradient that their differences stand for.

    `embedding` and `hidden` are sizes; weights are drawn by `seed`. The server holds `hidden` times the model, and
    every update of a round. Clients evaluate the models made for them; the run's result is what the network makes of
    no vector at all. It needs nothing of clients.
    """

    collects: ClassVar[bool] = True
    embedding: int = 8
    hidden: int = 16
    lr: float = 0.1
    seed: int = 0
    fold: Fold = field(default_factory=collect)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, embedding=1, hidden=1, seed=-math.inf)
        positive(self, "lr")

    def start(self, model: Arrays) -> State:
        draws = Key.from_seed(self.seed).derive("pfedhn").draws()

        def drawn(*shape: int, scale: float) -> Array:
            return (draws.normal(int(np.prod(shape))) * scale).reshape(shape)

        parameters = model.of_role("parameter")
        lower = Arrays(
            {"A": drawn(self.hidden, self.embedding, scale=self.embedding**-0.5), "a": np.zeros(self.hidden)}
        )
        upper = Arrays({n: drawn(self.hidden, *p.shape, scale=0.1 * self.hidden**-0.5) for n, p in parameters.items()})
        return State(model, lower=lower, upper=upper, base=parameters, vectors={})

    def served(self, state: State) -> PerClient[Arrays]:
        return lambda client: self._made(state, self._vector(state, client))

    def round(self, state: State, r: int) -> Asks:
        answer = yield replace(self.ask(state, r), model=self.served(state))
        lower, upper, base = (
            {n: a.astype(wide(a.dtype)) for n, a in part.items()} for part in (state.lower, state.upper, state.base)
        )
        vectors, rate = dict(state.vectors), self.lr / max(1, answer.count)
        state = state.replace(model=_with_buffers(state.model, answer))
        for client, update in answer.value.items():  # all by the network as it was
            vector = self._vector(state, client)
            inner = np.tanh(state.lower["A"] @ vector + state.lower["a"])
            back = np.zeros(self.hidden)
            for name, difference in update.arrays.items():
                if name in upper:
                    back += np.tensordot(state.upper[name], difference, difference.ndim)
                    upper[name] = upper[name] + rate * np.multiply.outer(inner, difference)
                    base[name] = base[name] + rate * difference
            slope = back * (1 - inner**2)
            lower["A"], lower["a"] = lower["A"] + rate * np.outer(slope, vector), lower["a"] + rate * slope
            vectors[client] = vector + self.lr * state.lower["A"].T @ slope
        after = state.replace(lower=Arrays(lower), upper=Arrays(upper), base=Arrays(base), vectors=vectors)
        return after.replace(model=self._made(after, np.zeros(self.embedding)))

    def _vector(self, state: State, client: ClientId) -> Any:
        if client in state.vectors:
            return state.vectors[client]
        return Key.from_seed(self.seed).derive("vector", client).draws().normal(self.embedding)

    def _made(self, state: State, vector: Array) -> Arrays:
        inner = np.tanh(state.lower["A"] @ vector + state.lower["a"])
        model: Arrays = state.model
        made = {n: state.base[n] + np.tensordot(inner, up, 1) for n, up in state.upper.items()}
        return model.replace({n: array.astype(model[n].dtype) for n, array in made.items()})


def _with_buffers(model: Arrays, answer: Answer) -> Arrays:
    """The model with the mean of the buffers that clients sent; integers are rounded."""
    updates = [update.arrays for update in answer.value.values()]
    names = [n for n, role in model.roles.items() if role == "buffer"] if updates else []
    means = {n: np.mean([arrays[n] for arrays in updates], axis=0) for n in names}
    return model.replace(
        {n: (a if is_floating(model[n].dtype) else np.rint(a)).astype(model[n].dtype) for n, a in means.items()}
    )
