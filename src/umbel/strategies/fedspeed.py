"""FedSpeed: longer local training by prox-correction and perturbed gradients (Sun et al. 2023, arXiv 2302.10429)."""

from __future__ import annotations

from typing import Any

from ..core.elementwise import mean
from ..core.settings import number
from ..core.transform import chain
from ..errors import SettingError
from ..transforms.dynamic_regularizer import dynamic_regularizer
from ..transforms.perturbed_gradient import perturbed_gradient
from .fedavg import FedAvg


def FedSpeed(
    *, lamda: float = 10.0, rho: float = 0.1, alpha: float = 1.0, transforms: Any = (), **settings: Any
) -> FedAvg:
    """FedAvg whose clients stay close to the model without the bias of it, and look for flat minima.

    The proximal term ``|w - model|**2 / (2 * lamda)`` and its correction are FedDyn's regulariser, of which the server
    has, as its authors' program has it, the mean over all clients, those that were not asked as they were; `rho` and
    `alpha` as in `transforms.perturbed_gradient`. Its clients keep state. `settings` are those of `FedAvg`; every
    client counts alike unless a `fold` is given. Needs the correction, gradients at perturbed weights among it:
    `umbel.torch.fit` applies it.
    """
    if not number(lamda) or lamda <= 0:
        raise SettingError(f"FedSpeed takes a finite lamda above 0, not {lamda!r:.60}")
    own = chain(dynamic_regularizer(1 / lamda), perturbed_gradient(rho, alpha), transforms)
    return FedAvg(transforms=own, **{"fold": mean(), **settings})
