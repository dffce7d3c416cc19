"""Portions keep the order, leave nothing out, and are small."""

from hypothesis import given
from hypothesis import strategies as st

from umbel.wire.portions import portions, text_bytes


@given(st.lists(st.integers(0, 50)), st.integers(1, 5), st.integers(1, 60))
def test_nothing_is_left_out_and_no_portion_is_too_large(rows, most, most_bytes):
    found = list(portions(rows, lambda row: row, most=most, most_bytes=most_bytes))
    assert [row for portion in found for row in portion] == rows
    assert all(0 < len(portion) <= most for portion in found)
    assert all(sum(portion) <= most_bytes or len(portion) == 1 for portion in found)


def test_a_text_counts_by_its_bytes():
    assert text_bytes("ä" * 10) == 24
    assert list(portions(["a" * 60, "b" * 60, "c"], text_bytes, most_bytes=70)) == [["a" * 60], ["b" * 60, "c"]]
