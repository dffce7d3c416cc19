"""What a server shows over HTTP: whether it is well, a page for people, and metrics for Prometheus."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import socket
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from string import Template
from typing import Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import SettingError
from ..wire.limits import HTTP_BYTES, HTTP_CONNECTIONS, HTTP_SECONDS

BOUNDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
"""Upper bounds, in seconds, of the buckets for how long a commit takes."""
BACKLOG = 16
LATELY = 0.5
"""For so many seconds the facts are taken to be as they were."""
ROWS = 500
"""How many nodes and runs the page lists."""
NAMED = 5
"""How many failed runs it names first."""


class Latencies:
    """How often something took how many seconds."""

    def __init__(self, bounds: tuple[float, ...] = BOUNDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Count one more."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.seconds += seconds


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """A node: `status` is pending, approved or revoked; `seen_at` is the time of its last connection's end."""

    id: str
    name: str
    status: str
    connected: bool = False
    clients: int = 0
    tasks: int = 0
    seen_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run: `round` of `rounds` is committed, `ready` clients can be asked, `waiting` tasks are unanswered."""

    id: str
    name: str
    status: str
    owner: str = ""
    round: int = 0
    rounds: int = 0
    ready: int = 0
    waiting: int = 0


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """A server at the time `now`, in seconds since 1970 as all times here; `problem` says what is wrong, if anything
    is. Totals count since the start. Nothing here may be a secret.
    """

    server: str
    software: str
    started_at: float
    now: float
    problem: str = ""
    nodes: tuple[NodeFacts, ...] = ()
    runs: tuple[RunFacts, ...] = ()
    sessions: Mapping[str, int] = field(default_factory=dict)
    answers_stored: int = 0
    blob_bytes: int = 0
    blob_quota: int | None = None
    node_quota: int | None = None
    blobs_waiting: int = 0
    store_bytes: int = 0
    disk_free: int | None = None
    commits: Latencies = field(default_factory=Latencies)
    frames_in: int = 0
    frames_out: int = 0
    certificate_until: float | None = None

    @property
    def storage(self) -> dict[str, int | None]:
        """What the blobs take and may take, those of one node, how many wait for room, and what is free on the disk."""
        return {
            "bytes": self.blob_bytes,
            "quota": self.blob_quota,
            "node_quota": self.node_quota,
            "waiting": self.blobs_waiting,
            "disk_free": self.disk_free,
        }

    @property
    def waiting(self) -> int:
        """The tasks of all runs that are unanswered."""
        return sum(run.waiting for run in self.runs)


class Facts(Protocol):
    """Whoever knows how the server is; answers at once, in the event loop."""

    def facts(self) -> ServerFacts: ...


def application(facts: Facts, names: Sequence[str] = ()) -> Starlette:
    """The pages as an ASGI application: ``/``, ``/health`` and ``/metrics``. Nothing can be changed there. Who asks for
    another host than one of these `names`, localhost or an address gets nothing: any page on the web could have the
    name of its own site lead here, and read what is shown.
    """
    shown = _Lately(facts)
    known = frozenset(name.lower() for name in (*names, "localhost"))

    async def health(request: Request) -> Response:
        try:
            known = shown()
        except Exception as error:
            return JSONResponse({"status": "failing", "problem": f"{type(error).__name__} in the server"}, 503)
        body = {
            "status": "failing" if known.problem else "ok",
            "problem": known.problem,
            "server": known.server,
            "software": known.software,
            "uptime": round(known.now - known.started_at, 3),
            "storage": known.storage,
            "certificate_until": known.certificate_until,
        }
        return JSONResponse(body, 503 if known.problem else 200)

    async def page(request: Request) -> Response:
        policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
        return HTMLResponse(html(shown()), headers={"Content-Security-Policy": policy})

    async def numbers(request: Request) -> Response:
        return PlainTextResponse(metrics(shown()), media_type="text/plain; version=0.0.4")

    return Starlette(
        routes=[Route("/", page), Route("/health", health), Route("/metrics", numbers)],
        middleware=[Middleware(_Hosts, known=known)],
    )


class _Lately:
    """The facts as they were a moment ago: all clients and tasks are counted for them, whoever asks how often."""

    def __init__(self, facts: Facts, clock: Callable[[], float] = time.monotonic) -> None:
        self._facts, self._clock = facts, clock
        self._at = 0.0
        self._known: ServerFacts | None = None

    def __call__(self) -> ServerFacts:
        now = self._clock()
        if self._known is None or now - self._at >= LATELY:
            self._known, self._at = self._facts.facts(), now
        return self._known


class _Hosts:
    """Refuses requests for hosts that are not known here."""

    def __init__(self, app: ASGIApp, known: frozenset[str]) -> None:
        self._app, self._known = app, known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hosts = [value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"host"]
        if len(hosts) == 1 and self._is_known(hosts[0]):
            await self._app(scope, receive, send)
        else:
            text = f"not known here as {', '.join(hosts)[:100]!r}: `umbel server --name` says by what names it is\n"
            await PlainTextResponse(text, 421)(scope, receive, send)

    def _is_known(self, host: str) -> bool:
        name = re.sub(r":[0-9]*$", "", host).strip("[]").lower().removesuffix(".")
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._known
        return True


async def serve(
    facts: Facts,
    host: str,
    port: int,
    *,
    names: Sequence[str] = (),
    listening: Callable[[int], None] = lambda port: None,
) -> None:
    """Serve the pages until cancelled, to those who ask for this host, one of these names, localhost or any address.

    `listening` is called with the port, which the system chooses for port 0. Raises `SettingError` for an address that
    cannot be listened on. Signals are left to the caller.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        place = socket.create_server((host, port), family=family)
    except OSError as error:
        known = error.errno is not None and error.errno > 0  # not so where the name of a host is not known
        reason = os.strerror(error.errno or 0) if known else error.strerror
        raise SettingError(
            f"{host}:{port} cannot be listened on: {reason}",
            hint="Give another address for the pages, or end the program that has this one.",
        ) from error
    with place:
        listening(place.getsockname()[1])
        config = uvicorn.Config(
            application(facts, (host, *names)),
            http=_Visit,
            h11_max_incomplete_event_size=HTTP_BYTES,
            # asyncio tries to accept so often in a row where there are no descriptors left, and notes it each time.
            backlog=BACKLOG,
            access_log=False,
            log_config=None,
            log_level="warning",
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        server = _PageServer(config)
        serving = asyncio.get_running_loop().create_task(server.serve(sockets=[place]))
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            server.should_exit = True
            await serving
            raise


class _Visit(H11Protocol):
    """A connection to the pages. Uvicorn bounds neither how many there are nor how long a request may take to come."""

    _over: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > HTTP_CONNECTIONS:
            transport.abort()
        else:
            self._over = self.loop.call_later(HTTP_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._over is not None:
            self._over.cancel()
        super().connection_lost(exc)


class _PageServer(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


# Metrics


def metrics(known: ServerFacts) -> str:
    """The facts in Prometheus' text format."""
    lines: list[str] = []

    def metric(name: str, kind: str, text: str, values: Iterable[tuple[Mapping[str, str], float]]) -> None:
        lines.extend((f"# HELP {name} {text}", f"# TYPE {name} {kind}"))
        lines.extend(f"{name}{_labels(labels)} {_number(value)}" for labels, value in values)

    def one(name: str, kind: str, text: str, value: float | None) -> None:
        if value is not None:
            metric(name, kind, text, [({}, value)])

    def many(name: str, kind: str, text: str, label: str, counts: Mapping[str, int]) -> None:
        metric(name, kind, text, [({label: key}, count) for key, count in sorted(counts.items())])

    statuses = {"approved": 0, "pending": 0, "restored": 0, "revoked": 0}
    metric("umbel_info", "gauge", "Who this is.", [({"server": known.server, "software": known.software}, 1)])
    one("umbel_healthy", "gauge", "1 where nothing is wrong.", float(not known.problem))
    one("umbel_uptime_seconds", "gauge", "Since the start.", known.now - known.started_at)
    many("umbel_nodes", "gauge", "Nodes.", "status", {**statuses, **Counter(node.status for node in known.nodes)})
    one("umbel_nodes_connected", "gauge", "Nodes connected.", sum(node.connected for node in known.nodes))
    many("umbel_sessions", "gauge", "Connected sessions.", "role", known.sessions)
    many("umbel_runs", "gauge", "Runs.", "status", Counter(run.status for run in known.runs))
    one("umbel_tasks_waiting", "gauge", "Tasks unanswered.", known.waiting)
    one("umbel_answers_stored_total", "counter", "Answers stored.", known.answers_stored)
    one("umbel_blob_bytes", "gauge", "Bytes of blobs on the disk.", known.blob_bytes)
    one("umbel_blob_quota_bytes", "gauge", "Bytes that blobs may take.", known.blob_quota)
    one("umbel_node_quota_bytes", "gauge", "Bytes that one node's blobs may take.", known.node_quota)
    one("umbel_blobs_waiting", "gauge", "Blobs that wait for room.", known.blobs_waiting)
    one("umbel_store_bytes", "gauge", "Bytes of the store.", known.store_bytes)
    one("umbel_disk_free_bytes", "gauge", "Bytes free on the disk.", known.disk_free)
    many("umbel_frames_total", "counter", "Frames.", "direction", {"in": known.frames_in, "out": known.frames_out})
    one("umbel_certificate_end_seconds", "gauge", "When the server's certificate ends.", known.certificate_until)
    lines.extend(_buckets("umbel_commit_seconds", "How long commits took.", known.commits))
    memory, descriptors = _process()
    one("process_resident_memory_bytes", "gauge", "Memory of the server.", memory)
    one("process_cpu_seconds_total", "counter", "Processor time of the server.", time.process_time())
    one("process_open_fds", "gauge", "Open files of the server.", descriptors)
    one("process_start_time_seconds", "gauge", "When it was started.", known.started_at)
    return "\n".join(lines) + "\n"


def _buckets(name: str, text: str, histogram: Latencies) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} histogram"
    below = 0
    for bound, count in zip((*map(_number, histogram.bounds), "+Inf"), histogram.counts, strict=True):
        below += count
        yield f'{name}_bucket{{le="{bound}"}} {below}'
    yield f"{name}_sum {_number(histogram.seconds)}"
    yield f"{name}_count {below}"


def _labels(labels: Mapping[str, str]) -> str:
    escaped = {key: text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for key, text in labels.items()}
    return "{" + ",".join(f'{key}="{text}"' for key, text in escaped.items()) + "}" if labels else ""


def _number(value: float) -> str:
    return repr(int(value)) if value == int(value) else repr(value)


def _process() -> tuple[int | None, int | None]:
    """The memory and the open files of this process, where the system tells."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))
    except OSError:
        return None, None


# The page


def html(known: ServerFacts) -> str:
    """The facts as one page that needs nothing else."""
    connected = sum(node.connected for node in known.nodes)
    nodes = sorted(known.nodes, key=lambda node: (node.status != "pending", not node.connected, node.name))
    used = _size(known.blob_bytes) + (f" of {_size(known.blob_quota)}" if known.blob_quota is not None else "")
    storage = [("blobs", used), ("store", _size(known.store_bytes))]
    if known.disk_free is not None:
        storage.append(("free on the disk", _size(known.disk_free)))
    return Template(files(__package__).joinpath("page.html").read_text(encoding="utf-8")).substitute(
        server=escape(known.server),
        software=escape(known.software),
        uptime=_span(known.now - known.started_at),
        health=_health(known),
        runs=_table(
            ("run", "", "status", "round", "clients ready", "tasks waiting", "owner"),
            [
                (run.id, run.name, _Status(run.status), _Bar(run.round, run.rounds), run.ready, run.waiting, run.owner)
                for run in known.runs[:ROWS]
            ],
            len(known.runs),
        ),
        count=f"{connected} of {len(known.nodes)} connected",
        nodes=_table(
            ("node", "", "status", "connection", "clients", "tasks"),
            [(n.name, n.id, n.status, _connection(n, known.now), n.clients, n.tasks) for n in nodes[:ROWS]],
            len(nodes),
        ),
        storage=_table((), storage, len(storage)),
    )


def _health(known: ServerFacts) -> str:
    """How the server is, and which runs came to nothing."""
    failed = [run.id for run in known.runs if run.status == "failed"]
    if known.problem or not failed:
        return f'<p class="bad">{escape(known.problem)}</p>' if known.problem else "<p>All is well.</p>"
    more = ", ..." if len(failed) > NAMED else ""
    runs = "1 run" if len(failed) == 1 else f"{len(failed)} runs"
    return f'<p>The server is well.</p><p class="bad">{runs} failed: {escape(", ".join(failed[:NAMED]))}{more}</p>'


@dataclass(frozen=True)
class _Bar:
    done: int
    of: int

    def __html__(self) -> str:
        bar = f'<progress value="{self.done}" max="{self.of}"></progress> ' if self.of else ""
        return f"{bar}{self.done}{f' of {self.of}' if self.of else ''}"


@dataclass(frozen=True)
class _Status:
    name: str

    def __html__(self) -> str:
        return f'<span class="bad">{self.name}</span>' if self.name == "failed" else escape(self.name)


def _table(heads: tuple[str, ...], rows: Sequence[Sequence[object]], of: int) -> str:
    if not rows:
        return "<p>None.</p>"
    lines = ["".join(f"<th>{escape(head)}</th>" for head in heads)] if heads else []
    for row in rows:
        cells = (cell.__html__() if isinstance(cell, _Bar | _Status) else escape(str(cell)) for cell in row)
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    table = "<table>" + "".join(f"<tr>{line}</tr>\n" for line in lines) + "</table>"
    return table + (f"<p>and {of - len(rows)} more</p>" if of > len(rows) else "")


def _connection(node: NodeFacts, now: float) -> str:
    if node.connected:
        return "connected"
    return "never connected" if node.seen_at is None else f"gone for {_span(now - node.seen_at)}"


def _span(seconds: float) -> str:
    left = max(0, int(seconds))
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if left >= unit:
            return f"{left // unit} {name}"
    return f"{left} s"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB" if size < 1000 else f"{size:,.0f} TB"
