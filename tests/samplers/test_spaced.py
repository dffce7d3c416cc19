"""Spaced: no client is asked again too soon, whoever is away, and each set of the others is equally likely."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.samplers.seen import NAMES, Seen, federations, permuted, random_asks, record_of, seeds

import umbel
from umbel.core.randomness import Key
from umbel.core.record import Record
from umbel.core.sampler import LOOKED_AT, Adaptive, Spacing
from umbel.errors import SamplingError, SettingError
from umbel.runs.cohorts import draw
from umbel.samplers import FairRate, Spaced, as_sampler


@given(federations, st.integers(1, 4), st.integers(1, 6), seeds, st.floats(0, 0.9))
def test_nobody_is_asked_again_sooner_whoever_is_away(clients, cohort, gap, seed, away):
    """As a run draws: those who are not online are replaced, by others that the same record allows."""
    sampler, record, rng = Spaced(cohort, gap), Record(), np.random.default_rng(seed)
    if cohort * gap > len(clients):
        with pytest.raises(SamplingError, match="needs"):
            sampler.choose(clients, record, Key.from_seed(seed))
        return
    rounds = []
    for r in range(3 * gap):
        off = {client for client in clients if rng.random() < away}
        record.online = lambda client, off=off: client not in off
        found, _, _ = draw(sampler, clients, record.online, Key.from_seed(seed).derive(r), record)
        assert not off & {*found}
        assert not any({*found} & {*before} for before in rounds[len(rounds) - gap + 1 :] if gap > 1)
        if away == 0:
            assert len(found) == cohort
        record.note(r, found, Seen(r, list(found)).answer)
        rounds.append(found)


@given(federations, seeds)
def test_the_order_of_rows_does_not_matter(clients, seed):
    record = record_of(random_asks(seed, clients, 3, size=3))
    chosen = Spaced(2, 3).choose(clients, record, Key.from_seed(seed))
    assert chosen == Spaced(2, 3).choose(clients, permuted(record, seed), Key.from_seed(seed))


@pytest.mark.parametrize("clients", [range(8), pytest.param(NAMES[:8], marks=pytest.mark.slow)])
def test_each_set_of_those_who_may_be_asked_is_equally_likely(clients):
    """Chi-square over 15 sets with 3,000 draws: beyond 40 once in 4,000 times; the keys are fixed."""
    record = record_of([Seen(0, [clients[1]]), Seen(1, [clients[0]]), Seen(2, [clients[5]])])
    sampler = Spaced(2, 3)
    drawn = Counter(frozenset(sampler.choose(clients, record, Key.from_seed(seed))) for seed in range(3000))
    free = [clients[place] for place in (1, 2, 3, 4, 6, 7)]  # client 1 was asked three asks ago
    assert {*drawn} == {*map(frozenset, combinations(free, 2))}
    assert sum((count - 200) ** 2 / 200 for count in drawn.values()) < 40


def test_of_very_many_only_a_few_are_looked_at():
    looked, record = [], Record()
    record.online = lambda client: looked.append(client) or False
    Spaced(3, 1000).choose(range(15_000_000), record, Key.from_seed(1))
    assert len(looked) <= 3 * LOOKED_AT


def test_where_all_are_needed_clients_go_round_in_turn():
    record, asked = Record(), []
    for r in range(9):
        asked.append({*Spaced(4, 3).choose(range(12), record, Key.from_seed(r))})
        record.note(r, [*asked[-1]], Seen(r, []).answer)
    assert asked[:3] == asked[3:6] == asked[6:]
    assert {*range(12)} == asked[0] | asked[1] | asked[2]


def test_it_is_a_sampler_that_says_how_long_clients_wait():
    sampler = Spaced(3, 2)
    assert isinstance(sampler, Adaptive)
    assert isinstance(sampler, Spacing)
    assert not isinstance(FairRate(3), Spacing)
    assert as_sampler(sampler) is sampler
    assert sampler.spec() == {"name": "spaced", "cohort": 3, "gap": 2}
    assert len({sampler, Spaced(3, 2), Spaced(3, 3)}) == 2
    for wrong in ((0, 1), (1, 0), (1.5, 1), (1, True)):
        with pytest.raises(SettingError, match="Spaced"):
            Spaced(*wrong)
    with pytest.raises(SamplingError, match="the federation has 3"):
        Spaced(4, 1).choose(range(3), Record(), Key.from_seed(1))


def test_a_run_keeps_to_it(tmp_path):
    client = umbel.Client()

    @client.train
    def train(model, data, ctx):
        if ctx.client % 3 == 0:
            raise RuntimeError  # who failed has been asked
        return umbel.Update(model)

    app = umbel.App(client, model={"w": np.zeros(2)}, strategy=umbel.FedAvg(cohort=Spaced(3, 4)), rounds=9)
    result = umbel.run(app, on=umbel.Simulation(12, workers=0), folder=None, seed=1)
    rounds = [{row.client for row in result.clients.of(r)} for r in range(1, 10)]
    assert rounds[0] == rounds[4] == rounds[8]
    assert sum(map(len, rounds)) == 27
