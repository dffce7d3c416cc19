"""The children of a node as its event loop sees them: started on demand, kept warm, watched, ended."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import logging
import os
import shutil
import signal
import sys
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InternalError, StorageError, UmbelError
from ..store.blobs import Blobs
from ..wire import messages as m
from ..work.processes import described
from .child import INLINE_BYTES, Message
from .signals import Event, HostDied, HostReady, HostRefused, Start, Stepped, Stop, TaskDone, TaskFailed

log = logging.getLogger("umbel.node")

KEPT_ASKS = 4
KEPT_BYTES = 1 << 26
"""A child keeps so many asks, and of large ones so many bytes beside the one that it works on."""
LINE_BYTES = 1 << 26
TAIL_LINES, TAIL_BYTES = 3, 2000

ONE_THREAD = dict.fromkeys(
    (
        "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS",
        "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS",
    ),
    "1",
)  # fmt: skip
PASSED_ON = {
    "CONDA_PREFIX", "CURL_CA_BUNDLE", "HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "PYTHONHOME",
    "PYTHONPATH", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR", "SSL_CERT_FILE", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "TZ",
    "UMBEL_DATA", "USER", "VIRTUAL_ENV", "XDG_CACHE_HOME",
}  # fmt: skip
PASSED_ON_FAMILIES = ("LC_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "DYLD_", "OPENBLAS_", "MKL_", "NPY_")


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
    - `look_every`: seconds between two looks at the processor time of tasks.
    """

    folder: Path
    sources: Mapping[str, Any]
    device: str = "auto"
    data_cache: int = 1000
    grace: float = 5.0
    environment: Mapping[str, str] = field(default_factory=dict)
    look_every: float = 1.0


class Child:
    """A child process: lines to it, lines from it, and how it ended."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.task: Start | None = None
        self.result = Path()
        self.stopped = False
        self.clients: set[str] = set()
        self.asks: OrderedDict[int, int] = OrderedDict()  # with their bytes, the one used last at the end
        self.ticks = 0
        self.timer: asyncio.TimerHandle | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._orders: asyncio.WriteTransport | None = None
        self._waiting: list[bytes] = []
        self._kept = b""
        self._doomed = False

    async def live(self, path: Path, environment: dict[str, str], heard: Callable[[Message], None]) -> str:
        """Run, and say in words how it ended; what it prints is added to the file `path`."""
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        loop = asyncio.get_running_loop()
        code = f"{theirs_in} {theirs_out} {os.getpid()}".split()
        try:
            with open(path, "ab") as printed:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "umbel.node.child", *code),
                    pass_fds=(theirs_in, theirs_out),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=printed,
                    stderr=printed,
                    env=environment,
                    start_new_session=True,  # so that what it starts is killed with it
                )
        except BaseException:
            os.close(ours_in)
            os.close(ours_out)
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        lines = asyncio.StreamReader(limit=LINE_BYTES)
        reading, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), os.fdopen(ours_in, "rb", 0)
        )
        self._orders, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(ours_out, "wb", 0))
        for data in self._waiting:
            self._orders.write(data)
        if self._doomed:
            self.kill()
        listening = loop.create_task(self._listen(lines, heard))
        try:
            status = await self._process.wait()
            await asyncio.wait({listening}, timeout=1)  # what a client has forked may keep the pipe open
        finally:
            self.kill()
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening
            reading.close()
            if not self._orders.is_closing():
                self._orders.abort()
            await asyncio.sleep(0)  # in which the pipes close
        return described(status)

    async def _listen(self, lines: asyncio.StreamReader, heard: Callable[[Message], None]) -> None:
        try:
            while line := await lines.readline():
                if line.endswith(b"\n"):
                    heard(json.loads(line))
        except Exception:
            log.exception("a child process is ended, for what it says cannot be understood")
            self.kill()

    def send(self, type: str, *, with_next: bool = False, **message: Any) -> None:
        """Tell the child something, or keep it to be told with what comes next: each write wakes it."""
        data, self._kept = self._kept + json.dumps({"type": type, **message}).encode() + b"\n", b""
        if with_next:
            self._kept = data
            return
        if self._orders is None:
            self._waiting.append(data)
        elif not self._orders.is_closing():
            self._orders.write(data)

    def tell_of(self, ask: m.AskSpec, part: Callable[[m.Payload], Message]) -> None:
        """Tell of an ask unless it is known, and of what to forget for it."""
        size = sum(p.blob.size for p in (ask.model, ask.shared) if p.WhichOneof("at") == "blob")
        if ask.ask in self.asks:
            self.asks.move_to_end(ask.ask)
            return
        gone = []
        while self.asks and (len(self.asks) >= KEPT_ASKS or sum(self.asks.values()) + size > KEPT_BYTES):
            gone.append(self.asks.popitem(last=False)[0])
        if gone:
            self.send("forget", with_next=True, asks=gone)
        self.asks[ask.ask] = size
        self.send(
            "ask",
            with_next=True,
            id=ask.ask,
            round=ask.round,
            number=ask.number,
            kind=ask.kind,
            lane=ask.lane,
            transforms=ask.transforms,
            model=part(ask.model) if ask.HasField("model") else None,
            shared=part(ask.shared),
        )

    def end(self, grace: float) -> None:
        """Have it end: at once where it does a task."""
        if self.task is not None:
            self.kill()
        else:
            self.send("end")
            self.kill_after(grace)

    def kill_after(self, seconds: float) -> None:
        """Kill it unless it, or its task, has ended by then."""
        self.calm()
        self.timer = asyncio.get_running_loop().call_later(seconds, self.kill)

    def calm(self) -> None:
        """It need not be killed."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def kill(self) -> None:
        """Kill it, and all that it has started."""
        self._doomed = True
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def progressed(self) -> bool:
        """Whether it has used processor time since this was last asked."""
        if self._process is None:
            return False
        ticks = _ticks(self._process.pid)
        before, self.ticks = self.ticks, ticks
        return ticks > before


@dataclass(eq=False)
class RunHost:
    """A run as it is hosted here."""

    name: str
    folder: Path
    config: Any = None
    program: Program | None = None
    ready: bool = False
    children: list[Child] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class Children:
    """Hosts runs in child processes, as many for each as it has tasks at once; one does one task at a time.

    `tell` gets the machine's events, never from within a call. `unpack` opens clients' archives. Blobs that tasks refer
    to are in `blobs`, and so are the updates of those that are done, held for the run.
    """

    def __init__(self, settings: ChildSettings, blobs: Blobs, unpack: Unpack, tell: Callable[[Event], None]) -> None:
        self._settings = settings
        self._blobs = blobs
        self._unpack = unpack
        self._tell = tell
        self._runs: dict[str, RunHost] = {}
        self._living: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self._looking: asyncio.TimerHandle | None = None
        self._environment = _scrubbed(settings.environment)
        shutil.rmtree(settings.folder / "runs", ignore_errors=True)  # of a node that was killed

    def prepare(self, run: str, spec: m.RunSpec, archive: Path) -> None:
        """Unpack the client and start the run's first child; `HostReady`, `HostRefused` or `HostDied` follows."""
        self.end_run(run)
        hosted = RunHost(run, self._settings.folder / "runs" / f"{run}.{next(self._numbers)}")
        self._runs[run] = hosted
        self._care(hosted, self._prepare(hosted, spec.config, archive))

    def start(self, effect: Start) -> None:
        """Do a task; one `TaskDone` or `TaskFailed` follows."""
        hosted, task = self._runs[effect.run], effect.task
        child = self._idle(hosted, effect)
        child.task, child.stopped = effect, False
        child.result = hosted.folder / "results" / str(next(self._numbers))
        child.clients.add(task.client)
        child.progressed()
        child.tell_of(effect.ask, self._part)
        child.send(
            "task",
            ask=task.ask,
            task=task.task,
            client=task.client,
            attempt=task.attempt,
            key=task.key.hex(),
            data_key=task.data_key.hex(),
            base=None if effect.base is None else self._base(hosted, effect.base),
            own=self._part(task.own) if task.HasField("own") else None,
            result=str(child.result),
        )
        if self._looking is None:
            self._look_later()

    def stop(self, effect: Stop) -> None:
        """End a task at its next step, or else with its child."""
        child = self._doing(effect.run, effect.task, effect.attempt)
        if child is not None and not child.stopped:
            child.stopped = True
            child.send("cancel", task=effect.task)
            child.kill_after(self._settings.grace)

    def end_run(self, run: str) -> None:
        """End all that a run has here; nothing more is told of it."""
        hosted = self._runs.pop(run, None)
        if hosted is None:
            return
        for child in hosted.children:
            child.end(self._settings.grace)
        ending = asyncio.get_running_loop().create_task(_cleared(hosted))
        self._living.add(ending)
        ending.add_done_callback(self._living.discard)

    async def close(self) -> None:
        """End all children and wait until they are gone."""
        for run in list(self._runs):
            self.end_run(run)
        if self._looking is not None:
            self._looking.cancel()
        while self._living:
            await asyncio.wait(self._living)

    def look(self) -> None:
        """See which tasks have used processor time, and tell of those."""
        for run in self._runs.values():
            for child in run.children:
                if child.task is not None and child.progressed():
                    self._tell(Stepped(run.name, child.task.task.task))

    def _look_later(self) -> None:
        self._looking = asyncio.get_running_loop().call_later(self._settings.look_every, self._looked)

    def _looked(self) -> None:
        self._looking = None
        if any(child.task is not None for run in self._runs.values() for child in run.children):
            self.look()
            self._look_later()

    def _care(self, hosted: RunHost, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine of a run to its end."""
        task = asyncio.get_running_loop().create_task(work)
        for tasks in (hosted.tasks, self._living):
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _prepare(self, hosted: RunHost, config: str, archive: Path) -> None:
        try:
            hosted.config = json.loads(config or "{}")
            hosted.program = await asyncio.to_thread(self._unpacked, hosted.folder, archive)
        except (StorageError, OSError) as error:
            self._tell_of(hosted, HostDied(hosted.name, f"the client's archive cannot be unpacked: {error}"))
            return
        except (UmbelError, ValueError) as error:
            why = f"the client's archive or config cannot be used: {error}"
            self._tell_of(hosted, HostRefused(hosted.name, why))
            return
        if self._hosts(hosted):
            self._born(hosted)

    def _unpacked(self, folder: Path, archive: Path) -> Program:
        (folder / "results").mkdir(mode=0o700, parents=True)
        return self._unpack(archive, folder / "archive")

    def _hosts(self, hosted: RunHost) -> bool:
        return self._runs.get(hosted.name) is hosted

    def _tell_of(self, hosted: RunHost, event: Event) -> None:
        if self._hosts(hosted):
            self._tell(event)

    def _born(self, hosted: RunHost) -> Child:
        assert hosted.program is not None
        taken = {child.slot for child in hosted.children}
        child = Child(next(slot for slot in itertools.count() if slot not in taken))
        hosted.children.append(child)
        program, settings = hosted.program, self._settings
        child.send(
            "begin",
            folder=str(program.folder),
            module=program.module,
            attribute=program.attribute,
            config=hosted.config,
            sources=dict(settings.sources),
            device=settings.device,
            slot=child.slot,
            data_cache=settings.data_cache,
        )
        self._care(hosted, self._live(hosted, child))
        return child

    async def _live(self, hosted: RunHost, child: Child) -> None:
        path = self.log_of(hosted.name)
        refusal: list[str] = []

        def heard(message: Message) -> None:
            if message["type"] == "refused":
                refusal.append(message["reason"])
            elif self._hosts(hosted):
                self._heard(hosted, child, message)

        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            ended = await child.live(path, self._environment, heard)
        except OSError as error:
            ended = f"could not be started: {error.strerror}"
        child.calm()
        hosted.children.remove(child)
        if not self._hosts(hosted):
            return
        reason = refusal[0] if refusal else f"the process of the client {ended}{_tail(path)}"
        if not hosted.ready:
            self._tell(HostRefused(hosted.name, reason) if refusal else HostDied(hosted.name, reason))
        elif child.task is not None:
            start = child.task.task
            why = "it was not wanted any more" if child.stopped else reason
            self._tell(TaskFailed(hosted.name, start.task, start.attempt, why, True))
        log.warning("run %s: %s", hosted.name, reason)

    def log_of(self, run: str) -> Path:
        """The file that a run's clients print to."""
        return self._settings.folder / "logs" / f"{run}.log"

    def _heard(self, hosted: RunHost, child: Child, message: Message) -> None:
        kind = message["type"]
        if kind == "ready":
            if not hosted.ready:
                hosted.ready = True
                known = frozenset((name, version) for name, version in message["transforms"])
                self._tell(HostReady(hosted.name, frozenset(message["handlers"]), known))
            return
        if kind == "stepped":
            self._tell(Stepped(hosted.name, message["task"]))
            return
        start = child.task
        if start is None or (start.task.task, start.task.attempt) != (message["task"], message["attempt"]):
            raise InternalError(f"a child tells of task {message['task']}, which it was not given")
        child.task = None
        child.calm()
        if kind == "done":
            self._done(hosted, start, child.result, message)
            return
        cancelled = kind == "cancelled"
        reason = "it was not wanted any more" if cancelled else message["reason"]
        retry = cancelled or message["retry"]
        if not cancelled and message.get("trace"):  # what the data holds may be in it: it stays on this machine
            log.debug("run %s, task %s failed:\n%s", hosted.name, message["task"], message["trace"])
        self._tell(TaskFailed(hosted.name, start.task.task, start.task.attempt, reason, retry))

    def _done(self, hosted: RunHost, start: Start, result: Path, message: Message) -> None:
        receipt = m.Receipt(
            task=start.task.task,
            client=start.task.client,
            weight=message["weight"],
            metrics=message["metrics"],
            seconds=message["seconds"],
            kept=message["state"] is not None,
        )
        if any(message[name] and "file" in message[name] for name in ("update", "state")):
            self._care(hosted, self._stored(hosted, start, result, receipt, message))
            return
        update = m.Payload(inline=base64.b64decode(message["update"]["base64"]))
        state = message["state"] and base64.b64decode(message["state"]["base64"])
        self._finished(hosted, start, m.Done(receipt=receipt, update=update), state)

    async def _stored(self, hosted: RunHost, start: Start, result: Path, receipt: m.Receipt, message: Message) -> None:
        try:
            update, state = await asyncio.to_thread(self._taken_in, hosted.name, result, message)
        except (UmbelError, OSError) as error:
            if self._hosts(hosted):
                reason = f"the node cannot keep the result: {error}"
                self._tell(TaskFailed(hosted.name, start.task.task, start.task.attempt, reason, True))
            return
        self._finished(hosted, start, m.Done(receipt=receipt, update=update), state)

    def _taken_in(self, run: str, result: Path, message: Message) -> tuple[m.Payload, bytes | None]:
        update, state = message["update"], message["state"]
        payload = m.Payload()
        if "file" in update:
            blob = m.Blob(sha256=bytes.fromhex(update["sha256"]), size=update["size"])
            self._blobs.hold(blob.sha256, holder(run, blob.sha256))
            if self._blobs.path(blob.sha256) is None:
                self._blobs.adopt(result, blob, verify=False)
            payload.blob.CopyFrom(blob)
        else:
            payload.inline = base64.b64decode(update["base64"])
        if state is None:
            return payload, None
        if "base64" in state:
            return payload, base64.b64decode(state["base64"])
        path = Path(f"{result}.state")
        data = path.read_bytes()
        path.unlink()
        return payload, data

    def _finished(self, hosted: RunHost, start: Start, done: m.Done, state: bytes | None) -> None:
        if self._hosts(hosted):
            self._tell(TaskDone(hosted.name, start.task.task, start.task.attempt, done, state))

    def _idle(self, hosted: RunHost, effect: Start) -> Child:
        """A child for a task: one that has the client's data, or knows the ask, where there is a choice."""
        idle = [child for child in hosted.children if child.task is None]
        if not idle:
            return self._born(hosted)
        return max(idle, key=lambda c: (effect.task.client in c.clients, effect.ask.ask in c.asks, -c.slot))

    def _doing(self, run: str, task: str, attempt: int) -> Child | None:
        hosted = self._runs.get(run)
        for child in hosted.children if hosted is not None else ():
            if child.task is not None and (child.task.task.task, child.task.task.attempt) == (task, attempt):
                return child
        return None

    def _part(self, payload: m.Payload) -> Message:
        if payload.WhichOneof("at") == "inline":
            return _inline(payload.inline)
        return {"file": str(self._blobs.path(payload.blob.sha256))}

    def _base(self, hosted: RunHost, base: bytes) -> Message:
        if len(base) <= INLINE_BYTES:
            return _inline(base)
        path = hosted.folder / "results" / f"{next(self._numbers)}.base"
        path.write_bytes(base)
        return {"file": str(path)}


def holder(run: str, sha256: bytes) -> str:
    """The name under which a run holds a blob."""
    return f"{run}/{sha256.hex()}"


async def _cleared(hosted: RunHost) -> None:
    """Remove a run's folder once its children are gone."""
    while hosted.tasks:
        await asyncio.wait(hosted.tasks)
    await asyncio.to_thread(shutil.rmtree, hosted.folder, True)


def _inline(data: bytes) -> Message:
    return {"base64": base64.b64encode(data).decode()}


def _scrubbed(more: Mapping[str, str]) -> dict[str, str]:
    """What a child's environment holds: nothing that may be a secret, one numeric thread, and where Umbel is."""
    kept = {n: v for n, v in os.environ.items() if n in PASSED_ON or n.startswith(PASSED_ON_FAMILIES)}
    here = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (here, kept.get("PYTHONPATH", ""))))
    return {**kept, "PYTHONPATH": path, **ONE_THREAD, **more}


def _ticks(pid: int) -> int:
    """The processor time of a process and of those it has waited for; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(map(int, fields[11:15]))


def _tail(path: Path) -> str:
    """The last lines of a log, for whoever has to find out what happened."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.strip()[:200] for line in text.splitlines() if line.strip()]
    return f"; its log ends: {' | '.join(lines[-TAIL_LINES:])}" if lines else ""
