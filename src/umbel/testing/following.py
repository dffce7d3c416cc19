"""A run as an operator sees it, event by event, while its server dies and comes back."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from typing import Any

from ..errors import JournalMissing, UmbelError
from ..office.operator import Operator
from .machines import Machines

LOOK = 0.0005


class Watchdog:
    """Raises TimeoutError once there was no news for so many seconds."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._news = 0
        self._since = time.monotonic()
        self._pause = threading.Event()

    def look(self, news: int) -> None:
        """Wait for the next look at things; `news` is how much there was so far."""
        self._pause.wait(LOOK)
        if news > self._news:
            self._news, self._since = news, time.monotonic()
        if time.monotonic() - self._since > self._patience:
            raise TimeoutError(f"no news of the run for {self._patience:.0f} s")


class Follower:
    """Takes in the events of a run as they come, until the run is over.

    `events` are those so far, with their numbers; `status` is what the server calls the run; `left_out` is what was
    said of clients that the run goes on without, which whatever dies is no reason for.
    """

    def __init__(self, machines: Machines, run: str) -> None:
        self.events: list[tuple[int, dict[str, Any]]] = []
        self.over = False
        self.status = ""
        self.left_out = ""
        self._run = run
        self._ended = threading.Event()
        self._office = Operator(machines.credentials(), pause=lambda seconds: self._ended.wait(min(seconds, 0.1)))
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    @property
    def finished(self) -> dict[str, Any]:
        """The event that says how it finished; empty for one that did not."""
        last = [record for number, record in self.events if number][-1:]
        return last[0] if last and last[0]["event"] == "run_finished" else {}

    def close(self) -> None:
        """Follow no more."""
        self._ended.set()
        self._office.close()  # first: it may wait there for what never comes
        self._thread.join(30)

    def _follow(self) -> None:
        after = 0
        while not self._ended.wait(0.05):
            try:
                for number, record in self._office.logs(self._run, after):
                    after = max(after, number)
                    self.events.append((number, record))
                    self.left_out = self.left_out or left_out(record)
                    if self._ended.is_set():
                        return
                self.status = self._office.call("runs.show", run=self._run)["status"]
            except JournalMissing:
                continue  # not begun yet
            except UmbelError as error:
                if getattr(error, "retry", False):
                    continue
                self.status = str(error)
            if self.status not in ("running", "stopped"):
                self.over = True
                return


def left_out(record: dict[str, Any]) -> str:
    """What an event says of clients that a run goes on without; empty for none."""
    event, reason = record["event"], str(record.get("reason"))
    refused = event == "waiting" and record["refused"]
    refused = refused or (event == "warned" and record["text"].startswith("it does not take part"))
    refused = refused or (event == "task_ended" and "has answered" in reason)
    return json.dumps(record)[:600] if refused or (event == "ask_closed" and record["failed"]) else ""


class Differs(Exception):
    """A run has finished, with another model than the simulation that nothing disturbs."""


def judge(status: str, finished: Mapping[str, Any], rounds: int, expected: str) -> None:
    """Raise `Differs` where a run ended with another model than `expected`, and RuntimeError where it did not finish.

    `status` is what the server calls it, `finished` the event that says how it finished.
    """
    if status != "finished" or (finished.get("error"), finished.get("rounds")) != (None, rounds):
        raise RuntimeError(f"the run is {status or 'lost'}: {json.dumps(dict(finished))[:600]}")
    if finished["model_sha256"] != expected:
        raise Differs(f"its model is {finished['model_sha256'][:12]} instead of {expected[:12]}")
