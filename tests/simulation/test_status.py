"""The words that workers share with the main process."""

from __future__ import annotations

import os

import pytest

from umbel.simulation.status import BATCH, CANCELLED, PLACE, STEPS, Status, row_of


@pytest.mark.parametrize("named", [False, True])
def test_both_sides_see_the_same_words(named):
    status = Status(3, named=named)
    assert bool(status.file) == named
    rows = [status.row(worker) for worker in range(3)]
    assert all(word == 0 for row in rows for word in row)
    descriptor = os.open(status.file, os.O_RDWR) if named else status.descriptor
    theirs = row_of(descriptor, 1)
    theirs[BATCH], theirs[PLACE], theirs[STEPS] = 7, 2, 2**64 - 1
    rows[1][CANCELLED] = 6
    assert (rows[1][BATCH], rows[1][PLACE], rows[1][STEPS]) == (7, 2, 2**64 - 1)
    assert theirs[CANCELLED] == 6
    assert not any([*rows[0], *rows[2]])  # a worker writes into its own row
    status.close()
    if named:
        os.close(descriptor)
    theirs[BATCH] = 8
    assert rows[1][BATCH] == 8  # the memory stays for as long as somebody looks at it


def test_rows_share_no_cache_line():
    status = Status(4, named=False)
    assert [status.row(worker).nbytes for worker in range(4)] == [64] * 4
    status.close()


@pytest.mark.parametrize("gone", [False, True])
def test_a_named_status_leaves_no_file(gone):
    status = Status(1, named=True)
    assert os.path.exists(status.file)
    if gone:
        os.unlink(status.file)
    status.close()
    assert not os.path.exists(status.file)
