"""Analyses with noise: answers are as near as they say, and tell nothing of who came."""

import numpy as np
import pytest

import umbel
from umbel import Simulation
from umbel.analytics import Covariance, HeavyHitters, Histogram, Quantiles, Statistics, client
from umbel.analytics.analysis import Asking
from umbel.analytics.heavy_hitters import beyond_noise
from umbel.core.answer import Answer
from umbel.core.arrays import Arrays
from umbel.core.randomness import Key
from umbel.entropy import SYSTEM
from umbel.errors import SettingError
from umbel.privacy import central_counts, local_gaussian, randomised_response
from umbel.privacy.discrete import discrete_laplace
from umbel.testing.deployment import Deployment, Faults

EDGES = [0, 20, 40, 60, 80, 100]
WORDS = ["flu"] * 5 + ["cold"] * 3 + ["gout"] * 2
NOISES = [central_counts(epsilon=0.5), randomised_response(epsilon=3.0)]
every = pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.name)


@pytest.fixture(autouse=True)
def pinned(monkeypatch):
    monkeypatch.setattr(SYSTEM, "words", Key.from_seed(20).draws().words)


def load(source):
    """One row a client."""
    at = source["index"]
    return {"age": np.array([at % 100 + 0.5]), "sex": np.array([at % 2]), "code": np.array([WORDS[at % 10]])}


def asked(question, clients=100, load=load):
    app = umbel.App(client(load), strategy=question)
    return umbel.run(app, on=Simulation(clients), folder=None).model


@every
def test_counts_are_as_near_as_they_say(noise):
    question = Histogram(["age"], bins=EDGES, by={"sex": (0, 1)}, noise=noise)
    model = asked(question)
    off = (model["counts"] - 10) / model["error"]
    assert np.abs(off).max() < 5
    assert "clients" not in model
    assert "withheld" not in model
    counts, edges = question.read(model)["age"]
    assert (counts.keys(), edges.tolist()) == ({0, 1}, EDGES)
    row = question.table(model)["age"][0][1]
    assert row == {"from": 20, "to": 40, "count": model["counts"][0, 0, 1], "error": model["error"][0, 0, 1]}


def test_of_clients_with_many_rows_so_many_count():
    def many(source):
        return {"age": np.full(1000, 30.0)}

    model = asked(Histogram(["age"], bins=EDGES, noise=central_counts(epsilon=1.0, most=20)), 50, many)
    assert model["counts"][0, 0, 1] == pytest.approx(50 * 20, abs=10 * 20)


@pytest.mark.slow
@every
def test_quantiles_are_within_the_interval_that_they_say(noise):
    question = Quantiles(["age"], at=[0.1, 0.5, 0.9], edges=range(0, 101, 10), noise=noise)
    model = asked(question, 200)
    assert (model["low"] < model["values"]).all()
    assert (model["values"] < model["high"]).all()
    np.testing.assert_allclose(model["values"][0, 0], [10, 50, 90], atol=8)
    assert list(question.read(model)["age"]) == [0.1, 0.5, 0.9]


def told(noise, having, rng):
    """The answer of clients of whom so many have each cell."""
    total = having
    if noise.name == "randomised_response":
        _, true, other = noise._chances(having.size)
        total = rng.binomial(having, true) + rng.binomial(having.sum() - having, other)
    answer = Answer(Arrays({"counts": total[None, None]}), receipts=[None] * int(having.sum()))
    looks = Arrays({"counts": np.zeros((1, 1, having.size), np.int64)}).schema
    return noise.finish(answer, noise.init(looks), Key.from_seed(0))[0]


@pytest.mark.parametrize("noise", [central_counts(epsilon=0.2), randomised_response(epsilon=2.0, kind="unary")])
def test_intervals_of_quantiles_hold_what_they_should(noise):
    """Each end is passed with a probability of 0.025, and of 400 ends by more than 27 with one of 1e-5."""
    question = Quantiles(["age"], at=[0.3, 0.5], edges=range(0, 101, 10), noise=noise)
    having, rng, passed = np.array([0, *[200] * 10, 0]), np.random.default_rng(5), 0
    for _ in range(100):
        asking = question.questions(Asking("all", None, noise))
        next(asking)
        with pytest.raises(StopIteration) as end:
            asking.send(told(noise, having, rng))
        low, high = (end.value.value[name][0, 0] for name in ("low", "high"))
        passed += int((low > [30, 50]).sum() + (high < [30, 50]).sum())
    assert passed <= 27


def test_of_noise_alone_there_are_no_quantiles(monkeypatch):
    model = asked(Quantiles(["age"], edges=EDGES, noise=randomised_response(epsilon=1.0), clients=umbel.Poisson(1e-9)))
    assert np.isnan(model["values"]).all()


@pytest.mark.parametrize(
    ("noise", "clients"), [(central_counts(epsilon=2.0), 100), pytest.param(NOISES[1], 1000, marks=pytest.mark.slow)]
)
def test_heavy_hitters_are_found_with_their_counts(noise, clients):
    question = HeavyHitters("code", length=4, noise=noise)
    model = asked(question, clients)
    found = question.read(model)
    assert found.keys() == {"flu", "cold", "gout"}
    np.testing.assert_array_less(np.abs(model["counts"] - np.array([0.5, 0.3, 0.2]) * clients), 5 * model["error"])
    assert question.table(model)["flu"]["error"] == model["error"][0]


@pytest.mark.parametrize("scale", [1, 3, 50])
def test_noise_alone_seldom_goes_on(scale):
    p = np.exp(-1 / scale)
    error = np.full((1, 257), np.sqrt(2 * p) / (1 - p))
    noise = discrete_laplace(scale, 257 * 400, SYSTEM).reshape(400, 257)
    assert (noise >= beyond_noise(error)).any(1).mean() < 0.1
    assert p ** np.ceil(beyond_noise(error)[0, 0]) / (1 + p) * 257 < 0.1


@pytest.mark.slow
def test_each_question_is_in_the_log(tmp_path):
    app = umbel.App(client(load), strategy=HeavyHitters("code", length=3, noise=central_counts(epsilon=2.0)))
    run = umbel.run(app, on=Simulation(100), folder=tmp_path)
    text = (run.folder / "events.jsonl").read_text()
    assert text.count('"pure"') == 3


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: Histogram(["age"], bins=5, noise=NOISES[0]), "edges"),
        (lambda: Histogram(["age"], bins=EDGES, noise=NOISES[0], least=2), "least"),
        (lambda: Quantiles(["age"], noise=NOISES[0]), "edges"),
        (lambda: Quantiles(["age"], edges=EDGES), "edges"),
        (lambda: Quantiles(["age"], edges=[0], noise=NOISES[0]), "two edges"),
        (lambda: HeavyHitters("code", epsilon=1.0, noise=NOISES[0]), "both"),
        (lambda: Statistics(["age"], noise=NOISES[0]), "cannot bound"),
        (lambda: Covariance(["age"], noise=NOISES[0]), "cannot bound"),
        (lambda: Histogram(["age"], bins=EDGES, noise=umbel.transforms.top_k(0.1)), "hides nobody"),
    ],
)
def test_what_noise_cannot_hide_is_refused(made, why):
    with pytest.raises(SettingError, match=why):
        made()


def test_noise_for_models_is_none_for_counts():
    with pytest.raises(umbel.UmbelError, match="differences"):
        asked(Histogram(["age"], bins=EDGES, noise=local_gaussian(norm=1.0, noise=1.0)))


@pytest.mark.parametrize("noise", [central_counts(epsilon=40.0), randomised_response(epsilon=40.0)])
def test_nodes_and_relays_tell_the_same(noise, tmp_path):
    """With next to no noise, so that nothing is drawn but what is expected."""
    nodes = {"a": {"0": {"index": 0}, "1": {"index": 21}}, "b": {"2": {"index": 22}}, "c": {"3": {"index": 99}}}
    app = umbel.App(client(load), strategy=Histogram(["age"], bins=EDGES, noise=noise))
    world = Deployment(app, nodes, seed=9, relays={"r": ["a", "b"]}, faults=Faults.none(), scratch=tmp_path)
    np.testing.assert_allclose(world.run(tmp_path).model["counts"][0, 0], [1, 2, 0, 0, 1], atol=1e-6)
