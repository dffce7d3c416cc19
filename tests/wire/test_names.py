"""Clients' names in messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.wire.names import client_id, client_text


@given(st.integers(0, 10**18 - 1))
def test_an_index_comes_back(client: int) -> None:
    found = client_id(client_text(client))
    assert found == client
    assert type(found) is int


@given(st.text(min_size=1))
def test_every_text_comes_back_as_itself(text: str) -> None:
    assert client_text(client_id(text)) == text


@pytest.mark.parametrize("text", ["", "00", "01", "-1", "+1", " 1", "1 ", "1.0", "1e3", "1_0", "٣", "²", "9" * 19])
def test_what_is_no_canonical_decimal_is_a_name(text: str) -> None:
    assert client_id(text) == text


def test_the_largest_index() -> None:
    assert client_id("9" * 18) == 10**18 - 1
