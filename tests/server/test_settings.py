from __future__ import annotations

from pathlib import Path

import pytest

from umbel.errors import SettingError
from umbel.server.settings import ServerSettings, byte_count


@pytest.mark.parametrize(
    ("text", "count"),
    [("1", 1), ("500MB", 500 * 10**6), ("1.5 GiB", 3 * 2**29), ("20g", 20 * 10**9), ("2TB", 2 * 10**12), ("7k", 7000)],
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert byte_count(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1", "1PB", "ten", "1 0"])
def test_what_is_no_size_is_an_error(text: str) -> None:
    with pytest.raises(SettingError, match="is not a size"):
        byte_count(text)


def test_plaintext_stays_on_this_machine_unless_somebody_insists(tmp_path: Path) -> None:
    for listen in ("127.0.0.1:0", "localhost:1", "[::1]:9"):
        ServerSettings(tmp_path, listen, insecure=True)
    for listen in ("0.0.0.0:1", "10.0.0.1:1", "example.org:1"):
        ServerSettings(tmp_path, listen)
        ServerSettings(tmp_path, listen, insecure=True, force_insecure=True)
        with pytest.raises(SettingError, match="without TLS"):
            ServerSettings(tmp_path, listen, insecure=True)


def test_addresses_and_quotas_are_checked(tmp_path: Path) -> None:
    ServerSettings(tmp_path, http="", window=64 << 10)
    for wrong in ({"listen": "here"}, {"http": "there"}, {"quota": 0}, {"window": (64 << 10) - 1}, {"window": 1 << 31}):
        with pytest.raises(SettingError):
            ServerSettings(tmp_path, **wrong)  # type: ignore[arg-type]
