from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import some

from umbel.data import by, dirichlet, draw, iid, shards, table
from umbel.errors import DataError

matplotlib = pytest.importorskip("matplotlib")
LABELS = np.arange(3000) % 10


def all_text(figure: matplotlib.figure.Figure) -> list[str]:
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def assert_nothing_is_clipped(figure: matplotlib.figure.Figure) -> None:
    box = figure.get_tightbbox(figure.canvas.get_renderer())
    width, height = figure.get_size_inches()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= width
    assert box.y1 <= height


@pytest.mark.parametrize(
    ("clients", "classes"), some([*product([1, 10, 61], [1, 8, 11]), *product([2, 60, 500], [2, 10, 100])], 6)
)
def test_draws_any_number_of_clients_and_classes(clients: int, classes: int) -> None:
    labels = np.arange(1200) % classes
    figure = draw(dirichlet(0.3, minimum=0)(labels, clients, 1), labels)
    figure.draw_without_rendering()
    assert_nothing_is_clipped(figure)
    title = figure.get_suptitle()
    assert title == f"1,200 items of {classes} classes at {clients} clients"


@pytest.mark.slow
def test_draws_thousands_of_clients(tmp_path: Path) -> None:
    labels = np.arange(20_000) % 62
    figure = draw(shards()(labels, 10_000, 1), labels, tmp_path / "many.png")
    assert "items of a client (mean of 10 neighbours)" in all_text(figure)
    assert_nothing_is_clipped(figure)


def test_bars_are_as_long_as_the_clients_are_large() -> None:
    partition = by()(np.repeat(["small", "large"], [5, 9]))
    labels = [0] * 5 + [0] * 4 + [1] * 5
    axes = draw(partition, labels, classes=["healthy", "ill"]).axes[0]
    bars = sorted((bar.get_y() + 0.4, bar.get_x(), bar.get_width()) for bar in axes.patches)
    assert bars == [(0, 0, 4), (0, 4, 5), (1, 0, 5)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["large", "small"]
    legend = axes.figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["healthy", "ill"]


def test_the_map_holds_every_count_and_the_histogram_every_client() -> None:
    partition = dirichlet(0.3)(LABELS, 100, 1)
    figure = draw(partition, LABELS)
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape == (10, 100)
    assert sorted(shown.T.tolist()) == sorted(partition.counts(LABELS).tolist())
    assert (np.diff(shown.argmax(axis=0)) >= 0).all()
    assert sum(bar.get_height() for bar in figure.axes[1].patches) == 100


def test_many_clients_are_shown_by_their_mean() -> None:
    partition = dirichlet(0.3, minimum=0)(LABELS, 1001, 1)
    shown = draw(partition, LABELS).axes[0].images[0].get_array()
    assert shown.shape == (10, 501)
    assert 2 * shown[:, :-1].sum() + shown[:, -1].sum() == pytest.approx(3000)


@pytest.mark.parametrize("clients", [3, 100])
def test_long_names_are_cut_and_nothing_is_clipped(clients: int) -> None:
    names = [f"a very long name of the class {number}" for number in range(10)]
    partition = iid()(LABELS, clients, 1)
    figure = draw(partition, LABELS, classes=names, title="Who holds what")
    assert "a very long name of the…" in all_text(figure)
    assert figure.get_suptitle() == "Who holds what"
    assert_nothing_is_clipped(figure)


def test_neighbouring_classes_differ_in_colour() -> None:
    for classes in (2, 8, 10, 20):
        labels = np.arange(200) % classes
        axes = draw(iid()(labels, 1, 1), labels).axes[0]
        assert len({bar.get_facecolor() for bar in axes.patches}) == classes


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.PDF", b"%PDF")])
def test_writes_the_same_file_each_time(tmp_path: Path, name: str, start: bytes) -> None:
    partition = iid()(LABELS, 3, 1)
    draw(partition, LABELS, tmp_path / name)
    first = (tmp_path / name).read_bytes()
    draw(partition, LABELS, str(tmp_path / name))
    assert first.startswith(start)
    assert (tmp_path / name).read_bytes() == first


def test_refuses_a_kind_of_file_that_it_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.png, \.svg, \.pdf, not as 'a.jpeg'"):
        draw(iid()(LABELS, 3, 1), LABELS, tmp_path / "a.jpeg")


def test_refuses_too_few_names() -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        draw(iid()(LABELS, 3, 1), LABELS, classes=["a", "b"])


def test_says_what_to_install_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=r'pip install "umbel\[plot\]"'):
        draw(iid()(LABELS, 3, 1), LABELS)


def test_chooses_no_window_system_and_loads_nothing_heavy_beforehand() -> None:
    code = (
        "import sys, umbel.data as d\n"
        "heavy = {'matplotlib', 'sklearn', 'mlxtend', 'torch', 'scipy', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "d.draw(d.iid()(10, 2, 1), [0, 1] * 5)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_table_is_a_few_lines() -> None:
    partition = by()(["a"] * 1500 + ["b"] * 2 + ["c"])
    labels = [0, 1, 2] * 500 + [0, 0, 1]
    assert table(partition, labels).splitlines() == [
        "clients             3",
        "items               1,503",
        "items per client    min 1, median 2, max 1,500",
        "classes             3",
        "classes per client  min 1, median 1, max 3",
        "largest class       100% of a client's items (median)",
        "heterogeneity       0.44 in labels (total variation), 0.66 in sizes (Gini)",
    ]
