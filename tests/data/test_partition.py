from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.data import Partition, Partitioner, by, dirichlet, iid, shards
from umbel.errors import DataError

TEN = np.arange(6000) % 10

SPLITS: dict[str, Partitioner] = {
    "iid": iid(),
    "skewed": dirichlet(0.5, minimum=0),
    "balanced": dirichlet(0.05, balanced=True),
    "shards": shards(1),
}
some_labels = st.lists(st.integers(-3, 9), min_size=1, max_size=80)


def assert_everything_given_once(partition: Partition, items: int) -> None:
    assert sorted(np.concatenate(list(partition)).tolist()) == list(range(items))
    assert partition.items == items == partition.sizes.sum()
    for part in partition:
        assert part.dtype == np.int64
        assert not part.flags.writeable
        assert (np.diff(part) > 0).all()


@pytest.mark.parametrize("name", SPLITS)
@given(labels=some_labels, seed=st.integers(0, 2**64), data=st.data())
def test_every_item_has_one_holder_and_the_seed_decides(
    name: str, labels: list[int], seed: int, data: st.DataObject
) -> None:
    clients = data.draw(st.integers(1, len(labels)))
    partition = SPLITS[name](labels, clients, seed)
    assert len(partition) == partition.clients == clients
    assert_everything_given_once(partition, len(labels))
    assert partition == SPLITS[name](labels, clients, seed)
    if name != "skewed":
        assert partition.sizes.max() - partition.sizes.min() <= 1


@pytest.mark.parametrize("name", SPLITS)
def test_another_seed_is_another_split(name: str) -> None:
    labels = TEN.tolist()
    assert SPLITS[name](labels, 10, 1) != SPLITS[name](labels, 10, 2)


def test_the_splits_of_this_version_stay_as_they_are() -> None:
    labels = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    found = {name: [part.tolist() for part in split(labels, 3, 5)] for name, split in SPLITS.items()}
    assert found == PINNED


PINNED = {
    "iid": [[1, 2, 3, 5], [0, 4, 6], [7, 8, 9]],
    "skewed": [[3, 8], [5, 7, 9], [0, 1, 2, 4, 6]],
    "balanced": [[3, 4, 5, 7], [0, 1, 2], [6, 8, 9]],
    "shards": [[3, 4, 5], [6, 7, 8, 9], [0, 1, 2]],
}


class TestPartition:
    def test_reads_like_a_sequence(self) -> None:
        partition = Partition(np.array([3, 0, 1, 2]), np.array([0, 2, 2, 4]))
        assert [part.tolist() for part in partition] == [[0, 3], [], [1, 2]]
        assert partition[2].tolist() == partition.indices(np.int64(2)).tolist() == [1, 2]
        assert partition.sizes.tolist() == [2, 0, 2]
        for client in (-1, 3):
            with pytest.raises(IndexError, match="one of the 3 clients"):
                partition.indices(client)

    def test_is_unchanged_by_what_its_maker_does_later(self) -> None:
        order = np.array([0, 1])
        partition = Partition(order, np.array([0, 2]))
        order[0] = 1
        assert partition[0].tolist() == [0, 1]
        with pytest.raises(ValueError, match="read-only"):
            partition[0][0] = 1

    def test_a_pickled_copy_is_equal_and_read_only(self) -> None:
        partition = by()(["b", "a", "b"])
        copy = pickle.loads(pickle.dumps(partition))
        assert copy == partition
        assert hash(copy) == hash(partition)
        assert copy.owners == ("a", "b")
        assert not copy.order.flags.writeable
        assert partition != Partition(partition.order, partition.offsets)
        assert partition != "partition"

    def test_counts_classes_by_their_number(self) -> None:
        partition = by()(["x", "y", "x", "x"])
        assert partition.counts([3, 0, 3, 1]).tolist() == [[0, 1, 0, 2], [1, 0, 0, 0]]
        assert partition.counts([True, False, True, True]).tolist() == [[0, 3], [1, 0]]
        assert partition.counts([0, 0, 0, 0], classes=3).tolist() == [[3, 0, 0], [1, 0, 0]]
        with pytest.raises(DataError, match="between 0 and 1, but they go from 0 to 2"):
            partition.counts([0, 1, 2, 0], classes=2)
        with pytest.raises(DataError, match="go from -1"):
            partition.counts([-1, 0, 0, 0])
        with pytest.raises(DataError, match="3 labels for a partition of 4"):
            partition.counts([0, 1, 2])
        with pytest.raises(DataError, match=r"too large[\s\S]*np.unique"):
            partition.counts([0, 0, 0, 10**15])

    @given(labels=st.lists(st.integers(0, 9), min_size=1, max_size=80), seed=st.integers(0, 99))
    def test_counts_are_those_of_a_plain_count(self, labels: list[int], seed: int) -> None:
        partition = iid()(labels, min(4, len(labels)), seed)
        counts = partition.counts(labels, 10)
        for client, part in enumerate(partition):
            assert counts[client].tolist() == np.bincount(np.array(labels)[part], minlength=10).tolist()

    def test_repr_says_how_large_it_is(self) -> None:
        assert repr(iid()(4001, 100, 1)) == "Partition(100 clients, 4,001 items, sizes 40..41, median 40)"
        assert repr(Partition(np.array([]), np.array([0]))) == "Partition(no clients)"

    @pytest.mark.parametrize(
        ("order", "offsets", "owners", "message"),
        [
            ([0, 0], [0, 2], (), "item 0 is given to 2 clients"),
            ([0, 2], [0, 2], (), "numbered 0 to 1"),
            ([0, 1], [0, 1], (), "ascend from 0 to its 2 items"),
            ([0, 1], [0, 2, 1, 2], (), "ascend"),
            ([[0, 1]], [0, 2], (), "1-D"),
            ([0, 1], [], (), "1-D"),
            ([0.0, 1.0], [0, 2], (), "whole numbers, not float64"),
            ([0, 1], [0, 2], ("a", "b"), "2 owners are named for 1 clients"),
        ],
    )
    def test_refuses_what_is_no_partition(
        self, order: list[int], offsets: list[int], owners: tuple[str, ...], message: str
    ) -> None:
        with pytest.raises(DataError, match=message):
            Partition(np.array(order), np.array(offsets), owners)


class TestIid:
    def test_takes_a_number_or_labels(self) -> None:
        assert iid()(100, 7, 3) == iid()(np.int64(100), 7, 3) == iid()(np.zeros(100, np.uint8), 7, 3)

    def test_mixes_the_classes(self) -> None:
        counts = iid()(TEN, 6, 1).counts(TEN)
        assert counts.min() > 60
        assert counts.max() < 140


class TestDirichlet:
    @pytest.mark.parametrize("balanced", [False, True])
    def test_a_small_alpha_leaves_few_classes_to_a_client(self, balanced: bool) -> None:
        def kinds(alpha: float) -> float:
            partition = dirichlet(alpha, None, 0, balanced)(TEN, 20, 1)
            return float(np.mean((partition.counts(TEN) > 0).sum(axis=1)))

        assert kinds(0.01) < 2.5
        assert kinds(0.01) < kinds(0.3) < kinds(1000)
        assert kinds(1000) > 9.8

    @pytest.mark.parametrize("alpha", [1e-300, 1e-6, 0.01, 1.0, 1e6, 1e300])
    def test_every_alpha_gives_a_split(self, alpha: float) -> None:
        for balanced in (False, True):
            assert_everything_given_once(dirichlet(alpha, minimum=0, balanced=balanced)(TEN, 7, 1), len(TEN))

    def test_a_large_alpha_is_nearly_even(self) -> None:
        assert np.abs(dirichlet(1e8)(TEN, 10, 1).counts(TEN) - 60).max() <= 1
        assert np.abs(dirichlet(1e8, balanced=True)(TEN, 10, 1).counts(TEN) - 60).mean() < 15

    def test_redraws_until_the_smallest_client_has_the_minimum(self) -> None:
        for seed in range(5):
            assert dirichlet(0.3, minimum=200)(TEN, 10, seed).sizes.min() >= 200

    def test_keeps_the_first_draw_that_will_do(self) -> None:
        assert dirichlet(0.3, minimum=1)(TEN, 10, 1) == dirichlet(0.3, minimum=0)(TEN, 10, 1)

    def test_gives_up_on_a_minimum_that_no_draw_meets(self) -> None:
        with pytest.raises(
            DataError, match=r"1000 draws of 6000 items over 100 clients with alpha=0.01[\s\S]*balanced"
        ):
            dirichlet(0.01, minimum=10)(TEN, 100, 1)

    def test_each_class_varies_over_clients_as_its_distribution_says(self) -> None:
        counts = np.concatenate([dirichlet(0.5, minimum=0)(TEN, 10, seed).counts(TEN) for seed in range(40)])
        shares = counts / 600
        assert shares.mean() == pytest.approx(0.1)
        assert shares.var() == pytest.approx(0.1 * 0.9 / (0.5 * 10 + 1), rel=0.1)

    def test_no_client_is_favoured(self) -> None:
        for balanced in (False, True):
            total = sum(dirichlet(0.02, None, 0, balanced)(TEN, 5, s).counts(TEN)[:, 0] for s in range(100))
            assert np.asarray(total).min() > 0.5 * 100 * 600 / 5

    def test_balanced_fills_the_last_clients_with_what_is_left(self) -> None:
        labels = np.array([0] * 97 + [1, 2, 3])
        partition = dirichlet(0.01, balanced=True)(labels, 10, 3)
        assert_everything_given_once(partition, 100)
        assert set(partition.sizes.tolist()) == {10}
        assert partition.counts(labels).sum(axis=0).tolist() == [97, 1, 1, 1]

    @pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
    def test_refuses_an_alpha_that_is_not_positive(self, alpha: float) -> None:
        with pytest.raises(DataError, match="alpha must be a positive number"):
            dirichlet(alpha)(TEN, 10, 1)

    def test_refuses_a_minimum_that_cannot_be(self) -> None:
        for balanced in (False, True):
            with pytest.raises(DataError, match="too few for 10 clients with at least 601 items each"):
                dirichlet(1, minimum=601, balanced=balanced)(TEN, 10, 1)
        with pytest.raises(DataError, match="whole number of at least 0, not -1"):
            dirichlet(1, minimum=-1)(TEN, 10, 1)
        with pytest.raises(DataError, match="too large"):
            dirichlet(1)(np.arange(20_000), 10_000, 1)


class TestShards:
    def test_two_shards_are_few_classes(self) -> None:
        counts = shards()(TEN, 100, 1).counts(TEN)
        assert (counts.sum(axis=1) == 60).all()
        assert ((counts > 0).sum(axis=1) <= 2).all()
        assert ((counts > 0).sum(axis=1) == 2).any()

    def test_uneven_shards_differ_by_one_item_at_most(self) -> None:
        sizes = shards(3)(TEN[:1003], 10, 1).sizes
        assert sizes.sum() == 1003
        assert sizes.max() - sizes.min() <= 3

    @pytest.mark.parametrize(
        ("each", "why"),
        [(0, "at least 1, not 0"), (-2, "at least 1, not -2"), (601, "10 clients with 601 shards each")],
    )
    def test_refuses_shards_that_cannot_be(self, each: int, why: str) -> None:
        with pytest.raises(DataError, match=why):
            shards(each)(TEN, 10, 1)


class TestBy:
    def test_names_the_owners_in_order(self) -> None:
        partition = by()(np.array(["va", "cleveland", "va"]))
        assert partition.owners == ("cleveland", "va")
        assert [part.tolist() for part in partition] == [[1], [0, 2]]
        assert by()([30, 4, 30]).owners == (4, 30)
        assert by()(np.array(["b", "a"], dtype=object)).owners == ("a", "b")

    @pytest.mark.parametrize("owners", [np.array([1.0, math.nan]), np.array(["a", None], dtype=object)])
    def test_refuses_an_item_without_owner(self, owners: np.ndarray) -> None:
        with pytest.raises(DataError, match="item 1 has no value"):
            by()(owners)

    def test_refuses_what_names_no_owners(self) -> None:
        with pytest.raises(DataError, match="1-D array"):
            by()([])
        with pytest.raises(DataError, match="no column is named"):
            by()([["a"]])
        with pytest.raises(DataError, match="put in order"):
            by()(np.array(["a", 1], dtype=object))


@pytest.mark.parametrize("name", [name for name in SPLITS if name != "iid"])
@pytest.mark.parametrize(
    ("labels", "clients", "message"),
    [
        ([], 1, "no labels"),
        ([[0, 1], [1, 0]], 2, "no column is named"),
        ([0.0, 1.0], 2, r"whole numbers or text, not float64[\s\S]*np.unique"),
        (np.array(["a", None]), 2, "label of item 1 is None"),
        ([0, 1], 3, "2 items are too few for 3 clients"),
        ([0, 1], 0, "at least one client, not 0"),
    ],
)
def test_refuses_what_cannot_be_split(name: str, labels: list[int], clients: int, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        SPLITS[name](labels, clients, 1)
    assert isinstance(caught.value, ValueError)
