"""Lightning: a module's arrays, training by a quiet Trainer, and checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
from tests.adapters.cases import context

import umbel
from umbel.errors import AppError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
torch = pytest.importorskip("torch", exc_type=ImportError)
lightning = pytest.importorskip("lightning")

import umbel.lightning as adapter  # noqa: E402

X = torch.tensor(np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32))
Y = (X.sum(1) > 0).long()


class Net(lightning.LightningModule):
    def __init__(self, hidden=8, lr=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 2))

    def training_step(self, batch, index):
        loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("logged", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)


class Manual(Net):
    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        pass


def loader(size=40):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=size)


def federated(train, *, strategy=None, model=None, rounds=3, config=None):
    client = umbel.Client()
    client.train(train)
    app = umbel.App(
        client, model=model or adapter.model(Net), strategy=strategy or umbel.FedAvg(cohort=1), rounds=rounds,
        config=config, federation=umbel.Simulation(clients=1, workers=0),
    )  # fmt: skip
    return umbel.run(app, folder=None, seed=1)


def test_a_data_module_and_the_devices():
    class Data(lightning.LightningDataModule):
        def train_dataloader(self):
            return loader(10)

    def train(model, data, ctx):
        update = adapter.fit(adapter.load_(Net(), model), Data(), ctx)
        assert (update.weight, update.metrics["steps"]) == (40, 4)
        return update

    federated(train, rounds=1)
    assert adapter._placed("cpu") == {"accelerator": "cpu", "devices": 1}
    assert adapter._placed("cuda:3") == {"accelerator": "gpu", "devices": [3]}
    assert adapter._placed("mps") == {"accelerator": "mps", "devices": 1}


def test_training_says_nothing_and_tells_what_the_module_logged(capfd):
    update = adapter.fit(Net(), loader(16), context(), epochs=2)
    assert capfd.readouterr() == ("", "")
    assert update.weight == 40
    assert {"loss", "steps", "lr", "logged"} <= update.metrics.keys()
    assert (update.metrics["steps"], update.metrics["lr"]) == (6, 0.1)


def test_a_module_that_takes_its_own_steps():
    assert "loss" not in adapter.fit(Manual(), loader(), context()).metrics
    with pytest.raises(AppError, match="the module takes its own steps"):
        federated(
            lambda model, data, ctx: adapter.fit(Manual(), loader(), ctx),
            model=adapter.model(Manual), strategy=umbel.FedProx(cohort=1, mu=1.0),
        )  # fmt: skip


def test_a_checkpoint_keeps_hyperparameters(tmp_path):
    model = adapter.model(lambda: Net(hidden=5))
    model.save(model(), tmp_path / "model.ckpt")
    assert Net.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=False).hparams.hidden == 5
