"""Processes as the system sees them."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from umbel.work import vitals

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells of processes in /proc")


def test_where_the_system_cannot_end_it_with_its_parent(monkeypatch):
    monkeypatch.setattr(vitals, "sys", SimpleNamespace(platform="elsewhere"))
    vitals.die_with(0)  # does nothing


@linux
def test_one_whose_parent_is_another_by_now_ends_at_once():
    code = "from umbel.work.vitals import die_with; die_with(1); print('still here')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (-9, b"")


@linux
def test_processor_time_grows_and_nobody_has_none():
    before = vitals.processor_ticks(os.getpid())
    while vitals.processor_ticks(os.getpid()) == before:
        sum(range(10_000))
    assert vitals.processor_ticks(2**22 + 1) == 0  # no process has that number
