"""Secure sums with noise in them: how long values may be, what noise there is, and what is said of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import some

import umbel
from umbel.core.answer import Answer
from umbel.core.arrays import Arrays
from umbel.core.randomness import Key
from umbel.core.transform import accounts, as_arrays, chain, transform_from_spec
from umbel.core.update import Receipt, Update
from umbel.entropy import Entropy
from umbel.errors import RunFailed, SettingError, StrategyError, UpdateRejected
from umbel.privacy import noised_sum, secure
from umbel.privacy.accounting import spent
from umbel.privacy.distributed import DistributedNoise
from umbel.privacy.release import NoisyRelease
from umbel.privacy.secure_sum import BODY, FIXED, HEAD
from umbel.runs.events import AskClosed
from umbel.runs.past import find
from umbel.transforms import rotate

KEY = Key.from_seed(8)
MECHANISMS = ("distributed_gaussian", "distributed_skellam")
SILENT = Entropy(lambda n: np.zeros(n, np.uint64))


def step_of(size: int = 30, **settings: Any) -> noised_sum:
    given = {"clients": 10, "clip": 2.0, "bits": 12, "noise": 1.0, "sharers": 6, "colluding": 1, **settings}
    return noised_sum("1.0.1", 2, size=size, **given)


def pinned(*name: int | str) -> Entropy:
    return Entropy(Key.from_seed(4).derive("noised", *name).draws().words)


def body(step: noised_sum, values: Any, own: Entropy, key: Key = KEY) -> Any:
    update = Update(Arrays({"w": np.asarray(values, np.float32)}), 7.0, {"loss": 1.0}, delta=True)
    sealed = as_arrays(step.encode(update, None, None, key, own)[0])
    assert sealed[HEAD].tolist() == [FIXED, 0]  # nothing of the client's
    return sealed[BODY].view(step.dtype.str.replace("u", "i"))


@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=30, max_size=30), st.integers(2, 20),
    st.sampled_from([1e-3, 1.0, 1e6]), st.integers(0, 99),
)  # fmt: skip
def test_nobodys_values_are_longer_than_is_accounted_for(values: Any, bits: int, clip: float, seed: int) -> None:
    step = step_of(bits=bits, clip=clip, noise=9.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistributedNoise, "share", lambda self, own: np.zeros(30, np.int64))
        steps = body(step, values, SILENT, Key.from_seed(seed)).astype(np.float64)
    assert np.linalg.norm(steps) <= step.longest == step.shares.norm
    assert step.longest <= step.levels + math.sqrt(30)


def test_short_values_stay_as_they_are_on_average() -> None:
    step, values = step_of(bits=16), np.linspace(-0.3, 0.3, 30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistributedNoise, "share", lambda self, own: np.zeros(30, np.int64))
        rows = [body(step, values, SILENT, Key.from_seed(seed)) for seed in range(400)]
    off = np.mean(rows, 0) - np.float32(values) * step.levels / 2
    assert abs(off).max() < 5.5 * 0.5 / math.sqrt(400)


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("bits", some([8, 14], 1))
def test_the_noise_of_a_sum_is_that_of_those_who_are_in_it(mechanism: str, bits: int) -> None:
    step, there = step_of(size=200, bits=bits, mechanism=mechanism), 9
    own = pinned(mechanism, bits)
    sums = np.array([sum(body(step, np.zeros(200), own).astype(np.int64) for _ in range(there)) for _ in range(60)])
    expected = (step.noise * step.longest) ** 2 / step.sharers * there
    draws = sums.size
    assert abs(sums.var() / expected - 1) < 5 * math.sqrt(2 / draws)  # six in ten million
    assert abs(sums.mean()) < 5 * math.sqrt(expected / draws)
    halves = np.corrcoef(sums[:, :100].ravel(), sums[:, 100:].ravel())[0, 1]
    assert abs(halves) < 5 / math.sqrt(draws / 2)
    event = step.event(Answer(Arrays(), receipts=receipts(there)), None)
    assert event["noise"] == pytest.approx(math.sqrt(expected * (there - 1) / there) / step.longest, rel=1e-3)


def receipts(count: int) -> list[Receipt]:
    return [Receipt(f"0.{client}", client, 1.0, {}) for client in range(count)]


@given(st.integers(2, 20), st.integers(2, 2000), st.sampled_from([0.2, 5.0]), st.sampled_from(MECHANISMS))
def test_the_modulus_holds_the_sum_with_its_noise(bits: int, clients: int, noise: float, mechanism: str) -> None:
    try:
        step = step_of(bits=bits, clients=clients, noise=noise, mechanism=mechanism, sharers=clients)
    except SettingError:  # of a coarse grid, or of one too fine
        assert bits < 8 or bits > 18
        return
    most = clients * math.floor(step.longest) + step.shares.largest(clients, 1e-9)
    assert most < 1 << step.modulus_bits - 1 <= 1 << 8 * step.dtype.itemsize - 1


def test_what_is_promised_is_the_noise_of_the_fewest() -> None:
    step = step_of()
    promised = step.promises(None)
    assert step.fewest == 7
    assert promised == step.event(Answer(Arrays(), receipts=receipts(7)), None)
    assert promised["noise"] == pytest.approx(1.0, rel=1e-3)
    assert step.event(Answer(Arrays()), None) == promised
    assert step.event(Answer({}, receipts=receipts(7)), None) is None  # a phase
    assert promised["norm"] == pytest.approx(step.longest * 2.0 / step.levels)
    assert accounts(chain(rotate(), step))
    assert chain(rotate(), step).promises((None, None)) == [promised]
    NoisyRelease.of({"sampling": {"kind": "everyone"}, **promised})


def test_it_crosses_the_wire() -> None:
    step = step_of(mechanism="distributed_skellam")
    [spec] = chain(step).spec()
    assert transform_from_spec(spec) == step


@pytest.mark.parametrize(
    "settings",
    [
        {"noise": 0.0}, {"noise": -1.0}, {"sharers": 0}, {"colluding": -1}, {"mechanism": "gaussian"}, {"size": 0},
        {"weight": 3.0}, {"metrics": ("loss",)}, {"bits": 2, "noise": 0.1, "sharers": 900},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings: Any) -> None:
    with pytest.raises(SettingError):
        step_of(**settings)


def test_an_update_of_another_size_is_refused() -> None:
    with pytest.raises(SettingError, match="31 parameters, and the noise is for 30"):
        body(step_of(), np.zeros(31), SILENT)
    with pytest.raises(UpdateRejected, match="array 'w' holds NaN"):
        body(step_of(), np.full(30, np.nan), SILENT)


# Whole runs

client = umbel.Client()
MODEL = {"w": np.zeros((20, 50), np.float32), "b": np.zeros(10, np.float32)}


@client.train
def train(model: Any, data: Any, ctx: Any) -> umbel.Update:
    if ctx.client in ctx.config["gone"]:
        raise RuntimeError("gone")
    return umbel.Update({name: array + np.float32(0.01) for name, array in model.items()}, metrics={"loss": 1.0})


def run(folder: Any, clients: int = 20, gone: Any = (), **settings: Any) -> Any:
    strategy = umbel.FedAvg(cohort="all", fold=umbel.mean(), transforms=rotate(block=64))
    noised = secure(strategy, **{"clip": 1.0, "noise": 1.0, "dropped": 0.2, **settings})
    app = umbel.App(client, model=MODEL, strategy=noised, rounds=2, config={"gone": gone}, evaluate_every=0)
    return umbel.run(app, on=umbel.Simulation(clients, workers=0), folder=folder, seed=2)


@pytest.mark.parametrize("mechanism", some(MECHANISMS, 1))
@pytest.mark.parametrize("bits", [None, 9])
def test_a_run_has_the_noise_and_says_what_it_cost(mechanism: str, bits: Any, tmp_path: Any) -> None:
    done = run(tmp_path, gone=(3, 4), mechanism=mechanism, bits=bits)
    assert done.metrics == {}
    # 20 asked, 4 may drop out, 2 may be corrupt: 14 shares make the noise, and 18 are there
    values = np.concatenate([done.model["w"].ravel(), done.model["b"]]) - 0.02
    deviation = math.sqrt(2) * math.sqrt(18 / 14) / 18
    longer = 1.0 if bits is None else 1.03
    assert deviation * 0.9 < values.std() < deviation * longer * 1.1
    closed = [event for event in find(done.run, tmp_path).log.events if isinstance(event, AskClosed)]
    releases = [(event.kind, each) for event in closed for each in event.releases]
    assert [kind for kind, _ in releases] == ["train", "train"]
    assert all(each["shares"] == 16 and not event.metrics for (_, each), event in zip(releases, closed, strict=False))
    pytest.importorskip("dp_accounting")
    found = spent([NoisyRelease.of(each) for _, each in releases], 1e-3)
    alone = NoisyRelease("gaussian", math.sqrt(16 / 14), 1.0, "client", "zero out one", {"kind": "everyone"}, None)
    central = spent([alone] * 2, 1e-3)
    assert central.epsilon * 0.99 < found.epsilon < central.epsilon * (1.2 if "skellam" in mechanism else 1.1)


def test_where_too_few_stay_for_the_noise_there_is_no_sum() -> None:
    with pytest.raises(RunFailed, match="15 clients have sent updates, and the noise is for 16"):
        run(None, gone=tuple(range(5)))


def test_noise_under_weights_is_refused() -> None:
    app = umbel.App(client, model=MODEL, strategy=secure(umbel.FedAvg(cohort=5), weight=9.0, noise=1.0), rounds=1)
    with pytest.raises(StrategyError, match="under noise all clients count alike"):
        umbel.run(app, on=umbel.Simulation(5, workers=0), folder=None)
