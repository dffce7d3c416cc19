"""Hugging Face transformers: weights that are tuned alone, training by the Trainer, and folders."""

from __future__ import annotations

import os

import numpy as np
import pytest

import umbel
import umbel.strategies
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


def test_federated_training_is_the_same_loop_and_keeps_its_optimizer(capfd):
    updates = []

    def train(model, data, ctx):
        net = adapter.load_(make(), model)
        updates.append(adapter.fit(net, ROWS, ctx, lr=0.01, batch=0, keep_optimizer=True, max_grad_norm=0.0))
        return updates[-1]

    result = federated(train)
    assert "loss" not in capfd.readouterr().out
    assert (updates[0].weight, updates[0].metrics["steps"], updates[0].metrics["lr"]) == (24, 1, 0.01)
    alone = make().train()
    optimizer = torch.optim.AdamW(alone.parameters(), lr=0.01, weight_decay=0.0)
    batch = {name: torch.tensor([row[name] for row in ROWS]) for name in ("input_ids", "labels")}
    for _ in range(3):
        optimizer.zero_grad()
        alone(**batch).loss.backward()
        optimizer.step()
    for name, array in adapter.arrays(alone).items():
        if "key.bias" not in name:  # its gradient is noise
            np.testing.assert_allclose(result.model[name], array, atol=1e-4, err_msg=name)


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


def test_folders_are_what_from_pretrained_reads(tmp_path):
    model = adapter.model(make)
    trained = model().map(lambda name, array: array + 1 if array.dtype == np.float32 else array)
    model.save(trained, tmp_path / "model")
    read = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert adapter.arrays(read) == trained
    with pytest.raises(AppError, match="not written as"):
        model.save(trained, tmp_path / "model.onnx")
    with pytest.raises(AppError, match="needs a learning rate"):
        federated(lambda model, data, ctx: adapter.fit(make(), ROWS, ctx))


def test_tied_weights_stay_tied():
    config = transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8)
    net = transformers.GPT2LMHeadModel(config)
    model = adapter.arrays(net)
    assert np.array_equal(model["lm_head.weight"], model["transformer.wte.weight"])
    other = adapter.load_(transformers.GPT2LMHeadModel(config), model)
    assert other.lm_head.weight is other.transformer.wte.weight
    assert adapter.arrays(other) == model
