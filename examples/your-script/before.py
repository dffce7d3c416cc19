"""Recognise handwritten digits with a small network."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--part", default="0/1", help="which rows are here: 2/4 is every fourth, from the third on")
index, count = map(int, parser.parse_args().part.split("/"))

torch.manual_seed(0)
pixels, digits = load_digits(return_X_y=True)
x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits)
tested = torch.arange(len(y)) % 5 == 0
train_x, train_y = x[~tested][index::count], y[~tested][index::count]

net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(net.parameters(), lr=0.3)

for _ in range(20):
    for batch in torch.randperm(len(train_y)).split(16):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(train_x[batch]), train_y[batch]).backward()
        optimizer.step()
    accuracy = (net(x[tested]).argmax(1) == y[tested]).float().mean().item()

print(f"accuracy {accuracy:.3f}")
