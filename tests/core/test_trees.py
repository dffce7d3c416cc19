"""Trees of arrays by dotted names and back, and tensors of frameworks as arrays."""

from __future__ import annotations

from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import umbel
from umbel.core.arrays import Arrays
from umbel.core.trees import as_tree, flat, keepable
from umbel.core.update import as_arrays
from umbel.errors import AppError, StrategyError

LEAVES = st.lists(st.floats(width=32, allow_nan=False), max_size=3).map(lambda v: np.array(v, np.float32))
TREES = st.recursive(
    LEAVES,
    lambda part: st.one_of(
        st.lists(part, min_size=1, max_size=3),
        st.lists(part, min_size=1, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from(["kernel", "bias", "0", "layer_1"]), part, min_size=1, max_size=3),
    ),
    max_leaves=8,
).filter(lambda tree: not isinstance(tree, np.ndarray))


class Moments(NamedTuple):
    count: object
    mean: object


def same(a, b):
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a is b or np.array_equal(a, b)


@given(TREES)
def test_a_tree_comes_back(tree):
    model = Arrays(flat(tree))
    assert all(isinstance(array, np.ndarray) for array in model.values())
    assert same(as_tree(model, tree), tree)


def test_names_have_dots_and_what_is_no_part_of_a_tree_is_an_array():
    one, two = np.zeros(1), np.zeros(2)
    tree = {"layers": [(one, two), {"w": [1.0, 2.0]}], "state": Moments(np.float32(3), None), "none": []}
    assert {name: np.shape(value) for name, value in flat(tree).items()} == {
        "layers.0.0": (1,), "layers.0.1": (2,), "layers.1.w": (2,), "state.count": (), "none": (0,),
    }  # fmt: skip
    assert as_tree(Arrays(flat(tree)), tree)["state"] == Moments(3, None)
    plain = {"w": [[1, 2], [3, 4]], "b": one}
    assert flat(plain) is plain
    with pytest.raises(StrategyError, match=r"two arrays of the tree have the name 'a\.b'"):
        flat({"a.b": one, "a": {"b": two}})
    with pytest.raises(StrategyError, match=r"no array 'layers\.0\.0'"):
        as_tree({"w": one}, tree)


def test_apps_and_updates_take_trees():
    tree = [{"w": np.ones((2, 1), np.float32)}, (np.zeros(1, np.float32),)]
    client = umbel.Client()

    @client.train
    def train(model, data, ctx):
        (first, (bias,)) = umbel.as_tree(model, tree)
        return umbel.Update([{"w": first["w"] + 1}, (bias - 1,)])

    federation = umbel.Simulation(clients=2, workers=0)
    app = umbel.App(client, model=tree, strategy=umbel.FedAvg(cohort=2), rounds=2, federation=federation)
    result = umbel.run(app, folder=None)
    assert same(as_tree(result.model, tree), [{"w": np.full((2, 1), 3)}, (np.full(1, -2),)])
    assert list(as_arrays(tree, "array")) == ["0.w", "1.0"]
    with pytest.raises(AppError, match=r"the initial model is \[\]"):
        umbel.App(client, model=[], strategy=umbel.FedAvg(cohort=2)).initial_model()


def test_what_is_kept_has_arrays_for_tensors():
    torch = pytest.importorskip("torch", exc_type=ImportError)
    plain = {"a": [1, {"b": np.zeros(1)}], 3: ("x", None)}
    assert keepable(plain) is plain
    weight = torch.nn.Parameter(torch.tensor([1.5, -2.0]))
    state = {
        "w": weight,
        0: {"brain": weight.detach().bfloat16()[:, None], "step": torch.tensor(3)},
        "m": Moments(1, 2),
    }
    kept = keepable(state)
    assert kept["w"].tolist() == [1.5, -2.0]
    assert kept[0]["brain"].dtype == ml_dtypes.bfloat16
    assert kept[0]["brain"].tolist() == [[1.5], [-2.0]]
    assert (int(kept[0]["step"]), kept["m"]) == (3, (1, 2))
    assert Arrays({"w": weight})["w"].tolist() == [1.5, -2.0]
    with pytest.raises(StrategyError, match="cannot become an array"):
        keepable([weight.detach().to_sparse()])
    with pytest.raises(StrategyError, match="complex64"):
        Arrays({"w": torch.zeros(1, dtype=torch.complex64)})
