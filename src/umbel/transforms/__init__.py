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
from .top_k import top_k

__all__ = [
    "Transform", "chain", "chain_from_spec", "clip_by_norm", "known_transforms", "register_transform", "top_k",
    "transform_from_spec",
]  # fmt: skip
