from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from umbel.cli.page import page
from umbel.runs.events import RoundCommitted, RunFinished
from umbel.runs.history import History
from umbel.runs.past import PastRun

Written = Callable[..., Path]


def shown(folder: Path, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(page(PastRun(folder), width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("rounds", [0, 1, 2, 5, 200])
@pytest.mark.parametrize("width", [80, 130])
def test_a_page_fits_its_terminal_whatever_the_rounds(
    tmp_path: Path, written: Written, rounds: int, width: int
) -> None:
    text = shown(written(tmp_path, rounds=rounds), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert f"unfinished  {rounds} of {max(3, rounds)} rounds" in text
    assert ("accuracy" in text) == (rounds > 0)


def test_a_page_tells_the_facts(tmp_path: Path, written: Written) -> None:
    end = RunFinished(run="", rounds=3, reason="rounds", best_round=2, model_sha256="0123456789abcdef")
    lines = [line.split() for line in shown(written(tmp_path, ends=[end])).splitlines()]
    for fact in (
        "app-20260102-030405-ab12 finished 3 of 3 rounds in 1.5 s",
        "app /somewhere/demo/app.py",
        "strategy FedAvg, 9 clients, seed 7",
        "settings lr=0.5",
        "config lr=0.5, name=x",
        "software python 3.12, Linux x86_64",
        "model sha256 0123456789ab, of round 2, the best",
    ):
        assert fact.split() in lines


def test_a_page_has_the_metrics_of_the_best_model(tmp_path: Path, written: Written) -> None:
    end = RunFinished(run="", rounds=3, reason="rounds", best_round=2, model_sha256="0123456789abcdef")
    text = " ".join(shown(written(tmp_path, ends=[end])).split())
    assert "metrics of round 2: test.accuracy 0.6, evaluate.accuracy 0.55, evaluate.loss 2, train.loss 1.5" in text
    assert "of round" not in shown(written(tmp_path / "x", ends=[replace(end, best_round=None)]))


def test_rounds_stand_in_a_table_with_who_is_missing(tmp_path: Path, written: Written) -> None:
    lines = [line.split() for line in shown(written(tmp_path)).splitlines()]
    assert ["test", "evaluate", "evaluate", "train"] in lines
    assert ["round", "clients", "missing", "accuracy", "accuracy", "loss", "loss", "time"] in lines
    assert ["1", "2", "0.2", "0.1", "4", "3", "0.5", "s"] in lines
    assert ["2", "1", "1", "0.6", "0.55", "2", "1.5", "0.5", "s"] in lines


def test_of_many_rounds_some_are_shown_the_first_and_the_last_among_them(tmp_path: Path, written: Written) -> None:
    lines = shown(written(tmp_path, rounds=200)).splitlines()
    numbers = [line.split()[0] for line in lines if line.rstrip().endswith("0.5 s")]
    assert len(numbers) == 11
    assert (numbers[0], numbers[-1]) == ("1", "200")
    assert any("11 of 200 rounds" in line for line in lines)


def test_failures_are_counted_by_reason(tmp_path: Path, written: Written) -> None:
    text = shown(written(tmp_path))
    assert "1 failure" in text
    assert "1 ×  its train handler raised ValueError: no data  client 2 in round 2" in text


def test_a_failed_run_says_why(tmp_path: Path, written: Written) -> None:
    end = RunFinished(run="", rounds=3, reason="failed", error="3 rounds in a row brought no update")
    assert "error     3 rounds in a row brought no update" in shown(written(tmp_path, ends=[end]))


def test_a_run_of_one_metric_has_one_chart(tmp_path: Path, written: Written) -> None:
    record = PastRun(written(tmp_path, rounds=1))
    record.log.rounds[:] = [RoundCommitted(round=1, asks=1, train={"loss": 1.0}, failed="nobody answered")]
    console = Console(file=io.StringIO(), width=80)
    console.print(page(record, 80))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.count("└") == 1
    assert "round 1 brought nothing: nobody answered" in text
    assert len(History(record.log.rounds)) == 1
