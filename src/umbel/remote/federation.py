"""A federation on real machines: the clients of the nodes that are connected to a server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.app import App
from ..core.client import Client
from ..core.randomness import Key
from ..errors import ClientId, SettingError
from ..runs.events import RunEvent, Waiting
from ..runs.federation import EnlistedFederation
from ..work.seeding import generators_kept, seed_generators
from ..work.state import ClientStates

if TYPE_CHECKING:
    from ..wire import messages as m
    from .session import Link, RemoteSession

STALL = 900.0
SETTLING = 60.0
"""For how many seconds a run that has clients enough waits for nodes that are still preparing."""
RETURNING = 3.0
"""For how many seconds it waits for nodes that are not connected: after a restart of the server they all come back."""


@dataclass(frozen=True)
class Signed:
    """A client's archive as data holders get it, with what its author has signed: see `umbel.trust.statement`."""

    archive: bytes
    author: bytes
    statement: bytes
    signature: bytes


class Remote:
    """The clients of the nodes that a server knows, for `umbel.run(app, on=Remote("host:7420"))`.

    The run is driven by this process, and its log is sent to the server too; `umbel run APP --on HOST:PORT` has the
    server drive it.

    - `address`: the server, ``HOST:PORT``; `token`: the line that `umbel operators add` printed, or a file with it; by
      default what `umbel login` kept, or what the server has left in its `folder` on this machine.
    - `clients`: how many have to be ready before the run starts (then all that are ready take part), or their names; by
      default it starts once some are ready and none is still preparing.
    - `stall`: after so many seconds without a sign of life a client's task has failed; halfway there is a warning.
    - `wait`: for how many seconds to wait for clients; None for as long as it takes.
    - `disk_wait`: for how many seconds the run waits for room where its disk is full; None for as long as it takes.

    A client that is named by a whole number is that index, as in a simulation: nodes named 0 to 3 and
    ``Simulation(clients=4)`` give the same model. Raises `SettingError` for what cannot be.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        clients: int | Sequence[ClientId] | None = None,
        token: str | None = None,
        stall: float = STALL,
        wait: float | None = None,
        disk_wait: float | None = None,
        folder: str | Path | None = "umbel-server",
        connect: Callable[..., Link] | None = None,
        signed: Signed | None = None,
    ) -> None:
        if isinstance(clients, bool) or (isinstance(clients, int) and clients < 1) or clients in ((), []):
            raise SettingError(f"a federation has at least one client, not {clients!r}")
        if clients is not None and not isinstance(clients, int) and (isinstance(clients, str) or not _named(clients)):
            raise SettingError(f"a federation's clients are a number or a list of names, not {clients!r:.60}")
        for name, value in (("stall", stall), ("wait", wait)):
            number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
            if not number and not (name == "wait" and value is None):
                raise SettingError(f"a federation's {name} is a positive number of seconds, not {value!r}")
        self._address, self._token, self._folder = address, token, folder
        self._wanted = clients
        self._stall, self._wait, self.disk_wait = stall, wait, disk_wait
        self._connect = connect
        self._signed = signed

    def __repr__(self) -> str:
        return f"Remote({self._address!r})"

    def enlist(
        self,
        app: App,
        *,
        run: str,
        config: Mapping[str, Any],
        name: str = "",
        tell: Callable[[RunEvent], None] = lambda event: None,
        known: Mapping[str, Any] | None = None,
        log: Iterable[RunEvent] = (),
    ) -> ServerFederation:
        """Make a run known to the server, and wait until its clients are ready.

        `known` is what `ServerFederation.describe` gave for a run that goes on. Its clients are not waited for, and
        nodes are told just what they were told before, for else they would have to begin anew. Raises `SettingError`
        where clients do not come, `Refused` where the server says no.
        """
        from ..wire import messages as m
        from ..wire.names import client_text

        link = (self._connect or _connect)(self._address, token=self._token, folder=self._folder, run=run)
        try:
            named = () if self._wanted is None or isinstance(self._wanted, int) else self._wanted
            if known is not None:
                name, named = known["name"], known["clients"]
            spec = m.RunSpec(
                run=run,
                name=name,
                contract=contract_of(app),
                config=json.dumps(dict(config)),
                clients=[client_text(client) for client in named],
            )
            signed = self._signed if self._signed is not None else _signed(app, spec, link.federation)
            spec.archive.CopyFrom(link.keep(signed.archive))
            spec.author, spec.statement, spec.signature = signed.author, signed.statement, signed.signature
            _check_size(spec)
            clients: tuple[ClientId, ...] = tuple(known["members"] if known is not None else ())
            standings: dict[ClientId, tuple[int, str]] = {}
            if known is None:
                clients, standings = _gathered(link, spec, self._wanted, self._wait, tell)
            else:
                link.send(m.Message(run_spec=spec))
        except BaseException:
            link.close()
            raise
        return ServerFederation(link, spec, clients, standings, self._stall, log)


class ServerFederation(EnlistedFederation):
    """A federation whose clients are known: those of one run."""

    def __init__(
        self,
        link: Link,
        spec: m.RunSpec,
        clients: tuple[ClientId, ...],
        standings: dict[ClientId, tuple[int, str]],
        stall: float,
        log: Iterable[RunEvent],
    ) -> None:
        self.clients = clients
        self._link = link
        self._spec = spec
        self._standings = standings
        self._stall = stall
        self._log = log

    def plan(self) -> dict[str, str]:
        """What results depend on besides the software: how tasks are done."""
        return {"plan": "one task at a time in a process", "threads": "1"}

    def describe(self) -> dict[str, Any]:
        """Who takes part, by what name and of which clients, where those were named, as a plain tree for the log."""
        return {
            "workers": 0,
            "devices": None,
            "members": list(self.clients),
            "name": self._spec.name,
            "clients": list(self._spec.clients),
        }

    def connect(
        self,
        client: Client,
        config: Mapping[str, Any],
        key: Key,
        states: ClientStates,
        clock: Callable[[], float],
    ) -> RemoteSession:
        """The session of the run."""
        from ..work.executor import RunKeys
        from .session import RemoteSession

        session = RemoteSession(self._link, self._spec, states, keys=RunKeys(key), stall=self._stall, log=self._log)
        session.members.update(self._standings)
        return session

    def close(self) -> None:
        """Let go of the server, where no session came to be."""
        self._link.close()


def _connect(address: str | None, **how: Any) -> Link:
    from .link import connect

    return connect(address, **how)


def _check_size(spec: m.RunSpec) -> None:
    """Raise `SettingError` for what no frame could hold, and say why."""
    from ..wire.limits import SPEC_BYTES
    from ..wire.portions import text_bytes

    parts = {
        "the app's settings": len(spec.config.encode()),
        "the contract, which names the model's arrays,": len(spec.contract.encode()),
        "the names of its clients": sum(map(text_bytes, spec.clients)),
    }
    for what, size in parts.items():
        if size > SPEC_BYTES:
            raise SettingError(
                f"a run cannot be sent to nodes: {what} take {size:,} bytes, and {SPEC_BYTES:,} are the most",
                hint="Large settings go into arrays of the model, or into files of the client.",
            )


def _named(clients: Any) -> bool:
    return isinstance(clients, Sequence) and all(isinstance(c, int | str) and not isinstance(c, bool) for c in clients)


def contract_of(app: App) -> str:
    """The contract of an app as JSON: the same wherever it is made, and whatever a strategy draws for it."""
    with generators_kept():
        seed_generators(Key.from_seed(0).derive("contract"))
        return json.dumps(app.contract())


def _signed(app: App, spec: m.RunSpec, federation: str | None) -> Signed:
    """The client's archive, signed by this user for this run alone."""
    from ..trust.credentials import author_key
    from ..trust.packing import declared_version, pack_client
    from ..trust.statement import Statement, digest

    archive, key = pack_client(app.client), author_key()
    said = Statement(
        app=spec.name,
        archive=hashlib.sha256(archive).hexdigest(),
        version=declared_version(app.client),
        config=digest(spec.config),
        contract=digest(spec.contract),
        federation=federation,
    )
    return Signed(archive, key.public, said.text(), said.signed(key))


def _gathered(
    link: Link, spec: m.RunSpec, wanted: Any, wait: float | None, tell: Callable[[RunEvent], None]
) -> tuple[tuple[ClientId, ...], dict[ClientId, tuple[int, str]]]:
    """Wait until enough clients are ready; gives them in their order."""
    from ..wire import messages as m
    from ..wire.names import client_id
    from .session import Up

    standings: dict[ClientId, tuple[int, str]] = {}
    link.send(m.Message(run_spec=spec))
    began = link.served()
    told: Waiting | None = None
    while True:
        ready = [client for client, (standing, _) in standings.items() if standing == m.STANDING_READY]
        preparing = [client for client, (standing, _) in standings.items() if standing == m.STANDING_PREPARING]
        offline = [client for client, (standing, _) in standings.items() if standing == m.STANDING_OFFLINE]
        refused = {client: why for client, (standing, why) in standings.items() if standing == m.STANDING_REFUSED}
        passed = link.served() - began
        need = wanted if isinstance(wanted, int) else len(wanted) if wanted is not None else 1
        settled = passed >= SETTLING or (not preparing and (not offline or passed >= RETURNING))
        if len(ready) >= need and (wanted is not None or settled):
            return tuple(sorted(ready, key=lambda c: (isinstance(c, str), c))), standings
        if wait is not None and passed >= wait:
            why = "".join(f"; client {client}: {text}" for client, text in list(refused.items())[:3])
            raise SettingError(
                f"{len(ready)} of {need} clients are ready after {passed:.0f} s{why}",
                hint="`umbel nodes ls` shows who is connected.",
            )
        reasons = {str(client): text for client, text in refused.items()}
        now = Waiting(ready=len(ready), wanted=need, refused=reasons, there=sorted(map(str, ready)))
        if now != told:
            told = now
            tell(now)
            link.send(m.Message(log_event=m.LogEvent(run=spec.run, number=0, event=json.dumps(now.record()))))
        left = [limit - passed for limit in (wait, RETURNING, SETTLING) if limit is not None and limit > passed]
        item = link.receive(min(left) if left else None)
        if isinstance(item, Up):
            link.send(m.Message(run_spec=spec))
        elif isinstance(item, m.Message) and item.WhichOneof("body") == "members":
            for member in item.members.members:
                standings[client_id(member.client)] = (member.standing, member.reason)
