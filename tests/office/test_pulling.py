from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

import pytest

from umbel.errors import ConnectionLost, ProtocolError
from umbel.office.operator import Operator
from umbel.office.pulling import ATTEMPTS, pull
from umbel.wire import messages as m


class Office:
    """A server with the files of one run; so many of its next downloads are cut."""

    def __init__(self, files: dict[str, bytes], cuts: int = 0, run: str = "r-1") -> None:
        self.files = files
        self.cuts = cuts
        self.run = run
        self.calls = 0
        self.downloaded: list[str] = []

    def call(self, method: str, **body: Any) -> dict[str, Any]:
        assert (method, body) == ("runs.pull", {"run": "last"})
        self.calls += 1
        return {
            "run": self.run,
            "files": [
                {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                for name, data in self.files.items()
            ],
        }

    def download(self, blob: m.Blob, path: Path) -> None:
        if self.cuts:
            self.cuts -= 1
            raise ConnectionLost("cut")
        (data,) = [data for data in self.files.values() if hashlib.sha256(data).digest() == blob.sha256]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.downloaded.append(path.name)

    @property
    def operator(self) -> Operator:
        return cast(Operator, self)


FILES = {"events.jsonl": b"log", "checkpoints/round-0001.safetensors": b"model"}


def test_files_are_fetched_and_then_only_what_changed(tmp_path: Path) -> None:
    office = Office(dict(FILES))
    assert pull(office.operator, "last", tmp_path) == (tmp_path / "r-1", 2)
    assert (tmp_path / "r-1" / "checkpoints" / "round-0001.safetensors").read_bytes() == b"model"
    office.files["events.jsonl"] = b"longer log"
    assert pull(office.operator, "last", tmp_path) == (tmp_path / "r-1", 1)
    assert (tmp_path / "r-1" / "events.jsonl").read_bytes() == b"longer log"


def test_a_lost_connection_is_made_anew_and_the_files_offered_again(tmp_path: Path) -> None:
    office = Office(dict(FILES), cuts=ATTEMPTS - 1)
    assert pull(office.operator, "last", tmp_path)[1] == 2
    assert office.calls == ATTEMPTS
    with pytest.raises(ConnectionLost):
        pull(Office({"a": b"x"}, cuts=ATTEMPTS).operator, "last", tmp_path)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", "c:x", "a\\b"])
def test_a_server_cannot_write_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProtocolError):
        pull(Office({name: b"x"}).operator, "last", tmp_path)
    with pytest.raises(ProtocolError):
        pull(Office({"x": b"x"}, run=name).operator, "last", tmp_path)
    assert list(tmp_path.iterdir()) == [] or not any((tmp_path / "r-1").iterdir())
