"""What goes into the state machine of a node, its events, and what comes out of it, its effects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..core.task import Ticked
from ..wire import messages as m
from ..wire.blobs import Fetched, NotFetched


@dataclass(frozen=True, slots=True)
class SessionBegun:
    """A session with the server has begun: the handshake is done."""

    welcome: m.Welcome


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """The session has ended. Whatever was to be said in it and is still held back must not be said in the next."""


@dataclass(frozen=True, slots=True)
class ServerSaid:
    """A message from the server, other than those of the handshake, of blobs, pings and problems; there may be `more`
    of its frame to come, with which tasks are begun.
    """

    message: m.Message
    more: bool = False


@dataclass(frozen=True, slots=True)
class Moved:
    """A transfer of a blob, in either direction, has made progress."""

    run: str
    sha: bytes


@dataclass(frozen=True, slots=True)
class HostReady:
    """The child of a run has imported the client: its kinds of handlers, and the (name, version) of each transform."""

    run: str
    handlers: frozenset[str]
    transforms: frozenset[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class HostRefused:
    """A run cannot be hosted here: the signature, the policy, a requirement, the contract, an import."""

    run: str
    reason: str


@dataclass(frozen=True, slots=True)
class HostDied:
    """What should host a run died before it was ready, or its disk failed it: another try may end otherwise."""

    run: str
    reason: str


@dataclass(frozen=True, slots=True)
class OwnerAsked:
    """The policy leaves a run to the node's owner; `Prepare` comes again once the owner has said yes."""

    run: str


@dataclass(frozen=True, slots=True)
class Approved:
    """The owner allows a run."""

    run: str


@dataclass(frozen=True, slots=True)
class Denied:
    """The owner does not allow a run."""

    run: str


@dataclass(frozen=True, slots=True)
class TaskDone:
    """A task that was started is done, with the state that its client leaves, and what its handler has `accounted` for.

    The file of an update that is a blob lies in the node's folder already, held until `ReleaseBlob`.
    """

    run: str
    task: str
    attempt: int
    result: m.Done
    state: bytes | None
    accounted: tuple[tuple[Mapping[str, Any], int], ...] = ()


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """A task that was started failed, was stopped, or its child died (`retry`)."""

    run: str
    task: str
    attempt: int
    reason: str
    retry: bool


@dataclass(frozen=True, slots=True)
class Stepped:
    """A task that runs has made progress: `ctx.step()`, or processor time of its child."""

    run: str
    task: str


Event: TypeAlias = (
    SessionBegun
    | SessionEnded
    | ServerSaid
    | Fetched
    | NotFetched
    | Moved
    | HostReady
    | HostRefused
    | HostDied
    | OwnerAsked
    | Approved
    | Denied
    | TaskDone
    | TaskFailed
    | Stepped
    | Ticked
)


@dataclass(frozen=True, slots=True)
class SayToServer:
    """Send a message in this session; a durable one only once all that the spool was given before it is on disk, for
    which there are `lazy` seconds.
    """

    message: m.Message
    durable: bool = False
    lazy: float = 0.0


@dataclass(frozen=True, slots=True)
class FetchBlob:
    """Get a blob and hold it for the run until `ReleaseBlob`; answer `Fetched` or `NotFetched`.

    Comes again in each new session until it is answered; a second one for what is under way goes on with that.
    """

    run: str
    blob: m.Blob


@dataclass(frozen=True, slots=True)
class Prepare:
    """Verify, check the policy and the requirements, unpack and start the child; its archive, if a blob, is there.

    Answer `HostReady`, `HostRefused`, `HostDied` or `OwnerAsked`, the last not when `approved`: the owner has said yes.
    """

    run: str
    spec: m.RunSpec
    approved: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """Do a task; its blobs are there, `base` is the state to begin with.

    Answer with exactly one `TaskDone` or `TaskFailed` with the task's id and attempt, also after `Stop`; with none
    after `EndRun`.
    """

    run: str
    task: m.Task
    ask: m.AskSpec
    base: bytes | None


@dataclass(frozen=True, slots=True)
class Stop:
    """End a task that nobody wants: at its next step, else by killing the child."""

    run: str
    task: str
    attempt: int


@dataclass(frozen=True, slots=True)
class EndRun:
    """Kill the child of a run and whatever prepares it; no event about it may come from before this."""

    run: str


@dataclass(frozen=True, slots=True)
class ReleaseBlob:
    """A run does not need a blob any more: stop fetching it, let go of its file."""

    run: str
    sha: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log that the node's owner reads."""

    text: str


Effect: TypeAlias = SayToServer | FetchBlob | Prepare | Start | Stop | EndRun | ReleaseBlob | Note
