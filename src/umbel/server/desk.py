"""The desk: where operators ask for things, and who may ask for what.

A request has a method and a body of JSON; the answer is one response or several, the last without `more`. Lists come in
parts of up to `PAGE` rows, and a part that is long in pieces (`rest`). What cannot be done is answered with a code and
a text. All that changes anything, and all that was denied, goes into the audit record.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from ..errors import CallerError, ProtocolError, Refused, UmbelError
from ..wire import messages as m
from ..wire import roles
from ..wire.limits import REQUEST_BYTES, RESPONSE_BYTES
from ..wire.portions import portions
from ..wire.texts import read_json
from .access import Access
from .reports import RunReports
from .requests import Body, Offices, OperatorPeer
from .submissions import Submissions

PAGE = 500

_LOG = logging.getLogger("umbel.server")


@dataclass(frozen=True)
class Method:
    """What operators may ask for: the `role` that it needs, and what answers, at once or part by part.

    What `changes` anything is on disk, with its line in the audit record, before it is answered. What is `lasting` is
    seen to its end also if whoever asked is gone by then: half of it would leave a run that is said to be going on and
    has no process.
    """

    role: str
    answer: Callable[[OperatorPeer, Body], Awaitable[dict[str, Any]] | AsyncGenerator[str | dict[str, Any]]]
    changes: bool = False
    lasting: bool = False


class Desk:
    """Answers operators by its `methods`; `now` is the wall time."""

    def __init__(self, offices: Offices, now: Callable[[], float] = time.time) -> None:
        self._offices = offices
        access, reports = Access(offices, now), RunReports(offices)
        self.submissions = submissions = Submissions(offices, now)
        self.methods = {
            "server.status": Method("read", self._status),
            "nodes.list": Method("read", access.nodes),
            "nodes.invite": Method("admin", access.invite, changes=True),
            "nodes.approve": Method("admin", access.approve, changes=True),
            "nodes.revoke": Method("admin", access.revoke, changes=True),
            "nodes.release": Method("admin", access.release, changes=True),
            "operators.list": Method("admin", access.operators),
            "operators.add": Method("admin", access.add_operator, changes=True),
            "operators.remove": Method("admin", access.remove_operator, changes=True),
            "audit.list": Method("admin", access.audit),
            "authority.rotate": Method("admin", access.rotate, changes=True),
            "authority.retire": Method("admin", access.retire, changes=True),
            "runs.list": Method("read", reports.runs),
            "runs.show": Method("read", reports.show),
            "runs.logs": Method("read", reports.logs),
            "runs.pull": Method("read", reports.pull, changes=True),
            "runs.submit": Method("run", submissions.submit, changes=True, lasting=True),
            "runs.stop": Method("run", submissions.stop, changes=True, lasting=True),
            "runs.resume": Method("run", submissions.resume, changes=True, lasting=True),
        }

    def lasts(self, request: m.Request) -> bool:
        """Whether a request is to be seen to its end, though nobody may be there for its answer."""
        return request.method in self.methods and self.methods[request.method].lasting

    async def answer(self, peer: OperatorPeer, request: m.Request) -> AsyncGenerator[m.Response]:
        """The responses to a request of an operator, as they come."""
        try:
            body = self._admitted(peer, request)
            method = self.methods[request.method]
            found = method.answer(peer, body)
            if isinstance(found, AsyncGenerator):
                async with aclosing(found):
                    async for part in found:
                        text, more = (part, True) if isinstance(part, str) else (json.dumps(part), False)
                        for piece, rest, further in _pieces([text]):
                            yield m.Response(id=request.id, body=piece, rest=rest, more=more or further)
                return
            whole = await found
            if method.changes:
                await self._offices.commit()
            for piece, rest, further in _pieces(_parts(whole)):
                yield m.Response(id=request.id, body=piece, rest=rest, more=further)
                await asyncio.sleep(0)  # a long answer must not keep others waiting
        except Refused as error:
            yield _refusal(request, error.code, str(error.message))
        except CallerError as error:
            yield _refusal(request, m.CODE_MALFORMED, error.message + (f"\n{error.hint}" if error.hint else ""))
        except UmbelError as error:
            _LOG.error("%s failed: %s", request.method, error)
            yield _refusal(request, m.CODE_INTERNAL, error.message)
        except Exception as error:
            _LOG.exception("%s failed", request.method)
            yield _refusal(request, m.CODE_INTERNAL, f"the server failed ({type(error).__name__}); its log says more")

    def _admitted(self, peer: OperatorPeer, request: m.Request) -> Body:
        if request.method not in self.methods:
            raise Refused(f"there is no method {request.method!r:.60}", m.CODE_UNKNOWN)
        needed = self.methods[request.method].role
        if not roles.at_least(peer.role, needed):
            self._offices.registry.audit.limited(peer.name, "denied", method=request.method, role=peer.role)
            text = f"{request.method} needs the role {needed}, and {peer.name} has the role {peer.role}"
            raise Refused(text, m.CODE_NOT_ALLOWED)
        if len(request.body.encode()) > REQUEST_BYTES:
            raise Refused(f"a request of {len(request.body)} bytes", m.CODE_TOO_LARGE)
        try:
            body: Body = read_json(request.body or "{}", "a request's body", dict)
        except ProtocolError as error:
            raise Refused(error.message, error.code) from None
        return body

    async def _status(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        return {**self._offices.status(), "you": {"name": peer.name, "role": peer.role}}


def _parts(found: Mapping[str, Any]) -> Iterator[str]:
    """An answer as JSON, which is ASCII here, in parts where a list in it is long; an iterator is a list that is read
    no further than it is taken.
    """
    lists = {key: rows for key, rows in found.items() if isinstance(rows, list | Iterator)}
    fields = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in found.items() if key not in lists]
    begun = False
    for key, rows in lists.items():
        there = False
        for portion in portions(map(json.dumps, rows), lambda row: len(row) + 2, most=PAGE, most_bytes=RESPONSE_BYTES):
            yield _object([*fields, f"{json.dumps(key)}: [{', '.join(portion)}]"])
            fields, there, begun = [], True, True
        if not there:
            fields.append(f"{json.dumps(key)}: []")
    if fields or not begun:
        yield _object(fields)


def _object(fields: list[str]) -> str:
    return f"{{{', '.join(fields)}}}"


def _pieces(parts: Iterable[str]) -> Iterator[tuple[str, bool, bool]]:
    """The parts, cut where they are too long for a response: each with whether its part goes on in the next one, and
    whether there is a next one at all.
    """
    pieces = (
        (text[at : at + RESPONSE_BYTES], at + RESPONSE_BYTES < len(text))
        for text in parts
        for at in range(0, len(text), RESPONSE_BYTES)
    )
    (text, rest) = next(pieces)
    for further in pieces:
        yield text, rest, True
        text, rest = further
    yield text, rest, False


def _refusal(request: m.Request, code: int, text: str) -> m.Response:
    return m.Response(id=request.id, code=code, text=text)  # type: ignore[arg-type]
