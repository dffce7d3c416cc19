"""What holds for all tests: where clients train, and in which order tests run."""

from __future__ import annotations

import os

import pytest

# Runs in tests train in the test's own process unless a test says otherwise.
os.environ.setdefault("UMBEL_WORKERS", "0")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Say how to have the same order again; pytest-randomly's own line is not printed with -q."""
    if terminal := session.config.pluginmanager.get_plugin("terminalreporter"):
        terminal.write_line(f"order of the tests: --randomly-seed={session.config.getoption('randomly_seed')}")
