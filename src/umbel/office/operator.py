"""A client for operators: asks a server's desk for things, and waits for the answers."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import tempfile
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from ..errors import ConnectionLost, JournalMissing, ProtocolError, Refused, SettingError, StorageError, UmbelError
from ..store.blobs import Blobs
from ..transport.stream import Stream
from ..trust.credentials import SUCCESSORS, Credentials, home
from ..trust.servers import Successors
from ..wire import messages as m
from .connection import Answers, OperatorConnection

Dial = Callable[[Credentials], Awaitable[Stream]]
T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0
_CALLERS = (m.CODE_MALFORMED, m.CODE_OUT_OF_ORDER, m.CODE_UNKNOWN)


class Operator:
    """A connection to a server that is made anew whenever it is needed and not there; to be closed.

    All calls wait. They raise `ConnectionLost` where the server cannot be reached or goes away, `Refused` where it says
    no, and a `CallerError` where it says that something has to be changed: no such run, a setting that does not fit.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        dial: Dial | None = None,
        scratch: Path | None = None,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self.address = credentials.address
        self._credentials = credentials
        self._dial = dial or _dial
        self._pause = pause or threading.Event().wait
        self._folder = scratch
        self._own: Path | None = None
        self._blobs: Blobs | None = None
        self._talk: OperatorConnection | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="umbel-operator", daemon=True)
        self._thread.start()

    @classmethod
    def connect(cls, credentials: Credentials, *, dial: Dial | None = None, scratch: Path | None = None) -> Operator:
        """Connect to a server. `scratch` is where what is downloaded arrives, kept if that is cut short; by default a
        temporary folder.
        """
        made = cls(credentials, dial=dial, scratch=scratch)
        try:
            made._wait(made._connected())
        except BaseException:
            made.close()
            raise
        return made

    @property
    def federation(self) -> str | None:
        """The public key of the server's authority, in hexadecimal; None without TLS."""
        return self._credentials.join.authority.hex() or None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the server, and forget what was to be uploaded."""
        if self._loop.is_closed():
            return
        self._wait(self._hung_up())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)

    def call(self, method: str, **body: Any) -> dict[str, Any]:
        """Ask for something and return the whole answer; lists that come in parts are joined."""
        found: dict[str, Any] = {}
        for part in self.stream(method, **body):
            for key, value in part.items():
                found[key] = [*found[key], *value] if isinstance(value, list) and key in found else value
        return found

    def stream(self, method: str, **body: Any) -> Iterator[dict[str, Any]]:
        """Ask for something and return the parts of the answer as they come."""
        answers = self._wait(self._asked(method, body))
        pieces: list[str] = []
        while True:
            response = self._wait(answers.next())
            if response.code:
                raise _refusal(method, response)
            pieces.append(response.body)
            if not response.rest and (text := "".join(pieces)):
                pieces.clear()
                yield _answer(method, text)
            if not response.more:
                return

    def logs(
        self,
        run: str,
        after: int = 0,
        *,
        follow: bool = True,
        watched: bool = True,
        lost: Callable[[UmbelError], object] = lambda error: None,
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """A run's events after a number, with their numbers, until the run is over; without `follow` those that there
        are. Events that are only to be `watched` have the number 0.

        Where the server goes away, `lost` is told once, and the log goes on where it was when the server is back.
        """
        tried = 0
        while True:
            try:
                for part in self.stream("runs.logs", run=run, **{"from": after}, follow=follow):
                    tried = 0
                    for number, record in part.get("events", ()):
                        if number > after or (number == 0 and watched):
                            after = max(after, number)
                            yield number, record
                    if "status" in part:
                        return
                return
            except UmbelError as error:
                if not (isinstance(error, ConnectionLost | Refused) and error.retry):
                    raise
                if not tried:
                    lost(error)
            self._pause(min(LONGEST_PAUSE, FIRST_PAUSE * 2**tried) * random.uniform(0.5, 1.0))
            tried += 1

    def upload(self, source: str | os.PathLike[str] | bytes) -> m.Blob:
        """Have bytes, or a file, ready for the server, which fetches them when it is told of them."""
        kept = self._kept()
        if isinstance(source, bytes):
            return kept.put(source, "upload")
        return kept.put_file(source, "upload")

    def download(self, blob: m.Blob, path: Path) -> None:
        """Fetch a blob that the server has offered to the file `path`. Where the connection is lost, what has come
        stays; the same call goes on from there once the server has offered the blob again.
        """
        kept = self._kept()
        found = kept.path(blob.sha256)
        if found is None:
            self._wait(self._fetched(blob))
            found = kept.path(blob.sha256)
            assert found is not None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found, aside := path.with_name(f".{path.name}.part"))
            os.replace(aside, path)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}") from error
        kept.release("download")
        kept.collect()

    # In the thread of the loop

    async def _connected(self) -> OperatorConnection:
        if self._talk is None or self._talk.over:
            await self._hung_up()
            stream = await self._dial(self._credentials)
            self._talk = await OperatorConnection.begun(stream, self._credentials, self._kept())
        return self._talk

    async def _hung_up(self) -> None:
        talk, self._talk = self._talk, None
        if talk is not None:
            await talk.close()

    async def _asked(self, method: str, body: dict[str, Any]) -> Answers:
        return (await self._connected()).ask(method, json.dumps(body))

    async def _fetched(self, blob: m.Blob) -> None:
        talk = await self._connected()
        self._kept().hold(blob.sha256, "download")
        await talk.fetch(blob)

    def _kept(self) -> Blobs:
        if self._blobs is None:
            if self._folder is None:
                self._folder = self._own = Path(tempfile.mkdtemp(prefix="umbel-"))
            self._blobs = Blobs(self._folder)
        return self._blobs

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            work.close()
            raise SettingError("this connection is closed")
        task = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return task.result()
        except BaseException:
            task.cancel()
            raise


def _answer(method: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if type(found) is not dict:
        raise ProtocolError(f"what the server answers to {method} is not a JSON object", m.CODE_MALFORMED)
    return found


def _refusal(method: str, response: m.Response) -> UmbelError:
    """What a response with a code is raised as."""
    if response.code == m.CODE_UNKNOWN and method.startswith("runs."):
        return JournalMissing(response.text, hint="`umbel runs --on HOST:PORT` lists the server's runs.")
    if response.code in _CALLERS:
        message, _, hint = response.text.partition("\n")
        return SettingError(message, hint=hint or None)
    return Refused(response.text, response.code, retry=response.code == m.CODE_BUSY)


async def _dial(credentials: Credentials) -> Stream:
    from ..transport import grpc

    roots = Successors(home() / SUCCESSORS).roots(credentials.join.authority)
    return await grpc.connect(credentials.address, roots)
