"""A server and nodes as processes: started once for the tests of a file, and gone after them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from umbel.cli.application import load
from umbel.testing.machines import Machines

APP = Path(__file__).with_name("apps.py")


@cache
def app_of(name: str) -> Any:
    """The app of this name in `APP`."""
    return load(f"{APP}:{name}").app


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These look for processes in /proc."""
    if not sys.platform.startswith("linux"):
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="looks for processes in /proc"))


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """A folder for a server and nodes, none of which are started yet."""
    made = Machines(tmp_path_factory.mktemp("deployment"))
    try:
        yield made
        made.stop()
    finally:
        made.kill()
