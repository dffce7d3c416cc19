"""Who is asked: cohorts of the right size, of clients that exist, the same for the same key, and fair."""

from __future__ import annotations

import copy
import json
import math
import pickle
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.core.randomness import Key
from umbel.core.sampler import Sampler
from umbel.errors import CallerError, ClientId, SamplingError, SettingError
from umbel.samplers.fixed import Everyone, Fixed
from umbel.samplers.poisson import Poisson
from umbel.samplers.shorthand import as_sampler
from umbel.samplers.uniform import Fraction, Uniform
from umbel.samplers.weighted import Weighted

KEY = Key.from_seed(7)
NAMES = ["anna", "ben", "carla", "dan", "eva"]
MANY = range(15_000_000)
SAMPLERS = [
    Everyone(),
    Uniform(3),
    Fraction(0.5),
    Fraction(0.1, minimum=2),
    Poisson(0.5),
    Weighted(2, (1.0, 2.0, 0.0, 4.0, 5.0)),
    Weighted(2, {"anna": 1, "ben": 2, "carla": 3, "dan": 4, "eva": 5, 3: 2, "gone": 9}),
    Fixed(("eva", "anna")),
]
seeds = st.integers(0, 2**64)


class Unwalkable(Sequence[ClientId]):
    """A population that can be indexed but not walked through."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.looks = 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place):
        self.looks += 1
        return f"node-{place}"

    def __iter__(self) -> Iterator[ClientId]:
        raise AssertionError("walked through all clients")

    def __contains__(self, client: object) -> bool:
        raise AssertionError("searched all clients")


def scatter(counts: list[int] | np.ndarray, expected: list[float] | float) -> float:
    """Pearson's statistic in standard deviations above its mean."""
    cells = np.asarray(counts, dtype=float)
    return float((((cells - expected) ** 2 / expected).sum() - (cells.size - 1)) / math.sqrt(2 * (cells.size - 1)))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
class TestEverySampler:
    def test_is_a_sampler_and_a_value(self, sampler):
        assert isinstance(sampler, Sampler)
        again = pickle.loads(pickle.dumps(sampler))
        assert again == sampler == copy.deepcopy(sampler)
        assert hash(again) == hash(sampler)
        assert [other for other in SAMPLERS if other == sampler] == [sampler]
        with pytest.raises(AttributeError):
            sampler.cohort = 5

    def test_spec_is_plain_and_its_own(self, sampler):
        spec = sampler.spec()
        assert json.loads(json.dumps(spec)) == spec
        assert [other for other in SAMPLERS if other.spec() == spec] == [sampler]
        assert spec["name"] == type(sampler).__name__.lower()
        assert pickle.loads(pickle.dumps(sampler)).spec() == spec

    @given(seed=seeds)
    def test_draws_different_clients_that_exist_and_again_the_same(self, sampler, seed):
        key = Key.from_seed(seed)
        cohort = sampler.draw(NAMES, key)
        assert isinstance(cohort, tuple)
        assert len(set(cohort)) == len(cohort)
        assert set(cohort) <= set(NAMES)
        assert sampler.draw(tuple(NAMES), Key(key.raw)) == cohort


class TestEveryone:
    def test_keeps_the_order(self):
        assert Everyone().draw(NAMES, KEY) == tuple(NAMES)
        assert Everyone().draw(range(4), KEY) == (0, 1, 2, 3)
        assert Everyone().draw([], KEY) == ()


class TestUniform:
    @given(seeds, st.integers(1, 400), st.integers(1, 2**50))
    def test_size_range_and_distinctness(self, seed, cohort, population):
        cohort = min(cohort, population)
        drawn = Uniform(cohort).draw(range(population), Key.from_seed(seed))
        assert len(drawn) == len(set(drawn)) == cohort
        assert all(type(client) is int and 0 <= client < population for client in drawn)

    def test_pinned(self):
        assert Uniform(4).draw(MANY, KEY) == (3242458, 251228, 8981427, 11022203)
        assert Uniform(3).draw(NAMES, KEY) == ("carla", "ben", "dan")

    def test_the_draw_is_by_place_whatever_the_clients_are(self):
        named = [f"c{i}" for i in range(1000)]
        assert Uniform(9).draw(named, KEY) == tuple(f"c{i}" for i in Uniform(9).draw(range(1000), KEY))

    def test_each_ordered_cohort_is_equally_likely(self):
        cells = list(permutations(range(5), 2))
        counts = Counter(Uniform(2).draw(range(5), KEY.derive(r)) for r in range(4000))
        assert abs(scatter([counts[cell] for cell in cells], 200)) < 4

    def test_each_client_is_asked_equally_often(self):
        counts = np.zeros(200)
        for r in range(2000):
            counts[list(Uniform(20).draw(range(200), KEY.derive("cohort", r)))] += 1
        assert abs(scatter(counts, 200)) < 4

    def test_cohorts_of_different_keys_are_independent(self):
        overlaps = [
            len(
                set(Uniform(100).draw(range(1000), KEY.derive(r)))
                & set(Uniform(100).draw(range(1000), KEY.derive(r + 1)))
            )
            for r in range(500)
        ]
        spread = math.sqrt(10 * 0.9 * 900 / 999)  # hypergeometric: 100 of 1000, 100 of them marked
        assert abs(np.mean(overlaps) - 10) < 4 * spread / math.sqrt(500)
        assert abs(np.std(overlaps) / spread - 1) < 0.15

    def test_all_of_them(self):
        assert sorted(Uniform(5).draw(NAMES, KEY)) == NAMES

    @pytest.mark.parametrize("wrong", [0, -1, True, 1.0, 2.5, "3", None, math.nan])
    def test_refuses_cohorts_that_are_none(self, wrong):
        with pytest.raises(SettingError, match="cohort must be a whole number of at least 1"):
            Uniform(wrong)

    def test_too_few_clients(self):
        with pytest.raises(
            SamplingError, match=r"Uniform\(cohort=6\) asks for 6 clients, but the federation has 5"
        ) as e:
            Uniform(6).draw(NAMES, KEY)
        assert "fewer" in str(e.value)
        assert isinstance(e.value, CallerError)
        with pytest.raises(SamplingError, match="1 client, but the federation has 0"):
            Uniform(1).draw(range(0), KEY)


class TestFraction:
    @pytest.mark.parametrize(
        ("fraction", "population", "size"),
        [
            (0.1, 100, 10), (0.25, 10, 3), (0.15, 10, 2), (0.149, 10, 1), (0.29, 50, 15), (0.0001, 10, 1), (1.0, 7, 7),
            (0.5, 1, 1), (0.35, 10, 4), (1e-05, 250_000, 3),
        ],
    )  # fmt: skip
    def test_rounds_half_up_as_written(self, fraction, population, size):
        assert len(Fraction(fraction).draw(range(population), KEY)) == size

    @given(seeds, st.floats(1e-6, 1.0), st.integers(1, 10_000), st.integers(1, 20))
    def test_size(self, seed, fraction, population, minimum):
        sampler = Fraction(fraction, minimum=minimum)
        if minimum > population:
            with pytest.raises(SamplingError):
                sampler.draw(range(population), Key.from_seed(seed))
            return
        drawn = sampler.draw(range(population), Key.from_seed(seed))
        assert len(drawn) == len(set(drawn))
        assert minimum <= len(drawn) <= population
        assert len(drawn) == minimum or abs(len(drawn) - fraction * population) <= 0.5 + 1e-9

    def test_minimum_beyond_the_population(self):
        with pytest.raises(SamplingError, match=r"minimum=9\) asks for 9 clients, but the federation has 5"):
            Fraction(0.1, minimum=9).draw(NAMES, KEY)

    def test_draws_as_uniform_does(self):
        assert Fraction(0.6).draw(NAMES, KEY) == Uniform(3).draw(NAMES, KEY)

    @pytest.mark.parametrize("wrong", [0.0, -0.1, 1.0000001, math.nan, math.inf, True, "0.1", None, 5.0])
    def test_refuses_shares_that_are_none(self, wrong):
        with pytest.raises(SettingError, match="above 0 and at most 1"):
            Fraction(wrong)

    @pytest.mark.parametrize("wrong", [0, -3, 1.5, True])
    def test_refuses_minimums_that_are_none(self, wrong):
        with pytest.raises(SettingError, match="minimum must be a whole number"):
            Fraction(0.5, minimum=wrong)


class TestPoisson:
    def test_sizes_follow_the_binomial(self):
        sizes = [len(Poisson(0.02).draw(range(5000), KEY.derive(r))) for r in range(600)]
        assert abs(np.mean(sizes) - 100) < 4 * math.sqrt(98 / 600)
        assert abs(np.var(sizes) / 98 - 1) < 0.25

    def test_each_client_is_asked_with_the_rate(self):
        counts = np.zeros(100)
        for r in range(3000):
            counts[list(Poisson(0.1).draw(range(100), KEY.derive(r)))] += 1
        chi_square = ((counts - 300) ** 2 / 270).sum()
        assert abs(chi_square - 100) < 4 * math.sqrt(200)

    def test_order_is_the_federations(self):
        drawn = Poisson(0.3).draw(range(1000), KEY)
        assert list(drawn) == sorted(drawn)

    def test_may_be_empty_and_may_be_all(self):
        assert any(not Poisson(0.1).draw(NAMES, KEY.derive(r)) for r in range(20))
        assert Poisson(1).draw(NAMES, KEY) == tuple(NAMES)
        assert Poisson(0.5).draw([], KEY) == ()

    @pytest.mark.parametrize("wrong", [0.0, -0.1, 1.1, math.nan, True, "x", 2])
    def test_refuses_rates_that_are_none(self, wrong):
        with pytest.raises(SettingError, match="rate must be above 0 and at most 1"):
            Poisson(wrong)


class TestWeighted:
    def test_first_drawn_follows_the_weights(self):
        weights = (1.0, 2.0, 0.0, 3.0, 4.0)
        counts = Counter(Weighted(1, weights).draw(NAMES, KEY.derive(r))[0] for r in range(5000))
        assert counts["carla"] == 0
        assert abs(scatter([counts[c] for c in ("anna", "ben", "dan", "eva")], [500, 1000, 1500, 2000])) < 4

    @given(seeds, st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.data())
    def test_size_distinctness_and_no_weight_no_ask(self, seed, weights, data):
        usable = [i for i, w in enumerate(weights) if w > 0]
        cohort = data.draw(st.integers(1, len(weights)))
        sampler = Weighted(cohort, weights)
        if cohort > len(usable):
            with pytest.raises(SamplingError, match=f"of the {len(weights)} in the federation {len(usable)} have"):
                sampler.draw(range(len(weights)), Key.from_seed(seed))
            return
        drawn = sampler.draw(range(len(weights)), Key.from_seed(seed))
        assert len(drawn) == len(set(drawn)) == cohort
        assert set(drawn) <= set(usable)

    def test_forms_of_weights_agree(self):
        values = [1.0, 2.0, 3.0, 4.0, 5.0]
        drawn = Weighted(3, values).draw(NAMES, KEY)
        assert Weighted(3, tuple(values)).draw(NAMES, KEY) == drawn
        assert Weighted(3, np.array(values, np.float32)).draw(NAMES, KEY) == drawn
        assert Weighted(3, dict(zip(NAMES, values, strict=True))).draw(NAMES, KEY) == drawn
        assert Weighted(3, values) == Weighted(3, np.array(values))

    def test_order_in_a_mapping_means_nothing(self):
        forward = {name: i + 1.0 for i, name in enumerate(NAMES)}
        backward = dict(reversed(forward.items()))
        assert Weighted(2, forward) == Weighted(2, backward)
        assert Weighted(2, forward).draw(NAMES, KEY) == Weighted(2, backward).draw(NAMES, KEY)
        assert Weighted(2, forward) != Weighted(2, {**forward, "eva": 5.5})

    def test_numbers_and_text_name_different_clients(self):
        assert Weighted(1, {1: 2.0}) != Weighted(1, {"1": 2.0})
        assert Weighted(1, {np.int64(1): 2.0}) == Weighted(1, {1: 2.0})

    def test_weights_are_copied(self):
        array, mapping = np.ones(5), dict.fromkeys(NAMES, 1.0)
        samplers = Weighted(5, array), Weighted(5, mapping)
        before = [s.spec() for s in samplers]
        array[:], mapping["anna"] = 0, 0.0
        assert [Weighted(s.cohort, s.weights).spec() for s in samplers] == before
        assert all(len(s.draw(NAMES, KEY)) == 5 for s in samplers)
        with pytest.raises(ValueError, match="read-only"):
            samplers[0].weights[0] = 3.0  # type: ignore[index]

    def test_repr_does_not_spell_out_the_weights(self):
        assert repr(Weighted(3, np.ones(1000))) == "Weighted(cohort=3)"

    def test_too_few_with_weight(self):
        with pytest.raises(SamplingError, match="asks for 3 clients, but of the 5 in the federation 2 have"):
            Weighted(3, [0, 1, 0, 2, 0]).draw(NAMES, KEY)

    def test_weights_that_do_not_match_the_federation(self):
        with pytest.raises(SamplingError, match="has 3 weights, but the federation has 5 clients"):
            Weighted(1, [1, 2, 3]).draw(NAMES, KEY)
        with pytest.raises(SamplingError, match="no weight for client 'ben'"):
            Weighted(1, {"anna": 1.0}).draw(NAMES, KEY)

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ([1.0, -2.0], "at position 1 is -2.0"),
            ({"a": 1.0, "b": math.nan}, "of client 'b' is nan"),
            ([math.inf], "at position 0 is inf"),
            ([[1.0]], "shape"),
            (["x"], "one number for each client"),
            (None, "one number for each client|shape"),
            ("12", "one number for each client|shape"),
            (3.0, "shape"),
            ({1.5: 1.0}, "named by whole numbers or text"),
            ({True: 1.0}, "named by whole numbers or text"),
        ],
    )
    def test_refuses_weights_that_are_none(self, weights, message):
        with pytest.raises(SettingError, match=message):
            Weighted(1, weights)

    @pytest.mark.parametrize("wrong", [0, True, 1.5])
    def test_refuses_cohorts_that_are_none(self, wrong):
        with pytest.raises(SettingError, match="cohort must be"):
            Weighted(wrong, [1.0, 1.0])


class TestFixed:
    def test_order_is_as_given(self):
        assert Fixed(("eva", "ben")).draw(NAMES, KEY) == ("eva", "ben")
        assert Fixed([9, 2]).draw(range(10), KEY) == (9, 2)
        assert Fixed((np.int64(3),)).draw([1, 2, 3], KEY) == (3,)

    @pytest.mark.parametrize(("clients", "absent"), [((10,), "10"), ((-1, 3), "-1"), ((3, "3"), "'3'")])
    def test_absent_from_a_range(self, clients, absent):
        with pytest.raises(SamplingError, match=f"1 of them are not among the 10 in the federation: {absent}"):
            Fixed(clients).draw(range(10), KEY)

    def test_absent_from_a_list(self):
        with pytest.raises(SamplingError, match=r"asks for 8 clients, but 7 .* 'x0', 'x1', 'x2', 'x3', 'x4', \.\.\."):
            Fixed((*[f"x{i}" for i in range(7)], "eva")).draw(NAMES, KEY)
        with pytest.raises(SamplingError, match="'1'"):
            Fixed(("1",)).draw([1, 2], KEY)

    @pytest.mark.parametrize(
        ("clients", "message"),
        [
            ((), "no client"),
            (("a", "b", "a"), "'a' more than once"),
            ("abc", "list or tuple"),
            ({"a"}, "list or tuple"),
            ((True,), "named by"),
            ((1.0,), "named by"),
            ((None,), "named by"),
        ],
    )
    def test_refuses_lists_that_are_none(self, clients, message):
        with pytest.raises(SettingError, match=message):
            Fixed(clients)


class TestLargePopulations:
    @pytest.mark.parametrize(
        "sampler",
        [Uniform(1000), Fraction(0.0001), Poisson(0.0001), Fixed(tuple(range(0, 15_000_000, 15_000)))],
        ids=["uniform", "fraction", "poisson", "fixed"],
    )
    def test_memory_is_that_of_the_cohort(self, sampler):
        sampler.draw(MANY, KEY)
        tracemalloc.start()
        try:
            cohort = sampler.draw(MANY, KEY)
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()
        assert len(set(cohort)) == len(cohort) > 900

    @pytest.mark.parametrize("sampler", [Uniform(50), Fraction(0.000005), Poisson(0.000005)], ids=repr)
    def test_only_the_cohort_is_looked_up(self, sampler):
        clients = Unwalkable(10_000_000)
        assert len(sampler.draw(clients, KEY)) == clients.looks > 20

    def test_text_is_not_searched_for_in_a_range(self):
        with pytest.raises(SamplingError, match="'0'"):
            Fixed(("0",)).draw(range(2**62), KEY)


class TestAsSampler:
    @pytest.mark.parametrize(
        ("value", "sampler"),
        [
            (10, Uniform(10)), (1, Uniform(1)), (np.int64(4), Uniform(4)),
            (1.0, Fraction(1.0)), (0.1, Fraction(0.1)), (np.float64(0.5), Fraction(0.5)),
            ("all", Everyone()), (["a", "b"], Fixed(("a", "b"))), ((3, 1), Fixed((3, 1))), (range(2), Fixed((0, 1))),
            (np.array([4, 2]), Fixed((4, 2))),
        ],
    )  # fmt: skip
    def test_meaning(self, value, sampler):
        assert as_sampler(value) == sampler

    def test_a_sampler_stays(self):
        for sampler in SAMPLERS:
            assert as_sampler(sampler) is sampler

    def test_whoever_can_draw_is_a_sampler(self):
        class First:
            def draw(self, clients, key):
                return tuple(clients[:1])

            def spec(self):
                return {"name": "first"}

        sampler = First()
        assert as_sampler(sampler) is sampler

    @pytest.mark.parametrize(
        "wrong",
        [
            True,
            False,
            np.True_,
            0,
            -2,
            0.0,
            1.5,
            5.0,
            math.nan,
            "everyone",
            "",
            None,
            b"all",
            np.ones(()),
            np.ones((2, 2)),
            {"a"},
            {"a": 1},
            [],
            Uniform,
        ],
        ids=repr,
    )
    def test_nonsense_is_refused(self, wrong):
        with pytest.raises(SettingError):
            as_sampler(wrong)

    def test_the_refusal_says_what_to_do(self):
        with pytest.raises(SettingError, match=r"True does not say who is asked(.|\n)*Poisson"):
            as_sampler(True)
        with pytest.raises(SettingError, match="write a whole number without a point"):
            as_sampler(5.0)
        with pytest.raises(SettingError, match="the class Uniform does not say"):
            as_sampler(Uniform)
