"""The problems that come with the bench: Fashion-MNIST, on made images in its format, and heart disease by hospital."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tests.bench import tiny

pytest.importorskip("torch")

import umbel
from umbel import bench
from umbel.bench import classifiers, fashion, hospitals
from umbel.strategies import FedAvg, FedProx


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny.images(tmp_path_factory.mktemp("made"))


@pytest.fixture(autouse=True)
def few(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(fashion, "HELD", 100)
    monkeypatch.setenv("UMBEL_DATA", str(tmp_path_factory.getbasetemp() / "unpacked"))


@pytest.fixture(scope="module")
def heart(tmp_path_factory) -> str:
    return tiny.patients(tmp_path_factory.mktemp("heart"))


@pytest.mark.parametrize("split", fashion.SPLITS)
def test_every_image_has_one_place(folder, split):
    problem = bench.fashion_mnist(split, clients=10, folder=folder)
    held = [items for source in problem.clients(1) for items in source.values()]
    assert sorted(np.concatenate(held)) == list(range(1200))
    assert len(problem.clients(1)) == 10
    assert all(source["train"].size > 0 for source in problem.clients(1))
    first, again, other = (problem.clients(seed)[0]["train"].tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_two_classes_a_client_are_about_two(folder):
    labels = fashion.images(folder, "train")[1]
    sources = bench.fashion_mnist("2 classes", clients=10, folder=folder).clients(1)
    kinds = [len({*labels[np.concatenate(list(source.values()))]}) for source in sources]
    assert np.mean(kinds) <= 3.5  # shards are cut where a class ends only by chance


@pytest.mark.slow
@pytest.mark.parametrize("model", ["logistic", "mlp"])
def test_it_learns_and_evaluates_on_other_images(folder, model):
    settings = {"rounds": 4, "evaluate_every": 2, "rates": (0.1,), "config": {"epochs": 2, "batch": 20}}
    problem = bench.fashion_mnist("iid", clients=4, model=model, folder=folder, **settings)
    both = {"FedAvg": FedAvg(), "FedProx": bench.Algorithm(FedProx, {"mu": (0.1,)})}
    table = bench.run(problem, both, seeds=1, folder=None, workers=0, tell=None)
    assert [row.failed for row in table.rows] == [None, None]
    assert all(row.score > 0.5 and row.also["evaluate.accuracy"] > 0.5 for row in table.rows)
    held = {part: fashion._held(folder, part)[1].tolist() for part in ("validation", "test")}
    assert held["validation"] == fashion.images(folder, "train")[1][-100:].tolist()
    assert held["test"] == fashion.images(folder, "t10k")[1].tolist()


@pytest.mark.slow
def test_all_strategies_are_compared(folder):
    settings = {"rounds": 2, "cohort": 3, "rates": (0.1,), "config": {"epochs": 1, "batch": 100}}
    problem = bench.fashion_mnist("iid", clients=4, folder=folder, **settings)
    table = bench.run(problem, bench.catalogue(), seeds=1, tuning=None, folder=None, workers=0, tell=None)
    assert {row.algorithm: row.failed for row in table.rows if row.failed} == {}
    assert len(table.rows) == len(bench.catalogue())


def test_images_are_unpacked_once_and_shared(folder):
    pixels, labels = fashion.images(folder, "t10k")
    assert (pixels.shape, labels.shape, pixels.dtype) == ((100, 28, 28), (100,), np.uint8)
    assert isinstance(pixels, np.memmap)


def test_without_the_data_it_says_how_to_get_it(tmp_path):
    with pytest.raises(umbel.errors.DataError, match="apt-get install dataset-fashion-mnist"):
        bench.fashion_mnist(folder=tmp_path)
    with pytest.raises(umbel.errors.DataError, match="not by 'other'"):
        bench.fashion_mnist("other", folder=tmp_path)
    with pytest.raises(umbel.errors.DataError):
        bench.heart_disease(tmp_path)


def test_hospitals_learn_one_model_and_evaluate_on_other_patients(heart):
    problem = bench.heart_disease(heart, rounds=6, rates=(0.1,))
    parts = {name: hospitals._load(heart, source) for name, source in problem.clients(1).items()}
    assert [[len(y) for _, y in part.values()] for part in parts.values()] == [[6, 6, 48]] * 4
    other = hospitals._load(heart, problem.clients(2)["va"])
    assert not np.array_equal(other["test"][0], parts["va"]["test"][0])
    assert not parts["va"]["train"][0][:, -3:].any()  # not measured
    assert np.abs(parts["cleveland"]["train"][0]).max() < 6
    table = bench.run(problem, {"FedAvg": FedAvg()}, seeds=2, folder=None, workers=0, tell=None)
    assert table.rows[0].score > 0.7
    assert (table.rows[0].updates, table.rows[0].bytes_down) == (24, 24 * 28 * 4)  # evaluations aside


def test_clients_evaluate_on_the_part_that_is_named():
    import torch

    items = {part: (np.ones((n, 2), np.float32), np.full(n, n - 1)) for n, part in enumerate(("train", "test"), 1)}
    client = classifiers.classifier(lambda source: items, lambda: torch.nn.Linear(2, 3))
    data = client.load(None)
    model = {"weight": np.zeros((3, 2), np.float32), "bias": np.array([0, 9, 0], np.float32)}  # says 1
    found = {
        part: client.handlers["evaluate"](model, data, SimpleNamespace(config={"part": part}, state={}))
        for part in items
    }
    assert {part: (m.values["accuracy"], m.weight) for part, m in found.items()} == {"train": (0, 1), "test": (1, 2)}
