"""How runs and clients are named in messages."""

from __future__ import annotations

import re

from ..errors import ClientId

_LONGEST = 18


RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
"""The id of a run, which is also the name of a folder."""


def client_text(client: ClientId) -> str:
    """A client's id as it is written in messages."""
    return str(client)


def client_id(text: str) -> ClientId:
    """A client's id from a message: a whole number in its shortest form is an index, as in a simulation."""
    plain = text.isascii() and text.isdecimal() and len(text) <= _LONGEST
    return int(text) if plain and (text == "0" or text[0] != "0") else text


def shown(text: str) -> str:
    """A text of a peer's on one line as a terminal may show it: what is not printable is written as an escape, so that
    it neither moves the cursor nor hides what stands beside it.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
