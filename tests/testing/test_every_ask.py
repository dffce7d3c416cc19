"""A simulation and a deployment agree about every shape of ask: the same answers, the same failures, bit by bit."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tests.testing.every_ask import SHAPE, all_pairs, app_of, is_sound, pairs_of, random_shape

import umbel
from umbel import Arrays
from umbel.testing.deployment import Deployment, Faults

QUIET = Faults.none()
SOURCES = {str(i): {"index": i, "count": 5} for i in range(5)}
TOGETHER = {"a": SOURCES}
APART = {"a": {"0": SOURCES["0"], "1": SOURCES["1"]}, "b": {"2": SOURCES["2"]}, "c": {i: SOURCES[i] for i in "34"}}


def simulated(groups):
    app, strategy = app_of(groups)
    umbel.run(app, on=umbel.Simulation(clients=5, workers=0), seed=3, folder=None)
    return strategy.told


def deployed(groups, folder, nodes, relays=None):
    app, strategy = app_of(groups)
    world = Deployment(app, nodes, seed=9, relays=relays, faults=QUIET, scratch=folder)
    world.run(folder, seed=3)
    return strategy.told


def check(groups, folder, nodes, relays=None):
    here, there = simulated(groups), deployed(groups, folder, nodes, relays)
    assert len(here) == len(there) == len(groups)
    for group, mine, theirs in zip(groups, here, there, strict=True):
        assert mine == theirs, f"the worlds differ over {group}"
    return here


def grouped(shapes, most):
    return [shapes[at : at + most] for at in range(0, len(shapes), most)]


@pytest.fixture(scope="module")
def shapes():
    return all_pairs()[0]


def test_all_pairs_are_among_the_shapes(shapes):
    """What cannot be said together is known by name; all else is said."""
    impossible = all_pairs()[1]
    assert set().union(*map(pairs_of, shapes)).isdisjoint(impossible)
    for (first, a), (second, b) in impossible:
        assert (first, second) == ("expects", "transforms"), f"{a} and {b} have become impossible together"
    for name, values in SHAPE.items():
        assert {shape[name] for shape in shapes} == set(values)


@pytest.mark.slow
def test_every_shape_of_ask_on_several_nodes(shapes, tmp_path):
    check(grouped(shapes, 1), tmp_path, APART)


@pytest.mark.slow
def test_every_shape_of_ask_below_a_relay(shapes, tmp_path):
    told = check(grouped(shapes, 1), tmp_path, APART, {"r": [*APART]})
    answered = [each for each in told if not isinstance(each, str)]
    assert len(answered) > len(told) * 0.6  # the comparison is of answers, not of failures alone


@pytest.mark.slow
def test_several_asks_at_once(shapes, tmp_path):
    calm = [shape for shape in shapes if shape["trouble"] not in ("nobody", "no weight")]
    check(grouped(calm, 3), tmp_path, APART)


@pytest.mark.parametrize("expects", ["like", "names", "another"])
def test_late_answers(expects, tmp_path):
    """Which answers are late is chance on nodes; what each task got and gave is not."""
    draw = random.Random(expects)
    fixed = {"window": "late", "lane": "common", "kind": "train", "expects": expects, "cohort": "all"}
    folds, steps = ("mean", "weighted_mean"), ("none", "forgetful", "clip")
    some = [
        random_shape(draw, {**fixed, "fold": draw.choice(folds), "transforms": draw.choice(steps)}) for _ in range(60)
    ]
    groups = grouped([shape for shape in some if is_sound(shape)][:20], 1)
    told = deployed(groups, tmp_path, TOGETHER)
    assert any(row[-1] for each in told if not isinstance(each, str) for row in each[0][4])  # some are late
    here, there = by_task(simulated(groups)), by_task(told)
    common = here.keys() & there.keys()
    assert {task: here[task] for task in common} == {task: there[task] for task in common}
    assert len(common) > 15


def by_task(told):
    """What each task's receipt says, but for how late it was."""
    rows = (row for each in told if not isinstance(each, str) for row in each[0][4])
    return {task: (client, weight, metrics) for task, client, weight, metrics, _ in rows}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_shapes_at_random(seed, tmp_path):
    draw = random.Random(seed)
    shapes = [shape for _ in range(300) if is_sound(shape := random_shape(draw))]
    nodes, relays = draw.choice([(TOGETHER, None), (APART, None), (APART, {"r": ["a", "b"]})])
    groups = []
    while shapes:
        most = draw.choice((1, 1, 2, 4))
        groups.append(shapes[:most])
        shapes = shapes[most:]
    check(groups, tmp_path, nodes, relays)


FIRST, MINE = np.full(100, 1234.5678), np.full(100, 8765.4321)
"""The values that the run begins with, and those that clients come to."""


@pytest.mark.parametrize(
    "expects", [umbel.Like(), umbel.Free(), umbel.Like(delta=False)], ids=["like", "free", "values"]
)
def test_values_of_personal_arrays_reach_nobody(expects, tmp_path):
    client, got = umbel.Client(), []

    @client.train
    def train(model, data, ctx):
        got.append((sorted(model), list(ctx.state)))
        ctx.state["mine"] = MINE
        returned = {"w": model["w"] + 1, "mine": MINE}
        return umbel.Update(returned if ctx.client % 2 else Arrays(returned, {"mine": "personal"}))

    class Asks(umbel.Strategy):
        def round(self, state, r):
            model = state.model if r < 3 else lambda c: state.model
            answer = yield umbel.Ask(clients="all", model=model, expects=expects, fold=umbel.mean())
            return umbel.State(state.model.replace(answer.value))

    model = Arrays({"mine": FIRST, "w": np.arange(100.0)}, {"mine": "personal"})
    app = umbel.App(client, model=model, strategy=Asks(), rounds=3, evaluate_every=0)
    world = Deployment(app, APART, seed=4, relays={"r": ["a", "b"]}, faults=QUIET, scratch=tmp_path)
    result = world.run(tmp_path, seed=3)
    assert result.model["mine"].tolist() == FIRST.tolist()  # the run's own, which no client was sent
    assert got == [(["w"], [])] * 5 + [(["w"], ["mine"])] * 10
    parties = [*world.stations.values(), *world.nodes.values()]
    crossed = [data for party in parties for data in party.blobs.values()] + list(world.answers.values())
    assert any(np.arange(100.0).tobytes() in data for data in crossed)
    for value in (FIRST, MINE):
        assert not any(value.tobytes()[:64] in data for data in crossed)
    kept = [path.read_bytes() for path in result.folder.rglob("*") if path.is_file()]
    assert not any(MINE.tobytes()[:64] in data for data in kept)
