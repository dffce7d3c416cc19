"""A registry over a store in memory, and those who connect to it."""

from __future__ import annotations

import secrets

import pytest

from umbel.errors import Refused
from umbel.server.registry import Registry
from umbel.store.records import MemoryStore
from umbel.trust.identity import SigningKey, node_id, seal, sign_node, transcript
from umbel.wire import messages as m


class Office:
    """A registry with a store in memory and a clock, and those who connect to it."""

    def __init__(self, **settings):
        self.store, self.now, self.settings = MemoryStore(), 1000.0, settings
        self.registry = self.opened()

    def opened(self):
        return Registry(self.store, lambda: self.now, **self.settings)

    def restart(self):
        """All that was committed is there again."""
        self.store.commit()
        self.registry = self.opened()

    def node(self, key, token=None, *, name="", signed=None, role=m.ROLE_NODE, **more):
        hello = m.Hello(
            role=role,
            name=name,
            key=key.public,
            nonce=secrets.token_bytes(32),
            token=token.id if token else "",
            **more,
        )
        challenge = m.Challenge(version=1, nonce=secrets.token_bytes(32))
        text = transcript(hello.SerializeToString(), challenge.SerializeToString())
        sealed = seal(token.key, text) if token else b""
        proof = m.Proof(signature=sign_node(signed or key, text), seal=sealed)
        self.last = hello, challenge, proof
        return self.registry.verify(hello, challenge, text, proof)

    def holder(self, role, token, name="somebody"):
        hello = m.Hello(role=role, name=name, token=token.id, nonce=secrets.token_bytes(32))
        challenge = m.Challenge(version=1, nonce=secrets.token_bytes(32))
        text = transcript(hello.SerializeToString(), challenge.SerializeToString())
        return self.registry.verify(hello, challenge, text, m.Proof(seal=seal(token.key, text)))

    def refused(self, code, call, *args, retry=False, **more):
        with pytest.raises(Refused) as caught:
            call(*args, **more)
        assert (caught.value.code, caught.value.retry) == (code, retry)
        return caught.value.message

    def audit(self):
        self.store.commit()
        return [(record["who"], record["did"]) for record in self.registry.audit.last()]


KEY, OTHER = SigningKey.new(), SigningKey.new()
ID = node_id(KEY.public)
