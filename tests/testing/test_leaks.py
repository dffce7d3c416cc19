"""Clients attack themselves: what an unprotected run gives away, and what is left under noise."""

import numpy as np
import pytest

import umbel
from umbel import App, Arrays, FedAvg, Simulation, Update
from umbel.errors import AppError, SettingError
from umbel.privacy import central_gaussian, secure
from umbel.testing.leaks import Victims

pytest.importorskip("scipy")

SIZE = 400
ROWS = np.random.default_rng(0).normal(size=(40, SIZE))


def app_of(*steps, **settings):
    """Logistic regression with one example a client, which it learns by heart; others have none but like it."""
    client = umbel.Client()

    @client.data
    def data(source):
        return ROWS[source["index"]], ROWS[20 + source["index"]]

    @client.train
    def train(model, data, ctx):
        error = 1 / (1 + np.exp(-data[0] @ model["w"] - model["b"])) - 1.0
        return Update(
            {"w": model["w"] - ctx.config["lr"] * error * data[0], "b": model["b"] - ctx.config["lr"] * error}
        )

    @client.query("attack")
    def attack(model, data, ctx):
        return Update({"members": data[0] @ model["w"], "others": data[1] @ model["w"], "inputs": data[0][None]})

    model = Arrays({"w": np.zeros(SIZE), "b": np.zeros(1)})
    strategy = FedAvg(cohort="all", fold=umbel.total(), transforms=steps)
    return App(client, model=model, strategy=strategy, rounds=3, config={"lr": 1.0}, **settings)


def test_an_unprotected_run_gives_members_and_whole_inputs_away():
    app, federation = app_of(), Simulation(20, workers=0)
    victims = Victims(app, federation, app.config)
    result = umbel.run(app, on=federation, folder=None)
    members = victims.membership(result.model)
    assert (members.members, members.others) == (20, 20)
    assert members.auc_interval[0] > 0.95
    before = victims.membership(app.initial_model())
    assert before.auc == 0.5
    found = victims.inversion(app.initial_model())
    for stage in ("trained", "sent", "released"):
        np.testing.assert_allclose(found[stage], np.ones(20), atol=1e-9)


@pytest.mark.parametrize("more", [{}, {"quantile": 0.5, "below_noise": 9.0}], ids=["fixed", "moving"])
def test_central_noise_leaves_the_server_the_input_and_all_others_nothing(more):
    """Clipping scales an update, and of one that is scaled the ratio is the same; of noise nothing is left."""
    app = app_of(central_gaussian(norm=0.1, noise=3.0, expected=20, **more))
    federation = Simulation(20, workers=0)
    victims = Victims(app, federation, app.config)
    found = victims.inversion(app.initial_model())
    assert found["sent"].min() > 0.999
    trained, sent, _ = victims._stages(0, app.initial_model())
    assert np.linalg.norm(sent["w"]) <= 0.1 < np.linalg.norm(trained["w"])
    assert np.abs(found["released"]).max() < 0.3  # of 400 elements, and a bias: 5 standard deviations
    assert len(victims.inversion(app.initial_model(), [3])["sent"]) == 1


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_of_masked_updates_the_server_has_nothing_and_others_what_noise_leaves(noise):
    app = app_of()
    app.strategy = secure(app.strategy, clip=1.0, noise=noise)
    found = Victims(app, Simulation(20, workers=0), app.config).inversion(app.initial_model())
    np.testing.assert_allclose(found["trained"], np.ones(20), atol=1e-9)
    assert not found["sent"].any()
    if noise:
        assert found["released"].max() < 0.5
    else:
        assert found["released"].min() > 0.99


def test_an_app_that_does_not_say_what_to_attack_is_told_how_to():
    app = app_of()
    del app.client.handlers["query:attack"]
    with pytest.raises(AppError, match="no handler for query:attack"):
        Victims(app, Simulation(2), {}).membership(app.initial_model())


def test_what_is_no_update_is_said_to_be_none():
    app = app_of()
    app.client.handlers["query:attack"] = lambda model, data, ctx: {"members": []}
    with pytest.raises(AppError, match="not an umbel"):
        Victims(app, Simulation(2), {}).membership(app.initial_model())


def test_without_others_there_is_nothing_to_compare_with():
    app = app_of()
    app.client.handlers["query:attack"] = lambda model, data, ctx: Update({"members": np.ones(3)})
    victims = Victims(app, Simulation(2), {})
    with pytest.raises(SettingError, match="two others"):
        victims.membership(app.initial_model())
    assert not len(victims.inversion(app.initial_model())["sent"])
