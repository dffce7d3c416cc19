"""Accounts of where time went."""

from __future__ import annotations

from dataclasses import asdict, fields

from hypothesis import given
from hypothesis import strategies as st

from umbel.work.account import Account

amounts = st.lists(st.integers(0, 10**9), min_size=len(fields(Account)), max_size=len(fields(Account)))


@given(ours=amounts, theirs=amounts)
def test_every_entry_is_added(ours, theirs):
    account, other = Account(*ours), Account(*theirs)
    account.add(other)
    assert list(asdict(account).values()) == [a + b for a, b in zip(ours, theirs, strict=True)]
    assert other == Account(*theirs)


def test_an_account_begins_empty():
    empty = Account()
    assert not any(asdict(empty).values())
    account = Account(training=1.5, data_hits=2, joules=0.25)
    account.add(empty)
    assert account == Account(training=1.5, data_hits=2, joules=0.25)
