"""Frameworks that take seconds to import are imported where their tests are run, and not to find that all are slow."""

from __future__ import annotations

from pathlib import Path

import pytest

LARGE = (
    "test_fastai.py", "test_jax.py", "test_keras.py", "test_lightning.py", "test_private.py", "test_transformers.py",
)  # fmt: skip


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name in LARGE and config.option.markexpr in ("not slow", "not frameworks") else None
