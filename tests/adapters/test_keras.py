"""Keras: weights by their paths, training with corrections, optimizers that are kept, and files."""

from __future__ import annotations

import os
from functools import cache

import numpy as np
import pytest

import umbel
import umbel.strategies
from umbel.core.arrays import Arrays
from umbel.errors import AppError
from umbel.work.generators import Tensorflow

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")

import umbel.keras as adapter  # noqa: E402

NAMES = ("kernel", "bias")
RNG = np.random.default_rng(1)
X = RNG.normal(size=(48, 4)).astype(np.float32)
Y = (X.sum(1) > 0).astype(np.int32)


def make(optimizer="sgd", policy=None):
    layers = keras.layers
    net = keras.Sequential([
        keras.Input((4,)), layers.Dense(8, dtype=policy), layers.BatchNormalization(), layers.Dense(2, dtype=policy),
    ])  # fmt: skip
    net.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return net


def federated(train, *, strategy=None, clients=2, rounds=3, config=None, model=None):
    client = umbel.Client()
    client.train(train)
    app = umbel.App(
        client, model=model or adapter.model(make), strategy=strategy or umbel.FedAvg(cohort=clients), rounds=rounds,
        config=config, federation=umbel.Simulation(clients=clients, workers=0),
    )  # fmt: skip
    return umbel.run(app, folder=None, seed=1)


def test_names_are_the_same_for_each_model_that_is_made_and_roles_follow_training(tmp_path):
    first, second = adapter.arrays(make()), adapter.arrays(make())
    assert list(first) == list(second) == [
        "dense/kernel", "dense/bias", "batch_normalization/gamma", "batch_normalization/beta",
        "batch_normalization/moving_mean", "batch_normalization/moving_variance", "dense_1/kernel", "dense_1/bias",
    ]  # fmt: skip
    assert [name for name, role in first.roles.items() if role == "buffer"] == [
        "batch_normalization/moving_mean", "batch_normalization/moving_variance",
    ]  # fmt: skip
    net = make()
    net.layers[0].trainable = False
    assert "dense/kernel" not in adapter.arrays(net, trainable_only=True)
    assert adapter.arrays(net, personal="dense_1/*").roles["dense_1/bias"] == "personal"
    with pytest.raises(AppError, match="matches no tensor"):
        adapter.arrays(net, personal="head/*")
    model = adapter.model(make)
    for ending in ("keras", "safetensors"):
        model.save(first, tmp_path / f"model.{ending}")
    assert adapter.arrays(keras.saving.load_model(tmp_path / "model.keras")) == first
    assert Arrays.from_file(tmp_path / "model.safetensors") == first


def test_models_of_all_kinds_have_their_names_and_shared_layers_one():
    dense = keras.layers.Dense(4)
    seen = keras.Input((4,))
    net = keras.Model(seen, keras.Sequential([dense, keras.layers.Dense(3)])(dense(seen)))
    assert list(adapter.arrays(net)) == [
        "dense/kernel",
        "dense/bias",
        "sequential/dense/kernel",
        "sequential/dense/bias",
    ]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int32", "uint8", "bool"])
def test_every_dtype_is_loaded_in_place(dtype):
    layer = keras.layers.Layer()
    weight = layer.add_weight(shape=(2,), dtype=dtype, trainable="float" in dtype, initializer="zeros", name="w")
    layer.built = True
    model = adapter.arrays(layer)
    (name,) = model
    other = model.map(lambda _, array: (array + 1).astype(array.dtype))
    assert adapter.load_(layer, Arrays.from_bytes(other.to_bytes())) is layer
    assert adapter.arrays(layer) == other
    assert layer.weights[0] is weight
    assert model.roles[name] == ("parameter" if "float" in dtype else "buffer")


def test_a_model_that_has_changed_is_an_error_that_says_so():
    model = adapter.arrays(make())
    with pytest.raises(AppError, match="holds 'other', which Sequential does not have"):
        adapter.load_(make(), model.replace({"other": np.zeros(1)}))
    with pytest.raises(AppError, match="lacks 'dense/bias'"):
        adapter.load_(make(), model.select(n for n in model if n != "dense/bias"))
    with pytest.raises(AppError, match=r"'dense/bias' has shape \[3\], the module's tensor \[8\]"):
        adapter.load_(make(), model.replace({"dense/bias": np.zeros(3, np.float32)}))
    with pytest.raises(AppError, match="dtype int32, the module's tensor float32"):
        adapter.load_(make(), Arrays({**model, "dense/bias": np.zeros(8, np.int32)}))
    with pytest.raises(AppError, match="no weights yet"):
        adapter.arrays(keras.Sequential([keras.layers.Dense(2)]))


def test_a_model_is_made_once_and_each_task_begins_alike():
    net = cache(lambda: make("adam"))
    seen = []

    def train(model, data, ctx):
        update = adapter.fit(adapter.load_(net(), model), (X, Y), ctx, lr=0.01, batch=0)
        seen.append((int(net().optimizer.iterations), float(net().optimizer.learning_rate)))
        again = adapter.fit(adapter.load_(make("adam"), model), (X, Y), ctx, lr=0.01, batch=0)
        for name, array in update.arrays.items():
            np.testing.assert_allclose(array, again.arrays[name], atol=1e-6)
        assert update.weight == 48
        assert {"loss", "accuracy", "steps", "lr"} <= update.metrics.keys()
        return update

    federated(train, clients=1)
    assert seen == [(1, pytest.approx(0.01))] * 3


def test_an_optimizer_goes_on_where_it_was():
    net, alone, steps = cache(lambda: make("adam")), make("adam"), []

    def train(model, data, ctx):
        if ctx.round == 1:
            adapter.load_(alone, model)
        rate = 0.01 / ctx.round
        update = adapter.fit(adapter.load_(net(), model), (X, Y), ctx, lr=rate, batch=0, keep_optimizer=True)
        steps.append(int(ctx.state["optimizer"]["0"]))
        return update

    result = federated(train, clients=1)
    assert steps == [1, 2, 3]
    for rate in (0.01, 0.005, 0.01 / 3):
        alone.optimizer.learning_rate = rate
        alone.fit(X, Y, batch_size=48, verbose=0)
    for name, array in adapter.arrays(alone).items():
        if name != "dense/bias":  # before a normalisation its gradient is noise
            np.testing.assert_allclose(result.model[name], array, atol=1e-5)
    with pytest.raises(AppError, match="of other weights"):
        adapter.load_optimizer_(make("sgd").optimizer, adapter.optimizer_arrays(alone.optimizer))


@pytest.mark.parametrize("policy", [None, "mixed_bfloat16", "mixed_float16"])
def test_corrections_hold_a_client_near_in_mixed_precision_too(policy):
    net = cache(lambda: make("sgd", policy))

    def train(model, data, ctx):
        return adapter.fit(adapter.load_(net(), model), (X, Y), ctx, lr=0.1, batch=16, epochs=4)

    start = adapter.arrays(make())
    free = federated(train, rounds=1, model=start)
    held = federated(train, strategy=umbel.FedProx(cohort=2, mu=5.0), rounds=1, model=start)
    assert {array.dtype.name for array in held.model.values()} == {"float32"}
    moved = [np.abs(result.model["dense_1/kernel"] - start["dense_1/kernel"]).sum() for result in (free, held)]
    assert 0 < moved[1] < 0.9 * moved[0]


def test_a_correction_is_the_gradient_of_its_term():
    """One step with FedProx from weights that are not the anchor's: against the step by hand."""
    from types import SimpleNamespace

    from umbel.core.correction import Correction

    net, model = make(), adapter.arrays(make())
    adapter.load_(net, model)
    plain = SimpleNamespace(config={}, state={}, step=lambda: None, correction=None)
    free = adapter.fit(net, (X, Y), plain, lr=0.1, batch=0).arrays
    anchor = model.map(lambda name, array: array - 1 if model.roles[name] == "parameter" else array)
    offered = SimpleNamespace(added=lambda: Correction(proximal=0.5), anchor=anchor)
    adapter.load_(net, model)
    held = adapter.fit(net, (X, Y), SimpleNamespace(**{**vars(plain), "correction": offered}), lr=0.1, batch=0).arrays
    for name, role in model.roles.items():
        wanted = free[name] - (0.1 * 0.5 if role == "parameter" else 0)
        np.testing.assert_allclose(held[name], wanted, atol=1e-5, err_msg=name)


def test_what_is_wrong_is_said():
    def uncompiled(model, data, ctx):
        return adapter.fit(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), (X, Y), ctx)

    with pytest.raises(AppError, match="Sequential is not compiled"):
        federated(uncompiled)
    with pytest.raises(AppError, match="cannot tell how many examples"):
        federated(lambda model, data, ctx: adapter.fit(adapter.load_(make(), model), {"x": X}, ctx))


@pytest.mark.parametrize("seed", [0, 5, 2**40, 2**63 - 1])
def test_tensorflows_generator_is_seeded_as_it_seeds_itself(seed):
    tensorflow = pytest.importorskip("tensorflow")
    expected = tensorflow.random.Generator.from_seed(seed).state.numpy()
    for _ in range(2):  # one that is there already, too
        Tensorflow().seed(seed)
        assert (tensorflow.random.get_global_generator().state.numpy() == expected).all()
