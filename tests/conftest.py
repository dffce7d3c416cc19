"""Runs in tests train in the test's own process unless a test says otherwise."""

from __future__ import annotations

import os

os.environ.setdefault("UMBEL_WORKERS", "0")
