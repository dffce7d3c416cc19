"""A problem that takes milliseconds: logistic regression in NumPy on made data, over eight clients; and made files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np

import umbel
from umbel import bench
from umbel.bench.hospitals import MIDDLE, SCALE
from umbel.data import HEART_COLUMNS, HOSPITALS

client = umbel.Client()


@client.data
def data(source):
    rng = np.random.default_rng(source["index"])
    x = rng.normal(size=(40, 3)) + source["index"] % 2
    return x, (x @ [1.0, -2.0, 1.0] > 0).astype(float)


@client.train
def train(model, data, ctx):
    x, y = data
    w = model["w"].astype(float)
    for _ in range(ctx.config["epochs"]):
        gradient = x.T @ (1 / (1 + np.exp(-x @ w)) - y) / len(y)
        if ctx.correction is not None:
            gradient = gradient + ctx.correction.gradient({"w": w})["w"]
        w = w - ctx.config["lr"] * gradient
    return umbel.Update({"w": w.astype(np.float32)}, weight=len(y))


def test(model, part):
    x, y = data({"index": {"validation": 1000, "test": 1001}[part]})
    return {"accuracy": float(np.mean((x @ model["w"] > 0) == y)), "loss": loss(model["w"], x, y)}


def loss(w, x, y):
    return float(np.mean(np.logaddexp(0, x @ w) - y * (x @ w)))


test.__test__ = False  # type: ignore[attr-defined]


def problem(**changes: Any) -> bench.Problem:
    settings = {
        "name": "tiny",
        "client": client,
        "model": {"w": np.zeros(3, np.float32)},
        "clients": 8,
        "test": test,
        "metric": "test.loss",
        "goal": "min",
        "also": ("test.accuracy",),
        "cohort": 3,
        "rounds": 4,
        "config": {"epochs": 2},
        "rates": (0.01, 0.1),
    }
    return bench.Problem(**{**settings, **changes})


def images(place: Path, train: int = 1300) -> str:
    """Ten classes of images that are noise around a pattern of their own, as idx files."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, size=(10, 28, 28))
    for part, count in (("train", train), ("t10k", 100)):
        labels = rng.permutation(np.arange(count) % 10)
        pixels = np.clip(patterns[labels] + rng.normal(scale=40, size=(count, 28, 28)), 0, 255)
        for name, values in (("images-idx3", pixels), ("labels-idx1", labels)):
            with gzip.open(place / f"{part}-{name}-ubyte.gz", "wb", compresslevel=1) as file:
                file.write(idx(values))
    return str(place)


def idx(values: np.ndarray) -> bytes:
    """An idx file of bytes."""
    axes = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return axes + values.astype(np.uint8).tobytes()


def patients(place: Path) -> str:
    """Patients of whom the pressure decides, in four hospitals that measure less and less."""
    rng = np.random.default_rng(0)
    for missing, name in enumerate(HOSPITALS):
        lines = [",".join(HEART_COLUMNS)]
        for _ in range(60):
            x = [f"{value:.1f}" for value in rng.normal(MIDDLE, SCALE)]
            sick = int(float(x[3]) > MIDDLE[3])
            lines.append(",".join([*x[: 13 - missing], *["?"] * missing, str(sick)]))
        (place / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return str(place)
