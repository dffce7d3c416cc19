from __future__ import annotations

import io
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from umbel.cli.progress import progress
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
    assert sparkline([-1.7e308, 0.0, 1.7e308]) == "▁▅█"
    assert sparkline([]) == ""
    assert sparkline(range(1000), width=8) == "▁▂▃▄▅▆▇█"


@given(st.lists(st.floats(width=32), max_size=60), st.integers(2, 30))
def test_any_values_have_a_sparkline(values: list[float], width: int) -> None:
    assert len(sparkline(values, width)) == min(width, sum(map(math.isfinite, values)))


def test_pipes_are_wide(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert stdout().width == stderr().width == 120
    stdout().print("[bold]brackets are text")
    assert capsys.readouterr().out == "[bold]brackets are text\n"


TRICKY = "[red]x[/] [/y]"
"""What rich would take for its own markup: it would be eaten, or end the program."""


@pytest.mark.parametrize("console", [stdout, stderr])
def test_what_stands_in_brackets_is_printed_as_it_is(
    capsys: pytest.CaptureFixture[str], console: Callable[[], Any]
) -> None:
    table = Table(TRICKY)
    table.add_row(TRICKY)  # str, not Text
    console().print(TRICKY)
    console().print(table)
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count(TRICKY) == 3


APP = f"""
import umbel
client = umbel.Client()

@client.train
def train(model, data, ctx):
    if ctx.client == 1:
        raise ValueError({TRICKY!r})
    return umbel.Update({{"w": model["w"] + 1}}, weight=1, metrics={{{TRICKY!r}: 1.0}})

app = umbel.App(
    client, model={{"w": [0.0]}}, strategy=umbel.FedAvg(cohort=4), rounds=2, config={{"name": {TRICKY!r}}}
)
"""


def test_no_command_eats_brackets(umbel: Callable[..., Any], folder: Path) -> None:
    (folder / "app.py").write_text(APP)
    done = umbel("run", "app.py", "--clients", 4, "--workers", 0)
    assert done.code == 0
    assert f"train.{TRICKY} 1" in done.err
    assert f"ValueError: {TRICKY}" in done.err
    assert f"train.{TRICKY}" in done.out
    page = umbel("show", "last").out
    assert f"name={TRICKY}" in page
    assert page.count(TRICKY) >= 4  # the setting, the column, the chart, the failure
    assert f"ValueError: {TRICKY}" in umbel("logs", "last").out
    next(Path("umbel-runs").iterdir()).rename("umbel-runs/[red]app[y]")
    assert "[red]app[y]" in umbel("runs").out
    for command in (("show", TRICKY), ("export", TRICKY, "m.safetensors"), ("run", f"{TRICKY}.py")):
        assert TRICKY in umbel(*command).said


def test_nor_does_live_progress(umbel: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    from umbel.runs.events import RoundCommitted, RoundStarted, RunStarted, Warned

    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    with progress(stderr()) as observer:
        observer(RunStarted(run=TRICKY, format=1, seed=0, rounds=1, clients=1, strategy="FedAvg"))
        observer(RoundStarted(round=1, rounds=1))
        observer(Warned(round=1, text=f"warned {TRICKY}", client=TRICKY))
        observer(RoundCommitted(round=1, asks=1, train={TRICKY: 1.0}))
    shown = screen.getvalue()
    for text in (f"run {TRICKY}", f"client {TRICKY}: warned {TRICKY}", f"train.{TRICKY}"):
        assert text in shown


HOSTILE = "ward\x1b[2J\x1b[1;1H\rpretty\u202egnp\x07\x9b31m"


def test_what_others_wrote_does_not_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    table = Table("name")
    table.add_row(HOSTILE)
    table.add_row("größe 漢字 [red]")
    stdout().print(HOSTILE)
    stdout().print(table)
    stdout().print(f"{HOSTILE}\nnext")
    out = capsys.readouterr().out
    assert all(each.isprintable() or each == "\n" for each in out)
    assert out.count(r"ward\x1b[2J\x1b[1;1Hpretty\u202egnp\x9b31m") >= 2  # rich leaves \r and \a out by itself
    assert "größe 漢字 [red]" in out
    assert out.endswith("\nnext\n")


def test_colours_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setenv("FORCE_COLOR", "1")
    stdout().print("fine", style="green")
    assert "\x1b[" in sys.stdout.getvalue()  # type: ignore[attr-defined]


def test_a_note_is_one_line_and_what_it_has_besides_looks_like_none() -> None:
    code = f"""
import logging
from umbel.cli.terminal import log_to_stderr
log_to_stderr()
logging.getLogger("umbel").info("node %s is gone", {HOSTILE + chr(10) + "12:00:00 all is well"!r})
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    first, second, *rest = said.split("\n")
    assert re.fullmatch(r"\d\d:\d\d:\d\d node ward\\x1b.*", first)
    assert second == "    12:00:00 all is well is gone"
    assert rest == [""]
