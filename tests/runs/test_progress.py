"""How far a run is, in a log, in a terminal and in a notebook; and what notebooks show of results."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import umbel
from umbel.core.markup import MOST_ROWS
from umbel.runs.events import RoundCommitted, RunEvent, RunFinished, RunInterruption, RunStarted, Warned
from umbel.runs.past import find
from umbel.runs.progress import RunProgress, in_notebook
from umbel.testing import VirtualClock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def story(rounds: int, **last: Any) -> list[RunEvent]:
    started = RunStarted(run="digits-1", format=1, seed=3, rounds=rounds, clients=4, strategy="FedAvg")
    told = [
        RoundCommitted(round=r, asks=r, clients=2, train={"loss": 1 / r}, seconds=1.0) for r in range(1, rounds + 1)
    ]
    ended = RunFinished(run="digits-1", rounds=rounds, reason="rounds", seconds=float(rounds), **last)
    return [started, *told, ended]


def shown(progress: RunProgress, events: list[RunEvent]) -> None:
    for event in events:
        progress(event)
    progress.close()


def test_in_a_log_each_round_is_a_line() -> None:
    stream = io.StringIO()
    shown(RunProgress(stream), story(3))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "run digits-1: FedAvg, 4 clients, 3 rounds, seed 3"
    assert [line.split("  ")[0] for line in lines[1:-1]] == ["round 1/3", "round 2/3", "round 3/3"]
    assert lines[-1] == "finished (rounds), 3 rounds in 3.0 s"
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_letters_that_a_stream_does_not_know_are_no_error(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    monkeypatch.setattr(raw, "isatty", lambda: terminal, raising=False)
    events = story(2)
    events[1] = RoundCommitted(round=1, asks=1, clients=2, train={"café": 1.0}, seconds=1.0)
    shown(RunProgress(stream), events)
    assert b"2 rounds in 2.0 s" in raw.getvalue()


def test_of_many_rounds_a_log_has_about_a_hundred_and_each_that_failed() -> None:
    stream, events = io.StringIO(), story(1000)
    events[17] = RoundCommitted(round=17, asks=17, failed="nobody came")
    shown(RunProgress(stream), events)
    lines = stream.getvalue().splitlines()
    assert 100 <= len(lines) <= 105
    assert any("nobody came" in line for line in lines)


def test_a_terminal_has_one_line_that_is_written_over() -> None:
    stream, clock = Terminal(), VirtualClock(0.0)
    progress = RunProgress(stream, clock=clock)
    events = story(40)
    events.insert(3, Warned(round=2, text="its \x1b[2Jdisk"))
    for event in events[:-1]:
        clock.advance(0.1)
        progress(event)
    progress(RunInterruption(run="digits-1", round=40))
    progress.close()
    text = stream.getvalue()
    assert text.count("\n") == 2  # after the warning, and at the end
    assert "\x1b[2J" not in text
    assert 10 <= text.count("\r") <= 25
    assert text.rstrip("\n").endswith("stopped after round 40")
    assert "█" * 24 in text


class Cell:
    """What a notebook's cell shows."""

    def __init__(self) -> None:
        self.pages: list[str] = []

    def display(self, page: str, display_id: bool) -> Cell:
        self.pages.append(page)
        return self

    def update(self, page: str) -> None:
        self.pages.append(page)


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    """As in a notebook; tests/test_notebooks.py has real ones."""
    found = Cell()
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=found.display))
    return found


def test_in_a_notebook_a_bar_is_drawn_anew(cell: Cell) -> None:
    progress = RunProgress(clock=VirtualClock(0.0))
    events = story(3)
    events.insert(2, Warned(round=1, text="<script>"))
    shown(progress, events)
    trees = [ElementTree.fromstring(page.replace("<br>", "<br/>")) for page in cell.pages]
    assert 2 <= len(trees) <= 3  # what comes within a moment is drawn at once
    assert trees[-1].find("progress").attrib == {"value": "3", "max": "3"}  # type: ignore[union-attr]
    assert "finished (rounds), 3 rounds" in "".join(trees[-1].itertext())
    assert "<script>" in "".join(trees[-1].itertext())
    assert not list(trees[-1].iter("script"))


client = umbel.Client()


@client.train
def train(model: Any, data: Any, ctx: Any) -> umbel.Update:
    return umbel.Update({"w": model["w"] + 1.0}, weight=1, metrics={"loss": 1.0, "<b>": 2.0})


def run(**settings: Any) -> umbel.Result:
    app = umbel.App(client, model={"w": np.zeros(2, np.float32)}, strategy=umbel.FedAvg(cohort=2))
    return umbel.run(app, on=umbel.Simulation(clients=3), **{"rounds": 2, "folder": None, **settings})


def test_a_run_shows_itself_in_notebooks_and_where_that_is_asked_for(
    cell: Cell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(progress=False)
    assert not cell.pages
    run()
    assert cell.pages
    monkeypatch.undo()
    assert not in_notebook()
    assert capsys.readouterr().err == ""
    run()
    assert capsys.readouterr().err == ""
    run(progress=True)
    assert "round 2/2" in capsys.readouterr().err


def test_results_are_shown_with_their_curves(tmp_path: Path) -> None:
    result = run(folder=tmp_path, rounds=25)
    for value in (result, result.history, find(result.run, tmp_path)):
        page = value._repr_html_()
        tree = ElementTree.fromstring(f"<div>{page.replace('<br>', '<br/>')}</div>")
        assert len(list(tree.iter("polyline"))) == 2
        assert len(list(tree.iter("tr"))) == 1 + MOST_ROWS
        assert "train.loss" in "".join(tree.itertext())
        assert "and 5 more" in "".join(tree.itertext())
        assert "train.<b>" in "".join(tree.itertext())
    assert result.run in result._repr_html_()
    assert "25 rounds" in result._repr_html_()


def test_arrays_are_shown_as_a_table() -> None:
    arrays = umbel.Arrays({"a": np.zeros((2, 3), np.float32), "n<": np.int64(3)}, {"n<": "buffer"})
    tree = ElementTree.fromstring(f"<div>{arrays._repr_html_()}</div>")
    assert [[cell.text for cell in row] for row in tree.iter("tr")][1:] == [
        ["a", "float32", "2×3", "parameter"],
        ["n<", "int64", "scalar", "buffer"],
    ]
