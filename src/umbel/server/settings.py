"""What a server is told when it starts, and what it tells when it is up."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import SettingError
from ..wire.addresses import PORT, host_and_port, is_loopback
from ..wire.limits import LEAST_WINDOW_BYTES, LOG_BYTES, WINDOW_BYTES

BLOBS_PORT = 7422
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class ServerSettings:
    """How a server runs.

    - `folder`: all that it keeps.
    - `listen`: where nodes, runs and operators connect, as ``HOST:PORT``; port 0 for any that is free.
    - `http`: where its pages are, as ``HOST:PORT``; empty for no pages.
    - `names`: what it is called by those who connect, besides localhost and what it listens on: host names or
      addresses, for its certificate.
    - `insecure`: without TLS, which is only for this machine, unless `force_insecure`.
    - `quota`: how many bytes its blobs may take; None for what they have at its start and four fifths of what is free.
    - `node_quota`: how many of these may come from one node; None for half where there are several nodes.
    - `log_quota`: how many bytes the log of a run may take; what comes beyond is not kept.
    - `blobs_port`: where large blobs come and go, beside; 0 for nowhere, None for `BLOBS_PORT` where `listen` is
      at the port for that, and else, or if that is taken, for any that is free.
    - `window`: how many bytes of what a connection brings may lie in memory unread.
    - `largest_answer`: how many bytes one answer of a node may have; None for as many as the node may.

    Raises `SettingError` for what cannot be.
    """

    folder: Path
    listen: str = f"127.0.0.1:{PORT}"
    http: str = "127.0.0.1:7421"
    names: tuple[str, ...] = ()
    insecure: bool = False
    force_insecure: bool = False
    quota: int | None = None
    node_quota: int | None = None
    largest_answer: int | None = None
    log_quota: int = LOG_BYTES
    window: int = WINDOW_BYTES
    blobs_port: int | None = None

    def __post_init__(self) -> None:
        host, _ = host_and_port(self.listen)
        if self.http:
            host_and_port(self.http)
        if self.insecure and not self.force_insecure and not is_loopback(host):
            raise SettingError(
                f"without TLS everyone between could read and change what passes through {self.listen}",
                hint="Leave out --insecure: the server makes its own certificates. --force-insecure insists.",
            )
        for most in (self.quota, self.node_quota, self.largest_answer, self.log_quota):
            if most is not None and most < 1:
                raise SettingError(f"a quota of {most} bytes leaves room for nothing")
        if not 0 <= (self.blobs_port or 0) <= 65535:
            raise SettingError(f"{self.blobs_port} is no port")
        if not LEAST_WINDOW_BYTES <= self.window < 1 << 31:
            raise SettingError(f"a window of {self.window} bytes; it has from {LEAST_WINDOW_BYTES} to 2 GiB")

    def ports_for_blobs(self) -> tuple[int, ...]:
        """Where to listen for large blobs, whichever can be had first."""
        if self.blobs_port is not None:
            return (self.blobs_port,) if self.blobs_port else ()
        return (BLOBS_PORT, 0) if host_and_port(self.listen)[1] == PORT else (0,)


@dataclass(frozen=True)
class ServerOpened:
    """A server that is up: its address, where its pages are, its folder, and the line that a node needs, if one was
    made.
    """

    address: str
    pages: str | None
    folder: Path
    line: str | None = None


def byte_count(text: str) -> int:
    """A size such as ``500M``, ``20GB`` or ``1.5 TiB`` in bytes. Raises `SettingError`."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kKmMgGtT]?)(i?)[bB]?\s*", text)
    if found is None:
        raise SettingError(f"{text!r} is not a size", hint="Write 500MB, 20GB or 1TB.")
    unit = found[2].upper()
    factor = 1024 ** list(UNITS).index(unit) if found[3] else UNITS[unit]
    return int(float(found[1]) * factor)
