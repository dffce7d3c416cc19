"""Train a small network on digits by a Trainer: ``python lightning_after.py weights.npz``."""

import sys

import lightning
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import umbel.script as fl


class Digits(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch, index):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


lightning.seed_everything(0, verbose=False)
pixels, digits = load_digits(return_X_y=True)
x, y = torch.tensor(pixels[:300] / 16, dtype=torch.float32), torch.tensor(digits[:300])
module, data = Digits(), DataLoader(TensorDataset(x, y), batch_size=32)
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}

for _ in fl.tasks(module):
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", **quiet)
    trainer.fit(module, data)
    fl.answer(examples=len(x), loss=trainer.callback_metrics["loss"])

np.savez(sys.argv[1], **{name: tensor.numpy() for name, tensor in module.state_dict().items()})
