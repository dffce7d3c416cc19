"""What tests of a node's parts share: a machine with its spool, and short ways to say what happens to it."""

from __future__ import annotations

from umbel.node.machine import NodeMachine
from umbel.node.signals import (
    HostReady,
    SayToServer,
    ServerSaid,
    SessionBegun,
    SessionEnded,
    Start,
    TaskDone,
    TaskFailed,
)
from umbel.node.spool import Spool
from umbel.wire import messages as m

PLAIN = "[]"
KINDS, STEPS = frozenset({"train", "evaluate"}), frozenset({("clip_by_norm", 1)})


def blob_of(text):
    return m.Blob(sha256=text.encode().ljust(32, b"."), size=1)


def payload(text):
    return m.Payload(blob=blob_of(text))


class Bench:
    """A machine with its spool, and short ways to say what happens to it."""

    def __init__(self, *, spool=None, connected=True, **settings):
        self.spool = spool or Spool()
        self.settings = {"clients": ["a", "b", "c"], "slots": 2, **settings}
        self.now = 0.0
        self.machine = NodeMachine(self.spool, **self.settings)
        if connected:
            self(SessionBegun(m.Welcome()))

    def __call__(self, event, now=None):
        self.now = self.now if now is None else now
        return self.machine.handle(event, self.now)

    def get(self, **body):
        return self(ServerSaid(m.Message(**body)))

    def run(self, run="r", **fields):
        return self.get(run_spec=m.RunSpec(run=run, **fields))

    def host(self, run="r"):
        return [*self.run(run), *self(HostReady(run, KINDS, STEPS))]

    def ask(self, ask=1, run="r", **fields):
        fields = {"kind": "train", "digest": b"d", "transforms": PLAIN, **fields}
        return self.get(ask_spec=m.AskSpec(run=run, ask=ask, **fields))

    def task(self, client="a", ask=1, run="r", **fields):
        fields = {"attempt": 1, "key": bytes(32), "data_key": bytes(32), "task": f"{ask}.{client}", **fields}
        return self.get(task=m.Task(run=run, ask=ask, client=client, **fields))

    def done(self, client="a", ask=1, run="r", attempt=1, update=b"u", state=None):
        update = update if isinstance(update, m.Payload) else m.Payload(inline=update)
        return self(TaskDone(run, f"{ask}.{client}", attempt, m.Done(update=update), state))

    def failed(self, client="a", ask=1, run="r", attempt=1, retry=True):
        return self(TaskFailed(run, f"{ask}.{client}", attempt, "it died", retry))

    def ack(self, *tasks, run="r", attempt=1, failed=False):
        return self.get(ack=m.Ack(run=run, tasks=tasks, attempt=attempt, failed=failed))

    def reconnect(self):
        self(SessionEnded())
        return self(SessionBegun(m.Welcome()))

    def restart(self):
        """Kill the node and start it again, with what was written."""
        self.spool.crash()
        self.machine = NodeMachine(self.spool, **self.settings)
        return self(SessionBegun(m.Welcome()))


def said(effects, kind):
    return [
        getattr(e.message, kind) for e in effects if isinstance(e, SayToServer) and e.message.WhichOneof("body") == kind
    ]


def started(effects):
    return [(effect.run, effect.task.task) for effect in effects if isinstance(effect, Start)]


def of(effects, kind):
    return [effect for effect in effects if isinstance(effect, kind)]


def refused(effects):
    (result,) = said(effects, "result")
    assert result.HasField("failure")
    assert not of(effects, Start)
    return result.failure.reason
