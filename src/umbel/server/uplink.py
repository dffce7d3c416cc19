"""What a relay says to the server above: in each of its sessions, and of the answers to an ask."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from ..wire import messages as m
from ..wire.bodies import tasks_of
from ..wire.limits import ALIVE_TASKS
from ..wire.portions import portions, text_bytes
from .ledger import payload_of
from .signals import FoldAnswers, Folded, Forget, RelayEffect, SayAbove

FEWEST = 4
"""Fewer answers than this go up as they came."""
RECEIPT_BYTES = 1 << 20
"""So many bytes of receipts go into one partial; a message has to fit into a frame."""
ALIVE_SECONDS = 5.0


class Uplink:
    """The session with the server above, `open` while there is one, with its `number`: nothing is said outside of one.

    `effects` are what is to be done, in order, and `do` takes one.
    """

    def __init__(self) -> None:
        self.number = 0
        self.open = False
        self.effects: list[RelayEffect] = []
        self.do = self.effects.append
        self._folds = 0
        self._alive_at = 0.0

    def begin(self, now: float) -> None:
        """A session has begun."""
        self.number += 1
        self.open = True
        self._alive_at = now

    def say(self, **body: Any) -> None:
        """Say a message with this body."""
        if self.open:
            self.do(SayAbove(m.Message(**body)))

    def pass_on(self, answer: m.Message) -> None:
        """Say an answer, once all that the router's store has by now is on disk."""
        if self.open:
            self.do(SayAbove(answer, durable=True))

    def fold(self, spec: m.AskSpec, answers: Iterable[m.Message]) -> int:
        """Have answers folded; gives the number of the fold."""
        self._folds += 1
        self.do(FoldAnswers(self._folds, spec, tuple(answers)))
        return self._folds

    def say_alive(self, run: str, tasks: list[str]) -> None:
        """Say that these tasks are worked at, and that the run is known even if there are none."""
        for part in portions(tasks, text_bytes, most=ALIVE_TASKS) if tasks else [[]]:
            self.say(alive=m.Alive(run=run, tasks=part))

    def tell_alive(self, now: float, tell: Callable[[], None]) -> float:
        """Have signs of life told every `ALIVE_SECONDS`; when they are due next."""
        if now >= self._alive_at + ALIVE_SECONDS:
            self._alive_at = now
            tell()
        return self._alive_at + ALIVE_SECONDS


@dataclass(slots=True)
class _Bundle:
    """Answers that go up together; `message` once they are folded, `session` in which it was said last."""

    answers: list[m.Message]
    tasks: set[str]
    message: m.Message | None = None
    session: int = 0


class BundledAnswers:
    """What goes up of the answers to an ask: a bundle is folded, and then held until it is acknowledged.

    `offers` are the blobs that were named above, and whose tasks' they are.
    """

    def __init__(self, spec: m.AskSpec, uplink: Uplink) -> None:
        self.offers: dict[bytes, tuple[str, ...]] = {}
        self._spec, self._uplink = spec, uplink
        self._bundles: dict[int, _Bundle] = {}

    def put(self, answers: Iterable[m.Message]) -> None:
        """Have answers folded; too few of them go up as they came."""
        for batch in portions(answers, _receipt_bytes, most_bytes=RECEIPT_BYTES):
            tasks = [task for message in batch for task in tasks_of(message)]
            if len(batch) == 1 or len(tasks) < FEWEST:
                for message in batch:
                    self.pass_on(message)
                continue
            self._bundles[self._uplink.fold(self._spec, batch)] = _Bundle(batch, set(tasks))

    def pass_on(self, answer: m.Message) -> None:
        """Say an answer as it came. It is not kept here: if it gets lost, the server asks again."""
        self._offer(payload_of(answer), tasks_of(answer))
        self._uplink.pass_on(answer)

    def folded(self, event: Folded) -> bool:
        """A fold is done, and whether it is one of these; what it could not take goes up as it came."""
        bundle = self._bundles.get(event.number)
        if bundle is None:
            return False
        for message in list(bundle.answers):
            tasks = tasks_of(message)
            if event.payload is None or not event.refused.isdisjoint(tasks):
                self.pass_on(message)
                bundle.answers.remove(message)
                bundle.tasks.difference_update(tasks)
        if event.payload is None or not bundle.answers:
            self._forget(event.number)
            return True
        partial = m.Partial(run=self._spec.run, ask=self._spec.ask, receipts=event.receipts, partial=event.payload)
        bundle.message = m.Message(partial=partial)
        self._offer(event.payload, sorted(bundle.tasks))
        self._say(bundle)
        return True

    def say_again(self, task: str) -> bool:
        """Whether the answer to a task is here; it is said if it was not said in this session."""
        bundle = next((each for each in self._bundles.values() if task in each.tasks), None)
        if bundle is not None:
            self._say(bundle)
        return bundle is not None

    def tasks(self) -> set[str]:
        """The tasks whose answers are here."""
        return {task for bundle in self._bundles.values() for task in bundle.tasks}

    def acknowledged(self, tasks: set[str]) -> None:
        """The server above has a partial of just these tasks."""
        for number, bundle in list(self._bundles.items()):
            if bundle.message is not None and bundle.tasks == tasks:
                self._forget(number)

    def take_out(self, tasks: Collection[str]) -> list[m.Message]:
        """Undo the bundles that hold any of these tasks; gives the answers in them."""
        found = {number: each for number, each in self._bundles.items() if not each.tasks.isdisjoint(tasks)}
        for number in found:
            self._forget(number)
        return [message for bundle in found.values() for message in bundle.answers]

    def forget(self) -> None:
        """The ask is over."""
        for number in list(self._bundles):
            self._forget(number)

    def _forget(self, number: int) -> None:
        del self._bundles[number]
        self._uplink.do(Forget(number))

    def _offer(self, payload: m.Payload | None, tasks: Iterable[str]) -> None:
        if payload is not None and payload.HasField("blob"):
            self.offers[payload.blob.sha256] = tuple(tasks)

    def _say(self, bundle: _Bundle) -> None:
        if self._uplink.open and bundle.message is not None and bundle.session != self._uplink.number:
            bundle.session = self._uplink.number
            self._uplink.pass_on(bundle.message)


def _receipt_bytes(message: m.Message) -> int:
    """What the receipts of an answer take in a message."""
    return sum(receipt.ByteSize() + 8 for receipt in receipts_of(message))


def receipts_of(message: m.Message) -> list[m.Receipt]:
    """The receipts of a `Result` that is done, or of a `Partial`."""
    return list(message.partial.receipts) if message.HasField("partial") else [message.result.done.receipt]
