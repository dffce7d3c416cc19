"""Every error that Umbel raises, split by whose fault it is and by whether trying again can help.

::

    UmbelError                        run, round, client: where it happened
    ├── CallerError                   whoever runs the federation has to change something
    │   ├── AppError                  the app: its file, its model, its handlers
    │   │   └── UnusedCorrection      the strategy needs a correction that the training loop never took
    │   ├── StrategyError             parts of a strategy that disagree
    │   │   └── NondeterministicStrategy   a resumed strategy asks something else than it asked before
    │   ├── SettingError              an unknown setting, or one of the wrong type
    │   ├── JournalMissing            no run where one should be
    │   ├── SamplingError             a cohort that the federation cannot fill
    │   └── DataError                 data that cannot be read or split as asked
    ├── ClientError                   one data holder's fault; the run goes on without its update
    │   ├── HandlerFailed             the client's code raised
    │   ├── UpdateRejected            the client's update is not what the ask expects
    │   └── ClientCrashed             the client's process died (retried elsewhere first)
    ├── RunError                      the run cannot go on, though nobody wrote anything wrong
    │   ├── NothingToFold             an ask closed with too few updates, or with no weight at all
    │   ├── RunFailed                 no update in the first round, in the last, or in too many in a row
    │   └── RunInterrupted            somebody asked the run to stop; it can be resumed
    ├── PeerError                     between two processes
    │   ├── ConnectionLost            the stream ended or nothing came for too long; connect again
    │   ├── Refused                   the peer says no, with a code of the protocol
    │   ├── ProtocolError             the peer sent what the protocol does not allow
    │   └── TrackingFailed            a tracker could not take what a run told it; the run goes on
    ├── StorageError                  the disk: full, unwritable; retry once there is room
    │   └── CorruptFile               a file of a run does not hold what was written
    └── InternalError                 a broken promise inside Umbel: please report it
"""

from __future__ import annotations

from typing import Any

ClientId = int | str
"""How a client is named: its index in a simulation, its node's name in a deployment."""


class UmbelError(Exception):
    """Base of all errors of this package; `run`, `round` and `client` say where it happened, `trace` is the traceback
    of the worker process that it happened in, where that was another one.
    """

    retry = False
    """Whether the same call may succeed later without anybody changing anything."""

    def __init__(
        self,
        message: str,
        *,
        run: str | None = None,
        round: int | None = None,
        client: ClientId | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.run = run
        self.round = round
        self.client = client
        self.hint = hint
        self.trace = ""

    def __reduce__(self) -> tuple[Any, ...]:
        # Whatever a subclass's own __init__ takes: a worker process sends errors to the main one.
        return _rebuilt, (type(self), self.args, self.__dict__)

    def located(
        self, *, run: str | None = None, round: int | None = None, client: ClientId | None = None
    ) -> UmbelError:
        """Fill in where it happened, keeping what is already known, and return the error itself."""
        self.run = self.run if self.run is not None else run
        self.round = self.round if self.round is not None else round
        self.client = self.client if self.client is not None else client
        return self

    @property
    def where(self) -> str:
        """The known places, such as ``run 7f3a, round 2, client 14``; empty when nothing is known."""
        parts = (("run", self.run), ("round", self.round), ("client", self.client))
        return ", ".join(f"{name} {value}" for name, value in parts if value is not None)

    def __str__(self) -> str:
        text = self.message
        if self.where:
            text = f"{text} ({self.where})"
        return f"{text}\n{self.hint}" if self.hint else text


def _rebuilt(kind: type[UmbelError], args: tuple[Any, ...], state: dict[str, Any]) -> UmbelError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class CallerError(UmbelError):
    """Whoever runs the federation has to change something."""


class AppError(CallerError):
    """The app is incomplete or wrong: its file, its model, its handlers."""


class UnusedCorrection(AppError):
    """The strategy requires a correction of the local loss or gradient that the training loop never took."""


class StrategyError(CallerError, ValueError):
    """Parts of a strategy that disagree, found when it is built or when it asks; or one of them raised."""

    @classmethod
    def raised(cls, what: str, error: Exception, where: str = "") -> StrategyError:
        """The error of a part of a strategy that raised another; `where` says in which of its steps."""
        return cls(f"{what} raised {type(error).__name__}: {error}{where and f' (in {where})'}")


class NondeterministicStrategy(StrategyError):
    """A resumed strategy asks something else than the journal says it asked before."""


class SettingError(CallerError, ValueError):
    """A setting that does not exist, or a value that does not fit it."""


class JournalMissing(CallerError):
    """There is no run where one should be."""


class SamplingError(CallerError, ValueError):
    """A cohort that the federation cannot fill."""


class DataError(CallerError, ValueError):
    """Data that cannot be read or split as asked."""


class ClientError(UmbelError):
    """One data holder's fault: its update is left out, the window decides, the run goes on."""


class HandlerFailed(ClientError):
    """The client's own code raised an exception."""


class UpdateRejected(ClientError, ValueError):
    """An update that is not what the ask expects: a name, a shape, a dtype, a value or a weight."""


class ClientCrashed(ClientError):
    """The process that hosted the client died."""

    retry = True


class RunError(UmbelError):
    """The run cannot go on."""


class NothingToFold(RunError):
    """An ask closed with fewer updates than its quorum, or with no weight at all.

    `came` updates of `asked` clients were there; nobody is asked where a sampler draws an empty cohort.
    """

    retry = True

    def __init__(self, message: str, *, asked: int = 0, came: int = 0, **more: Any) -> None:
        super().__init__(message, **more)
        self.asked = asked
        self.came = came


class RunFailed(RunError):
    """Nobody's update came in a run's first round, in its last, or in too many rounds in a row.

    `result` is what the run has come to all the same, an `umbel.Result`; None where it is not at hand, as for a run
    on a server.
    """

    def __init__(self, message: str, *, result: Any = None, **more: Any) -> None:
        super().__init__(message, **more)
        self.result = result


class RunInterrupted(RunError):
    """Somebody asked the run to stop; what it has learned is kept and it can be resumed."""

    retry = True


class PeerError(UmbelError):
    """Something between two processes, with the protocol's `code` for it."""

    def __init__(self, message: str, code: int = 0, **more: Any) -> None:
        super().__init__(message, **more)
        self.code = code


class ConnectionLost(PeerError):
    """The stream ended, or no sign of life came for too long; connecting again resumes what was going on."""

    retry = True


class Refused(PeerError):
    """The peer said no; `retry` tells whether connecting again may help."""

    def __init__(self, message: str, code: int = 0, *, retry: bool = False, **more: Any) -> None:
        super().__init__(message, code, **more)
        self.retry = retry


class ProtocolError(PeerError):
    """The peer sent what the protocol does not allow; the connection is closed."""


class TrackingFailed(PeerError):
    """A tracker could not take what a run told it; the run itself goes on."""


class StorageError(UmbelError):
    """The disk refused: it is full, or the folder cannot be written."""

    retry = True


class CorruptFile(StorageError):
    """A file of a run does not hold what was written."""

    retry = False


class InternalError(UmbelError):
    """A broken promise inside Umbel; please report it."""
