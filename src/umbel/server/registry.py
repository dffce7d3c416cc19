"""Who is known to a server: nodes by their keys, operators and runs by their tokens.

A node is known by its key. One that nobody knows joins by a token that is good once and for a while, or waits until an
operator approves it. Every change, and every attempt that is refused, goes into the audit record, without secrets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import Refused, SettingError
from ..store.records import Store
from ..transport.handshake import Identity, origin
from ..trust.audit import PEER
from ..trust.identity import KEY_BYTES, check_node, check_seal, node_id
from ..trust.tokens import Token
from ..wire import messages as m
from ..wire import roles
from ..wire.limits import PENDING
from ..wire.names import RUN_ID
from .audit import ServerAudit
from .claims import ANY, Bounds, Claims
from .tokens import NAME, RELAY, Tokens, check_name

_KEPT = ("id", "name", "key", "status", "joined_at", "epoch", "boot")
PATIENCE = 3600.0
"""A node that waits and has not asked for so many seconds makes room for another."""


@dataclass(frozen=True)
class NodeRecord:
    """A node by its key; `status` is pending, approved, revoked, or restored: something is wrong with its folder or its
    key. One that is a `relay` may fold what others say; `bounds` are what it may call its clients. `epoch` and `boot`
    are the greatest that were seen of it.
    """

    id: str
    name: str
    key: bytes
    status: str
    joined_at: float | None = None
    seen_at: float | None = None
    clients: tuple[str, ...] = ()
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    relay: bool = False
    bounds: Bounds = ANY
    epoch: int = 0
    boot: str = ""


class Registry:
    """The nodes of one server, and who is let in; `tokens` are those that it gave, `claims` says whose client names
    are, `audit` is its record of who did what. `clock` gives the wall time in seconds. `held` is called with the id of
    a node that has become `restored`.

    What changes is queued in the store: it is to be committed before anybody is told of it. Methods raise
    `SettingError` for what cannot be; `who` is whoever does it, for the audit record.
    """

    def __init__(
        self, store: Store, clock: Callable[[], float], *, pending: int = PENDING, folder: Path | None = None
    ) -> None:
        self._store, self._clock, self._most_pending = store, clock, pending
        self.audit = ServerAudit(store, clock, folder)
        self.tokens = Tokens(store, clock, self.audit)
        self.claims = Claims(store, self.audit)
        self._nodes = {row["id"]: _node(row) for row in store.rows("nodes")}
        self._driven: dict[str, str] = {}
        self._origins: dict[str, str] = {}
        self.held: Callable[[str], None] = lambda node: None

    # Nodes

    def nodes(self) -> Iterator[NodeRecord]:
        """All nodes, by name; when they were seen and what they host is as the store has it when it comes to them."""
        for node in sorted(self._nodes.values(), key=lambda node: node.name):
            row = next(iter(self._store.rows("nodes", id=node.id)), {})
            seen = max(row.get("seen_at") or 0.0, node.seen_at or 0.0) or None
            clients = row.get("clients")
            yield replace(node, seen_at=seen, clients=node.clients if clients is None else tuple(clients))

    @property
    def approved(self) -> int:
        """How many nodes are approved."""
        return sum(node.status == "approved" for node in self._nodes.values())

    def node(self, reference: str) -> NodeRecord:
        """The node with this id, or the only one with this name or beginning of its id (four characters or more)."""
        if reference in self._nodes:
            return self._nodes[reference]
        part = reference if len(reference) >= 4 else "?"
        found = [node for node in self._nodes.values() if node.name == reference or node.id.startswith(part)]
        if len(found) != 1:
            what = "there are several nodes" if found else "there is no node"
            raise SettingError(f"{what} {reference!r:.80}", hint="`umbel nodes ls` lists them.")
        return found[0]

    def invite(
        self, who: str, name: str | None = None, ttl: float = 86400.0, *, relay: bool = False, bounds: Bounds = ANY
    ) -> Token:
        """A token that lets one node join within `ttl` seconds, under `name` if that is given, or one `relay`; with
        clients within these `bounds`.
        """
        if name is not None:
            self._check_name(name)
        return self.tokens.invite(who, name, ttl, relay=relay, bounds=bounds)

    def approve(
        self, who: str, reference: str, *, relay: bool = False, restored: bool = False, bounds: Bounds = ANY
    ) -> NodeRecord:
        """Let a node take part, whether it waits or was revoked; as a `relay`, or with clients within `bounds`, where
        that is said. One that waits is named by its whole id: its name is what it likes to be called, and a part of an
        id is soon found. For one that is held as `restored` that has to be said: what it says of itself next is
        believed.
        """
        if reference != (node := self.node(reference)).id and node.status == "pending":
            raise SettingError(
                f"{reference!r:.80} is not enough to approve a node by that waits",
                hint="Name it by its whole id, as it shows it itself on its own machine.",
            )
        if node.status == "restored":
            if not restored:
                raise SettingError(
                    f"node {node.name} is held: its folder was restored or copied, or its key is stolen",
                    hint=f"Find out which. If its key is safe: umbel nodes approve {node.name} --restored",
                )
            self.audit.record(who, "nodes.believe", node=node.id, name=node.name)
            self._keep(replace(node, epoch=0, boot=""))
        if bounds:
            self.claims.bound(node.id, bounds)
        node = self._judged(who, reference, "approve", "approved")
        if bounds and bounds != node.bounds:
            self.audit.record(who, "nodes.bound", node=node.id, name=node.name, **bounds.row() or {})
            node = self._keep(replace(node, bounds=bounds))
        if relay and not node.relay:
            self.audit.record(who, "nodes.relay", node=node.id, name=node.name)
            node = self._keep(replace(node, relay=True))
        return node

    def revoke(self, who: str, reference: str) -> NodeRecord:
        """Let a node take part no more, and be no relay; whoever calls ends its connection."""
        return self._keep(replace(self._judged(who, reference, "revoke", "revoked"), relay=False))

    def release(self, who: str, clients: Iterable[str]) -> None:
        """Client names are nobody's any more; whoever calls has them leave the nodes that host them."""
        for client in clients:
            node = self.claims.release(client)
            self.audit.record(who, "clients.release", client=client, node=node)

    def rename(self, who: str, reference: str, name: str) -> NodeRecord:
        """Call a node otherwise."""
        node = self.node(reference)
        if name != node.name:
            self._check_name(name)
            self.audit.record(who, "nodes.rename", node=node.id, before=node.name, name=name)
            node = self._keep(replace(node, name=name))
        return node

    def admits(self, identity: Identity) -> bool:
        """Whether who was let in would be let in still: a node that is approved, a token that is known."""
        if identity.role == m.ROLE_CHECK:
            return True
        if identity.role != m.ROLE_NODE:
            return self.tokens.row(identity.hello.token) is not None
        node = self._nodes.get(identity.id)
        return node is not None and node.status == "approved"

    # The handshake

    def verify(self, hello: m.Hello, challenge: m.Challenge, transcript: bytes, proof: m.Proof) -> Identity:
        """Who has connected. Raises `Refused`.

        What this changes, as a token that is used up, is to be committed before the peer is welcomed.
        """
        if hello.role in (m.ROLE_NODE, m.ROLE_CHECK):
            verify = self._verify_node if hello.role == m.ROLE_NODE else self._check_node
            return verify(hello, *self._by_key(hello, transcript, proof), transcript, proof)
        if hello.role == m.ROLE_OPERATOR:
            row = self.tokens.verified(hello, "operator", transcript, proof)
            self.tokens.used(row, self._clock())
            return Identity(role=hello.role, id=row["id"], name=row["name"], hello=hello)
        if hello.role == m.ROLE_RUN:
            return self._verify_run(hello, transcript, proof)
        text = "a hello says whether it is a node's, a run's or an operator's"
        raise self.audit.refusal(hello, m.CODE_MALFORMED, text)

    def _verify_run(self, hello: m.Hello, transcript: bytes, proof: m.Proof) -> Identity:
        """A run by its own token, or by that of an operator whose program drives it."""
        known = self.tokens.row(hello.token)
        if known is None or known["kind"] != "operator":
            row = self.tokens.verified(hello, "run", transcript, proof)
            return Identity(role=hello.role, id=row["run"], name=row["run"], hello=hello)
        row = self.tokens.verified(hello, "operator", transcript, proof)
        run, name = hello.name, str(row["name"])
        if not RUN_ID.fullmatch(run):
            raise self.audit.refusal(hello, m.CODE_MALFORMED, f"{run!r:.80} cannot be a run's id")
        if not roles.at_least(row["role"], "run"):
            text = f"{name} has the role {row['role']}, which starts no runs"
            raise self.audit.refusal(hello, m.CODE_NOT_ALLOWED, text)
        for found in self._store.rows("runs", id=run):
            if found["owner"] != name or found["submission"] is not None:
                raise self.audit.refusal(hello, m.CODE_NOT_ALLOWED, f"run {run} is not {name}'s to drive")
        if self._driven.setdefault(run, name) != name:  # of another, and not in the store yet
            raise self.audit.refusal(hello, m.CODE_NOT_ALLOWED, f"run {run} is not {name}'s to drive")
        self.tokens.used(row, self._clock())
        self.audit.record(name, "runs.drive", run=run)
        return Identity(role=hello.role, id=run, name=name, hello=hello)

    def _by_key(self, hello: m.Hello, transcript: bytes, proof: m.Proof) -> tuple[str, NodeRecord | None]:
        """The id of who has this key, and what is known of it. Raises `Refused` for a wrong proof, and if revoked."""
        key = bytes(hello.key)
        if len(key) != KEY_BYTES or not check_node(key, transcript, proof.signature):
            raise self.audit.refusal(hello, m.CODE_UNAUTHENTICATED, "the node's signature is wrong")
        id = node_id(key)
        node = self._nodes.get(id)
        if node is not None and node.status == "revoked":
            raise self.audit.refusal(hello, m.CODE_REVOKED, f"node {node.name} is revoked", node=id)
        return id, node

    def _check_node(
        self, hello: m.Hello, id: str, node: NodeRecord | None, transcript: bytes, proof: m.Proof
    ) -> Identity:
        """What would come of a node that connects so, in words as its name; nothing is changed."""
        if node is not None and node.status == "restored":
            text = f"node {node.name} is held: its folder was restored or copied, or its key is used twice"
            raise self.audit.refusal(hello, m.CODE_NOT_ALLOWED, text, node=id)
        if node is not None and node.status == "approved":
            told = f"known here as {node.name}"
        elif not hello.token:
            text = "without a token the node would wait for approval: `umbel nodes approve` on the server"
            raise self.audit.refusal(hello, m.CODE_NOT_APPROVED, text, retry=True, node=id)
        else:
            row = self.tokens.verified(hello, "join", transcript, proof)
            if row["name"] and self._is_taken(row["name"], id):
                raise self.audit.refusal(hello, m.CODE_NOT_ALLOWED, _taken(row["name"]), node=id)
            told = f"the token is good, and it would join as {row['name'] or self._free_name(hello.name, id)}"
        return Identity(role=hello.role, id=id, name=told, hello=hello)

    def _verify_node(
        self, hello: m.Hello, id: str, node: NodeRecord | None, transcript: bytes, proof: m.Proof
    ) -> Identity:
        if node is None or node.status == "pending":
            if not hello.token:
                raise self._waits(hello, id, node)
            node = self._joined(hello, id, self.tokens.verified(hello, "join", transcript, proof))
        else:
            node = self._renamed(hello, node, transcript, proof)
        node = self._newest(hello, node)
        if hello.capabilities.partials and not node.relay:
            text = f"node {node.name} is no relay here: `umbel nodes approve {node.name} --relay` makes it one"
            raise self.audit.refusal(hello, m.CODE_NOT_APPROVED, text, retry=True, node=id)
        if node.capabilities != (brings := _capabilities(hello)):
            node = self._keep(replace(node, capabilities=brings))
        return Identity(role=hello.role, id=id, name=node.name, hello=hello, relay=hello.capabilities.partials)

    def _newest(self, hello: m.Hello, node: NodeRecord) -> NodeRecord:
        """A node that is as new as what was seen of it. Its folder counts up each time it connects: another process
        that says no greater number has an older folder or a copy of it, or the key alone.
        """
        if node.status != "restored":
            if hello.boot == node.boot or node.epoch < hello.epoch < 2**63:
                late = hello.epoch < node.epoch  # an attempt of the same process that was overtaken
                return node if late else self._keep(replace(node, epoch=hello.epoch, boot=hello.boot[:64]))
            self.audit.record(f"node:{node.id}", "nodes.restored", name=node.name, said=hello.epoch, seen=node.epoch)
            node = self._keep(replace(node, status="restored"))
            self.held(node.id)
        text = (
            f"node {node.name} is held: its folder says {hello.epoch}, and {node.epoch} was seen of it, so that it was "
            "restored from a copy, or is used twice, or its key is stolen: see `umbel nodes approve --restored`"
        )
        raise self.audit.refusal(hello, m.CODE_NOT_APPROVED, text, retry=True, node=node.id)

    def _joined(self, hello: m.Hello, id: str, row: dict[str, Any]) -> NodeRecord:
        if row["name"] and self._is_taken(row["name"], id):
            raise self.audit.refusal(hello, m.CODE_NOT_ALLOWED, _taken(row["name"]), node=id)
        relay = row["role"] == RELAY
        if hello.capabilities.partials and not relay:
            text = "this invitation is for a node, not for a relay: `umbel nodes invite --relay` makes one"
            raise self.audit.refusal(hello, m.CODE_NOT_ALLOWED, text, node=id)
        now, bounds = self._clock(), Bounds.of(row["bounds"])
        try:
            self.claims.bound(id, bounds)
        except SettingError as error:
            raise self.audit.refusal(hello, m.CODE_NOT_ALLOWED, error.message, node=id) from None
        self.tokens.used(row, now)
        name = row["name"] or self._free_name(hello.name, id)
        self.audit.record(f"node:{id}", "nodes.join", name=name, token=row["id"], **({"relay": True} if relay else {}))
        return self._keep(replace(_arrived(hello, id, name, "approved", now), relay=relay, bounds=bounds))

    def _renamed(self, hello: m.Hello, node: NodeRecord, transcript: bytes, proof: m.Proof) -> NodeRecord:
        """A node that is known, under the name that it is invited by now; the welcome tells it."""
        row = self.tokens.row(hello.token)
        if row is None or row["kind"] != "join" or row["used_at"] is not None or row["name"] in ("", node.name):
            return node
        now = self._clock()
        good = check_seal(row["public"], transcript, proof.seal) and now <= (row["expires_at"] or now)
        if not good or self._is_taken(row["name"], node.id):
            return node
        self.tokens.used(row, now)
        self.audit.record(f"node:{node.id}", "nodes.rename", before=node.name, name=row["name"], token=row["id"])
        return self._keep(replace(node, name=row["name"]))

    def _waits(self, hello: m.Hello, id: str, node: NodeRecord | None) -> Refused:
        """A node that nobody has approved: it is kept in mind, if there is room."""
        now = self._clock()
        if node is None:
            pending = [other for other in self._nodes.values() if other.status == "pending"]
            for other in pending:
                if now - (other.seen_at or 0.0) > PATIENCE:
                    self._forget(other)
            pending = [other for other in pending if other.id in self._nodes]
            if len(pending) >= self._most_pending and not self._made_room(pending):
                text = "too many nodes wait for approval; join with a token"
                return self.audit.refusal(hello, m.CODE_BUSY, text, retry=True, node=id)
            node = _arrived(hello, id, self._free_name(hello.name, id), "pending", now)
            self.audit.limited(f"node:{id}", "nodes.wait", name=node.name)
        self._origins[id] = origin(PEER.get())
        self._keep(replace(node, seen_at=now))
        text = f"node {node.name} waits for approval: `umbel nodes approve {id}` on the server"
        return Refused(text, m.CODE_NOT_APPROVED, retry=True)

    def _made_room(self, pending: list[NodeRecord]) -> bool:
        """Whether of the address from which the most wait, the one that was seen least lately made room for another."""
        waiting: dict[str, list[NodeRecord]] = {}
        for node in pending:
            waiting.setdefault(self._origins.get(node.id, ""), []).append(node)
        crowd = max(waiting.values(), key=len)
        if len(waiting.get(origin(PEER.get()), ())) + 1 >= len(crowd):
            return False
        self._forget(min(crowd, key=lambda node: node.seen_at or 0.0))
        return True

    # What is kept

    def _forget(self, node: NodeRecord) -> None:
        del self._nodes[node.id]
        self._origins.pop(node.id, None)
        self._store.delete("nodes", id=node.id)

    def _judged(self, who: str, reference: str, did: str, status: str) -> NodeRecord:
        node = self.node(reference)
        if node.status == status:
            return node
        self.audit.record(who, f"nodes.{did}", node=node.id, name=node.name)
        joined = node.joined_at if node.joined_at is not None or status != "approved" else self._clock()
        return self._keep(replace(node, status=status, joined_at=joined))

    def _keep(self, node: NodeRecord) -> NodeRecord:
        before = self._nodes.get(node.id)
        self._nodes[node.id] = node
        row: dict[str, Any] = {key: getattr(node, key) for key in _KEPT}
        row.update(capabilities=dict(node.capabilities), relay=int(node.relay), bounds=node.bounds.row())
        if before is None or node.status == "pending":  # later the router says what it hosts and when it was seen
            row.update(seen_at=node.seen_at, clients=list(node.clients))
        self._store.put("nodes", row)
        return node

    def _check_name(self, name: str) -> None:
        check_name(name, "a node")
        if any(node.name == name for node in self._nodes.values()):
            raise SettingError(f"there is a node {name} already", hint="`umbel nodes ls` lists them.")

    def _free_name(self, wanted: str, id: str) -> str:
        """The name that a node wants; with some of its id where another has that, or where it is no name."""
        name = wanted if NAME.fullmatch(wanted) else f"node-{id[:8]}"
        return f"{name[:55]}-{id[:8]}" if self._is_taken(name, id) else name

    def _is_taken(self, name: str, id: str) -> bool:
        return any(node.name == name and node.id != id for node in self._nodes.values())


def _taken(name: str) -> str:
    return f"there is a node {name} already, which this invitation is for: ask for another one"


def _node(row: Mapping[str, Any]) -> NodeRecord:
    kept = {
        "clients": tuple(row["clients"] or ()),
        "capabilities": row["capabilities"] or {},
        "relay": bool(row["relay"]),
        "bounds": Bounds.of(row["bounds"]),
        "epoch": row["epoch"] or 0,
        "boot": row["boot"] or "",
    }
    return NodeRecord(**{**row, **kept})


def _capabilities(hello: m.Hello) -> dict[str, Any]:
    brings = hello.capabilities
    return {
        "software": hello.software[:100],
        "kinds": list(brings.kinds),
        "transforms": [[step.name, step.version] for step in brings.transforms],
        "dtypes": list(brings.dtypes),
        "archives": brings.archives,
        "partials": brings.partials,
    }


def _arrived(hello: m.Hello, id: str, name: str, status: str, now: float) -> NodeRecord:
    if status == "pending":  # whoever asks decides nothing about how much is kept
        return NodeRecord(id, name, bytes(hello.key), status, None, now)
    return NodeRecord(id, name, bytes(hello.key), status, now, now, tuple(hello.clients), _capabilities(hello))
