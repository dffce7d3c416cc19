"""Which rounds fail, and when that fails a run."""

from hypothesis import given
from hypothesis import strategies as st

from umbel.runs.events import RoundCommitted
from umbel.runs.outcome import failures, is_empty, shortage, verdict

GOOD, EMPTY, NOBODY, FEW = "good", "empty", "nobody", "few"
COUNTS = {GOOD: (3, 1, None), EMPTY: (0, 0, None), NOBODY: (0, 4, "all ill"), FEW: (1, 3, "too few")}
KINDS = st.lists(st.sampled_from(list(COUNTS)), min_size=1, max_size=8)


def rounds(*kinds):
    found = []
    for number, kind in enumerate(kinds, 1):
        clients, dropped, failed = COUNTS[kind]
        found.append(RoundCommitted(round=number, asks=number, clients=clients, dropped=dropped, failed=failed))
    return found


def test_a_round_in_which_nobody_was_asked_is_empty():
    assert [is_empty(event) for event in rounds(GOOD, EMPTY, NOBODY, FEW)] == [False, True, False, False]


def test_failures_are_those_at_the_end_and_empty_rounds_are_passed_over():
    assert [e.round for e in failures(rounds(NOBODY, GOOD, FEW, EMPTY, NOBODY, EMPTY))] == [3, 5]
    assert failures(rounds(NOBODY, GOOD)) == failures(rounds(EMPTY)) == failures([]) == []


def test_nobody_in_the_first_round_fails_the_run_at_once():
    assert verdict(rounds(NOBODY), 9, 3) == "round 1 brought no update: all ill"
    assert verdict(rounds(EMPTY, NOBODY), 9, 3) == "round 2 brought no update: all ill"
    assert verdict(rounds(FEW), 9, 3) is None
    assert verdict(rounds(FEW, NOBODY), 9, 3) is None
    assert verdict(rounds(NOBODY, NOBODY), 9, 3) == "2 rounds in a row brought no update; the last: all ill"


def test_nothing_in_the_last_round_fails_the_run():
    assert verdict(rounds(GOOD, NOBODY), 3, 3) is None
    assert verdict(rounds(GOOD, NOBODY), 2, 3) == "round 2 brought no update: all ill"
    assert verdict(rounds(GOOD, FEW), 2, 3) == "round 2 brought no update: too few"
    assert verdict(rounds(GOOD, FEW, EMPTY), 3, 3) == "round 2 brought no update: too few"
    assert verdict(rounds(GOOD, EMPTY), 2, 3) is None
    assert verdict(rounds(EMPTY, EMPTY), 2, 3) is None


def test_too_many_failures_in_a_row_fail_the_run():
    assert verdict(rounds(GOOD, FEW, EMPTY, NOBODY), 9, 3) is None
    assert verdict(rounds(GOOD, FEW, EMPTY, NOBODY, FEW), 9, 3).startswith("3 rounds in a row brought no update; the")
    assert verdict(rounds(GOOD, FEW, GOOD, NOBODY, FEW), 9, 3) is None
    assert verdict(rounds(GOOD, FEW), 9, 1) == "round 2 brought no update: too few"


@given(KINDS, st.integers(1, 4), st.data())
def test_empty_rounds_change_no_verdict(kinds, most, data):
    place = data.draw(st.integers(0, len(kinds)))
    last = len(kinds) if data.draw(st.booleans()) else 99
    before = verdict(rounds(*kinds), last, most)
    after = verdict(rounds(*kinds[:place], EMPTY, *kinds[place:]), last if last == 99 else last + 1, most)
    assert (before is None) == (after is None)


def test_a_shortage_names_the_first_in_full_and_counts_the_kinds_of_reasons():
    assert shortage(2, 4, 3, {}) == "2 of 4 clients gave an update, 3 are needed"
    assert shortage(0, 2, 0, {5: "it raised OSError: a", 6: "it raised OSError: b"}) == (
        "0 of 2 clients gave an update, 1 are needed; 2 failed, the first (client 5): it raised OSError: a"
    )
    reasons = ["x: 1", "y: 2", "x: 3", "z: 4", "w" * 300]
    text = shortage(0, 5, 1, dict(enumerate(reasons)))
    assert "5 failed (2 × x, 1 × y, 1 × z, 1 × other), the first (client 0): x: 1" in text
    shown = shortage(0, 3, 1, {0: "x", 1: "v" * 80, 2: "w" * 81})
    assert f"3 failed (1 × x, 1 × {'v' * 80}, 1 × {'w' * 79}…), " in shown
