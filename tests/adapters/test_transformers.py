"""Hugging Face transformers: weights that are tuned alone, training by the Trainer, and folders."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tests.adapters.cases import context

import umbel
from umbel.errors import AppError

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
torch = pytest.importorskip("torch", exc_type=ImportError)
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import umbel.transformers as adapter  # noqa: E402


def make(frozen=False):
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    net = transformers.BertForSequenceClassification(config)
    net.base_model.requires_grad_(not frozen)
    return net


ROWS = [{"input_ids": [1 + i % 7, 2, 3 + i % 5, 4], "labels": int(i % 7 > 3)} for i in range(24)]


def federated(train, *, strategy=None, model=None, rounds=3):
    client = umbel.Client()
    client.train(train)
    app = umbel.App(
        client, model=model or adapter.model(make), strategy=strategy or umbel.FedAvg(cohort=1), rounds=rounds,
        federation=umbel.Simulation(clients=1, workers=0),
    )  # fmt: skip
    return umbel.run(app, folder=None, seed=1)


def test_what_is_frozen_does_not_travel():
    def tuned():
        return make(frozen=True)

    model = adapter.model(tuned, trainable_only=True)
    assert set(model()) == {"classifier.weight", "classifier.bias"}

    def train(model, data, ctx):
        net = adapter.load_(tuned(), model, strict=False)
        return adapter.fit(net, ROWS, ctx, lr=0.01, batch=8, trainable_only=True)

    free = federated(train, model=model, rounds=1)
    held = federated(train, model=model, rounds=1, strategy=umbel.FedProx(cohort=1, mu=1000.0))
    start = model()["classifier.weight"]
    assert (
        np.abs(held.model["classifier.weight"] - start).sum() != np.abs(free.model["classifier.weight"] - start).sum()
    )
    with pytest.raises(AppError, match="lacks"):
        adapter.load_(make(), free.model)


def test_training_says_nothing_and_what_is_wrong_is_said(capfd):
    update = adapter.fit(make(), ROWS, context(), lr=0.01, batch=0)
    assert "loss" not in capfd.readouterr().out
    assert (update.weight, update.metrics["steps"], update.metrics["lr"]) == (24, 1, 0.01)
    assert adapter.fit(make(), [], context(), lr=0.01).weight == 0
    with pytest.raises(AppError, match="needs a learning rate"):
        adapter.fit(make(), ROWS, context())
    with pytest.raises(AppError, match="not written as") as caught:
        adapter.model(make).save(adapter.arrays(make()), Path("model.onnx"))
    assert caught.value.hint == "Name a file that ends in .pt, .safetensors, or in nothing, for a folder."
