"""`umbel server`: a server, and what it says when it is up."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..files import alone
from ..server.settings import ServerOpened, ServerSettings, byte_count
from ..work.confinement import lacking
from .faults import warn
from .terminal import log_to_stderr, stdout

NO_PAGES = "no"


def settings(
    folder: Path,
    listen: str | None,
    http: str | None,
    names: Sequence[str],
    insecure: bool,
    force_insecure: bool,
    quota: str | None,
    node_quota: str | None = None,
    largest_answer: str | None = None,
    log_quota: str | None = None,
    window: str | None = None,
    *,
    blobs_port: int | None = None,
) -> ServerSettings:
    """What the command line says of a server. Raises `SettingError`."""
    given: dict[str, Any] = {}
    if listen is not None:
        given["listen"] = listen
    if http is not None:
        given["http"] = "" if http == NO_PAGES else http
    sizes = {
        "quota": quota,
        "node_quota": node_quota,
        "largest_answer": largest_answer,
        "log_quota": log_quota,
        "window": window,
    }
    given |= {name: byte_count(text) for name, text in sizes.items() if text is not None}
    return ServerSettings(
        folder,
        **given,
        names=tuple(names),
        insecure=insecure,
        force_insecure=force_insecure,
        blobs_port=blobs_port,
    )


def serve(settings: ServerSettings) -> None:
    """Be a server until somebody stops it."""
    from ..server.service import serve as run_server

    warn_of_gaps()
    log_to_stderr()
    with alone(settings.folder, "a server", "Give this one a folder of its own: --dir DIR."):
        run_server(settings, announce, invites=sys.stdout.isatty())


def warn_of_gaps() -> None:
    """Say in one line what is not isolated of the processes that run others' code, if anything is not."""
    if gaps := lacking():
        warn(f"not isolated: {'; '.join(what for what, _ in gaps)}")


def announce(opened: ServerOpened) -> None:
    """Print where a server is to be found, and the line that a node needs."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("server", Text(opened.address, style="bold"))
    if opened.pages:
        facts.add_row("pages", Text(opened.pages))
    facts.add_row("folder", Text(str(opened.folder)))
    console = stdout()
    console.print(Padding(facts, (1, 1, 0, 1), expand=False))
    if opened.line is not None:
        told, line = "a node joins by:", opened.line
    else:  # nobody need see it, and what is printed may be kept
        told = f"a node joins by the line that `umbel nodes invite --dir {opened.folder}` prints:"
        line = f"umbel node {opened.address} --join @FILE"
    console.print(Text(f"\n {told}"), soft_wrap=True)
    console.print(Text(f"   {line}\n", style="cyan"), soft_wrap=True)
    console.file.flush()
