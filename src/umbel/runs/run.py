"""Runs: one execution of an app, journaled round by round, and how to resume one."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from ..core import encoding
from ..core.app import App
from ..core.arrays import Arrays
from ..core.native import NativeModel
from ..core.randomness import Key
from ..core.strategy import Question
from ..errors import (
    AppError,
    CallerError,
    CorruptFile,
    RunFailed,
    RunInterrupted,
    SettingError,
    StorageError,
    UmbelError,
)
from ..store.patience import Patience
from ..work.seeding import generators_kept, seed_generators
from ..work.state import ClientStates
from .conductor import Conductor, OnRound
from .config import laid_over
from .events import LARGEST, Observer, RunEvent, RunResumed, RunStarted
from .export import write_model
from .federation import Enlisting, Federation
from .history import History
from .journal import (
    ARRAYS,
    CHECKPOINTS_LEFT,
    FORMAT,
    READ,
    Journal,
    RunLog,
    finder,
    has_log,
    load_checked,
    place_of,
    read_log,
)
from .observers import Observers
from .progress import RunProgress, in_notebook
from .receipts import Clients
from .software import changes, software
from .words import duration, plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNS = "umbel-runs"


@dataclass(frozen=True)
class Result:
    """What a run ends with: the final (or best) model, the history, and why it ended: `"rounds"`, `"early stop"` or
    what the app's own function says, or `"failed"`, where `failed` says why: see `RunFailed`. `native` is what the
    app has as its model, where that is a framework's.
    """

    run: str
    model: Arrays
    history: History
    reason: str
    seconds: float
    folder: Path | None = None
    best_round: int | None = None
    failed: str | None = None
    native: NativeModel | None = None
    _closed: Sequence[RunEvent] = ()
    _question: Question | None = None

    @property
    def rounds(self) -> int:
        """How many rounds were done."""
        return self.history.round

    @property
    def metrics(self) -> dict[str, float]:
        """The newest value of every metric, by names such as `test.accuracy`; where `model` is that of the best round,
        the metrics of that round.
        """
        return self.history.metrics(self.best_round)

    @cached_property
    def clients(self) -> Clients:
        """What became of each client in each ask: rows with round, kind, client, status, weight, seconds and metrics.

        They are read from the run's folder when they are asked for; a run without one keeps those of its last rounds.
        Raises `JournalMissing` where the folder is gone.
        """
        return Clients(self._closed if self.folder is None else read_log(self.folder).events)

    @property
    def answer(self) -> Any:
        """The answer of an analysis, as its `read` gives it. Raises `SettingError` where the strategy is no `Question`,
        or is not known, as of a run that was opened.
        """
        if self._question is None:
            raise SettingError(
                "this result has no answer: its strategy is no Question, or not known here",
                hint="The result's model is what the run came to; an analysis reads it: analysis.read(result.model).",
            )
        return self._question.read(self.model)

    @property
    def model_sha256(self) -> str:
        """SHA-256 of the model's safetensors bytes."""
        return self.model.sha256

    def export(self, path: str | Path, app: App | NativeModel | None = None) -> None:
        """Write the model to a file: as ``.safetensors`` or ``.npz``, or in the own format of the framework that the
        app's model is of (``.pt``, ``.joblib``). `app` is to be given where the run was opened without it.
        """
        write_model(self.model, Path(path), self.native if app is None else app)

    def _repr_html_(self) -> str:
        ended = "failed" if self.failed is not None else self.reason
        kept = f", the best of them round {self.best_round}" if self.best_round is not None else ""
        done = f"{plural(self.rounds, 'round')} in {duration(self.seconds)}{kept}"
        where = f"<br>{escape(str(self.folder))}" if self.folder is not None else ""
        return f"<b>{escape(self.run)}</b> {escape(ended)}, {done}{where}<br>{self.history._repr_html_()}"

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the metrics over the rounds; see `History.plot`."""
        return self.history.plot(path, title=self.run, failed=self.failed is not None)


def run(
    app: App,
    *,
    on: Any = None,
    rounds: int | None = None,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    init: Arrays | str | Path | None = None,
    folder: str | Path | None = RUNS,
    name: str = "run",
    source: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    observers: Sequence[Observer] = (),
    on_round: OnRound | None = None,
    progress: bool | None = None,
    clock: Callable[[], float] = time.monotonic,
    id: str | None = None,
    place: str | Path | None = None,
) -> Result:
    """Run an app to its end.

    - `on`: the federation, such as `Simulation(clients=100)`; by default the app's own.
    - `rounds`, `config`: instead of the app's, and over the app's, which has to have such names and kinds of values.
    - `seed`: same seed, same software, same machine: same bits.
    - `init`: a model to begin with: arrays, or a file that `umbel export` or a run's checkpoint made.
    - `folder`: where runs are kept, each in a folder of its own; None to keep nothing on disk.
    - `name`, `source`, `settings`: for the log: what the run's id begins with, where the app came from, what was set
      over it.
    - `observers`: called with every event. One that raises is warned of, and the run goes on. One that has a method
      `close` is closed when the run is over, however it ended.
    - `on_round`: called as ``on_round(event, model)`` after each round, once that is committed, with its
      `RoundCommitted` and the model. Where it returns True, the run ends after this round, with the reason
      ``"early stop"``, or with the text that it returns; `resume` goes on. What it raises ends the run as an
      `AppError`; it can be resumed.
    - `progress`: whether to show how far the run is; by default in notebooks, and there alone.
    - `id`, `place`: the run's id, and its folder below `folder`, where they are not to be made here. A folder that has
      a run takes no other.

    Raises `RunFailed` when nobody's update came in the first round or the last, or in too many in a row; its `result`
    has what was learned until then. `RunInterrupted` on Ctrl-C, `StorageError` on a full disk: the run can be resumed
    after each. `CallerError`s say what to mend.
    """
    federation, watching = federation_of(app, on), _watching(observers, progress, on_round)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise SettingError(f"the seed is a whole number, not {seed!r}")
    _check_rounds(rounds)
    plain = laid_over(app.config, config)
    with generators_kept():
        seed_generators(Key.from_seed(seed).derive("model"))
        model = app.initial_model() if init is None else _initial(app, init)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "run"
    id = id or _new_id(stem, folder)
    place = None if folder is None else Path(folder) / (place or id)
    _check_free(place)
    with ExitStack() as stack:
        stack.callback(watching.close)
        federation = _enlisted(federation, app, stack, run=id, name=stem, config=plain, tell=watching.tell)
        journal, states = stack.enter_context(_opened(place, federation))
        _check_free(place)  # nobody else can take it now
        saved = journal.save("initial.safetensors", {"state": {"model": model}})
        model = journal.mapped(saved, {"state": {"model": model}})["state"]["model"]
        started = RunStarted(
            run=id,
            format=FORMAT,
            seed=seed,
            rounds=rounds or app.rounds,
            clients=len(federation.clients),
            strategy=type(app.strategy).__name__,
            app=dict(source or {}),
            settings={**dict(settings or {}), "config": plain},
            software=software(federation.plan()),
            folder="" if place is None else str(place.absolute()),
            federation=federation.describe(),
            model_sha256=saved["sha256"] if saved else "",
            model_file=saved["file"] if saved else None,
        )
        if "members" in started.federation:
            _check_size(started)
        conductor = Conductor(app, federation, started, journal, states, watching, clock)
        return _conduct(conductor, place, lambda: conductor.begin(model), on_round)


def resume(
    app: App,
    folder: str | Path,
    *,
    on: Any = None,
    rounds: int | None = None,
    source: Mapping[str, Any] | None = None,
    observers: Sequence[Observer] = (),
    on_round: OnRound | None = None,
    progress: bool | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Go on with the run in `folder` where it stopped: after its last committed round, with the asks recorded since.

    `observers`, `on_round` and `progress` are those of `run`; an observer with a method `catch_up` is first told what
    the log has, as ``catch_up(events, times)``.

    The app, its federation and the software have to be those of the run; `rounds` may be more than it was started with.
    A run that had come to its end returns its result; one that failed has as many rounds more as had failed at its end.
    Where the folder was moved or copied, or `source` names another file or code of the app than the log does, the log
    says so from then on.
    Raises `CorruptFile` for a damaged folder,
    `NondeterministicStrategy` when the strategy asks something else than the log says.
    """
    _check_rounds(rounds)
    place = Path(folder)
    log = read_log(place)
    if log.started.format not in READ:
        what = f"{place} has format {log.started.format}; this release reads {READ[0]} to {FORMAT}"
        raise CorruptFile(what, hint=CHECKPOINTS_LEFT)
    federation, watching = federation_of(app, on), _watching(observers, progress, on_round)
    if not isinstance(federation, Enlisting):
        _check_same(federation, log.started)
    elif "members" not in log.started.federation:
        raise SettingError(
            "the run was a simulation, and cannot go on with clients of nodes",
            hint="Resume a run on the federation it was started on.",
        )
    if log.rounds:
        reference = log.rounds[-1].checkpoint
        assert reference is not None
    elif log.started.model_file is None:
        raise CorruptFile(f"{place} has no initial model to start from")
    else:
        reference = {"file": log.started.model_file, "sha256": log.started.model_sha256}
    try:
        checkpoint = load_checked(place, reference)
    except CorruptFile as error:
        error.hint = error.hint or _older(place, log.rounds)
        raise error.located(run=log.started.run) from error.__cause__
    with ExitStack() as stack:
        stack.callback(watching.close)
        journal, states = stack.enter_context(_opened(place, federation))
        if read_log(place).intact != log.intact:
            raise StorageError(f"the run in {place} went on while it was being resumed", hint="Try again.")
        journal.truncate(log.intact)
        watching.catch_up(log.events, log.times)
        federation = _enlisted(
            federation,
            app,
            stack,
            run=log.started.run,
            config=log.started.settings["config"],
            tell=watching.tell,
            known=log.started.federation,
            log=log.events,
        )
        moved = changes(_origin(log), {**_origin(log), **_origins(place, source)})
        conductor = Conductor(app, federation, log.started, journal, states, watching, clock)
        return _conduct(conductor, place, lambda: conductor.go_on(log, checkpoint, rounds, moved), on_round)


def _watching(observers: Sequence[Observer], progress: bool | None, on_round: OnRound | None) -> Observers:
    if on_round is not None and not callable(on_round):
        raise SettingError(f"on_round is a function (event, model), not {on_round!r:.60}")
    shown = in_notebook() if progress is None else progress
    return Observers([*([RunProgress()] if shown else []), *observers])


def _origins(place: Path, source: Mapping[str, Any] | None) -> dict[str, str]:
    """Where a run is kept, and what its app is, as far as that is said."""
    said = {"app": (source or {}).get("path"), "code": (source or {}).get("sha256")}
    return {"folder": str(place.absolute()), **{name: str(value) for name, value in said.items() if value}}


def _origin(log: RunLog) -> dict[str, str]:
    """The same, as it was when the run last went on; what the log does not say is left out."""
    found = _origins(Path(log.started.folder), log.started.app)
    for event in log.events:
        if isinstance(event, RunResumed):
            found.update({name: event.changed[name][1] for name in ("folder", "app", "code") if name in event.changed})
    return found if log.started.folder else {name: value for name, value in found.items() if name != "folder"}


def _check_rounds(rounds: Any) -> None:
    """Raise `SettingError` unless it is a number of rounds, or None."""
    if rounds is not None and (isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1):
        raise SettingError(f"rounds is a whole number of at least 1, not {rounds!r}")


def _check_free(place: Path | None) -> None:
    """Raise `SettingError` where a folder has a run."""
    if place is not None and has_log(place):
        raise SettingError(
            f"there is a run in {place} already", hint=f"Go on with it: umbel resume {place}; or take another id."
        )


def _check_same(federation: Federation, started: RunStarted) -> None:
    """Raise `SettingError` unless a run was started on such a federation."""
    if len(federation.clients) != started.clients:
        raise SettingError(
            f"the run has {started.clients} clients, the federation has {len(federation.clients)}",
            hint="Resume a run on the federation it was started on.",
        )
    if started.federation.get("devices") != _plain_tree(federation.describe()["devices"]):
        raise SettingError(
            "the run was started on other devices than the federation has",
            hint="Resume a run on the federation it was started on: its virtual time depends on the devices.",
        )


def _check_size(started: RunStarted) -> None:
    """Raise `SettingError` for a run of which a server's log could not say how it started."""
    if len(json.dumps(started.record())) > LARGEST:
        count, size = len(started.federation["members"]), len(json.dumps(started.federation["members"]))
        raise SettingError(
            f"the log cannot hold how the run starts: it takes more than {LARGEST:,} bytes, of which the names of its "
            f"{count} clients take {size:,}",
            hint="Ask fewer clients, give them shorter names, or keep large settings in files of the app.",
        )


def _enlisted(federation: Federation | Enlisting, app: App, stack: ExitStack, **run: Any) -> Federation:
    """The federation with its clients known; those on real machines have to be told of the run first."""
    if not isinstance(federation, Enlisting):
        return federation
    enlisted = federation.enlist(app, **run)
    stack.callback(enlisted.close)
    return enlisted


def _new_id(stem: str, folder: str | Path | None) -> str:
    """An id that no run in the folder has: of many that begin in the same second, two might draw the same letters."""
    import secrets

    while True:
        id = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        if folder is None or not Path(folder, id).exists():
            return id


_LOG = logging.getLogger("umbel.runs")
ARRAYS_BESIDE = f"Copy the run's folder whole, or export the model: `umbel export`; what is large is in its {ARRAYS}."


@contextmanager
def _opened(place: Path | None, federation: Any) -> Iterator[tuple[Journal, ClientStates]]:
    at = None if place is None else place / "client-states.db"
    patience = Patience(getattr(federation, "disk_wait", 0.0), _LOG.warning)
    with closing(Journal(place, patience)) as journal, closing(ClientStates(at, patience)) as states:
        yield journal, states


def _conduct(conductor: Conductor, place: Path | None, start: Callable[[], None], on_round: OnRound | None) -> Result:
    run = conductor.started.run
    try:
        start()
        finished = conductor.drive(on_round)
    except KeyboardInterrupt:
        conductor.interrupt()
        hint = (
            f"Go on with: umbel resume {run}" if place is not None else "It was kept nowhere; pass folder=... to run()."
        )
        raise RunInterrupted(
            f"the run was stopped after round {conductor.round}; what it learned until then is kept", run=run, hint=hint
        ) from None
    except CallerError as error:
        conductor.refuse(error)
        raise error.located(run=run) from error.__cause__
    except UmbelError as error:
        raise error.located(run=run) from error.__cause__
    finally:
        conductor.release()
    result = Result(
        run=run,
        model=conductor.final_model(),
        history=History(conductor.rounds),
        reason=finished.reason,
        seconds=finished.seconds,
        folder=place,
        best_round=finished.best_round,
        failed=finished.error,
        native=app_model if isinstance(app_model := conductor.app.model, NativeModel) else None,
        _closed=tuple(conductor.closed),
        _question=strategy if isinstance(strategy := conductor.app.strategy, Question) else None,
    )
    if finished.error is not None:
        kept = "It was kept nowhere; pass folder=... to run()." if place is None else f"Then: umbel resume {run}"
        hint = f"Mend what made the clients fail. {kept}"
        raise RunFailed(finished.error, run=run, round=conductor.round, hint=hint, result=result)
    return result


def load_model(path: str | Path) -> Arrays:
    """Read a model from a safetensors file: an exported model, or a checkpoint of a run. Raises `CorruptFile` or
    `StorageError`.

    A large file (64 MiB and more) is mapped: it may be removed or replaced meanwhile, but not written to.
    """
    with files.reading(path):
        data = files.mapped(path) if files.is_large(path) else Path(path).read_bytes()
    try:
        tree = encoding.decode(data, views=True, find=lambda sha256: _beside(Path(path), sha256))
    except CorruptFile as error:
        if error.hint == ARRAYS_BESIDE:
            raise
        return _plain_model(path, data)
    state = tree.get("state") if isinstance(tree, Mapping) else None
    model = state["model"] if isinstance(state, Mapping) else getattr(state, "model", None)
    if not isinstance(model, Arrays):
        raise CorruptFile(f"{path} holds no model", hint="Give a model that `umbel export` wrote, or a checkpoint.")
    return model


def _beside(path: Path, sha256: str) -> Arrays:
    """Arrays that a file of a run names. Raises `CorruptFile`."""
    for folder in path.absolute().parents[:2]:
        if place_of(folder, sha256).exists():
            return finder(folder)(sha256)
    raise CorruptFile(f"{path} names arrays that are not in a folder {ARRAYS} beside it", hint=ARRAYS_BESIDE)


def _plain_model(path: str | Path, data: files.Bytes) -> Arrays:
    try:
        return Arrays.from_bytes(data)
    except CorruptFile as error:
        hint = "Give a model that `umbel export` wrote, or a checkpoint of a run."
        raise CorruptFile(f"{path} holds no model: {error.message}", hint=hint) from error


def _initial(app: App, init: Arrays | str | Path) -> Arrays:
    model = init if isinstance(init, Arrays) else load_model(init)
    wanted = app.initial_model()
    if {n: s[:2] for n, s in model.schema.items()} != {n: s[:2] for n, s in wanted.schema.items()}:
        differing = sorted(n for n in {*model, *wanted} if model.schema.get(n, ())[:2] != wanted.schema.get(n, ())[:2])
        raise AppError(
            f"the model to begin with does not fit the app's: they differ in {', '.join(differing[:5])}",
            hint="Export it from a run of the same app.",
        )
    return Arrays({n: model[n] for n in wanted}, wanted.roles)


def _plain_tree(tree: Any) -> Any:
    """A plain tree as the log gives it back."""
    return json.loads(json.dumps(tree))


def federation_of(app: App, on: Any) -> Federation | Enlisting:
    """Where an app runs: `on`, or else its own federation. Raises `SettingError` where there is neither."""
    federation: Federation | Enlisting | None = on if on is not None else app.federation
    if federation is None:
        raise SettingError(
            "nobody said where to run",
            hint="Pass on=umbel.Simulation(clients=100), or --clients 100 on the command line.",
        )
    return federation


def _older(place: Path, rounds: Sequence[Any]) -> str:
    left = sorted(p.name for p in (place / "checkpoints").glob("round-*.safetensors"))
    others = [n for n in left if not rounds or n != Path(rounds[-1].checkpoint["file"]).name]
    if not others:
        return "No older checkpoint is left; start the run again."
    return f"An older checkpoint is left: start a new run with --init {place / 'checkpoints' / others[-1]}."
