"""The history: metrics as series, and their picture."""

from __future__ import annotations

import math
import sys

import pytest

from umbel.errors import SettingError
from umbel.runs.events import RoundCommitted
from umbel.runs.history import History

ROUNDS = [
    RoundCommitted(round=1, asks=1, train={"loss": 2.0}),
    RoundCommitted(
        round=2, asks=2, train={"loss": 1.5}, evaluate={"accuracy": 0.5}, test={"accuracy": 0.4, "f.1": 0.1}
    ),
    RoundCommitted(round=3, asks=3, failed="nobody came"),
    RoundCommitted(round=4, asks=4, train={"loss": math.inf}, evaluate={"accuracy": 0.75}),
]


@pytest.fixture
def history():
    return History(ROUNDS)


def test_it_is_a_sequence_of_rounds(history):
    assert len(history) == 4
    assert list(history) == ROUNDS
    assert history[-1] is ROUNDS[-1]
    assert ROUNDS[1] in history
    assert not History([])


def test_metrics_are_series_with_names(history):
    assert history.names == ["evaluate.accuracy", "test.accuracy", "test.f.1", "train.loss"]
    assert history.series("train.loss") == [(1, 2.0), (2, 1.5), (4, math.inf)]
    assert history.series("evaluate.accuracy") == [(2, 0.5), (4, 0.75)]
    assert history.series("test.f.1") == [(2, 0.1)]
    assert history.last("evaluate.accuracy") == 0.75
    assert history.last("evaluate.loss") is None


@pytest.mark.parametrize("name", ["train.accuracy", "loss", "train", "", ".", "failed.x", "round.x", "names.loss"])
def test_an_unknown_name_is_answered_with_those_that_there_are(history, name):
    with pytest.raises(SettingError) as caught:
        history.series(name)
    assert caught.value.message == f"no round has a metric {name!r}"
    assert caught.value.hint == "There are: evaluate.accuracy, test.accuracy, test.f.1, train.loss."
    assert history.last(name) is None


def test_metrics_are_the_newest_or_those_of_one_round(history):
    newest = {"evaluate.accuracy": 0.75, "test.accuracy": 0.4, "test.f.1": 0.1, "train.loss": math.inf}
    assert history.metrics() == newest
    assert list(history.metrics()) == history.names
    assert history.metrics(1) == {"train.loss": 2.0}
    assert history.metrics(3) == history.metrics(7) == {}


def test_without_metrics_there_are_none():
    with pytest.raises(SettingError, match=r"There are: none\."):
        History(ROUNDS[2:3]).series("train.loss")


def test_the_picture_has_a_panel_for_each_metric(history, tmp_path):
    pytest.importorskip("matplotlib")
    figure = history.plot(tmp_path / "curves.png", title="a run")
    assert [axes.get_ylabel() for axes in figure.axes] == ["accuracy", "f.1", "loss"]
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert lines == {"clients, evaluated": [[2.0, 0.5], [4.0, 0.75]], "test set": [[2.0, 0.4]]}
    assert figure.axes[-1].get_xlabel() == "round"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_odd_names_and_the_largest_numbers_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    values = [1.7e308, -1.7e308, math.nan, math.inf, 5e-324]
    rounds = [RoundCommitted(round=r, asks=r, train={"a$_$b": v, "<b>": v}) for r, v in enumerate(values, 1)]
    figure = History(rounds).plot(tmp_path / "curves.png", title="price_$_$")
    assert [axes.get_ylabel() for axes in figure.axes] == ["<b>", "a$_$b"]
    assert "<b>" not in History(rounds)._repr_html_().replace("<b>a$_$b</b>", "").replace("<b>&lt;b&gt;</b>", "")


def test_the_picture_of_a_failed_run_says_so_in_red(history):
    pytest.importorskip("matplotlib")
    whole, failed = (history.plot(title="a run", failed=failed) for failed in (False, True))
    assert (whole.get_suptitle(), failed.get_suptitle()) == ("a run", "a run failed")
    assert (whole._suptitle.get_color(), failed._suptitle.get_color()) == ("black", "#CC3333")


@pytest.mark.parametrize("rounds", [[], ROUNDS[2:3]])
def test_of_nothing_there_is_no_picture(tmp_path, rounds):
    pytest.importorskip("matplotlib")
    with pytest.raises(SettingError, match="nothing to draw"):
        History(rounds).plot(tmp_path / "empty.png")
    assert not (tmp_path / "empty.png").exists()


def test_without_matplotlib_one_is_told_what_to_install(history, monkeypatch):
    monkeypatch.delitem(sys.modules, "umbel.core.figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "umbel\[plot\]"'):
        history.plot()
