"""Canaries find what is wrong with a mechanism, and nothing where it is right. Noise is pinned, so that each test gives
the same each time. That a right mechanism is refuted would have a probability of 1 - `SURE` in each audit, had noise
another key: of all that are here together, below 1e-3.
"""

from dataclasses import dataclass, fields, replace
from unittest.mock import patch

import numpy as np
import pytest

import umbel
from umbel import App, Arrays, FedAvg, Poisson, Update
from umbel.core.randomness import Key
from umbel.entropy import SYSTEM, Entropy
from umbel.errors import SettingError
from umbel.privacy import central_gaussian, dp_ftrl, local_gaussian, local_laplace, privunit
from umbel.privacy.audit import many_run_bounds
from umbel.privacy.discrete import discrete_gaussian
from umbel.privacy.local import AddedNoise
from umbel.privacy.privunit import Levels, cap
from umbel.samplers import Spaced
from umbel.testing.canaries import Directions, audit_many_runs, audit_one_run

pytest.importorskip("dp_accounting")

SURE = 1 - 2e-5
"""With this confidence mechanisms that are right are audited, and with no less those that are wrong beside them."""


@pytest.fixture(autouse=True)
def pinned(monkeypatch):
    """Noise of a key, in place of the operating system's."""
    monkeypatch.setattr(SYSTEM, "words", Key.from_seed(7).draws().words)


def app_of(step, cohort="all", rounds=2, size=2000, **settings):
    """An app whose clients would fail, and are not asked to train by an audit."""
    client = umbel.Client()

    @client.train
    def train(model, data, ctx):
        raise AssertionError

    model = {"w": np.zeros((size // 2, 1), np.float32), "v": np.zeros(size - size // 2)}
    strategy = FedAvg(cohort=cohort, fold=umbel.total(), transforms=step, **settings)
    return App(client, model=model, strategy=strategy, rounds=rounds)


# Bugs, each a mechanism that says of itself what the right one does


class HalvedNoise(central_gaussian):
    def finish(self, answer, state, key, own=SYSTEM):
        return central_gaussian.finish(replace(self, noise=self.noise / 2), answer, state, key, own)


class HalvedLocalNoise(local_gaussian):
    def randomised(self, values, own):
        return local_gaussian.randomised(replace(self, noise=self.noise / 2), values, own)


class ForgottenClip(central_gaussian):
    def encode(self, update, params, local, key, own=SYSTEM):
        return update, local

    def decode(self, update, params, schema=None):
        return update


class NoiseBeforeClip(central_gaussian):
    """Each holder adds noise and then clips: a large update leaves none of it."""

    def encode(self, update, params, local, key, own=SYSTEM):
        noised = {n: a + self._drawn(a.shape, own).astype(a.dtype) for n, a in update.arrays.items()}
        return super().encode(Update(Arrays(noised), delta=True), params, local, key, own)

    def _drawn(self, shape, own):
        steps = round((self.noise * self.norm * 2**20) ** 2)
        return discrete_gaussian(steps, int(np.prod(shape)), own).reshape(shape) / 2**20

    def finish(self, answer, state, key, own=SYSTEM):
        return central_gaussian.finish(replace(self, noise=1e-6), answer, state, key, own)


class DividedByWhoCame(central_gaussian):
    """Noise and all is divided by how many came."""

    def finish(self, answer, state, key, own=SYSTEM):
        made = replace(self, expected=max(answer.count, 1))
        return central_gaussian.finish(made, answer, state, key, own)


class MeanOfWhoCame(central_gaussian):
    """The mean of who came gets the noise that the mean of the expected number would need."""

    def finish(self, answer, state, key, own=SYSTEM):
        value = {n: a * (self.expected / max(answer.count, 1)) for n, a in answer.value.items()}
        return super().finish(replace(answer, value=Arrays(value)), state, key, own)


class CorrelatedNoise(central_gaussian):
    """Each round takes the noise of the round before back, and costs what its own would cost by itself, it says."""

    def init(self, schema):
        object.__setattr__(self, "before", None)
        return super().init(schema)

    def finish(self, answer, state, key, own=SYSTEM):
        found, state = super().finish(answer, state, key, own)
        noise = {n: a - answer.value[n] / self.expected for n, a in found.value.items()}
        before, _ = self.before, object.__setattr__(self, "before", noise)
        made = {n: a - before[n] if before else a for n, a in found.value.items()}
        return replace(found, value=Arrays(made)), state


class ReplayedNoise(central_gaussian):
    """Every other round has the noise of the round before."""

    def finish(self, answer, state, key, own=SYSTEM):
        used = vars(self).setdefault("used", [])
        drawn = used.pop() if used else Key(SYSTEM.words(4).tobytes())
        if len(vars(self).setdefault("drawn", [])) % 2 == 0:
            used.append(drawn)
        self.drawn.append(drawn)
        return super().finish(answer, state, key, Entropy(drawn.draws().words))


class HalvedStream(dp_ftrl):
    def finish(self, answer, state, key, own=SYSTEM):
        return dp_ftrl.finish(replace(self, noise=self.noise / 2), answer, state, key, own)


class ReplayedStream(dp_ftrl):
    """What is correlated is the same noise in each round, and not one of its own."""

    def init(self, schema):
        vars(self)["replayed"] = Key(SYSTEM.words(4).tobytes())
        return super().init(schema)

    def finish(self, answer, state, key, own=SYSTEM):
        return super().finish(answer, state, key, Entropy(self.replayed.draws().words))


class NobodyWaits(dp_ftrl):
    """Clients come in each round, and noise is that for clients who wait."""

    @property
    def apart(self):
        return 1

    def _variance(self, made):
        return dp_ftrl._variance(dp_ftrl(**{f.name: getattr(self, f.name) for f in fields(self)}), made)


class HalvedAtHolder(AddedNoise):
    def randomised(self, values, own):
        return type(self).__mro__[2].randomised(replace(self, noise=self.noise / 2), values, own)


class NoClip(AddedNoise):
    """Holders do not clip."""

    def _steps(self, values, order):
        return np.rint(values / self.step(values.size))


class UnclippedAtHolder(NoClip):
    """And nobody looks where updates are folded."""

    def check_size(self, values):
        pass


class HalvedGaussian(HalvedAtHolder, local_gaussian):
    pass


class HalvedLaplace(HalvedAtHolder, local_laplace):
    pass


class UnclippedGaussian(UnclippedAtHolder, local_gaussian):
    pass


class UnclippedLaplace(UnclippedAtHolder, local_laplace):
    pass


class DoubledUnit(privunit):
    """Draws with twice its epsilon."""

    def randomised(self, values, own):
        return privunit.randomised(replace(self, epsilon=2 * self.epsilon), values, own)


class PlainLength(privunit):
    """Hides the direction alone."""

    def randomised(self, values, own):
        with patch.object(Levels, "told", lambda self, level, own: float(self.values[level])):
            return super().randomised(values, own)


@dataclass(frozen=True)
class Setting:
    """What a mechanism is given, and how it is audited."""

    noise: float
    cohort: object = "all"
    rounds: int = 2
    clients: int = 2
    runs: int = 200
    turns: bool = True
    size: int = 2000
    sure: float = 0.95

    def audited(self, kind):
        app = app_of(kind(norm=0.5, noise=self.noise, expected=10.0), self.cohort, self.rounds, self.size)
        return audit_many_runs(
            app, runs=self.runs, clients=self.clients, seed=3, turns=self.turns, confidence=self.sure
        )


EVERYONE = Setting(noise=0.7)
SAMPLED = Setting(noise=1.5, cohort=Poisson(0.5), rounds=4, clients=1, runs=300)
OFTEN = Setting(noise=2.0, cohort=Poisson(0.9), rounds=4, clients=1, runs=400)
FEW = Setting(noise=0.7, cohort=3, clients=3)
WAITING = Setting(noise=0.8, cohort=Spaced(4, gap=2), rounds=4, clients=8, runs=400, turns=False, size=20, sure=SURE)
EACH_ROUND = Setting(noise=0.8, clients=1, runs=800, turns=False, size=20, sure=SURE)
TOO_SOON = Setting(noise=0.8, rounds=4, clients=1, runs=400, turns=False, size=20, sure=SURE)
HOLDER = Setting(noise=1.4, rounds=1, clients=0, runs=800, size=20, sure=SURE)
ONE_NUMBER = replace(HOLDER, noise=1.6, runs=2400, size=1)


def one_run(kind, noise, cohort="all", sure=0.95):
    """Where it is to be sure, at a smaller delta: what 400 canaries prove has an error of 800 times that at least."""
    app, delta = app_of(kind(norm=0.5, noise=noise, expected=10.0), cohort), 1e-5 if sure < SURE else 1e-9
    return audit_one_run(app, canaries=400, clients=3, seed=2, confidence=sure, delta=delta)


def moving(**settings):
    return central_gaussian(**settings, quantile=0.5, below_noise=4.0)


def per_layer(**settings):
    return central_gaussian(**settings, per_layer=True)


def tree(kind=dp_ftrl, rounds=4, separation=2, bands=None):
    return lambda **settings: kind(**settings, rounds=rounds, separation=separation, bands=bands)


def banded(kind=dp_ftrl, rounds=4, separation=2):
    return tree(kind, rounds, separation, bands=separation)


def held(kind):
    return lambda norm, noise, expected: kind(norm, noise)


@pytest.mark.slow
@pytest.mark.parametrize("setting", [EVERYONE, SAMPLED, FEW], ids=["everyone", "sampled", "few"])
@pytest.mark.parametrize("kind", [central_gaussian, moving, per_layer])
def test_the_right_mechanism_is_below_its_claim(kind, setting):
    """Another mechanism is one more kind here: what makes a transform of norm, noise and expected."""
    below(replace(setting, sure=SURE).audited(kind))
    below(one_run(kind, setting.noise, setting.cohort, SURE))


def below(found):
    assert not found.refuted
    assert 0 <= found.epsilon <= found.claim
    assert all(0 <= epsilon <= claim for _, epsilon, claim in found.profile)


def above(found):
    assert found.refuted
    assert found.gaussian is None or found.gaussian > found.claim


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        pytest.param(tree(), WAITING, id="tree, who waits"),
        pytest.param(banded(), WAITING, id="banded, who waits"),
        pytest.param(tree(rounds=2, separation=1), EACH_ROUND, id="tree, each round"),
        pytest.param(held(local_gaussian), HOLDER, id="local_gaussian"),
        pytest.param(held(local_laplace), ONE_NUMBER, id="local_laplace"),
    ],
)
def test_noise_that_is_correlated_or_of_holders_is_below_its_claim(kind, setting):
    """By many runs alone: in one run with hundreds of canaries each is behind the noise of all other holders, or is
    asked once in a while.
    """
    below(setting.audited(kind))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        pytest.param(tree(HalvedStream, rounds=2, separation=1), EACH_ROUND, id="tree, halved"),
        pytest.param(banded(HalvedStream, rounds=2, separation=1), EACH_ROUND, id="banded, halved"),
        pytest.param(tree(ReplayedStream), WAITING, id="tree, replayed"),
        pytest.param(banded(ReplayedStream), WAITING, id="banded, replayed"),
        pytest.param(tree(NobodyWaits, separation=4), TOO_SOON, id="tree, nobody waits"),
        pytest.param(banded(NobodyWaits, separation=4), TOO_SOON, id="banded, nobody waits"),
        pytest.param(held(HalvedGaussian), HOLDER, id="local_gaussian, halved"),
        pytest.param(held(UnclippedGaussian), replace(HOLDER, runs=300), id="local_gaussian, unclipped"),
        pytest.param(held(HalvedLaplace), ONE_NUMBER, id="local_laplace, halved"),
        pytest.param(held(UnclippedLaplace), replace(ONE_NUMBER, runs=300), id="local_laplace, unclipped"),
    ],
)
def test_each_bug_in_noise_that_is_correlated_or_of_holders_is_caught(kind, setting):
    above(setting.audited(kind))


def audited_unit(kind, epsilon=2.0, draws=4000):
    """What PrivUnit tells of a vector at the bound, and what of none, which counts as one the other way; scored by how
    likely each direction and length is. An audit of runs would not do: it takes the sign of a length for that of a
    direction, and finds nothing here.
    """
    step, size = kind(0.5, epsilon), 8
    here = np.zeros(size)
    here[0] = -1000.0
    (of_direction, of_length), lengths = step.shares, np.abs(Levels(step.shares[1]).values)
    edge = cap(size, of_direction)

    def scores(values):
        told = np.array([step.randomised(values, SYSTEM) for _ in range(draws)]) * step.step(size)
        sizes = np.linalg.norm(told, axis=1)
        level = np.abs(sizes[:, None] - lengths * step.norm / edge.mean).argmin(1)
        along = -told[:, 0] / sizes * np.sign(Levels(step.shares[1]).values)[level]
        near = (along >= edge.edge).astype(float) - (-along >= edge.edge)
        far = (level == len(lengths) - 1).astype(float) - (level == 0)
        return (of_direction * near + of_length * far)[:, None]

    return many_run_bounds(scores(here), scores(np.zeros(size)), {0.0: epsilon}, SURE)[0][0.0]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "low", "high"), [(privunit, 1, 2), (DoubledUnit, 2, 4), (PlainLength, 2, np.inf)])
def test_directions_and_lengths_of_holders_are_as_well_hidden_as_is_claimed(kind, low, high):
    assert low < audited_unit(kind) <= high


@pytest.mark.parametrize("kind", [local_gaussian, local_laplace])
def test_a_clip_that_only_holders_forget_is_found_where_updates_are_folded(kind):
    with pytest.raises(SettingError, match="were not taken"):
        replace(HOLDER, runs=4).audited(held(type("Unclipped", (NoClip, kind), {})))


@pytest.mark.slow
@pytest.mark.parametrize("setting", [EVERYONE, SAMPLED], ids=["everyone", "sampled"])
@pytest.mark.parametrize(
    "kind", [HalvedNoise, ForgottenClip, NoiseBeforeClip, DividedByWhoCame, MeanOfWhoCame, ReplayedNoise]
)
def test_each_bug_is_caught(kind, setting):
    found = (OFTEN if (kind, setting) == (HalvedNoise, SAMPLED) else setting).audited(kind)
    assert found.refuted
    above = [delta for delta, epsilon, claim in found.profile if epsilon > claim]
    assert above or found.gaussian > found.claim


@pytest.mark.parametrize(
    "kind", [ForgottenClip, *(pytest.param(k, marks=pytest.mark.slow) for k in (NoiseBeforeClip, ReplayedNoise))]
)
def test_one_run_catches_what_leaves_no_noise(kind):
    found = one_run(kind, noise=2.5)
    assert found.refuted
    assert found.epsilon > found.claim > found.ideal > 0.3


@pytest.mark.slow
def test_noise_that_is_correlated_over_rounds_is_seen_through():
    found = Setting(noise=2.0, rounds=4, turns=False).audited(CorrelatedNoise)
    assert found.refuted
    assert found.gaussian > found.claim
    assert Setting(noise=2.0, rounds=4, turns=False, sure=SURE).audited(central_gaussian).refuted is False


@pytest.mark.parametrize("kind", [local_gaussian, HalvedLocalNoise])
def test_noise_of_holders_is_audited_at_one_holder_without_that_of_others(kind):
    app = app_of((), cohort=2, size=100)
    app.strategy = FedAvg(cohort=2, transforms=kind(norm=0.5, noise=1.4))
    found = audit_many_runs(app, runs=200, clients=5, seed=3)
    assert found.refuted is (kind is HalvedLocalNoise)
    assert 1 < found.ideal < found.claim  # it is near enough to see twice as much
    one = audit_one_run(app, canaries=100, clients=5, seed=3)
    assert not one.refuted
    assert one.ideal == 0  # in a sum with the noise of all there is nothing to be found


def test_one_run_of_the_right_mechanism_hears_canaries_and_is_below_the_claim():
    found = one_run(central_gaussian, noise=0.7, sure=SURE)
    assert not found.refuted
    assert found.claim > found.epsilon > found.ideal / 2 > 0.3
    assert found.present.mean() - found.absent.mean() == pytest.approx(2 / 0.7**2, rel=0.1)


@pytest.mark.slow
def test_what_is_told_is_the_same_each_time(monkeypatch):
    first = EVERYONE.audited(central_gaussian)
    monkeypatch.setattr(SYSTEM, "words", Key.from_seed(7).draws().words)
    assert EVERYONE.audited(central_gaussian).plain() == first.plain()


def test_directions_are_units_at_right_angles_and_are_read_again():
    model = Arrays({"a": np.zeros((5, 3), np.float32), "b": np.zeros(6), "n": np.zeros(2, int)})
    directions = Directions(model, 4, Key.from_seed(1))
    made = [directions.arrays(i, 2.0, model) for i in range(4)]
    flat = np.array([directions.flat(arrays) for arrays in made])
    np.testing.assert_allclose(flat @ flat.T, 4 * np.eye(4), atol=1e-6)
    np.testing.assert_allclose([directions.along(row) for row in flat], 2 * np.eye(4), atol=1e-6)
    assert not directions.flat(directions.arrays(None, 2.0, model)).any()
    assert Directions(model, None, Key.from_seed(1)).count == 21
    with pytest.raises(SettingError, match="22 canaries in a model of 21 parameters"):
        Directions(model, 22, Key.from_seed(1))


def test_an_app_that_hides_nobody_has_no_claim_to_audit():
    app = app_of((), size=20)
    with pytest.raises(SettingError, match="hides nobody"):
        audit_one_run(app)


def test_strategies_that_correct_local_losses_are_audited_too():
    step = central_gaussian(norm=1.0, noise=1.0, expected=1.0)
    app = app_of(step, size=40)
    app.strategy = umbel.FedProx(mu=0.1, cohort="all", fold=umbel.total(), transforms=step)
    assert audit_one_run(app, clients=1).canaries == 40


def test_seeds_and_bounds_of_all_sizes_are_audited():
    app = app_of(central_gaussian(norm=1000.0, noise=1.0, expected=1.0), size=20)
    app.model = {"w": np.zeros(20, np.float16)}  # in which a canary would be infinite
    assert audit_one_run(app, seed=-1).canaries == 20


def test_canaries_that_are_never_asked_are_no_audit():
    app = app_of(central_gaussian(norm=1.0, noise=1.0, expected=1.0), cohort=Poisson(1e-9), size=20)
    with pytest.raises(SettingError, match="no canary was ever asked"):
        audit_one_run(app)


def test_canaries_that_are_rejected_are_no_audit():
    class Rejecting(central_gaussian):
        def encode(self, update, params, local, key, own=SYSTEM):
            return Update(update.arrays, delta=True), local

    with pytest.raises(SettingError, match="had to be clipped"):
        audit_one_run(app_of(Rejecting(norm=1.0, noise=1.0, expected=1.0), size=20))
