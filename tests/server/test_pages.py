"""The pages of a server: health, the page for people, metrics for Prometheus."""

from __future__ import annotations

import asyncio
import errno
import re
import signal
import socket
from contextlib import suppress
from html.parser import HTMLParser

import httpx
import pytest
from tests.conftest import PATIENCE

from umbel.errors import SettingError
from umbel.server import pages
from umbel.server.pages import ROWS, Latencies, NodeFacts, RunFacts, ServerFacts, application, html, metrics, serve
from umbel.wire.limits import HTTP_BYTES, HTTP_CONNECTIONS

NASTY = """<script>alert("1")</script>&'"""


class Known:
    """Facts that never change, or are not to be had."""

    def __init__(self, facts=None, **more):
        self.known = facts or facts_with(**more)

    def facts(self):
        if isinstance(self.known, Exception):
            raise self.known
        return self.known


def facts_with(**more):
    return ServerFacts(**{"server": "s1", "software": "umbel 1", "started_at": 1000.0, "now": 1100.5, **more})


NODES = (
    NodeFacts(id="1", name="clinic", status="approved", connected=True, clients=2, tasks=1),
    NodeFacts(id="2", name="lab", status="approved", seen_at=900.5),
    NodeFacts(id="3", name="new", status="pending"),
)
RUNS = (
    RunFacts(id="r1", name="mnist", status="running", owner="ann", round=3, rounds=10, ready=2, waiting=4),
    RunFacts(id="r2", name="heart", status="finished", round=5, rounds=5),
    RunFacts(id="r3", name="open", status="running", round=7, waiting=1),
)


def get(facts, path, host="127.0.0.1", names=()):
    async def ask():
        transport = httpx.ASGITransport(application(facts, names))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return await client.get(path)

    return asyncio.run(ask())


def samples(text):
    """The metrics by name and labels."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r'[a-z_]+(\{[a-z]+="[^\n]*"\})? (\d|\+Inf|-)\S*', line) for line in lines)
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


# Health


def test_a_server_that_is_well():
    answer = get(Known(), "/health")
    assert answer.status_code == 200
    storage = {"bytes": 0, "quota": None, "node_quota": None, "waiting": 0, "disk_free": None}
    known = {"problem": "", "server": "s1", "software": "umbel 1", "uptime": 100.5, "storage": storage}
    assert answer.json() == {"status": "ok", **known, "certificate_until": None}
    assert get(Known(certificate_until=5.0), "/health").json()["certificate_until"] == 5.0
    assert "umbel_certificate_end_seconds 5\n" in get(Known(certificate_until=5.0), "/metrics").text
    assert "umbel_certificate_end" not in get(Known(), "/metrics").text


def test_a_server_that_is_not():
    answer = get(Known(problem="the disk is full"), "/health")
    assert (answer.status_code, answer.json()["problem"]) == (503, "the disk is full")


def test_a_server_that_cannot_say_tells_no_secrets():
    answer = get(Known(ValueError("token 1.secret")), "/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "failing")
    assert "secret" not in answer.text


@pytest.mark.parametrize(("method", "path", "code"), [("GET", "/nothing", 404), ("POST", "/", 405), ("HEAD", "/", 200)])
def test_nothing_else_is_there(method, path, code):
    async def ask():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(application(Known())), base_url="http://localhost"
        ) as client:
            return await client.request(method, path)

    assert asyncio.run(ask()).status_code == code


# The page


class Reader(HTMLParser):
    """The text of a page, and the elements that it is made of."""

    def __init__(self, page):
        super().__init__()
        self.words, self.open, self.found = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and data.strip():
            self.words.append(data.strip())


def test_the_page_says_what_is_going_on():
    page = get(Known(nodes=NODES, runs=RUNS, blob_bytes=1_234_567, blob_quota=10**10, disk_free=5 * 10**14), "/")
    assert page.status_code == 200
    reader = Reader(page.text)
    text = " ".join(reader.words)
    for said in (
        "Umbel server s1 umbel 1, up for 1 min All is well.",
        "r1 mnist running 3 of 10 2 4 ann",
        "r3 open running 7 0 1",
        "1 of 3 connected",
        "new 3 pending never connected 0 0 clinic 1 approved connected 2 1 lab 2 approved gone for 3 min 0 0",
        "blobs 1.23 MB of 10 GB store 0 B free on the disk 500 TB",
    ):
        assert said in text
    assert ("progress", {"value": "3", "max": "10"}) in reader.found
    assert ("meta", {"http-equiv": "refresh", "content": "5"}) in reader.found
    assert not [tag for tag, _ in reader.found if tag in ("script", "link", "img")]
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_a_failed_run_is_red():
    runs = (RunFacts(id="r1", name="mnist", status="finished"), RunFacts(id="r2", name="mnist", status="failed"))
    page = get(Known(runs=runs), "/").text
    assert page.count('<td><span class="bad">failed</span></td>') == 1
    assert '<p class="bad">1 run failed: r2</p>' in page


def test_the_page_of_an_empty_server():
    assert Reader(html(facts_with(problem="the disk is full"))).words.count("None.") == 2
    assert "the disk is full" in html(facts_with(problem="the disk is full"))


@pytest.mark.parametrize("failed", [1, 2, 7])
def test_not_all_is_well_over_a_failed_run(failed):
    runs = tuple(RunFacts(id=f"<r{number}>", name="x", status="failed") for number in range(failed))
    words = " ".join(Reader(html(facts_with(runs=(*RUNS, *runs)))).words)
    assert "All is well" not in words
    assert "The server is well." in words
    named = ", ".join(run.id for run in runs[:5]) + (", ..." if failed > 5 else "")
    assert f"{failed} run{'s' * (failed > 1)} failed: {named}" in words
    assert get(Known(runs=runs), "/health").status_code == 200  # it is the server's


def test_whatever_things_are_called_it_is_only_text():
    node = NodeFacts(id=NASTY, name=NASTY, status=NASTY)
    run = RunFacts(id=NASTY, name="$server", status=NASTY, owner=NASTY)
    page = html(facts_with(server=NASTY, software=NASTY, problem=NASTY, nodes=(node,), runs=(run,)))
    assert "<script" not in page
    words = Reader(page).words
    assert "$server" in words
    assert words.count(NASTY) == 7


def test_a_page_of_many_nodes_stays_short():
    nodes = tuple(NodeFacts(id=str(number), name="n", status="approved") for number in range(ROWS + 7))
    assert "and 7 more" in html(facts_with(nodes=nodes))


# Metrics


def test_metrics():
    commits = Latencies((0.01, 0.1))
    for seconds in (0.005, 0.01, 0.05, 3.0):
        commits.observe(seconds)
    counts = {
        "answers_stored": 12,
        "blob_bytes": 34,
        "frames_in": 5,
        "frames_out": 6,
        "sessions": {"node": 1, "run": 2},
    }
    answer = get(Known(nodes=NODES, runs=RUNS, commits=commits, **counts), "/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = samples(answer.text)
    wanted = {
        'umbel_info{server="s1",software="umbel 1"}': 1,
        "umbel_healthy": 1,
        "umbel_uptime_seconds": 100.5,
        'umbel_nodes{status="approved"}': 2,
        'umbel_nodes{status="pending"}': 1,
        'umbel_nodes{status="revoked"}': 0,
        "umbel_nodes_connected": 1,
        'umbel_sessions{role="run"}': 2,
        'umbel_runs{status="running"}': 2,
        "umbel_tasks_waiting": 5,
        "umbel_answers_stored_total": 12,
        "umbel_blob_bytes": 34,
        'umbel_frames_total{direction="in"}': 5,
        'umbel_commit_seconds_bucket{le="0.01"}': 2,
        'umbel_commit_seconds_bucket{le="0.1"}': 3,
        'umbel_commit_seconds_bucket{le="+Inf"}': 4,
        "umbel_commit_seconds_count": 4,
        "umbel_commit_seconds_sum": 3.065,
    }
    assert {name: found[name] for name in wanted} == wanted
    assert "umbel_blob_quota_bytes" not in found
    assert found["process_cpu_seconds_total"] > 0


def test_each_metric_is_described_once_and_before_its_values():
    lines = metrics(facts_with(nodes=NODES, runs=RUNS, blob_quota=1)).splitlines()
    described = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(described) == len(set(described))
    current = ""
    for line in lines:
        if line.startswith("# TYPE"):
            current = line.split()[2]
        elif not line.startswith("#"):
            assert line.startswith(current)


def test_labels_are_escaped():
    text = metrics(facts_with(server='a"b\\c\nd'))
    assert r'server="a\"b\\c\nd"' in text


def test_problems_show_in_the_metrics():
    assert samples(metrics(facts_with(problem="full")))["umbel_healthy"] == 0


# A real socket


def test_serving_until_cancelled():
    async def play():
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        port = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(serve(Known(), "127.0.0.1", 0, listening=port.set_result))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{await port}", timeout=PATIENCE) as client:
            answer = await client.get("/health")
            assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
            with pytest.raises(httpx.TransportError):
                await client.get("/health")
        return answer

    answer = asyncio.run(asyncio.wait_for(play(), PATIENCE))
    assert answer.status_code == 200
    assert "server" not in answer.headers


def test_an_address_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingError, match=rf"127\.0\.0\.1:{port} cannot be listened on: Address already in use\n"):
            asyncio.run(serve(Known(), "127.0.0.1", port))


def test_a_host_that_nobody_knows(monkeypatch):
    def unknown(address, family):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "create_server", unknown)
    with pytest.raises(SettingError, match=r"no\.such\.host:1 cannot be listened on: Name or service not known\n"):
        asyncio.run(serve(Known(), "no.such.host", 1))


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:7421", "127.0.0.1:7421", "[::1]:7421", "10.0.0.7", "fed.example.org"]
)
def test_who_asks_for_a_host_that_it_is_gets_its_pages(host):
    assert get(Known(), "/health", host, ("fed.example.org",)).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "fed.example.org.evil.example", "localhost.evil.example:7421", "1.2.3.4.evil"]
)
@pytest.mark.parametrize("path", ["/", "/health", "/metrics"])
def test_who_asks_for_another_host_is_told_nothing(host, path):
    """As a page does whose site's name leads here all of a sudden."""
    answer = get(Known(problem="a secret"), path, host, ("fed.example.org",))
    assert answer.status_code == 421
    assert "secret" not in answer.text
    assert "--name" in answer.text


async def _served(act):
    port = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(Known(), "127.0.0.1", 0, listening=port.set_result))
    try:
        return await act(await port)
    finally:
        serving.cancel()
        await asyncio.wait({serving})


def test_more_connections_than_there_may_be_are_ended_at_once():
    async def act(port):
        there = [await asyncio.open_connection("127.0.0.1", port) for _ in range(HTTP_CONNECTIONS)]
        for _, writer in there:
            writer.write(b"GET /health HTTP/1.1\r\nHost: loc")  # and no more
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        there[0][1].write(b"alhost\r\nConnection: close\r\n\r\n")
        assert (await there[0][0].read()).startswith(b"HTTP/1.1 200")
        for _, each in there:
            each.close()

    asyncio.run(_served(act))


def test_a_request_that_never_ends_is_ended(monkeypatch):
    monkeypatch.setattr(pages, "HTTP_SECONDS", 0.05)

    async def act(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with suppress(ConnectionError):
            while not reader.at_eof():  # a byte at a time
                writer.write(b"G")
                await writer.drain()
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.01):
                        assert await reader.read(1) == b""
        writer.close()

    asyncio.run(_served(act))


@pytest.mark.parametrize(("more", "status"), [(0, b"200"), (1, b"400")])
def test_the_head_of_a_request_has_so_many_bytes(more, status):
    async def act(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: "
        end = b"\r\n\r\n"
        if more:
            writer.write(head + b"x" * (HTTP_BYTES + 1))
        else:
            writer.write(head + b"x" * (HTTP_BYTES - len(head) - len(end)) + end)
        assert (await reader.read()).startswith(b"HTTP/1.1 " + status)
        writer.close()

    asyncio.run(_served(act))


def test_where_there_are_no_descriptors_left_it_is_tried_again_and_not_noted_all_the_time(monkeypatch):
    noted = []

    async def act(port):
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: noted.append(context["message"]))
        accept = socket.socket.accept
        monkeypatch.setattr(socket.socket, "accept", lambda self: (_ for _ in ()).throw(OSError(errno.EMFILE, "none")))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while not noted:
            await asyncio.sleep(0)
        monkeypatch.setattr(socket.socket, "accept", accept)
        assert len(noted) <= pages.BACKLOG
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()

    asyncio.run(_served(act))


def test_whoever_asks_how_often_the_facts_are_found_twice_a_second_at_most():
    now, found = [0.0], []

    class Counting:
        def facts(self):
            found.append(now[0])
            return facts_with()

    lately = pages._Lately(Counting(), lambda: now[0])
    for _ in range(100):
        lately()
        now[0] += 0.01
    assert found == [0.0, pytest.approx(0.5)]
