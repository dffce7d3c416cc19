"""The process that tells a tracker of a run, begun by `Tracking`.

Lines of JSON come on the standard input: first the tracker, then the run's events, now and then that nothing else comes
for a while, last where the run's files are. What goes wrong for the first time is said on the standard output. Where
the input ends before its last line, the run's process is gone, and the run unfinished.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..runs.schema import event_of
from .reading import Reader


def main() -> None:
    """Tell a tracker all that comes."""
    import cloudpickle

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is noise
    order = json.loads(sys.stdin.readline())
    reader = Reader(cloudpickle.loads(base64.b64decode(order["tracker"])), local=order["local"])
    failed = False

    def tried(work: Callable[..., object], *arguments: Any) -> None:
        nonlocal failed
        try:
            work(*arguments)
        except Exception as error:
            if not failed:
                failed = True
                said.write(json.dumps(f"{type(error).__name__}: {error}") + "\n")
                said.flush()

    for line in sys.stdin:
        record = json.loads(line)
        if "flush" in record:
            tried(reader.flush)
            continue
        if "event" not in record:
            if record["folder"] is not None:
                reader.folder = Path(record["folder"])
            break
        event = event_of(record)
        if event is not None:
            tried(reader.read, event, record["at"])
    tried(reader.close)
