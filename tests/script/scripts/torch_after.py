"""Train a small network on digits, and save its weights: ``python torch_after.py weights.npz``."""

import sys

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import umbel.script as fl

torch.manual_seed(0)
pixels, digits = load_digits(return_X_y=True)
x, y = torch.tensor(pixels[:300] / 16, dtype=torch.float32), torch.tensor(digits[:300])
net = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))

for _ in fl.tasks(net, alone=3):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for batch in torch.arange(300).split(32):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x[batch]), y[batch])
        loss.backward()
        optimizer.step()
    print("loss", loss.item())
    fl.answer(examples=len(x), loss=loss)

np.savez(sys.argv[1], **{name: tensor.numpy() for name, tensor in net.state_dict().items()})
