"""Those who watch a run: they are told of every event, and cannot end it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from .events import Observer, RunEvent
from .reasons import short

_LOG = logging.getLogger("umbel.observers")


class Observers:
    """Everybody who watches a run.

    One that raises is told of further events all the same, since the next may find it well again. Its first error is
    logged as a warning, with its traceback at the level of debugging; the run goes on. What is no `Exception`, such as
    KeyboardInterrupt, passes.
    """

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = tuple(observers)
        self._failing: set[int] = set()

    def __len__(self) -> int:
        return len(self._observers)

    def catch_up(self, events: Sequence[RunEvent], times: Sequence[float]) -> None:
        """Tell those that have a method `catch_up` what a run that goes on has logged until now, and when."""
        self._each("catch_up", events, times)

    def close(self) -> None:
        """Close those that have a method `close`: the run is over, however it ended."""
        self._each("close")

    def _each(self, method: str, *arguments: object) -> None:
        for place, observer in enumerate(self._observers):
            try:
                if callable(work := getattr(observer, method, None)):
                    work(*arguments)
            except Exception as error:
                if place not in self._failing:
                    self._failing.add(place)
                    _LOG.warning("%s", _news(observer, error))

    def tell(self, event: RunEvent) -> list[str]:
        """Tell everybody of an event; a sentence about each observer that raised for the first time."""
        news: list[str] = []
        for place, observer in enumerate(self._observers):
            try:
                observer(event)
            except Exception as error:
                if place in self._failing:
                    continue
                self._failing.add(place)
                news.append(f"{_news(observer, error)}; the run goes on")
                _LOG.warning("%s", news[-1])
                _LOG.debug("the observer's traceback, at %s:", event.name, exc_info=error)
        return news


def _news(observer: Observer, error: Exception) -> str:
    return f"the observer {_name(observer)} raised {type(error).__name__}: {short(_said(error))}"


def _name(observer: Observer) -> str:
    return str(getattr(observer, "__qualname__", None) or type(observer).__qualname__)


def _said(error: Exception) -> str:
    try:
        return str(error)
    except Exception:
        return "(it cannot be printed)"
