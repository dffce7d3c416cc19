"""A record of who did what, chained: each row holds the seal of the one before, and its own, made with a key.

Who has the database and not the key cannot change, add, reorder or remove rows unnoticed, nor, as long as the last seal
is kept beside the key, cut off the last ones. Who has the key, too, can write any history; that shows only to those who
have kept a `head` elsewhere: it names the last row of its time, which has to be there still.
"""

from __future__ import annotations

import hmac
import json
import os
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from secrets import token_bytes
from typing import Any

from ..errors import CorruptFile, SettingError
from ..store.records import Row, Store
from . import keyfile

PEER: ContextVar[str] = ContextVar("PEER", default="")
"""From where whoever is served just now has connected; each task has its own."""
START = b""
"""What stands for the seal before the first row."""
KEY, HEAD = "audit.key", "audit.head"
OWN = "server"
"""Who does what nobody asked for."""
LIMIT = 60
"""So many records of one kind that anybody can cause are made in a minute; of further ones only their number."""
KEPT = 10_000
"""So many of each such kind stay."""
PRUNED = 1_000
"""So many are removed at once."""
COLUMNS = ("number", "at", "who", "did", "what", "peer")


def sealed(key: bytes, row: Mapping[str, Any]) -> bytes:
    """The seal of a row: a keyed hash of its canonical bytes, which are JSON, and of the seal before it."""
    values = [row["number"], float(row["at"]), *(row[name] for name in COLUMNS[2:])]
    text = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    return hmac.digest(key, len(row["before"]).to_bytes(1, "big") + row["before"] + text, "sha256")


@dataclass(frozen=True)
class Head:
    """The last row of an audit at some time, written ``NUMBER:SEAL``."""

    number: int = 0
    seal: bytes = START

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read ``NUMBER:SEAL``. Raises `SettingError`."""
        number, _, seal = text.strip().partition(":")
        with suppress(ValueError):
            if len(bytes.fromhex(seal)) == 32:
                return cls(int(number), bytes.fromhex(seal))
        raise SettingError(f"{text!r:.80} is no head of an audit", hint="It is written NUMBER:SEAL, as verify says it.")

    def __str__(self) -> str:
        return f"{self.number}:{self.seal.hex()}"


class Audit:
    """The audit of a server or a node, queued in a `store` with a table `audit`; `clock` gives the wall time.

    `key` seals its rows; `passing` are the kinds of record that anybody can cause, of which only the last stay; `head`
    is the file that names the last row on disk. Nothing in a record may be secret.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float],
        *,
        key: bytes = b"",
        passing: Iterable[str] = (),
        head: Path | None = None,
    ) -> None:
        self._store, self._clock, self._key, self._file = store, clock, key, head
        number = store.greatest("audit")
        if number and head is not None and not head.exists():
            self._adopt()
        last = store.rows("audit", above=number - 1)
        self._head = Head(number, last[0]["seal"] or START) if last else Head()
        self._unsettled: deque[Head] = deque()
        self._minute, self._counts = -1, Counter[str]()
        rows = {did: store.rows("audit", did=did) for did in passing}
        self._passing = {
            did: deque((row["number"], row["before"] or START, row["seal"] or START) for row in found)
            for did, found in rows.items()
        }

    def record(self, who: str, did: str, /, **what: Any) -> None:
        """Note who did what."""
        told = {key: value for key, value in what.items() if value is not None}
        peer = "" if who == OWN else PEER.get()
        before, number = self._head.seal, self._head.number + 1
        row: Row = {"number": number, "at": self._clock(), "who": who, "did": did, "what": told, "peer": peer}
        seal = sealed(self._key, {**row, "before": before})
        self._store.put("audit", {**row, "before": before, "seal": seal})
        self._head = Head(number, seal)
        self._unsettled.append(self._head)
        if did in self._passing:
            self._passing[did].append((number, before, seal))
            if len(self._passing[did]) >= KEPT + PRUNED:
                self._prune(did)

    def limited(self, who: str, did: str, /, **what: Any) -> None:
        """Note what anybody can cause, unless there was too much of that in this minute: then only how much."""
        minute = int(self._clock() // 60)
        if minute != self._minute:
            left = {kind: count - LIMIT for kind, count in self._counts.items() if count > LIMIT}
            self._minute, self._counts = minute, Counter()
            for kind, count in left.items():
                self.record(OWN, kind, more=count)
        self._counts[did] += 1
        if self._counts[did] <= LIMIT:
            self.record(who, did, **what)

    @property
    def head(self) -> Head:
        """The last record, on disk or not."""
        return self._head

    def of(self, did: str) -> list[Row]:
        """The records of a kind that are on disk."""
        return self._store.rows("audit", did=did)

    def last(self, count: int = 100) -> list[dict[str, Any]]:
        """The last so many records, oldest first."""
        return self.after(max(0, self._head.number - count))

    def after(self, number: int, count: int | None = None) -> list[dict[str, Any]]:
        """Up to so many records after that with a number; seals are hexadecimal."""
        return [shown(row) for row in self._store.rows("audit", above=number, limit=count)]

    def settle(self) -> None:
        """Have the head file name the last row that is on disk by now."""
        if self._file is None or not self._unsettled:
            return
        stored, found = self._store.greatest("audit"), None
        while self._unsettled and self._unsettled[0].number <= stored:
            found = self._unsettled.popleft()
        if found is not None:
            aside = self._file.with_name(f".{self._file.name}")
            with suppress(OSError):  # a full disk: the next one says it
                aside.write_text(f"{found}\n")
                os.replace(aside, self._file)

    def _prune(self, did: str) -> None:
        """Remove the oldest of a kind, and note between which seals there was something."""
        gone: list[list[str]] = []
        for _ in range(PRUNED):
            number, before, seal = self._passing[did].popleft()
            self._store.delete("audit", number=number)
            if gone and gone[-1][1] == before.hex():
                gone[-1][1] = seal.hex()
            else:
                gone.append([before.hex(), seal.hex()])
        self.record(OWN, "audit.pruned", kind=did, count=PRUNED, seals=gone)

    def _adopt(self) -> None:
        """Seal what was written by a release that sealed nothing."""
        before = START
        for row in self._store.rows("audit"):
            row = {**row, "peer": row["peer"] or "", "before": before}
            before = sealed(self._key, row)
            self._store.put("audit", {**row, "seal": before})
        self._store.commit()


def shown(row: Row) -> dict[str, Any]:
    """A record as JSON can hold it."""
    return {**row, **{name: (row[name] or b"").hex() for name in ("before", "seal")}}


def key_of(folder: Path) -> bytes:
    """The key in a folder, made where there is none."""
    return keyfile.kept(folder / KEY, lambda: token_bytes(32))


def verified(key: bytes, rows: Iterable[Row], heads: Iterable[Head] = ()) -> Head:
    """The last row of an audit that is whole and has all of these `heads` in it, or pruned what they name.

    Raises `CorruptFile` that names the first row that does not follow from those before it.
    """
    rows = list(rows)
    jumps = dict(pair for row in rows if row["did"] == "audit.pruned" for pair in _jumps(row))
    last, seals = Head(), {START}
    gaps: list[range] = []
    for row in rows:
        before = last.seal
        while row["before"] != before and before in jumps:
            before = jumps.pop(before)
            gaps.append(range(last.number + 1, row["number"]))
        try:
            good = row["before"] == before and hmac.compare_digest(sealed(key, row), row["seal"])
        except (TypeError, ValueError, KeyError, OverflowError):
            good = False
        if not good or row["number"] <= last.number:
            raise CorruptFile(
                f"the audit was changed: record {row['number']} does not follow from record {last.number} before it",
                hint="Records were changed, added, removed or moved there; compare with an export.",
            )
        last = Head(row["number"], row["seal"])
        seals.add(last.seal)
    for head in heads:
        if head.seal not in seals and not any(head.number in gap for gap in gaps):
            raise CorruptFile(
                f"the audit was changed: record {head.number}, which it had, is not in it; its last is {last.number}",
                hint="It was cut off, or the folder is an older copy.",
            )
    return last


def _jumps(row: Row) -> Iterator[tuple[bytes, bytes]]:
    with suppress(TypeError, ValueError, KeyError):
        for before, seal in row["what"]["seals"]:
            yield bytes.fromhex(before), bytes.fromhex(seal)


def kept_head(folder: Path) -> Head:
    """The head that is kept beside the key. Raises `CorruptFile` where there is none."""
    try:
        return Head.parse((folder / HEAD).read_text("utf-8"))
    except (OSError, ValueError, SettingError) as error:
        raise CorruptFile(f"{folder / HEAD} does not say which record is the last: {error}") from error


def read(folder: Path) -> tuple[bytes, Head, list[Row]]:
    """The key, the head and the rows of the audit in the folder of a server or a node, which may be up meanwhile.

    Raises `SettingError` for another folder and `CorruptFile` where they cannot be read.
    """
    server = (folder / "server.db").exists()
    path, keys = (folder / "server.db", folder / "authority") if server else (folder / "node.db", folder)
    if not path.exists() or not (keys / KEY).exists():
        raise SettingError(f"{folder} is not the folder of a server or a node that keeps an audit")
    key, head = (keys / KEY).read_bytes(), kept_head(keys)  # first: rows that come meanwhile are beyond it
    columns = (*COLUMNS, "before", "seal")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            found = database.execute(f"SELECT {', '.join(columns)} FROM audit ORDER BY number").fetchall()
    except sqlite3.DatabaseError as error:
        raise CorruptFile(f"the audit in {path} cannot be read: {error}") from error
    return key, head, [_decoded(dict(zip(columns, values, strict=True))) for values in found]


def _decoded(row: Row) -> Row:
    with suppress(TypeError, ValueError, RecursionError):  # then its seal is not that of a text either
        row["what"] = json.loads(row["what"])
    return row
