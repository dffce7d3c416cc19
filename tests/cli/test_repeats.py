"""A note that repeats itself is shown so often, and then counted."""

from __future__ import annotations

import logging

from umbel.cli import repeats
from umbel.cli.repeats import Repeats
from umbel.wire.limits import NOTES


def test_notes_of_one_kind_are_shown_so_often_a_minute_and_others_are_counted() -> None:
    now, shown = [0.0], []
    log = logging.Logger("umbel.test")
    handler = logging.Handler()
    handler.emit = lambda record: shown.append(record.getMessage())  # type: ignore[method-assign]
    handler.addFilter(Repeats(lambda: now[0]))
    log.addHandler(handler)
    for number in range(1000):
        log.warning("no room for %d", number)
    assert len(shown) == NOTES
    log.warning("something else")
    assert shown[-1] == "something else"
    now[0] = 60.0
    log.warning("no room for %d", 7)
    assert shown[-1] == f"no room for 7 ({1000 - NOTES:,} others like it were left out)"
    log.warning("no room for %d", 8)
    assert shown[-1] == "no room for 8"


def test_any_number_of_kinds_takes_little_room() -> None:
    found = Repeats(lambda: 0.0)
    for number in range(3 * repeats.KINDS):
        found.filter(logging.LogRecord("x", 30, "", 0, f"note {number}", (), None))
    assert len(found._kinds) <= repeats.KINDS
