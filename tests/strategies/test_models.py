"""Strategies with more than one model, or none: against plain loops, and what makes no sense refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.strategies.problem import CLIENTS, SIZES, START, client, loss_of, run, stepped

import umbel
from umbel import Arrays, Metrics, Strategy, Update, mean, weighted_mean
from umbel.core.randomness import Key
from umbel.errors import SettingError, StrategyError
from umbel.strategies import IFCA, FedAvg, FedDF, FedGen, FedProto, FjORD, HeteroFL, Matched, Mime, OneShot, PFedHN


class Watched(Strategy):
    """A strategy whose states are looked at."""

    def __init__(self, strategy):
        self.strategy, self.states = strategy, []
        self.start, self.served = strategy.start, strategy.served

    def round(self, state, r):
        self.states.append((yield from self.strategy.round(state, r)))
        return self.states[-1]


def state_of(strategy, rounds=3, apps=client, start=START, clients=CLIENTS, every=0):
    """The last state of a run, and its result."""
    watched = Watched(strategy)
    model = start if isinstance(start, dict) else {"w": start}
    app = umbel.App(apps, model=model, strategy=watched, rounds=rounds, evaluate_every=every)
    result = umbel.run(app, on=umbel.Simulation(clients, workers=0), folder=None)
    return watched.states[-1], result


def test_ifca_trains_each_model_on_those_whom_it_fits_best():
    models = [np.array(START + 0.5 * Key.from_seed(3).derive("ifca", j).draws().normal(3)) for j in range(2)]
    for _ in range(3):
        best = [int(np.argmin([loss_of(i, w) for w in models])) for i in range(CLIENTS)]
        for j in range(2):
            mine = [i for i in range(CLIENTS) if best[i] == j]
            if mine:
                models[j] = sum(SIZES[i] * stepped(i, models[j]) for i in mine) / SIZES[mine].sum()
    assert len(set(best)) == 2
    state, result = state_of(IFCA(cohort="all", clusters=2, spread=0.5, seed=3), every=3)
    for found, expected in zip(state.clusters, models, strict=True):
        np.testing.assert_allclose(found.model["w"], expected, rtol=1e-9)
    assert state.members == dict(enumerate(best))
    largest = max(range(2), key=lambda j: (best.count(j), -j))
    np.testing.assert_allclose(result.model["w"], models[largest], rtol=1e-9)
    own = [loss_of(i, models[best[i]]) for i in range(CLIENTS)]  # everyone evaluates the model of its cluster
    assert result.metrics["evaluate.loss"] == pytest.approx(float(SIZES @ own / SIZES.sum()), rel=1e-9)


def test_a_cluster_that_lacks_weight_or_members_holds_nobody_up():
    apart = umbel.Client()
    apart.train(lambda model, data, ctx: Update({"w": model["w"] + 1}, weight=min(data["index"], 1)))
    apart.evaluate(lambda model, data, ctx: Metrics({"loss": abs(model["w"][0] - (-9 if data["index"] == 0 else 9))}))

    def clusters(fold, clients):
        strategy = IFCA(cohort="all", spread=1.0, fold=fold)
        app = umbel.App(apart, model={"w": np.zeros(1)}, strategy=Watched(strategy), rounds=2, evaluate_every=0)
        result = umbel.run(app, on=umbel.Simulation(clients, workers=0), folder=None)
        before = [s.model["w"][0] for s in strategy.start(Arrays({"w": np.zeros(1)})).clusters]
        moved = [s.model["w"][0] - b for s, b in zip(app.strategy.states[-1].clusters, before, strict=True)]
        return sorted(moved), [c.failed for c in result.history]

    assert clusters(weighted_mean(), 3) == (pytest.approx([0, 2]), [None, None])
    assert clusters(umbel.folds.trimmed_mean(f=1), 4) == (pytest.approx([0, 2]), [None, None])


def test_one_cluster_is_fedavg_and_a_client_without_a_loss_is_told():
    one = run(IFCA(cohort="all", clusters=1, spread=0.0)).model["w"]
    np.testing.assert_allclose(one, run(FedAvg(cohort="all")).model["w"], rtol=1e-12)
    silent = umbel.Client()
    silent.train(lambda model, data, ctx: Update(model))
    silent.evaluate(lambda model, data, ctx: Metrics({"accuracy": 1.0}))
    app = umbel.App(silent, model={"w": START}, strategy=IFCA(cohort=1), rounds=1, evaluate_every=0)
    with pytest.raises(StrategyError, match="give none"):
        umbel.run(app, on=umbel.Simulation(2), folder=None)


# Widths

plus = umbel.Client()


@plus.train
def train_plus(model, data, ctx):
    """Everyone adds one more than its number to what it gets."""
    return Update({n: a + data["index"] + 1 for n, a in model.items()}, weight=data["index"] + 1)


def shapes(width):
    return {"w": (int(4 * width), 2), "n": (int(4 * width),)}


def test_each_element_is_the_mean_of_those_who_had_it():
    start = {"w": np.zeros((4, 2)), "n": np.zeros(4, np.int64)}
    strategy = HeteroFL(levels={1.0: [0, 1], 0.5: [2]}, shapes=shapes)
    app = umbel.App(plus, model=start, strategy=strategy, rounds=1, evaluate_every=0)
    model = umbel.run(app, on=umbel.Simulation(3), folder=None).model
    both, wide = (1 + 4 + 9) / 6, (1 + 4) / 3
    np.testing.assert_allclose(model["w"], [[both] * 2] * 2 + [[wide] * 2] * 2, rtol=1e-12)
    narrow = HeteroFL(levels={0.5: [0, 1, 2]}, shapes=shapes, fold=mean())
    app = umbel.App(plus, model=start, strategy=narrow, rounds=2, evaluate_every=0)
    np.testing.assert_allclose(
        umbel.run(app, on=umbel.Simulation(3), folder=None).model["w"], [[4.0] * 2] * 2 + [[0.0] * 2] * 2
    )
    whole = HeteroFL(levels={1.0: "all"}, shapes=lambda width: {"w": (3,)})
    np.testing.assert_allclose(run(whole).model["w"], run(FedAvg(cohort="all")).model["w"], rtol=1e-12)


def test_what_a_fold_knows_and_remembers_is_of_each_width():
    start, seen = {"w": np.zeros((4, 2)), "n": np.zeros(4, np.int64)}, []

    def server(model, r):
        seen.append(model["w"].shape)
        return {n: a + 1 for n, a in model.items()}

    levels = {1.0: [0, 1], 0.5: [2]}
    trusting = HeteroFL(levels=levels, shapes=shapes, fold=umbel.folds.fltrust(server))
    app = umbel.App(plus, model=start, strategy=trusting, rounds=2, evaluate_every=0)
    model = umbel.run(app, on=umbel.Simulation(3, workers=0), folder=None).model
    assert seen == [(4, 2), (2, 2)] * 2
    np.testing.assert_allclose(model["w"], 2.0)  # everyone points the server's way, and goes as far
    clipping = HeteroFL(levels=levels, shapes=shapes, fold=umbel.folds.centred_clipping(radius=1.0))
    state, _ = state_of(clipping, rounds=2, apps=plus, start=start, clients=3)
    assert {width: kept["w"].shape for width, kept in state.memory.items()} == {"1.0": (4, 2), "0.5": (2, 2)}


def test_scalars_and_levels_that_nobody_answers_are_no_trouble():
    start = {"w": np.zeros((4, 2)), "n": np.zeros(4, np.int64), "tracked": np.zeros((), np.int64)}
    odd = umbel.Client()

    @odd.train
    def train(model, data, ctx):
        if data["index"] == 2:
            raise ValueError("its disk is gone")
        return Update({n: a + 1 for n, a in model.items()})

    strategy = HeteroFL(levels={1.0: [0, 1], 0.5: [2]}, shapes=lambda width: {**shapes(width), "tracked": ()})
    app = umbel.App(odd, model=start, strategy=strategy, rounds=2, evaluate_every=0)
    model = umbel.run(app, on=umbel.Simulation(3), folder=None).model
    np.testing.assert_array_equal(model["w"], np.full((4, 2), 2.0))
    assert model["tracked"] == 2


def test_a_fold_remembers_under_strategies_with_rounds_of_their_own():
    for strategy in (Mime(cohort="all"), IFCA(cohort="all")):
        state, _ = state_of(replace(strategy, fold=umbel.folds.centred_clipping(radius=1e-3)), rounds=2)
        kept = state.clusters[0] if isinstance(strategy, IFCA) else state
        assert "memory" in kept.parts()


def test_widths_that_do_not_fit_are_refused():
    wrong = ({"v": (3,)}, {"w": (9,)}, {"w": (1, 1)}, {"w": (-1,)}, {"w": (2.0,)}, [("w", (3,))])
    for made in (lambda width, each=each: each for each in wrong):
        with pytest.raises(StrategyError, match=r"other names|has shape"):
            run(HeteroFL(levels={1.0: "all"}, shapes=made))


@pytest.mark.parametrize("kind", [HeteroFL, FjORD])
def test_what_is_personal_stays_out_of_it_and_has_one_shape(kind):
    start = Arrays({"w": np.zeros(4), "own": np.ones(4)}, {"own": "personal"})
    cut = lambda width: {"w": (int(4 * width),), "own": (4,)}  # noqa: E731
    app = lambda shapes: umbel.App(  # noqa: E731
        plus, model=start, strategy=kind(levels={1.0: [0], 0.5: [1]}, shapes=shapes), rounds=2, evaluate_every=1
    )
    model = umbel.run(app(cut), on=umbel.Simulation(2), folder=None).model
    assert model["w"][0] > 0
    assert model["own"].tolist() == [1.0] * 4  # the run's own, which nobody trained
    with pytest.raises(StrategyError, match=r"'own' is personal, and so has shape .4. at all widths"):
        umbel.run(app(lambda width: {**cut(width), "own": (int(4 * width),)}), on=umbel.Simulation(2), folder=None)


def test_fjord_draws_widths_up_to_a_level_and_the_same_ones_again():
    strategy = FjORD(levels={1.0: [0], 0.5: [1]}, shapes=shapes, widths=(0.25, 0.5, 1.0))
    drawn = {level: {strategy.width(level, r) for r in range(60)} for level in (1.0, 0.5, 0.1)}
    assert drawn == {1.0: {0.25, 0.5, 1.0}, 0.5: {0.25, 0.5}, 0.1: {0.1}}
    assert [strategy.width(1.0, r) for r in range(9)] == [strategy.width(1.0, r) for r in range(9)]
    app = umbel.App(
        plus, model={"w": np.zeros((4, 2)), "n": np.zeros(4, np.int64)}, strategy=strategy, rounds=4, evaluate_every=0
    )
    assert umbel.run(app, on=umbel.Simulation(2), folder=None).model["w"][0, 0] > 0


# Prototypes

seen = umbel.Client()


@seen.train
def train_seen(model, data, ctx):
    assert ctx.correction.take().settings == {"weight": 1.0}
    i = data["index"]
    sums, counts = np.zeros((4, 2)), np.zeros(4)
    sums[i], counts[i] = [i + 1.0, 2.0 * ctx.round], 2
    sums[3], counts[3] = [1.0, 1.0], 1
    metrics = {"known": float(ctx.inbox["known"].sum())} if "known" in ctx.inbox else {}
    return Update({"sums": sums, "counts": counts}, metrics=metrics)


def test_prototypes_are_means_over_all_and_stay_where_nobody_has_a_class():
    state, result = state_of(FedProto(cohort=[0, 1]), rounds=2, apps=seen, clients=3)
    expected = np.array([[0.5, 2.0], [1.0, 2.0], [0.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(state.prototypes["prototypes"], expected, rtol=1e-6)
    assert state.prototypes["known"].tolist() == [1, 1, 0, 1]
    assert np.array_equal(result.model["w"], START)
    assert result.metrics["train.known"] == 3


BAD = {
    "no counts": {"sums": np.ones((4, 2))},
    "other names": {"sums": np.ones((4, 2)), "counts": np.ones(4), "more": np.ones(1)},
    "a vector": {"sums": np.ones(4), "counts": np.ones(4)},
    "other counts": {"sums": np.ones((4, 2)), "counts": np.ones(3)},
    "nothing": {"sums": np.ones((0, 2)), "counts": np.ones(0)},
    "more features": {"sums": np.ones((4, 3)), "counts": np.ones(4)},
    "more classes": {"sums": np.ones((5, 2)), "counts": np.ones(5)},
    "too much": {"sums": np.full((4, 2), 1e200), "counts": np.ones(4)},
    "less than none": {"sums": np.ones((4, 2)), "counts": -np.ones(4)},
    "too many": {"sums": np.ones((4000, 2000)), "counts": np.ones(4000)},
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("since", [1, 2])
def test_one_client_breaks_no_prototypes(what, since):
    odd = umbel.Client()

    @odd.train
    def train(model, data, ctx):
        ctx.correction.take()
        if data["index"] == 0 and ctx.round >= since:
            return Update(BAD[what])
        sums = np.full((4, 2), data["index"] + 1.0)
        return Update({"sums": sums, "counts": np.ones(4)})

    clients = 3 if what.startswith("more") and since == 1 else 2  # of as many the first counts, while nothing is known
    state, _ = state_of(FedProto(cohort="all", max_bytes=10**6), rounds=2, apps=odd, clients=clients)
    expected = np.full((4, 2), np.mean([i + 1 for i in range(1, clients)]))
    np.testing.assert_array_equal(state.prototypes["prototypes"], expected)


# A network that makes models


def test_the_hypernetwork_steps_along_the_gradient_of_what_it_makes():
    """Against autograd of ``<h(v), difference>``, which is what the paper's step is along."""
    torch = pytest.importorskip("torch", exc_type=ImportError)
    strategy = PFedHN(cohort="all", embedding=4, hidden=5, lr=0.3, seed=2)
    begun = strategy.start(Arrays({"w": START + 1.0}))
    state, _ = state_of(strategy, rounds=1, start=START + 1.0)
    tensors = {
        n: torch.tensor(np.array(a), requires_grad=True)
        for n, a in {**begun.lower, "up": begun.upper["w"], "base": begun.base["w"]}.items()
    }
    total = 0
    vectors = {}
    for i in range(CLIENTS):
        v = vectors[i] = torch.tensor(Key.from_seed(2).derive("vector", i).draws().normal(4), requires_grad=True)
        made = tensors["base"] + torch.tanh(tensors["A"] @ v + tensors["a"]) @ tensors["up"]
        w = made.detach().numpy()
        total = total + (made * torch.tensor(stepped(i, w) - w)).sum()
    total.backward()
    share = 0.3 / CLIENTS
    for name, found in (
        ("A", state.lower["A"]),
        ("a", state.lower["a"]),
        ("up", state.upper["w"]),
        ("base", state.base["w"]),
    ):
        np.testing.assert_allclose(found, (tensors[name] + share * tensors[name].grad).detach(), rtol=1e-9)
    for i, v in vectors.items():
        np.testing.assert_allclose(state.vectors[i], (v + 0.3 * v.grad).detach(), rtol=1e-9)


def test_everyone_gets_a_model_of_its_own_from_the_hypernetwork():
    strategy = PFedHN(cohort="all", lr=1.0, hidden=32)
    state, _ = state_of(strategy, rounds=150)
    own = strategy.served(state)
    together = run(FedAvg(cohort="all"), rounds=150).model["w"]
    assert sum(loss_of(i, own(i)["w"]) for i in range(CLIENTS)) < 0.2 * sum(
        loss_of(i, together) for i in range(CLIENTS)
    )


# A student of all


def test_what_is_distilled_takes_the_place_of_the_mean():
    calls = []

    def distil(student, teachers):
        calls.append((student["w"], [t["w"] for t in teachers]))
        return student.map(lambda n, a: a + 1.0)

    found = run(FedDF(cohort="all", distil=distil), rounds=2).model["w"]
    w = START
    for student, teachers in calls:
        ends = [stepped(i, w) for i in range(CLIENTS)]
        np.testing.assert_allclose(teachers, ends, rtol=1e-12)
        np.testing.assert_allclose(student, SIZES @ ends / SIZES.sum(), rtol=1e-12)
        w = student + 1.0
    np.testing.assert_allclose(found, w, rtol=1e-12)
    with pytest.raises(StrategyError, match="not a model like the student"):
        run(FedDF(cohort="all", distil=lambda student, teachers: None))


def test_a_16_bit_model_goes_on_from_what_was_distilled():
    still = umbel.Client()
    still.train(lambda model, data, ctx: Update(model))
    strategy = FedDF(cohort="all", distil=lambda student, teachers: student.map(lambda n, a: a + a.dtype.type(1)))
    app = umbel.App(still, model={"w": np.zeros(2, np.float16)}, strategy=strategy, rounds=3, evaluate_every=0)
    assert umbel.run(app, on=umbel.Simulation(2), folder=None).model["w"].tolist() == [3.0, 3.0]


# One round


def test_a_client_that_sends_something_else_costs_its_own_update():
    start = {"w": np.zeros(2), "trees": np.zeros((0, 3), np.int64)}
    wrong = [
        {"w": np.zeros(2)},
        {"w": np.zeros(3), "trees": np.zeros((1, 3), np.int64)},
        {"w": np.zeros(2), "trees": np.zeros((1, 2), np.int64)},
        {"w": np.zeros(2), "trees": np.zeros((1, 3))},
        {"w": np.zeros(2), "trees": np.zeros(3, np.int64)},
    ]
    some = umbel.Client()

    @some.train
    def train(model, data, ctx):
        i = data["index"] - 2
        right = {"w": np.full(2, i), "trees": np.full((i + 3, 3), i, np.int64)}
        return Update(wrong[i] if i >= 0 else {**right, "w": right["w"] * 1.0}, weight=i + 4)

    app = umbel.App(some, model=start, strategy=OneShot(), rounds=1, evaluate_every=0)
    model = umbel.run(app, on=umbel.Simulation(7), folder=None).model
    assert (model["weights"].tolist(), model["trees"].tolist()) == ([2.0, 3.0], [[-2] * 3] + [[-1] * 3] * 2)
    assert model["w"].tolist() == [[-2.0] * 2, [-1.0] * 2]


# Matching

ORDER = {i: np.random.default_rng(i).permutation(6) for i in range(4)}
LAYERS = {"0.weight": (6, 3), "0.bias": (6,), "2.weight": (2, 6)}
rng = np.random.default_rng(0)
NET = {n: rng.normal(size=shape) for n, shape in LAYERS.items()}
shuffled = umbel.Client()


@shuffled.train
def train_shuffled(model, data, ctx):
    order = ORDER[data["index"]]
    net = {"0.weight": NET["0.weight"][order], "0.bias": NET["0.bias"][order], "2.weight": NET["2.weight"][:, order]}
    return Update(net, weight=4 - data["index"])


def test_neurons_in_any_order_are_one_model_once_they_are_matched():
    neurons = [[("0.weight", 0), ("0.bias", 0), ("2.weight", 1)]]
    start = {n: np.zeros(shape) for n, shape in LAYERS.items()}
    run_of = lambda strategy: umbel.run(  # noqa: E731
        umbel.App(shuffled, model=start, strategy=strategy, rounds=1, evaluate_every=0),
        on=umbel.Simulation(4), folder=None,
    ).model  # fmt: skip
    model, order = run_of(Matched(cohort="all", neurons=neurons)), ORDER[0]  # in the order of who weighs most
    np.testing.assert_allclose(model["0.weight"], NET["0.weight"][order], rtol=1e-12)
    np.testing.assert_allclose(model["2.weight"], NET["2.weight"][:, order], rtol=1e-12)
    assert np.abs(run_of(FedAvg(cohort="all"))["0.weight"] - NET["0.weight"][order]).max() > 0.1
    plain = run_of(Matched(cohort="all", neurons=[]))
    np.testing.assert_allclose(plain["0.bias"], run_of(FedAvg(cohort="all"))["0.bias"], rtol=1e-12)
    rescaled = Matched(cohort="all", neurons=neurons)
    large = {n: a * 1e200 for n, a in NET.items()}  # their products are beyond the range of a float
    other = {n: np.take(large[n], order, axis) for n, axis in neurons[0]}
    found = rescaled._permuted(other, large)
    assert all(np.array_equal(found[n], large[n]) for n in large)
    with pytest.raises(StrategyError, match="no axis 2"):
        run_of(Matched(cohort="all", neurons=[[("0.weight", 2)]]))


@pytest.mark.parametrize("build", [
    lambda fold: FedDF(distil=lambda student, teachers: student, fold=fold),
    lambda fold: FedGen(generator=Arrays(), learn=lambda generator, models, labels: generator, fold=fold),
    lambda fold: Matched(neurons=[], fold=fold),
    lambda fold: PFedHN(fold=fold),
])  # fmt: skip
def test_strategies_that_look_at_every_update_take_no_fold_that_makes_one_of_them(build):
    with pytest.raises(StrategyError, match="works on every update by itself, and mean makes one answer"):
        build(mean())


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: FedDF(distil="softmax"), "takes a distil that is a function, not 'softmax'"),
        (lambda: FedGen(generator=Arrays({"w": np.ones(1)}), learn=None), "takes a learn that is a function"),
        (lambda: HeteroFL(levels={1.0: 2}, shapes={}), "takes a shapes that is a function"),
        (lambda: Matched(neurons=[["0.weight"]]), "neurons as .*not '0.weight'"),
        (lambda: Matched(neurons=[[("0.weight", -1)]]), "axis from 0 on"),
    ],
)
def test_what_else_they_are_given_is_checked_when_they_are_built(build, said):
    with pytest.raises(SettingError, match=said):
        build()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [
    IFCA(cohort="all"), HeteroFL(levels={1.0: [0, 2, 4], 0.4: [1, 3]}, shapes=lambda width: {"w": (3,)}),
    PFedHN(cohort="all"), Matched(cohort="all", neurons=[[("w", 0)]]),
    FedDF(cohort="all", distil=lambda student, teachers: teachers[0]),
], ids=lambda each: type(each).__name__)  # fmt: skip
def test_workers_change_no_bit(strategy):
    assert run(strategy, rounds=2, workers=2).model_sha256 == run(strategy, rounds=2).model_sha256
