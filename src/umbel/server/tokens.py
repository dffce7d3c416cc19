"""The tokens of a server: those that let a node join once, those of operators, those of runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..errors import SettingError
from ..store.records import Store
from ..transport.handshake import Identity
from ..trust.identity import SigningKey, check_seal
from ..trust.tokens import Token
from ..wire import messages as m
from ..wire import roles
from .audit import ServerAudit
from .claims import ANY, Bounds

KEPT = 7 * 86400.0
"""For so many seconds a join token that is over is known still, to say why it is not good."""
RELAY = "relay"
"""The role of whoever joins by an invitation for a relay."""
NAME = re.compile(r"(?![0-9a-f]{32}$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What a node or an operator may be called: nothing that looks like the id of a node."""


class Tokens:
    """The tokens of one server, of which it keeps the public keys, and the operators that hold some; `clock` gives the
    wall time in seconds.

    What changes is queued in the store, and noted in the audit record. Methods raise `SettingError` for what cannot be;
    `who` is whoever does it.
    """

    def __init__(self, store: Store, clock: Callable[[], float], audit: ServerAudit) -> None:
        self._store, self._clock, self._audit = store, clock, audit
        self._rows = {row["id"]: row for row in store.rows("tokens")}
        self._nothing = SigningKey.new().public

    def invite(self, who: str, name: str | None, ttl: float, *, relay: bool = False, bounds: Bounds = ANY) -> Token:
        """A token that lets one node join within `ttl` seconds, under `name` if that is given, or one `relay`; with
        clients within these `bounds`.
        """
        if not 0 < ttl <= 365 * 86400:
            raise SettingError(f"an invitation is good for up to a year, not {ttl!r} seconds")
        now = self._clock()
        for row in list(self._rows.values()):
            if row["kind"] == "join" and now > (row["expires_at"] or 0.0) + KEPT:
                self._drop(row["id"])
        until = self._clock() + ttl
        token = self._issue("join", name=name or "", role=RELAY if relay else "", expires_at=until, bounds=bounds.row())
        told = {**({"relay": True} if relay else {}), **(bounds.row() or {})}
        self._audit.record(who, "nodes.invite", token=token.id, name=name, until=until, **told)
        return token

    def grant(self, who: str, name: str, role: str) -> Token:
        """A token for a new operator. One called so already is an error."""
        if role not in roles.OPERATORS:
            raise SettingError(f"there is no role {role!r:.40}", hint=f"Roles: {', '.join(roles.OPERATORS)}.")
        check_name(name, "an operator")
        if any(row["name"] == name for row in self.operators()):
            raise SettingError(f"there is an operator {name} already", hint="Remove that one, or take another name.")
        token = self._issue("operator", name=name, role=role)
        self._audit.record(who, "operators.add", operator=name, role=role, token=token.id)
        return token

    def operators(self) -> list[dict[str, Any]]:
        """All operators, by name: ``{"name", "role", "token", "used_at"}``; the token's id is no secret."""
        rows = [row for row in self._rows.values() if row["kind"] == "operator"]
        rows.sort(key=lambda row: str(row["name"]))
        return [{"token": row["id"], **{key: row[key] for key in ("name", "role", "used_at")}} for row in rows]

    def remove_operator(self, who: str, name: str) -> str:
        """Make an operator's token worthless, and return its id; whoever calls ends its connections."""
        for row in self.operators():
            if row["name"] == name:
                self._drop(row["token"])
                self._audit.record(who, "operators.remove", operator=name)
                return str(row["token"])
        raise SettingError(f"there is no operator {name!r:.80}", hint="`umbel operators ls` lists them.")

    def holds(self, token: Token, role: str) -> bool:
        """Whether a token is that of an operator with this role."""
        row = self._rows.get(token.id)
        return row is not None and (row["kind"], row["role"], row["public"]) == ("operator", role, token.key.public)

    def role(self, identity: Identity) -> str:
        """The role of an operator who is connected; empty for none."""
        row = self._rows.get(identity.id)
        return str(row["role"]) if row is not None and row["kind"] == "operator" else ""

    def issue_run(self, who: str, run: str) -> Token:
        """The token of a run, and of nothing else; one that it had before is good no more."""
        self._forget_run(run)
        token = self._issue("run", run=run)
        self._audit.record(who, "runs.token", run=run, token=token.id)
        return token

    def end_run(self, run: str) -> None:
        """Make a run's token worthless."""
        if self._forget_run(run):
            self._audit.record("server", "runs.end", run=run)

    def row(self, id: str) -> dict[str, Any] | None:
        """What is kept of a token; None for one that is not known."""
        return self._rows.get(id)

    def used(self, row: dict[str, Any], at: float) -> None:
        """A token was used at this time; that is to be committed before its holder is welcomed."""
        self._put({**row, "used_at": at})

    def verified(self, hello: m.Hello, kind: str, transcript: bytes, proof: m.Proof) -> dict[str, Any]:
        """What is kept of the token of this kind that a peer has proved to hold. Raises `Refused`."""
        row = self._rows.get(hello.token)
        if row is not None and row["kind"] != kind:
            row = None
        # What the token is good for is said only to those who hold it; for one that is not known the work is the same.
        held = check_seal(row["public"] if row is not None else self._nothing, transcript, proof.seal)
        if row is None or not held:
            text = "the token is not known here, or its secret is wrong"
            if kind == "operator":
                text += ": an admin makes a new line by `umbel operators add NAME`"
            raise self._audit.refusal(hello, m.CODE_UNAUTHENTICATED, text)
        if kind == "join" and row["used_at"] is not None:
            text = "the token was used already: each lets one node join"
            raise self._audit.refusal(hello, m.CODE_REVOKED, text)
        if row["expires_at"] is not None and self._clock() > row["expires_at"]:
            raise self._audit.refusal(hello, m.CODE_REVOKED, "the token has expired")
        return row

    def _issue(self, kind: str, **columns: Any) -> Token:
        token = Token.new()
        blank = {"role": "", "name": "", "run": "", "expires_at": None, "used_at": None, "bounds": None}
        self._put({"id": token.id, "kind": kind, "public": token.key.public, **blank, **columns})
        return token

    def _put(self, row: dict[str, Any]) -> None:
        self._rows[row["id"]] = row
        self._store.put("tokens", row)

    def _drop(self, id: str) -> None:
        del self._rows[id]
        self._store.delete("tokens", id=id)

    def _forget_run(self, run: str) -> bool:
        old = [row["id"] for row in self._rows.values() if row["kind"] == "run" and row["run"] == run]
        for id in old:
            self._drop(id)
        return bool(old)


def check_name(name: str, whose: str) -> None:
    """Raise `SettingError` for what nobody can be called."""
    if not NAME.fullmatch(name):
        raise SettingError(
            f"{name!r:.80} cannot be the name of {whose}",
            hint="Use up to 64 letters, digits, dots, dashes and underscores; the first a letter or digit; not an id.",
        )
