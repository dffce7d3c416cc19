"""What is known of processes that host clients."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from umbel.work.processes import described, device_of


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "ended with exit code 0"), (255, "ended with exit code 255"), (-9, "SIGKILL, perhaps because memory ran out"),
     (-11, "SIGSEGV, a segmentation fault"), (-15, "was killed by SIGTERM"), (-200, "was killed by signal 200")],
)  # fmt: skip
def test_exit_codes_in_words(code, words):
    assert described(code).endswith(words)


@pytest.mark.parametrize("index", [0, 1, 5])
def test_where_a_process_computes(monkeypatch, index):
    assert device_of("tpu", index) == "tpu"
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert device_of("auto", index) == "cpu"
    cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 3)
    mps = SimpleNamespace(is_available=lambda: True)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, backends=SimpleNamespace(mps=mps)))
    assert device_of("auto", index) == f"cuda:{index % 3}"
    cuda.is_available = lambda: False
    assert device_of("auto", index) == "mps"
    mps.is_available = lambda: False
    assert device_of("auto", index) == "cpu"
