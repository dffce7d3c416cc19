"""The executor: runs the tasks of the clients it hosts, checks and folds what they return."""

from __future__ import annotations

import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .. import encoding
from ..arrays import Arrays, Schema
from ..ask import Ask, Task, for_client
from ..client import Client, Context, LocalCorrection
from ..coordinator import Admit, Failed, Finished
from ..errors import (
    AppError,
    CallerError,
    ClientError,
    ClientId,
    HandlerFailed,
    StrategyError,
    UmbelError,
    UnusedCorrection,
    UpdateRejected,
)
from ..folds import Partial
from ..randomness import Key
from ..update import (
    NO_ARRAYS,
    Contribution,
    Expectation,
    Like,
    Metrics,
    Receipt,
    Update,
    as_delta,
    check,
    check_metrics,
    check_values,
)
from .account import Account
from .seeding import seed_all, seed_generators, seed_of

AT_ONCE = 16
AT_ONCE_BYTES = 1 << 20


@dataclass(slots=True)
class OpenAsk:
    """An ask as its executor knows it: the round that it belongs to, its place in it, its transforms' parameters."""

    ask: Ask
    round: int
    number: int
    params: Any
    partial: Partial
    states: dict[ClientId, bytes] = field(default_factory=dict)
    refused: dict[ClientId, str] = field(default_factory=dict)
    at_once: int | None = None
    _shared: tuple[Any, ...] | None = None

    def sent_to(self, client: ClientId) -> tuple[Any, ...]:
        """The model, config, inbox, correction and expectation for one client; computed once if none is a function."""
        if self._shared is not None:
            return self._shared
        ask = self.ask
        parts = (ask.model, ask.config, ask.inbox, ask.correction, ask.expects)
        if not any(map(callable, parts)):
            self._shared = parts
            return parts
        return tuple(for_client(part, client) for part in parts)


@dataclass(slots=True)
class ClosedAsk:
    """What an ask came to: its partial, the clients' next states, refused updates, and the account."""

    partial: Partial
    states: dict[ClientId, bytes] = field(default_factory=dict)
    refused: dict[ClientId, str] = field(default_factory=dict)
    account: Account = field(default_factory=Account)


@dataclass(slots=True)
class Ready:
    """A task whose handler can be called: what its client was sent and keeps; then also what the handler returned."""

    opened: OpenAsk
    sent: tuple[Any, ...]
    kept: dict[str, Any]
    ctx: Context
    seed: int
    returned: Any = None
    seconds: float = 0.0


@dataclass(slots=True)
class Work:
    """What came of a handler: the update in the form that the ask expects, and what its check needs.

    `trusted` says that names, shapes and dtypes are known to be right; `state` is the client's next state.
    """

    update: Update
    metrics: dict[str, float]
    expects: Expectation
    model: Arrays | None
    trusted: bool
    seconds: float
    state: bytes | None


@dataclass(slots=True)
class Result:
    """A checked result that waits to be admitted; `state` is the client's next state, None where it has none."""

    client: ClientId
    contribution: Contribution
    receipt: Receipt
    state: bytes | None


class DataCache:
    """The clients' data, most recently used last; at most `size` clients' are kept."""

    def __init__(self, client: Client, source_of: Callable[[ClientId], Any], size: int, key: Key) -> None:
        self._key = key
        self._load = client.load
        self._source_of = source_of
        self._size = size
        self._kept: OrderedDict[ClientId, Any] = OrderedDict()
        self.hits = 0
        self.misses = 0
        self.seconds = 0.0

    def get(self, client: ClientId) -> Any:
        """The data of a client, loaded now or before."""
        if self._load is None:
            return self._source_of(client)
        if client in self._kept:
            self.hits += 1
            self._kept.move_to_end(client)
            return self._kept[client]
        self.misses += 1
        # Seeded by the client alone: data must not depend on which task happened to load it.
        began = time.perf_counter()
        seed_generators(self._key.derive("data", client))
        data = self._load(self._source_of(client))
        self.seconds += time.perf_counter() - began
        if self._size:
            self._kept[client] = data
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return data


class StatesOf(Protocol):
    """Where an executor finds what clients keep."""

    def get(self, client: ClientId) -> dict[str, Any]:
        """The state of a client; empty for one that has none."""


class Executor:
    """Hosts clients in this process.

    `config` holds the app's settings, `key` the run's key for tasks, `states` what clients keep, `on_step` what
    `ctx.step()` does. Results wait until they are admitted or cancelled. `seconds` has what each of the tasks took that
    were done last.
    """

    def __init__(
        self,
        client: Client,
        source_of: Callable[[ClientId], Any],
        *,
        config: Mapping[str, Any],
        key: Key,
        states: StatesOf,
        device: str = "cpu",
        data_cache: int = 1000,
        on_step: Callable[[], None] | None = None,
    ) -> None:
        self._client = client
        self._config = config
        self._key = key
        self._states = states
        self._device = device
        self._on_step = on_step
        self._account = Account()
        self.seconds: list[float] = []
        self.data = DataCache(client, source_of, data_cache, key)
        self._asks: dict[int, OpenAsk] = {}
        self._origin: dict[int, OpenAsk] = {}
        self._results: dict[str, Result] = {}

    def open(self, id: int, ask: Ask, round: int, number: int, params: Any) -> None:
        """Make an ask known before its tasks come: the `number`-th of its round, from 0.

        Raises `AppError` when the client has no handler for it.
        """
        if ask.kind not in self._client.handlers:
            kinds = ", ".join(self._client.handlers) or "none"
            decorator = f'query("{ask.kind[6:]}")' if ask.kind.startswith("query:") else ask.kind
            raise AppError(
                f"the strategy asks clients to {ask.kind}, but the client has no handler for that (it has: {kinds})",
                hint=f"Write one and decorate it with @client.{decorator}.",
            )
        self._asks[id] = self._origin[id] = OpenAsk(ask, round, number, params, Partial(ask.fold))

    def run(self, task: Task) -> Finished | Failed:
        """Do a task and keep its checked result.

        Errors of the client fail the task; errors of the caller are raised.
        """
        return self.run_all([task])[0]

    def run_all(self, tasks: Sequence[Task], begins: Callable[[Task], bool] | None = None) -> list[Finished | Failed]:
        """Do tasks one after the other, then check what they returned; see `run`.

        `begins` is told each task before its handler is called; where it says no, that task and all after it are left
        undone, and have no outcome.
        """
        # Whatever comes between two handlers finds the processor's caches full of the handler's code and data. So it is
        # as little as can be: all is prepared before, and taken and checked after.
        clock, self.seconds = time.perf_counter, []
        began = clock()
        ready = [self._attempt(task, self._prepare, self._origin[task.ask]) for task in tasks]
        loading, last = self.data.seconds, clock()
        self._account.folding += last - began
        done: list[Any] = []
        for task, each in zip(tasks, ready, strict=True):
            if begins is not None and not begins(task):
                break
            done.append(each if isinstance(each, Failed) else self._attempt(task, self._handle, each))
            before, last = last, clock()
            self.seconds.append(last - before)
            if isinstance(each, Ready) and (len(tasks) == 1 or not _keep(each, done)):
                done[-1] = done[-1] if isinstance(done[-1], Failed) else self._attempt(task, self._take, each)
        loading = self.data.seconds - loading
        self._account.data += loading
        self._account.training += sum(self.seconds) - loading
        outcomes = [self._kept(task, each, work) for task, each, work in zip(tasks, ready, done, strict=False)]
        self._account.folding += clock() - last
        return outcomes

    def take_account(self) -> Account:
        """Where time went since this was last asked."""
        account, self._account = self._account, Account()
        account.data_hits, account.data_loads = self.data.hits, self.data.misses
        self.data.hits = self.data.misses = 0
        return account

    def at_once(self, id: int) -> int:
        """How many tasks of an ask may be done before the first is reported: several where updates are small and the
        window takes whatever comes.
        """
        opened = self._asks.get(id)
        if opened is None:
            return 1  # a late task
        model = opened.ask.model
        if not opened.ask.window.takes_all or not isinstance(model, Arrays):
            return 1
        if opened.at_once is None:
            opened.at_once = max(1, min(AT_ONCE, AT_ONCE_BYTES // max(1, model.nbytes)))
        return opened.at_once

    def _kept(self, task: Task, ready: Ready | Failed, done: Any) -> Finished | Failed:
        if done is ready and isinstance(ready, Ready):
            done = self._attempt(task, self._take, ready)
        result = done if isinstance(done, Failed) else self._attempt(task, self._check, done)
        if isinstance(result, Failed):
            return result
        self._results[task.id] = result
        return Finished(task.id)

    def _attempt(self, task: Task, step: Callable[[Task, Any], Any], given: Any) -> Any:
        try:
            return step(task, given)
        except CallerError as error:
            raise error.located(round=self._origin[task.ask].round, client=task.client) from error.__cause__
        except ClientError as error:
            reason = f"{error.message} ({error.hint})" if error.hint else error.message
            return Failed(task.id, reason, retry=error.retry)

    def admit(self, command: Admit) -> None:
        """Fold a result that waits."""
        began = time.perf_counter()
        self._fold(command, self._results.pop(command.task))
        self._account.folding += time.perf_counter() - began

    def _fold(self, command: Admit, result: Result) -> None:
        opened = self._asks[command.ask]
        receipt = result.receipt
        if command.staleness:
            receipt = Receipt(
                receipt.task, receipt.client, receipt.weight, receipt.metrics, receipt.seconds, command.staleness
            )
        try:
            opened.partial.add(result.contribution, receipt, command.factor)
        except UpdateRejected as error:
            opened.refused[result.client] = error.message
            return
        if result.state is not None:
            opened.states[result.client] = result.state

    def cancel(self, task: str) -> None:
        """Let go of a result that nobody wants."""
        self._results.pop(task, None)

    def close(self, id: int) -> OpenAsk:
        """Hand over the partial of an ask, and the client states that come with it."""
        return self._asks.pop(id)

    def forget(self, asks: set[int]) -> None:
        """Forget all asks but these, whose tasks may still come."""
        self._origin = {id: opened for id, opened in self._origin.items() if id in asks}
        self._asks = {id: opened for id, opened in self._asks.items() if id in asks}

    def _prepare(self, task: Task, opened: OpenAsk) -> Ready:
        ask, client = opened.ask, task.client
        sent = opened.sent_to(client)
        model, config, inbox, correction, _ = sent
        kept = self._states.get(client)
        key = self._key.derive(ask.kind, opened.round, opened.number, client)
        ctx = Context(
            client=client,
            round=opened.round,
            kind=ask.kind,
            config={**self._config, **config},
            key=key,
            inbox=NO_ARRAYS if inbox is None else inbox if isinstance(inbox, Arrays) else Arrays(inbox),
            state=kept.get("user", {}) if kept else {},
            correction=None if correction is None else LocalCorrection(correction, model),
            device=self._device,
            on_step=self._on_step,
        )
        return Ready(opened, sent, kept, ctx, seed_of(key))

    def _handle(self, task: Task, ready: Ready) -> Ready:
        ctx = ready.ctx
        began = time.perf_counter()
        ready.returned = self._call(ctx.kind, ready.sent[0], ctx, ready.seed)
        ready.seconds = time.perf_counter() - began
        if ctx.correction is not None and not ctx.correction.taken:
            raise UnusedCorrection(
                "the strategy needs a correction in the local loss, but the training loop never took it",
                hint="Add umbel.torch.correction_loss(net, ctx) to the loss, or ctx.correction.gradient(weights) "
                "to the gradient.",
            )
        return ready

    def _take(self, task: Task, ready: Ready) -> Work:
        try:
            return self._taken(ready)
        except UmbelError:
            raise
        except Exception as error:
            kind = ready.ctx.kind
            told = f"what its {kind} handler left cannot be used: {type(error).__name__}: {_told(error)}"
            raise UpdateRejected(told) from error

    def _taken(self, ready: Ready) -> Work:
        ask, kept, ctx, seconds = ready.opened.ask, ready.kept, ready.ctx, ready.seconds
        model, expects = ready.sent[0], ready.sent[4]
        update = _as_update(ready.returned, ask.kind)
        metrics = check_metrics(update.metrics, "the update's metrics")
        local = kept.get("local", {}) if kept else {}
        transformed = ask.transform.name != "identity"
        with np.errstate(all="ignore"):  # what is not finite is rejected by name
            if ask.kind != "evaluate":
                update = as_delta(update, expects, model)
            if transformed:
                params, schema = ready.opened.params, expects.schema(model)
                update, local = self._transform(ask, update, params, local, ctx.key, schema)
        trusted = isinstance(expects, Like) and not transformed
        user = dict(ctx.state) if ctx.state else {}
        if not kept and not user and not local:
            return Work(update, metrics, expects, model, trusted, seconds, None)
        try:
            state = encoding.encode({"user": user, "local": local})
        except StrategyError as error:
            raise UpdateRejected(
                f"what it left in ctx.state cannot be kept: {error.message}", hint=error.hint
            ) from error
        return Work(update, metrics, expects, model, trusted, seconds, state)

    def _check(self, task: Task, work: Work) -> Result:
        with np.errstate(all="ignore"):
            if work.trusted:
                contribution = check_values(work.update, work.expects, task.client)
            else:
                contribution = check(work.update, work.expects, work.model, task.client)
        receipt = Receipt(task.id, task.client, contribution.weight, work.metrics, work.seconds)
        return Result(task.client, contribution, receipt, work.state)

    def _transform(
        self, ask: Ask, update: Update, params: Any, local: dict[str, Any], key: Key, schema: Schema | None
    ) -> tuple[Update, dict[str, Any]]:
        lane = str(ask.lane)
        update, left = ask.transform.encode(update, params, local.get(lane), key.derive("transform"))
        after = {name: part for name, part in local.items() if name != lane}
        if left is not None:
            after[lane] = left
        return ask.transform.decode(update, params, schema), after

    def _call(self, kind: str, model: Arrays | None, ctx: Context, seed: int) -> Any:
        step = "loading its data"
        try:
            data = self.data.get(ctx.client)
            step = f"its {kind} handler"
            seed_all(seed)
            return self._client.handlers[kind](model, data, ctx)
        except (CallerError, ClientError):
            raise
        except (Exception, SystemExit, GeneratorExit) as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
            raise HandlerFailed(f"{step} raised {type(error).__name__}: {_told(error)} ({place})") from error


def _keep(ready: Ready, done: list[Any]) -> bool:
    """Keep what a handler returned until it is taken, as it is now: later handlers may use the same memory again.

    False where it has to be taken at once, for it is more than arrays and numbers.
    """
    update, ctx = ready.returned, ready.ctx
    if done[-1] is not ready or type(update) is not Update or ready.kept or ctx.state or len(update.aux):
        return False
    arrays = update.arrays
    if type(update.weight) not in (int, float) or not isinstance(arrays, Arrays):
        return False
    if not all(type(value) in (int, float) for value in update.metrics.values()):
        return False
    kept = Arrays.trusted({name: array.copy() for name, array in arrays.items()}, arrays.roles)
    ready.returned = Update(kept, update.weight, dict(update.metrics), delta=update.delta)
    return True


def _told(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(it cannot be printed)"


def _as_update(returned: Any, kind: str) -> Update:
    if isinstance(returned, Update) and kind != "evaluate":
        return returned
    if isinstance(returned, Metrics):
        if kind == "train":
            raise UpdateRejected("the train handler returned Metrics; training has to return an Update")
        return Update(NO_ARRAYS, returned.weight, returned.values)
    if kind == "evaluate" and isinstance(returned, Mapping):
        return Update(NO_ARRAYS, 1.0, returned)
    wanted = "umbel.Metrics(...)" if kind == "evaluate" else "umbel.Update(...)"
    raise UpdateRejected(
        f"the {kind} handler returned a {type(returned).__name__}, not {wanted}", hint=f"Return {wanted}."
    )
