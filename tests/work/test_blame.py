"""Where in the user's own code an error arose."""

from __future__ import annotations

import json
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import umbel
from umbel.work.blame import LONGEST, is_own, own_frame, traced


@dataclass
class Made:
    """Its ``__init__`` is in no file."""

    size: int

    def __post_init__(self) -> None:
        raise ValueError(self.size)


def raised(function):
    with pytest.raises(Exception) as caught:
        function()
    return caught.value


def test_what_is_own():
    assert is_own(__file__)
    assert is_own(__file__, Path(__file__).parent)
    assert not is_own(__file__, Path(__file__).parent / "elsewhere")
    installed = Path(sysconfig.get_path("purelib")) / "mine.py"
    for other in ("<string>", "<frozen importlib._bootstrap>", umbel.__file__, np.__file__, json.__file__, installed):
        assert not is_own(str(other)), other
    assert not is_own("<string>", Path.cwd())


@pytest.mark.parametrize(
    "function",
    [
        lambda: umbel.FedAvg(cohort="al"),
        lambda: umbel.Window(quorum=-1),
        lambda: np.ones(2).reshape(3),
        lambda: json.loads("{"),
        lambda: np.concatenate([np.ones(1), np.ones((1, 1))]),
    ],
)
def test_the_deepest_own_line_is_found(function):
    frame = own_frame(raised(function))
    assert (frame.filename, frame.lineno) == (__file__, function.__code__.co_firstlineno)


def test_a_generated_init_is_nobodys_line():
    frame = own_frame(raised(lambda: Made(3)))
    assert frame.name == "__post_init__"
    assert own_frame(raised(lambda: exec("1 / 0"))).name == "<lambda>"
    assert own_frame(ValueError("never raised")) is None


def test_a_traceback_is_bounded_and_needs_no_printable_error():
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def fail(error):
        raise error

    assert traced(raised(lambda: fail(ValueError("x" * 10 * LONGEST)))).endswith("x\n")
    assert len(traced(raised(lambda: fail(ValueError("x" * 10 * LONGEST))))) <= LONGEST + 3
    assert "in fail" in traced(raised(lambda: fail(Unprintable())))
    assert "ValueError: 7" in traced(raised(lambda: fail(ValueError(7))))
