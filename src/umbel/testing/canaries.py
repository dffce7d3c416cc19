"""Canaries: clients that an audit adds to an app's own, to see how well its releases hide whether they took part.

What is audited is the app's own strategy, transforms, fold and releases, run in a simulation; only what clients answer
is replaced. A canary's update is a direction of its own, a thousand times as long as the bound, and turns round every
round: so a clip that is forgotten is seen, and noise that is used twice cancels. (Where noise is correlated over
rounds, so that sums have less of it, canaries that do not turn round are found better: `turns`.) All others answer that
nothing has changed. Differential privacy holds for whatever others do, so the audit may choose it, and theirs is no
noise. (Where holders add the noise, runs with one canary have nobody else: what is to hide each answer by itself gets
no help of others' noise.) A canary that does not take part is not there, or says that nothing has changed, or the
opposite of what it would say, whichever is the furthest that neighbours may be apart.

The seed decides canaries and their coins. Noise is drawn as in any run, from the operating system: an audit of pinned
noise would be one of another mechanism.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ..core.app import App
from ..core.arrays import Array, Arrays, wide
from ..core.client import Client
from ..core.randomness import Key
from ..core.strategy import Asks, State, Strategy
from ..core.update import Update
from ..errors import NothingToFold, SettingError
from ..privacy.accounting import spent
from ..privacy.audit import (
    Floats,
    PrivacyAudit,
    check_confidence,
    discriminant,
    gaussian_epsilon,
    gaussian_mu,
    ideal,
    many_run_bounds,
    one_run_bound,
)
from ..privacy.release import ADD_OR_REMOVE, GAUSSIAN, REPLACE, NoisyRelease
from ..runs.events import AskClosed, RunEvent
from ..runs.run import run
from ..simulation.federation import Simulation
from ..strategies.fedavg import FedAvg

CANARIES = 1000
LOUD = 1000.0
"""How many times the bound a canary's update is long."""
DELTAS = (1e-3, 1e-2, 0.1)
"""Where many-run audits look, beside the delta that was asked for: it takes few runs to see much at a large delta."""


class Directions:
    """Unit vectors that stand at right angles to each other: each has elements of its own, drawn from a key, of +-1
    over the root of how many they are. By default there are 1,000, or as many as there are elements.
    """

    def __init__(self, model: Arrays, count: int | None, key: Key) -> None:
        self.schema = {name: spec for name, spec in sorted(model.schema.items()) if spec.role == "parameter"}
        size = sum(math.prod(spec.shape) for spec in self.schema.values())
        count = min(size, CANARIES) if count is None else count
        if count > size:
            raise SettingError(f"{count:,} canaries in a model of {size:,} parameters", hint=f"Plant at most {size:,}.")
        rng, self.count = key.generator(), count
        self.owner, self.sign = rng.permutation(size) % count, rng.choice([-1.0, 1.0], size)
        self.root = np.sqrt(np.bincount(self.owner, minlength=count))

    def arrays(self, canary: int | None, norm: float, model: Arrays) -> Arrays:
        """The update of a canary, so long; of nobody's: zeros."""
        flat = np.zeros(len(self.owner)) if canary is None else self.sign * (self.owner == canary)
        made = {name: np.zeros_like(model[name]) for name in model}
        cuts = np.cumsum([math.prod(spec.shape) for spec in self.schema.values()])[:-1]
        for (name, spec), part in zip(self.schema.items(), np.split(flat, cuts), strict=True):
            made[name] = np.asarray(part.reshape(spec.shape) * (norm / self.root[canary or 0]), wide(spec.dtype))
        return Arrays(made, dict(model.roles))

    def along(self, flat: Floats) -> Floats:
        """How long a vector is along each of them."""
        found: Floats = np.bincount(self.owner, flat * self.sign, self.count) / self.root
        return found

    def flat(self, arrays: Mapping[str, Array]) -> Floats:
        """Arrays as one vector."""
        return np.concatenate([np.asarray(arrays[name], np.float64).ravel() for name in self.schema])


@dataclass
class _Heard:
    """What whoever gets the releases of one run has heard, and who contributed, for ourselves."""

    answers: list[Arrays] = field(default_factory=list)
    closed: list[AskClosed] = field(default_factory=list)
    came: list[set[Any]] = field(default_factory=list)

    def __call__(self, event: RunEvent) -> None:
        if isinstance(event, AskClosed) and event.reason is None:
            self.closed.append(event)

    @property
    def releases(self) -> list[NoisyRelease]:
        return [NoisyRelease.of(each) for event in self.closed for each in event.releases]


class _Overheard(Strategy):
    """A strategy, of which it is heard what it is answered: all that becomes of an answer is made of that."""

    def __init__(self, own: Strategy, heard: _Heard) -> None:
        self.own, self.heard = own, heard
        self.transforms = getattr(own, "transforms", ())

    def start(self, model: Arrays) -> State:
        return self.own.start(model)

    def in_round(self, r: int) -> Strategy:
        return _Overheard(self.own.in_round(r), self.heard)

    def round(self, state: State, r: int) -> Asks:
        going = self.own.round(state, r)
        try:
            asks = next(going)
            while True:
                try:
                    reply = yield asks
                except NothingToFold as error:
                    asks = going.throw(error)
                    continue
                for answer in reply if isinstance(reply, list) else [reply]:
                    self.heard.answers.append(answer.value)
                    self.heard.came.append({receipt.client for receipt in answer.receipts})
                asks = going.send(reply)
        except StopIteration as end:
            done: State = end.value
            return done


@dataclass(frozen=True)
class Planted:
    """An app with canaries. `clients` others are there; `norm` is how long canaries' updates are, which turn round
    every round, or not. One that is absent answers `absent` times that.
    """

    app: App
    model: Arrays
    directions: Directions
    clients: int
    rounds: int
    turns: bool = True
    norm: float = 1.0
    absent: float = 0.0

    def alone(self) -> Planted:
        """Without others, and with everybody asked: holders' own noise is to hide each answer, and not their sum."""
        app, strategy = copy(self.app), self.app.strategy
        app.strategy = replace(strategy, cohort="all") if isinstance(strategy, FedAvg) else strategy
        return replace(self, app=app, clients=0)

    def heard(self, present: Sequence[int], absent: Sequence[int], seed: int) -> _Heard:
        """What is released in one run with the canaries that are present. Those that are absent are not there, or,
        given as such, answer so.
        """
        told = [*((canary, 1.0) for canary in present), *((canary, self.absent) for canary in absent)]
        who = dict(enumerate(told, start=self.clients))
        client, heard = Client(), _Heard()
        for kind in self.app.client.handlers:
            client._register(kind, partial(self._answer, who))
        app = App(
            client,
            model=self.model,
            strategy=_Overheard(self.app.strategy, heard),
            rounds=self.rounds,
            config=self.app.config,
            evaluate_every=0,
            max_failed_rounds=self.rounds,
        )
        run(app, on=Simulation(self.clients + len(who), workers=0), seed=seed, folder=None, observers=[heard])
        refused = {tuple(row[:1]) for event in heard.closed for row in event.failed}
        if refused:
            raise SettingError(f"the audit's clients were not taken: {next(iter(refused))[0]}")
        heard.came = [{who[client][0] for client in came if client in who} for came in heard.came]
        return heard

    def _answer(self, who: Mapping[int, tuple[int, float]], model: Arrays, data: Any, ctx: Any) -> Update:
        if ctx.correction is not None:
            ctx.correction.take()  # whatever it is, a client need not do it
        canary, share = who.get(ctx.client, (None, 0.0))
        return Update(self.directions.arrays(canary, share * self._turn(ctx.round) * self.norm, model), delta=True)

    def _turn(self, round: int) -> float:
        return -1.0 if self.turns and round % 2 == 0 else 1.0

    def scores(self, heard: _Heard) -> tuple[Floats, Floats, float]:
        """For each canary the logarithm of how much likelier the releases are with it than without it, by the noise and
        the sampling that are claimed for each; how long each release is along it, a row a release; and how long the
        shortest release is in all directions together: a wrong denominator tells by its noise how many came.
        """
        ratio, along, energy = np.zeros(self.directions.count), [], math.inf
        events = sorted(heard.closed, key=lambda event: event.ask)
        for event, release, answer in zip(events, heard.releases, heard.answers, strict=True):
            flat = self.directions.flat(answer) * (release.denominator or 1.0) / release.norm
            x = self.directions.along(flat) * self._turn(event.round)
            rate = release.sampling.get("rate", 1.0)
            term = (x - 0.5) / max(release.noise, 1e-9) ** 2
            with np.errstate(divide="ignore"):
                ratio += np.logaddexp(np.log(rate) + term, np.log1p(-rate))
            along.append(x)
            energy = min(energy, math.log(float(flat @ flat) + 1e-300))
        return ratio, np.array(along), energy


def planted(
    app: App, canaries: int | None, clients: int | None, rounds: int | None, seed: int, turns: bool
) -> tuple[Planted, _Heard]:
    """The app with canaries as loud as they have to be, and a first run without them, which says what is claimed.
    Raises `SettingError` for an app that hides no client.
    """
    model, key = app.initial_model(), Key.from_seed(seed)
    if clients is None:
        clients = len(app.federation.clients) if isinstance(app.federation, Simulation) else 10
    made = Planted(
        app, model, Directions(model, canaries, key.derive("directions")), clients, rounds or app.rounds, turns
    )
    heard = made.heard([], [] if clients else [0], seed)
    if not all(event.releases for event in heard.closed):
        raise SettingError(
            "the app hides nobody: its answers are told as they are, so there is no claim to audit",
            hint="See docs/privacy.md; `umbel privacy attack` shows what is given away.",
        )
    if any(release.unit != "client" for release in heard.releases):
        raise SettingError("the app hides examples, and canaries are clients: this audit would say nothing of it")
    opposite = all(release.neighbours == REPLACE for release in heard.releases)
    norm = LOUD * max(release.norm for release in heard.releases)
    return replace(made, norm=norm, absent=-1.0 if opposite else 0.0), heard


def audit_one_run(
    app: App,
    *,
    canaries: int | None = None,
    clients: int | None = None,
    rounds: int | None = None,
    delta: float = 1e-5,
    confidence: float = 0.95,
    seed: int = 0,
    accountant: str = "pld",
    turns: bool = True,
) -> PrivacyAudit:
    """Audit an app by one run with canaries, each of which takes part by a coin of its own (Steinke, Nasr & Jagielski
    2023, arXiv 2305.08846): the bound holds for whatever is (epsilon, delta)-private, and finds at most about the
    logarithm of a third of the canaries.
    """
    check_confidence(confidence)
    made, first = planted(app, canaries, clients, rounds, seed, turns)
    coins = Key.from_seed(seed).derive("coins").generator().random(made.directions.count) < 0.5
    present, absent = np.flatnonzero(coins).tolist(), np.flatnonzero(~coins).tolist()
    heard = made.heard(present, [] if _can_leave(first) else absent, seed + 1)
    _check_came(sum(map(len, heard.came)))
    scores, claim = made.scores(heard)[0], max(spent(h.releases, delta, accountant).epsilon for h in (first, heard))

    def bound(present: Floats, absent: Floats) -> float:
        return one_run_bound(present, absent, delta, confidence)

    found, mu = bound(scores[present], scores[absent]), gaussian_mu(claim, delta)
    if made.absent:  # a canary is heard in a sum with the noise of all
        mu /= math.sqrt(made.clients + len(scores))
    return PrivacyAudit(
        kind="one run",
        epsilon=found,
        gaussian=None,
        claim=claim,
        delta=delta,
        confidence=confidence,
        ideal=ideal(bound, mu, len(present), len(absent), seed),
        profile=((delta, found, claim),),
        canaries=len(scores),
        runs=1,
        seed=seed,
        present=scores[present],
        absent=scores[absent],
    )


def audit_many_runs(
    app: App,
    *,
    runs: int = 400,
    clients: int | None = None,
    rounds: int | None = None,
    delta: float = 1e-5,
    confidence: float = 0.95,
    seed: int = 0,
    accountant: str = "pld",
    turns: bool = True,
    on_run: Callable[[], None] = lambda: None,
) -> PrivacyAudit:
    """Audit an app by runs with one canary and as many without it: see `many_run_bounds`. `on_run` is called after
    each.
    """
    check_confidence(confidence)
    made, first = planted(app, 1, clients, rounds, seed, turns)
    made = made.alone() if made.absent else made
    rows: dict[bool, list[list[float]]] = {True: [], False: []}
    by_round: dict[bool, list[Floats]] = {True: [], False: []}
    claimed, came = {_claim_of(first): first.releases}, 0
    for i in range(runs):
        taken = i % 2 == 0
        heard = made.heard([0] if taken else [], [] if taken or _can_leave(first) else [0], seed + 1 + i)
        (ratio,), along, energy = made.scores(heard)
        rows[taken].append([ratio, float(along.sum()), energy])
        by_round[taken].append(along[:, 0] if _can_leave(first) else _by_asked(along[:, 0], heard.came))
        came += sum(map(len, heard.came))
        claimed.setdefault(_claim_of(heard), heard.releases)
        on_run()
    _check_came(came)
    deltas = sorted({delta, *DELTAS})
    claims = {d: max(spent(each, d, accountant).epsilon for each in claimed.values()) for d in deltas}
    shown = np.array(by_round[True] + by_round[False])
    shown = shown[:, shown.any(0)]
    fitted = discriminant(*np.split(shown, [len(by_round[True])]))
    present, absent = (
        np.column_stack([rows[taken], found]) for taken, found in zip((True, False), fitted, strict=True)
    )
    released = [release for each in claimed.values() for release in each]
    plainly = all(each.mechanism in GAUSSIAN and each.sampling["kind"] != "poisson" for each in released)
    bounds, mu, column = many_run_bounds(present, absent, claims, confidence, plainly)

    def bound(present: Floats, absent: Floats) -> float:
        found, mu, _ = many_run_bounds(present[:, None], absent[:, None], claims, confidence, plainly)
        return gaussian_epsilon(mu, delta) if plainly else found[delta]

    mu_claimed = gaussian_mu(claims[delta], delta)
    return PrivacyAudit(
        kind="many runs",
        epsilon=bounds[delta],
        gaussian=gaussian_epsilon(mu, delta) if plainly else None,
        claim=claims[delta],
        delta=delta,
        confidence=confidence,
        ideal=ideal(bound, mu_claimed, len(present), len(absent), seed),
        profile=tuple((d, bounds[d], claims[d]) for d in deltas),
        canaries=1,
        runs=runs,
        seed=seed,
        present=present[:, column],
        absent=absent[:, column],
    )


def _can_leave(heard: _Heard) -> bool:
    """Whether neighbours are with and without one, rather than with and without what one says."""
    return all(release.neighbours == ADD_OR_REMOVE for release in heard.releases)


def _by_asked(along: Floats, came: Sequence[set[Any]]) -> Floats:
    """What each round shows where the canary was asked, and where it was not, which no noise hides: noise of the one
    may show in the other.
    """
    asked = np.array([bool(each) for each in came])
    return np.concatenate([np.where(asked, along, 0.0), np.where(asked, 0.0, along)])


def _claim_of(heard: _Heard) -> str:
    """What is claimed but for bounds, which may move, and names that are drawn: what is spent depends on neither."""
    return repr([{**release.plain(), "norm": 0, "steps": 0, "stream": 0} for release in heard.releases])


def _check_came(count: int) -> None:
    if not count:
        raise SettingError("no canary was ever asked", hint="Give the audit more --rounds, or fewer --clients.")
