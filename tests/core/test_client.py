"""Clients: registering handlers, the context that they get, and corrections of the local loss."""

from __future__ import annotations

import functools

import ml_dtypes
import numpy as np
import pytest

from umbel.core.arrays import Arrays
from umbel.core.client import Client, Context, LocalCorrection
from umbel.core.correction import Correction
from umbel.core.randomness import Key
from umbel.errors import AppError
from umbel.privacy.release import NoisyRelease


def handle(model, data, ctx):
    return None


def load(source):
    return source


class Handler:
    def __call__(self, model, data, ctx):
        return None


class AsyncHandler:
    async def __call__(self, model, data, ctx):
        return None


def context(**changes):
    key = Key.from_seed(1).derive("task", 3)
    settings = {"client": 3, "round": 2, "kind": "train", "config": {"lr": 0.1}, "key": key, "inbox": Arrays()}
    return Context(**{**settings, "state": {}, **changes})


def test_decorators_register_and_give_the_function_back():
    client = Client()
    assert client.data(load) is load
    assert client.train(handle) is handle
    assert client.evaluate(handle) is handle
    assert client.query("statistics")(handle) is handle
    assert client.load is load
    assert client.handlers == {"train": handle, "evaluate": handle, "query:statistics": handle}


@pytest.mark.parametrize(
    "handler",
    [
        handle,
        lambda model, data, ctx, more=1: None,
        lambda *anything: None,
        functools.partial(lambda extra, model, data, ctx: None, 1),
        Handler(),
        Handler().__call__,
    ],
)
def test_whatever_can_be_called_with_model_data_and_ctx_is_a_handler(handler):
    client = Client()
    assert client.train(handler) is handler


@pytest.mark.parametrize(
    "handler",
    [
        lambda: None,
        lambda model, data: None,
        lambda model, data, ctx, more: None,
        lambda *, model, data, ctx: None,
        functools.partial(handle, 1),
    ],
)
@pytest.mark.parametrize("kind", ["train", "evaluate", "query"])
def test_a_wrong_signature_is_an_error_at_once_that_says_what_to_write(kind, handler):
    client = Client()
    decorate = client.query("q") if kind == "query" else getattr(client, kind)
    with pytest.raises(AppError, match=rf"the {kind}.* handler .*cannot be called with \(model, data, ctx\)") as caught:
        decorate(handler)
    assert "def " in (caught.value.hint or "")
    assert not client.handlers


def test_a_data_handler_takes_the_source():
    with pytest.raises(AppError, match=r"the data handler .*cannot be called with \(source\)"):
        Client().data(lambda: None)


@pytest.mark.parametrize("handler", [3, None, "train", {}])
def test_what_cannot_be_called_is_an_error(handler):
    for decorate in (Client().data, Client().train, Client().evaluate, Client().query("q")):
        with pytest.raises(AppError, match="not a function"):
            decorate(handler)


def test_async_handlers_are_errors():
    async def train(model, data, ctx):
        return None

    async def data(source):
        return None

    for decorate, handler in ((Client().train, train), (Client().data, data), (Client().evaluate, AsyncHandler())):
        with pytest.raises(AppError, match="async"):
            decorate(handler)


def test_two_handlers_for_one_thing_are_an_error_and_the_first_stays():
    client = Client()
    for decorate, name in (
        (client.train, "train"),
        (client.evaluate, "evaluate"),
        (client.query("a"), "query:a"),
    ):
        decorate(handle)
        with pytest.raises(AppError, match=f"two handlers for {name}"):
            decorate(lambda model, data, ctx: None)
        assert client.handlers[name] is handle
    client.query("b")(handle)
    client.data(load)
    with pytest.raises(AppError, match="two data handlers"):
        client.data(lambda source: None)
    assert client.load is load


@pytest.mark.parametrize("name", [handle, "", None, 3])
def test_a_query_needs_a_name(name):
    with pytest.raises(AppError, match="needs a name"):
        Client().query(name)


def test_the_generator_of_a_task_depends_on_its_key_alone_and_goes_on_between_uses():
    first, again, other = context(), context(round=9), context(key=Key.from_seed(2))
    assert first.rng is first.rng
    drawn = first.rng.normal(size=4)
    assert (drawn == again.rng.normal(size=4)).all()
    assert (drawn != other.rng.normal(size=4)).all()
    assert (first.rng.normal(size=4) != drawn).all()


def test_step_shows_progress_where_somebody_watches():
    context().step()
    steps = []
    ctx = context(on_step=lambda: steps.append(1))
    ctx.step()
    ctx.step()
    assert len(steps) == 2


def test_a_context_has_no_room_for_misspelt_names():
    with pytest.raises(AttributeError):
        context().sate = {}


ANCHOR = Arrays(
    {
        "w": np.array([1.0, 2.0], np.float32),
        "h": np.array([1.0], ml_dtypes.bfloat16),
        "d": np.array([1.0]),
        "mean": np.array([5.0], np.float32),
        "mine": np.array([5.0], np.float32),
    },
    {"mean": "buffer", "mine": "personal"},
)


def test_a_correction_is_taken_by_asking_for_it():
    correction = Correction(proximal=0.5)
    local = LocalCorrection(correction, ANCHOR)
    assert not local.taken
    assert local.take() is correction
    assert local.taken


def test_the_gradient_of_a_correction_covers_parameters_in_wide_dtypes():
    linear = Arrays({"w": np.array([10.0, 20.0], np.float32)})
    local = LocalCorrection(Correction(0.5, linear), ANCHOR)
    gradient = local.gradient({**{n: a + a.dtype.type(2) for n, a in ANCHOR.items()}, "unknown": np.ones(1)})
    assert local.taken
    assert {n: (g.dtype.name, g.tolist()) for n, g in gradient.items()} == {
        "w": ("float32", [11.0, 21.0]),
        "h": ("float32", [1.0]),
        "d": ("float64", [1.0]),
    }
    assert list(local.gradient({"d": np.zeros(1)})) == ["d"]


def test_the_gradient_is_that_of_the_stated_loss():
    rng = np.random.default_rng(0)
    anchor, weights, linear = (Arrays({"w": rng.normal(size=3)}) for _ in range(3))

    def loss(w):
        return 0.3 / 2 * ((w - anchor["w"]) ** 2).sum() + (linear["w"] * w).sum()

    found = LocalCorrection(Correction(0.3, linear), anchor).gradient(weights)["w"]
    for i, step in enumerate(np.eye(3) * 1e-5):
        numeric = (loss(weights["w"] + step) - loss(weights["w"] - step)) / 2e-5
        assert abs(found[i] - numeric) < 1e-8


def release(**changes):
    said = {"unit": "example", "neighbours": "add or remove one", "sampling": {"kind": "poisson", "rate": 0.1}}
    return NoisyRelease(**{"mechanism": "gaussian", "noise": 1.0, "norm": 0.5, "denominator": 8.0, **said, **changes})


def test_a_handler_tells_what_its_own_noise_costs():
    ctx = context()
    assert ctx.accounted == []
    for times in (3, 4):
        ctx.account(release(), times)
    ctx.account(release(noise=2.0).plain())
    assert ctx.accounted == [(release().plain(), 7), (release(noise=2.0).plain(), 1)]
    with pytest.raises(AppError, match="unit 'example', not 'client'"):
        ctx.account(release(unit="client"))
    for times in (0, 1.0, True):
        with pytest.raises(AppError, match="whole number of times"):
            ctx.account(release(), times)
