from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.errors import SettingError
from umbel.privacy.release import NEIGHBOURS, UNITS, NoisyRelease

PLAIN: dict[str, Any] = {
    "mechanism": "discrete_gaussian",
    "noise": 0.7,
    "norm": 0.5,
    "unit": "client",
    "neighbours": "add or remove one",
    "sampling": {"kind": "poisson", "rate": 0.01},
    "denominator": 1000,
    "steps": 2.0**20,
}
SHARED: dict[str, Any] = {
    **PLAIN,
    "mechanism": "distributed_skellam",
    "neighbours": "zero out one",
    "shares": 7,
    "size": 9,
}
SAMPLINGS = st.one_of(
    st.fixed_dictionaries({"kind": st.just("poisson"), "rate": st.floats(0, 1, exclude_min=True)}),
    st.integers(1, 99).map(lambda n: {"kind": "fixed", "count": n, "of": n + 7}),
    st.just({"kind": "everyone"}),
    st.fixed_dictionaries({"kind": st.just("unknown"), "why": st.text()}),
)


@given(
    st.tuples(
        st.sampled_from(["gaussian", "laplace", "pure"]),
        st.floats(0, 1e300),
        st.floats(1e-300, 1e300),
        st.sampled_from(UNITS),
        st.sampled_from(NEIGHBOURS),
        SAMPLINGS,
        st.none() | st.integers(1, 10**9) | st.floats(0.5, 1e9),
    )
)
def test_a_release_survives_json(fields: tuple[Any, ...]) -> None:
    release = NoisyRelease(*fields)
    assert NoisyRelease.of(json.loads(json.dumps(release.plain()))) == release
    assert release.plain()["sampling"] is not release.sampling


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mechanism": "magic"}, "mechanism"),
        ({"mechanism": ["gaussian"]}, "mechanism"),
        ({"mechanism": "gaussian"}, "steps"),
        ({"steps": None}, "steps"),
        ({"steps": float("nan")}, "steps"),
        ({"noise": -1.0}, "noise"),
        ({"noise": float("inf")}, "noise"),
        ({"noise": "1"}, "noise"),
        ({"norm": 0.0}, "norm"),
        ({"unit": "row"}, "unit"),
        ({"neighbours": "add_or_remove_one"}, "neighbours"),
        ({"denominator": 0}, "denominator"),
        ({"denominator": True}, "denominator"),
        ({"sampling": None}, "sampling"),
        ({"sampling": {"kind": "lottery"}}, "sampling"),
        ({"sampling": {"kind": ["poisson"], "rate": 0.1}}, "sampling"),
        ({"sampling": {"kind": "poisson"}}, "sampling"),
        ({"sampling": {"kind": "poisson", "rate": 0.0}}, "rate"),
        ({"sampling": {"kind": "poisson", "rate": 1.01}}, "rate"),
        ({"sampling": {"kind": "everyone", "rate": 0.1}}, "sampling"),
        ({"sampling": {"kind": "fixed", "count": 0, "of": 9}}, "count"),
        ({"sampling": {"kind": "fixed", "count": 10, "of": 9}}, "of"),
        ({"sampling": {"kind": "fixed", "count": 1.5, "of": 9}}, "count"),
        ({"sampling": {"kind": "unknown", "why": 3}}, "why"),
        ({"colour": "blue"}, "colour"),
        ({"stream": 3}, "stream"),
        ({"stream": "a", "mechanism": "laplace", "steps": None}, "stream"),
    ],
)
def test_nonsense_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingError, match=rf"\b{named}\b"):
        NoisyRelease.of({**PLAIN, **change})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"shares": None}, "shares"),
        ({"size": None}, "size"),
        ({"steps": None}, "steps"),
        ({"shares": 0}, "shares"),
        ({"size": 2.0}, "size"),
        ({"mechanism": "discrete_gaussian"}, "shares"),
        ({"neighbours": "add or remove one"}, "added or removed"),
        ({"stream": "a"}, "stream"),
    ],
)
def test_nonsense_of_shared_noise_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    assert NoisyRelease.of(json.loads(json.dumps(NoisyRelease.of(SHARED).plain()))) == NoisyRelease.of(SHARED)
    assert "shares" not in NoisyRelease.of(PLAIN).plain()  # as in logs from before there were shares
    with pytest.raises(SettingError, match=rf"\b{named}\b"):
        NoisyRelease.of({**SHARED, **change})


@pytest.mark.parametrize("missing", PLAIN)
def test_what_is_missing_is_named(missing: str) -> None:
    with pytest.raises(SettingError, match=rf"\['{missing}'\]"):
        NoisyRelease.of({name: value for name, value in PLAIN.items() if name != missing})
    with pytest.raises(SettingError, match="by a dict"):
        NoisyRelease.of([])  # type: ignore[arg-type]


def test_a_stream_is_named_or_there_is_none() -> None:
    assert NoisyRelease.of(PLAIN).stream is None  # as in logs from before there were streams
    named = NoisyRelease.of({**PLAIN, "stream": "a"})
    assert NoisyRelease.of(json.loads(json.dumps(named.plain()))) == named
