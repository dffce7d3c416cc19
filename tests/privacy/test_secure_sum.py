"""What a holder makes of its update before it is masked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import umbel
from umbel.core.arrays import Arrays
from umbel.core.randomness import Key
from umbel.core.transform import Transform, as_arrays, chain, chain_from_spec, transform_from_spec
from umbel.core.update import Free, Like, Update
from umbel.errors import SettingError, StrategyError, UpdateRejected
from umbel.folds import collect, total
from umbel.privacy.secure_sum import BODY, FIXED, HEAD, secure_sum
from umbel.transforms import clip_by_norm, quantise, random_k, rotate, top_k

KEY = Key.from_seed(3)


def step_of(**settings: Any) -> secure_sum:
    return secure_sum("1.0.1", 2, **{"clients": 10, "clip": 4.0, "bits": 12, **settings})


def encoded(step: secure_sum, values: Any, weight: float = 1.0, metrics: Any = (), key: Key = KEY) -> Arrays:
    update = Update(Arrays({"w": np.asarray(values, np.float32)}), weight, dict(metrics), delta=True)
    return as_arrays(step.encode(update, None, None, key)[0])


def signed(array: Any) -> Any:
    return array.view(array.dtype.str.replace("u", "i"))


@given(
    st.integers(2, 32), st.integers(2, 3000), st.sampled_from([0.001, 1.0, 300.0]),
    st.lists(st.sampled_from([-1e30, -1.0, -0.5, 0.0, 0.3, 1.0, 1e30]), min_size=1, max_size=6),
)  # fmt: skip
def test_no_sum_of_so_many_clients_wraps(bits: int, clients: int, clip: float, values: list[float]) -> None:
    step = step_of(bits=bits, clients=clients, clip=clip)
    one = signed(encoded(step, values)[BODY]).astype(object)
    assert max(map(abs, one)) <= step.levels
    body = encoded(step, values)[BODY]
    assert body.dtype == step.dtype
    summed = signed((body.astype(np.uint64) * np.uint64(clients)).astype(step.dtype))
    assert summed.astype(object).tolist() == (one * clients).tolist()
    assert step.modulus_bits <= 8 * step.dtype.itemsize


@given(st.lists(st.floats(-3.75, 3.75, width=32), min_size=1, max_size=5), st.integers(2, 20))
def test_values_are_rounded_to_one_of_both_neighbours(values: list[float], bits: int) -> None:
    step = step_of(bits=bits)
    steps = signed(encoded(step, values)[BODY]).astype(np.float64)
    assert (abs(steps - np.float32(values).astype(np.float64) * step.levels / step.clip) < 1 + 1e-9).all()


def test_rounding_is_right_on_average() -> None:
    step = step_of(bits=3)  # a step is 4/3
    rows = [signed(encoded(step, np.full(20_000, x), key=KEY.derive(str(x)))[BODY]) for x in (-3.0, 0.1, 1.9)]
    for x, row in zip((-3.0, 0.1, 1.9), rows, strict=True):
        assert abs(row.mean() - x * 3 / 4) < 5.5 * 0.5 / np.sqrt(20_000)  # 4e-8
        assert set(row.tolist()) == {np.floor(x * 3 / 4), np.floor(x * 3 / 4) + 1}


def test_the_head_has_the_weight_what_was_cut_off_and_metrics() -> None:
    step = step_of(weight=50.0, metrics=("loss", "far"))
    arrays = encoded(step, [1.0, 5.0, -4.1, 4.0], 25.0, {"loss": -2.5, "far": 1e300, "else": 1.0})
    assert signed(arrays[HEAD]).tolist() == [FIXED // 2, 2, -2.5 * FIXED / 2, 2**30 * FIXED / 2]
    assert encoded(step_of(), [1.0], 7.0)[HEAD].tolist() == [FIXED, 0]  # all count alike


def test_a_weight_is_a_share_of_the_largest() -> None:
    step = step_of(weight=50.0, bits=24)
    whole, half, none = (signed(encoded(step, [2.0, -1.0], weight)[BODY]) for weight in (50.0, 25.0, 0.0))
    assert abs(whole / 2 - half).max() <= 1
    assert not none.any()


@pytest.mark.parametrize(
    ("settings", "weight", "metrics", "says"),
    [
        ({"weight": 50.0}, 51.0, {}, "weight is above 50, the most that secure_sum takes"),
        ({"weight": 50.0}, float("nan"), {}, "weight is nan"),
        ({"weight": 50.0}, -1.0, {}, "weight is -1"),
        ({}, -1.0, {}, "weight is -1"),
        ({}, float("nan"), {}, "weight is nan"),
        ({"metrics": ("loss",)}, 1.0, {}, "metric 'loss', which secure_sum adds up, is missing"),
        ({"metrics": ("loss",)}, 1.0, {"loss": float("inf")}, "missing or not finite"),
    ],
)
def test_what_cannot_be_summed_is_refused(settings: Any, weight: float, metrics: Any, says: str) -> None:
    with pytest.raises(UpdateRejected, match=says):
        encoded(step_of(**settings), [1.0], weight, metrics)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(UpdateRejected, match="array 'w' holds"):
        encoded(step_of(), [value])


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 1}, {"bits": 33}, {"clients": 1}, {"clip": 0.0}, {"clip": np.inf}, {"weight": -1.0},
        {"weight": float("nan")}, {"bits": 32, "clients": 2**33},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings: Any) -> None:
    with pytest.raises(SettingError):
        step_of(**settings)


@pytest.mark.parametrize("session", [5, None, ["1.0.1"], True, "\ud800", "x" * 201])
def test_a_session_that_has_no_name_is_refused_and_not_taken_for_none(session: Any) -> None:
    """Else updates would be encoded by a step that nobody sees is one that seals, and sent without masks."""
    [spec] = chain(step_of()).spec()
    with pytest.raises(SettingError, match="a session of secure_sum has a name"):
        chain_from_spec([{**spec, "settings": {**spec["settings"], "session": session}}])


def test_it_crosses_the_wire() -> None:
    step = step_of(metrics=("loss",), weight=3.0)
    [spec] = chain(step).spec()
    assert transform_from_spec(spec) == step


BAD = {
    "no body": {HEAD: np.zeros(2, "<u8")},
    "more": {HEAD: np.zeros(2, "<u8"), BODY: np.zeros(3, "<u2"), "w": np.zeros(3)},
    "a longer head": {HEAD: np.zeros(3, "<u8"), BODY: np.zeros(3, "<u2")},
    "a head of another kind": {HEAD: np.zeros(2, "<i8"), BODY: np.zeros(3, "<u2")},
    "a wider body": {HEAD: np.zeros(2, "<u8"), BODY: np.zeros(3, "<u4")},
    "a body of rows": {HEAD: np.zeros(2, "<u8"), BODY: np.zeros((3, 1), "<u2")},
}


@pytest.mark.parametrize("bad", BAD)
def test_a_sealed_update_that_is_none_is_refused(bad: str) -> None:
    schema = Arrays({"w": np.zeros(3, np.float32)}).schema
    with pytest.raises(UpdateRejected, match="sealed update"):
        step_of().decode(Update(Arrays(BAD[bad])), None, schema)
    sealed = Update(Arrays({BODY: np.zeros(3, "<u2"), HEAD: np.zeros(2, "<u8")}), 9.0, {"loss": 1.0})
    assert step_of().decode(sealed, None, schema).weight == 1.0


# Before it


@pytest.mark.parametrize("part", [rotate(), random_k(0.5), random_k(0.3, unbiased=False), clip_by_norm(5.0)])
@given(st.integers(0, 2**32), st.integers(2, 5))
def test_what_is_linear_decodes_a_sum_to_the_sum(part: Transform, seed: int, clients: int) -> None:
    assert part.linear
    rng = np.random.default_rng(seed)
    schema = Arrays({"w": np.zeros((7, 3), np.float32), "b": np.zeros(9)}, dict.fromkeys("wb", "parameter")).schema
    updates = [{"w": rng.normal(size=(7, 3)).astype("f4") / 9, "b": rng.normal(size=9) / 9} for _ in range(clients)]
    sent = [
        as_arrays(part.encode(Update(Arrays(u, dict.fromkeys(u, "parameter")), delta=True), None, None, KEY)[0])
        for u in updates
    ]
    mean = {
        n: sum(each[n] for each in sent) / clients if sent[0].roles[n] == "parameter" else sent[0][n] for n in sent[0]
    }
    of_mean = as_arrays(part.decode(Update(Arrays(mean, dict(sent[0].roles)), delta=True), None, schema))
    each = [as_arrays(part.decode(Update(one, delta=True), None, schema)) for one in sent]
    for name in schema:
        assert np.allclose(of_mean[name], sum(one[name] for one in each) / clients, atol=1e-5)


@pytest.mark.parametrize("part", [top_k(0.1), quantise(8), umbel.transforms.error_feedback()])
def test_what_is_not_linear_cannot_be_sealed(part: Transform) -> None:
    with pytest.raises(StrategyError, match="cannot be undone of a sum of sealed updates"):
        chain(part, step_of()).check(total(), Like())


def test_sealing_comes_last_and_sums_differences() -> None:
    with pytest.raises(StrategyError, match="stands before other steps"):
        chain(step_of(), rotate()).check(total(), Like())
    with pytest.raises(StrategyError, match="what is sealed can be added up"):
        chain(step_of()).check(umbel.mean(), Like())
    with pytest.raises(StrategyError, match="seals differences"):
        chain(step_of()).check(total(), Like(delta=False))
    chain(rotate(), step_of()).check(total(), Like())
    chain(step_of()).check(collect(), Free())
