"""`umbel track`: a run that was, or goes on, told to a tracker."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.text import Text

from ..errors import TrackingFailed, UmbelError
from ..runs.journal import LOG
from ..runs.past import find
from ..trackers.reading import Reader
from ..trackers.tracker import tracker_of
from .faults import stop_signals, warn
from .following import pulled, read, time_of
from .log_commands import lines
from .remote_commands import server
from .terminal import stdout


def track(reference: str, named: str, folder: Path, *, follow: bool) -> None:
    """Tell a tracker what the log of a run on this machine says, and, to follow it, what happens until it is over."""
    tracker, record = tracker_of(named), find(reference, folder)
    reader = Reader(tracker, record.folder)
    with stop_signals(), _told(record.id, named):
        try:
            _read(reader, lines(record.folder / LOG, follow))
        finally:
            reader.close()


def track_on(run: str, named: str, on: str, token: str | None, *, follow: bool) -> None:
    """The same of a run on a server."""
    tracker = tracker_of(named)
    reader = Reader(tracker, local=False)
    with stop_signals(), server(on, token) as office, tempfile.TemporaryDirectory() as place:
        found = str(office.call("runs.show", run=run)["run"])
        told = office.logs(found, follow=follow, watched=False, lost=lambda error: warn("the server is gone; waiting"))
        with _told(found, named):
            try:
                _read(reader, (record for _, record in told))
                if tracker.keeps_model:
                    reader.folder = pulled(office, found, Path(place))
            finally:
                reader.close()


def _read(reader: Reader, records: Iterable[Mapping[str, Any]]) -> None:
    for record in records:
        event, senseless = read(record)
        if senseless:
            warn(f"left out: {senseless}")
        if event is not None:
            reader.read(event, time_of(record))


@contextmanager
def _told(run: str, named: str) -> Iterator[None]:
    """Say what was done, or why a tracker could not do it."""
    try:
        yield
    except (UmbelError, OSError):
        raise
    except Exception as error:
        raise TrackingFailed(f"{named} could not be told of {run}: {type(error).__name__}: {error}") from error
    stdout().print(Text(f"{run} is told to {named}"), soft_wrap=True)
