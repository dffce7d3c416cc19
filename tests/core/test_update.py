"""Updates: every way in which one can be wrong is named, and right ones arrive in the form that the ask expects."""

import math

import ml_dtypes
import numpy as np
import pytest

from umbel.core.arrays import Arrays
from umbel.core.update import Free, Like, Update, as_delta, check, check_metrics
from umbel.errors import StrategyError, UpdateRejected

MODEL = Arrays(
    {"w": np.ones((2, 3), np.float32), "h": np.ones(2, np.float16), "d": np.ones(2), "seen": np.array(5)},
)


def values(**changes):
    arrays = {
        "w": np.full((2, 3), 1.5, np.float32),
        "h": np.full(2, 2, np.float16),
        "d": np.full(2, 3.0),
        "seen": np.array(9),
    }
    arrays |= changes
    return Update({n: a for n, a in arrays.items() if a is not None}, weight=2.0)


def taken_in(update, expects=None, model=MODEL):
    expects = expects or Like()
    return check(as_delta(update, expects, model), expects, model, 3)


def test_parameters_arrive_as_wide_differences_and_buffers_as_values():
    item = taken_in(values())
    assert {n: a.dtype.name for n, a in item.arrays.items()} == {
        "w": "float32",
        "h": "float32",
        "d": "float64",
        "seen": "int64",
    }
    assert (item.arrays["w"] == 0.5).all()
    assert (item.arrays["h"] == 1.0).all()
    assert item.arrays["seen"] == 9
    assert item.magnitudes == {"w": 0.5, "h": 1.0, "d": 2.0, "seen": 9.0}
    assert item.weight == 2.0


def test_brain_floats_differ_in_float32():
    model = Arrays({"w": np.ones(2, ml_dtypes.bfloat16)})
    item = taken_in(Update({"w": np.full(2, 1.5, ml_dtypes.bfloat16)}), model=model)
    assert item.arrays["w"].dtype == np.float32
    assert (item.arrays["w"] == 0.5).all()


def test_values_stay_values_where_the_ask_says_so():
    item = taken_in(values(), Like(delta=False))
    assert (item.arrays["w"] == 1.5).all()
    with pytest.raises(UpdateRejected, match="expects values"):
        taken_in(Update(MODEL, delta=True), Like(delta=False))


def test_a_difference_given_as_one_is_taken_as_it_is():
    wide = {"w": np.full((2, 3), 0.25, np.float32), "h": np.zeros(2, np.float32), "d": np.zeros(2), "seen": np.array(1)}
    assert (taken_in(Update(wide, delta=True)).arrays["w"] == 0.25).all()


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (values(w=None), r"lacks array 'w'"),
        (values(extra=np.ones(1)), r"unexpected array 'extra'"),
        (values(w=np.ones((3, 2), np.float32)), r"'w' has shape \[3, 2\], expected \[2, 3\]"),
        (values(w=np.ones((2, 3))), r"'w' has dtype float64, expected float32"),
        (values(seen=np.array(5.0)), r"'seen' has dtype float64, expected int64"),
        (values(w=np.full((2, 3), np.nan, np.float32)), r"'w' holds NaN"),
        (values(d=np.array([1.0, np.inf])), r"'d' holds infinity"),
        (values(d=np.array([1.0, -np.inf])), r"'d' holds infinity"),
        (values(d=np.full(2, 1e300)), r"beyond 2\*\*960"),
        (values(w=np.array([["a"]])), r"'w' has dtype"),
        (Update([1, 2]), r"arrays are a list"),
        (Update(values().arrays, weight=-1), r"weight is -1"),
        (Update(values().arrays, weight=math.nan), r"weight is nan"),
        (Update(values().arrays, weight=math.inf), r"weight is inf"),
        (Update(values().arrays, weight="many"), r"weight is a str"),
        (Update(values().arrays, aux={"c": np.ones(1)}), r"aux arrays \(c\), but the ask expects none"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_is_wrong_is_rejected_by_name(update, message):
    with pytest.raises(UpdateRejected, match=message), np.errstate(all="ignore"):
        taken_in(update)


def test_the_check_where_it_is_folded_trusts_nobody():
    for update in (
        values(w=None),
        values(w=np.ones((2, 3))),
        values(extra=np.ones(1)),
        values(d=np.array([np.nan, 1])),
    ):
        with pytest.raises(UpdateRejected):
            check(update, Like(), MODEL, 0)
    claimed = Arrays(values().arrays, {"w": "buffer"})
    assert check(Update(claimed), Like(delta=False), MODEL, 0).arrays.roles["w"] == "parameter"


def test_personal_arrays_never_leave():
    model = Arrays({"base": np.zeros(2), "head": np.zeros(2)}, {"head": "personal"})
    item = taken_in(Update({"base": np.ones(2), "head": np.ones(2)}), model=model)
    assert list(item.arrays) == ["base"]
    assert list(taken_in(Update({"base": np.ones(2)}), model=model).arrays) == ["base"]
    assert list(taken_in(Update({"base": np.ones(2), "head": np.ones(2)}), Like(names=("*",)), model).arrays) == [
        "base"
    ]


def test_names_that_were_not_asked_for_may_be_there_if_the_model_has_them():
    item = taken_in(values(), Like(names=("w", "se*")))
    assert sorted(item.arrays) == ["seen", "w"]
    with pytest.raises(UpdateRejected, match="unexpected array 'zzz'"):
        taken_in(values(zzz=np.ones(1)), Like(names=("w",)))


def test_free_updates_may_hold_anything_finite_up_to_a_size():
    item = taken_in(Update({"tree": np.arange(5, dtype=np.uint8)}), Free(), None)
    assert item.magnitudes == {"tree": 4.0}
    with pytest.raises(UpdateRejected, match="5 bytes, the ask allows 4"):
        taken_in(Update({"tree": np.arange(5, dtype=np.uint8)}), Free(max_bytes=4), None)
    with pytest.raises(UpdateRejected, match="NaN"):
        taken_in(Update({"x": np.array([np.nan])}), Free(), None)


def test_aux_arrays_are_declared_and_checked():
    expects = Like(aux=Like(Arrays({"c": np.zeros(2)})))
    update = Update(values().arrays, aux={"c": np.ones(2)})
    assert (taken_in(update, expects).aux["c"] == 1).all()
    with pytest.raises(UpdateRejected, match="lacks aux array 'c'"):
        taken_in(values(), expects)
    with pytest.raises(UpdateRejected, match="aux array 'c' holds NaN"):
        taken_in(Update(values().arrays, aux={"c": np.full(2, np.nan)}), expects)


def test_an_ask_that_refers_to_no_model_says_so():
    with pytest.raises(StrategyError, match="without a model"):
        as_delta(values(), Like(), None)


def test_metrics_are_numbers_by_name():
    assert check_metrics({"loss": np.float32(0.5), "n": 3}, "metrics") == {"loss": 0.5, "n": 3.0}
    assert math.isnan(check_metrics({"loss": math.nan}, "metrics")["loss"])
    with pytest.raises(UpdateRejected, match="'loss' is a str"):
        check_metrics({"loss": "low"}, "metrics")
    with pytest.raises(UpdateRejected, match="not a dictionary"):
        check_metrics([1], "the update's metrics")


def test_narrow_differences_are_widened_so_that_clients_can_differ_in_it():
    model = Arrays({"w": np.ones(2, ml_dtypes.bfloat16), "n": np.array(3)})
    narrow = Update({"w": np.ones(2, ml_dtypes.bfloat16), "n": np.array(4)}, delta=True)
    for item in (taken_in(narrow, model=model), check(narrow, Like(), model, 0)):
        assert (item.arrays["w"].dtype, item.arrays["n"].dtype) == (np.float32, np.int64)
    with pytest.raises(UpdateRejected, match="'w' has dtype float64, expected bfloat16"):
        taken_in(Update({"w": np.ones(2), "n": np.array(4)}, delta=True), model=model)


@pytest.mark.parametrize(
    "weight", [10**400, 2.0**960, None, [1.0], 1j], ids=["huge", "large", "None", "list", "complex"]
)
def test_a_weight_that_no_sum_could_hold_is_rejected(weight):
    with pytest.raises(UpdateRejected, match="the update's weight is"):
        taken_in(Update(values().arrays, weight=weight))
    assert taken_in(Update(values().arrays, weight=0)).weight == 0.0


def test_personal_arrays_stay_out_of_free_updates_and_of_aux_arrays():
    mine = Arrays({"w": np.ones(2), "head": np.ones(2)}, {"head": "personal"})
    item = taken_in(Update(mine, aux=mine), Free(aux=Free()), None)
    assert list(item.arrays) == list(item.aux) == ["w"]


def test_aux_arrays_have_their_own_bounds():
    expects = Like(aux=Free(max_bytes=16))
    assert taken_in(Update(values().arrays, aux={"c": np.ones(2)}), expects).aux_magnitudes == {"c": 1.0}
    with pytest.raises(UpdateRejected, match="aux arrays hold 24 bytes, the ask allows 16"):
        taken_in(Update(values().arrays, aux={"c": np.ones(3)}), expects)
    with pytest.raises(UpdateRejected, match=r"beyond 2\*\*960"):
        taken_in(Update(values().arrays, aux={"c": np.array([1e300])}), expects)


def test_a_metric_beyond_the_range_of_a_float_is_rejected():
    with pytest.raises(UpdateRejected, match="'steps' is a int"):
        check_metrics({"steps": 10**400}, "metrics")


def test_of_many_names_that_are_wrong_the_first_are_listed():
    expected = Arrays({f"w{i}": np.zeros(1) for i in range(8)})
    with pytest.raises(UpdateRejected, match=r"lacks array 'w0', 'w1', 'w2', 'w3', 'w4' and 3 more"):
        as_delta(Update({}), Like(), expected)
