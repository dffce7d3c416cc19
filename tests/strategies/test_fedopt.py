"""FedAvgM, FedAdam, FedYogi and FedAdagrad: FedAvg with another optimiser on the server."""

import numpy as np
import pytest

import umbel
from umbel import FedAdagrad, FedAdam, FedAvgM, FedYogi, Simulation, Update
from umbel.core.optimizers import adagrad, adam, sgd, yogi


@pytest.mark.parametrize(
    ("strategy", "server"),
    [
        (FedAvgM(momentum=0.5, lr=2.0, cohort=3), sgd(2.0, 0.5)),
        (FedAdam(lr=0.5, tau=0.1, cohort=3), adam(lr=0.5, tau=0.1)),
        (FedYogi(beta2=0.9, cohort=3), yogi(beta2=0.9)),
        (FedAdagrad(lr=0.5, cohort=3), adagrad(lr=0.5)),
    ],
    ids=lambda part: type(part).__name__,
)
def test_they_are_fedavg_with_a_server_optimiser_and_they_learn(strategy, server):
    assert strategy.server == server
    assert strategy.cohort == 3
    client = umbel.Client()
    client.train(lambda model, data, ctx: Update({"w": model["w"] - 0.3 * (model["w"] - 2.0)}))
    app = umbel.App(client, model={"w": np.zeros(4)}, strategy=strategy, rounds=100, evaluate_every=0)
    assert np.abs(umbel.run(app, on=Simulation(10), folder=None).model["w"] - 2.0).max() < 0.1
