"""A run in child processes: unpacked, begun, given tasks, and what is told of it."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InternalError, StorageError, UmbelError
from ..files import linked, opened_below
from ..store.blobs import Blobs
from ..store.patience import Patience
from ..transport.tasks import Tasks
from ..wire import messages as m
from ..wire.blobs import run_giver
from ..wire.limits import PRINTED_BYTES
from ..work.executor import LARGEST_STATE
from .child import INLINE_BYTES, Message
from .limits import Limits
from .processes import Child, shorten, tail
from .signals import Event, HostDied, HostReady, HostRefused, Start, Stepped, Stop, TaskDone, TaskFailed

log = logging.getLogger("umbel.node")

UNWANTED = "it was not wanted any more"


@dataclass(frozen=True, slots=True)
class Program:
    """Where a client is: the folder that its archive was unpacked to, and its module and attribute there."""

    folder: Path
    module: str
    attribute: str


Unpack = Callable[[Path, Path], Program]
"""Unpacks an archive to a folder that is not there yet. Raises an `UmbelError` that says why it cannot be used."""


@dataclass(frozen=True, kw_only=True)
class ChildSettings:
    """How children are started.

    - `folder`: every run has one of its own below it.
    - `sources`: what each client's data handler gets, by the client's name.
    - `device`: for `ctx.device`; with `"auto"` they take turns with the GPUs.
    - `data_cache`: how many clients' data a child keeps.
    - `grace`: seconds that a task has to end by itself before its child is killed.
    - `environment`: variables beside the harmless ones, which alone are passed on.
    - `limits`: what they may reach and use.
    - `look_every`: seconds between two looks at the processor time and the memory of children, and at what they print.
    - `patience`: waits for room on a full disk.
    """

    folder: Path
    sources: Mapping[str, Any]
    device: str = "auto"
    data_cache: int = 1000
    grace: float = 5.0
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    look_every: float = 1.0
    patience: Patience = field(default_factory=lambda: Patience(None, log.error))


class RunHost:
    """One run, in as many children as it has tasks at once; what they print goes to the file `log`.

    `tell` gets the machine's events, none once it has been ended.
    """

    def __init__(
        self,
        run: str,
        folder: Path,
        log: Path,
        settings: ChildSettings,
        environment: dict[str, str],
        blobs: Blobs,
        tell: Callable[[Event], None],
    ) -> None:
        self._run = run
        self._folder = folder
        self._log = log
        self._settings = settings
        self._environment = {**environment, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder / "tmp"))}
        self._blobs = blobs
        self._tell_node = tell
        self._begin: dict[str, Any] = {}
        self._ready = False
        self._ended = False
        self._children: list[Child] = []
        self._tasks = Tasks()
        self._patience = settings.patience
        self._numbers = itertools.count(1)

    def prepare(self, config: str, archive: Path, unpack: Unpack) -> None:
        """Unpack the client and start the first child."""
        self._tasks.begin(self._prepare(config, archive, unpack))

    def start(self, effect: Start) -> None:
        """Do a task, in a child that is free or in another one."""
        try:
            base = None if effect.base is None else self._base(effect.base)
        except OSError as error:
            reason = f"the node cannot write what it begins with: {error}"
            asyncio.get_running_loop().call_soon(lambda: self._failed(effect, reason, retry=True))
            return
        child, task = self._idle(effect), effect.task
        child.task, child.stopped = effect, False
        child.result = self._path("results")
        child.clients.add(task.client)
        child.ticks = None  # what it used before is no progress of this task
        seconds = self._settings.limits.task_time
        child.kill_at(seconds, f"took longer than the {seconds} seconds that this node's owner allows")
        child.tell_of(effect.ask, self._part)
        child.send(
            "task",
            ask=task.ask,
            task=task.task,
            client=task.client,
            attempt=task.attempt,
            key=task.key.hex(),
            data_key=task.data_key.hex(),
            base=base,
            own=self._part(task.own) if task.HasField("own") else None,
            result=child.result,
        )

    def stop(self, effect: Stop) -> None:
        """End a task at its next step, or else with its child."""
        for child in self._children:
            if child.does(effect.task, effect.attempt) and not child.stopped:
                child.stopped = True
                child.send("cancel", task=effect.task)
                child.kill_after(self._settings.grace)

    def look(self) -> None:
        """Tell which tasks have used processor time since the last look; see to it that memory and the log stay within
        their bounds, and that who has nothing to do does little.
        """
        memory, seconds = self._settings.limits.memory, self._settings.limits.task_time
        shorten(self._log, PRINTED_BYTES)
        for child in list(self._children):  # those without a task, too: what they have left behind may go on
            if memory is not None and child.memory > memory:
                child.kill(f"took more than the {memory:,} bytes of memory that this node's owner allows")
            if child.task is not None and child.progressed():
                self._tell(Stepped(self._run, child.task.task.task))
            if seconds is not None and child.idled() > seconds:
                child.kill(f"used the {seconds} seconds that this node's owner allows a task when it had none")

    def end(self) -> None:
        """End all children; nothing more is told."""
        self._ended = True
        for child in self._children:
            child.end(self._settings.grace)

    async def cleared(self) -> None:
        """Remove the run's folder once its children are gone."""
        await self._tasks.over()
        await asyncio.to_thread(shutil.rmtree, self._folder, True)

    async def _prepare(self, config: str, archive: Path, unpack: Unpack) -> None:
        try:
            told = json.loads(config or "{}")
            program = await self._patience.later(lambda: asyncio.to_thread(self._unpacked, archive, unpack))
        except (StorageError, OSError) as error:
            self._tell(HostDied(self._run, f"the client's archive cannot be unpacked: {error}"))
            return
        except (UmbelError, ValueError) as error:
            self._tell(HostRefused(self._run, f"the client's archive or config cannot be used: {error}"))
            return
        self._begin = {
            "folder": str(program.folder),
            "module": program.module,
            "attribute": program.attribute,
            "config": told,
            "sources": dict(self._settings.sources),
            "device": self._settings.device,
            "data_cache": self._settings.data_cache,
        }
        if not self._ended:
            self._born()

    def _unpacked(self, archive: Path, unpack: Unpack) -> Program:
        for name in ("results", "given", "tmp"):
            (self._folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        return unpack(archive, self._folder / "archive")

    def _tell(self, event: Event) -> None:
        if not self._ended:
            self._tell_node(event)

    # children

    def _idle(self, effect: Start) -> Child:
        """A child for a task: one that has the client's data, or knows the ask, where there is a choice."""
        idle = [child for child in self._children if child.task is None and not child.fault]
        if not idle:
            return self._born()
        return max(idle, key=lambda c: (effect.task.client in c.clients, effect.ask.ask in c.asks, -c.slot))

    def _born(self) -> Child:
        taken = {child.slot for child in self._children}
        child = Child(next(slot for slot in itertools.count() if slot not in taken))
        self._children.append(child)
        child.send("begin", slot=child.slot, **self._begin)
        seconds = self._settings.limits.task_time
        child.kill_at(seconds, f"took longer to load than the {seconds} seconds that this node's owner allows")
        self._tasks.begin(self._live(child))
        return child

    async def _live(self, child: Child) -> None:
        refusal: list[str] = []

        def heard(message: Message) -> None:
            if message["type"] == "refused":
                refusal.append(message["reason"])
            elif not self._ended:
                self._heard(child, message)

        try:
            self._log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            reach = self._settings.limits.confined(
                self._settings.folder.absolute(), self._folder.absolute(), self._settings.sources, child.slot
            )
            ended = await child.live(self._log, self._environment, reach, heard)
        except OSError as error:
            ended = f"could not be started: {error.strerror}"
        child.calm()
        child.in_time()
        self._children.remove(child)
        if self._ended:
            return
        reason = refusal[0] if refusal else f"the process of the client {ended}{tail(self._log)}"
        if not self._ready:
            self._tell((HostRefused if refusal or child.fault else HostDied)(self._run, reason))
        elif child.task is not None:
            self._failed(child.task, UNWANTED if child.stopped else reason, retry=child.stopped or not child.fault)
        log.warning("run %s: %s", self._run, reason)

    def _heard(self, child: Child, message: Message) -> None:
        kind = message["type"]
        if kind == "ready":
            if child.task is None:
                child.in_time()
            if not self._ready:
                self._ready = True
                self._tell(HostReady(self._run, frozenset(message["handlers"]), frozenset(message["transforms"])))
            return
        if kind == "stepped":
            if child.task is not None and child.task.task.task == message["task"]:
                self._tell(Stepped(self._run, message["task"]))
            return
        start = child.task
        if start is None or not child.does(message["task"], message["attempt"]):
            raise InternalError(f"a child tells of task {message['task']}, which it was not given")
        child.task = None
        child.calm()
        child.in_time()
        if kind == "done":
            self._done(start, child.result, message)
        elif kind == "cancelled":
            self._failed(start, UNWANTED, retry=True)
        else:
            if message.get("trace"):  # what the data holds may be in it: it stays on this machine
                log.debug("run %s, task %s failed:\n%s", self._run, message["task"], message["trace"])
            self._failed(start, message["reason"], retry=message["retry"])

    # results

    def _failed(self, start: Start, reason: str, *, retry: bool) -> None:
        self._tell(TaskFailed(self._run, start.task.task, start.task.attempt, reason, retry))

    def _done(self, start: Start, result: str, message: Message) -> None:
        receipt = m.Receipt(
            task=start.task.task,
            client=start.task.client,
            weight=message["weight"],
            metrics=message["metrics"],
            seconds=message["seconds"],
            kept=message["state"] is not None,
        )
        if any(message[name] and "file" in message[name] for name in ("update", "state")):
            self._tasks.begin(self._stored(start, result, receipt, message))
        else:
            self._finished(start, receipt, message, *self._taken_in(result, message))

    async def _stored(self, start: Start, result: str, receipt: m.Receipt, message: Message) -> None:
        try:
            update, state = await self._patience.later(lambda: asyncio.to_thread(self._taken_in, result, message))
        except Exception as error:  # the client's code may leave anything there
            self._failed(start, f"the node cannot keep the result: {error}", retry=True)
        else:
            self._finished(start, receipt, message, update, state)
            if self._ended and update.HasField("blob"):  # the run was over first, and nobody is told of it
                self._blobs.release(holder(self._run, update.blob.sha256))

    def _taken_in(self, result: str, message: Message) -> tuple[m.Payload, bytes | None]:
        update, state = message["update"], message["state"]
        payload = m.Payload()
        if "file" in update:
            blob = m.Blob(sha256=bytes.fromhex(update["sha256"]), size=update["size"])
            self._blobs.hold(blob.sha256, holder(self._run, blob.sha256))
            # As it is: the child may write to it still, and whoever gets it will see whether it is what it should be.
            self._blobs.adopt(result, blob, run_giver(self._run), verify=False)
            payload.blob.CopyFrom(blob)
        else:
            payload = m.Payload.FromString(base64.b64decode(update["base64"]))
        if state is None:
            return payload, None
        if "base64" in state:
            return payload, base64.b64decode(state["base64"])
        with opened_below(*_below(f"{result}.state")) as file:
            if (size := os.fstat(file.fileno()).st_size) > LARGEST_STATE:
                raise ValueError(f"the client keeps {size:,} bytes in ctx.state, and {LARGEST_STATE:,} are the most")
            data = file.read(size)
        Path(f"{result}.state").unlink()
        return payload, data

    def _finished(
        self, start: Start, receipt: m.Receipt, message: Message, update: m.Payload, state: bytes | None
    ) -> None:
        done, task = m.Done(receipt=receipt, update=update), start.task
        self._tell(TaskDone(self._run, task.task, task.attempt, done, state, message["accounted"]))

    # what children are sent

    def _path(self, kind: str) -> str:
        return f"{self._folder}/{kind}/{next(self._numbers)}"

    def _part(self, payload: m.Payload) -> Message:
        if payload.WhichOneof("at") != "blob":
            return _inline(payload.SerializeToString())
        path = self._blobs.path(payload.blob.sha256)
        given = self._path("given")
        if path is not None and not linked(path, Path(given)):
            with suppress(OSError):  # the child finds nothing then, and says so
                shutil.copyfile(path, given)
        return {"file": given, "given": True}

    def _base(self, base: bytes) -> Message:
        if len(base) <= INLINE_BYTES:
            return _inline(base)
        path = self._path("given")
        Path(path).write_bytes(base)
        return {"file": path, "given": True}


def holder(run: str, sha256: bytes) -> str:
    """The name under which a run holds a blob."""
    return f"{run}/{sha256.hex()}"


def _below(path: str) -> tuple[Path, str]:
    folder, _, name = path.rpartition("/")
    return Path(folder), name


def _inline(data: bytes) -> Message:
    return {"base64": base64.b64encode(data).decode()}
