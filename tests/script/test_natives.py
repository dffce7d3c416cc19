"""What of a script's own model travels, by its kind."""

from __future__ import annotations

import numpy as np
import pytest

from umbel.errors import AppError
from umbel.script.natives import adapter_of, load_tree_, tree_arrays


def tree():
    return {"layers": [{"kernel": np.ones((2, 3)), "bias": np.zeros(3, np.float32)}, {"scale": 2.0}], "none": None}


def test_a_tree_has_arrays_by_dotted_names_and_takes_them_in_place():
    own = tree()
    kernel = own["layers"][0]["kernel"]
    arrays = tree_arrays(own)
    assert list(arrays) == ["layers.0.kernel", "layers.0.bias", "layers.1.scale"]
    assert not np.shares_memory(arrays["layers.0.kernel"], kernel)
    more = arrays.map(lambda name, array: array + 1)
    assert load_tree_(own, more) is own
    assert own["layers"][0]["kernel"] is kernel
    assert kernel.tolist() == [[2.0] * 3] * 2
    assert own["layers"][1]["scale"] == 3.0
    assert tree_arrays(own) == more


def test_tuples_are_exchanged_in_what_holds_them():
    own = {"layers": (np.ones(2), [np.zeros(3)]), "rate": (1.0, 2.0)}
    arrays = tree_arrays(own)
    assert list(arrays) == ["layers.0", "layers.1.0", "rate"]
    load_tree_(own, more := arrays.map(lambda name, array: array + 1))
    assert tree_arrays(own) == more
    assert isinstance(own["layers"], tuple)


@pytest.mark.parametrize(
    ("change", "said"),
    [(lambda a: a.select(["layers.0.kernel"]), "do not both have"), (lambda a: a.replace({"z": 1.0}), "both have 'z'"),
     (lambda a: a.replace({"layers.0.bias": np.zeros(4, np.float32)}), "'layers.0.bias' that came has another shape")],
)  # fmt: skip
def test_what_does_not_fit_is_named(change, said):
    own = tree()
    with pytest.raises(AppError, match=said):
        load_tree_(own, change(tree_arrays(own)))


def test_what_is_no_model_is_refused():
    with pytest.raises(AppError, match="got a int, which is no model") as caught:
        adapter_of(3)
    assert "adapter=" in caught.value.hint


def test_a_module_is_known_by_its_class():
    torch = pytest.importorskip("torch")
    import umbel.torch

    assert adapter_of(torch.nn.Linear(2, 1)) is umbel.torch
