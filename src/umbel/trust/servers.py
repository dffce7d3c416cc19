"""What a node knows of the server that it connects to, and what it remembers of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import Refused, StorageError
from ..wire import messages as m
from . import keyfile
from .authority import endorses

ENDORSEMENTS = 32
"""So many are heard in a welcome."""


class KnownServer:
    """A server by the public key of its `authority`, empty without TLS; what was seen of it is kept in the file `path`.

    `federations` are the keys, in hexadecimal, of the authorities in whose federations one is by being connected to it:
    its own, and of a relay those of the servers above.
    """

    def __init__(self, authority: bytes = b"", path: Path | None = None) -> None:
        self._authority = authority
        self._path = path
        self._seen: dict[str, Any] = {}
        self.federations: set[str] = {authority.hex()} if authority else set()

    def welcomed(self, welcome: m.Welcome) -> None:
        """The server has let this one in, and said this. Raises `Refused` where its folder is older than what was seen
        of it, and goes on doing so until the file is removed.
        """
        if self._authority:
            self.federations |= {key.hex() for key in above({self._authority}, welcome.endorsements)}
        if self._path is not None:
            self._seen = _read(self._path)
        epoch, boot = self._seen.get(self._authority.hex(), (0, ""))
        if welcome.epoch < epoch or (welcome.epoch == epoch and welcome.boot != boot):
            raise Refused(
                f"the server's folder says {welcome.epoch}, and {epoch} was seen of it: it was restored from a copy, "
                "or there are two servers with its key, or somebody has stolen that",
                m.CODE_OUT_OF_ORDER,
                retry=True,
                hint=f"Ask whoever runs it. Where it was restored on purpose, remove {self._path}: this node goes on.",
            )
        self._keep(welcome.epoch, welcome.boot)

    def acknowledged(self, epoch: int) -> None:
        """The server has said since by what number it goes; 0 where it has said nothing."""
        seen, boot = self._seen.get(self._authority.hex(), (0, ""))
        if epoch > seen:
            self._keep(epoch, boot)

    def _keep(self, epoch: int, boot: str) -> None:
        name, seen = self._authority.hex(), [epoch, boot]
        if self._seen.get(name) != seen:
            self._seen = {**self._seen, name: seen}
            if self._path is not None:
                keyfile.replace(self._path, (json.dumps(self._seen) + "\n").encode())


def _read(path: Path) -> dict[str, Any]:
    """What was seen, by authority. Raises `StorageError`, and `Refused` where the file is damaged."""
    try:
        found = json.loads(path.read_text("utf-8"))
        return {name: [int(epoch), str(boot)] for name, (epoch, boot) in found.items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise Refused(f"{path} is damaged", retry=True, hint="Remove it, if the server was not restored.") from error


def above(authorities: set[bytes], said: Iterable[m.Endorsement]) -> set[bytes]:
    """The authorities that have said, of one of these or of one that was found so, that it is their relay's."""
    found, left = set(authorities), [one for one in said if one.role == "relay"][:ENDORSEMENTS]
    while good := [one for one in left if one.of in found]:
        left = [one for one in left if one.of not in found]
        found |= {one.by for one in good if endorses(one)}
    return found - authorities
