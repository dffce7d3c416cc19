"""What is laid over an app's config, whoever sets it."""

from __future__ import annotations

import numpy as np
import pytest

import umbel
from umbel import App, Client, FedAvg, Simulation, Update
from umbel.errors import SettingError
from umbel.runs import settings
from umbel.runs.config import atom, laid_over
from umbel.runs.preflight import preflight

CONFIG = {
    "lr": 0.1, "steps": 2, "name": "x", "fast": True, "sizes": [1, 2], "any": None, "inner": {"decay": 0.5}, "map": {},
}  # fmt: skip


def app_of() -> App:
    client = Client()
    client.train(lambda model, data, ctx: Update({"w": model["w"] + ctx.config["lr"]}))
    return App(client, model={"w": np.zeros(2)}, strategy=FedAvg(cohort=2), rounds=1, config=CONFIG)


def from_python(config):
    return umbel.run(app_of(), on=Simulation(2, workers=0), folder=None, config=config)


def planned(config):
    return preflight(app_of(), on=Simulation(2, workers=0), config=config)


@pytest.mark.parametrize("enter", [from_python, planned, lambda config: laid_over(CONFIG, config)])
@pytest.mark.parametrize(
    ("config", "assignment"),
    [
        ({"lrr": 1}, "lrr=1"),
        ({"Steps": 3}, "Steps=3"),
        ({"inner": {"decai": 1}}, "inner.decai=1"),
        ({"rounds ": 3}, "rounds.=3"),
        ({"strategy.cohort": 3}, None),
        ({"lr": "high"}, "lr=high"),
        ({"lr": True}, "lr=True"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"fast": 1}, "fast=1"),
        ({"sizes": 3}, "sizes=3"),
        ({"inner": {"decay": "x"}}, "inner.decay=x"),
        ({"inner": 3}, "inner=3"),
    ],
)
def test_what_the_command_line_refuses_is_refused_everywhere(enter, config, assignment):
    with pytest.raises(SettingError) as here:
        enter(config)
    if assignment is not None:
        with pytest.raises(SettingError) as there:
            settings.apply(app_of(), [assignment])
        if "no setting" in there.value.message and "rounds" not in assignment:
            assert here.value.message == there.value.message
            assert here.value.hint.splitlines()[0] == there.value.hint.splitlines()[0]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"lr": 1, "steps": 3, "name": "y", "fast": False},
        {"sizes": (3, 4), "any": "thing", "map": {"of": {"all": 1}}},
        {"inner": {"decay": 2}},
    ],
)
def test_what_fits_is_laid_over(config):
    found = laid_over(CONFIG, config)
    assert found.keys() == CONFIG.keys()
    assert {name: found[name] for name in config} == {**config, **({"sizes": [3, 4]} if "sizes" in config else {})}
    assert from_python(config).rounds == 1


def test_a_slip_is_answered_with_what_may_have_been_meant():
    with pytest.raises(SettingError) as caught:
        from_python({"lrr": 1})
    assert caught.value.message == "there is no setting 'lrr'"
    assert caught.value.hint.splitlines()[0] == "Did you mean lr?"
    with pytest.raises(SettingError, match="There are none"):
        laid_over({}, {"lr": 1})


def test_a_refused_config_leaves_no_run(tmp_path):
    with pytest.raises(SettingError):
        umbel.run(app_of(), on=Simulation(2, workers=0), folder=tmp_path, config={"lrr": 1})
    assert list(tmp_path.iterdir()) == []


def test_nor_does_a_server_hear_of_it():
    class Server:
        clients = (0,)

        def enlist(self, app, **run):
            raise AssertionError

    with pytest.raises(SettingError, match="no setting 'lrr'"):
        umbel.run(app_of(), on=Server(), folder=None, config={"lrr": 1})


@pytest.mark.parametrize("config", [[1], "lr=1", 3])
def test_a_config_that_is_no_dictionary_is_an_error(config):
    with pytest.raises(SettingError, match="a config is a dictionary"):
        from_python(config)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(True, bool), ("x", str), (np.str_("x"), None), (np.bool_(1), None), (np.int8(1), int), (np.float32(1), float),
     (None, None), ([], None)],
)  # fmt: skip
def test_what_is_plain(value, kind):
    assert atom(value) is kind
