"""A federation on real machines, up to the moment at which its run can begin; its server is a script."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import deque

import numpy as np
import pytest

import umbel
from umbel.core import encoding
from umbel.core.arrays import Arrays
from umbel.core.randomness import Key
from umbel.errors import Refused, SettingError
from umbel.remote.federation import SETTLING, Remote, Signed, contract_of
from umbel.remote.session import Down, RemoteSession, Up
from umbel.trust.credentials import author_key
from umbel.trust.statement import Statement, digest
from umbel.wire import messages as m
from umbel.work.state import ClientStates

READY, PREPARING, REFUSED = m.STANDING_READY, m.STANDING_PREPARING, m.STANDING_REFUSED
client = umbel.Client()


@client.train
def train(model, data, ctx):
    return umbel.Update(model, weight=1)


APP = umbel.App(client, model={"w": np.zeros(2)}, strategy=umbel.FedAvg(), rounds=1)


class Script:
    """A link on which these items come; a number is served time that passes."""

    federation = "f0"

    def __init__(self, *items):
        self.items = deque(items)
        self.sent = []
        self.time = 0.0
        self.closed = False

    def keep(self, data):
        return m.Payload(inline=data)

    def store(self, value):
        return m.Payload(inline=value.to_bytes() if isinstance(value, Arrays) else encoding.encode(value))

    def send(self, message):
        self.sent.append(message)

    def receive(self, timeout):
        item = self.items.popleft() if self.items else None
        if isinstance(item, int | float):
            self.time += item
            return None
        if item is None:
            if timeout is None:
                raise Refused("the script is over", m.CODE_BUSY)
            self.time += timeout
        return item

    def served(self):
        return self.time

    def close(self):
        self.closed = True


def members(**standings):
    """A message that tells of clients, by name without its first letter: their standing, or why they are refused."""
    told = []
    for name, how in standings.items():
        standing, reason = (REFUSED, how) if isinstance(how, str) else (how, "")
        told.append(m.Member(client=name[1:], standing=standing, reason=reason))
    return m.Message(members=m.Members(run="r", members=told))


def enlisted(link, told=None, known=None, **settings):
    remote = Remote("here:1", connect=lambda address, **how: link, signed=Signed(b"z", b"a", b"t", b"s"), **settings)
    tell = (told if told is not None else []).append
    return remote.enlist(APP, run="r", name="mnist", config={"lr": 1}, tell=tell, known=known)


def said(link, kind):
    return [getattr(message, kind) for message in link.sent if message.WhichOneof("body") == kind]


# Settings


@pytest.mark.parametrize("clients", [0, -1, True, [], (), "0", 2.5, [None], [True], {"a"}])
def test_clients_are_a_number_or_names(clients):
    with pytest.raises(SettingError, match="client"):
        Remote("here:1", clients=clients)


@pytest.mark.parametrize("setting", [{"stall": 0}, {"stall": None}, {"stall": "1"}, {"wait": -1}, {"wait": True}])
def test_times_are_positive(setting):
    with pytest.raises(SettingError, match="is a positive number of seconds"):
        Remote("here:1", **setting)


def test_it_shows_where_it_is_and_no_secret():
    assert repr(Remote("here:1", token="umbel1.-.id.secret")) == "Remote('here:1')"


# Waiting for clients


def test_it_starts_once_some_are_ready_and_none_is_preparing():
    link = Script(
        members(_b=PREPARING, _10=PREPARING, _9=PREPARING), members(_10=READY), members(_b=READY), members(_9=READY)
    )
    found = enlisted(link)
    assert found.clients == (9, 10, "b")
    (spec,) = said(link, "run_spec")
    assert (spec.run, spec.name, spec.archive.inline, spec.author, spec.signature) == ("r", "mnist", b"z", b"a", b"s")
    assert spec.statement == b"t"
    assert list(spec.clients) == []
    assert json.loads(spec.config) == {"lr": 1}
    assert json.loads(spec.contract)["model"]["w"]["shape"] == [2]


def test_it_does_not_wait_for_ever_for_those_that_are_preparing():
    link = Script(members(_0=READY, _1=PREPARING), SETTLING / 2)
    assert enlisted(link).clients == (0,)
    assert link.time == SETTLING


def test_so_many_clients_are_enough_and_all_that_are_ready_take_part():
    link = Script(members(_0=READY, _1=PREPARING), SETTLING, members(_2=READY, _3=READY))
    assert enlisted(link, clients=2).clients == (0, 2, 3)


def test_clients_that_are_named_are_waited_for():
    link = Script(members(_0=READY), members(_x=READY))
    assert enlisted(link, clients=[0, "x"]).clients == (0, "x")
    assert list(said(link, "run_spec")[0].clients) == ["0", "x"]


def test_whoever_watches_is_told_what_is_waited_for():
    told = []
    link = Script(members(_0=READY), members(_0=READY), members(_1="no data"), members(_1=READY))
    enlisted(link, told, clients=2)
    assert [(event.ready, event.wanted, event.there, event.refused) for event in told] == [
        (0, 2, [], {}),
        (1, 2, ["0"], {}),
        (1, 2, ["0"], {"1": "no data"}),
    ]
    events = said(link, "log_event")
    assert [event.number for event in events] == [0, 0, 0]
    assert json.loads(events[-1].event)["refused"] == {"1": "no data"}


def test_clients_that_do_not_come_are_an_error_that_names_those_who_refuse():
    link = Script(members(_0=READY, _1="no data", _2=PREPARING))
    with pytest.raises(SettingError, match="1 of 3 clients are ready after 30 s; client 1: no data") as caught:
        enlisted(link, clients=3, wait=30.0)
    assert "umbel nodes ls" in str(caught.value)
    assert link.closed


def test_the_run_is_made_known_again_to_a_server_that_was_away():
    link = Script(Down(), Up(), members(_0=READY))
    enlisted(link)
    assert len(said(link, "run_spec")) == 2


def test_what_the_server_says_no_to_is_an_error():
    link = Script()
    with pytest.raises(Refused):
        enlisted(link)
    assert link.closed


# What follows


def test_a_run_that_goes_on_does_not_wait():
    link = Script()
    found = enlisted(link, known={"members": [0, "x"], "name": "mnist", "clients": []}, clients=5)
    assert found.clients == (0, "x")
    assert found.describe()["members"] == [0, "x"]
    assert found.plan()["threads"] == "1"
    found.close()
    assert link.closed


@pytest.mark.parametrize("clients", [None, 2, [0, "x"], ["x"]])
def test_a_run_that_goes_on_tells_nodes_just_what_it_told_them_before(clients):
    """Anything else, and every node would kill its child and begin anew."""
    link = Script(members(_0=READY, _x=READY))
    began = enlisted(link, clients=clients)
    known = json.loads(json.dumps(began.describe()))
    for other in (None, 1, ["y"]):
        again = enlisted(Script(), known=known, clients=other)
        assert again.clients == began.clients
        assert again.describe() == began.describe()
        assert again._spec == said(link, "run_spec")[0]


def test_the_session_knows_what_was_said_of_its_clients():
    link = Script(members(_0=READY, _1="no data"))
    found = enlisted(link)
    states = ClientStates(None)
    session = found.connect(client, {}, Key.from_seed(1), states, lambda: 0.0)
    assert isinstance(session, RemoteSession)
    assert session.members == {0: (READY, ""), 1: (REFUSED, "no data")}
    session.disconnect()
    states.close()
    assert link.closed


def test_the_client_is_packed_and_signed_by_its_author(tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path))
    monkeypatch.setattr("umbel.trust.packing.declared_version", lambda found: 5)
    monkeypatch.setattr("umbel.trust.packing.pack_client", lambda found: b"packed" if found is client else b"")
    link = Script()
    remote = Remote("here:1", connect=lambda address, **how: link)
    remote.enlist(APP, run="r", config={}, known={"members": [0], "name": "mnist", "clients": []})
    (spec,) = said(link, "run_spec")
    assert spec.archive.inline == b"packed"
    assert spec.author == author_key().public
    stated = Statement.of(spec)
    assert (stated.app, stated.archive, stated.version) == ("mnist", hashlib.sha256(b"packed").hexdigest(), 5)
    assert (stated.config, stated.contract, stated.federation) == (digest("{}"), digest(spec.contract), "f0")


def test_the_contract_is_the_same_whatever_a_strategy_draws_for_it():
    class Drawing(umbel.FedAvg):
        def start(self, model):
            return super().start(model).replace(rate=float(np.random.random()))

        def round(self, state, r):
            yield dataclasses.replace(next(super().round(state, r)), kind=f"query:{state.rate}")

    app = umbel.App(client, model={"w": np.zeros(2)}, strategy=Drawing(), rounds=1)
    made = set()
    for seed in range(3):
        np.random.seed(seed)
        before = np.random.get_state()[1].tolist()
        made.add(contract_of(app))
        assert np.random.get_state()[1].tolist() == before, "the user's generators are as they were"
    assert len(made) == 1


def test_it_connects_to_the_server_that_it_was_told(monkeypatch):
    asked = {}

    def connect(address, **how):
        asked.update(how, address=address)
        raise Refused("no", m.CODE_REVOKED)

    monkeypatch.setattr("umbel.remote.link.connect", connect)
    remote = Remote("here:1", token="line", folder="f", signed=Signed(b"z", b"a", b"t", b"s"))
    with pytest.raises(Refused):
        remote.enlist(APP, run="r", name="mnist", config={})
    assert asked == {"address": "here:1", "token": "line", "folder": "f", "run": "r"}


@pytest.mark.parametrize(
    ("settings", "config", "what"),
    [
        ({"clients": [f"{i}-{'x' * 200}" for i in range(6000)]}, {}, "the names of its clients"),
        ({}, {"table": "x" * (1 << 20)}, "the app's settings"),
    ],
)
def test_what_no_frame_could_hold_is_refused_at_once(settings, config, what):
    link = Script()
    remote = Remote("here:1", connect=lambda address, **how: link, signed=Signed(b"z", b"a", b"t", b"s"), **settings)
    with pytest.raises(SettingError, match=f"cannot be sent to nodes: {what} take"):
        remote.enlist(APP, run="r", name="mnist", config=config)
    assert link.sent == []
    assert link.closed
