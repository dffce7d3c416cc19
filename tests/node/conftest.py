"""Fixtures of the tests of a node's parts."""

from __future__ import annotations

import pytest
from tests.node.bench import Bench


@pytest.fixture
def bench():
    return Bench()


@pytest.fixture
def hosted(bench):
    bench.host()
    bench.ask()
    return bench
