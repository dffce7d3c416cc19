"""What an author signs of a run."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.errors import AppError
from umbel.trust.identity import SigningKey, sign_statement
from umbel.trust.statement import LARGEST, Statement, canonical, digest
from umbel.wire import messages as m

KEY = SigningKey.new()
HASH = "ab" * 32

statements = st.builds(
    Statement,
    app=st.text(max_size=40),
    archive=st.just(HASH),
    version=st.integers(0, 2**53 - 1),
    config=st.none() | st.just(HASH),
    contract=st.none() | st.just(HASH),
    federation=st.none() | st.text("0123456789abcdef", max_size=66),
    expires=st.none() | st.integers(0, 10**10) | st.floats(0, 1e10),
)


@given(statements)
def test_what_is_signed_is_read_again(said):
    assert Statement.read(KEY.public, said.text(), said.signed(KEY)) == said


def test_json_that_says_the_same_has_the_same_hash():
    assert digest('{"b": [1, 2.50], "a": "\\u00e4"}') == digest('{ "a":"ä","b":[1,2.5] }')
    assert digest('{"a": 1}') != digest('{"a": 1.0}')


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"3",
        b'"x"',
        b"\xff",
        b"{}",
        b"[" * 4000,
        json.dumps({"app": "a", "archive": HASH, "version": 0}).encode(),  # not in the one form
        canonical({"app": "a", "version": 0}),
        canonical({"app": "a", "archive": HASH}),  # the version is always there
        canonical({"app": "a", "archive": "ab", "version": 0}),
        canonical({"app": None, "archive": HASH, "version": 0}),
        canonical({"app": "a", "archive": HASH, "version": -1}),
        canonical({"app": "a", "archive": HASH, "version": True}),
        canonical({"app": "a", "archive": HASH, "version": 1.0}),
        canonical({"app": "a", "archive": HASH, "version": 2**53}),
        canonical({"app": "a", "archive": HASH, "version": 0, "config": {"lr": 1}}),
        canonical({"app": "a", "archive": HASH, "version": 0, "config": None}),
        canonical({"app": "a", "archive": HASH, "version": 0, "expires": "never"}),
        canonical({"app": "a", "archive": HASH, "version": 0, "expires": float("inf")}),
        canonical({"app": "a", "archive": HASH, "version": 0, "more": 1}),
        canonical({"app": "a" * LARGEST, "archive": HASH, "version": 0}),
    ],
)
def test_what_is_no_statement_is_refused_though_it_is_signed(text):
    with pytest.raises(AppError, match="no statement about a run"):
        Statement.read(KEY.public, text, sign_statement(KEY, text))


def test_a_run_that_nobody_signed_has_none_and_one_that_is_signed_in_part_is_refused():
    assert Statement.of(m.RunSpec(run="r")) is None
    for part in ({"author": KEY.public}, {"statement": b"{}"}, {"signature": bytes(64)}):
        with pytest.raises(AppError, match="is not signed by the author"):
            Statement.of(m.RunSpec(run="r", **part))
