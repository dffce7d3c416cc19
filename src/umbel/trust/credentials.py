"""What operators and authors keep to themselves: the lines by which servers know them, and the key that signs.

A line, ``umbel1.<authority>.<id>.<secret>``, is an operator's token together with the server's own key, so that nobody
else can pass for the server. Which one a command uses, the first that there is:

1. the option ``--token``: the line itself, a file that holds it (``FILE`` or ``@FILE``), or ``-`` for standard input;
2. the variable ``UMBEL_TOKEN``: the same;
3. where a server is named: what `umbel login` has kept for its address in ``servers.json``;
4. ``operator.json`` in the server's folder (``--dir``, or ``umbel-server`` where one is): the server has written it at
   its first start, for commands on its own machine. It also says which server is meant where none is named.

``servers.json`` and ``author.key`` are in ``$UMBEL_HOME``, or else in ``$XDG_CONFIG_HOME/umbel``, by default
``~/.config/umbel``, and readable by their owner alone.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SettingError, StorageError
from ..files import user_folder
from ..wire.addresses import canonical, host_and_port, is_loopback
from . import keyfile
from .authority import JoinText
from .identity import SigningKey
from .tokens import Token

HOME = "UMBEL_HOME"
TOKEN = "UMBEL_TOKEN"
JOIN = "UMBEL_JOIN"
INSECURE = "UMBEL_INSECURE"
SERVERS = "servers.json"
AUTHOR = "author.key"
SUCCESSORS = "successors.json"
OPERATOR = "operator.json"


@dataclass(frozen=True)
class Credentials:
    """A server's address, and the line by which one is let in."""

    address: str
    line: str = field(repr=False)

    def __post_init__(self) -> None:
        assert self.token.id  # a line without one is of no use

    @property
    def token(self) -> Token:
        """The operator's token."""
        found = self.join.token
        if found is None:
            raise SettingError("this line lets nobody in: it has no token", hint="`umbel operators add` prints one.")
        return found

    @property
    def join(self) -> JoinText:
        """What the line says."""
        return JoinText.parse(self.line)


def home() -> Path:
    """Where the files of this user are."""
    found = os.environ.get(HOME)
    return Path(found) if found else user_folder("XDG_CONFIG_HOME", ".config")


def author_key() -> SigningKey:
    """The key that signs what this user packs; made when it is first needed."""
    return SigningKey.kept(home() / AUTHOR)


def find(address: str | None, given: str | None = None, folder: Path | None = None) -> Credentials:
    """The credentials for a server, looked up in the order above. Raises `SettingError` where there are none."""
    own = None if folder is None else _own(folder)
    if address is None and own is None:
        where = "." if folder is None else f", and {folder} is no server's folder."
        raise SettingError(
            f"no server is named{where}", hint="Add --on HOST:PORT, or --dir DIR on the server's machine."
        )
    wanted = canonical(address) if address is not None else own.address if own is not None else ""
    line = given or os.environ.get(TOKEN)
    if line:
        return _guarded(Credentials(wanted, _line(line)))
    if address is not None and (kept := _servers().get(wanted)) is not None:
        return _guarded(Credentials(wanted, kept))
    if own is not None and _same(own.address, wanted):
        return Credentials(wanted, own.line)
    raise SettingError(
        f"there is no token for {wanted}",
        hint=f"Ask the server's admin for one (`umbel operators add NAME`), then: umbel login {wanted}",
    )


def _guarded(found: Credentials) -> Credentials:
    """Refuse to speak without TLS to another machine, unless the user's environment insists."""
    if found.join.authority or is_loopback(host_and_port(found.address)[0]) or os.environ.get(INSECURE):
        return found
    raise SettingError(
        f"{found.address} would be spoken to without TLS: everyone between could read and change what passes",
        hint=f"Ask the server's admin for a line that names the server's key; the variable {INSECURE}=1 insists.",
    )


def keep(credentials: Credentials) -> Path:
    """Keep credentials for later commands, and return the file that holds them."""
    path = home() / SERVERS
    _write(path, {**_servers(), canonical(credentials.address): credentials.line})
    return path


def write_own(folder: Path, credentials: Credentials) -> None:
    """Write what a server gives to commands on its own machine, into its folder."""
    _write(folder / OPERATOR, {"address": canonical(credentials.address), "token": credentials.line})


def own_token(folder: Path) -> Token | None:
    """The token that a server has left in its folder, if it has. Raises `SettingError` where the file is damaged."""
    found = _own(folder)
    return None if found is None else found.token


def _own(folder: Path) -> Credentials | None:
    found = _read(folder / OPERATOR)
    if not found:
        return None
    try:
        return Credentials(canonical(found["address"]), found["token"])
    except (KeyError, SettingError) as error:
        raise SettingError(f"{folder / OPERATOR} does not hold an operator's credentials") from error


def given(text: str) -> str:
    """The line that somebody gives by a text: itself, or the last word of the file FILE for ``@FILE``, or of standard
    input for ``-``. What stands on a command line everybody on the machine can read. Raises `SettingError`.
    """
    if text != "-" and not text.startswith("@"):
        return text.strip()
    try:
        found = sys.stdin.readline() if text == "-" else Path(text[1:]).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise SettingError(f"the line in {text[1:] or 'standard input'} cannot be read: {error}") from error
    if not found.split():
        raise SettingError(f"there is no line in {text[1:] or 'standard input'}")
    return found.split()[-1]


def _line(text: str) -> str:
    """The line itself, or the one in the file of that name."""
    if text == "-" or text.startswith("@"):
        return given(text)
    if text.strip().startswith("umbel1.") or len(text) > 1000 or "\0" in text or not Path(text).is_file():
        return text.strip()
    try:
        content = Path(text).read_text("utf-8").strip()
        found = json.loads(content) if content.startswith("{") else {"token": content}
    except (OSError, ValueError) as error:
        raise SettingError(f"the file with the token cannot be read: {error}") from error
    return str(found.get("token", ""))


def _servers() -> dict[str, str]:
    return {str(name): str(line) for name, line in _read(home() / SERVERS).items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise SettingError(f"{path} is damaged: it holds no JSON object", hint="Remove it, and log in again.")
    return found


def _same(one: str, other: str) -> bool:
    (host, port), (name, number) = host_and_port(one), host_and_port(other)
    return port == number and (host == name or (is_loopback(host) and is_loopback(name)))


def _write(path: Path, content: dict[str, Any]) -> None:
    keyfile.replace(path, (json.dumps(content, indent=2) + "\n").encode())
