"""What an analysis comes to, by name, and as rows of a table."""

import json

import numpy as np
import pytest
from tests.analytics.asking import asked, patients
from tests.analytics.test_analyses import ALL, MODELS

import umbel
from umbel import analytics
from umbel.cli.answers import ShownAnswer, rows
from umbel.cli.terminal import json_text
from umbel.errors import AppError, SettingError

TABLES = [patients(60), patients(40, 1)]
MEANS = analytics.Statistics(["x"], by={"s": (0, 1)}, extremes=False)


def held(source):
    return TABLES[source["index"]]


def test_an_app_of_a_question_needs_no_model_and_its_result_has_the_answer():
    app = umbel.App(analytics.client(held), strategy=MEANS)
    assert (app.rounds, app.evaluate_every) == (1, 0)
    result = umbel.run(app, on=umbel.Simulation(clients=2, workers=0), folder=None)
    assert result.answer == MEANS.read(asked(MEANS, TABLES))
    with pytest.raises(AppError, match="no model"):
        umbel.App(analytics.client(held), strategy=umbel.FedAvg())


def test_a_result_whose_question_is_not_known_says_how_to_read_it(tmp_path):
    app = umbel.App(analytics.client(held), strategy=MEANS)
    result = umbel.run(app, on=umbel.Simulation(clients=2, workers=0), folder=tmp_path)
    again = umbel.open(result.folder)
    with pytest.raises(SettingError, match="no answer") as caught:
        assert again.answer
    assert "analysis.read(result.model)" in caught.value.hint
    assert MEANS.read(again.model) == result.answer


@pytest.mark.parametrize("analysis", [*ALL, *MODELS], ids=lambda each: type(each).__name__)
def test_every_answer_has_rows_and_is_json(analysis):
    found = analysis.table(asked(analysis, TABLES))
    shown = list(rows(found))
    assert shown
    for _, cells in shown:
        assert all(np.ndim(value) == 0 for value in cells.values())
    json.loads(json_text(found), parse_constant=pytest.fail)
    assert ShownAnswer(found).table() is not None
