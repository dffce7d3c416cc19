"""Addresses of servers, as people write them."""

from __future__ import annotations

import ipaddress
import re

from ..errors import SettingError

PORT = 7420
"""Where a server listens unless it is told otherwise."""


def host_and_port(address: str, port: int | None = None) -> tuple[str, int]:
    """The parts of ``HOST:PORT``, or of ``HOST`` alone where `port` says what is meant then; an IPv6 address stands in
    brackets. Raises `SettingError`.
    """
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+)(?::([0-9]{1,5}))?", address)
    if found is None or (found[2] is None and port is None) or int(found[2] or 0) > 65535:
        raise SettingError(f"{address!r} is not an address", hint=f"Write HOST:PORT, such as localhost:{PORT}.")
    try:
        found[1].encode("idna")  # which whoever looks the host up would do
    except UnicodeError as error:
        raise SettingError(
            f"{address!r} names no host: {error.__cause__ or error}",
            hint="Between its dots a name has 1 to 63 letters.",
        ) from None
    return found[1].strip("[]"), port if found[2] is None and port is not None else int(found[2])


def canonical(address: str) -> str:
    """An address in the one way that it is kept: ``HOST:PORT``, in lower case, the port filled in."""
    host, port = host_and_port(address, PORT)
    return f"[{host.lower()}]:{port}" if ":" in host else f"{host.lower()}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
