from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.cli.terminal import ago, duration, in_order, main_metrics, number, plain, plural, sparkline, stderr, stdout


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.004, "4 ms"),
        (0.094, "94 ms"),
        (0.096, "0.1 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (86400, "24 h"),
    ],
)
def test_durations_have_the_unit_that_fits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "now"), (59, "now"), (60, "1 min ago"), (3600, "1 h ago"), (90000, "25 h ago"), (200000, "2 days ago")],
)
def test_the_past_is_rounded(seconds: float, text: str) -> None:
    assert ago(seconds) == text


def test_numbers_have_four_digits() -> None:
    assert [number(value) for value in (0.91234, 1.0, 12345.0, 1e-9, math.nan)] == [
        "0.9123", "1", "1.234e+04", "1e-09", "nan",
    ]  # fmt: skip


def test_nouns_follow_their_counts() -> None:
    assert [plural(count, "round") for count in (0, 1, 2)] == ["0 rounds", "1 round", "2 rounds"]


def test_the_tests_metrics_come_first() -> None:
    names = ["train.loss", "evaluate.accuracy", "test.loss", "test.accuracy", "other.x"]
    assert in_order(names) == ["test.accuracy", "test.loss", "evaluate.accuracy", "train.loss", "other.x"]
    assert main_metrics(dict.fromkeys(names, 1.0)) == {"test.accuracy": 1.0, "test.loss": 1.0}
    assert main_metrics({"train.loss": 2.0}) == {"train.loss": 2.0}
    assert main_metrics({}) == {}


def test_json_has_no_nan() -> None:
    assert plain({"a": math.nan, "b": -math.inf, "c": 1.5}) == {"a": None, "b": None, "c": 1.5}


def test_a_sparkline_rises_with_its_values() -> None:
    assert sparkline(range(8)) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([math.nan, 2.0, math.inf]) == "▁"
    assert sparkline([]) == ""
    assert sparkline(range(1000), width=8) == "▁▂▃▄▅▆▇█"


@given(st.lists(st.floats(width=32), max_size=60), st.integers(2, 30))
def test_any_values_have_a_sparkline(values: list[float], width: int) -> None:
    assert len(sparkline(values, width)) == min(width, sum(map(math.isfinite, values)))


def test_pipes_are_wide(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert stdout().width == stderr().width == 120
    stdout().print("[bold]brackets are text only in Text")
    assert capsys.readouterr().out == "brackets are text only in Text\n"
