"""Transforms: two-sided steps on updates; ``transforms=`` of an ask."""

from __future__ import annotations

from ..core.transform import Transform, chain, known_transforms, register_transform, transform_from_spec
from .clip_by_norm import clip_by_norm
from .top_k import top_k

__all__ = [
    "Transform",
    "chain",
    "clip_by_norm",
    "known_transforms",
    "register_transform",
    "top_k",
    "transform_from_spec",
]
