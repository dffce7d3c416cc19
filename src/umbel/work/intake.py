"""The intake: takes in clients' updates, wherever they were made, checks them, and folds those that are admitted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..core.answer import Receipts
from ..core.arrays import Arrays
from ..core.ask import SENT, Ask, Sent, for_client
from ..core.correction import check_reports
from ..core.partial import Partial
from ..core.task import Admit, Failed, Finished, Task
from ..core.update import Contribution, Like, Receipt, Stack, Stacking, Update, check, check_metrics
from ..errors import CallerError, ClientError, ClientId, UmbelError, UpdateRejected
from .account import Account
from .blame import traced
from .sizes import update_bytes

MOST_TRACES = 10
"""Of so many reasons why clients failed a traceback is kept."""
JOINED, JOINED_BYTES = 16, 1 << 20
"""So many results, and no more bytes, are folded as one stack."""
LONGEST_REASON, LONGEST_TRACE = 2000, 20_000
"""So many characters of a reason are kept, and the last of a traceback."""


@dataclass(slots=True)
class OpenAsk:
    """An ask as its executor knows it: the round that it belongs to, its place in it, its transforms' parameters."""

    id: int
    ask: Ask
    round: int
    number: int
    params: Any
    partial: Partial
    states: dict[ClientId, bytes] = field(default_factory=dict)
    refused: dict[ClientId, str] = field(default_factory=dict)
    at_once: int | None = None
    _shared: Sent | None = None
    _given: tuple[Arrays, Arrays, tuple[str, ...]] | None = None

    def sent_to(self, client: ClientId) -> Sent:
        """What one client gets; computed once if nothing is a function."""
        if self._shared is not None:
            return self._shared
        ask = self.ask
        parts = Sent(*(getattr(ask, name) for name in SENT))
        if not any(map(callable, parts)):
            self._shared = parts
            return parts
        sent = Sent(*(for_client(part, client) for part in parts))
        ask.agreed(sent.model, sent.expects)
        return sent

    def room_for(self, count: int) -> Stacking | None:
        """Where so many updates can be stacked; None where they are to be checked and folded one by one."""
        ask: Any = self.ask
        return Stacking(count, ask.expects, ask.model) if count > 1 and self.stacks else None

    @property
    def stacks(self) -> bool:
        """Whether updates that have passed the check are all alike, and may be folded as one stack."""
        ask: Any = self.ask
        alike = isinstance(ask.expects, Like) and ask.expects.aux is None and not callable(ask.model)
        return alike and not ask.transform.parts and ask.fold.stacks

    def given(self, model: Any) -> Any:
        """What handlers get of a model; the same object for the same, which frameworks load faster."""
        if model is None:
            return None
        if self._given is None or self._given[0] is not model:
            personal = tuple(name for name, role in model.roles.items() if role == "personal")
            self._given = (model, model.as_given(), personal)
        return self._given[1]

    def personal(self, model: Any) -> tuple[str, ...]:
        """The names of a model's arrays that are its clients' own."""
        self.given(model)
        return () if self._given is None or model is None else self._given[2]


@dataclass(slots=True)
class ClosedAsk:
    """What an ask came to: its partial, the clients' next states, refused updates, and the account."""

    partial: Partial
    states: dict[ClientId, bytes] = field(default_factory=dict)
    refused: dict[ClientId, str] = field(default_factory=dict)
    account: Account = field(default_factory=Account)

    def agree(self) -> None:
        """Leave out the updates with other arrays than most have (see `Partial`), and the states that go with them."""
        for client, reason in self.partial.agree().items():
            self.refused[client] = reason
            self.states.pop(client, None)


@dataclass(slots=True)
class Checked:
    """Checked results that wait to be admitted, with the next states of those clients that have one."""

    items: Stack
    receipts: Receipts
    states: dict[ClientId, bytes]

    @classmethod
    def of(cls, item: Contribution, receipt: Receipt, state: bytes | None) -> Checked:
        """One result."""
        return cls(Stack.of(item), Receipts.of([receipt]), {} if state is None else {item.client: state})

    @classmethod
    def joined(cls, results: Sequence[Checked]) -> Iterator[Checked]:
        """Results that are all alike, so many small ones in one as are added at a time."""
        most = max(1, JOINED_BYTES // max(1, results[0].items.arrays.nbytes))
        for at in range(0, len(results), min(JOINED, most)):
            some = results[at : at + min(JOINED, most)]
            if len(some) == 1 or any(result.items.mapped for result in some):
                yield from some
                continue
            receipts = Receipts()
            for result in some:
                receipts.add(result.receipts)
            states = {client: state for result in some for client, state in result.states.items()}
            yield cls(Stack.joined([result.items for result in some]), receipts, states)


class Intake:
    """Results of open asks. They wait until they are admitted or cancelled."""

    def __init__(self) -> None:
        self._account = Account()
        self._asks: dict[int, OpenAsk] = {}
        self._origin: dict[int, OpenAsk] = {}
        self._results: dict[str, Checked] = {}
        self._traced: set[str] = set()

    def open(self, id: int, ask: Ask, round: int, number: int, params: Any) -> None:
        """Make an ask known before its results come: the `number`-th of its round, from 0."""
        self._asks[id] = self._origin[id] = OpenAsk(id, ask, round, number, params, Partial(ask.fold))

    def arrived(
        self, task: Task, update: Update, receipt: Receipt, state: bytes | None, *, mapped: bool = False
    ) -> Finished | Failed:
        """Take in what another process made of a task: decode it, check it and keep it. Its word is not taken for
        anything but its metrics and seconds. `mapped` says that the arrays are views of a file.
        """
        began = time.perf_counter()
        opened = self._origin[task.ask]
        found = self._attempt(opened, task.client, self._taken_in, opened, task, update, receipt, state)
        self._account.folding += time.perf_counter() - began
        if isinstance(found, Failed):
            return found
        self._account.training += receipt.seconds
        found.items.mapped = mapped and opened.ask.transform.parts == ()
        self._results[task.id] = found
        return Finished([task.id])

    def _taken_in(self, opened: OpenAsk, task: Task, update: Update, claimed: Receipt, state: bytes | None) -> Checked:
        sent = opened.sent_to(task.client)
        item = self.decoded(opened, update, sent, task.client)
        told = {} if opened.ask.transform.private else claimed.metrics
        metrics = check_metrics(told, "the update's metrics")
        wanted = {*opened.ask.transform.reports, *(sent.correction.reports if sent.correction is not None else ())}
        try:
            check_reports(wanted, metrics)
        except CallerError as error:  # here it is the word of somebody else's process
            raise UpdateRejected(error.message) from error
        return Checked.of(item, Receipt(task.id, task.client, item.weight, metrics, claimed.seconds), state)

    def decoded(self, opened: OpenAsk, update: Update, sent: Sent, client: ClientId) -> Contribution:
        """An update that crossed the wire, decoded and checked against what its ask expects; it counts what the ask
        says.
        """
        if sent.weight is not None:
            update = replace(update, weight=sent.weight)
        transform = opened.ask.transform
        schema, step = sent.expects.schema(sent.model), "decoded"
        try:
            with np.errstate(all="ignore"):  # what is not finite is rejected by name
                if transform.parts:
                    encoded, update = update, transform.decode(update, opened.params, schema)
                    self._account.update_bytes += update_bytes(encoded)
                    self._account.plain_bytes += update_bytes(update)
                step = "checked"
                return check(update, transform.folded(sent.expects), sent.model, client)
        except ClientError:
            raise
        except Exception as error:  # whatever it is, it comes of what one client sent, and costs its update alone
            why = error.message if isinstance(error, UmbelError) else f"{type(error).__name__}: {told(error)}"
            raise UpdateRejected(f"the update cannot be {step}: {why}") from error

    def merge(self, id: int, partial: Partial, states: dict[ClientId, bytes]) -> None:
        """Fold a partial that another process made of some tasks of an ask."""
        opened = self._asks[id]
        opened.partial.merge(partial)
        opened.states.update(states)

    def take_account(self) -> Account:
        """Where time went since this was last asked."""
        account, self._account = self._account, Account()
        return account

    def _attempt(self, opened: OpenAsk, client: ClientId, step: Callable[..., Any], *given: Any) -> Any:
        try:
            return step(*given)
        except CallerError as error:
            raise error.located(round=opened.round, client=client) from error.__cause__
        except ClientError as error:
            reason = f"{error.message} ({error.hint})" if error.hint else error.message
            if len(reason) > LONGEST_REASON:
                reason = f"{reason[: LONGEST_REASON - 1]}…"
            return Failed(f"{opened.id}.{client}", reason, retry=error.retry, trace=self._trace(reason, error))

    def _trace(self, reason: str, error: ClientError) -> str:
        """The traceback of the client's own code, once for a reason, and of some reasons only."""
        if error.__cause__ is None or reason in self._traced or len(self._traced) >= MOST_TRACES:
            return ""
        self._traced.add(reason)
        return traced(error.__cause__)[-LONGEST_TRACE:]

    def admit(self, command: Admit) -> None:
        """Fold results that wait."""
        began = time.perf_counter()
        opened, results = self._asks[command.ask], [self._results.pop(task) for task in command.tasks]
        together = len(results) > 1 and not command.staleness and opened.stacks  # of this very ask
        for result in Checked.joined(results) if together else results:
            result.receipts.staleness[:] = [command.staleness] * len(result.items)
            self._fold(opened, result, command.factor)
        self._account.folding += time.perf_counter() - began

    def _fold(self, opened: OpenAsk, result: Checked, factor: float = 1.0) -> None:
        clients = result.items.clients
        try:
            opened.partial.add_stack(result.items, result.receipts, factor)
        except UpdateRejected as error:
            opened.refused.update(dict.fromkeys(clients, error.message))
            return
        except CallerError as error:
            raise error.located(round=opened.round, client=clients[0]) from error.__cause__
        opened.states.update(result.states)

    def cancel(self, tasks: Iterable[str]) -> None:
        """Let go of results that nobody wants."""
        for task in tasks:
            self._results.pop(task, None)

    def close(self, id: int) -> OpenAsk:
        """Hand over the partial of an ask, and the client states that come with it."""
        return self._asks.pop(id)

    def forget(self, asks: set[int]) -> None:
        """Forget all asks but these, whose tasks may still come."""
        self._origin = {id: opened for id, opened in self._origin.items() if id in asks}
        self._asks = {id: opened for id, opened in self._asks.items() if id in asks}


def told(error: BaseException) -> str:
    """What an error of other people's code says, whatever its `__str__` does."""
    try:
        return str(error)
    except Exception:
        return "(it cannot be printed)"
