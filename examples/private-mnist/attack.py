"""The app of app.py, whose clients can also attack themselves.

umbel privacy attack last --app examples/private-mnist/attack.py
"""

from __future__ import annotations

import torch
from app import Net, app, client, images
from torch import nn

import umbel
import umbel.torch

__all__ = ["app"]


@client.query("attack")
@torch.inference_mode()
def attack(model, data, ctx):
    """How likely the model finds what is true of this client's images, and of ten that nobody has trained on."""
    _, _, x, y = images()
    here = slice(10 * ctx.client, 10 * ctx.client + 10)
    other = torch.from_numpy(x[here]), torch.from_numpy(y[here])
    net = umbel.torch.load_(Net(), model)
    members, others = (-nn.functional.cross_entropy(net(x), y, reduction="none") for x, y in (data, other))
    return umbel.Update({"members": members.numpy(), "others": others.numpy()})
