"""`umbel.torch.fit`: with every strategy it comes to what a plain numpy loop of the paper's algorithm comes to."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from tests.strategies.problem import DATA, LR, SIZES, STEPS, gradient_of, loss_of, stepped
from tests.strategies.test_references import CASES

import umbel
from umbel import mean
from umbel.core.update import Update
from umbel.errors import AppError
from umbel.strategies import (
    APFL,
    Ditto,
    FedALA,
    FedAvg,
    FedBN,
    FedGen,
    FedNova,
    FedPer,
    FedProto,
    FedRep,
    LGFedAvg,
    Moon,
    PerFedAvg,
    PFedMe,
)

torch = pytest.importorskip("torch", exc_type=ImportError)
nn = torch.nn

import umbel.torch  # noqa: E402

F = 3


def net_of():
    return nn.Linear(F, 1, bias=False).double()


def squares(net, batch):
    return ((net(batch[0]).squeeze(1) - batch[1]) ** 2).mean() / 2


client = umbel.Client()


@client.train
def train(model, data, ctx):
    i = data["index"]
    net = umbel.torch.load_(net_of(), model)
    return umbel.torch.fit(net, DATA[i], ctx, loss=squares, lr=LR, epochs=STEPS[i], batch=0)


@client.query("gradient")
def gradient(model, data, ctx):
    return umbel.torch.gradient(umbel.torch.load_(net_of(), model), DATA[data["index"]], ctx, loss=squares, batch=4)


def run(strategy, rounds=3, clients=5, client=client, start=None, **settings):
    start = {"weight": np.zeros((1, F))} if start is None else start
    app = umbel.App(client, model=start, strategy=strategy, rounds=rounds, evaluate_every=0, **settings)
    return umbel.run(app, on=umbel.Simulation(clients, workers=0), folder=None)


@pytest.mark.parametrize("name", CASES)
def test_it_applies_whatever_a_strategy_corrects(name):
    strategy, reference = CASES[name]
    np.testing.assert_allclose(run(strategy).model["weight"][0], reference(), rtol=1e-7, atol=1e-10)


# Procedures, with one client whose state is looked at


def personal_of(strategy, i=1, rounds=2):
    """The common weights and the client's own ones, after some rounds of one client."""
    seen = {}
    one = umbel.Client()

    @one.train
    def train(model, data, ctx):
        update = umbel.torch.fit(
            umbel.torch.load_(net_of(), model), DATA[i], ctx, loss=squares, lr=LR, epochs=STEPS[i], batch=0
        )
        seen["own"] = umbel.torch.load_personal_(net_of(), ctx).weight.detach().numpy()[0]
        return update

    result = run(strategy, rounds, clients=1, client=one)
    return result.model["weight"][0], seen["own"]


def test_ditto_keeps_a_model_close_to_the_common_one():
    w = v = np.zeros(F)
    for _ in range(2):
        for _ in range(STEPS[1]):
            v = v - LR * (gradient_of(1, v) + 0.4 * (v - w))
        w = stepped(1, w)
    common, own = personal_of(Ditto(cohort=1, mu=0.4))
    np.testing.assert_allclose(common, w, rtol=1e-9)
    np.testing.assert_allclose(own, v, rtol=1e-9)
    assert np.allclose(personal_of(Ditto(cohort=1, mu=0.0), rounds=1)[1], stepped(1, np.zeros(F)))


def test_pfedme_moves_towards_the_model_close_by():
    w = np.zeros(F)
    for _ in range(2):
        theta = w
        for _ in range(STEPS[1]):
            for _ in range(3):
                theta = theta - 0.1 * (gradient_of(1, theta) + 2.0 * (theta - w))
            w = w - LR * 2.0 * (w - theta)
    common, own = personal_of(PFedMe(cohort=1, lamda=2.0, inner=3, lr=0.1))
    np.testing.assert_allclose(common, w, rtol=1e-9)
    np.testing.assert_allclose(own, theta, rtol=1e-9)


def test_apfl_mixes_two_models_and_learns_how():
    w, v, alpha = np.zeros(F), None, 0.3
    for _ in range(2):
        v = w if v is None else v
        for step in range(STEPS[1]):
            slope = gradient_of(1, alpha * v + (1 - alpha) * w)
            moved = np.clip(alpha - LR * slope @ (v - w), 0, 1) if step == 0 else alpha
            v, w, alpha = v - LR * alpha * slope, w - LR * gradient_of(1, w), moved
    common, own = personal_of(APFL(cohort=1, alpha=0.3))
    np.testing.assert_allclose(common, w, rtol=1e-9)
    np.testing.assert_allclose(own, alpha * v + (1 - alpha) * w, rtol=1e-9)


def test_perfedavg_steps_by_the_gradient_one_step_ahead():
    w = np.zeros(F)
    for _ in range(2 * STEPS[1]):  # all data is one batch, which is first and second
        w = w - LR * gradient_of(1, w - 0.2 * gradient_of(1, w))
    common, _ = personal_of(PerFedAvg(cohort=1, alpha=0.2))
    np.testing.assert_allclose(common, w, rtol=1e-9)
    net = umbel.torch.load_(net_of(), {"weight": np.ones((1, F))})
    batch = tuple(map(torch.as_tensor, DATA[1]))
    adapted = umbel.torch.adapt_(net, batch, 0.2, squares).weight.detach().numpy()[0]
    np.testing.assert_allclose(adapted, 1 - 0.2 * gradient_of(1, np.ones(F)), rtol=1e-9)


def test_fedala_begins_from_a_mixture_that_it_learns():
    w = own = np.zeros(F)
    share = None
    for r in range(3):
        begun = w
        if r:
            first, share = share is None, np.ones(F) if share is None else share
            for _ in range(10 if first else 1):  # one batch a pass: the losses of one batch do not spread
                slope = gradient_of(1, own + share * (w - own))
                share = np.clip(share - 0.5 * slope * (w - own), 0, 1)
            begun = own + share * (w - own)
        own = stepped(1, begun)
        w = w + 0.7 * (own - w)  # the server goes only a part of the way, or both were the same
    server = umbel.core.optimizers.sgd(0.7)
    common, _ = personal_of(FedALA(cohort=1, layers=1, eta=0.5, share=1.0, server=server), rounds=3)
    np.testing.assert_allclose(common, w, rtol=1e-9)


def test_moon_compares_with_the_model_sent_and_with_the_last():
    """Against autograd of the loss as the paper writes it, with its quotient of exponentials."""
    x, y = map(torch.as_tensor, DATA[1])
    mu, tau, sent, last = 0.8, 0.5, torch.zeros(F, F, dtype=torch.float64), None
    sent = torch.eye(F, dtype=torch.float64) + 0.1

    def features(w, batch):
        return batch[0] @ w.T

    for _ in range(2):
        w = sent.clone().requires_grad_(True)
        for _ in range(STEPS[1]):
            loss = ((features(w, (x,)).sum(1) - y) ** 2).mean() / 2
            if last is not None:
                z, near, far = features(w, (x,)), features(sent, (x,)), features(last, (x,))
                cosines = [(z * o).sum(1) / (z.norm(dim=1) * o.norm(dim=1)) for o in (near, far)]
                up, down = (torch.exp(c / tau) for c in cosines)
                loss = loss + mu * -torch.log(up / (up + down)).mean()
            (slope,) = torch.autograd.grad(loss, w)
            w = (w - LR * slope).detach().requires_grad_(True)
        last = w.detach()
        sent = sent + 0.5 * (last - sent)
    one = umbel.Client()

    @one.train
    def train(model, data, ctx):
        net = umbel.torch.load_(nn.Linear(F, F, bias=False).double(), model)
        loss = lambda net, batch: ((net(batch[0]).sum(1) - batch[1]) ** 2).mean() / 2  # noqa: E731
        seen = lambda net, batch: net(batch[0])  # noqa: E731
        return umbel.torch.fit(
            net, DATA[1], ctx, loss=loss, lr=LR, epochs=STEPS[1], batch=0, features=seen if seeing else None
        )

    strategy = Moon(cohort=1, mu=mu, temperature=tau, server=umbel.core.optimizers.sgd(0.5))
    start = {"weight": (np.eye(F) + 0.1)}
    seeing = True
    np.testing.assert_allclose(run(strategy, 2, 1, one, start).model["weight"], sent.numpy(), rtol=1e-8)
    seeing = False
    with pytest.raises(AppError, match="does not know what they are"):
        run(strategy, 1, 1, one, start)


def two_layers():
    return nn.Sequential(nn.Linear(F, 2, bias=False), nn.Linear(2, 1, bias=False)).double()


def partly(strategy, rounds=3, clients=3):
    """The common model, and each client's own arrays at its last task."""
    kept = {}
    some = umbel.Client()

    @some.train
    def train(model, data, ctx):
        i = data["index"]
        torch.manual_seed(5)
        net = umbel.torch.load_(two_layers(), model, strict=False)
        update = umbel.torch.fit(net, DATA[i], ctx, loss=squares, lr=LR, epochs=2, batch=0)
        kept[i] = {name: array.copy() for name, array in ctx.state["personal"].items()}
        return update

    torch.manual_seed(5)
    start = umbel.torch.arrays(two_layers())
    return run(strategy, rounds, clients, some, start).model, kept, start


def hand(personal, rounds=3, clients=3, head_epochs=0):
    """The same by hand, in numpy: a client's own part of two layers stays with it."""
    torch.manual_seed(5)
    start = [w.detach().numpy().copy() for w in two_layers().parameters()]
    common, own = list(start), dict.fromkeys(range(clients), start[personal])
    p = SIZES[:clients] / SIZES[:clients].sum()
    for _ in range(rounds):
        ends = []
        for i in range(clients):
            x, y = DATA[i]
            w = [own[i] if k == personal else common[k] for k in range(2)]

            def slopes(w):
                hidden = x @ w[0].T  # noqa: B023
                error = (hidden @ w[1].T)[:, 0] - y  # noqa: B023
                return [np.outer(w[1][0], error @ x) / len(y), (error @ hidden)[None] / len(y)]  # noqa: B023

            for step in range(head_epochs + 2):
                found = slopes(w)
                moving = [0, 1] if not head_epochs else [personal] if step < head_epochs else [1 - personal]
                w = [w[k] - LR * found[k] if k in moving else w[k] for k in range(2)]
            own[i] = w[personal]
            ends.append(w[1 - personal])
        common[1 - personal] = sum(p[i] * ends[i] for i in range(clients))
    return common[1 - personal], own


@pytest.mark.parametrize(
    ("strategy", "personal", "head_epochs"),
    [
        (FedPer(cohort="all", personal=["1.*"]), 1, 0),
        (LGFedAvg(cohort="all", local="0.*"), 0, 0),
        (FedBN(cohort="all", norms=["1.weight"]), 1, 0),
        (FedRep(cohort="all", personal=["1.*"], head_epochs=3), 1, 3),
    ],
    ids=["FedPer", "LGFedAvg", "FedBN", "FedRep"],
)
def test_what_is_personal_stays_with_its_client_and_is_found_again(strategy, personal, head_epochs):
    model, kept, start = partly(strategy)
    common, own = hand(personal, head_epochs=head_epochs)
    np.testing.assert_allclose(model[f"{1 - personal}.weight"], common, rtol=1e-9)
    assert np.array_equal(model[f"{personal}.weight"], start[f"{personal}.weight"])  # the run's own, which nobody sent
    for i, arrays in kept.items():
        np.testing.assert_allclose(arrays[f"{personal}.weight"], own[i], rtol=1e-9)


def test_a_pattern_that_matches_nothing_or_everything_is_refused():
    for personal, why in ((["hed.*"], "matches no array"), (["*"], "nothing to learn together")):
        with pytest.raises(umbel.errors.StrategyError, match=why):
            partly(FedPer(personal=personal))


def test_norm_layers_are_found_by_their_kind():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2)))
    found = umbel.torch.norm_layers(net)
    assert found == [f"1.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")] + [
        "2.0.weight", "2.0.bias",
    ]  # fmt: skip


def fitted(data, ctx=None, **settings):
    seen = {}
    one = umbel.Client()

    @one.train
    def train(model, source, ctx):
        seen["update"] = umbel.torch.fit(umbel.torch.load_(net_of(), model), data, ctx, loss=squares, **settings)
        return seen["update"]

    run(FedAvg(cohort=1, fold=mean()), 1, 1, one, config=ctx)
    return seen["update"]


def test_data_comes_as_arrays_as_a_data_set_or_in_a_loader():
    x, y = map(torch.as_tensor, DATA[2])
    rows = torch.utils.data.TensorDataset(x, y)
    whole = fitted(DATA[2], lr=LR, batch=0).arrays["weight"]
    for data in ((x, y), rows, torch.utils.data.DataLoader(rows, len(y))):
        np.testing.assert_allclose(fitted(data, lr=LR, batch=0).arrays["weight"], whole, rtol=1e-9)
    assert np.array_equal(whole[0], stepped(2, np.zeros(F), steps=1)) or np.allclose(
        whole[0], stepped(2, np.zeros(F), steps=1)
    )
    for data in ("text", 7, (x, y[:-1]), (x.tolist(), y.tolist()), (np.array([["a"] * F]), np.zeros(1))):
        with pytest.raises(AppError, match=r"data to train on|have to be as many"):
            fitted(data, lr=LR)


def test_frames_are_data_where_their_columns_are_numbers():
    pandas = pytest.importorskip("pandas")
    x, y = DATA[2]
    frame, series = pandas.DataFrame(x), pandas.Series(y)
    found = fitted((frame, series), lr=LR, batch=0).arrays["weight"]
    np.testing.assert_allclose(found, fitted((x, y), lr=LR, batch=0).arrays["weight"], rtol=1e-12)
    for data in (frame, (frame.assign(name="a"), series)):
        with pytest.raises(AppError, match="data to train on"):
            fitted(data, lr=LR)


def test_a_stream_without_a_length_is_refused():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([(torch.zeros(F), 0.0)])

    with pytest.raises(AppError, match="no data to train on"):
        fitted(torch.utils.data.DataLoader(Stream()), lr=LR)


def test_a_gradient_is_that_of_the_rows_that_were_seen():
    x, y = map(torch.as_tensor, DATA[2])
    rows, seen = torch.utils.data.TensorDataset(x, y), {}
    one = umbel.Client()

    @one.train
    def train(model, source, ctx):
        net = umbel.torch.load_(net_of(), model)
        loader = torch.utils.data.DataLoader(rows, len(y) - 1, drop_last=True)
        seen["all"] = umbel.torch.gradient(net, (x[:-1], y[:-1]), ctx, loss=squares, batch=0)
        seen["but one"] = umbel.torch.gradient(net, loader, ctx, loss=squares)
        return seen["all"]

    run(FedAvg(cohort=1, fold=mean()), 1, 1, one)
    assert seen["all"].weight == seen["but one"].weight == len(y) - 1
    np.testing.assert_allclose(seen["but one"].arrays["weight"], seen["all"].arrays["weight"], rtol=1e-12)


def test_the_update_says_what_was_done():
    update = fitted(DATA[2], {"lr": LR, "epochs": 3, "batch": 4})
    assert isinstance(update, Update)
    assert update.weight == len(DATA[2][1])
    assert update.metrics["steps"] == 3 * -(-len(DATA[2][1]) // 4)
    assert update.metrics["lr"] == LR
    assert 0 < update.metrics["loss"] < loss_of(2, np.zeros(F))
    assert "initial_loss" not in update.metrics
    adam = fitted(DATA[2], {"lr": LR}, optimizer=lambda weights: torch.optim.Adam(weights, lr=0.5)).arrays["weight"]
    assert np.abs(adam).max() > 0.4
    with pytest.raises(AppError, match="needs a learning rate"):
        fitted(DATA[2])


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True},
                                      {"momentum": 0.5, "dampening": 0.2}])  # fmt: skip
def test_a_strategy_that_goes_by_steps_is_told_as_many_plain_ones_as_lead_as_far(settings):
    """FedNova's effective numbers of steps: what all gradients along the way count, which are the same here."""
    sgd, told = (lambda weights: torch.optim.SGD(weights, LR, **settings)), []
    one = umbel.Client()

    @one.train
    def train(model, data, ctx):
        net, slope = umbel.torch.load_(net_of(), model), lambda net, batch: net.weight.sum()
        told.append(umbel.torch.fit(net, DATA[1], ctx, loss=slope, lr=LR, epochs=4, batch=0, optimizer=sgd))
        return told[-1]

    run(FedNova(cohort="all"), 1, 1, one)
    run(FedAvg(cohort="all"), 1, 1, one)
    np.testing.assert_allclose(told[0].arrays["weight"], -LR * told[0].metrics["steps"], rtol=1e-12)
    assert told[1].metrics["steps"] == 4


def test_a_client_without_data_has_nothing_to_say():
    x, y = DATA[2]
    update = fitted((x[:0], y[:0]), {"lr": LR})
    assert (update.weight, update.metrics["steps"]) == (0, 0)
    assert not update.arrays["weight"].any()


def test_fedproto_pulls_features_towards_the_prototypes_of_their_classes():
    """Against autograd of the loss as the paper writes it, and sums by class."""
    x = torch.as_tensor(DATA[1][0])
    y = (x[:, 0] > 0).long()
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(F, 2, bias=False), nn.Linear(2, 2, bias=False)).double()
    begun = [w.detach().clone() for w in net.parameters()]
    weights, prototypes = begun, None
    for r in range(2):
        for _ in range(3):
            a, b = (w.clone().requires_grad_(True) for w in weights)
            hidden = x @ a.T
            loss = nn.functional.cross_entropy(hidden @ b.T, y)
            if r:
                loss = loss + 0.7 * ((hidden - torch.as_tensor(prototypes)[y]) ** 2).mean()
            slopes = torch.autograd.grad(loss, (a, b))
            weights = [w.detach() - LR * g for w, g in zip((a, b), slopes, strict=True)]
        hidden = (x @ weights[0].T).numpy()
        sums = np.array([hidden[y.numpy() == c].sum(0) for c in range(2)])
        counts = np.bincount(y.numpy(), minlength=2)
        prototypes = (sums / counts[:, None]).astype(np.float32).astype(np.float64)
    found = {}
    one = umbel.Client()

    @one.train
    def train(model, data, ctx):
        mine = umbel.torch.load_(copy.deepcopy(net), model)
        seen = lambda net, batch: net[0](batch[0])  # noqa: E731
        found["update"] = umbel.torch.fit(mine, (x, y), ctx, lr=LR, epochs=3, batch=0, features=seen)
        return found["update"]

    result = run(FedProto(cohort=1, weight=0.7), 2, 1, one, umbel.torch.arrays(net))
    np.testing.assert_allclose(found["update"].arrays["sums"], sums, rtol=1e-6)
    assert found["update"].arrays["counts"].tolist() == counts.tolist()
    np.testing.assert_array_equal(result.model["0.weight"], begun[0])  # nobody's model was shared


@pytest.mark.slow  # the first optimizer of torch.optim in a process loads a compiler
def test_a_student_learns_what_its_teachers_say_together():
    torch.manual_seed(0)
    make = lambda: nn.Linear(F, 4)  # noqa: E731
    teachers, student = [umbel.torch.arrays(make()) for _ in range(2)], umbel.torch.arrays(make())
    inputs = torch.randn(20, 16, F)
    learn = umbel.torch.distil(make, inputs, epochs=40, lr=0.05, temperature=2.0)

    def said(model):
        return umbel.torch.load_(make(), model)(inputs[0]) / 2.0

    wanted = nn.functional.softmax(sum(said(t) for t in teachers) / 2, 1)
    apart = lambda model: float((nn.functional.softmax(said(model), 1) - wanted).detach().abs().max())  # noqa: E731
    learned = learn(student, teachers)
    assert apart(learned) < 0.01 < 0.1 < apart(student)
    assert learn(student, teachers) == learned


def test_fedgen_trains_on_what_the_server_imagines_and_the_server_on_what_clients_say():
    """Against a loop that draws the same labels and noise from torch's generator, in the same order."""
    x = torch.as_tensor(DATA[1][0])
    y = (x[:, 0] > 0).long()
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(F, 4, bias=False), nn.Linear(4, 2, bias=False)).double()
    head = lambda net, made: net[1](made.double())  # noqa: E731
    maker = umbel.torch.FeatureGenerator(lambda: copy.deepcopy(net), head, features=4, classes=2, steps=5)
    calls, seen = [], {}

    def learn(generator, models, labels):
        calls.append((models, labels))
        return maker(generator, models, labels)

    one = umbel.Client()

    @one.train
    def train(model, data, ctx):
        seen["inbox"], seen["begun"] = ctx.inbox, model
        mine = umbel.torch.load_(copy.deepcopy(net), model)
        torch.manual_seed(11)
        seen["update"] = umbel.torch.fit(mine, (x, y), ctx, lr=LR, epochs=3, batch=0, generator=maker)
        return seen["update"]

    strategy = FedGen(cohort=1, generator=maker.arrays(), learn=learn, weight=0.6)
    result = run(strategy, 2, 1, one, umbel.torch.arrays(net))
    weights = [torch.tensor(np.array(seen["begun"][f"{k}.weight"])) for k in range(2)]
    torch.manual_seed(11)
    for _ in range(3):
        a, b = (w.clone().requires_grad_(True) for w in weights)
        labels = torch.randint(2, (len(y),))
        made = maker.drawn(seen["inbox"], labels).double()
        loss = nn.functional.cross_entropy(x @ a.T @ b.T, y) + 0.6 * nn.functional.cross_entropy(made @ b.T, labels)
        weights = [w.detach() - LR * g for w, g in zip((a, b), torch.autograd.grad(loss, (a, b)), strict=True)]
    for k in range(2):
        np.testing.assert_allclose(seen["update"].arrays[f"{k}.weight"], weights[k], rtol=1e-9)
        np.testing.assert_allclose(result.model[f"{k}.weight"], weights[k], rtol=1e-9)
    assert calls[0][1].tolist() == [np.bincount(y, minlength=2).tolist()]
    assert len(calls) == 2
    np.testing.assert_allclose(calls[1][0][0]["0.weight"], weights[0], rtol=1e-9)


@pytest.mark.parametrize("wrong", [None, [1.0], [-1.0, 2.0], [[1.0, 1.0]], [0.0, 0.0], [True, True]])
def test_a_client_that_miscounts_its_labels_teaches_the_generator_nothing(wrong):
    one, calls = umbel.Client(), []

    @one.train
    def train(model, data, ctx):
        ctx.correction.take()
        labels = [2.0, 1.0] if ctx.client != 1 else wrong
        aux = {} if labels is None else {"labels": np.array(labels)}
        return Update({"w": model["w"] + ctx.client}, aux=aux)

    def learn(generator, models, labels):
        calls.append(([float(model["w"][0]) for model in models], labels.tolist()))
        return generator

    generator = umbel.Arrays({"g": np.zeros(1)})
    result = run(FedGen(cohort="all", generator=generator, learn=learn), 1, 3, one, {"w": np.zeros(1)})
    assert calls == [([0.0, 2.0], [[2.0, 1.0]] * 2)]
    assert result.model["w"] == 1.0  # of all three


@pytest.mark.slow  # the first optimizer of torch.optim in a process loads a compiler
def test_what_a_generator_makes_is_what_the_heads_call_by_its_label():
    torch.manual_seed(2)
    make = lambda: nn.Linear(6, 3)  # noqa: E731
    heads = [umbel.torch.arrays(make()) for _ in range(2)]
    maker = umbel.torch.FeatureGenerator(make, lambda net, made: net(made), features=6, classes=3, steps=150, lr=0.02)
    begun = maker.arrays()
    learned = maker(begun, heads, np.array([[10.0, 10.0, 0.0], [10.0, 0.0, 10.0]]))
    labels = torch.arange(3).repeat(40)

    def right(generator):
        made = maker.drawn(generator, labels)
        said = [umbel.torch.load_(make(), h)(made).argmax(1) for h in heads]
        return [float((s == labels)[labels != missing].float().mean()) for s, missing in zip(said, (2, 1), strict=True)]

    assert min(right(learned)) > 0.95 > max(right(begun))
    made = maker.drawn(learned, torch.zeros(20, dtype=torch.long))
    assert float(made.std(0).mean()) > 0.05  # and it does not make the same again and again
    assert maker(begun, heads, np.ones((2, 3))) == maker(begun, heads, np.ones((2, 3)))
    silent = umbel.Client()
    silent.train(lambda model, data, ctx: umbel.torch.fit(umbel.torch.load_(net_of(), model), DATA[0], ctx, lr=0.1))
    with pytest.raises(AppError, match="by what they are made"):
        run(FedGen(cohort=1, generator=begun, learn=maker), 1, 1, silent)
