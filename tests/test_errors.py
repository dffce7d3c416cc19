"""Errors say what happened, where, and what to do; the tree in the docstring is the tree in the code."""

import inspect
import re

import pytest

from umbel import errors
from umbel.errors import CallerError, ClientError, RunError, StorageError, UmbelError, UpdateRejected

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, UmbelError)]


def test_an_error_reads_as_what_where_and_what_to_do():
    error = UpdateRejected("array 'w' holds NaN", client=14, hint="Try a smaller learning rate.")
    error.located(run="7f3a", round=2, client=99)
    assert str(error) == "array 'w' holds NaN (run 7f3a, round 2, client 14)\nTry a smaller learning rate."
    assert str(UmbelError("just this")) == "just this"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_docstring_draws_the_tree_as_it_is(kind):
    lines = [line for line in errors.__doc__.splitlines() if re.search(rf"[─ ]{kind.__name__}\b", line)]
    assert len(lines) == 1
    depth = len(kind.__mro__[: kind.__mro__.index(UmbelError)])
    fathers = [base for base in kind.__mro__[1:] if base in KINDS]
    assert lines[0].index(kind.__name__) == 4 + 4 * len(fathers)
    assert depth == len(fathers) or kind is UmbelError


def test_faults_are_told_apart_and_retries_only_where_they_can_help():
    for fault in (CallerError, ClientError, RunError, StorageError):
        assert sum(issubclass(fault, other) for other in (CallerError, ClientError, RunError, StorageError)) == 1
    assert not any(kind.retry for kind in KINDS if issubclass(kind, CallerError))
    assert errors.ClientCrashed.retry
    assert errors.StorageError.retry
    assert not errors.CorruptFile.retry


class Custom(errors.DataError):
    """An error with arguments of its own."""

    def __init__(self, table: str, row: int) -> None:
        super().__init__(f"{table}:{row}", hint="mend it")


def test_errors_travel_between_processes_whatever_their_constructor_takes() -> None:
    import pickle

    error = Custom("a.csv", 3).located(client=7)
    error.add_note("here")
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is Custom
    assert (str(found), found.__notes__, found.args) == (str(error), ["here"], error.args)
