from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.bench import tiny

pytest.importorskip("torch")

from benchmarks import heterogeneity, outcomes
from benchmarks.outcomes import Outcome, Point, common_target, points, table

from umbel.core.arrays import Arrays
from umbel.core.strategy import State
from umbel.simulation import Fleet

SIZE = heterogeneity.Size(each=20, epochs=3, clients=2, cutoff=2, seeds=(1,), phones=20, in_flight=10, updates=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny.images(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def lab(folder) -> heterogeneity.Lab:
    return heterogeneity.Lab(folder, SIZE, workers=0)


def test_images_are_read_as_far_as_they_are_wanted(folder) -> None:
    pixels, labels = heterogeneity.images(folder, "train", 30)
    assert pixels.shape == (30, 784)
    assert pixels.dtype == np.float32
    assert 0 <= pixels.min() < pixels.max() <= 1
    assert set(labels.tolist()) <= set(range(10))
    assert len(labels) == 30
    assert len(heterogeneity.images(folder, "t10k")[1]) == 100


def test_without_the_data_it_says_how_to_get_it(tmp_path) -> None:
    with pytest.raises(SystemExit, match="apt-get install dataset-fashion-mnist"):
        heterogeneity.main(["--quick", "--data", str(tmp_path)])


def test_clients_hold_as_many_images_each(folder) -> None:
    clients = heterogeneity.sources(folder, 4, parts=10, each=20)
    held = [heterogeneity.data(source) for source in clients]
    assert [len(labels) for _, labels in held] == [20] * 4


def test_a_task_costs_its_batches() -> None:
    assert heterogeneity.by_batches(3, "train", {"batches": 10}) == 10 * heterogeneity.BATCH_SECONDS
    assert heterogeneity.plan(heterogeneity.FULL, 10)["batches"] * heterogeneity.BATCH_SECONDS == 120


def test_a_cut_off_leaves_the_batches_that_a_processor_has_time_for() -> None:
    fleet = Fleet([heterogeneity.GPU, heterogeneity.CPU], work=1.0)
    strategy = heterogeneity.CutOff(cohort=10, config={"batches": 100}, fleet=fleet, seconds={"TX2 CPU": 60.0})
    ask = strategy.ask(State(Arrays({"w": np.zeros(1)})), 1)
    kinds = [fleet.device(client).kind for client in range(10)]
    assert set(kinds) == {"TX2 GPU", "TX2 CPU"}
    for client, kind in enumerate(kinds):
        fits = int(60 / 1.27 / heterogeneity.BATCH_SECONDS) if kind == "TX2 CPU" else 100
        assert ask.config(client)["batches"] == fits
    none = heterogeneity.CutOff(cohort=10, config={"batches": 100}, fleet=fleet, seconds={"TX2 CPU": 0.001})
    assert min(none.config_for(client)["batches"] for client in range(10)) == 1


def test_more_epochs_take_more_time_and_energy_in_proportion(lab) -> None:
    one, five, ten = heterogeneity.local_epochs(lab)
    assert five.minutes == pytest.approx(5 * one.minutes, rel=0.05)
    assert ten.kilojoules > five.kilojoules > one.kilojoules > 0
    assert ten.accuracy >= one.accuracy


@pytest.mark.slow
def test_every_part_runs_and_is_drawn(lab, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    for name, (run, draw) in heterogeneity.PARTS.items():
        settings = run(lab)
        target = min(common_target(settings), min(o.accuracy for o in settings))
        assert len({o.label for o in settings}) == len(settings) >= 3
        assert all(point.seconds > 0 and point.joules > 0 for o in settings for point in o.runs[0])
        picture = tmp_path / f"{name}.png"
        draw(settings, target).savefig(picture)
        assert picture.read_bytes()[1:4] == b"PNG"


def test_the_command_prints_tables_and_draws_where_it_is_told(folder, tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(heterogeneity, "QUICK", SIZE)
    heterogeneity.main(["clients", "--quick", "--data", folder, "--workers", "0", "--out", str(tmp_path / "new")])
    printed = capsys.readouterr().out
    assert "| C = 10 |" in printed
    written = (tmp_path / "new" / "heterogeneity-clients.md").read_text(encoding="utf-8")
    assert written in printed
    assert (tmp_path / "new" / "heterogeneity-clients.png").exists()


@pytest.mark.slow
def test_workers_change_nothing(lab) -> None:
    fleet = Fleet([heterogeneity.GPU, heterogeneity.CPU], work=heterogeneity.by_batches)
    config = heterogeneity.plan(SIZE, 2)
    strategy = heterogeneity.CutOff(cohort=4, config=config, fleet=fleet, seconds={"TX2 CPU": 2.0})
    federation = {"clients": heterogeneity.sources(lab.folder, 4, parts=10, each=20), "devices": fleet}
    said = [replace(lab, workers=workers).run("both", strategy, federation, 2) for workers in (0, 2)]
    assert said[0] == said[1]


def made(label: str, *runs: list[float]) -> Outcome:
    """Settings with these accuracies, minute by minute and kilojoule by kilojoule."""
    return Outcome(label, [[Point(60.0 * i, 1000.0 * i, i, a) for i, a in enumerate(run, 1)] for run in runs])


def test_what_a_setting_came_to() -> None:
    first = made("first", [0.1, 0.5, 0.5, 0.5], [0.3, 0.4, 0.6, 0.8])
    assert first.accuracies == pytest.approx([0.5, 0.6])
    assert first.accuracy == pytest.approx(0.55)
    assert (first.minutes, first.kilojoules) == (4.0, 4.0)
    assert first.reached(0.42) == Point(210.0, 3500.0, 3.5, pytest.approx((0.5 + 1.3 / 3) / 2))
    assert first.reached(0.55) is None
    along, accuracy = first.curve("seconds")
    assert along == [180.0, 240.0]
    assert accuracy == pytest.approx([(1.1 + 1.3) / 6, 0.55])


def test_one_lucky_test_is_no_result() -> None:
    lucky = made("lucky", [0.1, 0.9, 0.2, 0.1, 0.3])
    assert [round(p.accuracy, 3) for p in outcomes.smoothed(lucky.runs[0])] == [0.4, 0.4, 0.2]
    assert [p.accuracy for p in outcomes.smoothed(made("short", [0.2, 0.4]).runs[0])] == [pytest.approx(0.3)]
    assert lucky.reached(0.5) is None


def test_a_target_is_what_every_run_came_to() -> None:
    assert common_target([made("a", [0.559] * 3), made("b", [0.9] * 3, [0.7, 0.6, 0.8])]) == 0.55


def test_a_table_says_what_was_never_reached() -> None:
    lines = table([made("slow", [0.2] * 200), made("fast", [0.8, 0.9, 0.9])], 0.85).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| slow | 20.0% | 20.0% to 20.0% | 3.3 h | 200 kJ | - | - | - |"
    assert lines[3].endswith("| 3 min | 3 kJ | 3 |")


def test_untested_rounds_cost_but_are_no_points() -> None:
    from umbel.runs.events import RoundCommitted

    history = [
        RoundCommitted(round=1, asks=1, clients=3, account={"joules": 5.0}, clock=10.0),
        RoundCommitted(round=2, asks=1, clients=4, account={"joules": 6.0}, clock=20.0, test={"accuracy": 0.5}),
    ]
    assert list(points(history)) == [Point(20.0, 11.0, 7, 0.5)]


def test_times_and_energies_are_in_units_that_read_well() -> None:
    assert [outcomes.duration(m) for m in (59.6, 150)] == ["60 min", "2.5 h"]
    assert [outcomes.energy(e) for e in (0.6, 2500)] == ["1 kJ", "2.5 MJ"]
