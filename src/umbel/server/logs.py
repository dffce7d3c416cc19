"""The logs of runs: what a run says that has happened in it is checked, kept as far as there is room, and told."""

from __future__ import annotations

import json
from collections.abc import Callable

from ..runs.events import RoundCommitted, RunFinished, RunInterruption, RunResumed, Warned
from ..store.records import Store
from ..wire import messages as m
from ..wire.limits import LOG_RESERVE_BYTES
from .fields import event_in
from .ledger import RunEntry
from .signals import Outbox, Tell
from .summaries import Summaries


class Logs:
    """Takes in what runs log. A run's log takes `most` bytes; what comes beyond that is told to those who watch, and is
    not kept, but for how the run ends. `goes_on` is called with a run that has something new to say.
    """

    def __init__(
        self, store: Store, out: Outbox, summaries: Summaries, goes_on: Callable[[RunEntry], None], most: int
    ) -> None:
        self._store, self._out, self._summaries, self._goes_on, self._most = store, out, summaries, goes_on, most

    def take(self, run: RunEntry, body: m.LogEvent, now: float) -> None:
        """A run says what has happened. Raises `ProtocolError` for what is no event."""
        event = event_in(body.event, plain=True)
        if body.number == 0:
            self._out.effects.append(Tell(run.id, 0, body.event))
            return
        if body.number == run.log + 1:
            self._goes_on(run)
            run.log = body.number
            size = len(body.event.encode())
            if self._summaries.known(run.id).bytes + size <= self._room(event):
                self._keep(run, body.event, now, event.round if isinstance(event, RoundCommitted) else None)
                self._summaries.take(run.id, event, size)
            else:
                self._fill(run, now)
                self._summaries.take(run.id, event, 0)
                self._store.put("runs", {"id": run.id, "log": run.log})
                self._out.effects.append(Tell(run.id, 0, body.event))
        self._out.say(run.peer, durable=True, log_ack=m.LogAck(run=run.id, number=run.log))

    def _room(self, event: object) -> int:
        ending = isinstance(event, RunFinished | RunInterruption | RunResumed)
        return self._most + (LOG_RESERVE_BYTES if ending else 0)

    def _keep(self, run: RunEntry, text: str, now: float, round: int | None = None) -> None:
        self._store.put("events", {"run": run.id, "number": run.log, "at": now, "body": text, "round": round})
        self._out.effects.append(Tell(run.id, run.log, text))

    def _fill(self, run: RunEntry, now: float) -> None:
        """Say once, in the log and to the run, that the log is full."""
        known = self._summaries.known(run.id)
        if known.full:
            return
        self._summaries.filled(run.id)
        told = (
            f"the log of run {run.id} has taken the {self._most:,} bytes that it may (`umbel server --log-quota`): "
            "what follows is not kept on the server, but for how the run ends; nothing else is lost"
        )
        self._keep(run, json.dumps(Warned(round=known.rounds, text=told).record()), now)
        self._out.say(run.peer, notice=m.Notice(text=told))
