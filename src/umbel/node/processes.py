"""A child process of a node, as its event loop sees it: lines to it, lines from it, and how it ended."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..core.update import check_metrics
from ..privacy.release import NoisyRelease
from ..wire import messages as m
from ..wire.bodies import MOST
from ..wire.texts import read_json
from ..work.confinement import Confinement, below, end
from ..work.processes import ONE_THREAD, described
from ..work.vitals import processor_ticks
from .child import INLINE_BYTES, Message
from .signals import Start

log = logging.getLogger("umbel.node")

KEPT_ASKS = 4
KEPT_BYTES = 1 << 26
"""A child keeps so many asks, and of large ones so many bytes beside the one that it works on."""
LINE_BYTES = 1 << 20
TAIL_LINES, TAIL_BYTES = 3, 2000
PASSED_ON = {
    "CONDA_PREFIX", "CURL_CA_BUNDLE", "HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "PYTHONHOME",
    "PYTHONPATH", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR", "SSL_CERT_FILE", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "TZ",
    "UMBEL_DATA", "USER", "VIRTUAL_ENV", "XDG_CACHE_HOME",
}  # fmt: skip
PASSED_ON_FAMILIES = ("LC_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "DYLD_", "OPENBLAS_", "MKL_", "NPY_")


class Child:
    """A child process: lines to it, lines from it, and how it ended."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.task: Start | None = None
        self.result = ""
        self.stopped = False
        self.clients: set[str] = set()
        self.asks: OrderedDict[int, int] = OrderedDict()  # with their bytes, the one used last at the end
        self._known: dict[int, m.AskSpec] = {}
        self.ticks: int | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.fault = ""
        self._limit: asyncio.TimerHandle | None = None
        self._rested: int | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._orders: asyncio.WriteTransport | None = None
        self._waiting: list[bytes] = []
        self._kept = b""
        self._doomed = False

    async def live(
        self, path: Path, environment: dict[str, str], confined: Confinement, heard: Callable[[Message], None]
    ) -> str:
        """Run, and say in words how it ended; what it prints is added to the file `path`."""
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        loop = asyncio.get_running_loop()
        try:
            with open(path, "ab") as printed:
                self._process = await asyncio.create_subprocess_exec(
                    *confined.command("umbel.node.child", str(theirs_in), str(theirs_out)),
                    pass_fds=(theirs_in, theirs_out),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=printed,
                    stderr=printed,
                    env=environment,
                    start_new_session=True,
                )
        except BaseException:
            os.close(ours_in)
            os.close(ours_out)
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        lines = _Lines(self, heard)
        reading, _ = await loop.connect_read_pipe(lambda: lines, os.fdopen(ours_in, "rb", 0))
        self._orders, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(ours_out, "wb", 0))
        for data in self._waiting:
            self._orders.write(data)
        if self._doomed:
            self.kill()
        try:
            status = await self._process.wait()
            await asyncio.wait({lines.over}, timeout=1)  # what a client has forked may keep the pipe open
        finally:
            self.kill()
            lines.close()
            reading.close()
            if not self._orders.is_closing():
                self._orders.abort()
            await asyncio.sleep(0)  # in which the pipes close
        return self.fault or described(status)

    def does(self, task: str, attempt: int) -> bool:
        """Whether it is at this attempt of a task."""
        return self.task is not None and (self.task.task.task, self.task.task.attempt) == (task, attempt)

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
        """Tell of an ask unless it is known, and of what to forget for it: an earlier one of the same number, too, for
        what was judged is the one that its task came with.
        """
        size = sum(p.blob.size for p in (ask.model, ask.shared) if p.WhichOneof("at") == "blob")
        gone = []
        if ask.ask in self.asks:
            if self._known[ask.ask] == ask:
                self.asks.move_to_end(ask.ask)
                return
            del self.asks[ask.ask]
            gone.append(ask.ask)
        while self.asks and (len(self.asks) >= KEPT_ASKS or sum(self.asks.values()) + size > KEPT_BYTES):
            gone.append(self.asks.popitem(last=False)[0])
        if gone:
            self.send("forget", with_next=True, asks=gone)
        self._known = {**{number: self._known[number] for number in self.asks}, ask.ask: ask}
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

    def kill(self, fault: str = "") -> None:
        """Kill it, and all that it has started; for good where that is its own `fault`."""
        self._doomed, self.fault = True, self.fault or fault
        if self._process is not None and self._process.returncode is None:
            end(self._process.pid)

    def kill_at(self, seconds: float | None, fault: str) -> None:
        """Kill it for its own `fault` unless it has done by then what it was given to do."""
        self.in_time()
        if seconds is not None:
            self._limit = asyncio.get_running_loop().call_later(seconds, self.kill, fault)

    def in_time(self) -> None:
        """It has done what it was given to do, as it says."""
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
            self.progressed()
            self._rested = self.ticks

    def idled(self) -> float:
        """The seconds of processor time that it has used since it was done in time; 0 while there is something to do
        by some time, or where there was nothing.
        """
        if self._rested is None or self._limit is not None:
            return 0.0
        self.progressed()
        return ((self.ticks or 0) - self._rested) / os.sysconf("SC_CLK_TCK")

    def progressed(self) -> bool:
        """Whether it, or what it has started, has used processor time since this was last asked; False where that was
        forgotten.
        """
        if self._process is None:
            return False
        pid = self._process.pid
        before, self.ticks = self.ticks, sum(map(processor_ticks, (pid, *below(pid))))
        return before is not None and self.ticks > before

    @property
    def memory(self) -> int:
        """The bytes of memory that it and what it has started have, as far as the system tells."""
        return 0 if self._process is None else sum(map(_resident, below(self._process.pid)))


class _Lines(asyncio.Protocol):
    """What a child says, line by line, as it comes; `over` is done once it says no more."""

    def __init__(self, child: Child, heard: Callable[[Message], None]) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._child, self._heard = child, heard
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n") if b"\n" in data else (self._rest + data,)
        try:
            for line in lines:
                if not self.over.done():
                    self._heard(read(line))
            if len(self._rest) > LINE_BYTES:
                read(self._rest)
        except Exception:
            log.exception("a child process is ended, for what it says cannot be understood")
            self._child.kill("said what this node cannot understand")
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.close()

    def close(self) -> None:
        """Hear no more."""
        if not self.over.done():
            self.over.set_result(None)


def read(line: bytes) -> Message:
    """What a child says, as `umbel.node.child` has it. A client's code can speak in its place: whatever else it is
    raises, of whatever kind, before the node relies on it or passes it on.
    """
    if len(line) > LINE_BYTES:
        raise ValueError(f"a line of {len(line)} bytes")
    said: Message = read_json(line, "what a child says", dict)
    match said["type"]:
        case "ready":
            said["handlers"] = list(map(_text, said["handlers"]))
            said["transforms"] = [(_text(name), int(version)) for name, version in said["transforms"]]
        case "refused":
            said["reason"] = _text(said["reason"])
        case "failed":
            said["reason"] = _text(said["reason"])
            m.Failure(retry=said["retry"])
        case "done":
            said["metrics"] = check_metrics(said["metrics"], "the update's metrics")
            m.Receipt(metrics=said["metrics"], weight=said["weight"], seconds=said["seconds"])
            told = said.get("accounted", ())
            said["accounted"] = tuple((NoisyRelease.of(each).plain(), _count(times)) for each, times in told)
            update, state = said["update"], said["state"]
            if "file" in update:
                m.Blob(sha256=bytes.fromhex(update["sha256"]), size=update["size"])
            else:
                payload = m.Payload.FromString(base64.b64decode(update["base64"]))
                if payload.WhichOneof("at") != "message" or len(payload.message) > INLINE_BYTES:
                    raise ValueError("an update that should be in a file, or is none")
            if state is not None and "file" not in state:
                base64.b64decode(state["base64"])
        case "stepped" | "cancelled":
            pass
        case other:
            raise ValueError(f"a message of the type {other!r:.40}")
    return said


def _text(value: Any) -> str:
    """A text that can be written: the name of a file, say, can be in it that is no UTF-8."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not text")
    return value.encode(errors="backslashreplace").decode()


def _count(value: Any) -> int:
    """How many times something was done."""
    if type(value) is not int or not 0 < value < MOST:
        raise ValueError(f"{value!r:.40} is no number of times")
    return value


def scrubbed(more: Mapping[str, str]) -> dict[str, str]:
    """What a child's environment holds: nothing that may be a secret, one numeric thread, and where Umbel is."""
    kept = {n: v for n, v in os.environ.items() if n in PASSED_ON or n.startswith(PASSED_ON_FAMILIES)}
    here = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (here, kept.get("PYTHONPATH", ""))))
    return {**kept, "PYTHONPATH": path, **ONE_THREAD, **more}


def _resident(pid: int) -> int:
    """The memory of a process; 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def shorten(path: Path, most: int) -> None:
    """Leave half of so many bytes, the last ones, of a log that has more; children have it open to append to it."""
    with suppress(OSError):
        if (size := path.stat().st_size) > most:
            with open(path, "a+b") as log:
                log.seek(size - most // 2)
                kept = log.read(most // 2)
                log.truncate(0)
                log.write(kept)


def tail(path: Path) -> str:
    """The last lines of a log, for whoever has to find out what happened."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.strip()[:200] for line in text.splitlines() if line.strip()]
    return f"; its log ends: {' | '.join(lines[-TAIL_LINES:])}" if lines else ""
