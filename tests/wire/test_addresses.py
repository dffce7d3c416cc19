from __future__ import annotations

import pytest

from umbel.errors import SettingError
from umbel.wire.addresses import canonical, host_and_port, is_loopback


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("localhost:7420", ("localhost", 7420)),
        ("10.0.0.5:1", ("10.0.0.5", 1)),
        ("[::1]:80", ("::1", 80)),
        ("a.example.org:65535", ("a.example.org", 65535)),
        (":0", None),
        ("host", None),
        ("host:", None),
        ("host:70000", None),
        ("::1:80", None),
        ("a b:1", None),
        ("http://x:1", None),
        ("x:1/y", None),
    ],
)
def test_addresses_are_read(text: str, found: tuple[str, int] | None) -> None:
    if found is None:
        with pytest.raises(SettingError, match="is not an address"):
            host_and_port(text)
    else:
        assert host_and_port(text) == found


@pytest.mark.parametrize("host", ["a..b", "x" * 64, f"www.{'x' * 64}.org", "a\ufffdb.org"])
def test_a_name_that_no_host_can_have_is_not_looked_up(host: str) -> None:
    with pytest.raises(SettingError, match="names no host"):
        canonical(f"{host}:7420")
    assert canonical("münchen.example.") == "münchen.example.:7420"


def test_an_address_is_kept_in_one_way() -> None:
    assert canonical("Ward.Example.org") == "ward.example.org:7420"
    assert canonical("[FE80::1]:9") == "[fe80::1]:9"
    assert host_and_port("host", 5) == ("host", 5)


def test_loopback_is_told_from_elsewhere() -> None:
    assert all(map(is_loopback, ("localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "10.0.0.1", "example.org", "::", "")))
