"""Lightning: a module's arrays, training by a quiet Trainer, and checkpoints."""

from __future__ import annotations

import numpy as np
import pytest

import umbel
import umbel.strategies
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


def test_federated_training_is_the_same_loop(capfd):
    start, updates = adapter.arrays(Net()), []

    def train(model, data, ctx):
        updates.append(adapter.fit(adapter.load_(Net(), model), loader(16), ctx, epochs=2, keep_optimizer=True))
        return updates[-1]

    result = federated(train, model=start)
    assert capfd.readouterr() == ("", "")
    assert updates[0].weight == 40
    assert {"loss", "steps", "lr", "logged"} <= updates[0].metrics.keys()
    assert (updates[0].metrics["steps"], updates[0].metrics["lr"]) == (6, 0.1)
    alone = adapter.load_(Net(), start)
    optimizer = alone.configure_optimizers()
    for _ in range(6):
        for batch in loader(16):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(alone.net(batch[0]), batch[1]).backward()
            optimizer.step()
    for name, array in adapter.arrays(alone).items():
        np.testing.assert_allclose(result.model[name], array, atol=1e-6)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_corrections_hold_a_client_near(precision):
    def train(model, data, ctx):
        return adapter.fit(adapter.load_(Net(), model), loader(8), ctx, epochs=3, precision=precision)

    start = adapter.arrays(Net())
    free = federated(train, model=start, rounds=1)
    held = federated(train, model=start, rounds=1, strategy=umbel.FedProx(cohort=1, mu=5.0))
    moved = [np.abs(result.model["net.0.weight"] - start["net.0.weight"]).sum() for result in (free, held)]
    assert 0 < moved[1] < 0.9 * moved[0]
    with pytest.raises(AppError, match="the module takes its own steps"):
        federated(
            lambda model, data, ctx: adapter.fit(Manual(), loader(), ctx),
            model=adapter.model(Manual), strategy=umbel.FedProx(cohort=1, mu=1.0),
        )  # fmt: skip


def test_a_checkpoint_is_lightnings_own(tmp_path):
    model = adapter.model(lambda: Net(hidden=5))
    trained = model()
    model.save(trained, tmp_path / "model.ckpt")
    read = Net.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=False)
    assert read.hparams.hidden == 5
    assert adapter.arrays(read) == trained
    model.save(trained, tmp_path / "model.pt")
    with pytest.raises(AppError, match=r"shape \[5, 4\], the module's tensor \[8, 4\]"):
        adapter.load_(Net(), trained)


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
