"""The machine of a relay over a store in memory, and messages to it."""

from __future__ import annotations

import json

import umbel
from umbel.core.task import Ticked
from umbel.server.relayed import LINGER
from umbel.server.relaying import Relaying
from umbel.server.signals import Asked, FoldAnswers, Folded, Forget, Reached, RouterSaid, SayAbove, TellRouter
from umbel.store.records import MemoryStore
from umbel.wire import messages as m

CLIENTS = frozenset("01234567")
SPEC = m.RunSpec(run="r", name="a run", archive=m.Payload(inline=b"archive"))
FOLDED = m.Payload(inline=b"folded")
MEAN, COLLECT = json.dumps(umbel.mean().spec()), json.dumps(umbel.collect().spec())
READY, OFFLINE, REFUSED = m.STANDING_READY, m.STANDING_OFFLINE, m.STANDING_REFUSED
PREPARING = m.STANDING_PREPARING


def ask_of(id=1, *, whole=True, fold=MEAN, **more):
    return m.AskSpec(run="r", ask=id, kind="train", digest=b"d", whole=whole, fold=fold, transforms="[]", **more)


def task_of(client, ask=1, attempt=1, **more):
    return m.Task(run="r", task=f"{ask}.{client}", ask=ask, client=str(client), attempt=attempt, **more)


def done_of(client, ask=1, update=None):
    receipt = m.Receipt(task=f"{ask}.{client}", client=str(client), weight=1.0)
    done = m.Done(receipt=receipt, update=update or m.Payload(inline=b"update"))
    return m.Result(run="r", task=f"{ask}.{client}", ask=ask, client=str(client), attempt=1, done=done)


def failed_of(client, ask=1, attempt=1):
    failure = m.Failure(reason="no", retry=True)
    return m.Result(run="r", task=f"{ask}.{client}", ask=ask, client=str(client), attempt=attempt, failure=failure)


def partial_of(*clients, ask=1):
    receipts = [m.Receipt(task=f"{ask}.{client}", client=str(client)) for client in clients]
    return m.Partial(run="r", ask=ask, receipts=receipts, partial=m.Payload(inline=b"partial"))


class World:
    """A relay's machine, and all that it has said."""

    def __init__(self, store=None, clients=CLIENTS):
        self.machine = Relaying(store or MemoryStore(), clients)
        self.now = 0.0
        self.up, self.down, self.folds, self.gone, self.durable = [], [], [], [], []

    def put(self, event):
        for effect in self.machine.handle(event, self.now):
            if isinstance(effect, SayAbove):
                kind = effect.message.WhichOneof("body")
                self.up.append((kind, getattr(effect.message, kind)))
                self.durable += [kind] * effect.durable
            elif isinstance(effect, FoldAnswers):
                self.folds.append(effect)
            elif isinstance(effect, Forget):
                self.gone.append(effect.number)
            elif isinstance(effect, TellRouter) and hasattr(effect.event, "message"):
                kind = effect.event.message.WhichOneof("body")
                self.down.append((kind, getattr(effect.event.message, kind)))
            else:
                self.down.append((type(effect.event).__name__, effect.event))

    def asked(self, **body):
        self.put(Asked(m.Message(**body)))

    def answered(self, **body):
        self.put(RouterSaid(m.Message(**body)))

    def later(self, seconds=LINGER):
        self.now += seconds
        self.put(Ticked())

    def fold(self, *, refused=(), payload=FOLDED):
        """Do the last fold that was wanted."""
        fold = self.folds[-1]
        tasks = [each.result.done.receipt for each in fold.answers if each.WhichOneof("body") == "result"]
        tasks += [receipt for each in fold.answers for receipt in each.partial.receipts]
        receipts = tuple(receipt for receipt in tasks if receipt.task not in refused)
        self.put(Folded(fold.number, payload, receipts, frozenset(refused)))

    def said(self, *kinds):
        """What was said above since this was last asked, only of these kinds if any are named."""
        found, self.up = [each for each in self.up if not kinds or each[0] in kinds], []
        return found if len(kinds) != 1 else [body for _, body in found]

    def told(self, *kinds):
        """What the router was told since."""
        found, self.down = [each for each in self.down if not kinds or each[0] in kinds], []
        return found if len(kinds) != 1 else [body for _, body in found]


def world_of(*clients, ask=None):
    """A relay that was asked, and has said nothing yet."""
    world = World()
    world.put(Reached(CLIENTS))
    world.asked(run_spec=SPEC)
    world.asked(ask_spec=ask or ask_of())
    for client in clients:
        world.asked(task=task_of(client))
    world.said()
    return world


def tasks_in(partial):
    return [receipt.task for receipt in partial.receipts]


def members_of(**standings):
    found = [m.Member(client=name[1:], standing=standing, reason="why") for name, standing in standings.items()]
    return m.Members(run="r", members=found)
