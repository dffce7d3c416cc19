"""Reasons are short, and few, whatever clients say."""

from umbel.runs.reasons import LONGEST, MOST_KEPT, MOST_KINDS, MOST_NAMED, OTHER, Reasons, counted, kind, short


def test_a_reason_is_cut_where_it_is_too_long():
    assert short("gone") == "gone"
    assert short("x" * LONGEST) == "x" * LONGEST
    assert short("x" * (LONGEST + 1)) == "x" * (LONGEST - 1) + "…"
    assert short("gone away", 5) == "gone…"


def test_failures_are_counted_by_reason_with_the_first_clients():
    failed = {**dict.fromkeys(range(3), "no data"), "clinic": "died", **dict.fromkeys(range(10, 20), "x" * 9000)}
    assert counted(failed) == [
        ["x" * (LONGEST - 1) + "…", 10, [10, 11, 12, 13, 14]],
        ["no data", 3, [0, 1, 2]],
        ["died", 1, ["clinic"]],
    ]
    assert counted({}) == []


def test_reasons_that_differ_by_numbers_are_one_where_there_are_too_many():
    few = {i: f"weight {i} is wrong" for i in range(MOST_KINDS)}
    assert len(counted(few)) == MOST_KINDS
    many = {i: f"weight {i} is wrong" for i in range(MOST_KINDS + 1)}
    assert counted(many) == [["weight 0 is wrong", MOST_KINDS + 1, [0, 1, 2, 3, 4]]]
    assert kind("weight 17 of 3.5") == kind("weight 2 of 1.0") != kind("height 17 of 3.5")


def test_what_is_left_over_is_one_row():
    letters = [chr(ord("a") + place % 26) * (1 + place // 26) for place in range(100)]
    rows = counted({0: "first", 1: "first", **dict(enumerate(letters, 2))})
    assert len(rows) == MOST_KINDS + 1
    assert rows[0] == ["first", 2, [0, 1]]
    assert rows[-1][:2] == [OTHER, 102 - 2 - (MOST_KINDS - 1)]
    assert len(rows[-1][2]) == MOST_NAMED
    assert sum(row[1] for row in rows) == 102


def test_reasons_take_little_memory_however_many_they_are():
    reasons = Reasons()
    first = reasons.keep("no data")
    assert reasons.keep(" ".join(["no", "data"])) is first
    kept = {reasons.keep(f"client {i}: " + "x" * 5000) for i in range(5000)}
    assert MOST_KEPT <= len(kept) < MOST_KEPT + 5
    letters = [f"{chr(97 + a)}{chr(97 + b)}{chr(97 + c)}" for a in range(20) for b in range(20) for c in range(20)]
    words = set(map(reasons.keep, letters))
    assert OTHER in words
    assert len(words | kept) < 2 * MOST_KEPT + 5
