"""The certificate of a server that is up: made anew well before it ends, for whoever connects from then on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

from ..errors import StorageError
from ..trust.authority import Authority, Serving

_LOG = logging.getLogger("umbel.server")

EVERY = 3600.0
"""So many seconds pass until it is looked at again."""
LATE = timedelta(days=14)
"""A certificate that ends sooner should have been made anew long since: something is wrong."""


def _utc() -> datetime:
    return datetime.now(UTC)


class Certificates:
    """The certificate that an authority has signed for `names`; `now` is the time. Raises `StorageError`."""

    def __init__(self, authority: Authority, names: Iterable[str], now: Callable[[], datetime] = _utc) -> None:
        self._authority, self._names, self._now = authority, tuple(names), now
        self._serving: Serving = authority.serving(self._names, now())

    def pair(self) -> tuple[bytes, bytes]:
        """The certificate and its key, for whoever connects now."""
        return self._serving.certificate, self._serving.key

    @property
    def until(self) -> float:
        """When it ends, in seconds since 1970."""
        return self._serving.until.timestamp()

    @property
    def problem(self) -> str:
        """What is wrong with it, if anything is."""
        late = self._serving.until - self._now() < LATE
        return f"the server's certificate ends on {self._serving.until:%Y-%m-%d}, and cannot be renewed" if late else ""

    def renew(self) -> None:
        """Make it anew, if it is near its end or its authority is another one now."""
        before, self._serving = self._serving, self._authority.serving(self._names, self._now())
        if self._serving.certificate != before.certificate:
            _LOG.info("the server has a new certificate, which is good until %s", f"{self._serving.until:%Y-%m-%d}")

    async def keep(self) -> None:
        """Renew it in time, for ever."""
        while True:
            await asyncio.sleep(EVERY)
            try:
                self.renew()
            except StorageError as error:
                _LOG.warning("the server's certificate cannot be renewed: %s", error.message)
