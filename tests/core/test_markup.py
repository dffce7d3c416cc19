from __future__ import annotations

import math
import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from umbel.core.markup import HEIGHT, MOST_ROWS, WIDTH, curves, table

texts = st.text(st.characters(min_codepoint=32, blacklist_categories=("Cs", "Cc", "Cn", "Co")), max_size=9)
values = st.floats(-1e300, 1e300) | st.just(math.nan) | st.just(math.inf)


@given(st.lists(st.lists(texts, min_size=2, max_size=2), max_size=40), st.lists(texts, min_size=2, max_size=2))
def test_a_table_holds_what_it_is_given_and_nothing_that_it_says_counts_as_markup(
    rows: list[list[str]], head: list[str]
) -> None:
    tree = ElementTree.fromstring(f"<div>{table(head, rows)}</div>")
    found = [[cell.text or "" for cell in row] for row in tree.iter("tr")]
    assert found == [head, *rows[:MOST_ROWS]]
    more = max(0, len(rows) - MOST_ROWS)
    assert [each.text for each in tree.iter("i")] == ([f"and {more} more"] if more else [])


@given(st.dictionaries(texts, st.dictionaries(texts, st.lists(st.tuples(st.integers(0, 99), values)), max_size=3)))
def test_curves_stay_in_their_picture(panels: dict[str, dict[str, list[tuple[int, float]]]]) -> None:
    tree = ElementTree.fromstring(f"<div>{curves(panels)}</div>".replace("<br>", "<br/>"))
    drawn = [lines for lines in panels.values() if any(math.isfinite(y) for pairs in lines.values() for _, y in pairs)]
    assert len(list(tree.iter("svg"))) == len(drawn)
    for svg, lines in zip(tree.iter("svg"), drawn, strict=True):
        for line, pairs in zip(svg.iter("polyline"), lines.values(), strict=True):
            places = [tuple(map(float, each.split(","))) for each in line.get("points", "").split()]
            assert len(places) == sum(math.isfinite(y) for _, y in pairs)
            assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)


def test_a_curve_that_rises_goes_up() -> None:
    text = curves({"accuracy": {"test": [(1, 0.1), (2, 0.5), (3, 0.9)]}})
    found = re.search(r'points="([^"]*)"', text)
    assert found is not None
    heights = [float(each.split(",")[1]) for each in found[1].split()]
    assert heights == sorted(heights, reverse=True)
    assert "test 0.9" in text
