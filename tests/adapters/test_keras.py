"""Keras: weights by their paths, training with corrections, optimizers that are kept, and files."""

from __future__ import annotations

import os
from functools import cache

import numpy as np
import pytest
from tests.adapters.cases import context

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


def test_names_are_the_same_for_each_model_that_is_made_and_roles_follow_training():
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


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_every_dtype_is_loaded_in_place(dtype):
    layer = keras.layers.Layer()
    weight = layer.add_weight(shape=(2,), dtype=dtype, trainable=False, initializer="zeros", name="w")
    layer.built = True
    model = adapter.arrays(layer)
    (name,) = model
    other = model.map(lambda _, array: (array + 1).astype(array.dtype))
    assert adapter.load_(layer, Arrays.from_bytes(other.to_bytes())) is layer
    assert adapter.arrays(layer) == other
    assert layer.weights[0] is weight
    assert model.roles[name] == "buffer"


def test_corrections_hold_a_client_near_where_gradients_are_scaled_too():
    net = cache(lambda: make("sgd", "mixed_float16"))

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

    with pytest.raises(AppError, match="no weights yet"):
        adapter.arrays(keras.Sequential([keras.layers.Dense(2)]))
    for net in (plain := make("sgd"), other := make("adam")):
        net.optimizer.build(net.trainable_variables)
    with pytest.raises(AppError, match="of other weights"):
        adapter.load_optimizer_(plain.optimizer, adapter.optimizer_arrays(other.optimizer))
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


def compiled(*layers, optimizer="sgd", shape=(4,)):
    net = keras.Sequential([keras.Input(batch_shape=(16, *shape)), *layers])
    net.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return net


@pytest.mark.parametrize("kind", ["dropout", "recurrent"])
def test_a_task_does_not_depend_on_what_layers_drew_or_remember(kind):
    def make():
        if kind == "dropout":
            return compiled(keras.layers.Dense(8), keras.layers.Dropout(0.5), keras.layers.Dense(2))
        return compiled(keras.layers.Reshape((2, 2)), keras.layers.LSTM(3, stateful=True), keras.layers.Dense(2))

    net, start, found = make(), adapter.arrays(make()), []
    for each in (net, net, make()):
        adapter.seed(1)  # as whoever runs a task does: rows are shuffled
        found.append(adapter.fit(adapter.load_(each, start), (X, Y), context(), batch=16).arrays)
    assert umbel.Arrays(found[0]) == umbel.Arrays(found[1]) == umbel.Arrays(found[2])


def test_both_directions_of_a_layer_have_the_same_names_in_each_model():
    def make():
        return compiled(keras.layers.Reshape((2, 2)), keras.layers.Bidirectional(keras.layers.LSTM(3)))

    first = adapter.arrays(make())
    assert {name.split("/")[1] for name in first} == {"forward_lstm", "backward_lstm"}
    assert adapter.arrays(adapter.load_(make(), first)) == first


def test_a_learning_rate_that_is_a_schedule_goes_on():
    rates = keras.optimizers.schedules.PiecewiseConstantDecay([3], [0.1, 0.01])
    net, state = compiled(keras.layers.Dense(2), optimizer=keras.optimizers.SGD(rates)), {}
    told = [adapter.fit(net, (X, Y), context(state), batch=16, keep_optimizer=True).metrics["lr"] for _ in range(2)]
    assert told == pytest.approx([0.1, 0.01])
    with pytest.raises(AppError, match="a schedule of its own"):
        adapter.fit(net, (X, Y), context(), lr=0.1)


def test_examples_are_counted_where_there_are_several_outputs_or_none():
    seen = keras.Input((4,))
    dense = keras.layers.Dense
    for outputs, y in (
        ([dense(1)(seen), dense(1)(seen)], (Y, Y)),
        ({"a": dense(1, name="a")(seen), "b": dense(1, name="b")(seen)}, {"a": Y, "b": Y}),
    ):
        net = keras.Model(seen, outputs)
        net.compile("sgd", "mse")
        assert adapter.fit(net, (X, y), context()).weight == 48
    net = make()
    assert adapter.fit(net, (X[:0], Y[:0]), context()).weight == 0
