"""Who is known to a server: nodes, the tokens that let them join once, operators, runs; and a record of who did what.

A node is known by its key. One that nobody knows joins by a token that is good once and for a while, or waits until an
operator approves it. Every change, and every attempt that is refused, goes into the audit record, without secrets.
"""

from __future__ import annotations

import re
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import Refused, SettingError
from ..store.records import Store
from ..transport.handshake import Identity
from ..trust.identity import KEY_BYTES, check_node, check_seal, node_id
from ..trust.tokens import Token
from ..wire import messages as m
from ..wire import roles

PENDING = 100
"""So many nodes may wait for approval."""
PATIENCE = 3600.0
"""A node that waits and has not asked for so many seconds makes room for another."""
REFUSALS = 60
"""So many refused attempts are recorded in a minute; of further ones only their number."""
KEPT_REFUSALS = 10_000
"""So many records stay of what those did who are not known."""
KEPT = 7 * 86400.0
"""For so many seconds a join token that is over is known still, to say why it is not good."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RUN = re.compile(r"[A-Za-z0-9._-]{1,200}")


@dataclass(frozen=True)
class NodeRecord:
    """A node by its key; `status` is pending, approved or revoked."""

    id: str
    name: str
    key: bytes
    status: str
    joined_at: float | None = None
    seen_at: float | None = None
    clients: tuple[str, ...] = ()
    capabilities: Mapping[str, Any] = field(default_factory=dict)


class Registry:
    """The nodes and tokens of one server; `clock` gives the wall time in seconds.

    What changes is queued in the store: it is to be committed before anybody is told of it. Methods raise
    `SettingError` for what cannot be; `who` is whoever does it, for the audit record.
    """

    def __init__(self, store: Store, clock: Callable[[], float], *, pending: int = PENDING) -> None:
        self._store = store
        self._clock = clock
        self._most_pending = pending
        self._nodes = {row["id"]: _node(row) for row in store.rows("nodes")}
        self._tokens = {row["id"]: row for row in store.rows("tokens")}
        self._records = store.greatest("audit")
        self._nothing = secrets.token_bytes(32)
        self._minute, self._refused = -1, 0
        strange = [row["number"] for did in ("refused", "nodes.wait") for row in store.rows("audit", did=did)]
        self._strangers = deque(sorted(strange))
        self._driven: dict[str, str] = {}

    # Nodes

    def nodes(self) -> list[NodeRecord]:
        """All nodes, by name; when they were seen and what they host is as the store has it."""
        rows = {row["id"]: row for row in self._store.rows("nodes")}
        found = []
        for node in self._nodes.values():
            row = rows.get(node.id, {})
            seen = max(row.get("seen_at") or 0.0, node.seen_at or 0.0) or None
            clients = row.get("clients")
            found.append(replace(node, seen_at=seen, clients=node.clients if clients is None else tuple(clients)))
        return sorted(found, key=lambda node: node.name)

    @property
    def approved(self) -> int:
        """How many nodes are approved."""
        return sum(node.status == "approved" for node in self._nodes.values())

    def node(self, reference: str) -> NodeRecord:
        """The node with this id, name, or beginning of its id (four characters or more)."""
        if reference in self._nodes:
            return self._nodes[reference]
        found = [node for node in self._nodes.values() if node.name == reference]
        if not found and len(reference) >= 4:
            found = [node for node in self._nodes.values() if node.id.startswith(reference)]
        if len(found) != 1:
            what = "there are several nodes" if found else "there is no node"
            raise SettingError(f"{what} {reference!r:.80}", hint="`umbel nodes ls` lists them.")
        return found[0]

    def invite(self, who: str, name: str | None = None, ttl: float = 86400.0) -> Token:
        """A token that lets one node join within `ttl` seconds, under `name` if that is given."""
        if name is not None:
            self._check_name(name)
        if not 0 < ttl <= 365 * 86400:
            raise SettingError(f"an invitation is good for up to a year, not {ttl!r} seconds")
        self._sweep()
        until = self._clock() + ttl
        token = self._issue("join", name=name or "", expires_at=until)
        self.record(who, "nodes.invite", token=token.id, name=name, until=until)
        return token

    def approve(self, who: str, reference: str) -> NodeRecord:
        """Let a node take part, whether it waits or was revoked."""
        return self._judged(who, reference, "approve", "approved")

    def revoke(self, who: str, reference: str) -> NodeRecord:
        """Let a node take part no more; whoever calls ends its connection."""
        return self._judged(who, reference, "revoke", "revoked")

    def rename(self, who: str, reference: str, name: str) -> NodeRecord:
        """Call a node otherwise."""
        node = self.node(reference)
        if name != node.name:
            self._check_name(name)
            self.record(who, "nodes.rename", node=node.id, before=node.name, name=name)
            node = self._keep(replace(node, name=name))
        return node

    # Operators and runs

    def grant(self, who: str, name: str, role: str) -> Token:
        """A token for a new operator. One called so already is an error."""
        if role not in roles.OPERATORS:
            raise SettingError(f"there is no role {role!r:.40}", hint=f"Roles: {', '.join(roles.OPERATORS)}.")
        _check_form(name, "an operator")
        if any(row["name"] == name for row in self.operators()):
            raise SettingError(f"there is an operator {name} already", hint="Remove that one, or take another name.")
        token = self._issue("operator", name=name, role=role)
        self.record(who, "operators.add", operator=name, role=role, token=token.id)
        return token

    def operators(self) -> list[dict[str, Any]]:
        """All operators, by name: ``{"name", "role", "token", "used_at"}``; the token's id is no secret."""
        rows = [row for row in self._tokens.values() if row["kind"] == "operator"]
        rows.sort(key=lambda row: str(row["name"]))
        return [{"token": row["id"], **{key: row[key] for key in ("name", "role", "used_at")}} for row in rows]

    def remove_operator(self, who: str, name: str) -> str:
        """Make an operator's token worthless, and return its id; whoever calls ends its connections."""
        for row in self.operators():
            if row["name"] == name:
                self._drop(row["token"])
                self.record(who, "operators.remove", operator=name)
                return str(row["token"])
        raise SettingError(f"there is no operator {name!r:.80}", hint="`umbel operators ls` lists them.")

    def holds(self, token: Token, role: str) -> bool:
        """Whether a token is that of an operator with this role."""
        row = self._tokens.get(token.id)
        return row is not None and (row["kind"], row["role"], row["digest"]) == ("operator", role, token.digest)

    def may(self, identity: Identity, role: str) -> bool:
        """Whether an operator who is connected may, now, do what takes this role."""
        return roles.at_least(self.role(identity), role)

    def admits(self, identity: Identity) -> bool:
        """Whether who was let in would be let in still: a node that is approved, a token that is known."""
        if identity.role != m.ROLE_NODE:
            return identity.hello.token in self._tokens
        node = self._nodes.get(identity.id)
        return node is not None and node.status == "approved"

    def role(self, identity: Identity) -> str:
        """The role of an operator who is connected; empty for none."""
        row = self._tokens.get(identity.id)
        return str(row["role"]) if row is not None and row["kind"] == "operator" else ""

    def issue_run(self, who: str, run: str) -> Token:
        """The token of a run, and of nothing else; one that it had before is good no more."""
        self._forget_run(run)
        token = self._issue("run", run=run)
        self.record(who, "runs.token", run=run, token=token.id)
        return token

    def end_run(self, run: str) -> None:
        """Make a run's token worthless."""
        if self._forget_run(run):
            self.record("server", "runs.end", run=run)

    # The handshake

    def verify(self, hello: m.Hello, challenge: m.Challenge, transcript: bytes, proof: m.Proof) -> Identity:
        """Who has connected. Raises `Refused`.

        What this changes, as a token that is used up, is to be committed before the peer is welcomed.
        """
        if hello.role == m.ROLE_NODE:
            return self._verify_node(hello, transcript, proof)
        if hello.role == m.ROLE_OPERATOR:
            row = self._verify_token(hello, "operator", transcript, proof)
            self._put_token({**row, "used_at": self._clock()})
            return Identity(role=hello.role, id=row["id"], name=row["name"], hello=hello)
        if hello.role == m.ROLE_RUN:
            return self._verify_run(hello, transcript, proof)
        raise self._refusal(hello, m.CODE_MALFORMED, "a hello says whether it is a node's, a run's or an operator's")

    def _verify_run(self, hello: m.Hello, transcript: bytes, proof: m.Proof) -> Identity:
        """A run by its own token, or by that of an operator whose program drives it."""
        known = self._tokens.get(hello.token)
        if known is None or known["kind"] != "operator":
            row = self._verify_token(hello, "run", transcript, proof)
            return Identity(role=hello.role, id=row["run"], name=row["run"], hello=hello)
        row = self._verify_token(hello, "operator", transcript, proof)
        run, name = hello.name, str(row["name"])
        if not _RUN.fullmatch(run):
            raise self._refusal(hello, m.CODE_MALFORMED, f"{run!r:.80} cannot be a run's id")
        if not roles.at_least(row["role"], "run"):
            raise self._refusal(hello, m.CODE_NOT_ALLOWED, f"{name} has the role {row['role']}, which starts no runs")
        for found in self._store.rows("runs", id=run):
            if found["owner"] != name or found["submission"] is not None:
                raise self._refusal(hello, m.CODE_NOT_ALLOWED, f"run {run} is not {name}'s to drive")
        if self._driven.setdefault(run, name) != name:  # of another, and not in the store yet
            raise self._refusal(hello, m.CODE_NOT_ALLOWED, f"run {run} is not {name}'s to drive")
        self._put_token({**row, "used_at": self._clock()})
        self.record(name, "runs.drive", run=run)
        return Identity(role=hello.role, id=run, name=name, hello=hello)

    def _verify_node(self, hello: m.Hello, transcript: bytes, proof: m.Proof) -> Identity:
        key = bytes(hello.key)
        if len(key) != KEY_BYTES or not check_node(key, transcript, proof.signature):
            raise self._refusal(hello, m.CODE_UNAUTHENTICATED, "the node's signature is wrong")
        id = node_id(key)
        node = self._nodes.get(id)
        if node is not None and node.status == "revoked":
            raise self._refusal(hello, m.CODE_REVOKED, f"node {node.name} is revoked", node=id)
        if node is None or node.status == "pending":
            if not hello.token:
                raise self._waits(hello, id, node)
            node = self._joined(hello, id, self._verify_token(hello, "join", transcript, proof))
        else:
            node = self._renamed(hello, node, transcript, proof)
        if node.capabilities != (brings := _capabilities(hello)):
            node = self._keep(replace(node, capabilities=brings))
        return Identity(role=hello.role, id=id, name=node.name, hello=hello)

    def _joined(self, hello: m.Hello, id: str, row: dict[str, Any]) -> NodeRecord:
        if row["name"] and self._is_taken(row["name"], id):
            text = f"there is a node {row['name']} already, which this invitation is for: ask for another one"
            raise self._refusal(hello, m.CODE_NOT_ALLOWED, text, node=id)
        now = self._clock()
        self._put_token({**row, "used_at": now})
        name = row["name"] or self._free_name(hello.name, id)
        self.record(f"node:{id}", "nodes.join", name=name, token=row["id"])
        return self._keep(_arrived(hello, id, name, "approved", now))

    def _renamed(self, hello: m.Hello, node: NodeRecord, transcript: bytes, proof: m.Proof) -> NodeRecord:
        """A node that is known, under the name that it is invited by now; the welcome tells it."""
        row = self._tokens.get(hello.token)
        if row is None or row["kind"] != "join" or row["used_at"] is not None or row["name"] in ("", node.name):
            return node
        now = self._clock()
        good = check_seal(row["digest"], transcript, proof.seal) and now <= (row["expires_at"] or now)
        if not good or self._is_taken(row["name"], node.id):
            return node
        self._put_token({**row, "used_at": now})
        self.record(f"node:{node.id}", "nodes.rename", before=node.name, name=row["name"], token=row["id"])
        return self._keep(replace(node, name=row["name"]))

    def _waits(self, hello: m.Hello, id: str, node: NodeRecord | None) -> Refused:
        """A node that nobody has approved: it is kept in mind, if there is room."""
        now = self._clock()
        if node is None:
            pending = [other for other in self._nodes.values() if other.status == "pending"]
            for other in pending:
                if now - (other.seen_at or 0.0) > PATIENCE:
                    del self._nodes[other.id]
                    self._store.delete("nodes", id=other.id)
            if sum(other.id in self._nodes for other in pending) >= self._most_pending:
                return self._refusal(
                    hello, m.CODE_BUSY, "too many nodes wait for approval; join with a token", retry=True, node=id
                )
            node = _arrived(hello, id, self._free_name(hello.name, id), "pending", now)
            self.record(f"node:{id}", "nodes.wait", name=node.name)
            self._strange(self._records)
        self._keep(replace(node, seen_at=now))
        text = f"node {node.name} waits for approval: `umbel nodes approve {id[:8]}` on the server"
        return Refused(text, m.CODE_NOT_APPROVED, retry=True)

    def _verify_token(self, hello: m.Hello, kind: str, transcript: bytes, proof: m.Proof) -> dict[str, Any]:
        row = self._tokens.get(hello.token)
        if row is not None and row["kind"] != kind:
            row = None
        # What the token is good for is said only to those who hold it; for one that is not known the work is the same.
        held = check_seal(row["digest"] if row is not None else self._nothing, transcript, proof.seal)
        if row is None or not held:
            raise self._refusal(hello, m.CODE_UNAUTHENTICATED, "the token is not known here, or its secret is wrong")
        if kind == "join" and row["used_at"] is not None:
            raise self._refusal(hello, m.CODE_REVOKED, "the token was used already: each lets one node join")
        if row["expires_at"] is not None and self._clock() > row["expires_at"]:
            raise self._refusal(hello, m.CODE_REVOKED, "the token has expired")
        return row

    # The audit record

    def record(self, who: str, did: str, /, **what: Any) -> None:
        """Note who did what; nothing in it may be secret."""
        self._records += 1
        row = {"number": self._records, "at": self._clock(), "who": who, "did": did}
        self._store.put("audit", {**row, "what": {key: value for key, value in what.items() if value is not None}})

    def audit(self, count: int = 100) -> list[dict[str, Any]]:
        """The last so many records, oldest first."""
        return self._store.rows("audit", above=max(0, self._records - count))

    def _refusal(self, hello: m.Hello, code: int, text: str, *, retry: bool = False, **what: Any) -> Refused:
        minute = int(self._clock() // 60)
        if minute != self._minute:
            left = self._refused - REFUSALS
            self._minute, self._refused = minute, 0
            if left > 0:
                self.record("server", "refused", more=left)
                self._strange(self._records)
        self._refused += 1
        if self._refused <= REFUSALS:
            said = {"role": hello.role, "name": hello.name[:64] or None, "token": hello.token[:64] or None}
            self.record("unknown", "refused", code=int(code), reason=text, **said, **what)
            self._strange(self._records)
        return Refused(text, code, retry=retry)

    def _strange(self, number: int) -> None:
        """A record was made by somebody who is not known: of such the last so many are kept."""
        self._strangers.append(number)
        while len(self._strangers) > KEPT_REFUSALS:
            self._store.delete("audit", number=self._strangers.popleft())

    # What is kept

    def _judged(self, who: str, reference: str, did: str, status: str) -> NodeRecord:
        node = self.node(reference)
        if node.status == status:
            return node
        self.record(who, f"nodes.{did}", node=node.id, name=node.name)
        joined = node.joined_at if node.joined_at is not None or status != "approved" else self._clock()
        return self._keep(replace(node, status=status, joined_at=joined))

    def _keep(self, node: NodeRecord) -> NodeRecord:
        before = self._nodes.get(node.id)
        self._nodes[node.id] = node
        row: dict[str, Any] = {key: getattr(node, key) for key in ("id", "name", "key", "status", "joined_at")}
        row["capabilities"] = dict(node.capabilities)
        if before is None or node.status == "pending":  # later the router says what it hosts and when it was seen
            row.update(seen_at=node.seen_at, clients=list(node.clients))
        self._store.put("nodes", row)
        return node

    def _issue(self, kind: str, **columns: Any) -> Token:
        token = Token.new()
        blank = {"role": "", "name": "", "run": "", "expires_at": None, "used_at": None}
        self._put_token({"id": token.id, "kind": kind, "digest": token.digest, **blank, **columns})
        return token

    def _put_token(self, row: dict[str, Any]) -> None:
        self._tokens[row["id"]] = row
        self._store.put("tokens", row)

    def _drop(self, id: str) -> None:
        del self._tokens[id]
        self._store.delete("tokens", id=id)

    def _forget_run(self, run: str) -> bool:
        old = [row["id"] for row in self._tokens.values() if row["kind"] == "run" and row["run"] == run]
        for id in old:
            self._drop(id)
        return bool(old)

    def _sweep(self) -> None:
        now = self._clock()
        for row in list(self._tokens.values()):
            if row["kind"] == "join" and now > (row["expires_at"] or 0.0) + KEPT:
                self._drop(row["id"])

    def _check_name(self, name: str) -> None:
        _check_form(name, "a node")
        if any(node.name == name for node in self._nodes.values()):
            raise SettingError(f"there is a node {name} already", hint="`umbel nodes ls` lists them.")

    def _free_name(self, wanted: str, id: str) -> str:
        """The name that a node wants; with some of its id where another has that, or where it is no name."""
        name = wanted if _NAME.fullmatch(wanted) else f"node-{id[:8]}"
        return f"{name[:55]}-{id[:8]}" if self._is_taken(name, id) else name

    def _is_taken(self, name: str, id: str) -> bool:
        return any(node.name == name and node.id != id for node in self._nodes.values())


def _check_form(name: str, whose: str) -> None:
    if not _NAME.fullmatch(name):
        raise SettingError(
            f"{name!r:.80} cannot be the name of {whose}",
            hint="Use up to 64 letters, digits, dots, dashes and underscores; the first a letter or digit.",
        )


def _node(row: Mapping[str, Any]) -> NodeRecord:
    return NodeRecord(
        id=row["id"],
        name=row["name"],
        key=row["key"],
        status=row["status"],
        joined_at=row["joined_at"],
        seen_at=row["seen_at"],
        clients=tuple(row["clients"] or ()),
        capabilities=row["capabilities"] or {},
    )


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
