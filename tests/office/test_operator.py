from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from umbel.errors import ConnectionLost, JournalMissing, ProtocolError, Refused, SettingError, UmbelError
from umbel.office.operator import Operator
from umbel.store.blobs import Blobs
from umbel.transport.connection import Connection
from umbel.transport.exchange import Exchange
from umbel.transport.handshake import Identity, accept
from umbel.transport.stream import Stream, pair
from umbel.trust.authority import JoinText
from umbel.trust.credentials import Credentials
from umbel.trust.identity import check_seal
from umbel.trust.tokens import Token
from umbel.wire import messages as m

TOKEN = Token.new()
CREDENTIALS = Credentials("here:1", JoinText(b"", TOKEN).text)
Handler = Callable[["Server", "Session", dict[str, Any]], AsyncIterator[dict[str, Any] | m.Response]]


class Session:
    """One connection of the operator, as the server sees it."""

    def __init__(self, connection: Connection, blobs: Blobs) -> None:
        self.connection = connection
        self.exchange = Exchange(connection, blobs, lambda run, blob: True)


class Server:
    """A server in the operator's own loop, whose methods are generators of answers."""

    def __init__(self, folder: Path) -> None:
        self.blobs = Blobs(folder)
        self.methods: dict[str, Handler] = {}
        self.dialled = 0
        self.closed = 0
        self.asked: list[dict[str, Any]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def dial(self, credentials: Credentials) -> Stream:
        self.dialled += 1
        if self.closed:
            self.closed -= 1
            raise ConnectionLost("nobody is there")
        ours, theirs = pair()
        task = asyncio.create_task(self._serve(theirs))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return ours

    def verify(self, hello: m.Hello, challenge: m.Challenge, transcript: bytes, proof: m.Proof) -> Identity:
        if hello.token != TOKEN.id or not check_seal(TOKEN.key.public, transcript, proof.seal):
            raise Refused("the token is not known here", m.CODE_UNAUTHENTICATED)
        return Identity(role=hello.role, id=hello.token, name="ann", hello=hello)

    async def _serve(self, stream: Stream) -> None:
        connection = Connection(stream)
        answering: set[asyncio.Task[None]] = set()
        try:
            await accept(connection, self)
            session = Session(connection, self.blobs)
            async for message in connection.messages():
                answering.add(asyncio.create_task(self._answer(session, message.request)))
        except UmbelError:
            pass
        for task in answering:
            task.cancel()
        await asyncio.gather(*answering, return_exceptions=True)
        await connection.close()

    async def _answer(self, session: Session, request: m.Request) -> None:
        body = json.loads(request.body)
        self.asked.append(body)
        async for part in self.methods[request.method](self, session, body):
            if isinstance(part, m.Response):
                part.id = request.id
                session.connection.post(m.Message(response=part))
                if not part.more:
                    return
                continue
            more = bool(part.pop("more", False))
            response = m.Response(id=request.id, body=json.dumps(part), more=more)
            session.connection.post(m.Message(response=response))


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path / "server")


@pytest.fixture
def operator(server: Server) -> Iterator[Operator]:
    with Operator(CREDENTIALS, dial=server.dial, pause=lambda seconds: None) as found:
        yield found


def answers(*parts: dict[str, Any] | m.Response) -> Handler:
    async def handler(server: Server, session: Session, body: dict[str, Any]) -> AsyncIterator[Any]:
        for part in parts:
            yield dict(part) if isinstance(part, dict) else part

    return handler


def test_a_call_is_answered(server: Server, operator: Operator) -> None:
    server.methods["a"] = answers({"x": 1})
    assert operator.call("a", y=2) == {"x": 1}
    assert operator.call("a") == {"x": 1}
    assert server.asked == [{"y": 2}, {}]
    assert server.dialled == 1


def test_parts_of_lists_are_joined(server: Server, operator: Operator) -> None:
    server.methods["a"] = answers({"rows": [1, 2], "k": 1, "more": True}, {"rows": [3]})
    assert operator.call("a") == {"rows": [1, 2, 3], "k": 1}
    assert list(operator.stream("a")) == [{"rows": [1, 2], "k": 1}, {"rows": [3]}]


def test_two_requests_at_once_are_not_mixed(server: Server, operator: Operator) -> None:
    server.methods["slow"] = answers({"n": 1, "more": True}, {"n": 2})
    server.methods["quick"] = answers({"q": 1})
    stream = operator.stream("slow")
    assert next(stream) == {"n": 1}
    assert operator.call("quick") == {"q": 1}
    assert list(stream) == [{"n": 2}]


@pytest.mark.parametrize(
    ("method", "code", "kind"),
    [
        ("runs.show", m.CODE_UNKNOWN, JournalMissing),
        ("nodes.approve", m.CODE_UNKNOWN, SettingError),
        ("nodes.invite", m.CODE_MALFORMED, SettingError),
        ("runs.stop", m.CODE_OUT_OF_ORDER, SettingError),
        ("nodes.revoke", m.CODE_NOT_ALLOWED, Refused),
        ("runs.logs", m.CODE_BUSY, Refused),
        ("runs.list", m.CODE_INTERNAL, Refused),
    ],
)
def test_refusals_are_errors(
    server: Server, operator: Operator, method: str, code: m.Code.ValueType, kind: type[UmbelError]
) -> None:
    server.methods[method] = answers(m.Response(code=code, text="no such\nlook there"))
    with pytest.raises(kind, match="no such") as error:
        operator.call(method)
    assert error.type is kind
    assert error.value.retry == (code == m.CODE_BUSY)


def test_a_wrong_token_is_refused(server: Server) -> None:
    with pytest.raises(Refused, match="not known here"):
        Operator.connect(Credentials("here:1", JoinText(b"", Token.new()).text), dial=server.dial)
    server.closed = 1
    with pytest.raises(ConnectionLost, match="nobody is there"):
        Operator.connect(CREDENTIALS, dial=server.dial)


def test_a_closed_operator_says_so(server: Server) -> None:
    operator = Operator.connect(CREDENTIALS, dial=server.dial)
    operator.close()
    operator.close()
    with pytest.raises(SettingError, match="is closed"):
        operator.call("a")


async def _cut(server: Server, session: Session, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Logs that end in the middle twice, with the server away for a while."""
    after = body["from"]
    if after < 4:
        yield {"events": [[0, {"event": "watched"}], [after + 1, {}], [after + 2, {}]], "more": True}
        server.closed = 2
        await session.connection.close()
        return
    yield {"events": [[after, {}], [after + 1, {}]], "more": True}
    yield {"run": "r", "status": "finished"}


def test_logs_go_on_where_they_were_when_the_server_comes_back(server: Server, operator: Operator) -> None:
    server.methods["runs.logs"] = _cut
    lost: list[UmbelError] = []
    numbers = [number for number, _ in operator.logs("r", lost=lost.append)]
    assert numbers == [0, 1, 2, 0, 3, 4, 5]
    assert [body["from"] for body in server.asked] == [0, 2, 4]
    assert len(lost) == 2  # told once for each time, though it is away for longer
    assert server.dialled == 7
    assert [number for number, _ in operator.logs("r", 4, watched=False)] == [5]


def test_logs_of_a_run_that_is_not_there_are_an_error(server: Server, operator: Operator) -> None:
    server.methods["runs.logs"] = answers(m.Response(code=m.CODE_UNKNOWN, text="there is no run r"))
    with pytest.raises(JournalMissing):
        list(operator.logs("r"))


def test_a_lost_connection_is_an_error_of_a_call_and_the_next_connects_again(
    server: Server, operator: Operator
) -> None:
    async def hang_up(server: Server, session: Session, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        await session.connection.close()
        if body:
            yield {}

    server.methods["bye"] = hang_up
    server.methods["a"] = answers({"x": 1})
    with pytest.raises(ConnectionLost):
        operator.call("bye")
    assert operator.call("a") == {"x": 1}
    assert server.dialled == 2


def test_what_is_uploaded_is_fetched_by_the_server(server: Server, operator: Operator, tmp_path: Path) -> None:
    async def take(server: Server, session: Session, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        path = await session.exchange.fetch(m.Blob(sha256=bytes.fromhex(body["sha"]), size=body["size"]))
        yield {"read": path.read_bytes().decode()}

    server.methods["take"] = take
    (tmp_path / "file").write_text("from a file")
    for source, text in ((b"from memory", "from memory"), (tmp_path / "file", "from a file")):
        blob = operator.upload(source)
        assert operator.call("take", sha=blob.sha256.hex(), size=blob.size) == {"read": text}


def test_what_the_server_offers_is_downloaded(server: Server, operator: Operator, tmp_path: Path) -> None:
    server.methods["a"] = answers({})
    operator.call("a")
    data = bytes(range(256)) * 20_000
    blob = server.blobs.put(data)
    operator.download(blob, tmp_path / "new" / "model")
    assert (tmp_path / "new" / "model").read_bytes() == data
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]


def test_an_answer_that_comes_in_pieces_is_put_together(server: Server, operator: Operator) -> None:
    async def pieces(server: Server, session: Session, body: dict[str, Any]) -> AsyncIterator[m.Response]:
        text = json.dumps({"x": "y" * 50})
        for at in range(0, len(text), 7):
            yield m.Response(body=text[at : at + 7], rest=at + 7 < len(text), more=True)
        yield m.Response(body='{"z": 1}')

    server.methods["pieces"] = pieces
    assert list(operator.stream("pieces")) == [{"x": "y" * 50}, {"z": 1}]


@pytest.mark.parametrize("text", ["[", "[]", "1", "[" * 100_000])
def test_what_is_no_answer_is_said_to_be_none(server: Server, operator: Operator, text: str) -> None:
    async def wrong(server: Server, session: Session, body: dict[str, Any]) -> AsyncIterator[m.Response]:
        yield m.Response(body=text)

    server.methods["wrong"] = wrong
    with pytest.raises(ProtocolError, match="what the server answers to wrong is not a JSON object"):
        operator.call("wrong")
