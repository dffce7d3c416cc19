"""FedBuff (Nguyen et al. 2022): a lane that never empties, a model version every few answers, late answers
discounted.
"""

import numpy as np

import umbel
from umbel import FedAvg, Uniform, Update, Window, mean
from umbel.core import encoding
from umbel.runs.events import AskClosed

client = umbel.Client()


@client.train
def train(model, data, ctx):
    target = np.full(3, float(ctx.client % 5))
    return Update({"w": model["w"] - 0.2 * (model["w"] - target)}, metrics={"seen": float(model["w"][0])})


def run(folder, rounds, **on):
    window = Window(in_flight=12, close_after=4, late="keep")
    app = umbel.App(
        client, model={"w": np.zeros(3)}, strategy=FedAvg(cohort=Uniform(12), fold=mean(), window=window), rounds=rounds
    )
    return umbel.run(app, on=umbel.Simulation(clients=40), folder=folder, **on), app


def test_twelve_fly_four_close_an_ask_and_the_late_ones_count_later(tmp_path):
    closed, late = [], []

    def see(event):
        if isinstance(event, AskClosed):
            closed.append(event)
            (place,) = tmp_path.iterdir()
            late.append(encoding.load_file(place / event.answer["file"])[2])

    result, _ = run(tmp_path, 40, observers=[see])
    assert all(e.count == 4 for e in closed)
    assert [len(rows) for rows in late[:4]] == [8, 11, 11, 11]  # each answer but the last makes room for another client
    assert max(age for rows in late for *_, age in rows) >= 2
    assert max(row.staleness for row in result.clients) >= 2
    assert abs(result.model["w"][0] - 2.0) < 0.7


def test_a_resumed_run_goes_on_with_the_old_models_of_those_in_flight(tmp_path):
    whole, app = run(tmp_path, 9)
    half, _ = run(tmp_path, 5)
    resumed = umbel.resume(app, half.folder, on=umbel.Simulation(clients=40), rounds=9)
    assert resumed.model_sha256 == whole.model_sha256
