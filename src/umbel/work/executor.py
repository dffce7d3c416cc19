"""The executor: runs the tasks of the clients it hosts, checks and folds what they return."""

from __future__ import annotations

import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from ..core import encoding
from ..core.answer import Receipts
from ..core.arrays import Arrays
from ..core.ask import SEALED, Ask, Sent, phases
from ..core.client import Client, Context, LocalCorrection, Unwanted
from ..core.correction import check_reports
from ..core.randomness import Key
from ..core.task import Failed, Task
from ..core.transform import place
from ..core.trees import keepable
from ..core.update import (
    NO_ARRAYS,
    Contribution,
    Like,
    Metrics,
    Receipt,
    Stacking,
    Update,
    as_delta,
    check_metrics,
    check_values,
)
from ..entropy import SYSTEM
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
from .account import Account
from .blame import own_frame
from .intake import Checked, Intake, OpenAsk, told
from .seeding import drew_nothing, note_generators, seed_all, seed_generators, seed_of

AT_ONCE = 16
AT_ONCE_BYTES = 1 << 20
KEYS = 8
"""Of so many asks it is kept how their tasks' keys derive."""
LARGEST_STATE = 900_000_000
"""Bytes that a client may keep from task to task: a row of SQLite's holds less than 1,000,000,000."""


@dataclass(slots=True)
class Job:
    """A client's share of an ask as it is done: what the client was sent and keeps, what its handler returned, then the
    update in the form that the ask expects, and the client's next state. Where it is sent `at_once`, nothing large of
    it is held. Of one that is stacked there is its `weight`, and no update.
    """

    opened: OpenAsk
    sent: Sent
    kept: dict[str, Any]
    ctx: Context
    seed: int
    update: Any = None
    weight: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    state: bytes | None = None
    at_once: bool = False


@dataclass(slots=True)
class EncodedAnswer:
    """What a client answered, as it is sent elsewhere: `update` is encoded and checked, `state` the client's next.
    `accounted` is what the handler has told its holder, and goes nowhere else: see `Context.account`.
    """

    update: Update
    receipt: Receipt
    state: bytes | None
    accounted: list[tuple[Mapping[str, Any], int]]


class Keys(Protocol):
    """Where an executor has the keys of tasks and data from."""

    def of_task(self, kind: str, round: int, number: int, client: ClientId) -> Key:
        """The key of one client's task in the `number`-th ask of a round."""

    def of_data(self, client: ClientId) -> Key:
        """The key that a client's data is loaded with."""


@dataclass(frozen=True, slots=True)
class RunKeys:
    """Keys as they derive from a run's key for tasks."""

    key: Key
    _last: dict[Any, Callable[[ClientId], Key]] = field(default_factory=dict)

    def of_task(self, kind: str, round: int, number: int, client: ClientId) -> Key:
        """The key of one client's task in the `number`-th ask of a round."""
        return self._deriving(kind, round, number)(client)

    def of_data(self, client: ClientId) -> Key:
        """The key that a client's data is loaded with."""
        return self._deriving("data")(client)

    def _deriving(self, *parts: str | int) -> Callable[[ClientId], Key]:
        """What derives the keys that begin with these parts, of which few are used at a time."""
        found = self._last.get(parts)
        if found is None:
            if len(self._last) > KEYS:
                self._last.clear()
            found = self._last[parts] = self.key.deriving(*parts)
        return found


class DataCache:
    """The clients' data, most recently used last; at most `size` clients' are kept. One that `outlives` its run notes
    whose data is the same in every run.
    """

    def __init__(
        self, client: Client, source_of: Callable[[ClientId], Any], size: int, keys: Keys, *, outlives: bool = False
    ) -> None:
        self._keys = keys
        self._outlives = outlives
        self._drew: dict[ClientId, Key] = {}
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
        key = self._keys.of_data(client)
        seed_generators(key)
        data = self._load(self._source_of(client))
        if self._outlives and not drew_nothing(seed_of(key)):
            self._drew[client] = key
        self.seconds += time.perf_counter() - began
        if self._size:
            self._kept[client] = data
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return data

    def begin(self, keys: Keys) -> None:
        """Another run begins, with other keys: data whose handler drew from a generator is loaded anew for those."""
        self._keys = keys
        for client in [client for client, key in self._drew.items() if key != keys.of_data(client)]:
            del self._drew[client]
            self._kept.pop(client, None)
        self.hits = self.misses = 0


class StatesOf(Protocol):
    """Where an executor finds what clients keep."""

    def get(self, client: ClientId) -> dict[str, Any]:
        """The state of a client; empty for one that has none."""


class Executor(Intake):
    """Hosts clients in this process.

    `config` holds the app's settings, `keys` gives the keys of tasks, `states` what clients keep, `on_step` is what
    `ctx.step()` does, `data` what was loaded before. Results wait until they are admitted or cancelled. `seconds` has
    what each of the tasks took that were done last.
    """

    def __init__(
        self,
        client: Client,
        source_of: Callable[[ClientId], Any],
        *,
        config: Mapping[str, Any],
        keys: Keys,
        states: StatesOf,
        device: str = "cpu",
        data_cache: int = 1000,
        on_step: Callable[[], None] | None = None,
        data: DataCache | None = None,
    ) -> None:
        super().__init__()
        self._client = client
        self._config = config
        self._keys = keys
        self._states = states
        self._device = device
        self._on_step = on_step
        self.seconds: list[float] = []
        self.data = DataCache(client, source_of, data_cache, keys) if data is None else data
        note_generators()

    def open(self, id: int, ask: Ask, round: int, number: int, params: Any) -> None:
        """Make an ask known before its tasks come: the `number`-th of its round, from 0.

        Raises `AppError` when the client has no handler for it.
        """
        if ask.kind not in (*self._client.handlers, *phases(ask.transform)):
            kinds = ", ".join(self._client.handlers) or "none"
            decorator = f'query("{ask.kind[6:]}")' if ask.kind.startswith("query:") else ask.kind
            raise AppError(
                f"the strategy asks clients to {ask.kind}, but the client has no handler for that (it has: {kinds})",
                hint=f"Write one and decorate it with @client.{decorator}.",
            )
        super().open(id, ask, round, number, params)

    def run_all(
        self,
        id: int,
        clients: Sequence[ClientId],
        begins: Callable[[], bool] | None = None,
        *,
        fold: bool = False,
    ) -> list[Failed | None]:
        """Do the tasks of these clients one after the other, then check what they returned, and keep it, or with `fold`
        fold it; gives why those failed that did. Errors of a client fail its task; errors of the caller are raised.

        `begins` is called before each handler; where it says no, or a handler's `ctx.step()` raises `Unwanted`, that
        task and all after it are left undone, and have no outcome.
        """
        # Whatever comes between two handlers finds the processor's caches full of the handler's code and data. So it is
        # as little as can be: all is prepared before, and checked after.
        began, self.seconds, loading = time.perf_counter(), [], self.data.seconds
        opened = self._origin[id]
        jobs = [self._attempt(opened, client, self._prepare, opened, client) for client in clients]
        room = opened.room_for(len(jobs)) if fold else None
        done: list[Job | Failed] = []
        for at, (client, job) in enumerate(zip(clients, jobs, strict=True)):
            if begins is not None and not begins():
                break
            try:
                failed = job if isinstance(job, Failed) else self._attempt(opened, client, self._handle, job, room, at)
            except Unwanted:
                break
            self.seconds.append(0.0 if failed is job else job.seconds)
            done.append(failed or job)
        outcomes = self._checked(opened, done, room, fold)
        handlers, loading = sum(self.seconds), self.data.seconds - loading
        self._account.data += loading
        self._account.training += handlers - loading
        self._account.folding += time.perf_counter() - began - handlers
        return outcomes

    def answer(self, task: Task) -> EncodedAnswer | Failed:
        """Do a task whose result is folded elsewhere, and give what is to be sent there; see `run_all`."""
        opened, client = self._origin[task.ask], task.client
        job = self._attempt(opened, client, self._prepare, opened, client)
        if isinstance(job, Job):
            job.at_once = not opened.ask.transform.parts
        failed = job if isinstance(job, Failed) else self._attempt(opened, client, self._handle, job)
        if failed is not None:
            return failed
        item = self._attempt(opened, client, self._check, job)
        if isinstance(item, Failed):
            return item
        plain = replace(job.update, weight=item.weight, metrics={})  # metrics travel in the receipt
        return EncodedAnswer(plain, self._receipt(job, item), job.state, job.ctx.accounted)

    def take_account(self) -> Account:
        """Where time went since this was last asked."""
        account = super().take_account()
        account.data_hits, account.data_loads = self.data.hits, self.data.misses
        self.data.hits = self.data.misses = 0
        return account

    def release(self) -> None:
        """Let go of what the client's handlers hold beside memory: nothing is to be done any more."""
        self._client.release()

    def at_once(self, id: int) -> int:
        """How many tasks of an ask may be done before the first is reported: several where updates are small and the
        window takes whatever comes.
        """
        opened = self._origin[id]
        if opened.at_once is None:
            model, opened.at_once = opened.ask.model, 1
            if opened.ask.window.takes_all and isinstance(model, Arrays):
                opened.at_once = max(1, min(AT_ONCE, AT_ONCE_BYTES // max(1, model.nbytes)))
        return opened.at_once

    def _checked(
        self, opened: OpenAsk, done: Sequence[Job | Failed], room: Stacking | None, fold: bool
    ) -> list[Failed | None]:
        """Check what came of jobs and keep or fold it; what was stacked is checked and folded as it stands there."""
        outcomes: list[Failed | None] = [job if isinstance(job, Failed) else None for job in done]
        jobs = {at: job for at, job in enumerate(done) if isinstance(job, Job)}
        if room is not None:
            self._fold_stacked(opened, jobs, room)
        for at, job in jobs.items():
            item = self._attempt(opened, job.ctx.client, self._check, job)
            if isinstance(item, Failed):
                outcomes[at] = item
                continue
            result = Checked.of(item, self._receipt(job, item), job.state)
            if fold:
                self._fold(self._asks[opened.id], result)
            else:
                self._results[f"{opened.id}.{item.client}"] = result
        return outcomes

    def _fold_stacked(self, opened: OpenAsk, jobs: dict[int, Job], room: Stacking) -> None:
        """Fold the updates that are stacked and pass, and take them out of the jobs."""
        weights = {at: job.weight for at, job in jobs.items() if job.weight is not None}
        if not weights:
            return
        items, alone = room.checked({at: jobs[at].ctx.client for at in weights}, list(weights.values()))
        for at, update in alone.items():
            jobs[at].update = update
        found = [jobs.pop(at) for at in weights if at not in alone]
        if not found:
            return
        tasks = [f"{opened.id}.{client}" for client in items.clients]
        metrics, seconds = [job.metrics for job in found], [job.seconds for job in found]
        receipts = Receipts((tasks, items.clients, items.weights, metrics, seconds, [0] * len(found)))
        states = {job.ctx.client: job.state for job in found if job.state is not None}
        self._fold(self._asks[opened.id], Checked(items, receipts, states))

    def _receipt(self, job: Job, item: Contribution) -> Receipt:
        return Receipt(f"{job.opened.id}.{item.client}", item.client, item.weight, job.metrics, job.seconds)

    def _prepare(self, opened: OpenAsk, client: ClientId) -> Job:
        ask = opened.ask
        sent = opened.sent_to(client)
        model, correction = sent.model, sent.correction
        kept = self._states.get(client)
        key = self._keys.of_task(ask.kind, opened.round, opened.number, client)
        if ask.transform.corrects:
            local = _local(kept).get(place(str(ask.lane), ask.transform, sent.expects.schema(model)))
            own = ask.transform.correct(model, opened.params, local)
            correction = own if correction is None or own is None else correction.with_(own)
        ctx = Context(
            client=client,
            round=opened.round,
            kind=ask.kind,
            config={**self._config, **sent.config},
            key=key,
            inbox=NO_ARRAYS if sent.inbox is None else _inbox(sent.inbox)[0],
            state=kept.get("user", {}) if kept else {},
            correction=None if correction is None else LocalCorrection(correction, opened.given(model)),
            personal=opened.personal(model),
            device=self._device,
            on_step=self._on_step,
        )
        return Job(opened, sent, kept, ctx, seed_of(key))

    def _handle(self, job: Job, room: Stacking | None = None, at: int = 0) -> None:
        """Have a task's handler run, and take in what it returns, which may be changed by the next."""
        ctx, began = job.ctx, time.perf_counter()
        try:
            own = ctx.kind in phases(job.opened.ask.transform)
            returned = Update() if own else self._call(ctx.kind, job.opened.given(job.sent.model), ctx, job.seed)
        finally:
            job.seconds = time.perf_counter() - began
        weight = getattr(returned, "weight", 1.0)
        nobody = isinstance(weight, int | float | np.number) and weight == 0  # a loop over no examples takes nothing
        if ctx.correction is not None and not (ctx.correction.taken or nobody):
            raise UnusedCorrection(
                "the strategy needs a correction in the local loss, but the training loop never took it",
                hint="Train with umbel.torch.fit(net, data, ctx), or add umbel.torch.correction_loss(net, ctx) to the "
                "loss, or ctx.correction.gradient(weights) to the gradient.",
            )
        try:
            self._take(job, returned, room, at)
        except UmbelError:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {told(error)}"
            raise UpdateRejected(f"what its {ctx.kind} handler left cannot be used: {why}") from error

    def _take(self, job: Job, returned: Any, room: Stacking | None, at: int) -> None:
        """Stack what a handler returned, or bring it into the form that the ask expects."""
        ask, kept, ctx = job.opened.ask, job.kept, job.ctx
        secrets = kept.get("secrets") if kept else None
        update = _as_update(returned, ask.kind)
        job.metrics = check_metrics(update.metrics, "the update's metrics")
        if ctx.correction is not None:
            check_reports(ctx.correction.reports, job.metrics)
        if job.sent.weight is not None:
            update = replace(update, weight=job.sent.weight)
        local = _local(kept)
        if room is not None and room.take(at, update):
            job.weight = float(update.weight)
        else:
            model, expects = job.sent.model, job.sent.expects
            with np.errstate(all="ignore"):  # what is not finite is rejected by name
                if ask.kind != "evaluate":
                    update = as_delta(update, expects, model, at_once=job.at_once)
                if ask.transform.parts and ask.kind not in phases(ask.transform):
                    where = place(str(ask.lane), ask.transform, expects.schema(model))
                    update, local = self._encode(ask, update, job.opened.params, local, where, ctx.key)
                    job.metrics = {} if ask.transform.private else job.metrics
                if (sealing := ask.transform.sealing) is not None:
                    inbox = NO_ARRAYS if job.sent.inbox is None else _inbox(job.sent.inbox)[1]
                    update, secrets = sealing.take_part(ask.kind, update, inbox, secrets, SYSTEM)
                    job.metrics = {}
            job.update = update
        user = dict(ctx.state) if ctx.state else {}
        job.state = _encoded(user, local, secrets, ctx.client) if kept or user or local or secrets is not None else None

    def _check(self, job: Job) -> Contribution:
        update, client, expects = job.update, job.ctx.client, job.sent.expects
        if not isinstance(expects, Like) or job.opened.ask.transform.parts:
            return self.decoded(job.opened, update, job.sent, client)
        with np.errstate(all="ignore"):  # names, shapes and dtypes are known to be right
            return check_values(update, expects, client)

    def _encode(
        self, ask: Ask, update: Update, params: Any, local: dict[str, Any], where: str, key: Key
    ) -> tuple[Update, dict[str, Any]]:
        update, left = ask.transform.encode(update, params, local.get(where), key.derive("transform"))
        after = {name: part for name, part in local.items() if name != where}
        if left is not None:
            after[where] = left
        return update, after

    def _call(self, kind: str, model: Arrays | None, ctx: Context, seed: int) -> Any:
        loaded = False
        try:
            data = self.data.get(ctx.client)
            loaded = True
            seed_all(seed)
            return self._client.handlers[kind](model, data, ctx)
        except (CallerError, ClientError):
            raise
        except (Exception, SystemExit, GeneratorExit) as error:
            frame = own_frame(error) or traceback.extract_tb(error.__traceback__)[-1]
            place = f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
            step = f"its {kind} handler" if loaded else "loading its data"
            raise HandlerFailed(f"{step} raised {type(error).__name__}: {told(error)} ({place})") from error


def _local(kept: dict[str, Any]) -> dict[str, Any]:
    """What transforms left at a client, by their places."""
    return kept.get("local", {}) if kept else {}


def _inbox(given: Arrays) -> tuple[Arrays, Arrays]:
    """What of an ask's inbox is for the handler, and what is for the step that seals, under the names that it has for
    it.
    """
    names = [name for name in given if name.startswith(SEALED)]
    sealed = {name.removeprefix(SEALED): given[name] for name in names}
    return given.select(name for name in given if name not in names) if names else given, Arrays(sealed)


def _encoded(user: dict[str, Any], local: dict[str, Any], secrets: Any, client: ClientId) -> bytes:
    """A client's next state. Raises `UpdateRejected` where it cannot be kept."""
    kept = {} if secrets is None else {"secrets": secrets}
    try:
        pieces = list(encoding.pieces({"user": keepable(user), "local": local, **kept}))
    except StrategyError as error:
        raise UpdateRejected(f"what it left in ctx.state cannot be kept: {error.message}", hint=error.hint) from error
    size = sum(map(len, pieces))
    if size > LARGEST_STATE:
        whose = "ctx.state and what its transforms keep" if local else "ctx.state"
        raise UpdateRejected(
            f"what client {client} left cannot be kept: {whose} take {size:,} bytes, of at most {LARGEST_STATE:,}",
            hint="Keep in ctx.state what cannot be computed or loaded again.",
        )
    return b"".join(pieces)


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
