"""DP-SGD on a client, by opacus and by JAX: beside a loop by hand, and what one example more can change."""

from __future__ import annotations

import math
from itertools import pairwise

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import umbel
from umbel.core.client import Context, LocalCorrection
from umbel.core.correction import Correction
from umbel.core.randomness import Key, normals
from umbel.entropy import SYSTEM
from umbel.errors import AppError, UnusedCorrection
from umbel.privacy import ExamplePrivacy, example_privacy_spent
from umbel.privacy.audit import gaussian_epsilon, many_run_bounds

torch = pytest.importorskip("torch", exc_type=ImportError)
pytest.importorskip("opacus")
jax = pytest.importorskip("jax")
pytestmark = [pytest.mark.slow]

import jax.numpy as jnp  # noqa: E402

import umbel.jax  # noqa: E402
import umbel.torch  # noqa: E402

nn = torch.nn
RNG = np.random.default_rng(1)
X = RNG.normal(size=(40, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
HIDDEN = ExamplePrivacy(norm=0.7, noise=0.9, examples=50)
SILENT = ExamplePrivacy(norm=0.7, noise=1e-9, examples=50)
"""With next to no noise."""


@pytest.fixture
def pinned(monkeypatch):
    """Sets the words of the operating system to those of a key, from its start."""
    return lambda: monkeypatch.setattr(SYSTEM, "words", Key.from_seed(5).draws().words)


def context(correction=None, anchor=None):
    offered = None if correction is None else LocalCorrection(correction, anchor)
    return Context(
        client=0, round=1, kind="train", config={"lr": 0.5, "batch": 10}, key=Key.from_seed(1), inbox=umbel.Arrays(),
        state={}, correction=offered,
    )  # fmt: skip


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.Tanh(), nn.Linear(8, 2))


def by_hand(net, x, y, privacy, *, batch=10, epochs=1, lr=0.5, momentum=0.0, mu=0.0):
    """A plain loop over examples, with the words that `fit` takes in the same order."""
    words, start = SYSTEM.words, [w.detach().clone() for w in net.parameters()]
    words(1)
    speed = [torch.zeros_like(w) for w in start]
    for _ in range(math.ceil(epochs * privacy.examples / batch)):
        drawn = [i for i, word in enumerate(words(len(x)).tolist()) if word / 2**64 < batch / privacy.examples]
        sums = [torch.zeros_like(w) for w in start]
        for i in drawn:
            net.zero_grad()
            nn.functional.cross_entropy(net(x[i : i + 1]), y[i : i + 1]).backward()
            slopes = [w.grad for w in net.parameters()]
            norm = torch.cat([s.flatten() for s in slopes]).double().norm()
            for total, slope in zip(sums, slopes, strict=True):
                total += slope * min(1.0, privacy.norm * (1 - 1e-4) / norm)
        for w, total, before, v in zip(net.parameters(), sums, start, speed, strict=True):
            noise = privacy.noise * privacy.norm * normals(words(w.numel())).reshape(w.shape)
            v.mul_(momentum).add_((total + torch.tensor(noise, dtype=w.dtype)) / batch + mu * (w.detach() - before))
            w.data -= lr * v
    return umbel.torch.arrays(net)


def close(found, wanted, **tolerance):
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, **{"rtol": 1e-4, "atol": 1e-5, **tolerance})


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("mu", [0.0, 0.3])
def test_it_is_the_loop_by_hand(pinned, momentum, mu):
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    pinned()
    wanted = by_hand(mlp(), x, y, HIDDEN, epochs=2, momentum=momentum, mu=mu)
    pinned()
    ctx = context(Correction(proximal=mu), umbel.torch.arrays(mlp())) if mu else context()
    make = (lambda weights: torch.optim.SGD(weights, lr=0.5, momentum=momentum)) if momentum else None
    update = umbel.torch.fit(mlp(), (X, Y), ctx, epochs=2, optimizer=make, privacy=HIDDEN)
    close(update.arrays, wanted)
    assert update.weight == 50
    assert set(update.metrics) == {"steps", "lr"}
    assert update.metrics["steps"] == 10


def test_more_examples_than_expected_are_worked_on_in_portions(pinned):
    privacy = ExamplePrivacy(norm=0.7, noise=0.9, examples=5)  # of 40, all of which are drawn
    assert len(privacy.drawn(40, 5)) == 4
    pinned()
    wanted = by_hand(mlp(), torch.from_numpy(X), torch.from_numpy(Y), privacy, batch=5, epochs=3)
    pinned()
    close(umbel.torch.fit(mlp(), (X, Y), context(), batch=5, epochs=3, privacy=privacy).arrays, wanted)
    few = ExamplePrivacy(norm=0.7, noise=1e-9, examples=5)
    close(torch_linear(5, 3, few), jax_linear(5, 3, few))


def test_data_sets_and_arrays_are_drawn_from_alike(pinned):
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(X)

        def __getitem__(self, i):
            return {"x": X[i], "y": Y[i]}

    def loss(net, batch):
        return nn.functional.cross_entropy(net(batch["x"]), batch["y"])

    pinned()
    wanted = umbel.torch.fit(mlp(), (X, Y), context(), privacy=HIDDEN).arrays
    pinned()
    close(umbel.torch.fit(mlp(), Rows(), context(), loss=loss, privacy=HIDDEN).arrays, wanted)


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_opacus_optimizer_clips_alike():
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    net, x, y = mlp(), torch.from_numpy(X), torch.from_numpy(Y)
    module = GradSampleModule(mlp())
    module._module.load_state_dict(net.state_dict())
    optimizer = DPOptimizer(
        torch.optim.SGD(module.parameters(), lr=0.5), noise_multiplier=0, max_grad_norm=0.7, expected_batch_size=50
    )
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    found = umbel.torch.fit(net, (X, Y), context(), batch=0, epochs=3, privacy=SILENT)
    close(found.arrays, umbel.torch.arrays(module._module), rtol=1e-3, atol=1e-4)


# What one example more can change

VALUES = st.floats(width=32, allow_nan=True, allow_infinity=True)
ROWS = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.just(6)), elements=VALUES | st.floats(-2, 2, width=32))


def moved(fit, rows, norm):
    """How far a step of rate 1 has moved, before noise, and times what it is divided by."""
    update = fit(rows, np.zeros(len(rows), np.int64), ExamplePrivacy(norm=norm, noise=1e-12, examples=4))
    return np.concatenate([(update[name] - at).ravel() for name, at in START.items()]).astype(np.float64) * 4


def plain():
    torch.manual_seed(0)
    return nn.Linear(6, 3).double()


START = umbel.torch.arrays(plain())


def by_torch(x, y, privacy):
    return umbel.torch.fit(plain(), (x.astype(np.float64), y), context(), lr=1.0, batch=0, privacy=privacy).arrays


def by_jax(x, y, privacy):
    tree = {name: jnp.asarray(array, jnp.float32) for name, array in START.items()}
    with np.errstate(all="ignore"):
        return umbel.jax.fit(tree, (x, y), context(), cross_entropy, lr=1.0, batch=0, privacy=privacy).arrays


def cross_entropy(tree, batch, key):
    scores = batch[0] @ tree["weight"].T + tree["bias"]
    return -jax.nn.log_softmax(scores)[jnp.arange(len(batch[1])), batch[1]].mean()


@pytest.mark.parametrize("fit", [by_torch, by_jax])
@settings(max_examples=60)
@given(rows=ROWS, norm=st.sampled_from([0.01, 1.0, 30.0]))
def test_an_example_more_moves_a_step_by_the_bound_at_most(fit, rows, norm):
    with_, without = moved(fit, rows, norm), moved(fit, rows[:-1], norm)
    assert np.isfinite(with_).all()
    rounding = 0 if fit is by_torch else 1e-6  # of weights in float32, times what a step is divided by
    assert np.linalg.norm(with_ - without) <= norm + 4 * rounding
    x = rows[-1].astype(np.float64)
    if np.abs(x).max() < 100:  # and not NaN
        scores = START["weight"] @ x + START["bias"]
        chances = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        slope = np.concatenate([np.outer(chances - [1, 0, 0], x).ravel(), chances - [1, 0, 0]])
        clipped = slope * min(1.0, norm / np.linalg.norm(slope))
        np.testing.assert_allclose(without - with_, clipped, rtol=1e-3, atol=4e-3 if fit is by_jax else 1e-6)


@pytest.mark.parametrize("fit", [by_torch, by_jax])
def test_nobody_s_step_is_noise_of_the_stated_size(fit, pinned):
    pinned()
    privacy, steps = ExamplePrivacy(norm=2.0, noise=1.5, examples=4), []
    for _ in range(100):
        update = fit(np.zeros((0, 6), np.float32), np.zeros(0, np.int64), privacy)
        steps.append(np.concatenate([(update[n] - at).ravel() for n, at in START.items()]))
    found = np.concatenate(steps)
    assert abs(found.mean()) < 4 * 0.75 / math.sqrt(found.size)
    assert abs(found.var() / 0.75**2 - 1) < 4 * math.sqrt(2 / found.size)  # one in 15,000 of other keys would fail
    together = np.cov(np.array(steps).T) / 0.75**2
    assert np.abs(together - np.eye(len(together))).max() < 0.6


def test_torch_and_jax_come_to_the_same():
    for batch, epochs in ((0, 4), (50, 4)):
        found = []
        for make in (torch_linear, jax_linear):
            found.append(make(batch, epochs))
        close(found[0], found[1])


def torch_linear(batch, epochs, privacy=SILENT):
    return umbel.torch.fit(plain().float(), (X, Y), context(), batch=batch, epochs=epochs, privacy=privacy).arrays


def jax_linear(batch, epochs, privacy=SILENT):
    tree = {name: jnp.asarray(array, jnp.float32) for name, array in START.items()}
    return umbel.jax.fit(tree, (X, Y), context(), cross_entropy, batch=batch, epochs=epochs, privacy=privacy).arrays


def test_jax_draws_what_torch_draws(pinned):
    tree = {"w": jnp.zeros((2, 6))}

    def loss(tree, batch, key):
        return cross_entropy({"weight": tree["w"], "bias": 0.0}, batch, key)

    net = nn.Linear(6, 2, bias=False)
    nn.init.zeros_(net.weight)
    pinned()
    wanted = by_hand_of_jax(net)
    pinned()
    update = umbel.jax.fit(tree, (X, Y), context(), loss, epochs=2, privacy=HIDDEN)
    np.testing.assert_allclose(update.arrays["w"], wanted, rtol=1e-4, atol=1e-5)
    assert update.weight == 50
    assert set(update.metrics) == {"steps", "lr"}


def by_hand_of_jax(net):
    """The loop by hand, of which each portion takes a word for the keys of examples."""
    words, weights = SYSTEM.words, net.weight
    for _ in range(10):
        drawn = np.flatnonzero(words(len(X)) / 2.0**64 < 0.2)
        words(1)
        total = torch.zeros_like(weights)
        for i in drawn:
            net.zero_grad()
            nn.functional.cross_entropy(net(torch.from_numpy(X[i : i + 1])), torch.from_numpy(Y[i : i + 1])).backward()
            total += weights.grad * min(1.0, HIDDEN.limit / float(weights.grad.norm()))
        noise = 0.9 * 0.7 * normals(words(12)).reshape(2, 6)
        weights.data -= 0.5 * (total + torch.tensor(noise, dtype=torch.float32)) / 10
    return weights.detach().numpy()


def test_jax_compiles_once_whatever_is_drawn():
    seen = []

    def loss(tree, batch, key):
        seen.append(batch[0].shape)
        return cross_entropy(tree, batch, key)

    tree = {name: np.asarray(array, np.float32) for name, array in START.items()}
    for rows in (3, 20, 40):
        umbel.jax.fit(tree, (X[:rows], Y[:rows]), context(), loss, epochs=3, privacy=HIDDEN)
    assert seen == [(1, 6)]


# Randomness


def test_noise_dice_and_dropout_are_not_the_run_s():
    def fitted(privacy, batch):
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 2))
        update = umbel.torch.fit(net, (X, Y), context(), batch=batch, privacy=privacy)
        return update.arrays["0.weight"], torch.rand(4)

    (one, after), (two, again) = fitted(HIDDEN, 10), fitted(HIDDEN, 10)
    assert not np.array_equal(one, two)
    assert torch.equal(after, again)  # nothing of it shows in what is drawn later
    for batch in (10, 0):  # by dice and dropout; by dropout alone
        (one, _), (two, _) = fitted(SILENT, batch), fitted(SILENT, batch)
        assert np.abs(one - two).max() > 1e-4


def test_modules_are_left_as_they_were():
    net = mlp()
    names = {name for w in net.parameters() for name in vars(w)}
    umbel.torch.fit(net, (X, Y), context(), privacy=HIDDEN)
    assert {name for w in net.parameters() for name in vars(w)} == names
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in net.modules())
    umbel.torch.fit(net, (X, Y), context())


# Put to the test

SURE = 1 - 2e-5
"""Of all keys of noise at most so many would have an audit refute what is right."""


class Halved(ExamplePrivacy):
    def drawn_noise(self, size, own=SYSTEM):
        return super().drawn_noise(size, own) / 2


def audited(privacy, batch, runs=1600):
    """Bounds of epsilon at two deltas and what is claimed there, and of mu; from two steps with an example whose
    gradient is a thousand times the bound, whatever the weights are, beside ones without any, and from two without it.
    """
    direction = np.full((1, 6), 1000 / math.sqrt(6), np.float32)

    def score(rows):
        ctx, net = context(), nn.Linear(6, 1, bias=False)
        start = net.weight.detach().numpy().copy()
        update = umbel.torch.fit(
            net, (rows, np.zeros(len(rows), np.float32)), ctx, loss=lambda net, b: net(b[0]).mean(), lr=1.0,
            batch=batch, epochs=batch * 2 // privacy.examples, privacy=privacy,
        )  # fmt: skip
        return float((start - update.arrays["weight"])[0] @ direction[0]), ctx.state

    others = np.zeros((privacy.examples - 1, 6), np.float32)
    present = np.array([[score(np.concatenate([others, direction]))[0]] for _ in range(runs // 2)])
    absent = np.array([[score(others)[0]] for _ in range(runs // 2)])
    state = score(others)[1]
    claims = {delta: example_privacy_spent(state, delta).epsilon for delta in (1e-5, 0.1)}
    found, mu, _ = many_run_bounds(present, absent, claims, SURE, batch == privacy.examples)
    return found, claims, mu


@pytest.mark.parametrize(("batch", "noise"), [(4, 1.13), (2, 0.6)])
def test_an_example_is_found_again_no_better_than_is_claimed(pinned, batch, noise):
    pytest.importorskip("dp_accounting")
    pinned()
    found, claims, mu = audited(ExamplePrivacy(norm=0.7, noise=noise, examples=4), batch)
    assert all(found[delta] < claims[delta] for delta in claims)
    assert found[1e-5] > 0, "what is heard of it is more than nothing"
    assert batch < 4 or 0.4 < mu < math.sqrt(2) / noise


def test_half_the_noise_is_found(pinned):
    pytest.importorskip("dp_accounting")
    pinned()
    _, claims, mu = audited(Halved(norm=0.7, noise=1.13, examples=4), 4)
    assert mu > math.sqrt(2) / 1.13
    assert gaussian_epsilon(mu, 1e-5) > claims[1e-5]


# In a run


def test_clients_of_a_run_state_what_they_have_spent():
    pytest.importorskip("dp_accounting")
    client, seen = umbel.Client(), []

    @client.train
    def train(model, data, ctx):
        update = umbel.torch.fit(umbel.torch.load_(mlp(), model), (X, Y), ctx, privacy=HIDDEN)
        seen.append(example_privacy_spent(ctx.state, 1e-3, "rdp").epsilon)
        return update

    app = umbel.App(
        client, model=umbel.torch.model(mlp), strategy=umbel.strategies.Scaffold(cohort=2), rounds=3,
        config={"lr": 0.1, "batch": 5},
    )  # fmt: skip
    result = umbel.run(app, on=umbel.Simulation(2, workers=0), folder=None)
    assert "train.loss" not in result.metrics
    rounds = seen[::2]
    assert rounds == seen[1::2]
    assert all(before < after < 2 * before for before, after in pairwise(rounds))


# What cannot be


def refused(net, match, error=AppError, data=(X, Y), ctx=None, **settings):
    with pytest.raises(error, match=match):
        umbel.torch.fit(net, data, ctx or context(), privacy=HIDDEN, **settings)


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (lambda: nn.BatchNorm1d(6), r"the layer '0' \(BatchNorm1d\) mixes"),
        (lambda: nn.BatchNorm1d(6, affine=False, track_running_stats=False), "BatchNorm1d"),
        (lambda: nn.Unflatten(1, (2, 3)), None),
        (lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2, track_running_stats=True)), "'0.1'"),
        (lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), Last(nn.LSTM(3, 3, batch_first=True))), "DPLSTM"),
        (lambda: nn.Linear(6, 6).to(torch.bfloat16), "0.weight.*few bits"),
        (lambda: Buffered(), "changed in training"),
        (lambda: nn.Sequential(nn.Unflatten(1, (6, 1)), Tokens()), "number of rows"),
        (lambda: Bare(), "do not add up"),
        (lambda: Centred(), "is not the mean"),
    ],
)
def test_layers_in_which_an_example_is_not_by_itself_are_refused(layer, match):
    net = nn.Sequential(layer(), nn.Flatten(), nn.LazyLinear(2))
    if match is None:
        net(torch.from_numpy(X))
        umbel.torch.fit(net, (X, Y), context(), privacy=HIDDEN)
        return
    if "bits" not in match:
        net(torch.from_numpy(X))
    else:
        net[2] = nn.Linear(6, 2)
    refused(net, match)


class Last(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, x):
        self.seen += x.detach().sum(0)
        return x


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.each = nn.Linear(1, 2)

    def forward(self, x):
        return self.each(x.flatten(0, 1)).view(len(x), -1)


class Bare(nn.Module):
    """A layer that goes round another one's own forward."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        return x @ self.inner.weight


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


@pytest.mark.parametrize("frozen", [False, True])
def test_layers_that_change_weights_where_they_are_called_are_refused(frozen):
    words = nn.Embedding(20, 8, max_norm=0.1)  # of words that are there, and of no others
    words.weight.requires_grad_(not frozen)
    refused(nn.Sequential(words, nn.Flatten(), nn.Linear(16, 2)), "changes its weights", data=(WORDS, Y))
    refused(nn.Sequential(words, nn.Flatten(), nn.Linear(16, 2)), "changes its weights", data=(WORDS[:1], Y[:1]))
    umbel.torch.fit(
        nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(16, 2)), (WORDS, Y), context(), privacy=HIDDEN
    )


WORDS = RNG.integers(0, 20, (40, 2))


def test_losses_in_which_an_example_changes_what_others_count_are_refused():
    weights = torch.tensor([1.0, 9.0])
    refused(mlp(), "is not the mean", loss=lambda net, b: nn.functional.cross_entropy(net(b[0]), b[1], weight=weights))
    refused(mlp(), "is not the mean", loss=lambda net, b: net(b[0]).square().sum())
    ignored = np.where(np.arange(len(Y)) < 20, Y, -100)  # from the middle on, as where data are sorted
    refused(mlp(), "is not the mean", data=(X, ignored))


def penalised(net, batch):
    return nn.functional.cross_entropy(net(batch[0]), batch[1]) + sum(w.square().sum() for w in net.parameters())


def test_what_else_does_not_go_together_is_refused():
    refused(mlp(), "do not add up", loss=penalised)
    refused(mlp(), "DataLoader draws its own", data=torch.utils.data.DataLoader([(X[0], 1)]))
    refused(mlp(), "float32", precision="bfloat16")
    refused(mlp(), "cannot be drawn", batch=51)
    refused(torch.compile(mlp(), backend="eager"), "compiled")
    anchor = umbel.torch.arrays(mlp())
    for more in (Correction(procedure="ditto"), Correction(control=True), Correction(reports=("initial_loss",))):
        refused(mlp(), "noised gradients", UnusedCorrection, ctx=context(more, anchor))


def test_jax_trains_parameters_alone():
    tree = {"params": {"weight": np.zeros((2, 6), np.float32)}, "batch_stats": {"mean": np.zeros(6, np.float32)}}

    def loss(tree, batch, key):
        return cross_entropy({**tree["params"], "bias": 0.0}, batch, key), {"batch_stats": tree["batch_stats"]}

    with pytest.raises(AppError, match=r"batch_stats.*|mean"):
        umbel.jax.fit(tree, (X, Y), context(), loss, privacy=HIDDEN)


def test_jax_draws_dropout_anew_for_each_example_and_step():
    nnx = pytest.importorskip("flax.nnx")
    seen = []

    class Net(nnx.Module):
        def __init__(self):
            self.last, self.drop = nnx.Linear(6, 2, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def loss(net, batch, key):
        kept = net.drop(jnp.ones((1, 32)))
        jax.debug.callback(lambda mask: seen.append(mask.tobytes()), kept)
        scores = net.last(batch[0])
        return -jax.nn.log_softmax(scores)[jnp.arange(len(batch[1])), batch[1]].mean()

    drawn = []
    for _ in range(2):  # the same task again
        umbel.jax.fit(Net(), (X, Y), context(), loss, privacy=HIDDEN)
        jax.effects_barrier()
        drawn.append({*seen})
        assert len(drawn[-1]) == len(seen) >= 5 * 10
        seen.clear()
    assert not drawn[0] & drawn[1]
