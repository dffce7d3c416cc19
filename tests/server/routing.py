"""A router over a store in memory, and messages to it."""

from __future__ import annotations

from umbel.server.router import Router
from umbel.server.signals import Connected, Received, Say
from umbel.store.records import MemoryStore
from umbel.wire import messages as m
from umbel.wire.blobs import Fetched, node_giver

KEY = b"k" * 32
UPDATE, PARTIAL = m.Payload(inline=b"update"), m.Payload(inline=b"partial")
SPEC = m.RunSpec(run="r", name="mnist", archive=m.Payload(inline=b"archive"), contract="{}", config="{}", owner="ann")


def blob_of(letter, size=100):
    return m.Blob(sha256=letter.encode() * 32, size=size)


def ask_of(id=0, **more):
    fields = {"kind": "train", "digest": b"d", "transforms": "[]", "fold": "[]", "whole": True}
    return m.AskSpec(run="r", ask=id, **{**fields, **more})


def task_of(client, ask=0, attempt=1, **more):
    id = f"{ask}.{client}"
    return m.Task(run="r", task=id, ask=ask, client=client, attempt=attempt, key=KEY, data_key=KEY, **more)


def done_of(client, ask=0, attempt=1, update=UPDATE):
    id = f"{ask}.{client}"
    done = m.Done(receipt=m.Receipt(task=id, client=client, weight=1.0), update=update)
    return m.Result(run="r", task=id, ask=ask, client=client, attempt=attempt, done=done)


def failed_of(client, ask=0, attempt=1, reason="no", retry=False):
    failure = m.Failure(reason=reason, retry=retry)
    return m.Result(run="r", task=f"{ask}.{client}", ask=ask, client=client, attempt=attempt, failure=failure)


def partial_of(*clients, ask=0, partial=PARTIAL):
    receipts = [m.Receipt(task=f"{ask}.{client}", client=client) for client in clients]
    return m.Partial(run="r", ask=ask, receipts=receipts, partial=partial)


class World:
    """A router, its store, and the blobs that it has, from anybody, or with who has brought them; what it says is read
    by `said`.
    """

    def __init__(self, **settings):
        self.store = MemoryStore()
        self.blobs = set()
        self.settings = settings
        self.effects = []
        self.now = 0.0
        for name in ("a", "b"):
            self.store.put("nodes", {"id": name, "name": f"node {name}", "status": "approved"})
        self.store.commit()
        self.start()

    def start(self, *, crash=False):
        """A new router on what is on disk."""
        self.store.crash() if crash else self.store.commit()
        known = self.blobs
        self.router = Router(self.store, lambda sha, giver: sha in known or (sha, giver) in known, **self.settings)

    def tell(self, event):
        self.now += 1.0
        self.effects = self.router.handle(event, self.now)
        return self.effects

    def say(self, peer, **body):
        return self.tell(Received(peer, m.Message(**body)))

    def fetched(self, sha, node="a", run="r"):
        """A blob has come from a node."""
        return self.tell(Fetched(run, sha, node_giver(node)))

    def node(self, name, *clients, number=1, relay=True):
        return self.tell(Connected(f"{name}{number}", "node", name, f"node {name}", clients, relay))

    def run(self, number=1, spec=SPEC):
        self.tell(Connected(f"r{number}", "run", "r", "ann"))
        return self.say(f"r{number}", run_spec=spec) if spec is not None else self.effects

    def ready(self, peer, **more):
        return self.say(peer, run_answer=m.RunAnswer(run="r", ready=True, **more))

    def said(self, peer, kind=None):
        """What a peer was told by the last event: (kind, body), or the bodies of one kind."""
        found = [effect.message for effect in self.effects if isinstance(effect, Say) and effect.peer == peer]
        pairs = [(each.WhichOneof("body"), getattr(each, each.WhichOneof("body"))) for each in found]
        return pairs if kind is None else [body for name, body in pairs if name == kind]

    def durable(self, kind):
        """Whether what was said of this kind waits for the disk."""
        found = [e.durable for e in self.effects if isinstance(e, Say) and e.message.WhichOneof("body") == kind]
        assert found
        return all(found)

    def of(self, kind):
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def standings(self, peer="r1"):
        told = [member for body in self.said(peer, "members") for member in body.members]
        return {member.client: (member.standing, member.reason) for member in told}


def two_nodes():
    """Two nodes, a with clients 0 and 1, b with 2, all ready for the run."""
    found = World()
    found.node("a", "0", "1")
    found.node("b", "2")
    found.run()
    found.ready("a1")
    found.ready("b1")
    return found


def asked(world, *clients, **more):
    world.say("r1", ask_spec=ask_of(**more))
    for client in clients:
        world.say("r1", task=task_of(client))
