from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


@pytest.fixture
def two(umbel: Command) -> list[dict[str, Any]]:
    """The summaries of two runs that differ in a rate, in rounds and in nothing else."""
    settings = (["--rounds", 2], ["--rounds", 4, "--set", "lr=0.25"])
    return [umbel("run", "app.py", "--clients", 4, *each, "--json").summary for each in settings]


def test_what_differs_is_shown_beside_what_came_of_it(umbel: Command, two: list[dict[str, Any]]) -> None:
    ids = [summary["run"] for summary in two]
    found = json.loads(umbel("compare", *ids, "--json").out)
    assert found["runs"] == ids
    assert found["settings"] == {"rounds": [2, 4], "config.lr": [0.5, 0.25]}
    assert found["results"]["state"] == ["finished", "finished"]
    for name, values in found["results"].items():
        if "." in name:
            assert values == [summary["metrics"][name] for summary in two]
    assert umbel("compare", "--json").out == umbel("compare", *ids, "--json").out
    text = umbel("compare", *ids).out
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip() and "─" not in line}
    assert lines["config.lr"] == ["0.5", "0.25"]
    assert lines["test.distance"] == [f"{summary['metrics']['test.distance']:.4g}" for summary in two]
    assert not {"seed", "clients", "app"} & lines.keys()


def test_their_curves_are_drawn_together(umbel: Command, two: list[dict[str, Any]]) -> None:
    pytest.importorskip("matplotlib")
    ids = [summary["run"] for summary in two]
    assert "drawn to both.png" in umbel("compare", *ids, "--plot", "both.png").out
    assert Path("both.png").read_bytes()[1:4] == b"PNG"
    for file, said, code in (("both.xyz", "cannot be drawn", 3), ("no/such/both.png", "cannot be written", 5)):
        done = umbel("compare", *ids, "--plot", file)
        assert (done.code, said in done.said) == (code, True)


def test_without_runs_it_says_so(umbel: Command) -> None:
    assert umbel("compare").code == 3


def test_one_run_or_one_twice_is_nothing_to_compare(umbel: Command, two: list[dict[str, Any]]) -> None:
    first = two[0]["run"]
    for references in ([first], [first, first]):
        done = umbel("compare", *references)
        assert done.code == 3
        assert "takes two runs or more, each once" in done.said
