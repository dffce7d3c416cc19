"""A run's link to a real server, which lives in a thread beside."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from tests.conftest import PATIENCE as SECONDS

from umbel import Arrays
from umbel.errors import ConnectionLost, ProtocolError, Refused
from umbel.remote import link as links
from umbel.remote.link import ServerLink, connect
from umbel.remote.session import Arrived, Down, Missing, Up
from umbel.server.service import running
from umbel.server.settings import ServerSettings
from umbel.server.supervision import Places
from umbel.testing.proxy import Proxy
from umbel.trust.authority import JoinText
from umbel.trust.credentials import Credentials
from umbel.trust.tokens import Token
from umbel.wire import messages as m
from umbel.wire.blobs import run_giver
from umbel.work import contents

SPEC = m.RunSpec(run="r", name="mnist")


class World:
    """A server and a proxy before it, in a loop of their own."""

    def __init__(self, folder):
        self.folder = folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._over = None

    def do(self, work):
        """Have the server's loop do this, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(SECONDS)

    def start(self):
        up = queue.SimpleQueue()

        async def live():
            self._over = asyncio.Event()
            settings = ServerSettings(folder=self.folder / "server", listen="127.0.0.1:0", http="")
            async with running(settings) as self.service, Proxy(self.service.address) as self.proxy:
                up.put(None)
                await self._over.wait()

        self._living = asyncio.run_coroutine_threadsafe(live(), self._loop)
        up.get(timeout=SECONDS)
        token = self.do(self._granted())
        self.line = JoinText(self.service.authority.public, token).text

    async def _granted(self):
        token = self.service.registry.tokens.grant("test", "ann", "run")
        await self.service.commit()
        return token

    def call(self, function, *arguments):
        """Call a function in the server's loop."""

        async def work():
            return function(*arguments)

        return self.do(work())

    @contextmanager
    def link(self, run="r", **how):
        """A link through the proxy, which notes when the connection is there again."""
        found = ServerLink(Credentials(self.proxy.address, self.line), run, **how)
        try:
            yield found
        finally:
            found.close()

    def stop(self):
        self._loop.call_soon_threadsafe(self._over.set)
        self._living.result(SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        self._loop.close()


class Items:
    """A link's items, with a count of the connections that were made."""

    def __init__(self, link):
        self._items = link._items
        self.connections = threading.Semaphore(0)
        link._items = self

    def put(self, item):
        self._items.put(item)
        if isinstance(item, Up):
            self.connections.release()

    def get(self, timeout=None):
        return self._items.get(timeout=timeout)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    found = World(tmp_path_factory.mktemp("world"))
    found.start()
    yield found
    found.stop()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(links, "FIRST_PAUSE", 0.001)


OVER = {"event": "run_finished", "run": "r", "rounds": 0, "reason": "rounds"}


def until(link, kind):
    """The next item of a kind; messages by their name."""
    while True:
        item = link.receive(SECONDS)
        assert item is not None, f"no {kind} came"
        if isinstance(item, m.Message) and item.WhichOneof("body") == kind:
            return getattr(item, kind)
        if not isinstance(kind, str) and isinstance(item, kind):
            return item


def logged(link, number):
    """Say an event and wait until it is stored."""
    link.send(m.Message(log_event=m.LogEvent(run="r", number=number, event='{"event": "e"}')))
    while (found := until(link, "log_ack").number) < number:
        pass
    return found


@pytest.fixture
def log(world):
    """The number of the next event of run r's log."""
    return world.service.store.greatest("events", run="r") + 1


# Messages


def test_what_is_said_arrives_and_what_is_answered_comes_back(world, log):
    with world.link() as link:
        assert until(link, "log_ack").number == log - 1
        assert logged(link, log) == log


def test_nothing_comes_within_the_time(world):
    with world.link() as link:
        until(link, "log_ack")
        assert link.receive(0.0) is None


def test_however_long_it_waits_it_waits_no_longer_at_once_than_the_system_can(world, monkeypatch):
    with world.link() as link:
        until(link, "log_ack")
        waited = []
        items = SimpleNamespace(get=lambda timeout: waited.append(timeout) or Up(), put=lambda item: None)
        monkeypatch.setattr(link, "_items", items)
        link.receive(1e300)
        assert 0 < waited[0] <= threading.TIMEOUT_MAX


def test_it_is_found_by_what_operators_have(world, monkeypatch, tmp_path):
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path))
    link = connect(world.proxy.address, token=world.line, folder=None, run="r")
    until(link, "log_ack")
    link.close()
    link.close()


def test_what_was_said_before_the_end_arrives(world):
    with world.link(run="brief") as link:
        link.send(m.Message(run_spec=m.RunSpec(run="brief")))
        link.send(m.Message(close_run=m.CloseRun(run="brief", status="finished")))

    async def ended():
        return [batch async for batch in world.service.feeds.follow("brief", 0, live=True)]

    world.do(ended())
    assert world.service.store.rows("runs", id="brief")[0]["status"] == "finished"


@pytest.mark.parametrize(
    ("last", "status"),
    [
        ({**OVER, "error": None}, "finished"),
        ({**OVER, "error": "nobody came"}, "failed"),
        ({"event": "run_interrupted", "run": "r", "round": 0}, "stopped"),
        (None, "stopped"),
    ],
)
def test_a_run_that_said_how_it_went_or_never_began_is_over_once_its_program_is_gone(world, last, status):
    """Nobody may come to say so again."""
    run = f"dead-{len(str(last))}"
    with world.link(run=run) as link:
        link.send(m.Message(run_spec=m.RunSpec(run=run)))
        if last is not None:
            link.send(m.Message(log_event=m.LogEvent(run=run, number=1, event=json.dumps(last))))
        until(link, "log_ack")

    async def ended():
        return [batch async for batch in world.service.feeds.follow(run, 0, live=True)]

    world.do(ended())
    assert world.service.store.rows("runs", id=run)[0]["status"] == status


def test_a_message_that_no_frame_can_hold_is_an_error_for_the_run(world):
    with world.link() as link:
        until(link, "log_ack")
        link.send(m.Message(run_spec=m.RunSpec(run="r", config="x" * (5 << 20))))
        with pytest.raises(ProtocolError, match="the limit is"):
            link.receive(SECONDS)


# Connections


def test_it_connects_again_and_its_time_stands_still_meanwhile(world, log):
    now = [100.0]
    with world.link(clock=lambda: now[0]) as link:
        until(link, "log_ack")
        now[0] += 5
        assert link.served() == 5
        world.call(world.proxy.cut)
        until(link, Down)
        now[0] += 1000
        assert link.served() == 5
        until(link, Up)
        now[0] += 2
        assert link.served() == 7
        assert logged(link, log) == log


def test_what_is_said_before_the_run_knows_of_the_new_connection_is_lost(world, log):
    with world.link() as link:
        until(link, "log_ack")
        items = Items(link)
        world.call(world.proxy.cut)
        assert items.connections.acquire(timeout=SECONDS)
        # Its ask was said on the connection that is gone: by itself the server would refuse it.
        link.send(m.Message(task=m.Task(run="r", task="0.0", client="0", attempt=1, key=b"k" * 32, data_key=b"k" * 32)))
        until(link, Down)
        until(link, Up)
        assert logged(link, log) == log


def test_who_waits_for_the_server_waits_as_long_as_it_takes(world, tmp_path):
    world.call(world.proxy.refuse, True)
    with pytest.raises(ConnectionLost), world.link():
        pass
    tried = []

    def patiently():
        with world.link(patient=True, scratch=tmp_path) as link:
            tried.append(until(link, "log_ack"))

    thread = threading.Thread(target=patiently)
    thread.start()
    world.call(world.proxy.refuse, False)
    thread.join(SECONDS)
    assert tried


def test_a_token_that_is_no_good_is_an_error(world):
    line = JoinText(world.service.authority.public, Token.new()).text
    with pytest.raises(Refused) as caught:
        ServerLink(Credentials(world.proxy.address, line), "r", patient=True)
    assert caught.value.code == m.CODE_UNAUTHENTICATED


def test_a_run_that_is_driven_elsewhere_now_is_an_error_for_the_first(world):
    with world.link() as first:
        until(first, "log_ack")
        with world.link() as second:
            until(second, "log_ack")
            with pytest.raises(Refused) as caught:
                until(first, "never")
            assert caught.value.code == m.CODE_SUPERSEDED
            first.send(m.Message(run_spec=SPEC))


# Blobs


@pytest.fixture
def answered(world, monkeypatch):
    """As if the run had been answered with whatever the server has."""
    monkeypatch.setattr(world.service.router, "may_read", lambda peer, run, sha: run == "r")


def test_small_payloads_are_inline(world):
    with world.link() as link:
        assert link.keep(b"x").inline == b"x"
        assert contents.given(link.store({"params": 1}))["params"] == 1


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.usefixtures("answered")
def test_blobs_cross_both_ways(world, tmp_path, monkeypatch, linked):
    monkeypatch.setattr(world.service.connections, "same_machine", lambda identity: linked)
    places = Places(world.service.root / "runs" / "r")
    places.make()
    scratch = places.folder / "link"
    data = (b"one" if linked else b"two") * 100_000
    model = Arrays({"w": np.full(30_000, 1.5 if linked else 2.5)})
    with world.link(scratch=scratch, given=places.given if linked else None) as link:
        kept, stored = link.keep(data), link.store(model)
        assert kept.blob.size == len(data)
        link.send(m.Message(run_spec=m.RunSpec(run="r", archive=kept)))
        link.send(m.Message(ask_spec=m.AskSpec(
            run="r", ask=1, kind="train", digest=b"d", transforms="[]", model=stored)))  # fmt: skip
        for payload in (kept, stored):
            path = world.do(world.service.depot.ready(payload.blob.sha256, run_giver("r")))
            # Where the run may write to it still nobody else is given it.
            assert (world.service.blobs.path(payload.blob.sha256) is None) == linked
        assert Arrays.from_bytes(path.read_bytes()).sha256 == model.sha256

        back = world.call(world.service.blobs.put, data[::-1], "test")
        link.fetch(back)
        arrived = until(link, Arrived)
        assert (arrived.sha, arrived.path.read_bytes()) == (back.sha256, data[::-1])
        assert arrived.path.stat().st_nlink == (2 if linked else 1)
        assert arrived.path.is_relative_to(places.given) == linked
        link.release(back.sha256)
        assert not arrived.path.exists()
        link.release(stored.blob.sha256)
        link.send(m.Message(close_run=m.CloseRun(run="r", status="stopped")))
    left = [path for path in scratch.rglob("*") if path.is_file()]
    assert [path.stat().st_size for path in left] == [len(data)]


@pytest.mark.usefixtures("answered")
def test_a_blob_that_is_not_as_it_was_named_is_missing(world):
    with world.link() as link:
        until(link, "log_ack")
        blob = world.service.blobs.put(b"shorter than it was named", "r/")
        link.fetch(m.Blob(sha256=blob.sha256, size=blob.size + 1))
        assert "another size" in until(link, Missing).reason


def test_what_the_run_has_let_go_of_is_not_to_be_had(world):
    with world.link() as link:
        payload = link.store(Arrays({"w": np.arange(30_000.0)}))
        link.release(payload.blob.sha256)
        link.send(m.Message(run_spec=m.RunSpec(run="r", archive=payload)))
        logged(link, world.service.store.greatest("events", run="r") + 1)
        assert world.service.blobs.path(payload.blob.sha256) is None
        link.send(m.Message(close_run=m.CloseRun(run="r", status="stopped")))


@pytest.mark.usefixtures("answered")
def test_what_was_under_way_is_asked_for_again_on_the_next_connection(world):
    data = b"x" * 3_000_000
    blob = world.call(world.service.blobs.put, data, "test")
    with world.link() as link:
        until(link, "log_ack")
        world.call(world.proxy.cut_after, 1_000_000)
        link.fetch(blob)
        until(link, Down)
        link.fetch(blob)
        until(link, Up)
        link.fetch(blob)
        assert until(link, Arrived).path.read_bytes() == data


def test_a_folder_of_its_own_goes_with_it(world):
    with world.link() as link:
        link.keep(b"x" * 100_000)
        place = link._scratch
        assert place.exists()
    assert not place.exists()
