"""The page of a preflight."""

from __future__ import annotations

import io

from rich.console import Console

from umbel.cli.forecast import forecast
from umbel.runs.preflight import KindCost, Preflight


def shown(found: Preflight) -> str:
    console = Console(file=io.StringIO(), width=80, highlight=False)
    console.print(forecast(found, "hospitals"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_it_says_time_memory_and_bytes() -> None:
    parts = (
        KindCost("train", 10, 100, 0.02, 0.1, 8_000, 8_000),
        KindCost("evaluate", 50, 100, 0.001, 0.0, 8_000, 0),
    )
    found = Preflight(7, parts, 100, 2, 0.5, 70.0, 400_000_000, 48_000_000, 8_000_000)
    text = shown(found)
    assert "hospitals  100 rounds, by what client 7 took" in text
    assert "in 2 processes" in text
    assert "400 MB" in text
    assert "48.0 MB down and 8.0 MB up" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["train"][1:3] == ["100", "10"]
    assert rows["evaluate"][1:3] == ["100", "50"]
    assert "test" in rows
    assert all(len(line) <= 80 for line in text.splitlines())


def test_what_is_not_known_is_not_said() -> None:
    text = shown(Preflight("a", (KindCost("train", 1, 1, 0.1, 0.0, 10, 10),), 1, 0, 0.0, 0.1, 0, 10, 10))
    assert "this process alone" in text
    assert "memory" not in text
    assert "test" not in text.split("task")[1]
