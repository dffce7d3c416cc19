"""What a node knows of the server that it connects to, and what it remembers of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import Refused, StorageError
from ..wire import messages as m
from . import keyfile
from .authority import endorses, root_certificate

ENDORSEMENTS = 32
"""So many are heard in a welcome."""


class KnownServer:
    """A server by the public key of its `authority`, empty without TLS; what was seen of it is kept in the file `path`.

    `federations` are the keys, in hexadecimal, of the authorities in whose federations one is by being connected to it:
    its own, and of a relay those of the servers above. Authorities that take the place of its own are trusted as well,
    from when that has said so, and kept in the file `successors`.
    """

    def __init__(self, authority: bytes = b"", path: Path | None = None, successors: Path | None = None) -> None:
        self._authority = authority
        self._path = path
        self._successors = Successors(successors)
        self._seen: dict[str, Any] = {}
        self.federations: set[str] = {key.hex() for key in self._successors.trusted(authority)}

    @property
    def known_as(self) -> str:
        """Its authority's public key, in hexadecimal; empty without TLS."""
        return self._authority.hex()

    def roots(self) -> bytes | None:
        """The root certificates to trust, as PEM; None for a server without TLS."""
        return self._successors.roots(self._authority)

    def welcomed(self, welcome: m.Welcome) -> None:
        """The server has let this one in, and said this. Raises `Refused` where its folder is older than what was seen
        of it, and goes on doing so until the file is removed.
        """
        self._successors.learn(self._authority, welcome.endorsements)
        trusted = self._successors.trusted(self._authority)
        self.federations |= {key.hex() for key in trusted | above(trusted, welcome.endorsements)}
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


class Successors:
    """Authorities that others have named to take their places, kept in a file, or in memory alone."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, list[str]] = {}
        with suppress(OSError, ValueError):  # what is lost is learned again, as long as the old one is there
            found = {} if path is None else json.loads(path.read_text("utf-8"))
            self._known = {name: [bytes.fromhex(key).hex() for key in keys] for name, keys in found.items()}

    def trusted(self, authority: bytes) -> set[bytes]:
        """An authority and those that came after it; empty for none."""
        found = [authority] if authority else []
        for key in found:
            found += [new for text in self._known.get(key.hex(), ()) if (new := bytes.fromhex(text)) not in found]
        return set(found)

    def roots(self, authority: bytes) -> bytes | None:
        """Their root certificates, as PEM; None for no authority."""
        return b"".join(map(root_certificate, sorted(self.trusted(authority)))) or None

    def learn(self, authority: bytes, said: Iterable[m.Endorsement]) -> None:
        """Remember whom a trusted one has named. Raises `StorageError`."""
        trusted = self.trusted(authority)
        for one in [each for each in said if each.role == "successor"][:ENDORSEMENTS]:
            if one.by in trusted and one.of not in trusted and len(one.of) == len(authority) and endorses(one):
                self._known.setdefault(one.by.hex(), []).append(one.of.hex())
                if self._path is not None:
                    keyfile.replace(self._path, (json.dumps(self._known, indent=1) + "\n").encode())


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
