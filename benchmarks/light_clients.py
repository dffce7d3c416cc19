"""Nodes that only speak: the real protocol over gRPC with TLS, keys of their own, joined by tokens; but many of them in
one process, without children, and with nothing on disk.

Each function below `LightNode` is the whole of a process. It prints lines that begin with a word, the last of them
`said` and what it has measured.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from umbel import Arrays, Update
from umbel.core import encoding
from umbel.errors import PeerError
from umbel.office.connection import OperatorConnection
from umbel.store.blobs import Blobs
from umbel.transport import frames, grpc
from umbel.transport.connection import Connection
from umbel.transport.handshake import introduce
from umbel.transport.side import PIECE, SideDialer
from umbel.trust.authority import JoinText
from umbel.trust.credentials import find
from umbel.trust.identity import SigningKey
from umbel.trust.proofs import NodeProof, TokenProof
from umbel.wire import messages as m

AT_ONCE = 32
"""So many connect at the same time; a server takes part in 64 handshakes."""
WINDOW = 8 << 20
RATE_RUN = "rate"
UPDATE_FLOATS = 256


class LightNode:
    """A node that says yes to every run, and leaves the rest to whoever extends it."""

    def __init__(self, name: str, clients: list[str]) -> None:
        self.name = name
        self.clients = clients
        self.connection: Connection
        self.dialer: SideDialer
        self._key = SigningKey.new()
        self._token_used = False

    async def join(self, address: str, join: JoinText) -> None:
        """Connect, and be let in: by a token the first time, and as who it is from then on."""
        token = None if self._token_used else join.token
        self.connection = Connection(await grpc.connect(address, join.root()))
        hello = m.Hello(
            role=m.ROLE_NODE,
            name=self.name,
            key=self._key.public,
            token=token.id if token else "",
            clients=self.clients,
        )
        welcome = await introduce(self.connection, NodeProof(self._key, token), hello)
        self.dialer = SideDialer(self.connection.beside, welcome.side_port)
        self._token_used = True
        self.connection.on_blob = self.blob

    async def live(self) -> None:
        """Hear until the connection is over."""
        try:
            while True:
                for message in await self.connection.receive():
                    self.heard(message)
        except PeerError:
            return

    def heard(self, message: m.Message) -> None:
        """A message has come."""
        if message.WhichOneof("body") == "run_spec":
            self.say(run_answer=m.RunAnswer(run=message.run_spec.run, ready=True))

    def blob(self, message: m.Message) -> bool:
        """A message about blobs has come; whether it was asked for."""
        return True

    def say(self, **body: Any) -> None:
        """Send a message."""
        self.connection.post(m.Message(**body))


async def invited(folder: str, count: int) -> tuple[str, list[JoinText]]:
    """The address of the server in a folder, and so many invitations."""
    credentials = find(None, None, Path(folder))
    with tempfile.TemporaryDirectory() as scratch:
        stream = await grpc.connect(credentials.address, credentials.join.root())
        talk = await OperatorConnection.begun(stream, credentials, Blobs(scratch))
        lines = [json.loads((await talk.ask("nodes.invite", "{}").next()).body)["line"] for _ in range(count)]
        await talk.close()
    return credentials.address, [JoinText.parse(line.split()[-1]) for line in lines]


async def joined(folder: str, nodes: list[LightNode]) -> list[asyncio.Task[None]]:
    """Have nodes join; they live in these tasks."""
    address, joins = await invited(folder, len(nodes))
    places = asyncio.Semaphore(AT_ONCE)

    async def begin(node: LightNode, join: JoinText) -> asyncio.Task[None]:
        async with places:
            await node.join(address, join)
            return asyncio.create_task(node.live())

    return list(await asyncio.gather(*map(begin, nodes, joins)))


def _process(work: Coroutine[Any, Any, dict[str, Any]]) -> None:
    gc.disable()

    async def main() -> None:
        print("said", json.dumps(await work), flush=True)
        os._exit(0)  # to part with thousands one by one would take long, and is not what is measured

    asyncio.run(main())


# Idle


def idle(folder: str, pid: int, count: int, seconds: float) -> None:
    """Have many nodes be connected and do nothing; what that costs the server's process."""
    _process(_idle(folder, pid, count, seconds))


async def _idle(folder: str, pid: int, count: int, seconds: float) -> dict[str, Any]:
    before, began = _held(pid), time.perf_counter()
    tasks = await joined(folder, [LightNode(f"light-{n}", [f"c{n}"]) for n in range(count)])
    connecting = time.perf_counter() - began
    cpu, began = _cpu(pid), time.perf_counter()
    await asyncio.sleep(seconds)
    share = (_cpu(pid) - cpu) / (time.perf_counter() - began)
    return {
        "connected": sum(not task.done() for task in tasks),
        "connecting": connecting,
        "before": before,
        "bytes": _held(pid),
        "share": share,
    }


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _held(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) * 1024


# Many small results


class _Ready(LightNode):
    """Collects its tasks, and answers all of them at a word."""

    def __init__(self, name: str, clients: list[str]) -> None:
        super().__init__(name, clients)
        self.tasks: list[m.Task] = []
        self.acknowledged = 0
        self.all_here, self.all_acknowledged = asyncio.Event(), asyncio.Event()
        self.wanted = 0

    def heard(self, message: m.Message) -> None:
        super().heard(message)
        kind = message.WhichOneof("body")
        if kind == "task":
            self.tasks.append(message.task)
            if len(self.tasks) == self.wanted:
                self.all_here.set()
        elif kind == "ack":
            self.acknowledged += len(message.ack.tasks)
            if self.acknowledged == self.wanted:
                self.all_acknowledged.set()

    def answer(self, update: bytes) -> None:
        """Post all results."""
        for task in self.tasks:
            receipt = m.Receipt(task=task.task, client=task.client, weight=1.0)
            done = m.Done(receipt=receipt, update=m.Payload(inline=update))
            self.say(
                result=m.Result(
                    run=task.run, task=task.task, ask=task.ask, client=task.client, attempt=task.attempt, done=done
                )
            )


def rate(folder: str, line: str, nodes: int, clients: int, asks: int) -> None:
    """Have nodes answer many tasks at once, each with an update of 1 KB, until the last of them is acknowledged.

    The process is also the run: it is let in by `line`.
    """
    _process(_rate(folder, JoinText.parse(line), nodes, clients, asks))


async def _rate(folder: str, join: JoinText, nodes: int, clients: int, asks: int) -> dict[str, Any]:
    holders = [_Ready(f"light-{n}", [f"c{n}-{c}" for c in range(clients)]) for n in range(nodes)]
    for holder in holders:
        holder.wanted = clients * asks
    living = await joined(folder, list(holders))
    connection, results = await _begun(folder, join, nodes * clients)
    for ask in range(asks):
        spec = m.AskSpec(
            run=RATE_RUN, ask=ask, round=1, number=ask, kind="train", lane=f"train{ask}", digest=bytes(32),
            cohort=nodes * clients, fold="[]", transforms="[]",
            shared=m.Payload(inline=encoding.encode({})),
        )  # fmt: skip
        connection.post(m.Message(ask_spec=spec))
        for holder in holders:
            for client in holder.clients:
                task = m.Task(
                    run=RATE_RUN, task=f"{ask}.{client}", ask=ask, client=client, attempt=1, key=bytes(32),
                    data_key=bytes(32),
                )  # fmt: skip
                connection.post(m.Message(task=task))
    await asyncio.gather(*(holder.all_here.wait() for holder in holders))
    update = encoding.encode(Update({"w": np.ones(UPDATE_FLOATS, np.float32)}, delta=True))
    began = time.perf_counter()
    for holder in holders:
        holder.answer(update)
    await asyncio.gather(*(holder.all_acknowledged.wait() for holder in holders))
    seconds = time.perf_counter() - began
    assert not any(task.done() for task in living)
    return {"results": nodes * clients * asks, "forwarded": len(results), "seconds": seconds, "bytes": len(update)}


async def _begun(folder: str, join: JoinText, clients: int) -> tuple[Connection, list[None]]:
    """A run's connection, once all clients are ready; and what counts the results that come."""
    assert join.token is not None
    address = find(None, None, Path(folder)).address
    connection = Connection(await grpc.connect(address, join.root()))
    hello = m.Hello(role=m.ROLE_RUN, name=RATE_RUN, token=join.token.id)
    await introduce(connection, TokenProof(join.token), hello)
    ready: set[str] = set()
    all_ready = asyncio.Event()
    results: list[None] = []

    async def hear() -> None:
        while True:
            for message in await connection.receive():
                kind = message.WhichOneof("body")
                if kind == "result":
                    results.append(None)
                elif kind == "members":
                    ready.update(e.client for e in message.members.members if e.standing == m.STANDING_READY)
                    if len(ready) == clients:
                        all_ready.set()

    hearing = asyncio.create_task(hear())

    def over(error: PeerError) -> None:
        hearing.cancel()

    connection.on_close.append(over)
    connection.post(m.Message(run_spec=m.RunSpec(run=RATE_RUN, name="rate", archive=m.Payload(inline=b"none"))))
    await all_ready.wait()
    return connection, results


# Large models


class _Nowhere:
    offset = 0

    def write(self, data: bytes | memoryview) -> None:
        self.offset += len(data)

    def skip(self, count: int) -> None:
        self.offset += count


class _Streamer(LightNode):
    """Takes in the model without keeping it, and answers from a file, whose first bytes are its own."""

    def __init__(self, name: str, clients: list[str], file: int, head: bytes, blob: m.Blob) -> None:
        super().__init__(name, clients)
        self.down = self.up = 0
        self.began = 0.0
        self.acknowledged = asyncio.Event()
        self._file, self._head, self._update = file, head, blob
        self._asks: dict[int, m.AskSpec] = {}
        self._task: m.Task | None = None
        self._model: m.Blob | None = None
        self._credit = 0
        self._granted = asyncio.Event()
        self._moving: asyncio.Task[None] | None = None

    def heard(self, message: m.Message) -> None:
        super().heard(message)
        kind = message.WhichOneof("body")
        if kind == "ask_spec":
            self._asks[message.ask_spec.ask] = message.ask_spec
        elif kind == "task":
            self._task = message.task
            self._model = self._asks[message.task.ask].model.blob
            self.began = time.perf_counter()
            self.say(want=m.Want(blob=self._model, run=message.task.run, credit=WINDOW, dials=True))
        elif kind == "ack":
            self.acknowledged.set()

    def blob(self, message: m.Message) -> bool:
        kind = message.WhichOneof("body")
        if kind == "chunk":
            assert self._model is not None
            assert self._task is not None
            assert message.chunk.offset == self.down
            size = len(message.chunk.data)
            self.down += size
            if self.down < self._model.size:
                self.say(credit=m.Credit(sha256=self._model.sha256, bytes=size))
            else:
                self._answer()
        elif kind == "linked":
            self._moving = asyncio.create_task(self._receive_beside(message.linked.ticket))
        elif kind == "want":
            self._credit = message.want.credit
            way = self._send_beside(message.want) if message.want.ticket else self._send(message.want.offset)
            self._moving = asyncio.create_task(way)
        elif kind == "credit":
            self._credit += message.credit.bytes
            self._granted.set()
        else:
            raise RuntimeError(f"{kind} came where blobs are sent")
        return True

    def _answer(self) -> None:
        task = self._task
        assert task is not None
        done = m.Done(
            receipt=m.Receipt(task=task.task, client=task.client, weight=1.0), update=m.Payload(blob=self._update)
        )
        self.say(
            result=m.Result(
                run=task.run, task=task.task, ask=task.ask, client=task.client, attempt=task.attempt, done=done
            )
        )

    async def _receive_beside(self, ticket: bytes) -> None:
        stream = await self.dialer.dial(ticket)
        assert stream is not None
        assert self._model is not None
        with closing(stream):
            await stream.receive(_Nowhere(), self._model.size, lambda offset: None)
        self.down = self._model.size
        self._answer()

    async def _send_beside(self, want: m.Want) -> None:
        stream = await self.dialer.dial(want.ticket)
        assert stream is not None

        def send() -> None:
            for offset in range(want.offset, want.blob.size, PIECE):
                stream._socket.sendall(b"\0" + self._read(offset, min(PIECE, want.blob.size - offset)))
            stream._socket.recv(1)

        with closing(stream):
            await asyncio.to_thread(send)
        self.up = want.blob.size

    def _read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._file, size, offset)
        if offset < len(self._head):
            data = self._head[offset : offset + len(data)] + data[max(0, len(self._head) - offset) :]
        return data

    async def _send(self, offset: int) -> None:
        size = self._update.size
        while offset < size:
            while not self._credit:
                self._granted.clear()
                await self._granted.wait()
            data = self._read(offset, min(1 << 20, size - offset, self._credit))
            self._credit -= len(data)
            await self.connection.send(frames.chunk(self._update.sha256, offset, data))
            offset += len(data)
            self.up = offset


def stream(folder: str, path: str, nodes: int, floats: int, arrays: int) -> None:
    """Have a few nodes take a large model, and each give an update of that size, all from the one file at `path`."""
    _process(_stream(folder, Path(path), nodes, floats, arrays))


async def _stream(folder: str, path: Path, nodes: int, floats: int, arrays: int) -> dict[str, Any]:
    block = np.random.default_rng(1).random(floats // arrays, dtype=np.float32)
    updates = [
        Update(Arrays({f"w{i}": block for i in range(arrays)}), weight=float(n + 1), delta=True) for n in range(nodes)
    ]
    _, size = encoding.save_file(path, updates[0])
    file = os.open(path, os.O_RDONLY)
    streamers = []
    for number, update in enumerate(updates):
        hashed = hashlib.sha256()
        pieces = encoding.pieces(update)
        head = bytes(next(pieces))
        hashed.update(head)
        for piece in pieces:
            hashed.update(piece)
        blob = m.Blob(sha256=hashed.digest(), size=size)
        streamers.append(_Streamer(f"light-{number}", [str(number)], file, head, blob))
    await joined(folder, list(streamers))
    print("ready", flush=True)
    await asyncio.gather(*(streamer.acknowledged.wait() for streamer in streamers))
    seconds = time.perf_counter() - min(streamer.began for streamer in streamers)
    return {"bytes": sum(streamer.down + streamer.up for streamer in streamers), "seconds": seconds}
