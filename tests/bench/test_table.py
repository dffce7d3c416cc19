from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace

import pytest
from tests.bench import tiny

import umbel
from umbel import bench
from umbel.bench.picture import curve
from umbel.bench.table import slug
from umbel.strategies import FedAvg


def outcome(values, failed=None, **more):
    series = {"test.accuracy": [[2 * r, value] for r, value in enumerate(values, 1)], "evaluate.accuracy": [[2, 0.25]]}
    told = {"rounds": 8, "updates": 80, "bytes_down": 3_000_000, "bytes_up": 1_500_000, "seconds": 2.0, **more}
    return bench.Outcome(series=series, failed=failed, **told)


def cell(name, *runs, problem, settings=None, tries=()):
    settings = {"client rate": 0.1, **(settings or {})}
    algorithm = bench.Algorithm(FedAvg, {"lr": (0.01, 0.1, 1.0)} if "lr" in settings else {})
    made = [(bench.Trial(problem.name, name, "test", i, 8, 2, settings, f"k{i}"), run) for i, run in enumerate(runs, 1)]
    tried = [(bench.Trial(problem.name, name, "validation", 0, 8, 2, settings, "t"), run) for run in tries]
    return bench.ResultCell(problem, name, algorithm, settings, tried, made)


@pytest.fixture
def problem():
    more = {"also": ("evaluate.accuracy",), "rates": (0.1, 0.2, 0.3)}
    return tiny.problem(metric="test.accuracy", goal="max", **more)


@pytest.fixture
def table(problem):
    cells = [
        cell("slow", outcome([0.1, 0.2, 0.3, 0.4]), outcome([0.2, 0.2, 0.3, 0.7]), problem=problem),
        cell("gone", outcome([], "it | fell\nover"), outcome([0.9], "again"), problem=problem),
        cell(
            "fast",
            outcome([0.5, 0.8, 0.8, 0.8]),
            outcome([0.8, 0.7, 0.6, 0.5]),
            problem=problem,
            settings={"lr": 1.0},
            tries=[outcome([0.1], seconds=3.0), outcome([0.2])],
        ),
        cell("half", outcome([0.4, 0.4, 0.4, 0.4]), outcome([], "no"), problem=problem),
    ]
    return bench.ResultTable([problem], cells, [1, 2])


def test_scores_are_means_of_the_last_three_and_have_their_spread(table):
    fast, half, slow, gone = table.rows
    assert [row.algorithm for row in (fast, half, slow, gone)] == ["fast", "half", "slow", "gone"]
    assert fast.scores == pytest.approx([0.8, 0.6])
    assert (fast.score, fast.spread) == (pytest.approx(0.7), pytest.approx(0.2 / math.sqrt(2)))
    assert (half.score, half.spread, half.failed) == (pytest.approx(0.4), 0.0, "1 of 2 seeds: no")
    assert math.isnan(gone.score)
    assert fast.also == {"evaluate.accuracy": 0.25}
    assert (fast.updates, fast.bytes_down, fast.bytes_up, fast.seconds) == (80, 3e6, 1.5e6, 2.0)
    assert (fast.tuning_runs, fast.tuning_updates, fast.tuning_seconds) == (2, 160, 5.0)
    assert (fast.edge, slow.edge) == (["client rate", "lr"], [])


def test_rounds_to_a_target_are_those_of_the_first_evaluation_there(table, problem):
    fast, half, slow, _ = table.rows
    assert fast.target == pytest.approx(0.95 * 0.7)
    assert (fast.reached, fast.arrived) == (3.0, 2)  # at round 4, and at round 2
    assert (slow.reached, slow.arrived) == (8, 1)
    assert (half.reached, half.arrived) == (None, 0)
    table.problems[0] = replace(problem, target=0.3)
    assert table.rows[2].reached == 6
    assert outcome([0.5, 0.2]).reached("test.accuracy", 0.3, "min") == 4


def test_the_page_has_a_line_for_each(table):
    text = table.markdown()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len(cells) == 6
    assert len({len(row) for row in cells}) == 1
    rows = {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[2:]}
    assert rows["fast"]["test.accuracy"] == "0.7000"
    assert rows["fast"]["settings"] == "lr 0.1*, server lr 1.0*"
    assert rows["fast"]["tuning"] == "2 runs, 5 s"
    assert (rows["fast"]["MB down"], rows["fast"]["MB up"]) == ("3", "1.5")
    assert rows["slow"]["rounds to 0.6650"] == "8 (1 of 2)"
    assert rows["gone"]["test.accuracy"] == "failed"
    assert "\n- gone failed: it | fell over\n" in text
    assert "4 rounds, 3 clients a round; epochs 2; 2 seeds." in text
    assert str(table) == text


def test_everything_is_written(table, tmp_path):
    pytest.importorskip("matplotlib")
    table.write(tmp_path / "docs" / "page.md", title="Title", intro="Intro.", pictures=tmp_path / "pictures")
    page = (tmp_path / "docs" / "page.md").read_text(encoding="utf-8")
    assert page.startswith("# Title\n\nIntro.\n\nA score is ")
    (link,) = re.findall(r"!\[.*?\]\((.*?)\)", page)
    assert (tmp_path / "docs" / link).read_bytes()[1:4] == b"PNG"
    tree = json.loads((tmp_path / "docs" / "page.json").read_text(encoding="utf-8"))
    assert [row["algorithm"] for row in tree["rows"]] == ["fast", "half", "slow", "gone"]
    assert tree["rows"][3]["score"] is None
    assert len(tree["runs"]) == 10
    read = list(csv.DictReader(io.StringIO((tmp_path / "docs" / "page.csv").read_text(encoding="utf-8"))))
    assert [row["algorithm"] for row in read] == ["fast", "half", "slow", "gone"]
    assert json.loads(read[0]["settings"]) == {"client rate": 0.1, "lr": 1.0}


def test_an_overview_has_the_mean_ranks(problem):
    other = replace(problem, name="other", goal="min")
    cells = [cell("a", outcome([0.9]), problem=problem), cell("b", outcome([0.5]), problem=problem),
             cell("a", outcome([0.9]), problem=other), cell("b", outcome([], "no"), problem=other)]  # fmt: skip
    lines = bench.ResultTable([problem, other], cells, [1]).overview().splitlines()
    assert lines[0] == "| algorithm | mean rank | tiny | other |"
    assert lines[2:] == ["| a | 1.0 | 0.9000 | 0.9000 |", "| b | 2.0 | 0.5000 | - |"]
    alike = bench.ResultTable([problem, other], cells, [1]).overview("evaluate.accuracy").splitlines()
    assert alike[2:] == ["| a | 1.0 | 0.2500 | 0.2500 |", "| b | 1.5 | 0.2500 | - |"]


def test_what_failed_altogether_has_no_picture(problem, tmp_path):
    pytest.importorskip("matplotlib")
    table = bench.ResultTable([problem], [cell("gone", outcome([], "why"), problem=problem)], [1])
    table.write(tmp_path / "page.md")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.csv", "page.json", "page.md"]
    assert math.isnan(table.target(problem))
    table.plot("tiny")


def test_pictures_show_each_that_came_to_something(table):
    pytest.importorskip("matplotlib")
    figure = table.plot("tiny")
    (axes,) = figure.axes
    assert [line.get_label().split()[0] for line in axes.lines[:3]] == ["fast", "half", "slow"]
    assert list(axes.lines[0].get_ydata()) == pytest.approx([0.65, 0.75, 0.7, 0.65])
    assert list(axes.lines[0].get_xdata()) == [20, 40, 60, 80]
    with pytest.raises(umbel.errors.SettingError, match="tiny"):
        table.plot("other")


def test_a_curve_has_the_rounds_that_all_have():
    long, short = outcome([0.1, 0.3, 0.5]), outcome([0.3, 0.5])
    assert curve([long, short], "test.accuracy") == ([2, 4], [0.2, 0.4], [0.1, 0.3], [0.3, 0.5])
    assert curve([], "test.accuracy") == ([], [], [], [])


def test_names_of_files_are_plain():
    assert slug("Fashion-MNIST, Dirichlet 0.1!") == "fashion-mnist-dirichlet-0-1"
