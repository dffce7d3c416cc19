"""The host of a run at its node: prepared, tried again, left to the owner, refused; and what speaks against asks."""

from __future__ import annotations

from collections.abc import Callable

from ..core.ask import PHASE
from ..wire import messages as m
from ..work import retries
from .holdings import REASON_LETTERS, NeededBlobs
from .orders import blob_of, steps_of
from .session import ServerSession
from .signals import (
    Approved,
    Denied,
    Effect,
    EndRun,
    HostDied,
    HostReady,
    HostRefused,
    Note,
    OwnerAsked,
    Prepare,
)
from .standings import RUNS, RunStanding, RunStep, Standing

HostEvent = HostReady | HostRefused | HostDied | OwnerAsked | Approved | Denied


class RunHosting:
    """How far one run's host is, and what the server is told of it.

    `do` takes effects, `admits` is the owner's policy about runs before anything of them is fetched, `allows` that
    about asks. What could not be prepared is tried again at
    `again_at`, None where nothing is.
    """

    def __init__(
        self,
        spec: m.RunSpec,
        session: ServerSession,
        blobs: NeededBlobs,
        do: Callable[[Effect], None],
        allows: Callable[[m.RunSpec, m.AskSpec], str] | None,
        admits: Callable[[m.RunSpec], str] | None = None,
    ) -> None:
        self.again_at: float | None = None
        self._spec = spec
        self._session = session
        self._blobs = blobs
        self._do = do
        self._allows = allows
        self._admits = admits
        self._standing = Standing(f"run {spec.run}", RUNS, RunStanding.NEW)
        self._reason = ""
        self._approved = False
        self._refused_in = 0
        self._tries = 0
        self._kinds: frozenset[str] = frozenset()
        self._steps: frozenset[tuple[str, int]] = frozenset()
        self._against: dict[int, tuple[m.AskSpec, str]] = {}

    @property
    def ready(self) -> bool:
        """Whether tasks can be done."""
        return self._standing.now is RunStanding.READY

    def asked(self, spec: m.RunSpec) -> bool:
        """The server asks to host the run, or asks again; whether that ends the child, for it is another run now."""
        changed = spec != self._spec
        if changed:
            self._end()
            self._spec, self._approved = spec, False
            self._standing.take(RunStep.CHANGE)
        elif self._standing.now is RunStanding.REFUSED and self._refused_in != self._session.number:
            self._standing.take(RunStep.RETRY)
        elif self._standing.now is not RunStanding.NEW:
            self._tell()
            return False
        self._tries = 0
        self._prepare()
        return changed

    def try_again(self, now: float) -> None:
        """Try again what is due."""
        if self.again_at is not None and self.again_at <= now:
            self._standing.take(RunStep.RETRY)
            self._prepare()

    def fetched(self) -> None:
        """The archive is there."""
        if self._standing.now is RunStanding.FETCHING:
            self._prepare()

    def failed(self, reason: str, now: float) -> None:
        """What should have hosted the run did not come to be, for a reason that may be gone the next time."""
        self._tries += 1
        if self._tries >= retries.HOST_TRIES:
            self._refuse(RunStep.REFUSE, f"{reason} ({self._tries} times in a row)")
            return
        self._standing.take(RunStep.FAIL)
        wait = retries.wait(self._tries)
        self.again_at, self._reason = now + wait, reason[:REASON_LETTERS]
        self._note(f"is tried again in {wait:g} s: {self._reason}")
        self._tell()

    def handle(self, event: HostEvent, now: float) -> None:
        """Take an event about the host. Raises `InternalError` for one that cannot come now."""
        match event:
            case HostReady():
                self._standing.take(RunStep.HOST)
                self._tries, self._reason = 0, ""
                self._kinds, self._steps = event.handlers, event.transforms
                self._against.clear()
                self._note("is hosted")
                self._tell()
            case HostRefused():
                self._refuse(RunStep.REFUSE, event.reason)
            case HostDied():
                self.failed(event.reason, now)
            case OwnerAsked():
                self._standing.take(RunStep.ASK)
                self._note("waits for the owner's approval")
            case Approved() | Denied() if self._standing.now is not RunStanding.ASKING:
                pass  # said of a run that has changed since
            case Approved():
                self._approved = True
                self._have_prepared(RunStep.APPROVE)
            case Denied():
                self._end()
                self._refuse(RunStep.DENY, "the owner of this node does not allow it")

    def against(self, ask: m.AskSpec) -> str:
        """Why the tasks of an ask are not done here; empty while that is not known."""
        if self._standing.now in (RunStanding.REFUSED, RunStanding.DENIED):
            return self._reason
        if not self.ready:
            return ""
        known = self._against.get(ask.ask)
        if known is None or known[0] is not ask:
            known = self._against[ask.ask] = ask, self._judge(ask)
        return known[1]

    def forget(self, ask: int) -> None:
        """An ask is over."""
        self._against.pop(ask, None)

    def _judge(self, ask: m.AskSpec) -> str:
        if ask.kind not in self._kinds and not ask.kind.startswith(PHASE):
            return f"the client has no handler for {ask.kind} (it has: {', '.join(sorted(self._kinds)) or 'none'})"
        for name, version in steps_of(ask):
            if (name, version) not in self._steps:
                return f"the transform {name!r} version {version} is not known on this node"
        return self._allows(self._spec, ask) if self._allows is not None else ""

    def _prepare(self) -> None:
        self._reason, self.again_at = "", None
        if self._admits is not None and (reason := self._admits(self._spec)):
            self._refuse(RunStep.REFUSE, reason)
            return
        blob = blob_of(self._spec, "archive")
        if blob is not None:
            self._blobs.add(self._spec.run, blob, "archive")
            if not self._blobs.here(self._spec.run, [blob.sha256]):
                self._standing.take(RunStep.FETCH)
                return
        self._have_prepared(RunStep.PREPARE)

    def _have_prepared(self, step: RunStep) -> None:
        self._standing.take(step)
        self._do(Prepare(self._spec.run, self._spec, self._approved))

    def _refuse(self, step: RunStep, reason: str) -> None:
        self._standing.take(step)
        self._reason, self._refused_in = reason[:REASON_LETTERS], self._session.number
        self._note(f"is refused: {self._reason}")
        self._tell()

    def _end(self) -> None:
        self._do(EndRun(self._spec.run))
        self._blobs.drop(self._spec.run, {"archive"})
        self.again_at = None

    def _note(self, text: str) -> None:
        self._do(Note(f"run {self._spec.run} ({self._spec.name}) {text}"))

    def _tell(self) -> None:
        """Say where the run stands, where that is not still to come."""
        now = self._standing.now
        if now in (RunStanding.READY, RunStanding.WAITING, RunStanding.REFUSED, RunStanding.DENIED):
            retry = now is RunStanding.WAITING
            self._session.say(
                run_answer=m.RunAnswer(run=self._spec.run, ready=self.ready, reason=self._reason, retry=retry)
            )
