"""What operators ask by: the bodies of their requests, who they are, and what a desk works through to answer them."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..errors import Refused
from ..store.blobs import Blobs
from ..store.records import Row, Store
from ..trust.tokens import Token
from ..wire import messages as m
from .feeds import Feeds
from .registry import Registry
from .signals import Event
from .summaries import Summaries

Body = Mapping[str, Any]
Default = TypeVar("Default", int, None)


class OperatorPeer(Protocol):
    """An operator's connection, which holds blobs by its `id`. `fetch` gets a blob from there into the server's blobs
    and raises `Refused` where it is not to be had; `offer` lets it have a blob, which stays as long as it is connected.
    """

    id: str

    @property
    def name(self) -> str: ...
    @property
    def role(self) -> str: ...
    async def fetch(self, blob: m.Blob) -> None: ...
    def offer(self, blob: m.Blob) -> None: ...


class Offices(Protocol):
    """What a desk works through.

    `commit` returns when all that was put into the store is on disk. `online` tells whether a node is connected,
    `denied` which clients it names in vain, each with the reason, `ails` what it says is its problem, `host` which node
    hosts a client, `standings` each client's standing in a run with its reason. `tell` has the router know what
    happened; `dismissed` ends the connections of an operator, by its token's id. `start` and `stop` do so with a run's
    process, by what the store says of the run; `stop` returns when it has ended. `folder` is where a run keeps its
    files. `invitation` is the line that a node types to join, `line` what an operator is given for a token. `status`
    says how the server is, as plain values. `rotate` makes the authority that will take the place of the server's, and
    `retire` lets it do so; both give its public key.
    """

    @property
    def registry(self) -> Registry: ...
    @property
    def store(self) -> Store: ...
    @property
    def blobs(self) -> Blobs: ...
    @property
    def feeds(self) -> Feeds: ...
    @property
    def summaries(self) -> Summaries: ...
    async def commit(self) -> None: ...
    def online(self, node: str) -> bool: ...
    def denied(self, node: str) -> dict[str, str]: ...
    def ails(self, node: str) -> str: ...
    def host(self, client: str) -> str | None: ...
    def standings(self, run: str) -> dict[str, tuple[int, str]]: ...
    def tell(self, event: Event) -> None: ...
    def dismissed(self, token: str) -> None: ...
    async def start(self, run: str) -> None: ...
    async def stop(self, run: str) -> None: ...
    def folder(self, run: str) -> Path: ...
    def invitation(self, token: Token) -> str: ...
    def line(self, token: Token) -> str: ...
    def status(self) -> dict[str, Any]: ...
    def rotate(self) -> str: ...
    def retire(self) -> str: ...


def text_of(body: Body, key: str) -> str:
    """A text that has to be there."""
    value = body.get(key)
    if not isinstance(value, str) or not value or len(value) > 1000:
        raise Refused(f"the request lacks its {key}", m.CODE_MALFORMED)
    return value


def list_of(body: Body, key: str) -> list[str]:
    """Texts that may be there."""
    found = body.get(key, [])
    if not isinstance(found, list) or not all(isinstance(text, str) and 0 < len(text) <= 1000 for text in found):
        raise Refused(f"{key} is a list of texts", m.CODE_MALFORMED)
    return list(found)


def flag_of(body: Body, key: str) -> bool:
    """Whether something is asked for; not, where nothing is said."""
    value = body.get(key, False)
    if not isinstance(value, bool):
        raise Refused(f"{key} is true or false", m.CODE_MALFORMED)
    return value


def is_whole(value: Any, least: float = -inf) -> bool:
    """Whether a value is a whole number of at least so much."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def count_of(body: Body, key: str, default: Default) -> int | Default:
    """How many of something, at least one; the default where nothing is said."""
    value: int | Default = body.get(key, default)
    if value is not default and not is_whole(value, 1):
        raise Refused(f"{key} is a whole number of at least 1", m.CODE_MALFORMED)
    return value


def runs_by_age(store: Store) -> list[Row]:
    """All runs, the oldest first."""
    return sorted(store.rows("runs"), key=lambda row: (row["created_at"] or 0.0, row["id"]))


def run_of(body: Body, store: Store) -> Row:
    """The run that a request means: `last`, an id, or what one id alone begins with or has in it."""
    reference, rows = text_of(body, "run"), runs_by_age(store)
    if reference == "last" and rows:
        return rows[-1]
    fitting = (
        [row for row in rows if row["id"] == reference]
        or [row for row in rows if row["id"].startswith(reference)]
        or [row for row in rows if reference in row["id"]]
    )
    if not fitting:
        raise Refused(f"there is no run {reference!r:.60}", m.CODE_UNKNOWN)
    if len(fitting) > 1:
        listed = ", ".join(row["id"] for row in fitting[-5:])
        raise Refused(f"{reference} may mean {len(fitting)} runs: {listed}", m.CODE_UNKNOWN)
    return fitting[0]
