"""The owner of a node, asked about code: what there is to see of it, and what was said before."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UmbelError
from ..trust import archive as archives
from ..trust import keyfile
from ..trust.archive import Archive
from ..trust.policy import Approvals, archive_sha256
from ..trust.statement import BOUND, Statement
from ..wire import messages as m
from ..wire.names import shown
from .terminal import plural

ACCEPTED = "accepted"
REVIEW = "review"
DENIED = "denied"
MOST_SETTINGS = 20


@dataclass(frozen=True)
class AcceptedCode:
    """The code that an owner has accepted last of an author's app, the settings that it came with, and when."""

    archive: Archive
    config: Mapping[str, Any]
    at: float


class AcceptedApps:
    """What was accepted last of each author's app, kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def last(self, spec: m.RunSpec) -> AcceptedCode | None:
        """What was accepted of the app of a run; None for nothing, and where it is not there any more."""
        path = self._path(spec)
        with suppress(OSError, ValueError, KeyError, TypeError, UmbelError):
            said = json.loads(path.with_suffix(".json").read_text("utf-8"))
            data = path.read_bytes()
            return AcceptedCode(archives.verify(data, bytes.fromhex(said["archive"])), said["config"], said["at"])
        return None

    def keep(self, spec: m.RunSpec, archive: bytes, now: float) -> None:
        """Remember the code and the settings of a run as accepted. Raises `StorageError`."""
        path = self._path(spec)
        said = {"archive": archive_sha256(spec).hex(), "config": settings_of(spec), "at": now, "app": spec.name}
        keyfile.replace(path, archive)
        keyfile.replace(path.with_suffix(".json"), (json.dumps(said) + "\n").encode())

    def _path(self, spec: m.RunSpec) -> Path:
        return self._folder / f"{hashlib.sha256(spec.author + b' ' + spec.name.encode()).hexdigest()[:32]}.zip"


class Owner:
    """Asks whoever sits at the terminal, one question at a time. What was approved is remembered by its hash, a no for
    its run alone; where standard input is at its end nobody is there, and nothing is allowed or remembered.
    """

    def __init__(self, approvals: Approvals, folder: Path) -> None:
        self._approvals = approvals
        self._denied = Approvals(folder / DENIED)
        self._accepted = AcceptedApps(folder / ACCEPTED)
        self._folder = folder / REVIEW
        self._turn: asyncio.Lock | None = None
        self._typed: asyncio.Future[str] | None = None

    async def ask(self, spec: m.RunSpec, archive: Path) -> bool:
        """Whether the code of a run, in the file `archive`, may run here."""
        self._turn = self._turn or asyncio.Lock()
        async with self._turn:
            sha256 = archive_sha256(spec)
            this = hashlib.sha256(spec.run.encode() + sha256).digest()
            if sha256 in self._approvals or this in self._denied:
                return sha256 in self._approvals
            try:
                answer = await self._asked(spec, data := archive.read_bytes())
                if answer.strip().lower() in ("y", "yes"):
                    self._accepted.keep(spec, data, time.time())
                    self._approvals.add(sha256)
                    return True
                if answer:
                    self._denied.add(this)
            except (UmbelError, OSError) as error:  # of the disk: the node goes on, and so do its other runs
                print(f"\nnobody can be asked about run {shown(spec.run)}: {error}", file=sys.stderr)
                return False
            if not answer:
                print("nobody is there to answer: standard input is at its end", file=sys.stderr)
            return False

    async def _asked(self, spec: m.RunSpec, data: bytes) -> str:
        """Lay out the code and what has changed of it, and give what is answered."""
        name, before = archive_sha256(spec).hex()[:16], self._accepted.last(spec)
        place, diff = self._folder / name, self._folder / f"{name}.diff"

        def lay_out() -> None:
            read = archives.read(data)
            shutil.rmtree(place, ignore_errors=True)  # of a node that was killed
            archives.unpack(read, place)
            text = archives.difference(before.archive if before is not None else Archive({}, {}), read)
            diff.write_text(text, encoding="utf-8")

        try:
            await asyncio.to_thread(lay_out)  # for large code takes its time, while the node has others to hear
            for line in about(spec, before):
                print(line, file=sys.stderr)
            print(f"  code      {place}\n  changes   {diff}  (v shows them)", file=sys.stderr)
            return await self._answer(diff)
        finally:
            shutil.rmtree(place, ignore_errors=True)
            diff.unlink(missing_ok=True)

    async def _answer(self, diff: Path) -> str:
        while True:
            idle = self._typed is None or self._typed.done()  # else nobody has answered a question that is over
            if idle:
                _forget_typed()
            print("allow it, now and later? [y/N] ", end="", file=sys.stderr, flush=True)
            if self._typed is None or idle:
                self._typed = asyncio.ensure_future(_line_typed())
            answer = await asyncio.shield(self._typed)
            if answer.strip().lower() != "v":
                return answer
            await _page(diff)


def about(spec: m.RunSpec, before: AcceptedCode | None) -> Iterator[str]:
    """What a run says of itself, and its author of it, a line each."""
    said = Statement.of(spec)
    yield f"\nrun {shown(spec.run)} ({shown(spec.name)}) wants to run code here"
    yield f"  archive   {archive_sha256(spec).hex()}"
    yield f"  author    {spec.author.hex() if said is not None else 'nobody signed it'}"
    signed = [name for name in BOUND if said is not None and getattr(said, name)]
    yield f"  signed    {', '.join(['the code', *signed]) if said is not None else 'nothing'}"
    yield f"  submitted {f'by {shown(spec.owner)}' if spec.owner else 'by whom it does not say'}, says the server"
    if before is None:
        yield "  before    nothing of this author's app was accepted here: all of it is new"
    else:
        yield f"  before    code of this app was accepted {time.strftime('%Y-%m-%d %H:%M', time.localtime(before.at))}"
    for line in settings_lines(settings_of(spec), None if before is None else before.config):
        yield f"  setting   {line}"


def settings_lines(config: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[str]:
    """Settings, and what they were before; those that have changed come first."""
    old = config if before is None else before
    names = sorted({*config, *old}, key=lambda name: (name in config and config[name] == old.get(name, ...), name))
    found = []
    for name in names[:MOST_SETTINGS]:
        now = shown(f"{name:.80} = {json.dumps(config[name]):.200}" if name in config else f"{name:.80} is left out")
        was = "" if name in old and config.get(name, ...) == old[name] else "  (new)"
        found.append(f"{now}  (was {shown(json.dumps(old[name])):.200})" if was and name in old else now + was)
    more = len(names) - MOST_SETTINGS
    return [*found, f"and {plural(more, 'other')}, unchanged or not"] if more > 0 else found


def settings_of(spec: m.RunSpec) -> dict[str, Any]:
    """The settings of a run; none where they cannot be read."""
    try:
        found = json.loads(spec.config or "{}")
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


async def _page(file: Path) -> None:
    """Show a file: in the pager of whoever sits at a terminal, or else as it is."""
    pager = shlex.split(os.environ.get("PAGER") or "less")
    if not (sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty() and pager and shutil.which(pager[0])):
        print(file.read_text("utf-8"), file=sys.stderr)
        return
    process = await asyncio.create_subprocess_exec(*pager, str(file))
    try:
        await process.wait()
    except BaseException:
        with suppress(ProcessLookupError):
            process.terminate()
        raise


def _forget_typed() -> None:
    """Forget what was typed at the terminal before there was a question: it was no answer to it."""
    with suppress(ImportError, OSError, ValueError, AttributeError):
        import termios

        with suppress(termios.error):  # no terminal
            termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)


async def _line_typed() -> str:
    """What is typed next; in a thread that does not keep the program from ending."""
    loop = asyncio.get_running_loop()
    typed: asyncio.Future[str] = loop.create_future()

    def tell(text: str) -> None:
        if not typed.done():
            typed.set_result(text)

    def read() -> None:
        text = ""
        with suppress(OSError, ValueError, AttributeError):  # a terminal that is gone, no text, no input at all
            text = sys.stdin.readline()
        with suppress(RuntimeError):  # nobody waits for it any more
            loop.call_soon_threadsafe(tell, text)

    threading.Thread(target=read, daemon=True).start()
    return await typed
