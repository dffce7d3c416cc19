"""PyTorch modules as an app's model, their files, optimizers that are kept, mixed precision, and determinism."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import umbel
import umbel.strategies
from umbel.errors import AppError, RunFailed

torch = pytest.importorskip("torch", exc_type=ImportError)
nn = torch.nn

import umbel.torch as adapter  # noqa: E402

X = torch.tensor(np.random.default_rng(1).normal(size=(48, 4)).astype(np.float32))
Y = (X.sum(1) > 0).long()


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def federated(train, *, rounds=3, clients=2, make=net, config=None, workers=0, strategy=None, **options):
    client = umbel.Client()
    client.train(train)
    federation = umbel.Simulation(clients=clients, workers=workers)
    strategy = strategy or umbel.FedAvg(cohort=clients)
    model = adapter.model(make, **options)
    app = umbel.App(client, model=model, strategy=strategy, rounds=rounds, config=config, federation=federation)
    return umbel.run(app, folder=None, seed=1)


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


def test_a_compiled_module_has_the_names_of_what_was_compiled():
    torch.manual_seed(0)
    plain, seen = net(), []
    compiled = torch.compile(plain, backend="eager")
    model = adapter.arrays(plain)
    assert adapter.arrays(compiled) == adapter.model(lambda: compiled)() == model
    assert adapter.load_(compiled, model.map(lambda name, array: array + 1)) is compiled
    assert torch.equal(plain[0].bias, torch.tensor(model["0.bias"] + 1))

    def train(model, data, ctx):
        made = torch.compile(adapter.load_(net(), model), backend="eager")
        update = adapter.fit(made, (X, Y), ctx, lr=0.1)
        seen.append(np.abs(update.arrays["3.weight"] - model["3.weight"]).sum())
        return update

    adapter.load_(compiled, model)  # which a long step would lead far away
    start = umbel.App(umbel.Client(), model=adapter.model(lambda: plain), strategy=umbel.FedAvg()).initial_model()
    for strategy in (umbel.FedAvg(cohort=1), umbel.FedProx(cohort=1, mu=4.0)):
        client = umbel.Client()
        client.train(train)
        app = umbel.App(client, model=start, strategy=strategy, rounds=1)
        umbel.run(app, on=umbel.Simulation(clients=1, workers=0), folder=None)
    assert seen[1] < 0.9 * seen[0]


def test_tensors_that_cannot_be_written_to_are_named_as_such():
    expanded = nn.Module()
    expanded.register_buffer("x", torch.ones(3).expand(2, 3))
    with pytest.raises(AppError, match=r"Module cannot load this model: .*single memory location"):
        adapter.load_(expanded, adapter.arrays(expanded))
    with torch.inference_mode():
        inferring = nn.Linear(2, 2)
    with pytest.raises(AppError, match=r"Linear cannot load this model: .*inference tensor"):
        adapter.load_(inferring, adapter.arrays(inferring))


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


def test_mixed_precision_computes_in_fewer_bits_and_scales_gradients():
    seen = set()

    def loss(made, batch):
        scores = made(batch[0])
        seen.add(scores.dtype)
        return nn.functional.cross_entropy(scores, batch[1])

    def train(model, data, ctx):
        return adapter.fit(adapter.load_(net(), model), (X, Y), ctx, loss=loss, lr=0.2, epochs=5, batch=8)

    whole, mixed = (federated(train, config={"precision": each}) for each in ("float32", "float16"))
    assert seen == {torch.float32, torch.float16}
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
