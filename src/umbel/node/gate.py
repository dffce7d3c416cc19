"""What a node lets in: runs, what they ask, and what single clients would get."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ..core.contract import mismatch
from ..errors import UmbelError
from ..trust import archive as archives
from ..trust.policy import Policy, archive_sha256
from ..trust.statement import Statement
from ..trust.versions import Versions
from ..wire import messages as m
from ..work import contents
from .signals import HostReady, Start


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a run may take place on a node: allowed, denied for a `reason`, or left to the owner."""

    word: Literal["allow", "deny", "ask"]
    reason: str = ""


class Gate(Protocol):
    """What a node lets in. Reasons are empty where nothing speaks against it.

    - `against_run` judges a run by what it says of itself, before anything of it is fetched.
    - `check` judges a run and its archive, which may be large: it is called in another thread. An `UmbelError` denies.
    - `against_ask` judges what a run asks of all its clients, as far as it is known before anything is fetched.
    - `against_task` judges what one client would get: its `config` (`laid_over` names what in it is not the run's), its
      `model`, and what its update is expected to be (`expects`). It is called only where `judges_tasks` is true.
    """

    judges_tasks: bool

    def against_run(self, spec: m.RunSpec) -> str: ...
    def check(self, spec: m.RunSpec, archive: Path) -> Verdict: ...
    def against_ask(self, spec: m.RunSpec, ask: m.AskSpec) -> str: ...
    def against_task(self, ask: m.AskSpec, sent: Mapping[str, Any]) -> str: ...


class PolicyGate:
    """Lets in what a policy allows, if it is what its author has signed and its requirements are installed.

    `versions` are those that were let in before, `federations` the public keys, in hexadecimal, by which this node's
    federation is known; `now` is this machine's clock.
    """

    def __init__(
        self,
        policy: Policy,
        versions: Versions | None = None,
        federations: Container[str] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        self._policy = policy
        self._versions = Versions() if versions is None else versions
        self._federations, self._now = federations, now
        self.judges_tasks = policy.judges_tasks

    def against_run(self, spec: m.RunSpec) -> str:
        """Why not even the archive of a run is fetched: its size, its signature, or the policy is against it."""
        size = spec.archive.blob.size if spec.archive.WhichOneof("at") == "blob" else len(spec.archive.inline)
        if size > (most := self._policy.largest_archive):
            return (
                f"its archive has {size:,} bytes, and here at most {most:,} are taken (largest_archive of the policy)"
            )
        try:
            said = Statement.of(spec)
        except UmbelError as error:
            return error.message
        author = spec.author if said is not None else b""
        return "; ".join(self._against_statement(spec, said) + self._policy.check_announced(spec, author))

    def check(self, spec: m.RunSpec, archive: Path) -> Verdict:
        """Judge a run by its archive, what its author has signed, the policy and what is installed. Raises `AppError`,
        `StorageError` and `OSError`.
        """
        read = archives.verify(archive.read_bytes(), archive_sha256(spec))
        said = Statement.of(spec)
        reasons = self._against_statement(spec, said)
        author = spec.author if said is not None else b""
        asks = self._policy.asks_owner(spec, read.manifest, author)
        reasons += [] if asks else self._policy.check_run(spec, read.manifest, author)
        if reasons := reasons or read.missing():
            return Verdict("deny", "; ".join(reasons))
        if not asks and said is not None:
            self._versions.accept(spec.author, said.app, said.version)
        return Verdict("ask" if asks else "allow")

    def _against_statement(self, spec: m.RunSpec, said: Statement | None) -> list[str]:
        sha256 = archive_sha256(spec)
        reasons = [] if said is None else said.against(spec, sha256, self._federations, self._now())
        greatest = 0 if said is None else self._versions.greatest(spec.author, said.app)
        return reasons + self._policy.check_statement(said, sha256, greatest)

    def against_ask(self, spec: m.RunSpec, ask: m.AskSpec) -> str:
        """Why an ask is not answered here."""
        said = Statement.of(spec)
        expired = [] if said is None else said.expired(self._now())
        return "; ".join(expired + self._policy.check_ask(ask))

    def against_task(self, ask: m.AskSpec, sent: Mapping[str, Any]) -> str:
        """Why an ask is not answered by a client that gets this."""
        return "; ".join(self._policy.check_task(ask, sent))


def against_client(contract: str, ready: HostReady) -> str:
    """Why a client is not what its run's contract asks for; empty if it is."""
    try:
        return "; ".join(mismatch(json.loads(contract), ready.handlers, ready.transforms)) if contract else ""
    except Exception as error:
        return f"the run's contract cannot be read: {error!r}"


def against_start(gate: Gate, start: Start, config: str, path: Callable[[bytes], Path | None]) -> str:
    """Why what a task's client would get is not allowed; empty if it is. `path` gives the files of blobs."""
    if not gate.judges_tasks:
        return ""
    try:
        # As the child takes them: what the ask sends to all is not replaced by what a task says.
        task, ask = start.task, start.ask
        sent = contents.given(task.own, _file(task.own, path)) if task.HasField("own") else {}
        sent.update(contents.given(ask.shared, _file(ask.shared, path)))
        if ask.HasField("model"):
            file = _file(ask.model, path)
            gone = ask.model.HasField("blob") and file is None
            sent["model"] = None if gone else contents.arrays(ask.model, file)
        own = json.loads(config or "{}")
        sent["config"] = {**own, **sent.get("config", {})}
        sent["laid_over"] = sorted(key for key, value in sent["config"].items() if key not in own or own[key] != value)
        return gate.against_task(start.ask, sent)
    except Exception as error:
        return f"what is sent with it cannot be read: {error}"


def _file(payload: m.Payload, path: Callable[[bytes], Path | None]) -> Path | None:
    return path(payload.blob.sha256) if payload.HasField("blob") else None
