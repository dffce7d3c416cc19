"""Asks of every shape: what can be said of an ask, all pairs of it, and an app whose strategy asks them one by one.

What a handler sees goes into its metrics, as a hash; what a strategy is told is kept as plain values. So two worlds can
be compared bit by bit.
"""

from __future__ import annotations

import hashlib
import itertools
import random

import ml_dtypes
import numpy as np

import umbel
from umbel import Arrays, Ask, Correction, Free, Like, Window, folds, transforms
from umbel.core.ask import for_client
from umbel.errors import NothingToFold, StrategyError
from umbel.samplers.fixed import Fixed
from umbel.samplers.poisson import Poisson

MODEL = Arrays(
    {
        "w": np.arange(6, dtype=np.float32),
        "wide": np.linspace(-1, 1, 40, dtype=np.float32),
        "half": np.arange(5, dtype=np.float16),
        "brain": np.arange(3).astype(ml_dtypes.bfloat16),
        "double": np.arange(6.0).reshape(2, 3),
        "mean": np.ones(4, np.float32),
        "count": np.array(7),
        "own": np.full(3, 5.0, np.float32),
    },
    {"mean": "buffer", "own": "personal"},
)
OTHER = Arrays({"z": np.zeros(4, np.float32), "a": np.zeros((), np.int32), "own": np.zeros(2)}, {"own": "personal"})
AUX = Arrays({"drift": np.zeros(5), "seen": np.zeros(2, np.int16)})
FREE = Arrays(
    {
        "x": np.zeros(3), "flags": np.zeros(2, bool), "bytes": np.zeros(4, np.uint8), "n": np.zeros((), np.int64),
        "half": np.zeros(2, np.float16), "long": np.zeros(60, np.float32),
    }
)  # fmt: skip

KINDS = ("train", "evaluate", "query:ask")
MODELS = {
    "shared": lambda model: model,
    "none": lambda model: None,
    "by client": lambda model: lambda c: model.replace({"w": model["w"] + c}),
}
CONFIGS = {
    "flat": lambda at: {"at": at, "rate": 0.1},
    "nested": lambda at: {"at": at, "z": {"b": [1, (2.5, None)], "a": True}, "array": np.arange(3), 4: "four"},
    "by client": lambda at: lambda c: {"at": at, "rate": 0.1 * c, "who": f"client {c}"},
}
INBOXES = {
    "none": None,
    "shared": {"letter": np.arange(5), "again": np.ones(2, np.float32)},
    "roles": Arrays({"z": np.ones(2), "a": np.zeros(3)}, {"z": "buffer"}),
    "by client": lambda c: {"letter": np.full(3, c)} if c % 2 else None,
}
CORRECTIONS = {
    "none": None,
    "proximal": Correction(0.5),
    "linear": Correction(0.0, Arrays({"w": np.ones(6, np.float32)})),
    "by client": lambda c: Correction(0.1 * c, Arrays({"w": np.full(6, c, np.float32)})) if c % 2 else None,
    "whole": Correction(0.1, scale=0.5, control=True, perturbation=(0.1, 1.0), reports=("steps", "lr")),
    "procedure": Correction(procedure="own", settings={"mu": 0.5, "at": [1, (2, None)]}),
}
EXPECTS = {
    "like": Like(),
    "names": Like(names=("w*", "mean")),
    "values": Like(delta=False),
    "another": Like(OTHER, delta=False),
    "aux like": Like(aux=Like(AUX)),
    "aux free": Like(names=("half", "brain"), aux=Free()),
    "free": Free(),
    "free, bounded": Free(max_bytes=4096, aux=Free(max_bytes=64)),
    "by client": lambda c: Like(names=("w",)),
    "both by client": lambda c: Like(names=("w",), delta=c % 2 == 0),
}
FOLDS = {
    "weighted_mean": umbel.weighted_mean(),
    "max_weight": umbel.weighted_mean(max_weight=2.0),
    "mean": umbel.mean(),
    "total": umbel.total(),
    "collect": umbel.collect(),
    "median": folds.median(),
    "krum": folds.krum(f=0),
    "signs": folds.sign_majority(),
    "bounded": folds.norm_bounded(2.0),
}
WEIGHTS = {"claimed": None, "same": 2.5, "by client": lambda c: 0.5 * c}
TRANSFORMS = {
    "none": (),
    "top_k": umbel.top_k(0.3),
    "forgetful": umbel.top_k(0.2, error_feedback=False),
    "clip": umbel.clip_by_norm(0.5),
    "chain": (umbel.top_k(0.3), umbel.clip_by_norm(0.5)),
    "few bits": (transforms.error_feedback(), transforms.quantise(4)),
    "rotated": transforms.drive(),
    "random": transforms.random_k(0.5),
    "low rank": transforms.power_sgd(1),
    "sketch": transforms.count_sketch(0.5),
    "measured": (transforms.extrapolated(), umbel.clip_by_norm(0.5)),
    "variates": transforms.control_variates(),
    "fair": transforms.fair_weights(2.0),
}
WINDOWS = {
    "all": Window(),
    "quorum": Window(quorum=3),
    "none needed": Window(quorum=0),
    "few at once": Window(in_flight=2),
    "early": Window(in_flight=1, close_after=2),
    "deadline": Window(deadline=1e9),
}
REPORTED = {"steps": 3, "lr": 0.1, "initial_loss": 1.5}
LATE = Window(in_flight=3, close_after=2, late="keep")
"""Begins some tasks that end in a later ask, with whatever their clients have kept by then."""
LANES = {"own": None, "common": "common"}
COHORTS = {"all": "all", "two": 2, "named": Fixed((3, 0, 1)), "chance": Poisson(0.8)}
RETURNS = ("values", "delta", "more")
TROUBLES = ("none", "raises", "nan", "shape", "weight", "no weight", "nobody")

SHAPE = {
    "kind": KINDS, "model": tuple(MODELS), "config": tuple(CONFIGS), "inbox": tuple(INBOXES),
    "correction": tuple(CORRECTIONS), "expects": tuple(EXPECTS), "fold": tuple(FOLDS), "transforms": tuple(TRANSFORMS),
    "weight": tuple(WEIGHTS),
    "window": tuple(WINDOWS), "lane": tuple(LANES), "cohort": tuple(COHORTS), "returns": RETURNS, "trouble": TROUBLES,
}  # fmt: skip


def ask_of(shape, model, at):
    """The ask of a shape."""
    return Ask(
        kind=shape["kind"],
        clients=COHORTS[shape["cohort"]],
        model=MODELS[shape["model"]](model),
        config=CONFIGS[shape["config"]](at),
        inbox=INBOXES[shape["inbox"]],
        correction=CORRECTIONS[shape["correction"]],
        expects=EXPECTS[shape["expects"]],
        weight=WEIGHTS[shape["weight"]],
        fold=FOLDS[shape["fold"]],
        transforms=TRANSFORMS[shape["transforms"]],
        window=LATE if shape["window"] == "late" else WINDOWS[shape["window"]],
        lane=LANES[shape["lane"]],
    )


def is_sound(shape):
    """Whether a strategy may ask this at all."""
    try:
        ask = ask_of(shape, MODEL, 0)
        for client in range(2):
            ask.agreed(for_client(ask.model, client), for_client(ask.expects, client))
    except StrategyError:
        return False
    return True


def all_pairs(seed=1):
    """Shapes in which any two things that can be said together are said together once."""
    draw = random.Random(seed)
    pairs = {((a, x), (b, y)) for a, b in itertools.combinations(SHAPE, 2) for x in SHAPE[a] for y in SHAPE[b]}
    shapes, impossible = [], []
    while pairs:
        first = min(pairs)
        found = [shape for _ in range(60) if is_sound(shape := random_shape(draw, dict(first)))]
        if not found:
            impossible.append(first)
            pairs.discard(first)
            continue
        best = max(found, key=lambda shape: len(pairs_of(shape) & pairs))
        shapes.append(best)
        pairs -= pairs_of(best)
    return shapes, impossible


def random_shape(draw, fixed=()):
    """A shape at random, but for what is fixed."""
    return {**{name: draw.choice(values) for name, values in SHAPE.items()}, **dict(fixed)}


def pairs_of(shape):
    """The pairs of what a shape says, in the order of SHAPE."""
    return set(itertools.combinations([(name, shape[name]) for name in SHAPE], 2))


class Every(umbel.Strategy):
    """Asks groups of shapes, a group a round, all of a group at once; `told` collects what came of them."""

    def __init__(self, groups):
        self.groups = groups
        self.told = []

    def round(self, state, r):
        group = self.groups[r - 1]
        first = sum(map(len, self.groups[: r - 1]))
        asks = [ask_of(shape, state.model, at) for at, shape in enumerate(group, first)]
        # A run to whose first round nobody has given anything would be over.
        yield Ask(kind="query:pulse", clients="all", model=None, expects=Free(), fold=umbel.total())
        try:
            replies = yield (asks[0] if len(asks) == 1 else asks)
            self.told.append([plain(reply) for reply in ([replies] if len(asks) == 1 else replies)])
        except NothingToFold as error:
            self.told.append(error.message)
        return umbel.State(state.model.replace({"w": state.model["w"] + np.float32(0.25)}))


def app_of(groups):
    """An app that asks these groups of shapes, and what its strategy is told."""
    shapes = list(itertools.chain(*groups))
    client = umbel.Client()
    client.data(lambda source: np.random.default_rng(source["index"]).normal(size=4))

    @client.evaluate
    def evaluate(model, data, ctx):
        shape = shapes[ctx.config["at"]]
        stumble(shape, ctx)
        return umbel.Metrics({"seen": seen(model, data, ctx), **REPORTED}, weight=weight_of(shape, ctx.client))

    def answer(model, data, ctx):
        shape = shapes[ctx.config["at"]]
        hashed = seen(model, data, ctx)
        if shape["window"] != "late":
            ctx.state["n"] = ctx.state.get("n", 0) + 1
            ctx.state["own"] = ctx.state.get("own", np.zeros(3, np.float32)) + 1
        stumble(shape, ctx)
        return update_of(shape, model, ctx, hashed)

    client.train(answer)
    client.query("ask")(answer)
    client.query("pulse")(lambda model, data, ctx: umbel.Update({}))
    strategy = Every(groups)
    return umbel.App(client, model=MODEL, strategy=strategy, rounds=len(groups), evaluate_every=0), strategy


def stumble(shape, ctx):
    """What goes wrong before anything is returned."""
    if ctx.correction is not None:
        ctx.correction.take()
    if shape["trouble"] == "nobody" or (shape["trouble"] == "raises" and ctx.client == 1):
        raise ValueError(f"client {ctx.client} stumbles")


def weight_of(shape, client):
    """What an update counts."""
    return 0.0 if shape["trouble"] == "no weight" or (shape["trouble"] == "weight" and client == 1) else 1.0 + client


def update_of(shape, model, ctx, hashed):
    """An update as the shape has it returned."""
    expects = for_client(EXPECTS[shape["expects"]], ctx.client)
    schema = expects.schema(model)
    wanted = like(FREE, ctx) if schema is None else arrays_of(schema, ctx)
    delta = expects.delta and shape["returns"] == "delta"
    if model is not None and not delta:
        moved = {n: model[n] + a.astype(model[n].dtype) for n, a in wanted.items() if n in model and a.dtype != bool}
        wanted.update({n: moved[n].astype(wanted[n].dtype) for n in moved if moved[n].shape == wanted[n].shape})
    if shape["returns"] == "more":  # what was not asked for is left out, and what is personal is
        wanted = {**({n: a for n, a in (model or {}).items() if schema is not None} | wanted)}
        own = {"own": "personal"} if model is not None or expects is EXPECTS["another"] else {}
        wanted = {**wanted, **dict.fromkeys(own, ctx.state.get("own", np.ones(3)))}
    if ctx.client == 1 and shape["trouble"] == "nan":
        wanted = {n: a * np.array(np.nan, a.dtype) if a.dtype.kind == "f" else a for n, a in wanted.items()}
    if ctx.client == 1 and shape["trouble"] == "shape":
        wanted = {n: np.zeros((2, *a.shape), a.dtype) for n, a in wanted.items()}
    aux = {} if expects.aux is None else like(AUX, ctx)
    weight = weight_of(shape, ctx.client)
    metrics = {"seen": hashed, "n": ctx.state.get("n", 0), **REPORTED}
    return umbel.Update(wanted, weight, metrics, aux, delta)


def like(arrays, ctx):
    """Values for such arrays."""
    return arrays_of(arrays.schema, ctx)


def arrays_of(schema, ctx):
    """Values for such arrays."""
    return {n: np.asarray(ctx.rng.normal(size=s.shape) * 3).astype(s.dtype) for n, s in schema.items()}


def seen(model, data, ctx):
    """A hash of all that a handler sees, as a number."""
    correction = None
    if ctx.correction is not None:
        given = ctx.correction.take()
        correction = (given.proximal, named(given.linear), given.rest(), named(ctx.correction.anchor))
    state = {name: np.asarray(value).tolist() for name, value in ctx.state.items()}
    told = [named(model), data.tolist(), ctx.client, ctx.round, ctx.kind, ctx.config, named(ctx.inbox), correction]
    text = repr([*told, ctx.key.raw, state, float(np.random.random()), random.random()])
    return float(int(hashlib.sha256(text.encode()).hexdigest()[:12], 16))


def named(arrays):
    """Arrays as plain values, in their order."""
    if arrays is None:
        return None
    return [(n, arrays.roles[n], a.dtype.name, a.shape, a.tobytes()) for n, a in arrays.items()]


def plain(answer):
    """An answer as plain values, less what only a clock knows."""
    if isinstance(answer.value, dict):
        value = [(c, named(u.arrays), u.weight, u.metrics, named(u.aux), u.delta) for c, u in answer.value.items()]
    else:
        value = named(answer.value)
    receipts = [(r.task, r.client, r.weight, dict(r.metrics), r.staleness) for r in answer.receipts]
    metrics = sorted(answer.metrics.items())
    return [value, named(answer.aux), metrics, answer.weight, receipts, dict(answer.failed), answer.asked]
