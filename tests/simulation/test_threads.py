"""One numeric thread for as long as tasks are done in this process."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from umbel.simulation.threads import OneThread


def counts():
    """The number of threads of each numeric library that is loaded."""
    return {library["filepath"]: library["num_threads"] for library in threadpool_info()}


@pytest.fixture
def torch(monkeypatch):
    """What can be told of PyTorch's threads."""
    found = SimpleNamespace(threads=3)
    found.get_num_threads = lambda: found.threads
    found.set_num_threads = lambda number: setattr(found, "threads", number)
    monkeypatch.setitem(sys.modules, "torch", found)
    return found


@pytest.mark.parametrize("before", [1, 2])
def test_libraries_have_one_thread_inside_and_what_they_had_after(before):
    one_thread = OneThread()
    with threadpool_limits(before):
        had = counts()
        assert had  # numpy's own, at least
        for _ in range(2):
            with one_thread():
                assert set(counts().values()) == {1}
            assert counts() == had


def test_they_are_given_back_after_an_error(torch):
    one_thread = OneThread()
    with threadpool_limits(2):
        had = counts()
        with pytest.raises(KeyError, match="1"), one_thread():
            raise KeyError(torch.threads)
        assert counts() == had
        assert torch.threads == 3


@pytest.mark.parametrize("before", [1, 3])
def test_torch_has_what_it_had_whatever_was_done_inside(torch, before):
    torch.threads = before
    with OneThread()():
        assert torch.threads == 1
        torch.set_num_threads(2)
    assert torch.threads == before


def test_one_in_the_other(torch):
    one_thread = OneThread()
    with threadpool_limits(2):
        had = counts()
        with one_thread():
            with one_thread():
                assert torch.threads == 1
            assert torch.threads == 1
            assert set(counts().values()) == {1}
        assert (torch.threads, counts()) == (3, had)


def test_libraries_that_are_loaded_meanwhile_are_limited_too(torch, monkeypatch):
    one_thread = OneThread()
    monkeypatch.delitem(sys.modules, "torch")
    with one_thread():
        monkeypatch.setitem(sys.modules, "torch", torch)
    with one_thread():
        assert torch.threads == 1
    assert torch.threads == 3


def test_the_real_torch():
    torch = pytest.importorskip("torch")
    had = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        before = counts()
        with OneThread()():
            assert torch.get_num_threads() == 1
            assert set(counts().values()) == {1}
        assert torch.get_num_threads() == 2
        assert counts() == before
    finally:
        torch.set_num_threads(had)
