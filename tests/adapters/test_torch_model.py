"""PyTorch modules as an app's model, their files, optimizers that are kept, mixed precision, and determinism."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import umbel
import umbel.strategies
from umbel.core.arrays import Arrays
from umbel.errors import AppError, RunFailed

torch = pytest.importorskip("torch", exc_type=ImportError)
nn = torch.nn

import umbel.torch as adapter  # noqa: E402

X = torch.tensor(np.random.default_rng(1).normal(size=(48, 4)).astype(np.float32))
Y = (X.sum(1) > 0).long()


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(self.embed(x))


class Typed(nn.Module):
    """One tensor of each dtype that travels."""

    def __init__(self):
        super().__init__()
        for name in ("float16", "bfloat16", "float32", "float64"):
            self.register_parameter(f"x_{name}", nn.Parameter(torch.randn(3, 2).to(getattr(torch, name))))
        for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"):
            self.register_buffer(f"x_{name}", torch.tensor([0, 1, 1]).to(getattr(torch, name)))


def federated(train, *, rounds=3, clients=2, make=net, config=None, workers=0, strategy=None, **options):
    client = umbel.Client()
    client.train(train)
    federation = umbel.Simulation(clients=clients, workers=workers)
    strategy = strategy or umbel.FedAvg(cohort=clients)
    model = adapter.model(make, **options)
    app = umbel.App(client, model=model, strategy=strategy, rounds=rounds, config=config, federation=federation)
    return umbel.run(app, folder=None, seed=1)


def adam(weights):
    return torch.optim.Adam(weights, lr=0.01)


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_every_dtype_comes_back_through_a_file(tmp_path, ending):
    model = adapter.model(Typed)
    first = model()
    assert sum(role == "parameter" for role in first.roles.values()) == 4
    model.save(first, path := tmp_path / f"model{ending}")
    if ending == ".pt":
        read = Typed()
        read.load_state_dict(torch.load(path))
        assert adapter.arrays(read) == first
    else:
        assert Arrays.from_file(path) == first == adapter.arrays(model.loaded(Arrays.from_file(path)))


def test_parts_of_a_model_travel_alone_or_not_at_all():
    def frozen():
        made = net()
        made[0].requires_grad_(False)
        return made

    part = adapter.model(frozen, trainable_only=True)
    assert {name.split(".")[0] for name in part()} == {"1", "3"}
    kept = part()
    assert np.array_equal(part.loaded(kept)[3].weight.detach(), kept["3.weight"])
    assert adapter.model(net, personal=["3.*"])().roles["3.bias"] == "personal"


def test_a_model_that_has_changed_is_an_error_that_says_so():
    model = adapter.model(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    with pytest.raises(AppError, match=r"holds '1\.weight', '1\.bias', '1\.running_mean', '1\.running_var' and 3 more"):
        model.loaded(adapter.arrays(net()))
    with pytest.raises(AppError, match=r"not written as '\.keras'") as caught:
        model.save(model(), Path("model.keras"))
    assert ".onnx, .pt, .safetensors" in caught.value.hint


def test_tied_weights_stay_tied_and_train_together():
    def train(model, data, ctx):
        tied = adapter.load_(Tied(), model)
        assert tied.out.weight is tied.embed.weight
        tokens = torch.arange(6)
        return adapter.fit(tied, (tokens, tokens), ctx, lr=0.5, batch=0, epochs=5)

    result = federated(train, make=Tied)
    assert np.array_equal(result.model["embed.weight"], result.model["out.weight"])
    scores = adapter.model(Tied).loaded(result.model)(torch.arange(6))
    assert (scores.argmax(1) == torch.arange(6)).all()


def test_loading_is_in_place_and_copies_no_more_than_the_model():
    big = nn.Sequential(nn.Linear(1024, 1024), nn.Linear(1024, 1024))
    size = sum(w.nbytes for w in big.parameters())
    tracemalloc.start()
    try:
        model = adapter.arrays(big)
        assert tracemalloc.get_traced_memory()[1] < 1.1 * size  # beside the module itself: twice, all told
        tracemalloc.reset_peak()
        before = [w.data_ptr() for w in big.parameters()]
        assert adapter.load_(big, model) is big
        assert tracemalloc.get_traced_memory()[1] < 1.1 * size
    finally:
        tracemalloc.stop()
    assert [w.data_ptr() for w in big.parameters()] == before


# --- What a client keeps


def test_tensors_and_state_dicts_are_kept_in_ctx_state():
    seen = []

    def train(model, data, ctx):
        made = adapter.load_(net(), model)
        if ctx.round > 1:
            seen.append(ctx.state["brain"].dtype)
            adapter.load_(made, ctx.state["net"])
            assert np.array_equal(ctx.state["weight"], made[0].weight.detach())
        update = adapter.fit(made, (X, Y), ctx, lr=0.1)
        ctx.state.update(net=made.state_dict(), weight=made[0].weight, brain=made[0].weight.bfloat16())
        return update

    federated(train)
    assert seen == [ml_dtypes.bfloat16] * 4

    def keeps_what_cannot_be(model, data, ctx):
        ctx.state["x"] = X.to_sparse()
        return umbel.Update(model)

    with pytest.raises(RunFailed, match=r"ctx\.state cannot be kept"):
        federated(keeps_what_cannot_be)


def test_an_optimizer_goes_on_where_it_was():
    def plain():
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

    alone = plain()
    optimizer = adam(alone.parameters())
    steps = []
    start = adapter.arrays(alone)

    def train(model, data, ctx):
        made = adapter.load_(plain(), model)
        update = adapter.fit(made, (X, Y), ctx, lr=0.01, batch=0, optimizer=adam, keep_optimizer=True)
        steps.append(int(ctx.state["optimizer"]["state"][0]["step"]))
        return update

    client = umbel.Client()
    client.train(train)
    app = umbel.App(
        client,
        model=start,
        strategy=umbel.FedAvg(cohort=1),
        rounds=3,
        federation=umbel.Simulation(clients=1, workers=0),
    )
    result = umbel.run(app, folder=None)
    assert steps == [1, 2, 3]
    for _ in range(3):  # the same loop without a federation
        optimizer.zero_grad()
        nn.functional.cross_entropy(alone(X), Y).backward()
        optimizer.step()
    for name, array in adapter.arrays(alone).items():
        np.testing.assert_allclose(result.model[name], array, atol=1e-6)


def test_what_is_kept_of_an_optimizer_are_moments_and_not_settings():
    made = net()
    first = torch.optim.SGD(made.parameters(), lr=0.1, momentum=0.9)
    made(X).sum().backward()
    first.step()
    from umbel.core import encoding
    from umbel.core.trees import keepable

    kept = encoding.decode(encoding.encode(keepable(first.state_dict())))
    second = torch.optim.SGD(made.parameters(), lr=0.5, momentum=0.9)
    assert adapter.load_optimizer_(second, None) is second
    assert adapter.load_optimizer_(second, kept).param_groups[0]["lr"] == 0.5
    for weight in made.parameters():
        assert torch.equal(first.state[weight]["momentum_buffer"], second.state[weight]["momentum_buffer"])
    with pytest.raises(AppError, match=r"groups of \[6\] parameters, and this one has \[2\]"):
        adapter.load_optimizer_(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1), kept)


# --- Mixed precision


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_computes_in_fewer_bits_and_keeps_weights_whole(precision):
    seen = set()

    def loss(made, batch):
        scores = made(batch[0])
        seen.add(scores.dtype)
        return nn.functional.cross_entropy(scores, batch[1])

    def train(model, data, ctx):
        return adapter.fit(adapter.load_(net(), model), (X, Y), ctx, loss=loss, lr=0.2, epochs=5, batch=8)

    whole, mixed = (federated(train, config={"precision": each}) for each in ("float32", precision))
    assert seen == {torch.float32, getattr(torch, precision)}
    assert {array.dtype.name for array in mixed.model.values()} == {"float32", "int64"}
    assert mixed.metrics["train.loss"] == pytest.approx(whole.metrics["train.loss"], abs=0.05)
    assert mixed.model != whole.model


def test_float16_skips_a_step_whose_gradient_is_infinite_and_goes_on():
    made = nn.Linear(4, 2)
    before = made.weight.detach().clone()
    factors = iter([1e38, 1.0, 1.0])
    moved = []

    def loss(net, batch):
        moved.append(not torch.equal(net.weight, before))
        return nn.functional.cross_entropy(net(batch[0]), batch[1]) * next(factors)

    def train(model, data, ctx):
        return adapter.fit(made, (X, Y), ctx, loss=loss, lr=0.1, batch=0, epochs=3, precision="float16")

    client = umbel.Client()
    client.train(train)
    model = adapter.arrays(made)
    federation = umbel.Simulation(clients=1, workers=0)
    app = umbel.App(client, model=model, strategy=umbel.FedAvg(cohort=1), rounds=1, federation=federation)
    umbel.run(app, folder=None)
    assert moved == [False, False, True]


def test_what_does_not_go_together_is_an_error():
    def train(model, data, ctx):
        return adapter.fit(adapter.load_(net(), model), (X, Y), ctx, lr=0.1, **ctx.config["with"])

    for options, strategy, words in (
        ({"precision": "int8"}, umbel.FedAvg(cohort=2), "does not know the precision 'int8'"),
        ({"precision": "float16"}, umbel.strategies.Ditto(cohort=2), "float16 needs gradients that are scaled"),
        ({"keep_optimizer": True}, umbel.strategies.Ditto(cohort=2), "optimizers of its own"),
    ):
        with pytest.raises(AppError, match=words):
            federated(train, config={"with": options}, strategy=strategy)


# --- Determinism, ONNX


@pytest.mark.slow
def test_deterministic_sets_what_torch_goes_by():
    code = (
        "import os, torch, umbel.torch as t; t.deterministic(); back = torch.backends\n"
        "print(torch.are_deterministic_algorithms_enabled(), back.cudnn.allow_tf32, back.cuda.matmul.allow_tf32)\n"
        "print(os.environ['CUBLAS_WORKSPACE_CONFIG']); t.deterministic(False)\n"
        "print(torch.are_deterministic_algorithms_enabled())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "False", ":4096:8", "False"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_computes_the_same_for_any_number_of_rows(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    model = adapter.model(net, example=torch.zeros(1, 4))
    trained = model()
    model.save(trained, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    found = ReferenceEvaluator(graph).run(None, {graph.graph.input[0].name: X.numpy()})[0]
    np.testing.assert_allclose(found, model.loaded(trained).eval()(X).detach(), atol=1e-5)


def test_onnx_says_what_it_needs(tmp_path, monkeypatch):
    plain = adapter.model(net)
    with pytest.raises(AppError, match="no example of its input"):
        plain.save(plain(), tmp_path / "model.onnx")
    monkeypatch.setattr("umbel.torch.native.find_spec", lambda name: None)
    model = adapter.model(net, example=torch.zeros(2, 4))
    with pytest.raises(AppError, match="packages that are not here") as caught:
        model.save(model(), tmp_path / "model.onnx")
    assert "pip install onnx" in caught.value.hint
