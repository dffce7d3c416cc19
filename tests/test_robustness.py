"""The benchmark of folds against attacks, on made images."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.bench import tiny

pytest.importorskip("torch")

import torch
from benchmarks import robustness
from benchmarks.robustness import Cell

import umbel
from umbel.testing import attacks

SIZE = robustness.Size(clients=7, malicious=1, each=30, rounds=2, seeds=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny.images(tmp_path_factory.mktemp("made"))


def test_every_row_and_column_is_there_once_and_can_be_built() -> None:
    rows, columns = robustness.the_folds(robustness.FULL, "nowhere"), robustness.the_attacks()
    assert len({umbel.FedAvg(cohort=25, **fold).fold.name for fold in rows.values()}) == len(rows) - 1  # two Krums
    assert len({type(attack) for attack in columns.values()}) == len(columns) == 9


def test_the_trigger_is_a_square_on_a_copy() -> None:
    plain = torch.zeros(3, 784)
    marked = robustness.trigger(plain)
    assert (plain.sum().item(), marked.sum().item()) == (0, 3 * 16)


def test_the_servers_own_update_is_the_same_again_and_of_images_that_nobody_has(folder) -> None:
    own = robustness.ServersOwn(folder, 210)
    model = umbel.torch.arrays(robustness.network())
    assert (own(model, 3).arrays["0.weight"] == own(model, 3).arrays["0.weight"]).all()
    assert (own(model, 3).arrays["0.weight"] != own(model, 4).arrays["0.weight"]).any()
    assert own(model, 3).weight == robustness.ROOT


def test_an_attack_ruins_the_mean_and_not_the_median(folder) -> None:
    size, rows = replace(SIZE, malicious=2, rounds=4), robustness.the_folds(SIZE, folder)
    flip = attacks.sign_flip(20.0)
    ruined, _ = robustness.run(size, folder, rows["mean"], flip, 1, 0)
    kept, _ = robustness.run(size, folder, rows["median"], flip, 1, 0)
    honest, opened = robustness.run(size, folder, rows["mean"], attacks.Attack(), 1, 0)
    assert ruined < 0.3 < kept
    assert ruined < honest
    assert opened == 0


def test_the_table_and_the_page_say_what_was_measured(folder, tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("matplotlib")
    columns = {n: robustness.the_attacks()[n] for n in ("none", "back door x5")}
    monkeypatch.setattr(robustness, "FULL", SIZE)
    monkeypatch.setattr(robustness, "the_attacks", lambda: columns)
    rows = {n: f for n, f in robustness.the_folds(SIZE, folder).items() if n in ("mean", "krum(f=1)")}
    monkeypatch.setattr(robustness, "the_folds", lambda size, folder: rows)
    out = tmp_path / "docs" / "robustness.md"
    robustness.main(["--data", folder, "--workers", "0", "--out", str(out)])
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == "| fold | none | back door x5 |"
    assert printed in out.read_text()
    assert "(pictures/robustness.png)" in out.read_text()
    assert (tmp_path / "docs" / "pictures" / "robustness.png").read_bytes()[1:4] == b"PNG"


def test_cells_are_means_in_percent() -> None:
    cell = Cell([0.5, 0.61], [0.1, 0.2])
    assert (cell.text(False), cell.text(True)) == ("55.5", "55.5 / 15")


def test_without_the_data_it_says_how_to_get_it(tmp_path) -> None:
    with pytest.raises(SystemExit, match="dataset-fashion-mnist"):
        robustness.main(["--quick", "--data", str(tmp_path)])
