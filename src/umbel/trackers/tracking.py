"""Tracking a run while it goes on: an observer that tells a process of its own, so that the run waits for nothing."""

from __future__ import annotations

import base64
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from ..errors import TrackingFailed
from ..runs.events import RunEvent
from .tracker import Tracker, tracker_of

PROGRAM = "import json, sys; sys.path += json.loads(sys.argv[1]); from umbel.trackers.process import main; main()"
PAUSE = 1.0
"""Seconds without an event after which the tracker is to write what it has."""
PATIENCE = 300.0
"""Seconds that a tracker has for what is left once the run is over."""


class Tracking:
    """An observer that has a tracker told of the run by a process of its own, begun with the first event. What goes
    wrong there is raised here, once, which observers may do: the run goes on.

    `close` waits until the tracker has everything; a run calls it when it is over. `local` says whether the folder that
    the events name is one of this machine; otherwise `folder` may be set before `close`, to where the run's files are.
    """

    def __init__(self, tracker: Tracker | str, *, local: bool = True) -> None:
        self.folder: Path | None = None
        self._tracker = tracker_of(tracker)
        self._local = local
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._said: list[str] = []
        self._threads: list[threading.Thread] = []
        self._noise: IO[bytes] | None = None
        self.__qualname__ = type(self._tracker).__name__  # what a warning calls this observer

    @property
    def keeps_model(self) -> bool:
        """Whether the tracker does anything with the final model."""
        return self._tracker.keeps_model

    def __call__(self, event: RunEvent) -> None:
        """Have the tracker told of an event."""
        if event.logged:
            self._tell({**event.record(), "at": event.at or round(time.time(), 3)})

    def catch_up(self, events: Sequence[RunEvent], times: Sequence[float | None]) -> None:
        """Have it told what there was before."""
        for event, at in zip(events, times, strict=True):
            if event.logged:
                self._tell({**event.record(), "at": at})

    def close(self) -> None:
        """Have it told that this is all, and wait until it is done. Raises `TrackingFailed`."""
        process = self._process
        if process is None:
            return
        self._process = None
        self._lines.put({"folder": None if self.folder is None else str(self.folder)})
        self._lines.put(None)
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._said.append(f"it took more than {PATIENCE:.0f} s for what was left, and was ended")
            code = 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            for thread in self._threads:
                thread.join()
            assert process.stdout is not None
            process.stdout.close()
        assert self._noise is not None
        with self._noise:
            if code and not self._said:
                self._noise.seek(0)
                last = self._noise.read().decode(errors="replace").strip().rpartition("\n")[2]
                self._said.append(f"its process ended with code {code}: {last}")
        self._raise()

    def _tell(self, record: dict[str, Any]) -> None:
        if self._process is None:
            self._begin()
        self._lines.put(record)
        self._raise()

    def _raise(self) -> None:
        if self._said:
            raise TrackingFailed(self._said.pop(0))

    def _begin(self) -> None:
        import cloudpickle

        tracker = base64.b64encode(cloudpickle.dumps(self._tracker)).decode()
        self._noise = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(sys.path)],  # it finds all that can be imported here
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C stops the run, which then says so
        )
        self._lines.put({"tracker": tracker, "local": self._local})
        self._threads = [
            threading.Thread(target=work, args=(self._process,), daemon=True) for work in (self._write, self._hear)
        ]
        for thread in self._threads:
            thread.start()

    def _write(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        record: dict[str, Any] | None = {"flush": True}
        try:
            with process.stdin as pipe:
                while True:
                    try:  # what comes last is followed by nothing, so that it is written within a moment
                        record = self._lines.get(timeout=None if record and "flush" in record else PAUSE)
                    except queue.Empty:
                        record = {"flush": True}
                    if record is None:
                        return
                    pipe.write(json.dumps(record) + "\n")
                    if self._lines.empty():
                        pipe.flush()
        except OSError:  # it is gone, which `close` tells
            while record is not None:
                record = self._lines.get()

    def _hear(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._said.extend(json.loads(line) for line in process.stdout)


def track(tracker: Tracker | str) -> Tracking:
    """An observer that has a run told to a tracker: ``umbel.run(app, observers=[umbel.track("mlflow")])``.

    `tracker` is ``"aim"``, ``"csv"``, ``"mlflow"``, ``"parquet"``, ``"tensorboard"`` or ``"wandb"``, if wanted with a
    place behind a colon (``"mlflow:http://localhost:5000"``), or a `Tracker` of one's own. A run that goes on is told
    to the record that it had. Raises `SettingError` for a tracker that there is not, or whose package is not installed.
    """
    return Tracking(tracker)
