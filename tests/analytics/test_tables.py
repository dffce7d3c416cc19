"""Tables of holders: they may be of any kind, what is wrong with one is said by client and column, and who answered is
known.
"""

import numpy as np
import pytest
from tests.analytics.asking import answered, asked

import umbel
from umbel import analytics
from umbel.analytics import Statistics
from umbel.analytics.table import HeldTable, label
from umbel.errors import AppError, HandlerFailed, RunFailed, StrategyError

VALUES = {"a": [1.5, None, 3.0, 4.0], "g": ["yes", "no", None, "yes"], "n": [1, 0, 1, 1]}


def kinds():
    numbers = np.array([1.5, np.nan, 3.0, 4.0])
    columns = {"a": numbers, "g": np.array(VALUES["g"], object), "n": np.array(VALUES["n"])}
    yield "lists", {"a": [1.5, float("nan"), 3.0, 4.0], "g": VALUES["g"], "n": VALUES["n"]}
    yield "arrays", columns
    yield "objects", {name: np.array(column, object) for name, column in VALUES.items()}
    yield "masked", {**columns, "a": np.ma.masked_invalid(numbers)}
    record = np.zeros(4, [("a", float), ("g", object), ("n", bool)])
    for name in columns:
        record[name] = columns[name]
    yield "structured", record
    pandas = pytest.importorskip("pandas")
    yield "pandas", pandas.DataFrame(VALUES)
    yield "nullable", pandas.DataFrame(VALUES).astype({"a": "Float64", "g": "string", "n": "Int8"})
    yield "category", pandas.DataFrame(VALUES).astype({"g": "category"})
    try:
        import polars
    except ImportError:
        return
    yield "polars", polars.DataFrame(VALUES)


@pytest.mark.parametrize("data", [pytest.param(table, id=kind) for kind, table in kinds()])
def test_tables_of_all_kinds_are_alike(data):
    table = HeldTable(data, "a")
    assert len(table) == 4
    np.testing.assert_array_equal(table.numbers("a"), [1.5, np.nan, 3.0, 4.0])
    assert table.numbers("n").tolist() == [1, 0, 1, 1]
    assert table.labels("g").tolist() == ["yes", "no", None, "yes"]
    assert table.labels("n").tolist() == ["1", "0", "1", "1"]
    codes, count = table.groups([("g", ["yes", "no"]), ("n", ["0", "1"])])
    assert (codes.tolist(), count) == ([1, 2, -1, 1], 4)
    rows, whole = table.complete(["a", "n"])
    assert rows.tolist() == [[1.5, 1], [3, 1], [4, 1]]
    assert whole.tolist() == [True, False, True, True]


def test_labels_of_equal_values_are_equal():
    assert [label(v) for v in (1, 1.0, True, np.float32(1), "1", 0.5, "x")] == ["1", "1", "1", "1", "1", "0.5", "x"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"b": [1.0]}, "no column 'a'"),
        ({"a": ["x", "2"]}, "'a' is not numeric"),
        ({"a": np.array(["2020-01-01"], "M8[D]")}, "'a' is not numeric"),
        ({"a": [1.0, np.inf]}, "'a' has values that are infinite"),
        ({"a": np.array([1.0, "x"], object)}, "'a' is not numeric"),
        ({"b": [1.0, 2.0], "a": [1.0]}, r"'a' has shape \[1\]"),
        ([1.0, 2.0], "of type list, not a table"),
    ],
)
def test_what_is_wrong_with_a_table_names_client_and_column(data, message):
    with pytest.raises(HandlerFailed, match=message) as caught:
        HeldTable(data, "clinic").numbers("a")
    assert caught.value.client == "clinic"


def test_a_holder_says_which_columns_may_be_asked_about():
    with pytest.raises(HandlerFailed, match="no column 'b'") as caught:
        asked(Statistics(["b"]), [{"a": [1.0], "b": [2.0]}], columns=["a"])
    assert caught.value.hint == "It has a."
    assert asked(Statistics(["a"]), [{"a": [1.0], "b": [2.0]}], columns=["a"])["sum"] == 1.0


def run(analysis, tables, client=None):
    app = analytics.app(client or analytics.client(), analysis)
    return umbel.run(app, on=umbel.Simulation(clients=tables), folder=None)


def test_an_analysis_is_of_all_clients_or_says_who_did_not_answer():
    tables = {"north": {"a": np.arange(4.0)}, "south": {"b": np.arange(3.0)}, "west": {"a": np.ones(1)}}
    with pytest.raises(StrategyError, match=r"2 of 3 clients. client south: its table has no column 'a'"):
        run(Statistics(["a"]), tables)
    model = run(Statistics(["a"], least=2), tables).model
    assert (model["clients"], model["count"], model["max"]) == (2, 5, 3.0)
    with pytest.raises((StrategyError, RunFailed)):
        run(Statistics(["a"], least=2), {"south": tables["south"]})
    assert run(Statistics(["a"], clients=["north"]), tables).model["clients"] == 1


def test_who_answered_the_first_question_has_to_answer_all():
    client = analytics.client(queries=["statistics"])

    @client.query("cells")
    def cells(model, data, ctx):
        if ctx.client == 1:
            raise ConnectionError("gone")
        return analytics.handler("cells")(model, data, ctx)

    with pytest.raises(StrategyError, match=r"query:cells was answered by 1 of 2 clients. client 1: .*gone"):
        run(Statistics(["a"], least=1), [{"a": [1.0]}, {"a": [2.0]}], client)


def test_whoever_comes_later_is_not_asked():
    asks = Statistics(["a"]).round(umbel.State(umbel.Arrays({"clients": np.array(0)})), 1)
    first = next(asks)
    client = analytics.client()
    later = asks.send(answered(first, client, [{"a": [1.0]}, {"a": [2.0]}]))
    assert (first.clients, later.clients) == ("all", [0, 1])


def test_a_client_loads_its_table_and_answers_what_it_was_told_to():
    client = analytics.client(lambda source: {"a": np.full(3, float(source["index"]))}, queries=["statistics"])
    assert set(client.handlers) == {"query:statistics"}
    result = umbel.run(
        analytics.app(client, Statistics(["a"], extremes=False)), on=umbel.Simulation(clients=4), folder=None
    )
    assert result.model["sum"] == 3 * (0 + 1 + 2 + 3)


def test_the_answer_of_a_run_is_in_its_checkpoint(tmp_path):
    question = Statistics(["a"])
    app = analytics.app(analytics.client(), question, config={"note": "who asks what"})
    result = umbel.run(app, on=umbel.Simulation(clients=[{"a": [1.0, 3.0]}]), folder=tmp_path)
    again = umbel.load_model(result.folder / "checkpoints" / "round-0001.safetensors")
    assert question.read(again) == question.read(result.model)
    assert question.read(again)["a"]["mean"] == 2.0


def test_wrong_settings_of_a_client_are_refused():
    for make in (
        lambda: analytics.handler("nothing"),
        lambda: analytics.client(minimum=0),
        lambda: analytics.client(minimum=True),
        lambda: analytics.client(columns="age"),
    ):
        with pytest.raises(AppError):
            make()
