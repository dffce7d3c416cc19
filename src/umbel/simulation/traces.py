"""Traces: the devices of a CSV file, one a line."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..core.randomness import Key
from ..errors import ClientId, DataError, SettingError
from .devices import DAY, RULES, Device, uniform


class Lines:
    """The devices of a trace: some tied to clients, the others dealt by hash."""

    def __init__(self, name: str, tied: Mapping[str, Device], dealt: Sequence[Device], digest: str) -> None:
        self._name = name
        self._tied = dict(tied)
        self._dealt = tuple(dealt)
        self._digest = digest

    def __repr__(self) -> str:
        return f".trace({self._name!r}"

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Lines:
        """Read a CSV file, as `Fleet.trace` describes it."""
        try:
            with open(path, "rb") as file:
                raw = file.read()
            rows = csv.reader(io.StringIO(raw.decode("utf-8-sig"), newline=""), strict=True)
            columns = _columns(path, next(rows, []))
            tied: dict[str, Device] = {}
            dealt: list[Device] = []
            for row in rows:
                if not row:
                    continue
                where = f"{os.fspath(path)}, line {rows.line_num}"
                if len(row) != len(columns):
                    raise DataError(f"{where}: there are {len(row)} values for {len(columns)} columns: {row!r:.60}")
                cells = dict(zip(columns, map(str.strip, row), strict=True))
                client = cells.pop("client", "")
                if client in tied:
                    raise DataError(f"{where}, column client: client {client!r:.60} has a line already")
                device = Device(**{name: _cell(where, name, text) for name, text in cells.items() if text})
                if client:
                    tied[client] = device
                else:
                    dealt.append(device)
        except OSError as error:
            raise DataError(f"the trace {os.fspath(path)} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"the trace {os.fspath(path)} is not text in UTF-8 (byte {error.start})") from error
        except csv.Error as error:
            raise DataError(f"{os.fspath(path)}, line {rows.line_num}: this is no CSV: {error}") from error
        if not tied and not dealt:
            raise DataError(f"the trace {os.fspath(path)} has no device: below its first line, a line for each")
        return cls(os.path.basename(path), tied, dealt, hashlib.sha256(raw).hexdigest())

    def device(self, client: ClientId, key: Key) -> Device:
        """The client's own line, or the one that it is dealt under a fleet's key."""
        own = self._tied.get(str(client))
        if own is not None:
            return own
        if not self._dealt:
            raise SettingError(
                f"the trace {self._name} has no device for client {client!r}, and no line without a client to deal",
                hint="Add a line for it, or lines whose client is empty, which go to all other clients.",
            )
        word = key.derive("device", client).integer(64)
        return self._dealt[int(uniform(word) * len(self._dealt))]

    def hours(self, client: ClientId, key: Key) -> tuple[float, float]:
        """The `opens` and the `lasts` of that device."""
        device = self.device(client, key)
        return device.opens, device.lasts

    def always_online(self) -> bool:
        """Whether every line's device is always available."""
        return all(device.lasts >= DAY for device in (*self._tied.values(), *self._dealt))

    def spec(self) -> dict[str, Any]:
        """The file's name, digest and number of devices, as a plain dict."""
        return {"trace": self._name, "sha256": self._digest, "devices": len(self._tied) + len(self._dealt)}


def _columns(path: str | os.PathLike[str], header: Sequence[str]) -> list[str]:
    known = [field.name for field in fields(Device)]
    columns = [name.strip() for name in header]
    for place, name in enumerate(columns):
        if name not in (*known, "client"):
            raise DataError(
                f"{os.fspath(path)}, line 1: there is no column {name!r:.60}; "
                f"a trace's columns are client, {', '.join(known)}"
            )
        if name in columns[:place]:
            raise DataError(f"{os.fspath(path)}, line 1: column {name} is there twice")
    if not columns:
        raise DataError(f"the trace {os.fspath(path)} is empty; its first line names the columns: {', '.join(known)}")
    return columns


def _cell(where: str, name: str, text: str) -> Any:
    if name == "kind":
        return text
    words, holds = RULES[name]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not holds(value):
        raise DataError(f"{where}, column {name}: this is {words}, not {text!r:.60}")
    return value
