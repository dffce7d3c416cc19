"""Proofs hold for one handshake, one key and one token, and for nothing else."""

from __future__ import annotations

from umbel.trust.identity import SigningKey, check_node, check_seal
from umbel.trust.proofs import NodeProof, TokenProof
from umbel.trust.tokens import Token

TOKEN = Token.new()
KEY = SigningKey.new()


def test_who_holds_a_token_proves_it_for_one_handshake():
    proof = TokenProof(TOKEN).proof(b"this handshake")
    assert check_seal(TOKEN.key.public, b"this handshake", proof.seal)
    assert not check_seal(TOKEN.key.public, b"another handshake", proof.seal)
    assert not check_seal(Token.new().key.public, b"this handshake", proof.seal)
    assert proof.signature == b""


def test_a_node_signs_and_seals_only_where_it_joins():
    joining = NodeProof(KEY, TOKEN).proof(b"t")
    known = NodeProof(KEY).proof(b"t")
    assert check_node(KEY.public, b"t", joining.signature)
    assert check_seal(TOKEN.key.public, b"t", joining.seal)
    assert known.signature == joining.signature
    assert known.seal == b""
    assert not check_node(KEY.public, b"u", known.signature)
    assert not check_node(SigningKey.new().public, b"t", known.signature)


def test_proofs_show_no_secret():
    for proof in (TokenProof(TOKEN), NodeProof(KEY, TOKEN)):
        assert TOKEN.secret not in repr(proof)
        assert TOKEN.secret.encode() not in proof.proof(b"t").SerializeToString()
