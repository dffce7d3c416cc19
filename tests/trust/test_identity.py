"""Keys and what they sign: nothing signed for one use passes for another."""

from __future__ import annotations

import copy
import hashlib
import pickle

import pytest

from umbel.errors import SettingError
from umbel.trust import identity
from umbel.trust.identity import SigningKey

KEY, OTHER = SigningKey.new(), SigningKey.new()
TRANSCRIPT = identity.transcript(b"hello", b"challenge")


def test_a_key_is_kept(tmp_path):
    path = tmp_path / "node.key"
    first = SigningKey.kept(path)
    assert SigningKey.kept(path).public == first.public
    assert identity.verified(first.public, b"x", SigningKey.kept(path).sign(b"x"))


@pytest.mark.parametrize("data", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"])
def test_a_file_that_holds_no_key_is_an_error_that_does_not_show_it(tmp_path, data):
    (tmp_path / "node.key").write_bytes(data)
    with pytest.raises(SettingError, match="holds no Ed25519 key") as caught:
        SigningKey.kept(tmp_path / "node.key")
    assert "AA==" not in str(caught.value)


def test_a_key_shows_nothing_of_itself(tmp_path):
    key = SigningKey.kept(tmp_path / "k")
    secret = key._key.private_bytes_raw().hex()
    assert secret not in repr(key) + str(key) + f"{key}"
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="stays where it is"):
            leave(key)


def test_a_node_is_known_by_its_key():
    assert identity.node_id(bytes(32)) == "66687aadf862bd776c8fc18b8e9f8e20"
    assert len({identity.node_id(key.public) for key in (KEY, OTHER)}) == 2


def test_the_transcript_is_what_the_protocol_says():
    digest = hashlib.sha256
    assert b"umbel/v1alpha\0" + digest(b"hello").digest() + digest(b"challenge").digest() == TRANSCRIPT


def test_a_proof_holds_for_its_key_and_transcript_alone():
    proof = identity.sign_node(KEY, TRANSCRIPT)
    assert identity.check_node(KEY.public, TRANSCRIPT, proof)
    assert not identity.check_node(OTHER.public, TRANSCRIPT, proof)
    assert not identity.check_node(KEY.public, identity.transcript(b"hello", b"other"), proof)
    assert not identity.check_node(KEY.public, TRANSCRIPT, bytes(64))
    for wrong in (b"", proof[:-1], proof + b"x"):
        assert not identity.check_node(KEY.public, TRANSCRIPT, wrong)
    for public in (b"", bytes(31), b"\xff" * 32, bytes(32)):
        assert not identity.check_node(public, TRANSCRIPT, proof)


def test_what_is_signed_for_one_use_is_not_good_for_another():
    sha = hashlib.sha256(b"archive").digest()
    assert identity.check_statement(KEY.public, sha, identity.sign_statement(KEY, sha))
    assert not identity.check_statement(KEY.public, sha, identity.sign_node(KEY, sha))
    assert not identity.check_node(KEY.public, sha, identity.sign_statement(KEY, sha))
    assert not identity.check_statement(KEY.public, sha, KEY.sign(sha))


def test_a_seal_is_a_signature_of_the_transcript():
    sealed = identity.seal(KEY, TRANSCRIPT)
    assert sealed == KEY.sign(b"token\0" + TRANSCRIPT)
    assert identity.check_seal(KEY.public, TRANSCRIPT, sealed)
    assert not identity.check_seal(bytes(32), TRANSCRIPT, sealed)
    assert not identity.check_seal(KEY.public, TRANSCRIPT + b"x", sealed)
    assert not identity.check_seal(KEY.public, TRANSCRIPT, b"")
    assert not identity.check_node(KEY.public, TRANSCRIPT, sealed)
