"""The state machine of a relay: a node to the server above, and every run to the router of the nodes below.

It keeps nothing on disk. What was asked and answered is in the router's store; the server above says again, in each
session, what it has no answer to, and the router then gives the answers that it has. So a relay that was killed comes
to the same answers, though it may group them otherwise; a server above that has some of them already says `Refold`.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..core.task import Ticked
from ..errors import ProtocolError
from ..store.records import Store
from ..wire import messages as m
from ..wire.limits import HOSTED_BYTES, NODE_CLIENTS
from ..wire.portions import portions, text_bytes
from . import signals
from .ledger import ENDED, OWNER
from .relayed import RelayedRun
from .signals import RelayEffect, RelayEvent
from .uplink import Uplink


class Relaying:
    """What is between the server above and the router below.

    `store` is the router's, `clients` are those that its nodes host. `handle(event, now)` gives what is to be done, in
    order; `next_tick` is when it wants a `Ticked`.
    """

    def __init__(self, store: Store, clients: Iterable[str]) -> None:
        self.next_tick: float | None = None
        self._runs: dict[str, RelayedRun] = {}
        self._clients = frozenset(clients)
        self._uplink = Uplink()
        self._now = 0.0
        self._load(store)

    def _load(self, store: Store) -> None:
        for row in store.rows("runs"):
            if row["owner"] == OWNER and row["status"] not in ENDED and row["spec"]:
                self._known(m.RunSpec.FromString(row["spec"]))
        for row in store.rows("asks"):
            if row["run"] in self._runs:
                self._runs[row["run"]].open_ask(m.AskSpec.FromString(row["spec"]))
        for row in store.rows("tasks"):
            run = self._runs.get(row["run"])
            if run is not None and row["ask"] in run.asks:
                run.asks[row["ask"]].tasks[row["task"]] = row["attempt"]
                run.clients.add(row["client"])

    def _known(self, spec: m.RunSpec) -> RelayedRun:
        if spec.run not in self._runs:
            self._runs[spec.run] = RelayedRun(spec, self._uplink)
        return self._runs[spec.run]

    def handle(self, event: RelayEvent, now: float) -> list[RelayEffect]:
        """Take an event; what is to be done about it. Raises `ProtocolError` for what the server may not send."""
        self._uplink.effects.clear()
        self._now = now
        match event:
            case signals.Asked(message):
                try:
                    self._asked(message)
                except ProtocolError:
                    raise
                except Exception as error:  # the server above pays for it, and the relay goes on
                    kind = message.WhichOneof("body")
                    raise ProtocolError(f"a relay cannot handle this {kind}: {error!r:.200}") from error
            case signals.RouterSaid(message):
                self._answered(message)
            case signals.RouterDropped(peer, text):
                for run in self._runs.values():
                    if run.peer == peer:
                        run.dropped(text)
            case signals.Folded():
                if not any(ask.bundles.folded(event) for run in self._runs.values() for ask in run.asks.values()):
                    self._uplink.do(signals.Forget(event.number))  # it is not wanted any more
            case signals.Reached(clients):
                self._uplink.begin(now)
                for run in self._runs.values():
                    run.meet()
                if clients != self._clients:
                    self._say_hosted()
            case signals.Parted():
                self._uplink.open = False
            case signals.Hosting(clients):
                if clients != self._clients:
                    self._clients = clients
                    self._say_hosted()
            case signals.Unfetched(id, sha, reason):
                if id in self._runs:
                    self._runs[id].lack(sha, reason, now)
            case signals.MovedAbove(sha):
                for run in self._runs.values():
                    run.moved(sha)
            case Ticked():
                pass
        self._go_on()
        return list(self._uplink.effects)

    def may_read(self, run: str, sha: bytes) -> bool:
        """Whether the server above may have a blob: one that was named to it, while its ask is open."""
        return run in self._runs and any(sha in ask.bundles.offers for ask in self._runs[run].asks.values())

    def _say_hosted(self) -> None:
        """Say whose clients these are; beyond what one node may host there are none."""
        found = portions(sorted(self._clients), text_bytes, most=NODE_CLIENTS, most_bytes=HOSTED_BYTES)
        clients = next(found, [])
        self._uplink.say(hosted=m.Hosted(clients=clients))

    def _asked(self, message: m.Message) -> None:
        """Take a message of the server above."""
        kind = message.WhichOneof("body") or ""
        if kind == "run_spec":
            self._known(message.run_spec).asked(message.run_spec)
            return
        if kind not in ("ask_spec", "task", "cancel", "close_ask", "close_run", "refold", "ack"):
            raise ProtocolError(f"a server does not send a relay a message {kind!r}", m.CODE_NOT_ALLOWED)
        body = getattr(message, kind)
        run = self._runs.get(body.run)
        if run is None:
            if kind in ("ask_spec", "task"):
                raise ProtocolError(f"a {kind} of {body.run!r:.250}, whose RunSpec has not come", m.CODE_UNKNOWN)
            return
        match body:
            case m.AskSpec():
                run.ask(body)
            case m.Task():
                run.task(body, self._now)
            case m.Cancel():
                run.cancel(body.tasks)
            case m.CloseAsk():
                run.close_ask(body)
            case m.CloseRun():
                run.close(body)
                del self._runs[run.id]
            case m.Refold() if body.ask in run.asks:
                run.asks[body.ask].refold(body.without)
            case m.Ack():
                run.acknowledged(body.tasks)

    def _answered(self, message: m.Message) -> None:
        """Take what the router says to a run."""
        kind = message.WhichOneof("body") or ""
        if kind not in ("members", "alive", "result", "partial"):
            return
        body = getattr(message, kind)
        run = self._runs.get(body.run)
        if run is None:
            return
        if kind == "members":
            run.members(body.members)
        elif kind == "alive":
            run.progress.update(body.tasks)
        elif body.ask in run.asks:
            run.asks[body.ask].answered(message)

    def _go_on(self) -> None:
        """Do what is due, and see when more will be."""
        runs = self._runs.values()
        times = [ask.put_together(self._now) for run in runs for ask in run.asks.values()]
        if self._uplink.open and any(run.progress or run.asks for run in runs):
            times.append(self._uplink.tell_alive(self._now, self._tell_alive))
        for run in runs:
            run.try_again(self._now)
            times.append(run.again_at)
        self.next_tick = min((at for at in times if at is not None), default=None)

    def _tell_alive(self) -> None:
        for run in self._runs.values():
            run.tell_alive()
