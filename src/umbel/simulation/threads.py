"""One numeric thread, as in a worker process, for as long as tasks are done in this one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class OneThread:
    """Limits the numeric libraries that are loaded to one thread, whose number can change what they compute."""

    def __init__(self) -> None:
        self._controller: Any = None
        self._loaded: frozenset[str] = frozenset()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Limit them meanwhile."""
        torch = sys.modules.get("torch")
        before = torch.get_num_threads() if torch is not None else 1
        with self._libraries().limit(limits=1):
            if torch is not None and before > 1:
                torch.set_num_threads(1)
            try:
                yield
            finally:
                if torch is not None and torch.get_num_threads() != before:
                    torch.set_num_threads(before)

    def _libraries(self) -> Any:
        loaded = frozenset({"torch", "scipy", "sklearn", "jax", "tensorflow"} & sys.modules.keys())
        if self._controller is None or loaded != self._loaded:
            from threadpoolctl import ThreadpoolController

            self._controller, self._loaded = ThreadpoolController(), loaded
        return self._controller
