"""Whatever a peer sends to a live server: it gets an answer or is shut out, and everybody else is served meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import threading
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from grpc import aio, ssl_channel_credentials
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import PATIENCE, some
from tests.deployment.conftest import APP, app_of
from tests.deployment.peers import Raw, connected, node_hello, reach, token_of

import umbel
from umbel.transport import frames, grpc
from umbel.transport.handshake import Handshakes
from umbel.trust.authority import JoinText
from umbel.trust.identity import SigningKey
from umbel.trust.proofs import NodeProof, TokenProof
from umbel.wire import messages as m

ROLES = ("nobody", "node", "run", "operator")
NAMES = st.sampled_from(["", "0", "1", "0.0", "1.0", "hostile", "other", "a/b", "..", "9" * 30, "é" * 200, "x" * 300])
NUMBERS = st.sampled_from([0, 1, 2, 3, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1])
KINDS = [field.name for field in m.Message.DESCRIPTOR.fields]


def fields(kind: type[Any], depth: int = 0) -> st.SearchStrategy[Any]:
    """Messages of a kind, with whatever in their fields."""
    values: dict[str, st.SearchStrategy[Any]] = {}
    for field in kind.DESCRIPTOR.fields:
        of = field.type
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            value: st.SearchStrategy[Any] = st.dictionaries(NAMES, st.floats(), max_size=2)
            values[field.name] = value
            continue
        if inner is not None:
            value = fields(getattr(m, inner.name), depth + 1)
        elif of == FieldDescriptor.TYPE_STRING:
            value = NAMES | st.sampled_from(['{"event": "round_committed"}', '{"event": 1}', "[", "[]", "finished"])
        elif of == FieldDescriptor.TYPE_BYTES:
            value = st.binary(max_size=8) | st.just(b"k" * 32)
        elif of == FieldDescriptor.TYPE_BOOL:
            value = st.booleans()
        elif of == FieldDescriptor.TYPE_DOUBLE:
            value = st.floats()
        elif of == FieldDescriptor.TYPE_ENUM:
            value = st.integers(0, 15)
        else:
            value = NUMBERS.map(lambda n, most=2**32 if of == FieldDescriptor.TYPE_UINT32 else 2**64: n % most)
        values[field.name] = st.lists(value, max_size=2) if field.is_repeated else value
    return st.fixed_dictionaries({}, optional=values).map(lambda given, kind=kind: _made(kind, given))


def _made(kind: type[Any], given: dict[str, Any]) -> Any:
    members = {field.name for oneof in kind.DESCRIPTOR.oneofs for field in oneof.fields}
    chosen = [name for name in given if name in members][:1]
    return kind(**{name: value for name, value in given.items() if name not in members or name in chosen})


def messages() -> st.SearchStrategy[m.Message]:
    """One message of any kind."""
    bodies = {field.name: fields(getattr(m, field.message_type.name)) for field in m.Message.DESCRIPTOR.fields}
    return st.one_of([value.map(lambda body, name=name: m.Message(**{name: body})) for name, value in bodies.items()])


STEPS = st.one_of(
    st.tuples(st.just("say"), st.lists(messages(), min_size=1, max_size=3)),
    st.tuples(st.just("say"), st.lists(messages(), min_size=1, max_size=1)),
    st.tuples(st.just("own"), messages()),
    st.tuples(st.just("own"), messages()),
    st.tuples(st.just("misnumbered"), NUMBERS),
    st.tuples(st.just("bytes"), st.binary(max_size=100)),
    st.tuples(st.just("large"), st.sampled_from([300_000, 5 << 20, 9 << 20])),
    st.tuples(st.just("again"), st.none()),
    st.tuples(st.just("empty"), st.none()),
)


class Attacker:
    """Connects as one of the roles, in a loop of its own, and does what it is told: as somebody else each time, since
    who was put out has to wait before it is let in again.
    """

    def __init__(self, machines: Any) -> None:
        self.machines = machines
        self._office = machines.office()
        self._numbers = itertools.count()
        self.run_line = self._office.call("operators.add", name="mallory", role="run")["line"]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def close(self) -> None:
        """End the loop."""
        self._office.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def attack(self, role: str, steps: list[tuple[str, Any]]) -> m.Problem | None:
        """Do the steps, and then ask for a sign of life; gives the problem that the server had, if it had one."""
        attack = self._attack(role, self.line(role), steps)
        return asyncio.run_coroutine_threadsafe(attack, self._loop).result(PATIENCE)

    def line(self, role: str) -> str:
        """What lets in somebody of a role who has not been there before; a run's may come again at once."""
        if role == "node":
            return str(self._office.call("nodes.invite")["line"]).split()[-1]
        if role == "operator":
            return str(self._office.call("operators.add", name=f"eve-{next(self._numbers)}", role="read")["line"])
        return self.run_line

    async def _attack(self, role: str, line: str, steps: list[tuple[str, Any]]) -> m.Problem | None:
        raw = await self._raw(role, line)
        try:
            for step, value in steps:
                if not await self._step(raw, step, value):
                    break
            await raw.say(m.Message(ping=m.Ping(id=77)))
            while (heard := await raw.hear()) is not None:
                for message in heard:
                    if message.WhichOneof("body") == "problem":
                        return message.problem
                    if message.WhichOneof("body") == "pong" and message.pong.id == 77:
                        return None
            return m.Problem(code=m.CODE_UNSPECIFIED, text="the stream ended")
        finally:
            await raw.close()

    async def _raw(self, role: str, line: str) -> Raw:
        if role == "nobody":
            return Raw(await reach(self.machines))
        if role == "node":
            prover: Any = NodeProof(SigningKey.new(), token_of(line))
            hello = node_hello(prover, "hostile", "0")
        else:
            prover = TokenProof(token_of(line))
            kind = m.ROLE_RUN if role == "run" else m.ROLE_OPERATOR
            hello = m.Hello(role=kind, name="hostile" if role == "run" else "", token=prover.token.id)
        connection = await connected(self.machines, prover, hello)
        raw = Raw(connection._stream)
        raw.number = connection.sent.frames
        connection._writer.cancel()  # from here on every byte is the test's
        if connection._timer is not None:
            connection._timer.cancel()
        return raw

    async def _step(self, raw: Raw, step: str, value: Any) -> bool:
        if step == "say":
            return await raw.say(*value)
        if step == "own":  # as if it were about a run of its own
            body = getattr(value, value.WhichOneof("body"))
            if "run" in body.DESCRIPTOR.fields_by_name:
                body.run = "hostile"
            return await raw.say(value)
        if step == "misnumbered":
            return await raw.say(m.Message(ping=m.Ping(id=1)), number=value)
        if step == "again":
            return await raw.send(raw.sent[-1] if raw.sent else b"\x08\x01")
        if step == "empty":
            return await raw.say()
        if step == "large":
            raw.number += 1
            chunk = frames.chunk(b"s" * 32, 0, bytes(value))
            return await raw.send(frames.frame(raw.number, [chunk]))
        return await raw.send(value)


@pytest.fixture(scope="module")
def attacker(machines):
    machines.start_server()
    machines.start_nodes(2)
    made = Attacker(machines)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("role", some(ROLES, 1))
def test_each_gets_a_problem_or_an_answer_and_an_honest_run_goes_on(attacker, role):
    machines = attacker.machines
    run = machines.submit(f"{APP}:whole", 4, "--only=0", "--only=1")

    @settings(suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(STEPS, min_size=1, max_size=5))
    def attacked(steps):
        problem = attacker.attack(role, steps)
        assert problem is None or problem.code != m.CODE_INTERNAL, (problem, steps)

    attacked()
    with machines.office() as office:
        expected = umbel.run(app_of("whole"), on=umbel.Simulation(clients=2), seed=4, folder=None)
        assert machines.finished(run, office)["model_sha256"] == expected.model_sha256
        assert {row["run"] for row in office.call("runs.list")["runs"]} >= {run}
        for row in office.call("runs.list")["runs"]:
            office.call("runs.show", run=row["run"])
            list(office.logs(row["run"], follow=False))
        office.call("server.status")
    for process in machines.ended:
        assert "Traceback" not in process.output, process.output


EARLY = (m.Message(ping=m.Ping(id=1)), m.Message(request=m.Request(id=1, method="nodes.list")))


@pytest.mark.parametrize(
    ("role", "messages", "code"),
    [
        *(("nobody", [early], m.CODE_OUT_OF_ORDER) for early in EARLY),
        ("node", [m.Message(run_spec=m.RunSpec(run="hostile"))], m.CODE_NOT_ALLOWED),
        ("node", [m.Message(request=m.Request(id=1, method="nodes.list"))], m.CODE_NOT_ALLOWED),
        ("node", [m.Message(result=m.Result(run="x", task="1.0", ask=1, client="0", attempt=1))], m.CODE_MALFORMED),
        ("operator", [m.Message(task=m.Task(run="hostile"))], m.CODE_NOT_ALLOWED),
        ("run", [m.Message(run_spec=m.RunSpec(run="other"))], m.CODE_NOT_ALLOWED),
        ("run", [m.Message(ask_spec=m.AskSpec(run="hostile", ask=2**63))], m.CODE_MALFORMED),
        ("run", [m.Message(log_event=m.LogEvent(run="hostile", number=2**64 - 1, event="{}"))], m.CODE_MALFORMED),
        ("run", [m.Message(log_event=m.LogEvent(run="hostile", number=1, event="["))], m.CODE_MALFORMED),
        ("run", [m.Message(close_ask=m.CloseAsk(run="hostile", ask=2**63))], m.CODE_MALFORMED),
        ("run", [m.Message(task=m.Task(run="hostile", task="5.0", ask=5, client="0", attempt=1))], m.CODE_MALFORMED),
    ],
)
def test_what_is_wrong_is_named(attacker, role, messages, code):
    # What a server says last can be lost where the peer was not reading when the stream ended.
    tries = (attacker.attack(role, [("say", messages)]) for _ in range(5))
    problem = next(found for found in tries if found is not None and found.code)
    assert m.Code.Name(problem.code) == m.Code.Name(code), problem


def test_nobody_is_kept_out_by_others_who_connect_and_do_not_say_who_they_are(attacker):
    """Streams that say nothing, that stop after Hello, and sockets that say nothing at all; more than have a place."""
    machines = attacker.machines
    root = JoinText.parse(machines.token).root()

    async def scenario() -> None:
        host, port = machines.address.split(":")
        sockets = [await asyncio.open_connection(host, port) for _ in range(20)]
        channels, calls = [], []
        for number in range(7):
            options = (*grpc._CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", grpc.SERVER_NAME), ("number", number))
            channels.append(aio.secure_channel(machines.address, ssl_channel_credentials(root), options))
            calls += [channels[-1].stream_stream(grpc.METHOD)() for _ in range(90)]
            await asyncio.gather(*(call.wait_for_connection() for call in calls[-90:]))
        hello = m.Hello(role=m.ROLE_OPERATOR, token="x", nonce=bytes(32), version=m.Version(least=1, most=1))
        half = frames.frame(1, [[m.Message(hello=hello).SerializeToString()]])
        assert len(calls) > Handshakes().most
        for call in calls[::2]:
            with suppress(aio.AioRpcError, asyncio.CancelledError, asyncio.InvalidStateError):
                await call.write(b"\0" + half)
        prover = TokenProof(token_of(attacker.line("operator")))
        connection = await connected(machines, prover, m.Hello(role=m.ROLE_OPERATOR, token=prover.token.id))
        assert not connection.closed
        await connection.close()
        told = m.Frame.FromString((await calls[1].read())[1:]).messages[0]  # the oldest that has not said anything
        assert (told.problem.code, told.problem.retry) == (m.CODE_BUSY, True)
        for channel in channels:
            await channel.close()
        for _, writer in sockets:
            writer.close()

    asyncio.run(scenario())
