"""Secure sums of whole runs, against the same runs without."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import some

import umbel
from umbel.errors import NothingToFold, RunFailed, SettingError, StrategyError, UpdateRejected
from umbel.folds import median, total
from umbel.privacy import secure, secure_sum
from umbel.privacy.secure import Secured
from umbel.privacy.secure_sum import KEYS, SHARES, UNMASK
from umbel.runs.preflight import preflight
from umbel.strategies import AFL, FedDyn, Scaffold
from umbel.transforms import clip_by_norm, random_k, rotate, top_k

client = umbel.Client()
MODEL = {"w": np.zeros((8, 4), np.float32), "b": np.zeros(3, np.float32)}


@client.train
def train(model: Any, data: Any, ctx: Any) -> umbel.Update:
    if ctx.client in ctx.config.get("gone", ()):
        raise RuntimeError("gone")
    assert not [name for name in ctx.inbox if name.startswith("sealed")]
    rng = np.random.default_rng([ctx.client, ctx.round])
    step = {name: (array + rng.normal(size=array.shape)).astype("f4") for name, array in model.items()}
    ctx.state["rounds"] = ctx.state.get("rounds", 0) + 1
    return umbel.Update(
        step, weight=ctx.client % 4 + 1, metrics={"loss": float(ctx.client), "rounds": ctx.state["rounds"]}
    )


def run(strategy: Any, clients: int = 6, rounds: int = 2, workers: int = 0, **settings: Any) -> Any:
    app = umbel.App(client, model=MODEL, strategy=strategy, rounds=rounds, config=settings)
    return umbel.run(app, on=umbel.Simulation(clients, workers=workers), folder=None, seed=4)


def everyone(**settings: Any) -> umbel.FedAvg:
    return umbel.FedAvg(cohort="all", **settings)


ALIKE = everyone(fold=umbel.mean())
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "weighted": (everyone(), {"weight": 4.0}),
    "alike": (everyone(fold=umbel.mean()), {}),
    "total": (everyone(fold=total()), {}),
    "clipped": (everyone(fold=umbel.mean(), transforms=clip_by_norm(1.0)), {}),
    "rotated": (everyone(transforms=(rotate(block=16),)), {"weight": 7.0}),
    "adam": (umbel.FedAdam(cohort="all", fold=umbel.mean()), {}),
    "prox": (umbel.FedAvg(cohort=4, fold=umbel.mean()), {}),
    "16 bits": (everyone(fold=umbel.mean()), {"bits": 9}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gone", [(), (4,)])
def test_a_secure_run_comes_to_what_the_plain_one_does(kind: str, gone: tuple[int, ...]) -> None:
    strategy, settings = KINDS[kind]
    plain, sealed = run(strategy, gone=gone), run(secure(strategy, **settings), gone=gone)
    step = 4.0 / 2 ** (settings.get("bits", 24) - 1) * 2 * (6 if kind == "total" else 1)
    for name in MODEL:
        assert abs(plain.model[name] - sealed.model[name]).max() < max(step * 8, 2e-5), name
        assert abs(sealed.model[name]).max() > 0.01
    assert sealed.history.columns()["clients"] == plain.history.columns()["clients"]
    assert sealed.metrics["train.secure.cut"] < 0.01


@pytest.mark.parametrize("kind", ["weighted", "rotated", "16 bits"])
def test_masks_do_not_show_in_a_sum(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit it is the sum of what was quantised, whoever dropped out."""
    strategy, settings = KINDS[kind]
    sealed = run(secure(strategy, **settings), gone=(2,))
    monkeypatch.setattr(sys.modules[secure_sum.__module__], "add_masks", lambda *_, **__: None)
    monkeypatch.setattr("umbel.privacy.unmasking.add_masks", lambda *_, **__: None)
    assert run(secure(strategy, **settings), gone=(2,)).model_sha256 == sealed.model_sha256
    monkeypatch.undo()
    monkeypatch.setattr("umbel.privacy.unmasking.add_masks", lambda *_, **__: None)
    try:
        other = run(secure(strategy, **settings), gone=(2,)).model_sha256
    except RunFailed:  # by what masks make of the weights
        return
    assert other != sealed.model_sha256


@pytest.mark.parametrize("workers", some([2, 1], 1))
def test_workers_come_to_the_same_bits(workers: int) -> None:
    strategy = secure(everyone(), weight=4.0, metrics=["loss"])
    one, other = run(strategy, gone=(3,)), run(strategy, workers=workers, gone=(3,))
    assert one.model_sha256 == other.model_sha256
    assert one.metrics == other.metrics


def test_metrics_that_are_named_are_told_as_means_and_no_others() -> None:
    sealed = run(secure(everyone(), weight=4.0, metrics=["loss"]))
    weights = np.arange(6) % 4 + 1
    assert sealed.metrics["train.loss"] == pytest.approx((weights * np.arange(6)).sum() / weights.sum(), abs=1e-5)
    assert sealed.metrics.keys() == {"train.loss", "train.secure.cut"}
    assert all(not receipt.metrics for receipt in getattr(sealed, "receipts", ()))


def test_what_is_cut_off_is_told() -> None:
    assert run(secure(everyone(fold=umbel.mean()), clip=0.01)).metrics["train.secure.cut"] > 0.9


def test_states_of_clients_go_on() -> None:
    sealed = run(secure(everyone(fold=umbel.mean()), metrics=["rounds"]), rounds=3)
    assert sealed.metrics["train.rounds"] == 3.0


def test_thinned_out_updates_are_thinned_out_alike() -> None:
    """All clients send the same entries, drawn anew each round: so those of a sum are there, and all others are 0."""
    sealed = run(secure(everyone(fold=umbel.mean(), transforms=random_k(0.25))), rounds=1)
    assert np.count_nonzero(sealed.model["w"]) == 8
    again = run(secure(everyone(fold=umbel.mean(), transforms=random_k(0.25))), rounds=2)
    assert 8 < np.count_nonzero(again.model["w"]) < 17


def test_buffers_stay_as_they_are() -> None:
    model = umbel.Arrays(
        {**MODEL, "seen": np.zeros(2, np.float32)}, {"w": "parameter", "b": "parameter", "seen": "buffer"}
    )
    app = umbel.App(client, model=model, strategy=secure(everyone(fold=umbel.mean())), rounds=1)
    done = umbel.run(app, on=umbel.Simulation(4, workers=0), folder=None)
    assert not done.model["seen"].any()
    assert done.model["w"].any()


def test_a_run_that_is_interrupted_goes_on(tmp_path: Path) -> None:
    strategy = secure(everyone(), weight=4.0)
    app = umbel.App(client, model=MODEL, strategy=strategy, rounds=2)
    half = umbel.run(app, on=umbel.Simulation(6, workers=0), folder=tmp_path, seed=4)
    whole = umbel.resume(app, tmp_path / half.run, rounds=4, on=umbel.Simulation(6, workers=0))
    assert whole.model_sha256 == run(strategy, rounds=4).model_sha256


def test_a_plan_is_that_of_what_clients_train() -> None:
    plain, sealed = (umbel.App(client, model=MODEL, strategy=s, rounds=2) for s in (ALIKE, secure(ALIKE)))
    found, expected = (preflight(app, on=umbel.Simulation(6, workers=1)) for app in (sealed, plain))
    assert [part.kind for part in found.parts] == ["train"]
    assert (found.bytes_up, found.bytes_down) == (expected.bytes_up, expected.bytes_down)


class Again(umbel.FedAvg):
    """Asks once more where an ask came to nothing."""

    def round(self, state: Any, r: int) -> Any:
        inner = super().round(state, r)
        ask = next(inner)
        try:
            answer = yield ask
        except NothingToFold:
            answer = yield ask
        try:
            inner.send(answer)
        except StopIteration as over:
            return over.value


def test_a_session_that_came_to_nothing_is_not_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients answer each phase of a session once."""
    begun, whole = list[str](), Secured._session

    def session(self: Any, ask: Any, name: str) -> Any:
        begun.append(name)
        if len(begun) < 3:
            raise NothingToFold("nobody", asked=6, came=0)
        return whole(self, ask, name)

    monkeypatch.setattr(Secured, "_session", session)
    run(secure(Again(cohort="all", fold=umbel.mean())), rounds=1)
    assert begun == ["1.0.1", "1.0.2", "1.1.1"]


# What comes to nothing


def test_too_few_that_stay_come_to_nothing() -> None:
    with pytest.raises(RunFailed, match=r"brought no update"):
        run(secure(everyone(fold=umbel.mean())), clients=10, gone=tuple(range(1, 10)))


def test_what_cannot_be_unmasked_is_done_again_with_fresh_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    unmask, sessions = secure_sum._unmask, set[str]()

    def gone(self: secure_sum, *given: Any) -> Any:
        sessions.add(self.session)
        if self.session.endswith(".1"):
            raise UpdateRejected("gone")
        return unmask(self, *given)

    monkeypatch.setattr(secure_sum, "_unmask", gone)
    plain, sealed = run(ALIKE), run(secure(ALIKE, metrics=["rounds"]))
    assert sessions == {"1.0.1", "1.0.2", "2.0.1", "2.0.2"}
    assert abs(plain.model["w"] - sealed.model["w"]).max() < 2e-5
    assert sealed.metrics["train.rounds"] == 4.0  # what clients keep goes on
    assert sealed.history[-1].clients == 12
    with pytest.raises(RunFailed, match="brought no update"):
        run(secure(ALIKE, attempts=1))


def test_two_clients_have_no_secret_sum() -> None:
    with pytest.raises(RunFailed, match="2 clients have sent keys, and secure sums are of 3 at least"):
        run(secure(everyone(fold=umbel.mean())), clients=2)


def arrays(**given: Any) -> umbel.Update:
    return umbel.Update(umbel.Arrays(given, dict.fromkeys(given, "buffer")))


HOSTILE: dict[str, tuple[str, Any]] = {
    "short keys": (KEYS, lambda told: arrays(keys=told["keys"][:10].copy())),
    "a key for keys": (KEYS, lambda told: arrays(keys=told["keys"][0])),
    "rows of keys": (KEYS, lambda told: arrays(keys=told["keys"][None].copy())),
    "large keys": (KEYS, lambda told: arrays(keys=told["keys"].astype(np.uint64))),
    "something else": (KEYS, lambda told: arrays(shares=told["keys"])),
    "more beside": (KEYS, lambda told: arrays(keys=told["keys"], w=np.zeros(1000))),
    "keys of nothing": (KEYS, lambda told: arrays(keys=np.zeros(64, np.uint8))),
    "half a pair": (KEYS, lambda told: arrays(keys=np.where(np.arange(64) < 32, told["keys"], 0).astype(np.uint8))),
    "the same twice": (KEYS, lambda told: arrays(keys=np.tile(told["keys"][:32], 2))),
    "short shares": (SHARES, lambda told: arrays(shares=told["shares"][:, :50].copy())),
    "flat shares": (SHARES, lambda told: arrays(shares=told["shares"].ravel())),
    "too many shares": (SHARES, lambda told: arrays(shares=np.zeros((6, 88), np.uint8))),
    "no row": (UNMASK, lambda told: arrays(masks=np.uint32(1) * np.ones((), np.uint32), seeds=told["seeds"])),
    "short rows": (UNMASK, lambda told: arrays(masks=told["masks"], seeds=told["seeds"][:, :4].copy())),
    "nothing": (UNMASK, lambda told: umbel.Update({})),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_who_tells_what_is_not_asked_for_drops_out(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    phase, made = HOSTILE[kind]
    honest, order = secure_sum.take_part, list[int]()

    def hostile(self: Any, asked: str, update: Any, *rest: Any) -> Any:
        told, secrets = honest(self, asked, update, *rest)
        order.extend([1] if asked == phase else [])
        return (made(told.arrays) if asked == phase and len(order) == 4 else told), secrets

    monkeypatch.setattr(secure_sum, "take_part", hostile)
    done = run(secure(everyone(fold=umbel.mean())), rounds=1)
    assert len(order) == 6  # in the first attempt
    assert done.history.columns()["clients"] == [6 if phase == UNMASK else 5]


FORGED = {
    "more than there can be": (0, 9 << 20, 0.0),
    "a small weight": (0, 1000 - (13 << 18), 4.0),  # of which the others' updates would be many times their mean
    "none of those that all have": (0, -1 << 20, 0.0),
    "large values": (1, 1 << 30, 4.0),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_sum_that_no_updates_have_comes_to_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one client can send is bounded by the others' weights, and not by the modulus alone."""
    place, change, weight = FORGED[kind]
    honest, order = secure_sum.take_part, list[int]()

    def hostile(self: Any, asked: str, update: Any, *rest: Any) -> Any:
        told, secrets = honest(self, asked, update, *rest)
        if asked == "train" and not (order.append(1) or len(order) % 6):
            head, body = told.arrays["head"].copy(), told.arrays["body"].copy()
            vector = (head, body)[place]
            vector[0] += vector.dtype.type(change % (1 << 8 * vector.itemsize))
            told = arrays(head=head, body=body)
        return told, secrets

    monkeypatch.setattr(secure_sum, "take_part", hostile)
    with pytest.raises(RunFailed, match="one that no such updates have"):
        run(secure(everyone(**({} if weight else {"fold": umbel.mean()})), weight=weight), rounds=1)


@pytest.mark.parametrize("more", [-3, 2])
def test_a_sum_of_another_size_comes_to_nothing(more: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so many who lie in the same way that theirs is what most updates look like."""
    honest = secure_sum.take_part

    def hostile(self: Any, asked: str, update: Any, *rest: Any) -> Any:
        if asked == "train":
            head, body = update.arrays["head"], update.arrays["body"]
            update = arrays(head=head, body=np.resize(body, len(body) + more))
        return honest(self, asked, update, *rest)

    monkeypatch.setattr(secure_sum, "take_part", hostile)
    with pytest.raises(RunFailed, match=r"it is of \d+ elements, and the model has 35"):
        run(secure(everyone(fold=umbel.mean())), rounds=1)


def test_a_model_without_an_element_is_summed_too() -> None:
    app = umbel.App(
        client, model={"w": np.zeros((0, 2), np.float32)}, strategy=secure(everyone(fold=umbel.mean())), rounds=1
    )
    done = umbel.run(app, on=umbel.Simulation(4, workers=0), folder=None)
    assert done.metrics["train.secure.cut"] == 0.0


@pytest.mark.parametrize(
    ("strategy", "settings", "says"),
    [
        (everyone(fold=median()), {}, "median has to see single updates"),
        (everyone(), {}, "weighted_mean takes weights"),
        (everyone(fold=umbel.mean(), transforms=top_k(0.5)), {}, "top_k cannot be undone of a sum"),
        (everyone(fold=umbel.mean(), window=umbel.Window(late="keep")), {}, "late updates"),
        (Scaffold(cohort="all"), {"weight": 9.0}, "aux arrays|cannot be undone"),
        (FedDyn(cohort="all", fold=umbel.mean()), {}, "cannot be undone"),
        (AFL(), {"weight": 1.0}, "of each client, and none are told"),
    ],
)
def test_what_cannot_be_summed_securely_is_said(strategy: Any, settings: Any, says: str) -> None:
    with pytest.raises(StrategyError, match=says):
        run(secure(strategy, **settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"clip": -1.0}, {"clip": "4"}, {"attempts": 0}, {"bits": 40}, {"bits": 0}, {"weight": -1.0}, {"corrupt": 1.0},
        {"dropped": -0.1}, {"metrics": "loss"},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_before_anybody_is_asked(settings: Any) -> None:
    with pytest.raises(SettingError):
        secure(everyone(fold=umbel.mean()), **settings)


@pytest.mark.parametrize("settings", [{"clip": -1.0}, {"attempts": 0}, {"bits": 40}, {"corrupt": 0.7, "dropped": 0.6}])
def test_settings_that_cannot_be_are_refused(settings: Any) -> None:
    with pytest.raises(SettingError):
        run(secure(everyone(fold=umbel.mean()), **settings))


def test_it_wraps_strategies_and_nothing_else() -> None:
    with pytest.raises(StrategyError, match="secure wraps a strategy"):
        secure("FedAvg")  # type: ignore[arg-type]
    assert isinstance(secure(everyone(fold=umbel.mean())), Secured)
