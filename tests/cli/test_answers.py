"""The answer of an analysis, as `umbel run` prints it."""

import json

import numpy as np

from umbel.cli.answers import MOST_ROWS, ShownAnswer, rows
from umbel.cli.terminal import json_text, jsonable, stdout


def test_rows_are_named_by_what_leads_to_them():
    tree = {"age": {(0, "f"): {"mean": 1.5}}, "pressure": [{"mean": 2.0}, {"mean": float("nan")}]}
    assert [(keys, cells["mean"]) for keys, cells in list(rows(jsonable(tree)))[:2]] == [
        (("age", "0, f"), 1.5),
        (("pressure", "1"), 2.0),
    ]
    assert json.loads(json_text(tree))["pressure"][1] == {"mean": None}


APP = """
import umbel
from umbel import analytics

client = analytics.client(lambda source: {{"code": ["a"] * (source["index"] + 1) + {more}}})
app = umbel.App(client, strategy=analytics.HeavyHitters("code"))
"""


def test_umbel_run_prints_the_answer_as_a_table(umbel, tmp_path):
    (tmp_path / "ask.py").write_text(APP.format(more="[]"))
    line = ("run", str(tmp_path / "ask.py"), "--clients", "3", "--workers", "0", "--folder", str(tmp_path / "r"))
    done = umbel(*line)
    assert done.code == 0, done.said
    lines = [line.split() for line in done.out.splitlines()]
    assert ["count"] in lines
    assert ["a", "6"] in lines
    assert json.loads(umbel(*line, "--json").out.splitlines()[-1])["answer"] == {"a": {"count": 6}}


def test_a_long_answer_says_how_much_more_there_is(capsys):
    stdout().print(ShownAnswer([{"n": n} for n in range(MOST_ROWS + 2)]).table())
    assert "and 2 more rows" in capsys.readouterr().out


def test_arrays_in_an_answer_are_rows(capsys):
    found = {"mean": np.array([1.5, np.nan]), "count": np.int64(3)}
    stdout().print(ShownAnswer(found).table())
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line][-3:] == [["mean", "1", "1.5"], ["mean", "2"], ["count", "3"]]
    assert json.loads(json_text(found)) == {"mean": [1.5, None], "count": 3}
