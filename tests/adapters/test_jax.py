"""JAX: trees of arrays, of Flax and optax too, keys, training with corrections, and files."""

from __future__ import annotations

import numpy as np
import pytest

import umbel
import umbel.strategies
from umbel.core.client import Context
from umbel.core.randomness import Key
from umbel.errors import AppError

jax = pytest.importorskip("jax")
flax = pytest.importorskip("flax")
optax = pytest.importorskip("optax")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

import jax.numpy as jnp  # noqa: E402
from flax import nnx, serialization  # noqa: E402

import umbel.jax as adapter  # noqa: E402

RNG = np.random.default_rng(1)
X = RNG.normal(size=(48, 4)).astype(np.float32)
Y = (X.sum(1) > 0).astype(np.int32)


def params():
    return {"layers": [(jnp.ones((4, 2)) / 8, jnp.zeros(2))], "scale": jnp.ones(())}


def loss(params, batch, key):
    ((weights, bias),) = params["layers"]
    scores = (batch[0] @ weights + bias) * params["scale"]
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch[1]).mean()


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first, self.norm = nnx.Linear(4, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.drop, self.rest = nnx.Dropout(0.5, rngs=rngs), nnx.List([nnx.Linear(8, 2, rngs=rngs)])

    def __call__(self, x):
        return self.rest[0](self.drop(self.norm(self.first(x))))


def optimizer_of(net):
    return nnx.Optimizer(net, optax.adam(0.1), wrt=nnx.Param)


def context(seed):
    key = Key.from_seed(seed)
    return Context(client=0, round=1, kind="train", config={}, key=key, inbox=umbel.Arrays(), state={})


def federated(train, *, strategy=None, clients=2, rounds=3, workers=0, config=None):
    client = umbel.Client()
    client.train(train)
    federation = umbel.Simulation(clients=clients, workers=workers)
    strategy = strategy or umbel.FedAvg(cohort=clients)
    app = umbel.App(
        client, model=adapter.model(params), strategy=strategy, rounds=rounds, config=config, federation=federation
    )
    return umbel.run(app, folder=None, seed=1)


def test_arrays_are_views_and_not_copies():
    big = {"w": jnp.ones((1000, 1000))}
    assert adapter.arrays(big)["w"].__array_interface__["data"][0] == big["w"].unsafe_buffer_pointer()


def test_modules_are_loaded_in_place_and_written(tmp_path):
    net = Net()
    model = adapter.arrays(net)
    assert model.roles["norm.mean"] == "buffer"
    assert "rest.0.kernel" in model
    assert not any("rngs" in name for name in model)
    kernel = net.first.kernel
    shifted = model.map(lambda name, array: array + 1)
    assert adapter.load_(net, shifted) is net
    assert net.first.kernel is kernel
    assert adapter.arrays(net) == shifted == adapter.arrays(adapter.load_(nnx.state(Net()), shifted))
    adapter.model(Net).save(shifted, tmp_path / "model.msgpack")
    read = serialization.msgpack_restore((tmp_path / "model.msgpack").read_bytes())
    assert np.array_equal(read["rest"]["0"]["kernel"], shifted["rest.0.kernel"])
    kept = adapter.arrays(optimizer_of(net))
    assert adapter.arrays(adapter.load_(optimizer_of(Net()), kept)) == kept


def test_a_tree_that_has_changed_is_an_error_that_says_so():
    model = adapter.arrays(params())
    with pytest.raises(AppError, match="lacks 'extra'"):
        adapter.load_({**params(), "extra": jnp.ones(1)}, model)
    with pytest.raises(AppError, match="dtype float32, the module's tensor int32"):
        adapter.load_({**params(), "scale": jnp.ones((), jnp.int32)}, model)
    assert adapter.load_({**params(), "extra": jnp.ones(1)}, model, strict=False)["extra"].tolist() == [1]


def test_training_by_gradients_and_the_same_by_hand():
    def train(model, data, ctx):
        return adapter.fit(adapter.load_(params(), model), (X, Y), ctx, loss, lr=0.1, batch=0)

    found = federated(train, clients=1)
    hand = params()
    for _ in range(3):
        slopes = jax.grad(loss)(hand, (X, Y), None)
        hand = jax.tree.map(lambda w, slope: w - 0.1 * slope, hand, slopes)
    for name, array in adapter.arrays(hand).items():
        np.testing.assert_allclose(found.model[name], array, atol=1e-6)
    assert found.metrics["train.loss"] < 0.69


def test_corrections_are_applied_and_what_cannot_be_is_said():
    def train(model, data, ctx):
        return adapter.fit(adapter.load_(params(), model), (X, Y), ctx, loss, lr=0.1, batch=0, epochs=4)

    free, held = federated(train), federated(train, strategy=umbel.FedProx(cohort=2, mu=5.0))
    start = adapter.arrays(params())
    moved = [float(np.abs(result.model["layers.0.0"] - start["layers.0.0"]).sum()) for result in (free, held)]
    assert moved[1] < 0.9 * moved[0]
    federated(train, strategy=umbel.strategies.Scaffold(cohort=2))

    def a_part(model, data, ctx):
        part = {"layers": adapter.load_(params(), model)["layers"], "other": jnp.ones(1)}
        return adapter.fit(part, (X, Y), ctx, lambda p, b, k: p["other"].sum(), lr=0.1)

    with pytest.raises(AppError, match="a model that does not have 'other'"):
        federated(a_part, strategy=umbel.FedProx(cohort=2, mu=1.0))
    with pytest.raises(AppError, match=r"a tree of floating-point numbers, and 'opt_state\.0\.count'"):
        federated(lambda model, data, ctx: adapter.fit(optimizer_of(Net()), (X, Y), ctx, loss, lr=0.1))
    with pytest.raises(AppError, match="and 'steps' is none"):
        federated(lambda model, data, ctx: adapter.fit({**params(), "steps": 3}, (X, Y), ctx, loss, lr=0.1))


def test_names_are_paths_and_two_of_one_name_are_refused():
    tree = {"deep": [(jnp.zeros(()),), optax.adam(0.1).init(params())], "key": jax.random.key(3)}
    model = adapter.arrays(tree)
    assert {"deep.0.0", "deep.1.0.mu.layers.0.1", "deep.1.0.count"} <= model.keys()
    assert model.roles["key"] == "buffer"
    assert adapter.arrays(params(), personal="layers.*").roles["layers.0.0"] == "personal"
    with pytest.raises(AppError, match="matches no tensor of dict"):
        adapter.arrays(params(), personal=["head.*"])
    with pytest.raises(AppError, match=r"two arrays of the tree have the name 'a\.b'"):
        adapter.arrays({"a.b": jnp.ones(1), "a": {"b": jnp.zeros(1)}})


def test_numbers_and_numpys_arrays_are_what_jax_computes_with():
    tree = {"rate": 1.5, "steps": 2, "wide": np.ones(3), "none": None}
    model = adapter.arrays(tree)
    assert {name: array.dtype.name for name, array in model.items()} == {
        "rate": "float32", "steps": "int32", "wide": "float32",
    }  # fmt: skip
    again = adapter.load_(tree, model)
    assert again["none"] is None
    assert adapter.arrays(again) == model


def test_keys_and_the_generators_of_a_module_are_the_tasks_own():
    net, start, keys, found = Net(), adapter.arrays(Net()), set(), []

    def loss(net, batch, key):
        return optax.softmax_cross_entropy_with_integer_labels(net(batch[0]), batch[1]).mean()

    for seed, made in ((1, net), (1, Net()), (1, net), (2, net)):
        ctx = context(seed)
        keys.update(tuple(jax.random.key_data(adapter.key(ctx, at)).tolist()) for at in range(3))
        found.append(adapter.fit(adapter.load_(made, start), (X, Y), ctx, loss, lr=0.1, batch=0).arrays["first.kernel"])
    assert len(keys) == 6
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[3])
