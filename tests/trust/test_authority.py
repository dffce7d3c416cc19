"""The authority: what it signs is accepted by whoever has its line, over gRPC and OpenSSL, and nothing else is."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import stat
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from cryptography import x509
from tests.conftest import PATIENCE

from umbel.errors import SettingError
from umbel.trust.authority import LIFE, RENEWAL, SERVER_NAME, Authority, JoinText, endorses, root_certificate
from umbel.trust.tokens import Token

NOW = datetime(2031, 5, 1, tzinfo=UTC)


class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        async def answer(request, context):
            return request

        return grpc.unary_unary_rpc_method_handler(answer)


def reached(serving, root):
    """What comes of a call over TLS with this root: the echo, or the status."""

    async def call():
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Echo(),))
        credentials = grpc.ssl_server_credentials([(serving.key, serving.certificate)])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        options = [("grpc.ssl_target_name_override", SERVER_NAME)]
        try:
            async with grpc.aio.secure_channel(
                f"127.0.0.1:{port}", grpc.ssl_channel_credentials(root), options
            ) as channel:
                return await channel.unary_unary("/echo/Echo")(b"hi", timeout=PATIENCE)
        except grpc.aio.AioRpcError as error:
            return error.code()
        finally:
            await server.stop(None)

    return asyncio.run(call())


def test_grpc_accepts_the_certificate_by_the_line_alone(tmp_path):
    authority = Authority(tmp_path)
    line = JoinText(authority.public, Token.new()).text
    assert len(line) < 100
    assert reached(authority.serving(), JoinText.parse(line).root()) == b"hi"
    assert reached(authority.serving(), authority.root()) == b"hi"


def test_grpc_refuses_another_authority(tmp_path):
    serving = Authority(tmp_path / "a").serving()
    other = root_certificate(Authority(tmp_path / "b").public)
    assert reached(serving, other) is grpc.StatusCode.UNAVAILABLE


def handshake(serving, root, folder, name=SERVER_NAME):
    """A TLS handshake by OpenSSL, in memory."""
    (folder / "both.pem").write_bytes(serving.key + serving.certificate)
    there = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    there.load_cert_chain(folder / "both.pem")
    here = ssl.create_default_context(cadata=root.decode())
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = here.wrap_bio(to_client, to_server, server_hostname=name)
    server = there.wrap_bio(to_server, to_client, server_side=True)
    done = set()
    while len(done) < 2:
        for side in (client, server):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                continue


@pytest.mark.parametrize("name", [SERVER_NAME, "localhost", "127.0.0.1", "::1", "fl.example.org", "10.0.0.7"])
def test_openssl_accepts_it_by_each_of_its_names(tmp_path, name):
    authority = Authority(tmp_path)
    handshake(authority.serving(["fl.example.org", "10.0.0.7"]), root_certificate(authority.public), tmp_path, name)


def test_openssl_refuses_another_authority_and_another_name(tmp_path):
    authority, other = Authority(tmp_path), Authority(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(authority.serving(), root_certificate(other.public), tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(authority.serving(), root_certificate(authority.public), tmp_path, "elsewhere.org")


def test_the_key_stays_and_is_private(tmp_path):
    first = Authority(tmp_path)
    assert Authority(tmp_path).public == first.public
    assert len(first.public) == 33
    first.serving()
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    assert "PRIVATE" not in repr(first) + repr(first.serving())


def test_a_file_without_a_key_is_an_error(tmp_path):
    (tmp_path / "authority.key").write_bytes(b"nonsense")
    with pytest.raises(SettingError, match=r"authority\.key holds no key"):
        Authority(tmp_path)


def test_the_certificate_is_kept_until_it_is_near_its_end(tmp_path):
    authority = Authority(tmp_path)
    first = authority.serving(now=NOW)
    assert first.until == NOW + LIFE
    assert authority.serving(now=NOW + LIFE - RENEWAL - timedelta(days=1)) == first
    second = authority.serving(now=NOW + LIFE - RENEWAL + timedelta(days=1))
    assert second.until > first.until
    assert Authority(tmp_path).serving(now=NOW + timedelta(days=400)) == second


def test_a_new_name_a_clock_set_back_and_a_damaged_file_make_a_new_certificate(tmp_path):
    authority = Authority(tmp_path)
    first = authority.serving(now=NOW)
    named = authority.serving(["fl.example.org", "10.1.2.3"], now=NOW)
    names = x509.load_pem_x509_certificate(named.certificate).extensions
    alternatives = names.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {SERVER_NAME, "localhost", "fl.example.org"} <= set(alternatives.get_values_for_type(x509.DNSName))
    assert ipaddress.ip_address("10.1.2.3") in alternatives.get_values_for_type(x509.IPAddress)
    assert authority.serving(now=NOW) == named != first
    assert authority.serving(now=NOW - timedelta(days=2)) != named
    (tmp_path / "server.pem").write_bytes(b"nonsense")
    assert authority.serving(now=NOW) != named


def test_a_certificate_of_another_authority_is_not_kept(tmp_path):
    other = Authority(tmp_path / "other").serving(now=NOW)
    (tmp_path / "server.pem").write_bytes(other.key + other.certificate)
    assert Authority(tmp_path).serving(now=NOW) != other


def test_the_line_is_read_as_it_is_written(tmp_path):
    authority = Authority(tmp_path).public
    for join in (JoinText(authority, Token.new()), JoinText(authority), JoinText(b"", Token.new()), JoinText(b"")):
        assert JoinText.parse(f" {join.text}\n") == join
    assert JoinText(b"").root() is None
    token = Token.new()
    assert token.secret not in repr(JoinText(authority, token))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a line"),
        ("umbel2.-", "not a line"),
        ("umbel1", "damaged"),
        ("umbel1.", "damaged"),
        ("umbel1.AAAA", "damaged"),
        ("umbel1.a", "damaged"),
        ("umbel1.+/+/", "damaged"),
        ("umbel1.-.", "not a token"),
        ("umbel1.-.abc.def", "not a token"),
    ],
)
def test_a_line_that_is_none_is_an_error(text, message):
    with pytest.raises(SettingError, match=message):
        JoinText.parse(text)


def test_a_key_that_is_no_point_of_the_curve_is_an_error():
    with pytest.raises(SettingError, match="no public key"):
        root_certificate(b"\x02" + b"\xff" * 32)
    with pytest.raises(SettingError, match="no public key"):
        root_certificate(b"")


def test_a_successor_takes_its_place(tmp_path):
    authority = Authority(tmp_path)
    old, served = authority.public, authority.serving(now=NOW)
    assert authority.successor == b""
    with pytest.raises(SettingError, match="has no successor"):
        authority.retire()
    authority.rotate()
    new = authority.successor
    authority.rotate()  # again changes nothing
    assert (Authority(tmp_path).public, Authority(tmp_path).successor) == (old, new) != (new, old)
    assert authority.serving(now=NOW) == served
    said = authority.endorse("successor", new)
    authority.retire()
    for known in (authority, Authority(tmp_path)):
        assert (known.public, known.successor) == (new, b"")
        assert known.serving(now=NOW).certificate != served.certificate
    assert endorses(said)
    assert stat.S_IMODE((tmp_path / "authority.key").stat().st_mode) == 0o600


def test_a_power_cut_while_it_takes_its_place_changes_nothing(tmp_path):
    authority = Authority(tmp_path)
    authority.rotate()
    next, new = (tmp_path / "next.key").read_bytes(), authority.successor
    authority.retire()
    (tmp_path / "next.key").write_bytes(next)
    assert (Authority(tmp_path).public, Authority(tmp_path).successor) == (new, b"")
    assert not (tmp_path / "next.key").exists()


def test_only_what_an_authority_has_said_is_said_by_it(tmp_path):
    one, other = Authority(tmp_path / "one"), Authority(tmp_path / "other")
    for field, value in (("by", other.public), ("of", one.public), ("role", "relay"), ("signature", b""), ("by", b"")):
        said = one.endorse("successor", other.public)
        assert endorses(said)
        setattr(said, field, value)
        assert not endorses(said)
