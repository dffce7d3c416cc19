from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.cli.chart import Canvas, chart, nice_ticks, tick_label

some_values = st.floats(-1e12, 1e12) | st.floats(-1, 1) | st.sampled_from([math.nan, math.inf])
some_curves = st.lists(some_values, min_size=1, max_size=250).map(lambda found: list(enumerate(found, 1)))


def drawn(*series: list[tuple[int, float]], **size: Any) -> list[str]:
    named = dict(zip(("test", "train"), series, strict=False))
    return [line.plain.rstrip() for line in chart(named, {"test": "green"}, **size)]


def test_a_few_rounds_are_marked() -> None:
    assert drawn([(1, 0.0), (2, 0.5), (3, 1.0)], width=30) == [
        "1.00 ┤                ● test 1",
        "     │              ⡠⠊",
        "0.75 ┤           ⢀⠤⠊",
        "     │         ⢀⠔⠁",
        "0.50 ┤       ⢀●⠁",
        "     │     ⢀⠔⠁",
        "0.25 ┤   ⢀⠔⠁",
        "     │ ⢀⠔⠁",
        "0.00 ┤●⠁",
        "     └┬───────┬───────┬",
        "      1       2       3 round",
    ]


def test_many_rounds_are_a_line_and_equal_curves_have_labels_of_their_own() -> None:
    rising = [(r, r / 100) for r in range(1, 101)]
    assert drawn(rising, rising, width=40, height=4) == [
        "1.00 ┤                      ⢀⣀⠤⠤ test 1",
        "0.75 ┤                ⣀⣠⠤⠔⠒⠉⠁    train 1",
        "0.50 ┤         ⢀⣀⡤⠤⠒⠊⠉",
        "0.25 ┤   ⣀⣠⠤⠔⠒⠉⠉",
        "0.00 ┤⠒⠚⠉⠁",
        "     └┬───────────┬────────────┬",
        "      1           50          100 round",
    ]


def test_one_value_is_a_mark_with_room_around_it() -> None:
    lines = drawn([(5, 0.3)], width=40)
    assert "0.30 ┤●                         test 0.3" in lines
    assert lines[-1].split() == ["5", "round"]
    assert sum(line.count("●") for line in lines) == 1


def test_curves_may_begin_and_end_at_different_rounds() -> None:
    lines = drawn([(2, 1.0), (4, 2.0)], [(1, 1.0), (2, 1.5), (3, 1.0)], width=40)
    assert lines[-1].split() == ["1", "2", "3", "4", "round"]


def test_the_style_of_a_curve_is_that_of_its_label() -> None:
    top = chart({"test": [(1, 0.0), (2, 1.0)]}, {"test": "green"}, width=30)[0]
    assert {span.style for span in top.spans if "●" in top.plain[span.start : span.end]} == {"green"}
    assert str(top.spans[-1].style) == "green"


def test_nothing_finite_draws_nothing() -> None:
    assert drawn([(1, math.nan), (2, math.inf)]) == []
    assert drawn() == []
    assert len(drawn([(1, math.nan), (2, 1.0)], [(1, math.nan)])) == len(drawn([(2, 1.0)]))


@given(st.lists(some_curves, min_size=1, max_size=2), st.integers(40, 120), st.integers(4, 12))
def test_any_curves_fit_their_space(series: list[list[tuple[int, float]]], width: int, height: int) -> None:
    lines = drawn(*series, width=width, height=height)
    assert all(len(line) <= width for line in lines[:-1])
    assert len(lines) <= 2 * height + 2
    for name, pairs in zip(("test", "train"), series, strict=False):
        finite = [value for _, value in pairs if math.isfinite(value)]
        assert not finite or any(f" {name} {finite[-1]:.4g}" in line for line in lines)


@given(st.floats(-1e12, 1e12) | st.floats(-1, 1), st.floats(1e-6, 1e12))
def test_ticks_are_few_round_and_around_the_values(low: float, span: float) -> None:
    high = low + span
    ticks = nice_ticks(low, high)
    step = ticks[1] - ticks[0]
    assert 2 <= len(ticks) <= 6
    assert ticks[0] <= low + step * 1e-6
    assert ticks[-1] >= high - step * 1e-6


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.0, 1.0, ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        (0.91, 0.93, ["0.910", "0.915", "0.920", "0.925", "0.930"]),
        (-1.0, 1.0, ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
        (3.0, 1000.0, ["0", "250", "500", "750", "1000"]),
        (0.0, 2e9, ["0", "5e+08", "1e+09", "1.5e+09", "2e+09"]),
        (0.0, 2e-7, ["0", "5e-08", "1e-07", "1.5e-07", "2e-07"]),
        (4.0, 4.0, ["3.6", "3.8", "4.0", "4.2", "4.4"]),
        (0.0, 0.0, ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
    ],
)
def test_ticks_are_labelled_with_the_digits_they_need(low: float, high: float, labels: list[str]) -> None:
    ticks = nice_ticks(low, high)
    assert [tick_label(tick, ticks) for tick in ticks] == labels


def test_a_canvas_has_eight_dots_a_character() -> None:
    canvas = Canvas(2, 1)
    for x in range(2):
        canvas.line((x, 0), (x, 3), "red")
    assert canvas.row(0).plain == "⣿ "
    canvas.mark((3, 2), "red")
    assert canvas.row(0).plain == "⣿●"
