"""What holds for all tests: where clients train, the order tests run in, how long they wait, what they put back."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

PATIENCE = 240.0
"""So many seconds a test waits for another process or thread before it fails: on a busy machine all take their time."""
ROOT = Path(__file__).resolve().parents[1]
KEPT = tuple(
    f"{place}{os.sep}" for place in (ROOT / "src", ROOT / "tests", ROOT / "benchmarks", sys.prefix, sys.base_prefix)
)
OF_LIBRARIES = ("PYTEST_", "KMP_", "GRPC_", "TORCH", "MPL", "QT_", "_RJEM_")

# Runs in tests train in the test's own process unless a test says otherwise.
os.environ.setdefault("UMBEL_WORKERS", "0")

# How many examples a law is tried on, the same ones each time. `make test-all` takes --hypothesis-profile=full.
SLOW = (HealthCheck.too_slow,)  # on a busy machine all is
settings.register_profile("quick", max_examples=20, deadline=None, derandomize=True, suppress_health_check=SLOW)
settings.register_profile("full", settings.get_profile("quick"), max_examples=400)
settings.load_profile("quick")


def some(cases: Iterable[Any], most: int) -> list[Any]:
    """Parameters of a test that takes long: `most` of the cases, evenly spaced, and the others marked as slow."""
    listed = [each if isinstance(each, tuple) else (each,) for each in cases]
    kept = {(2 * i + 1) * len(listed) // (2 * most) for i in range(most)}
    return [pytest.param(*each, marks=() if at in kept else pytest.mark.slow) for at, each in enumerate(listed)]


FRAMEWORKS = ("adapters/", "script/test_frameworks.py", "trackers/test_tools.py")
"""Tests that load large frameworks, which would slow down all tests after them."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(ROOT / "tests").as_posix().startswith(FRAMEWORKS):
            item.add_marker(pytest.mark.frameworks)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Say how to have the same order again; pytest-randomly's own line is not printed with -q."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and (seed := session.config.getoption("randomly_seed", None)) is not None:
        terminal.write_line(f"order of the tests: --randomly-seed={seed}")


def open_files() -> set[str]:
    """The descriptors that this process has open, with what each leads to (Linux). Those that others have left may
    close at any time, such as gRPC's, so that what counts is which of them were not there before.
    """
    gc.collect()
    found = set()
    for descriptor in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with suppress(OSError):
            found.add(f"{descriptor} {os.readlink(f'/proc/self/fd/{descriptor}')}")
    return found


def strays(names: Iterable[str]) -> set[str]:
    """Those of these modules that are neither installed nor this repository's code: apps and what is beside them."""
    return {name for name in names if _is_stray(sys.modules.get(name))}


def _is_stray(module: ModuleType | None) -> bool:
    found = vars(module) if module is not None else {}
    places = [found.get("__file__"), *list(found.get("__path__") or ())[:1]]
    place = next((place for place in places if isinstance(place, str) and os.path.isabs(place)), None)
    return place is not None and not place.startswith(KEPT)


def _surroundings() -> dict[str, Any]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(OF_LIBRARIES)}
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    return {"folder": os.getcwd(), "variables": variables, "signals": handlers}


@pytest.fixture(autouse=True, scope="session")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes what whoever runs it has in their own home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UMBEL_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True, scope="module")
def _settled() -> None:
    """What other modules have loaded and made stays: whoever looks for garbage, as many tests do, need not go through
    it.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """A test forgets the modules of its apps, and leaves the process's surroundings as it has found them."""
    modules, path, entries, before = set(sys.modules), sys.path, list(sys.path), _surroundings()
    yield
    for name in strays(sys.modules.keys() - modules):
        del sys.modules[name]
    sys.path, path[:] = path, entries
    assert _surroundings() == before
