"""What a key depends on: values and code, in any process, and nothing else."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.bench import tiny

import umbel
from umbel import bench
from umbel.bench import roster
from umbel.bench.fingerprint import described, digest, versions
from umbel.strategies import FedAdam, FedAvg

VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
PLAIN = VALUES | st.lists(VALUES, max_size=3) | st.dictionaries(st.text(), VALUES, max_size=3)


@given(PLAIN, PLAIN)
def test_equal_values_have_one_digest_and_others_have_others(one, other):
    assert digest(described(one)) == digest(described(deepcopy(one)))
    assert (described(one) == described(other)) == (one == other)


def made(source, **names):
    namespace = {"__name__": "made"} | names
    exec(source, namespace)
    return namespace["f"]


CLOSED = "def o(n):\n    def f(): return n\n    return f\n"
HELPED = "def g(x):\n    return x + {}\ndef f(x):\n    return g(x)"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f(x): return x + 1", "def f(x): return x + 2"),
        ("def f(x): return x + 1", "def f(x): return x - 1"),
        ("def f(x, y=1): return x", "def f(x, y=2): return x"),
        ("def f(x): return (lambda: x + 1)()", "def f(x): return (lambda: x + 2)()"),
        ("K = 1\ndef f(x): return K", "K = 2\ndef f(x): return K"),
        (HELPED.format(1), HELPED.format(2)),
        ("class f:\n    def g(self): return 1", "class f:\n    def g(self): return 2"),
        ("class f:\n    a = 1", "class f:\n    a = 2"),
        (f"{CLOSED}f = o(1)", f"{CLOSED}f = o(2)"),
        ("import numpy\ndef f(): return numpy.sin", "import numpy\ndef f(): return numpy.cos"),
    ],
)  # fmt: skip
def test_other_code_is_another(one, other):
    assert described(made(one)) == described(made(f"\n\n# moved\n{one}"))
    assert described(made(one)) != described(made(other))


def test_code_that_it_does_not_use_is_nothing_to_it():
    assert described(made("unused = 1\ndef f(x): return x")) == described(made("def f(x): return x"))


def test_a_script_is_the_users_own_whatever_runs_it():
    one, other = (made(f"def f(x): return x + {n}", __name__="__main__") for n in (1, 2))
    assert described(one) != described(other)


def test_functions_of_umbel_are_known_by_what_they_hold():
    one, same, other = (described(roster._part("FedPer", personal=(name,))) for name in ("a", "a", "b"))
    assert one == same != other


def test_functions_that_call_each_other_end():
    described(made("def f(x): return g(x)\ndef g(x): return f(x)"))


def test_strategies_are_known_by_their_settings():
    assert described(FedAdam(lr=0.1)) == described(FedAdam(lr=0.1))
    assert described(FedAdam(lr=0.1)) != described(FedAdam(lr=0.2))
    assert described(FedAdam()) != described(FedAvg())
    assert described(FedAvg(fold=umbel.mean())) != described(FedAvg())
    assert described(functools.partial(FedAdam, lr=1)) != described(functools.partial(FedAdam, lr=2))


class Tensor:
    """As those of other libraries, which say nothing of themselves but this."""

    def __init__(self, value):
        self.__array__ = lambda *_, **__: np.array(value)


@dataclass
class Holder:
    array: np.ndarray


def test_arrays_and_tensors_are_known_by_what_they_hold():
    one, same, other = (described(Holder(np.array(values))) for values in ([1.0, 2.0], [1.0, 2.0], [1.0, 3.0]))
    assert one == same != other
    assert described(Tensor(1)) == described(Tensor(1)) != described(Tensor(2))


class Slotted:
    __slots__ = ("a",)

    def __init__(self, a):
        self.a = a


def test_other_objects_are_known_by_their_fields():
    assert described(Slotted(1)) == described(Slotted(1)) != described(Slotted(2))
    assert described(Slotted(1).__init__) != described(Slotted(2).__init__)
    assert described({1, 2}) == described({2, 1})
    assert described(functools.cache(made("def f(): return 1"))) != described(
        functools.cache(made("def f(): return 2"))
    )


@dataclass(frozen=True)
class Sent:
    rate: float


def test_objects_are_the_same_once_they_have_been_sent_to_another_process():
    before = described(Sent(0.5))
    assert pickle.loads(pickle.dumps(Sent(0.5))) == Sent(0.5)
    assert described(Sent(0.5)) == before


def test_it_is_the_same_in_another_process():
    code = (
        "from tests.bench import tiny; from umbel import bench; from umbel.strategies import FedAvg\n"
        "from umbel.bench.fingerprint import described, digest, versions\n"
        "print(digest(described([tiny.problem().essence, bench.Algorithm(FedAvg()).essence, versions()])))"
    )
    mine = digest(described([tiny.problem().essence, bench.Algorithm(FedAvg()).essence, versions()]))
    environment = {"PYTHONPATH": "src:.", "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == mine


def test_versions_name_what_is_installed():
    assert versions()["umbel"] == umbel.__version__
    assert versions()["numpy"] == np.__version__
