"""Logistic regression in numpy on made data, for simulations without PyTorch."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np

import umbel

PIXELS, CLASSES, EXAMPLES = 784, 10, 20

client = umbel.Client()


def initial() -> dict[str, Any]:
    """The model to start from."""
    return {"w": np.zeros((PIXELS, CLASSES), np.float32), "b": np.zeros(CLASSES, np.float32)}


@client.data
def data(source: Any) -> Any:
    """A client's examples, made from its number."""
    made = np.random.default_rng(source["index"])
    y = made.integers(0, CLASSES, EXAMPLES)
    x = made.standard_normal((EXAMPLES, PIXELS), np.float32)
    x[np.arange(EXAMPLES), y] += 3
    return x, y


@client.train
def train(model: umbel.Arrays, data: Any, ctx: umbel.Context) -> umbel.Update:
    """One step of gradient descent."""
    x, y = data
    logits = x @ model["w"] + model["b"]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    p *= np.float32(0.1 / len(y))
    return umbel.Update({"w": model["w"] - x.T @ p, "b": model["b"] - p.sum(0)}, weight=len(y))


def uneven_client() -> umbel.Client:
    """A client that counts its tasks, and works for a different time on each, so that none finishes in order."""
    uneven = umbel.Client()

    @uneven.train
    def train(model: umbel.Arrays, data: Any, ctx: umbel.Context) -> umbel.Update:
        seen = ctx.state["seen"] = ctx.state.get("seen", 0) + 1
        for _ in range(1 + 400 * (ctx.client * 7 % 5)):
            step = ctx.rng.normal(size=100).astype(np.float32)
        return umbel.Update({"w": model["w"] + step / seen}, weight=1 + ctx.client)

    return uneven


class TwoAsks(umbel.Strategy):
    """Asks seven clients twice at once; some are in both."""

    def round(self, state: umbel.State, r: int) -> Generator[Any, Any, umbel.State]:
        """One round."""
        a, b = yield [
            umbel.Ask(clients=7, model=state.model),
            umbel.Ask(clients=7, model=state.model, lane="again"),
        ]
        return state.replace(model=state.model.replace({"w": state.model["w"] + a.value["w"] + b.value["w"]}))
