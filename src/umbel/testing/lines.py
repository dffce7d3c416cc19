"""Lines between processes of this machine, cut and throttled from any thread: proxies in a thread of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self, TypeVar

from .proxy import Proxy

Found = TypeVar("Found")
TRICKLE, TRICKLES = 64, 0.02
"""A throttled line lets so many bytes through in so many seconds."""


class ProxiedLines:
    """Lines by the names that they are laid for; use it with ``with``."""

    def __init__(self) -> None:
        self._proxies: dict[str, Proxy] = {}
        self._stack = AsyncExitStack()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._stack.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def lay(self, name: str, target: str) -> str:
        """Lay a line to ``host:port``; the address of its near end."""
        entered = self._stack.enter_async_context(Proxy(target))
        self._proxies[name] = asyncio.run_coroutine_threadsafe(entered, self._loop).result()
        return self._proxies[name].address

    def cut(self, name: str) -> bool:
        """Reset all connections of a line; whether there was one."""
        proxy = self._proxies[name]

        def cut() -> bool:
            there = proxy.connected > 0
            proxy.cut()
            return there

        return self._done(cut)

    def throttle(self, name: str, seconds: float) -> bool:
        """Let but a trickle through for so long; whether anything had to wait for it."""
        proxy = self._proxies[name]

        async def throttle() -> bool:
            held = proxy.held
            for _ in range(max(1, round(seconds / TRICKLES))):
                proxy.allow(TRICKLE)
                await asyncio.sleep(TRICKLES)
            proxy.allow(None)
            return proxy.held > held

        return asyncio.run_coroutine_threadsafe(throttle(), self._loop).result()

    def _done(self, what: Callable[[], Found]) -> Found:
        async def done() -> Found:
            return what()

        return asyncio.run_coroutine_threadsafe(done(), self._loop).result()
