"""Transforms: two-sided steps on updates; ``transforms=`` of an ask."""

from __future__ import annotations

from ..core.transform import (
    Transform,
    chain,
    chain_from_spec,
    known_transforms,
    register_transform,
    transform_from_spec,
)
from .clip_by_norm import clip_by_norm
from .compression import Compression, part
from .control_variates import control_variates
from .count_sketch import count_sketch
from .delta_mask import delta_mask
from .drive import drive
from .dynamic_regularizer import dynamic_regularizer
from .eden import eden
from .error_feedback import error_feedback
from .extrapolated import extrapolated
from .fair_weights import fair_weights
from .lloyd_max import lloyd_max
from .low_rank import low_rank
from .per_step import per_step
from .perturbed_gradient import perturbed_gradient
from .power_sgd import power_sgd
from .quantise import quantise
from .random_k import random_k
from .rotate import rotate
from .tilted import tilted
from .top_k import top_k

__all__ = [
    "Compression", "Transform", "chain", "chain_from_spec", "clip_by_norm", "control_variates", "count_sketch",
    "delta_mask", "drive", "dynamic_regularizer", "eden", "error_feedback", "extrapolated",
    "fair_weights", "known_transforms", "lloyd_max", "low_rank", "part", "per_step", "perturbed_gradient", "power_sgd",
    "quantise", "random_k", "register_transform", "rotate", "tilted", "top_k",
    "transform_from_spec",
]  # fmt: skip
