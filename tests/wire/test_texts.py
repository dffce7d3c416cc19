"""What peers say as JSON, and how deep it may be."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.errors import ProtocolError
from umbel.wire import messages as m
from umbel.wire.limits import JSON_DEPTH as DEPTH
from umbel.wire.texts import read_json, read_steps

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(tree=TREES, outer=st.lists(st.sampled_from(["list", "object"]), max_size=DEPTH + 3))
def test_what_is_as_deep_as_may_be_is_read_and_what_is_deeper_is_not(tree, outer):
    def depth(found):
        inner = found.values() if isinstance(found, dict) else found if isinstance(found, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    for kind in outer:
        tree = [tree] if kind == "list" else {"": tree}
    if depth(tree) <= DEPTH:
        assert read_json(json.dumps(tree), "it") == tree
    else:
        with pytest.raises(ProtocolError, match="it is nested deeper than") as caught:
            read_json(json.dumps(tree), "it")
        assert caught.value.code == m.CODE_TOO_LARGE


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a":' * 100_000, "nothing", b"\xff\xfe", "[1,]"])
def test_what_is_no_json_is_told_of_as_that(text):
    with pytest.raises(ProtocolError, match=r"^it is no JSON$"):
        read_json(text, "it")


@pytest.mark.parametrize(("text", "kind"), [("[]", dict), ("{}", list), ("3", dict), ("null", list), ('"x"', dict)])
def test_what_is_of_another_kind_is_refused(text, kind):
    with pytest.raises(ProtocolError, match=r"^it is not a JSON (object|list)$"):
        read_json(text, "it", kind)


def test_steps_have_names_and_whole_versions():
    assert read_steps('[{"name": "a", "version": 2, "settings": {}}, {"name": "b", "version": 1}]', "they") == [
        ("a", 2),
        ("b", 1),
    ]
    for wrong in ("Infinity", "1.0", "true", "null", '"1"', "[1]"):
        with pytest.raises(ProtocolError, match="they are not steps"):
            read_steps(f'[{{"name": "a", "version": {wrong}}}]', "they")
    for wrong in ('["a"]', "[[]]", "[{}]", '[{"name": 3, "version": 1}]'):
        with pytest.raises(ProtocolError, match="they are not steps"):
            read_steps(wrong, "they")
