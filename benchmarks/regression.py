"""Logistic regression in numpy on made data, for simulations without PyTorch."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

import umbel

from .meter import say

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
def train(model: umbel.Arrays, data: Any, ctx: Any) -> umbel.Update:
    """One step of gradient descent."""
    x, y = data
    logits = x @ model["w"] + model["b"]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    p *= np.float32(0.1 / len(y))
    return umbel.Update({"w": model["w"] - x.T @ p, "b": model["b"] - p.sum(0)}, weight=len(y))


def alone(tasks: int) -> None:
    """Train so many times, a model that is averaged each tenth time; nothing is checked, and print the seconds."""
    model, began = initial(), time.perf_counter()
    total = {name: np.zeros_like(value) for name, value in model.items()}
    for task in range(tasks):
        for name, value in train(umbel.Arrays(model), data({"index": task}), None).arrays.items():
            total[name] += value - model[name]
        if task % 10 == 9:
            model = {name: value + total[name] / 10 for name, value in model.items()}
            total = {name: np.zeros_like(value) for name, value in model.items()}
    say(time.perf_counter() - began)
