"""What folds gather that see every update: spilled to files, looked at by the block, told apart."""

import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import umbel
from umbel import files, folds
from umbel.core import arrays as arrays_module
from umbel.core.arrays import Arrays
from umbel.core.fold import Fold
from umbel.core.partial import Partial
from umbel.core.update import Contribution, Free, Receipt, Update, check
from umbel.errors import StrategyError
from umbel.folds import gathered, geometry
from umbel.folds.catalogue import fold_from_spec

FOLDS = [folds.median(), folds.trimmed_mean(f=1), folds.krum(f=1, keep=3), folds.bulyan(f=1), folds.geometric_median()]
SINGLE = [*FOLDS, folds.norm_bounded(), folds.sign_majority(), folds.foolsgold(), folds.divide_and_conquer()]


def items_of(seed, n, size=3000):
    rng = np.random.default_rng(seed)
    return [
        (
            check(
                Update(
                    {
                        "w": rng.normal(size=(2, size)).astype(np.float32),
                        "brain": rng.normal(size=3).astype(ml_dtypes.bfloat16),
                        "n": np.array(i),
                    },
                    aux={"c": np.array([float(i)])},
                ),
                Free(aux=Free()), None, i,
            ),
            Receipt(f"0.{i}", i, 1.0, {}),
        )
        for i in range(n)
    ]  # fmt: skip


def folded(fold, items):
    partial = Partial(fold)
    for item in items:
        partial.add(*item)
    return partial


def seen_as_mapped(items):
    return [
        (Contribution(i.client, i.arrays, i.aux, i.weight, i.magnitudes, i.aux_magnitudes, True), r) for i, r in items
    ]


@pytest.mark.parametrize("fold", FOLDS, ids=repr)
def test_what_is_too_much_for_memory_is_moved_to_a_file_and_gives_the_same_bits(fold, monkeypatch):
    items = items_of(1, 9)
    expected = folded(fold, items).finish()
    spilled = []
    monkeypatch.setattr(files, "spilled", lambda pieces, real=files.spilled: spilled.append(1) or real(pieces))
    monkeypatch.setattr(gathered, "HELD", 60_000)
    partial = folded(fold, items)
    assert len(spilled) == 3
    rows = partial._acc.rows
    assert sum(row.held for row in rows) <= 60_000
    assert sum(not row.arrays["w"].flags.owndata for row in rows if not row.held) == 9
    assert partial.finish() == expected
    halves = folded(fold, items[:4])
    halves.merge_contents(pickle.loads(pickle.dumps(folded(fold, items[4:]).contents())))
    assert halves.finish() == expected
    assert len(spilled) > 3


@pytest.mark.parametrize("fold", FOLDS, ids=repr)
def test_views_of_files_are_not_copied_and_no_stretch_or_block_changes_a_bit(fold, monkeypatch):
    items = items_of(2, 8)
    expected = folded(fold, items).finish()
    monkeypatch.setattr(gathered, "HELD", 0)
    for stretch, block, large in ((999, 700, 0), (1, 8, 0), (10_000, 1 << 19, 1 << 30)):
        monkeypatch.setattr(arrays_module, "STRETCH", stretch if stretch > 1 else 1500)
        monkeypatch.setattr(gathered, "_BLOCK", block)
        monkeypatch.setattr(gathered, "_NARROW", 17)
        monkeypatch.setattr(geometry, "_READ", block)
        monkeypatch.setattr(files, "LARGE", large)
        partial = folded(fold, seen_as_mapped(items))
        assert all(row.arrays["w"] is item.arrays["w"] or row.arrays["w"].base is not None
                   for row, (item, _) in zip(partial._acc.rows, items, strict=True))  # fmt: skip
        found = partial.finish()
        assert found.value.is_computed == (large == 0)
        assert found.value.to_bytes() == expected.value.to_bytes()


@pytest.mark.parametrize("fold", [folds.norm_bounded(1e9), folds.norm_bounded(1.0), folds.sign_majority()], ids=repr)
def test_what_is_summed_of_files_gives_the_same_bits(fold, monkeypatch):
    items = items_of(2, 3)
    expected = folded(fold, items).finish().value.to_bytes()
    monkeypatch.setattr(files, "LARGE", 0)
    monkeypatch.setattr(arrays_module, "STRETCH", 999)
    found = folded(fold, seen_as_mapped(items)).finish().value
    assert found.to_bytes() == expected
    assert found.roles == items[0][0].arrays.roles


@given(seed=st.integers(0, 2**32), count=st.integers(3, 9))
def test_unlike_updates_are_left_out_whatever_the_order(seed, count):
    rng = np.random.default_rng(seed)
    shapes = rng.integers(1, 3, count)
    items = [
        (check(Update({"x": np.full(k, float(i))}), Free(), None, i), Receipt(f"0.{i}", i, 1.0, {}))
        for i, k in enumerate(shapes)
    ]
    found = []
    for order in (range(count), rng.permutation(count)):
        halves = folded(folds.median(), [items[i] for i in order[: count // 2]])
        halves.merge(folded(folds.median(), [items[i] for i in order[count // 2 :]]))
        answer = halves.finish()
        found.append((answer.value.to_bytes(), answer.clients, answer.failed))
    assert found[0] == found[1]
    kept = [i for i in range(count) if shapes[i] == len(folds.median().made(_updates(items, found[0][1]))["x"])]
    assert list(found[0][1]) == kept
    assert len(kept) >= count - len(kept)
    assert all("shape" in reason for reason in found[0][2].values())


def _updates(items, clients):
    return folds.Updates(folded(folds.median(), [items[c] for c in clients])._acc)


@pytest.mark.parametrize("fold", SINGLE, ids=lambda fold: fold.name)
def test_aux_arrays_are_averaged_beside_it(fold):
    assert folded(fold, items_of(1, 7, 4)).finish().aux["c"] == 3.0


@pytest.mark.parametrize("fold", SINGLE, ids=lambda fold: fold.name)
def test_it_needs_single_updates_so_relays_pass_them_on_and_partials_do_not_travel(fold):
    assert fold.single
    assert fold_from_spec(fold.spec()) is None
    if isinstance(fold, folds.Gathered):
        with pytest.raises(StrategyError, match="no partials to send"):
            folded(fold, items_of(1, 7, 4)).to_tree()


def test_workers_are_not_sent_what_only_the_end_needs():
    fold = folds.centred_clipping().for_round(Arrays({"w": np.ones(3)}), Arrays({}), 1)
    assert fold.kept is not None
    assert pickle.loads(pickle.dumps(fold)).kept is None
    assert fold.kept is not None
    own = folds.fltrust(lambda model, r: model).for_round(
        None, Arrays({"w": np.ones(3)}), 1
    )  # no pickle takes the function
    assert pickle.loads(pickle.dumps(own)).kept is None


def test_two_updates_of_one_client_that_are_as_stale_fold_to_the_same_bits():
    one, two = (check(Update({"x": np.array([v, 2.0])}), Free(), None, 5) for v in (1.0, 3.0))
    found = []
    for first, second in ((one, two), (two, one)):
        partial = Partial(folds.krum(f=0))
        partial.add(first, Receipt("0.5", 5, 1.0, {}))
        partial.add(second, Receipt("1.5", 5, 1.0, {}))
        partial.add(check(Update({"x": np.array([2.0, 2.0])}), Free(), None, 6), Receipt("1.6", 6, 1.0, {}))
        found.append((partial.finish().value.to_bytes(), [r.arrays["x"][0] for r in folds.Updates(partial._acc)._rows]))
    assert found[0] == found[1]


def test_what_is_spilled_is_gone_with_its_last_user(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    view = files.spilled([b"ab", memoryview(b"cd")])
    assert bytes(view) == b"abcd"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(umbel.errors.StorageError, match="temporary file"):
        files.spilled([b"ab"])


def test_what_is_collected_is_moved_to_a_file_too_with_its_aux_arrays(monkeypatch):
    items = items_of(1, 9)
    expected = folded(folds.collect(), items).finish().value
    monkeypatch.setattr(gathered, "HELD", 60_000)
    partial = folded(folds.collect(), items)
    assert any(not row.held for row in partial._acc.rows)
    found = partial.finish().value
    assert [(c, u.arrays, u.aux, u.weight) for c, u in found.items()] == [
        (c, u.arrays, u.aux, u.weight) for c, u in expected.items()
    ]


client = umbel.Client()


@client.train
def train(model, data, ctx):
    step = np.random.default_rng(data["index"] + 10 * ctx.round).normal(size=2000).astype(np.float32)
    return umbel.Update({"w": model["w"] + step, "brain": model["brain"] + 1})


@pytest.mark.parametrize("fold", [folds.median(), folds.centred_clipping(1.0), folds.foolsgold()], ids=lambda f: f.name)
def test_a_model_that_nobody_holds_comes_to_the_same_bits(fold, monkeypatch, tmp_path):
    model = {"w": np.zeros(2000, np.float32), "brain": np.zeros(3, ml_dtypes.bfloat16)}

    def run(folder):
        app = umbel.App(client, model=model, strategy=umbel.FedAvg(cohort=5, fold=fold), rounds=3)
        return umbel.run(app, on=umbel.Simulation(clients=5, workers=0), seed=1, folder=folder).model_sha256

    expected = run(None)
    assert run(tmp_path / "small") == expected
    monkeypatch.setattr(files, "LARGE", 1000)
    monkeypatch.setattr(gathered, "HELD", 10_000)
    assert run(tmp_path / "large") == expected
    assert run(None) == expected


@pytest.mark.slow
@pytest.mark.parametrize("fold", [folds.median(), folds.krum(f=0, keep=2)], ids=lambda fold: fold.name)
def test_late_updates_are_folded_and_two_workers_give_the_same_bits(fold):
    window, found = umbel.Window(in_flight=6, close_after=4, late="keep"), []
    for workers in (0, 2):
        strategy = umbel.FedAvg(cohort=6, fold=fold, window=window)
        app = umbel.App(
            client, model={"w": np.zeros(2000, np.float32), "brain": np.zeros(3)}, strategy=strategy, rounds=4
        )
        result = umbel.run(app, on=umbel.Simulation(clients=8, workers=workers), seed=1, folder=None)
        found.append(result.model_sha256)
    assert found[0] == found[1]


def test_a_run_that_goes_on_remembers(tmp_path):
    def app(rounds):
        strategy = umbel.FedAvg(cohort=5, fold=folds.foolsgold())
        return umbel.App(
            client, model={"w": np.zeros(2000, np.float32), "brain": np.zeros(3)}, strategy=strategy, rounds=rounds
        )

    on = umbel.Simulation(clients=5, workers=0)
    whole = umbel.run(app(4), on=on, seed=1, folder=tmp_path / "whole")
    half = umbel.run(app(2), on=on, seed=1, folder=tmp_path / "half")
    assert half.model_sha256 != whole.model_sha256
    assert umbel.resume(app(4), half.folder, on=on, rounds=4).model_sha256 == whole.model_sha256


def test_a_fold_of_ones_own_takes_a_few_lines():
    class longest(folds.Gathered):
        """The update of the largest norm."""

        name = "longest"

        def made(self, updates):
            return updates.mean([int(np.argmax(np.diagonal(updates.products())))])

    items = items_of(4, 5, 4)
    norms = [np.linalg.norm(item.arrays["w"]) for item, _ in items]
    assert (folded(longest(), items).finish().value["w"] == items[int(np.argmax(norms))][0].arrays["w"]).all()
    assert isinstance(longest(), Fold)
