"""Attacks: each does what its paper says, to those who are named and nobody else, and comes to the same bits again."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import umbel
from umbel.core.arrays import Arrays
from umbel.core.client import Context
from umbel.core.randomness import Key
from umbel.errors import AppError, SettingError
from umbel.testing.attacks import (
    Attack,
    attacked,
    backdoor,
    farthest,
    gaussian,
    inner_product,
    label_flip,
    largest_z,
    little_is_enough,
    min_max,
    scaled_update,
    sign_flip,
)

MODEL = Arrays({"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(3), "seen": np.array(4)})
honest = umbel.Client()


@honest.data
def data(source):
    rng = np.random.default_rng(source["index"])
    return rng.normal(size=(8, 3)), rng.integers(0, 3, 8)


@honest.train
def train(model, data, ctx):
    """Depends on the data, the client and the draws of the task."""
    inputs, labels = data
    step = inputs.mean(0) + ctx.rng.normal(size=3) * 0.1 + np.random.normal() * 0.01 + labels.mean() * 0.1
    if ctx.correction is not None:
        step = step + ctx.correction.gradient({"b": model["b"]})["b"]
    return umbel.Update(
        {"w": model["w"] + np.float32(step), "b": model["b"] + step * 2, "seen": np.array(5)},
        weight=len(labels), metrics={"labels": labels.mean(), "first": inputs[0, 0]},
    )  # fmt: skip


@honest.evaluate
def evaluate(model, data, ctx):
    return umbel.Metrics({"labels": data[1].mean()})


@honest.query("count")
def count(model, data, ctx):
    return umbel.Update({"n": np.array(len(data[1]))})


def context(client, r=1):
    return Context(
        client=client,
        round=r,
        kind="train",
        config={"rates": np.ones(2)},
        key=Key.from_seed(7).derive(client),
        inbox=Arrays({}),
        state={},
    )


def sent(client, who, r=1, count=5):
    """What a client answers, as its difference."""
    np.random.seed(who)
    source = {"index": who, "count": count}
    update = client.handlers["train"](MODEL, client.load(source), context(who, r))
    return {n: np.float64(update.arrays[n]) - MODEL[n] for n in ("w", "b")}, update


def own(who):
    np.random.seed(who)
    update = train(MODEL, data({"index": who}), context(who))
    return {n: np.float64(update.arrays[n]) - MODEL[n] for n in ("w", "b")}


def close(found, wanted):
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5)


ATTACKS = [
    label_flip(3), backdoor(lambda x: x * 0 + 9.0), sign_flip(), scaled_update(), gaussian(), little_is_enough(),
    inner_product(), min_max(),
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: type(a).__name__)
def test_all_others_are_as_they_were(attack):
    made = attacked(honest, [1, 3], attack)
    for who in (0, 2):
        close(sent(made, who)[0], own(who))
    assert any(not np.allclose(sent(made, 3)[0][n], own(3)[n]) for n in ("w", "b"))
    held = made.load({"index": 3})
    assert made.handlers["evaluate"](MODEL, held, context(3)).values == evaluate(MODEL, data({"index": 3}), None).values
    assert made.handlers["query:count"](MODEL, held, context(3)).arrays["n"] == 8
    assert sent(made, 1)[1].weight == 8
    assert sent(made, 1)[1].arrays["w"].dtype == np.float32
    assert sent(made, 1)[1].arrays["seen"] == 5


def test_an_attack_without_harm_and_one_of_nobody_are_honest():
    close(sent(attacked(honest, [1], Attack()), 1)[0], own(1))
    close(sent(attacked(honest, [], sign_flip()), 1)[0], own(1))


def test_labels_are_flipped():
    inputs, labels = label_flip(10).poisoned((np.zeros((3, 2)), np.array([0, 3, 9])), context(0))
    assert labels.tolist() == [9, 6, 0]
    assert inputs.shape == (3, 2)
    update = sent(attacked(honest, [2], label_flip(3)), 2)[1]
    assert update.metrics["labels"] == pytest.approx(2 - data({"index": 2})[1].mean())
    assert data({"index": 2})[1].max() <= 2  # the data itself is as it was


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_a_share_of_the_inputs_gets_the_trigger_and_its_class(framework):
    inputs, labels = np.zeros((100, 2)), np.ones(100, int)
    if framework == "torch":
        torch = pytest.importorskip("torch")
        inputs, labels = torch.from_numpy(inputs), torch.from_numpy(labels)
    attack = backdoor(lambda x: x + 7, target=4, share=0.3, scale=5.0)
    x, y = attack.poisoned((inputs, labels), context(3))
    assert sorted(np.asarray(y).tolist()) == [1] * 70 + [4] * 30
    assert ((np.asarray(x)[:, 0] == 7) == (np.asarray(y) == 4)).all()
    assert float(inputs.sum()) == 0
    assert attack.crafted({"w": np.ones(2)}, [], context(3))["w"].tolist() == [5, 5]
    again = attack.poisoned((inputs, labels), context(3))
    assert (np.asarray(again[1]) == np.asarray(y)).all()


def test_differences_are_turned_round_and_scaled():
    close(sent(attacked(honest, [1], sign_flip(2.0)), 1)[0], {n: -2 * a for n, a in own(1).items()})
    close(sent(attacked(honest, [1], scaled_update(30.0)), 1)[0], {n: 30 * a for n, a in own(1).items()})


def test_noise_is_normal_and_the_tasks_own():
    big = {"w": np.zeros((100, 100))}
    noise = gaussian(3.0).crafted(big, [big], context(1))["w"]
    assert (abs(noise.mean()) < 0.2, abs(noise.std() - 3) < 0.1) == (True, True)
    made = attacked(honest, [1, 2], gaussian())
    assert not np.allclose(sent(made, 1)[0]["b"], sent(made, 2)[0]["b"])
    close(sent(made, 1)[0], sent(made, 1)[0])


def honestly(made, members):
    """What the attackers would have sent, got out of an attack that sends one of them."""
    found = []
    for member in members:

        class one(Attack):
            colludes = True

            def crafted(self, own, everyone, ctx):
                return own

        found.append(sent(attacked(honest, members, one()), member)[0])
    return found


def test_colluders_know_what_all_of_them_would_have_sent_and_send_the_same():
    members = [0, 2, 4]
    rows = honestly(None, members)
    for row, member in zip(rows, members, strict=True):
        assert np.abs(row["b"] - own(member)["b"]).max() < 1.5  # the same data, other draws
    stacked = {n: np.stack([row[n] for row in rows]) for n in ("w", "b")}
    for attack, wanted in (
        (little_is_enough(1.5), {n: a.mean(0) - 1.5 * a.std(0) for n, a in stacked.items()}),
        (inner_product(0.7), {n: -0.7 * a.mean(0) for n, a in stacked.items()}),
    ):
        made = attacked(honest, members, attack)
        for member in members:
            close(sent(made, member)[0], wanted)
        again = attacked(honest, members, attack, sources={m: {"index": m} for m in members})
        close(sent(again, 2)[0], wanted)


@pytest.mark.parametrize("along", ["std", "mean", "sign"])
def test_min_max_goes_as_far_as_two_honest_updates_are_apart(along):
    members = [0, 1, 3]
    rows = [np.concatenate([row[n].ravel() for n in ("b", "w")]) for row in honestly(None, members)]
    found = sent(attacked(honest, members, min_max(along)), 1)[0]
    vector = np.concatenate([found[n].ravel() for n in ("b", "w")])
    apart = max(np.linalg.norm(a - b) for a in rows for b in rows)
    assert max(np.linalg.norm(vector - row) for row in rows) == pytest.approx(apart, rel=1e-4)
    middle = np.mean(rows, axis=0)
    way = {"std": np.std(rows, axis=0), "mean": middle, "sign": np.sign(middle)}[along]
    assert (vector - middle) @ -way / np.linalg.norm(way) / np.linalg.norm(vector - middle) == pytest.approx(
        1, rel=1e-4
    )
    alone = sent(attacked(honest, [1], min_max(along)), 1)[0]
    assert np.abs(alone["b"] - own(1)["b"]).max() < 1.5  # nobody to be far from


@given(seed=st.integers(0, 2**32))
def test_no_step_goes_farther(seed):
    rng = np.random.default_rng(seed)
    way, begin = rng.normal(size=5), rng.normal(size=5)
    most = float(np.sum(begin**2)) + rng.exponential()
    gamma = farthest(way, begin, most)
    assert gamma >= 0
    assert np.sum((begin + gamma * way) ** 2) == pytest.approx(most)
    assert farthest(np.zeros(2), begin[:2], 1.0) == math.inf


def test_the_largest_z_is_that_of_the_paper():
    assert largest_z(50, 24) == pytest.approx(1.426, abs=1e-3)  # 24 of 26 honest ones are nearer to the mean
    assert largest_z(51, 12) == pytest.approx(0.361, abs=1e-3)
    with pytest.raises(SettingError):
        largest_z(10, 6)


def test_computed_once_a_round_in_a_process():
    calls = []
    counting = umbel.Client()
    counting.data(lambda source: calls.append(("data", source["index"])) or data(source))
    counting.train(lambda model, held, ctx: calls.append(("train", ctx.client, ctx.round)) or train(model, held, ctx))
    made = attacked(counting, [0, 1], inner_product())
    first = [sent(made, who)[0] for who in (0, 1)]
    assert [c for c in calls if c[0] == "train"] == [("train", 0, 1), ("train", 1, 1)]
    second = sent(made, 0, r=2)[0]
    assert [c for c in calls if c[0] == "train"][2:] == [("train", 0, 2), ("train", 1, 2)]
    assert not np.allclose(first[0]["b"], second["b"])


def test_what_cannot_be_is_refused():
    with pytest.raises(SettingError, match="not an attack"):
        attacked(honest, [1], sign_flip)
    with pytest.raises(SettingError, match="along"):
        min_max("everywhere")
    by_path = umbel.Client()
    by_path.train(train)
    made = attacked(by_path, ["a", "b"], inner_product())
    held = made.load("/data/a")
    with pytest.raises(AppError, match="sources"):
        made.handlers["train"](MODEL, held, context("a"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack", [backdoor(lambda x: x + 1), gaussian(), little_is_enough(), min_max()], ids=lambda a: type(a).__name__
)
@pytest.mark.parametrize(
    "strategy",
    [umbel.FedAvg(cohort=3), pytest.param(umbel.FedProx(cohort=3, mu=0.1), marks=pytest.mark.slow)],
    ids=["avg", "prox"],
)
def test_two_workers_give_the_same_bits(attack, strategy):
    found = []
    for workers in (0, 2):
        app = umbel.App(attacked(honest, [0, 3], attack), model=MODEL, strategy=strategy, rounds=3)
        result = umbel.run(app, on=umbel.Simulation(clients=5, workers=workers), seed=2, folder=None)
        found.append(result.model_sha256)
    assert found[0] == found[1]


def test_an_update_that_is_too_large_to_be_is_rejected_and_the_run_goes_on():
    app = umbel.App(attacked(honest, [0], scaled_update(1e45)), model=MODEL, strategy=umbel.FedAvg(cohort=3), rounds=1)
    result = umbel.run(app, on=umbel.Simulation(clients=3, workers=0), seed=2, folder=None)
    assert np.isfinite(result.model["w"]).all()


def test_programs_of_a_client_are_those_of_it_under_attack(tmp_path):
    released = []

    class Starting(umbel.Client):
        def release(self):
            released.append(self)

    client = Starting()
    client.programs = (tmp_path / "train.py",)
    made = attacked(client, {0}, sign_flip())
    made.release()
    assert (made.programs, released) == (client.programs, [client])
