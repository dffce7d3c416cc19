"""What clients have spent, by entries: against dp-accounting where that is there, and by laws where it is not."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel import privacy
from umbel.core.answer import Answer
from umbel.core.arrays import Arrays
from umbel.core.transform import Transform, accounts, chain
from umbel.errors import SettingError
from umbel.privacy import central_gaussian, dp_ftrl
from umbel.privacy.account import ALL, NOTHING, LedgerEntry, PrivacyAccount, held
from umbel.privacy.accounting import event_of, spent
from umbel.privacy.release import NoisyRelease

PROMISE = central_gaussian(norm=1.0, noise=4.0, expected=10).promises({"norm": 1.0})


def entry(client="a", task="1.a", app="app", run="r", **more):
    return LedgerEntry(client, "server", app, run, task, "00", **more)


def noised(noise=4.0, mechanism="gaussian", neighbours="zero out one", **more):
    steps = {"steps": 1e6} if mechanism == "discrete_gaussian" else {}
    said = {"norm": 1.0, "unit": "client", "neighbours": neighbours, "denominator": None, **steps}
    sampling = {"kind": "poisson", "rate": 0.5}
    return {**held({"mechanism": mechanism, "noise": noise, "sampling": sampling, **said}), **more}


HIDING = {
    "central_counts": dict(epsilon=1.0),
    "central_gaussian": dict(norm=1.0, noise=4.0, expected=10),
    "central_metrics": dict(ranges={"accuracy": (0, 1)}, noise=2.0, expected=10),
    "dp_ftrl": dict(norm=1.0, noise=4.0, expected=10, rounds=8, separation=3),
    "local_gaussian": dict(norm=1.0, noise=4.0),
    "local_laplace": dict(norm=1.0, noise=4.0),
    "noised_sum": dict(
        session="1.0.1", threshold=3, clients=9, clip=1.0, bits=12, noise=4.0, size=4, sharers=6, colluding=1
    ),
    "privunit": dict(norm=1.0, epsilon=2.0),
    "randomised_response": dict(epsilon=2.0),
}


def test_all_that_hide_a_client_are_tried():
    assert {n for n in privacy.__all__ if isinstance(getattr(privacy, n), type)} - {"ExamplePrivacy", "secure_sum"} == {
        *HIDING
    }


@pytest.mark.parametrize("name", HIDING)
def test_what_a_holder_is_promised_is_what_the_log_will_say(name):
    """Of the same noise and bound; by which a ledger counts it as something, and a stream once."""
    made = getattr(privacy, name)(**HIDING[name])
    step = chain(made)
    dtype = "int64" if name.endswith(("counts", "response")) else "float32"
    schema = Arrays({"w": [0] * 4}).schema if dtype == "int64" else Arrays({"w": [0.0] * 4}).schema
    assert isinstance(made, Transform)
    assert accounts(step)
    state = step.init(schema)
    (promise,), (event,) = step.promises(step.send(state)), step.event(Answer(Arrays()), state)
    told = {key: promise.get(key) for key in ("mechanism", "noise", "norm", "unit", "stream")}
    assert told == {key: event.get(key) for key in told}
    account = PrivacyAccount()
    for task in ("1.a", "2.a"):
        account.add(entry(task=task, releases=(held(promise),)), 2026)
    assert account.releases("a") == (1 if name == "dp_ftrl" else 2)
    for task in range(3, 8):  # of 8 rounds a client that waits for 3 is in 3
        account.add(entry(task=f"{task}.a", releases=(held(promise),)), 2026)
    assert account.releases("a") == (3 if name == "dp_ftrl" else 7)
    assert NOTHING not in account.events(entry(releases=(held(promise),)))


def test_what_is_promised_is_counted_against_zeros_and_without_what_sampling_gains():
    found = held(PROMISE)
    assert (found["neighbours"], found["sampling"]) == ("zero out one", {"kind": "everyone"})
    assert found["noise"] == 4.0
    # From an answer to none, and from that to zeros: a mechanism that is no sum is passed twice.
    twice = noised(4.0, "pure", "add or remove one")
    assert (twice["neighbours"], twice["noise"]) == ("zero out one", 2.0)
    assert noised(4.0, "pure", "replace one")["noise"] == 4.0
    with pytest.raises((SettingError, TypeError)):
        held({**PROMISE, "unit": "example"})
    with pytest.raises((SettingError, TypeError)):
        held({**PROMISE, "more": 1})


def test_an_answer_that_may_become_any_other_costs_twice_what_one_costs_that_becomes_zeros():
    """An example changes an update into any other within the bound."""
    for mechanism, relative in (("discrete_gaussian", 2.0), ("laplace", 2.0)):
        account = PrivacyAccount("example")
        (event,) = account.events(entry(releases=(noised(4.0, mechanism),)))
        assert event[0] in ("gaussian", "laplace")
        assert event[1] == pytest.approx(relative)
    (event,) = PrivacyAccount("example").events(entry(releases=(noised(4.0, "pure"),)))
    assert event == ("pure", 0.5)
    (event,) = PrivacyAccount("example").events(entry(releases=(noised(4.0, "pure", "replace one"),)))
    assert event == ("pure", 0.25)


EXAMPLE = NoisyRelease("gaussian", 1.5, 1.0, "example", "add or remove one", {"kind": "poisson", "rate": 0.1}, 8.0)


def test_what_hides_examples_hides_no_client():
    told = entry(examples=((EXAMPLE.plain(), 7),))
    assert PrivacyAccount("client").events(told) == {NOTHING: 1}
    assert PrivacyAccount("example").events(told) == {event_of(EXAMPLE): 7}
    both = entry(examples=((EXAMPLE.plain(), 7),), releases=(noised(),))
    assert PrivacyAccount("example").events(both) == {event_of(EXAMPLE): 7}
    assert PrivacyAccount("client").events(both).total() == 1


def test_releases_of_a_stream_count_as_one_in_their_run_and_for_their_client():
    account = PrivacyAccount()
    for task in range(5):
        account.add(entry(task=f"{task}.a", releases=(noised(stream="s"),)), 2026)
    assert account.releases("a") == 1
    account.add(entry(task="9.a", run="other", releases=(noised(stream="s"),)), 2026)
    account.add(entry(task="9.a", releases=(noised(stream="t"),)), 2026)
    account.add(entry(task="9.a", releases=(noised(3.0, stream="s"),)), 2026)
    assert account.releases("a") == 4
    account.add(entry("b", task="1.b", releases=(noised(stream="s"),)), 2026)
    assert account.releases("b") == 1


def test_a_stream_counts_again_where_more_answers_are_in_it_than_it_is_for():
    """Nobody but the server sees to it that clients wait, and that rounds end."""
    said = dp_ftrl(norm=1.0, noise=4.0, expected=10, rounds=20, separation=7)
    release = held(said.promises({"norm": 1.0, "stream": "s"}))
    account = PrivacyAccount()
    for task in range(3):
        account.add(entry(task=f"{task}.a", releases=(release,)), 2026)
    assert account.releases("a") == 1
    assert account.events(entry(releases=(release,))).total() == 1
    for task in range(3, 9):
        account.add(entry(task=f"{task}.a", releases=(release,)), 2026)
    assert account.releases("a") == 3


@pytest.mark.parametrize("wrong", [{"stream": "s" * 65}, {"stream": 3}, {"answers": 0}, {"answers": "3"}])
def test_a_stream_has_a_short_name_and_some_answers(wrong):
    said = dp_ftrl(norm=1.0, noise=4.0, expected=10, rounds=20).promises({"norm": 1.0, "stream": "s" * 64})
    assert held(said)["answers"] == 20
    with pytest.raises(TypeError):
        held({**said, **wrong})
    assert held({name: said[name] for name in said if name != "answers"})["answers"] == 1


def test_an_entry_is_what_json_keeps_of_it():
    made = entry(by=("central_gaussian",), releases=(held(PROMISE),), examples=((EXAMPLE.plain(), 2),))
    again = LedgerEntry.of(made.plain())
    assert PrivacyAccount().events(again) == PrivacyAccount().events(made)
    assert again.task == made.task


ENTRIES = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.sampled_from(["x", "y"]),
        st.sampled_from([2025, 2026]),
        st.sampled_from([None, 2.0, 4.0]),
        st.sampled_from(["gaussian", "laplace", "pure"]),
    ),
    max_size=12,
)


@given(ENTRIES, st.randoms(use_true_random=False))
def test_whatever_the_order_all_is_counted_once_in_each_scope(rows, random):
    account = PrivacyAccount()
    shuffled = random.sample(rows, len(rows))
    for at, (client, app, year, noise, mechanism) in enumerate(shuffled):
        releases = () if noise is None else (noised(noise, mechanism),)
        account.add(entry(client, f"{at}.{client}", app, releases=releases), year)
    for client in "ab":
        mine = [row for row in rows if row[0] == client]
        assert account.releases(client) == len(mine)
        for scope, of in (("app", 1), ("year", 2)):
            for value, count in Counter(str(row[of]) for row in mine).items():
                assert account.releases(client, (scope, value)) == count
        if any(row[3] is None for row in mine):
            assert account.epsilon(client, 1e-6) == math.inf


def test_epsilon_is_that_of_the_accountant_and_what_is_quick_is_never_below_it():
    pytest.importorskip("dp_accounting")
    account = PrivacyAccount()
    for task in range(50):
        account.add(entry(task=f"{task}.a", releases=(held(PROMISE),)), 2026)
    exact = spent([NoisyRelease(**held(PROMISE))] * 50, 1e-6).epsilon
    assert account.epsilon("a", 1e-6) == exact
    more = [account.events(entry(releases=(held(PROMISE),)))] * 3
    assert account.epsilon("a", 1e-6, more=more) == spent([NoisyRelease(**held(PROMISE))] * 53, 1e-6).epsilon
    assert exact <= account.epsilon("a", 1e-6, most=100.0) <= 1.2 * exact
    assert account.epsilon("a", 1e-6, most=exact) == exact, "only the exact one is not above it"
    assert account.epsilon("nobody", 1e-6, ALL) == 0.0
