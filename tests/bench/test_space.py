"""What is varied: texts and values, ranges, all combinations in their order, draws that are the same each time."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel import App, Client, FedAvg
from umbel.bench.space import ValueRange, assigned, drawn, grid, plain_value, space_of
from umbel.errors import SettingError
from umbel.runs.settings import apply

NAMES = st.text("abcdef", min_size=1, max_size=3)
VALUES = st.one_of(
    st.integers(-99, 99), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none(),
    st.lists(st.integers(0, 9), max_size=3), st.text("abc,. [(", min_size=1).map(lambda t: f"x{t}y"),
)  # fmt: skip


@given(st.dictionaries(NAMES, st.lists(VALUES, min_size=1, max_size=4), max_size=3))
def test_a_grid_is_every_combination_in_order(settings: dict[str, list[Any]]) -> None:
    space = space_of(settings)
    points = grid(space)
    assert points == [dict(zip(space, each, strict=True)) for each in itertools.product(*space.values())]  # type: ignore[arg-type]
    assert len(points) == math.prod(len({repr(v) for v in values}) for values in settings.values())


@given(VALUES)
def test_a_value_is_set_as_it_was(value: Any) -> None:
    if isinstance(value, str) and value != value.strip():
        return
    client = Client()
    client.train(lambda model, data, ctx: None)
    app = App(client, model={"w": np.zeros(1)}, strategy=FedAvg(cohort=1), config={"x": value})
    ((text,),) = space_of({"x": [value]}).values()
    assert apply(app, [f"x={text}"]).config.get("x", value) == value


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0.1,0.03", ("0.1", "0.03")),
        ("5", ("5",)),
        ("1, 2 ,1", ("1", "2")),
        ("(8, 8),(16,)", ("(8, 8)", "(16,)")),
        ("[1,2],[3]", ("[1,2]", "[3]")),
        ("\"a,b\",'c'", ("a,b", "c")),
        ("it's,so", ("it's", "so")),
        ("0.001..0.1", ValueRange(0.001, 0.1, log=True)),
        ("1e-4..1", ValueRange(1e-4, 1.0, log=True)),
        ("0..1.0", ValueRange(0.0, 1.0)),
        ("-1.5..2.5", ValueRange(-1.5, 2.5)),
        ("5..50", ValueRange(5, 50, whole=True)),
        ("16..1024:log", ValueRange(16, 1024, whole=True, log=True)),
        ("0.1..0.9:linear", ValueRange(0.1, 0.9)),
    ],
)
def test_what_is_typed(text: str, found: Any) -> None:
    assert assigned([f"lr={text}", "n=1"]) == {"lr": found, "n": ("1",)}
    assert space_of({"lr": text}) == {"lr": found}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["lr"], "is not KEY=VALUE"),
        (["=1"], "is not KEY=VALUE"),
        (["lr=1", "lr=2"], "given twice"),
        (["lr=1,,2"], "a value is empty"),
        (["lr="], "a value is empty"),
        (["lr=0.1..1,3"], "a range stands alone"),
        (["lr=1..1"], "to a greater one"),
        (["lr=2.0..1.0"], "to a greater one"),
        (["lr=0.0..1e999"], "to a greater one"),
        (["lr=0..10:log"], "begins above 0"),
    ],
)
def test_what_is_typed_wrong(given: list[str], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        assigned(given)


def test_a_list_without_values_and_a_grid_of_a_range() -> None:
    with pytest.raises(SettingError, match="no value in the list"):
        space_of({"lr": []})
    with pytest.raises(SettingError, match="a range has no end of values") as caught:
        grid(space_of({"lr": "0.1..1.0"}))
    assert "--random N" in str(caught.value.hint)


@given(st.integers(-50, 50), st.integers(1, 60), st.booleans(), st.floats(0, 1))
def test_a_range_gives_its_own_numbers_alone(low: int, width: int, whole: bool, share: float) -> None:
    for log in (False, True):
        if log and low < 1:
            continue
        values = ValueRange(low, low + width, whole, log)
        found = float(values.at(share))
        assert low <= found <= low + width
        assert not whole or found == int(found)
        assert values.ends == (values.at(0.0), values.at(1.0))


@given(st.integers(1, 30), st.integers(0, 30))
def test_of_more_draws_the_first_are_the_same(few: int, more: int) -> None:
    space = assigned(["lr=0.001..0.1", "n=1,2,3", "m=0..9"])
    first, all = drawn(space, few), drawn(space, few + more)
    assert all[: len(first)] == first
    assert len({tuple(point.items()) for point in all}) == len(all)


def test_draws_are_spread_as_the_range_says() -> None:
    points = drawn(assigned(["lr=0.001..0.1", "m=0.0..1.0", "n=1..3", "k=a,b"]), 400)
    below = sum(float(point["lr"]) < 0.01 for point in points)
    assert 160 < below < 240
    assert 160 < sum(float(point["m"]) < 0.5 for point in points) < 240
    for name, values in (("n", "123"), ("k", "ab")):
        assert all(400 / len(values) * 0.8 < sum(p[name] == v for p in points) for v in values)
    assert drawn(assigned(["lr=0.001..0.1"]), 3, seed=1) != drawn(assigned(["lr=0.001..0.1"]), 3)


def test_texts_are_plain_values_in_tables() -> None:
    assert [plain_value(text) for text in ("1", "0.5", "true", "None", "[1]", "sgd")] == [
        1,
        0.5,
        True,
        None,
        [1],
        "sgd",
    ]
