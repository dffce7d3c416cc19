"""PyTorch: modules as arrays and back, seeding, and local training as strategies want it done.

Used as ``umbel.torch``; needs PyTorch: ``pip install "umbel[torch]"``.
"""

from __future__ import annotations

from ..core.native import missing_package

try:
    import torch as _  # noqa: F401
except ModuleNotFoundError as error:
    raise missing_package(error, "torch", "torch") from error

from .corrections import correct_gradients_, correction_loss
from .distillation import distil
from .generators import FeatureGenerator
from .loops import fit, gradient
from .modules import arrays, load_
from .native import load_optimizer_, model
from .personal import adapt_, load_personal_, norm_layers
from .seeds import deterministic, device, restore_rng, save_rng, seed

__all__ = [
    "FeatureGenerator", "adapt_", "arrays", "correct_gradients_", "correction_loss", "deterministic", "device",
    "distil", "fit", "gradient", "load_", "load_optimizer_", "load_personal_", "model", "norm_layers", "restore_rng",
    "save_rng", "seed",
]  # fmt: skip
