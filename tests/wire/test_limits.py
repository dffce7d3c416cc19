"""Each limit holds: what is at it is taken, and one more is not. The protocol's page shows the table of all."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.server import admission, relays
from tests.server.desks import APP, CLIENT, Office, Person, bringing, submission
from tests.server.routing import World, asked

from umbel.errors import ProtocolError, Refused, SettingError
from umbel.node.processes import shorten
from umbel.node.service import run_node
from umbel.server import fields
from umbel.server.feeds import Feeds, _Follower
from umbel.server.ledger import AnswerEntry
from umbel.server.signals import Drop, Hosting, Reached
from umbel.server.supervision import Output
from umbel.store.blobs import Blobs
from umbel.transport import frames, handshake
from umbel.transport.budget import Turns
from umbel.transport.connection import Connection
from umbel.transport.exchange import Exchange
from umbel.transport.stream import pair
from umbel.trust.identity import SigningKey
from umbel.wire import limits
from umbel.wire import messages as m
from umbel.wire.limits import LIMITS
from umbel.wire.texts import read_json

ROOT = Path(__file__).parents[2]


def in_frame(data: bytes, held: m.Limits) -> bool:
    try:
        frames.read(data, 1, held)
    except ProtocolError as error:
        return error.code != m.CODE_TOO_LARGE
    return True


def frame_of(size: int, held: m.Limits) -> bool:
    head = len(m.Frame(number=1, messages=[m.Message(notice=m.Notice(text="x" * (size - 100)))]).SerializeToString())
    text = "x" * (size - 100 + size - head)
    data = m.Frame(number=1, messages=[m.Message(notice=m.Notice(text=text))]).SerializeToString()
    assert len(data) == size
    return in_frame(data, held)


def a_message(**body: object) -> bool:
    found = m.Frame(number=1, messages=[m.Message(**body)])  # type: ignore[arg-type]
    return in_frame(found.SerializeToString(), frames.standard_limits())


def messages(count: int) -> bool:
    found = m.Frame(number=1, messages=[m.Message(ping=m.Ping(id=1))] * count)
    return in_frame(found.SerializeToString(), frames.standard_limits())


def deep(levels: int) -> bool:
    try:
        read_json("[" * levels + "1" + "]" * levels, "this")
    except ProtocolError:
        return False
    return True


def logged(text: str, world: World | None = None, number: int = 1) -> bool:
    """Whether an event is kept."""
    if world is None:
        world = World()
        world.run()
    world.say("r1", log_event=m.LogEvent(run="r", number=number, event=text))
    world.store.commit()
    return not world.of(Drop) and any(row["body"] == text for row in world.store.rows("events", run="r"))


def event(size: int, name: str = "e") -> str:
    head = '{"event":"' + name + '","run":"'
    tail = '","rounds":1,"reason":"x"}'
    return head + "x" * (size - len(head) - len(tail)) + tail


def log_of(size: int, most: int = limits.LOG_BYTES) -> bool:
    """Whether the last of the events that take so many bytes in all is kept."""
    world = World(log_bytes=most)
    world.run()
    world.router.summaries.known("r").bytes = size - 200
    return logged(event(200), world)


def log_with_end_of(size: int) -> bool:
    world = World()
    world.run()
    world.router.summaries.known("r").bytes = limits.LOG_BYTES + size - 200
    return logged(event(200, "run_finished"), world)


def printed(size: int, path: Path) -> bool:
    """Whether all of it stays, at a node and at the server."""
    path.write_bytes(b"")
    os.truncate(path, size)
    shorten(path, limits.PRINTED_BYTES)
    kept = path.stat().st_size == size
    path.unlink()
    output = Output(path, limits.PRINTED_BYTES)
    output.write(b"x")
    output.write(bytes(size - 1))
    output.close()
    assert (path.stat().st_size == size) == kept
    return kept


def request(size: int, tmp_path: Path) -> bool:
    found = asyncio.run(Office(tmp_path).responses(Person(), "server.status", "{}" + " " * (size - 2)))
    assert found[0].code in (m.CODE_UNSPECIFIED, m.CODE_TOO_LARGE)
    return not found[0].code


def going(count: int, tmp_path: Path) -> bool:
    """Whether a server drives so many runs of one operator at once."""
    office = Office(tmp_path)
    for number in range(count - 1):
        office.run(f"r{number}", submission={"settings": {}})
    office.run("over", status="finished", submission={"settings": {}})
    office.run("driven", submission=None)
    office.run("another's", owner="bob")
    order, person = submission(SigningKey.new()), bringing(office, CLIENT, APP)
    (found,) = asyncio.run(office.responses(person, "runs.submit", json.dumps(order)))
    assert found.code in (m.CODE_UNSPECIFIED, m.CODE_BUSY)
    return not found.code


def response(size: int, tmp_path: Path) -> bool:
    office = Office(tmp_path)
    you = {"you": {"name": "ann", "role": "admin"}}
    office.status = lambda: {"x": "x" * (size - len(json.dumps({"x": "", **you})))}  # type: ignore[method-assign]
    found = asyncio.run(office.responses(Person(), "server.status", "{}"))
    assert sum(len(each.body) for each in found) == size
    assert json.loads("".join(each.body for each in found))["you"]
    assert [each.rest for each in found] == [each.more for each in found] == [True] * (len(found) - 1) + [False]
    return len(found) == 1


def followers(count: int) -> bool:
    async def play() -> bool:
        feeds = Feeds(lambda run, after, most: [(1, "x")], lambda run: False)
        there = [feeds.follow("r") for _ in range(count)]
        try:
            for each in there:
                await anext(each)
        except Refused:
            return False
        finally:
            for each in there:
                await each.aclose()
        return True

    return asyncio.run(play())


def waits(size: int) -> bool:
    follower = _Follower(0)
    follower.behind = False
    follower.take(1, "x" * (size - 32))
    return not follower.behind


def free(seconds: float, **settings: float) -> bool:
    """Whether a peer is heard at once that has had so much done at once, though another takes its turn just now."""
    turns = Turns(lambda: 0.0, **settings)  # type: ignore[arg-type]
    turns.take(1.0)
    budget = turns.budget("a")
    budget.spend(seconds)
    return budget.turn() <= 0.0


def share(wanted: int, **settings: int) -> bool:
    """Whether peers that take turns have so much of the time between."""
    turns = Turns(lambda: 0.0, **settings)  # type: ignore[arg-type]
    first, second = turns.take(1.0), turns.take(1.0)
    return 100 / (second - first) >= wanted


def out(seconds: int) -> bool:
    """Whether a peer that was put out is out for so long."""
    turns = Turns(lambda: 0.0)
    turns.put_out("a")
    return turns.admission("a") >= seconds


def admitted(count: int) -> bool:
    """Whether a peer is let in so often at once, though others take turns just now."""
    turns = Turns(lambda: 0.0)
    turns.take(1.0)
    return max(turns.admission("a") for _ in range(count)) == 0.0


def shaken(count: int) -> bool:
    """Whether so many handshakes go on beside each other."""

    async def play() -> bool:
        there = handshake.Handshakes()
        async with AsyncExitStack() as places:
            for number in range(count):
                await places.enter_async_context(there.place(f"ipv4:10.0.0.1:{number}"))
            await asyncio.sleep(0)
        return True

    try:
        return asyncio.run(play())
    except Refused:
        return False


def brought(count: int) -> bool:
    def hello(**more: Any) -> m.Hello:
        found = m.Hello(role=m.ROLE_RUN, nonce=bytes(32), capabilities=m.Capabilities(**more))
        found.version.CopyFrom(m.Version(least=1, most=1))
        return found

    for more in ({"kinds": names(count)}, {"dtypes": names(count)}, {"transforms": [m.Step()] * count}):
        try:
            handshake._check_hello(hello(**more))
        except ProtocolError as error:
            return error.code != m.CODE_TOO_LARGE
    return True


def texts(size: int) -> list[str]:
    """Names that take so many bytes in a list."""
    return [f"{number:0252}" for number in range((size >> 8) - 1)] + ["x" * (size % 256 + 252)]


def introduced(size: int, tmp_path: Path) -> bool:
    """Whether a node begins that hosts clients whose names take so much."""
    tmp_path.write_text("")  # where its folder should be
    settings: Any = SimpleNamespace(clients=texts(size), folder=tmp_path)
    try:
        asyncio.run(run_node(settings, asyncio.Event()))
    except SettingError:
        return False
    except FileExistsError:
        return True
    raise AssertionError


def hosted(size: int) -> bool:
    """Whether a relay says that it hosts all clients whose names take so much."""
    relay, clients = relays.World(), frozenset(texts(size))
    relay.put(Reached(relays.CLIENTS))
    relay.put(Hosting(clients))
    return frozenset(dict(relay.up)["hosted"].clients) == clients


def waiting(count: int) -> bool:
    """Whether so many nodes wait for approval."""
    office = admission.Office()
    for _ in range(count):
        with pytest.raises(Refused) as caught:
            office.node(SigningKey.new())
    return caught.value.code == m.CODE_NOT_APPROVED


def mailed(count: int) -> bool:
    """Whether a task is taken as one of so many that wait for a node."""
    world = World()
    world.node("a", "0")
    world.run()
    world.router.nodes.by_id["a"].waiting = count - 1
    asked(world, "0")
    return not world.said("r1", "result")


def wanted(count: int, tmp_path: Path) -> bool:
    async def play() -> bool:
        mine = Connection(pair()[0])
        exchange = Exchange(mine, Blobs(tmp_path), lambda run, blob: True)
        try:
            for number in range(count):
                exchange._wanted(m.Want(blob=m.Blob(sha256=number.to_bytes(32), size=1)))
            for number in range(count):
                exchange._given_up(number.to_bytes(32), "no")
        except ProtocolError as error:
            return error.code != m.CODE_BUSY
        finally:
            await exchange.close()
            await mine.close()
        return True

    return asyncio.run(play())


def answered(size: int) -> bool:
    """Whether an answer is kept that takes so much beside its blob."""
    result = m.Message(result=m.Result(run="r", failure=m.Failure(reason="x" * size)))
    result.result.failure.reason = "x" * (2 * size - result.ByteSize())
    assert result.ByteSize() == size
    return not fields.too_large(AnswerEntry("0.0", result, ("0.0",), "a"), m.AskSpec(), lambda role: 1 << 40)


def folded(size: int) -> bool:
    """Whether a partial is kept whose blob has so much beside twice an update."""
    blob = m.Payload(blob=m.Blob(sha256=bytes(32), size=2000 + size))
    partial = m.Message(partial=m.Partial(run="r", partial=blob))
    ask = m.AskSpec(most_bytes=1000)
    return not fields.too_large(AnswerEntry("p", partial, ("0.0",), "a"), ask, lambda role: 1 << 40)


def taken(kind: str, body: Any) -> bool:
    try:
        fields.check(kind, body)
    except ProtocolError as error:
        return error.code != m.CODE_TOO_LARGE
    return True


def names(count: int) -> list[str]:
    return ["x"] * count


PROBES: dict[str, Callable[..., bool]] = {
    "HANDSHAKES": shaken,
    "CAPABILITIES": brought,
    "HELLO_BYTES": introduced,
    "PENDING": waiting,
    "FRAME_BYTES": lambda n: frame_of(n, frames.standard_limits()),
    "HANDSHAKE_FRAME_BYTES": lambda n: frame_of(n, frames.handshake_limits()),
    "CHUNK_BYTES": lambda n: a_message(chunk=m.Chunk(sha256=bytes(32), data=bytes(n))),
    "INLINE_BYTES": lambda n: a_message(ask_spec=m.AskSpec(model=m.Payload(inline=bytes(n)))),
    "NAME_BYTES": lambda n: a_message(hosted=m.Hosted(clients=["x" * n])),
    "FRAME_MESSAGES": messages,
    "JSON_DEPTH": deep,
    "PEER_MICROSECONDS": lambda n: free(n / 1e6),
    "TURNS_PERCENT": share,
    "RUN_MILLISECONDS": lambda n: free(n / 1e3, free=limits.RUN_MILLISECONDS / 1e3),
    "RUNS_PERCENT": lambda n: share(n, percent=limits.RUNS_PERCENT),
    "PUT_OUT_SECONDS": out,
    "ADMISSIONS": admitted,
    "NODE_CLIENTS": lambda n: taken("hosted", m.Hosted(clients=names(n))),
    "HOSTED_BYTES": hosted,
    "MAILBOX": mailed,
    "WANTS": wanted,
    "ANSWER_BYTES": answered,
    "PARTIAL_BYTES": folded,
    "ALIVE_TASKS": lambda n: all(
        [taken("alive", m.Alive(tasks=names(n))), taken("run_answer", m.RunAnswer(clients=names(n)))]
    ),
    "CANCEL_TASKS": lambda n: all(
        [
            taken("cancel", m.Cancel(tasks=names(n))),
            taken("refold", m.Refold(without=names(n))),
            taken("partial", m.Partial(partial=m.Payload(), receipts=[m.Receipt(task=str(i)) for i in range(n)])),
        ]
    ),
    "SPEC_BYTES": lambda n: all(
        [
            taken("run_spec", m.RunSpec(config='{"a":"' + "x" * (n - 8) + '"}')),
            taken("run_spec", m.RunSpec(clients=["x" * 252] * ((n >> 8) - 1) + ["x" * (n % 256 + 252)])),
            taken("ask_spec", m.AskSpec(kind="k", digest=b"d", transforms="[]", fold="[" + " " * (n - 2) + "]")),
        ]
    ),
    "EVENT_BYTES": lambda n: logged(event(n)),
    "LOG_BYTES": log_of,
    "LOG_RESERVE_BYTES": log_with_end_of,
    "PRINTED_BYTES": printed,
    "REQUEST_BYTES": request,
    "OPERATOR_RUNS": going,
    "RESPONSE_BYTES": response,
    "FOLLOWERS": followers,
    "FOLLOWER_BYTES": waits,
}
ELSEWHERE = {
    "WINDOW_BYTES": "transport/test_grpc.py",
    "HANDSHAKE_SECONDS": "transport/test_handshake.py",
    "OPERATOR_CONNECTIONS": "server/test_connections.py",
    "MESSAGE_BYTES": "transport/test_grpc.py",
    "QUEUE_BYTES": "transport/test_connection.py",
    "TURN_WAITING_BYTES": "transport/test_connection.py",
    "OPERATOR_REQUESTS": "server/test_connections.py",
    "ANSWER_WAITING_BYTES": "server/test_connections.py",
    "SIDE_PENDING": "transport/test_side.py",
    "SIDE_STREAMS": "transport/test_side.py",
    "PEER_SIDE_STREAMS": "transport/test_side.py",
    "SIDE_SECONDS": "transport/test_side.py",
    "HTTP_CONNECTIONS": "server/test_pages.py",
    "HTTP_SECONDS": "server/test_pages.py",
    "HTTP_BYTES": "server/test_pages.py",
    "NOTES": "cli/test_repeats.py",
}
"""Limits that need a connection, or the real clock of a loop: where they are tested."""


@pytest.mark.parametrize("limit", [each for each in LIMITS if each.name not in ELSEWHERE], ids=lambda each: each.name)
def test_what_is_at_a_limit_is_taken_and_one_more_is_not(limit: limits.Limit, tmp_path: Path) -> None:
    probe = PROBES[limit.name]
    below = probe in (request, response, printed, introduced, wanted, going)
    assert probe(limit.value, *[tmp_path / "at"] * below)
    assert not probe(limit.value + 1, *[tmp_path / "beyond"] * below)


def test_every_limit_is_tested() -> None:
    assert {each.name for each in LIMITS} == PROBES.keys() | ELSEWHERE.keys()
    for name, file in ELSEWHERE.items():
        assert name in (ROOT / "tests" / file).read_text(encoding="utf-8")


def test_the_page_shows_the_table() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    shown = page.partition("<!-- limits -->\n")[2].partition("\n<!-- /limits -->")[0]
    assert shown == limits.table(), f"write this there:\n{limits.table()}"
