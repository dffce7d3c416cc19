"""The certificate of a server that is up."""

from __future__ import annotations

import asyncio
import json
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from tests.conftest import PATIENCE
from tests.server.serving import asked, office

from umbel.errors import ConnectionLost, StorageError
from umbel.office.operator import Operator
from umbel.server import certificates
from umbel.server.certificates import Certificates
from umbel.server.service import Service
from umbel.transport import grpc
from umbel.transport.connection import Connection
from umbel.transport.handshake import introduce
from umbel.trust.authority import LIFE, RENEWAL, Authority, JoinText, root_certificate
from umbel.trust.credentials import Credentials
from umbel.trust.identity import SigningKey, node_id
from umbel.trust.proofs import NodeProof
from umbel.trust.servers import KnownServer
from umbel.wire import messages as m

NOW = datetime(2031, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)


class Clock:
    def __init__(self, at=NOW):
        self.at = at

    def __call__(self):
        return self.at


def test_it_is_made_anew_in_time_and_otherwise_left_as_it_is(tmp_path):
    clock = Clock()
    held = Certificates(Authority(tmp_path), ["here"], clock)
    first = held.pair()
    assert (held.until, held.problem) == ((NOW + LIFE).timestamp(), "")
    clock.at = NOW + LIFE - RENEWAL - DAY
    held.renew()
    assert held.pair() == first
    clock.at += 2 * DAY
    held.renew()
    assert held.pair() != first
    assert held.until == (clock.at + LIFE).timestamp()
    assert Certificates(Authority(tmp_path), ["here"], clock).pair() == held.pair()


def test_one_that_cannot_be_made_anew_is_told(tmp_path, monkeypatch, caplog):
    clock = Clock()
    held = Certificates(Authority(tmp_path), [], clock)

    async def wait(seconds):
        waited.append(seconds)
        if len(waited) > 2:
            raise asyncio.CancelledError

    def fails(*given):
        raise StorageError("the disk is full")

    waited = []
    monkeypatch.setattr(Authority, "serving", fails)
    monkeypatch.setattr(certificates.asyncio, "sleep", wait)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(held.keep())
    assert waited == [certificates.EVERY] * 3
    assert caplog.text.count("cannot be renewed: the disk is full") == 2
    clock.at = NOW + LIFE - 15 * DAY
    assert held.problem == ""
    clock.at += 2 * DAY
    assert held.problem == "the server's certificate ends on 2032-04-30, and cannot be renewed"


async def shown(address):
    """The certificate that a server shows to whoever connects now."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return x509.load_der_x509_certificate(found)


def test_a_certificate_is_renewed_while_a_connection_lives_and_a_new_one_is_made(tmp_path, monkeypatch):
    """Over TLS: the first certificate is good for one more day, by the clock of all who connect."""
    clock = Clock(datetime.now(UTC) - LIFE + DAY)
    monkeypatch.setattr(Service, "now", staticmethod(clock))

    async def main():
        async with asyncio.timeout(PATIENCE), office(tmp_path) as here:
            service, key = here.service, SigningKey.new()
            before = await here.node(key, "0")
            old = await shown(service.address)
            assert old.not_valid_after_utc - datetime.now(UTC) < DAY
            clock.at = datetime.now(UTC)
            assert service.facts().problem.startswith("the server's certificate ends on ")
            service.certificates.renew()
            new = await shown(service.address)
            assert new.not_valid_after_utc - datetime.now(UTC) > LIFE - DAY
            assert service.facts().problem == ""
            assert int(service.facts().certificate_until) == new.not_valid_after_utc.timestamp()
            after = await here.node(SigningKey.new(), "1")
            for node in (before, after):
                await node.settled()
                assert node.end is None

    asyncio.run(main())


def test_an_authority_gives_way_to_another_and_who_has_heard_of_it_goes_on(tmp_path, monkeypatch):
    """Over TLS: a node and an operator that the old one let in are there after its end; who heard nothing is not."""
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "home"))

    async def main():
        async with asyncio.timeout(PATIENCE), office(tmp_path) as here:
            service, key = here.service, SigningKey.new()
            old = service.authority.public
            line = service.line(service.registry.tokens.grant("test", "bob", "admin"))
            node = await here.node(key, "0")
            boss = await here.operator()
            assert (await asked(boss, "authority.retire"))[0] == m.CODE_MALFORMED
            new = (await asked(boss, "authority.rotate", 2))["authority"]
            assert (await node.over()).retry  # so that it connects again, and hears
            known = KnownServer(old, successors=tmp_path / "successors.json")
            connection = Connection(await grpc.connect(service.address, known.roots()))
            hello = m.Hello(role=m.ROLE_NODE, name="lab", key=key.public)
            known.welcomed(await introduce(connection, NodeProof(key), hello))
            credentials = Credentials(service.address, line)

            def ask():
                with Operator.connect(credentials, scratch=tmp_path / "scratch") as operator:
                    return operator.call("server.status")["you"]["name"]

            assert await asyncio.to_thread(ask) == "bob"
            await connection.close()
            while service.online(node_id(key.public)):
                await asyncio.sleep(0)
            code, text = await asked(boss, "authority.retire", 3)
            assert code == m.CODE_OUT_OF_ORDER
            assert "1 nodes are not connected" in text
            assert (await asked(boss, "authority.retire", 4, force=True)) == {"authority": new, "away": ["lab"]}
            assert service.authority.public.hex() == new

            again = Connection(await grpc.connect(service.address, known.roots()))
            known.welcomed(await introduce(again, NodeProof(key), hello))
            assert known.federations == {old.hex(), new}
            await again.close()
            assert await asyncio.to_thread(ask) == "bob"
            with pytest.raises(ConnectionLost, match="another certificate"):
                await grpc.connect(service.address, root_certificate(old))
            await here.operator("eve")  # by the line of today
            own = json.loads((tmp_path / "server" / "operator.json").read_text())
            assert JoinText.parse(own["token"]).authority.hex() == new
            did = [row["did"] for row in (await asked(boss, "audit.list", 5))["records"]]
            assert "authority.rotate" in did
            assert "authority.retire" in did

    asyncio.run(main())
