"""Simulated devices: when they are available, and what none can be."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.errors import SettingError
from umbel.simulation.devices import DAY, Device, Kind, Spread

HOUR = 3600.0

moments = st.floats(0, 1e8)
positive = st.floats(1e-3, 1e9)
any_device = st.builds(
    Device,
    speed=st.floats(0.01, 100),
    download=st.one_of(positive, st.just(math.inf)),
    upload=st.one_of(positive, st.just(math.inf)),
    watts=st.floats(0, 1000),
    radio_watts=st.floats(0, 10),
    drop_out=st.sampled_from([0.0, 0.3, 1.0]),
    opens=st.floats(0, DAY, exclude_max=True),
    lasts=st.one_of(st.floats(1, DAY - 1), st.just(DAY)),
)


# When a device is available


@given(any_device, moments)
def test_availability_holds_together(device: Device, at: Any) -> None:
    soon = device.next_online(at)
    assert at <= soon <= at + DAY
    assert device.online(soon)
    assert (soon == at) == device.online(at)
    until = device.online_until(at)
    assert until > at if device.online(at) else until == at
    assert device.online_until(soon) > soon
    if device.lasts < DAY:
        assert device.online_until(soon) - soon <= device.lasts + 1e-6
        assert not device.online(device.online_until(soon))
    else:
        assert (soon, device.online_until(soon)) == (at, math.inf)


@given(st.floats(0, DAY, exclude_max=True), st.floats(1, DAY - 1), st.integers(0, 1000))
def test_the_moments_of_opening_and_closing(opens: Any, lasts: Any, day: Any) -> None:
    device = Device(opens=opens, lasts=lasts)
    opening = opens + day * DAY
    assert device.online(opening)
    before = math.nextafter(opening, -math.inf)
    assert not device.online(before)
    assert device.next_online(before) == opening
    assert device.online_until(opening) == opening + lasts
    assert device.next_online(opening + lasts) == opens + (day + 1) * DAY


def test_an_availability_over_midnight() -> None:
    device = Device(opens=22 * HOUR, lasts=4 * HOUR)
    assert [hour for hour in range(24) if device.online(hour * HOUR)] == [0, 1, 22, 23]
    assert device.online_until(HOUR) == 2 * HOUR
    assert device.online_until(23 * HOUR) == 26 * HOUR
    assert device.online_until(5 * HOUR) == 5 * HOUR
    assert device.next_online(2 * HOUR) == 22 * HOUR
    assert device.next_online(2 * HOUR + 9 * DAY) == 22 * HOUR + 9 * DAY


# Settings

BAD = [
    ("speed", 0), ("speed", math.inf), ("speed", math.nan), ("speed", "fast"), ("speed", None), ("download", 0),
    ("download", -1.0), ("upload", 0.0), ("upload", math.nan), ("watts", -1), ("watts", math.inf),
    ("radio_watts", -0.1),
    ("drop_out", 1.1), ("drop_out", -0.1), ("opens", -1), ("opens", DAY), ("lasts", 0), ("lasts", 0.5),
    ("lasts", DAY + 1), ("lasts", None),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD)
def test_what_no_device_can_be(field: Any, value: Any) -> None:
    with pytest.raises(SettingError, match=f"^the {field} of a device is "):
        Device(**{field: value})
    with pytest.raises(SettingError, match=f"^the {field} of kind 'phone' is "):
        Kind("phone", **{field: value})


@pytest.mark.parametrize("name", ["", None, 3])
def test_what_is_no_name(name: Any) -> None:
    for make in (partial(Device, name), partial(Kind, name)):
        with pytest.raises(SettingError, match=r"the name of a (device|kind) is a text"):
            make()


@pytest.mark.parametrize(
    ("field", "value"), [("share", 0), ("share", math.nan), ("watts", Spread(1, 1)), ("speed", (1, 2))]
)
def test_what_no_kind_can_be(field: Any, value: Any) -> None:
    with pytest.raises(SettingError, match=f"the {field} of kind 'machine' is "):
        Kind(**{field: value})


@pytest.mark.parametrize("opens", [(1,), (1, 2, 3), (-1, 5), (5, DAY + 1), ("a", 1), [True, 2], (math.nan, 1)])
def test_what_is_no_range_of_openings(opens: Any) -> None:
    with pytest.raises(SettingError, match="the opens of kind 'machine' is a second of the day or two of them"):
        Kind(opens=opens)


@pytest.mark.parametrize(
    "spread", [(0, 1), (-1, 1), (math.inf, 1), (1, -0.1), (1, 5), (1, math.nan), ("1", 1), (1, True)]
)
def test_what_is_no_spread(spread: Any) -> None:
    with pytest.raises(SettingError, match=r"a spread's (median|sigma) is "):
        Spread(*spread)
