"""JAX: trees of arrays, of Flax and optax too, keys, training with corrections, and files."""

from __future__ import annotations

import numpy as np
import pytest

import umbel
import umbel.strategies
from umbel.core.arrays import Arrays
from umbel.errors import AppError

jax = pytest.importorskip("jax")
flax = pytest.importorskip("flax")
optax = pytest.importorskip("optax")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

import jax.numpy as jnp  # noqa: E402
from flax import linen, nnx, serialization  # noqa: E402

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


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x, train=True):
        return linen.Dense(2)(linen.BatchNorm(use_running_average=not train)(linen.Dense(8)(x)))


def federated(train, *, strategy=None, clients=2, rounds=3, workers=0, config=None):
    client = umbel.Client()
    client.train(train)
    federation = umbel.Simulation(clients=clients, workers=workers)
    strategy = strategy or umbel.FedAvg(cohort=clients)
    app = umbel.App(
        client, model=adapter.model(params), strategy=strategy, rounds=rounds, config=config, federation=federation
    )
    return umbel.run(app, folder=None, seed=1)


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert bool((a == b).all())


def test_trees_of_every_dtype_come_back():
    kinds = ("float16", "bfloat16", "float32", "bool", "int8", "int16", "int32", "uint8", "uint16", "uint32")
    tree = {
        **{kind: jnp.asarray([[0, 1], [1, 0]]).astype(kind) for kind in kinds},
        "none": None, "deep": [(jnp.zeros(()),), optax.adam(0.1).init(params())], "key": jax.random.key(3),
    }  # fmt: skip
    model = adapter.arrays(tree)
    assert model["bfloat16"].dtype.name == "bfloat16"
    assert {"deep.0.0", "deep.1.0.mu.layers.0.1", "deep.1.0.count"} <= model.keys()
    assert model.roles["int8"] == model.roles["key"] == "buffer"
    same(adapter.load_(jax.tree.map(lambda leaf: leaf, tree), Arrays.from_bytes(model.to_bytes())), tree)
    assert adapter.arrays(params(), personal="layers.*").roles["layers.0.0"] == "personal"
    with pytest.raises(AppError, match="matches no tensor of dict"):
        adapter.arrays(params(), personal=["head.*"])


def test_arrays_are_views_and_not_copies():
    big = {"w": jnp.ones((1000, 1000))}
    assert adapter.arrays(big)["w"].__array_interface__["data"][0] == big["w"].unsafe_buffer_pointer()


def test_collections_beside_params_are_buffers_and_modules_are_loaded_in_place():
    variables = Linen().init(jax.random.key(0), jnp.zeros((1, 4)))
    roles = adapter.arrays(variables).roles
    assert {n: r for n, r in roles.items() if r == "buffer"}.keys() == {
        "batch_stats.BatchNorm_0.mean", "batch_stats.BatchNorm_0.var",
    }  # fmt: skip
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
    optimizer = nnx.Optimizer(net, optax.adam(0.1), wrt=nnx.Param)
    kept = adapter.arrays(optimizer)
    assert adapter.arrays(adapter.load_(nnx.Optimizer(Net(), optax.adam(0.1), wrt=nnx.Param), kept)) == kept


def test_a_tree_that_has_changed_is_an_error_that_says_so():
    model = adapter.arrays(params())
    with pytest.raises(AppError, match=r"holds 'layers\.0\.0', 'layers\.0\.1', which dict does not have"):
        adapter.load_({"scale": jnp.ones(())}, model)
    with pytest.raises(AppError, match="lacks 'extra'"):
        adapter.load_({**params(), "extra": jnp.ones(1)}, model)
    with pytest.raises(AppError, match=r"shape \[\], the module's tensor \[3\]"):
        adapter.load_({**params(), "scale": jnp.ones(3)}, model)
    with pytest.raises(AppError, match="dtype float32, the module's tensor int32"):
        adapter.load_({**params(), "scale": jnp.ones((), jnp.int32)}, model)
    assert adapter.load_({**params(), "extra": jnp.ones(1)}, model, strict=False)["extra"].tolist() == [1]


@pytest.mark.parametrize("make", [params, Net, lambda: Linen().init(jax.random.key(0), jnp.zeros((1, 4)))])
def test_files(tmp_path, make):
    model = adapter.model(make)
    trained = model().map(lambda name, array: array * 2)
    model.save(trained, tmp_path / "model.safetensors")
    assert Arrays.from_file(tmp_path / "model.safetensors") == trained
    model.save(trained, tmp_path / "model.msgpack")
    data = (tmp_path / "model.msgpack").read_bytes()
    if make is Net:
        assert np.array_equal(serialization.msgpack_restore(data)["rest"]["0"]["kernel"], trained["rest.0.kernel"])
    else:
        assert adapter.arrays(serialization.from_bytes(make(), data)) == trained


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


def test_an_optimizer_goes_on_where_it_was_and_keys_are_the_tasks_own():
    steps, keys = [], set()

    def train(model, data, ctx):
        update = adapter.fit(
            adapter.load_(params(), model),
            (X, Y),
            ctx,
            loss,
            lr=0.01,
            batch=0,
            optimizer=optax.adam,
            keep_optimizer=True,
        )
        steps.append(int(ctx.state["optimizer"]["0.count"]))
        keys.update(tuple(jax.random.key_data(adapter.key(ctx, at)).tolist()) for at in range(3))
        return update

    found = federated(train, clients=1)
    assert steps == [1, 2, 3]
    assert len(keys) == 9
    hand, optimizer = params(), optax.adam(0.01)
    state = optimizer.init(hand)
    for _ in range(3):
        change, state = optimizer.update(jax.grad(loss)(hand, (X, Y), None), state, hand)
        hand = optax.apply_updates(hand, change)
    for name, array in adapter.arrays(hand).items():
        np.testing.assert_allclose(found.model[name], array, atol=1e-6)


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
    with pytest.raises(AppError, match="fit trains a tree of parameters"):
        federated(lambda model, data, ctx: adapter.fit(Net(), (X, Y), ctx, loss, lr=0.1))


def test_mixed_precision_and_workers_give_the_same_bits_again():
    def mixed(params, batch, key):
        small = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        return loss(small, batch, key).astype(jnp.float32)

    def train(model, data, ctx):
        return adapter.fit(adapter.load_(params(), model), (X, Y), ctx, mixed, lr=0.1, batch=16, optimizer=optax.adam)

    one, two = federated(train), federated(train, workers=1)
    assert one.model == two.model
    assert one.metrics["train.loss"] < 0.69
