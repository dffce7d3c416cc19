"""One script at work: its process, what it is told and says, what it prints, and how it ended."""

from __future__ import annotations

import codecs
import itertools
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import AppError, ClientCrashed, ClientError, CorruptFile, HandlerFailed
from ..files import Bytes
from ..work.confinement import below
from ..work.processes import described
from ..work.vitals import processor_ticks
from . import line

LOOK_SECONDS = 0.25
"""So often it is looked whether a script is alive."""
GRACE = 5.0
"""Seconds that a script has to end by itself once it has nothing more to do."""
LONGEST_REASON, TAIL_CHARACTERS = 300, 4000
FRAME = re.compile(r'^  File "(.+)", line (\d+).*$', re.MULTILINE)
MOST_READS, READ_BYTES = 16, 1 << 16
"""Together what a pipe holds at most, 1 MiB."""
MEANS = "umbel.script.client(path, args=[...], initial_source=...) gives it, in an app.py"


class ScriptProcess:
    """A script that runs, in a session of its own; what it prints is printed by this process, line by line.

    `stall` is as for `umbel.script.client`. Raises `AppError` where it cannot be started.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], stall: float | None) -> None:
        if os.name != "posix":
            raise AppError(f"scripts such as {name} are hosted on POSIX systems only", hint="Write an umbel.Client().")
        self._name, self._stall, self._owner = name, stall, os.getpid()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env={**environment, line.VARIABLE: str(theirs.fileno()), "PYTHONUNBUFFERED": "1"},
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise AppError(f"{name} cannot be started with {command[0]}: {error.strerror}") from error
        ours.setblocking(False)
        self._socket, self._inbox, self._outgoing = ours, line.Inbox(), deque[Bytes]()
        self._printed = [_Printed(self._process.stdout, "stdout"), _Printed(self._process.stderr, "stderr")]
        self._sign, self._asked = (0, 0), ""

    def send(self, message: line.Message) -> None:
        """Say something, with what is said next."""
        self._outgoing.extend(line.packed(message))

    def ask(self, message: line.Message, says: str, step: Callable[[], None]) -> line.Message:
        """Have a task done, and give what the script `says` to it; `step` is called while it shows signs of life.
        Raises `HandlerFailed`, and `ClientCrashed` where it was killed.
        """
        self.send(message)
        self._asked = says
        done, alive_at = None, time.monotonic()
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._socket, selectors.EVENT_READ | selectors.EVENT_WRITE)
            for printed in self._printed:
                if not printed.over:
                    waiting.register(printed.stream, selectors.EVENT_READ, printed)
            looked = time.monotonic()
            while done is None:
                ready = waiting.select(LOOK_SECONDS)
                if not ready and self.over:  # and something that it has started still has its end of the socket
                    raise self._fault()
                for key, events in ready:
                    if key.data is not None:
                        if not key.data.pass_on():
                            waiting.unregister(key.fileobj)
                    else:
                        done = self._converse(waiting, events)
                if done is None and (now := time.monotonic()) - looked >= LOOK_SECONDS:
                    looked = now
                    if self._lives():
                        alive_at = now
                        step()
                    elif self._stall is not None and now - alive_at > self._stall:
                        self._kill()
                        raise HandlerFailed(
                            f"the script {self._name} showed no sign of life for {self._stall:g} seconds, and was ended"
                        )
        self.pass_on()
        if done.get("says") != says:
            raise HandlerFailed(f"the script {self._name} says {done.get('says')!r:.40}, and not {says!r}")
        return done

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def _fault(self) -> ClientError:
        """What is to be said of its end."""
        try:
            code = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._kill()
            return HandlerFailed(f"the script {self._name} let go of its host, and was ended")
        self.pass_on()
        when, hint = "while it had a task", None
        if self._asked == "model":
            when = "before it came to its loop over fl.tasks(...)"
            hint = f"Start it by itself first: python {self._name}. What it needs beside, {MEANS}."
        elif code == 0:
            hint = "Let the loop over fl.tasks(...) go round until it ends by itself: no break."
        kind = ClientCrashed if code < 0 else HandlerFailed
        why = self._why() if code > 0 else ""
        return kind(f"the script {self._name} {described(code)} {when}{why}", hint=hint)

    def pass_on(self) -> None:
        """Print what it has printed, of one that prints without end as much as a pipe holds."""
        for printed in self._printed:
            for _ in range(MOST_READS):
                if not printed.pass_on(more=True):
                    break
        sys.stdout.flush()
        sys.stderr.flush()

    def let_go(self) -> None:
        """Tell it that there is nothing more to do."""
        self._socket.close()

    def end(self, grace: float = GRACE) -> None:
        """Have it end, by force if it does not by itself in so many seconds, and with it whatever it has started."""
        if os.getpid() != self._owner:
            return  # a process that was forked from the one whose script it is
        self.let_go()
        deadline = time.monotonic() + grace
        with selectors.DefaultSelector() as waiting:  # who prints as it ends has to be read
            for printed in self._printed:
                if not printed.over:
                    waiting.register(printed.stream, selectors.EVENT_READ, printed)
            while waiting.get_map() and (left := deadline - time.monotonic()) > 0 and not self.over:
                for key, _ in waiting.select(min(left, LOOK_SECONDS)):
                    if not key.data.pass_on():
                        waiting.unregister(key.fileobj)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, deadline - time.monotonic()))
        self._kill()
        self.pass_on()
        for printed in self._printed:
            printed.stream.close()

    def _converse(self, waiting: selectors.BaseSelector, events: int) -> line.Message | None:
        """Send and receive what can be; a message once it is whole."""
        try:
            if events & selectors.EVENT_READ:
                with suppress(BlockingIOError):
                    return self._inbox.take(self._socket)
            while self._outgoing and events & selectors.EVENT_WRITE:
                with suppress(BlockingIOError):
                    sent = self._socket.send(self._outgoing[0])
                    rest = memoryview(self._outgoing.popleft())[sent:]
                    if rest:
                        self._outgoing.appendleft(rest)
                    continue
                return None
            if not self._outgoing:
                waiting.modify(self._socket, selectors.EVENT_READ)
        except (EOFError, ConnectionError):
            raise self._fault() from None
        except (CorruptFile, MemoryError, ValueError, TypeError) as error:
            raise HandlerFailed(f"the script {self._name} says what cannot be understood: {error}") from error
        return None

    def _lives(self) -> bool:
        """Whether it has used the processor or printed since this was last asked; whoever cannot be seen does."""
        if not Path("/proc/self/stat").exists():
            return True
        pid, before = self._process.pid, self._sign
        self._sign = (sum(map(processor_ticks, (pid, *below(pid)))), sum(each.seen for each in self._printed))
        return self._sign != before

    def _kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _why(self) -> str:
        """What it raised, or the last that it said of its errors, and where; as of a handler no more than that, for it
        is told to the run, and the rest may show data.
        """
        text, place = self._printed[1].tail, ""
        lines = [line.strip() for line in text.splitlines()[-1:]]
        if frames := list(FRAME.finditer(text)):
            rest = text[frames[-1].end() :].splitlines()
            rest = list(itertools.dropwhile(lambda line: not line or line[0].isspace(), rest))
            lines = [line.strip() for line in rest]
            own = [frame[2] for frame in frames if frame[1].rpartition("/")[2] == self._name]
            place = f" ({self._name}:{own[-1]})" if own else ""
        said = " ".join(filter(None, lines))[:LONGEST_REASON]
        return f": {said}{place}" if said else ""


class _Printed:
    """What a script prints to one of its streams."""

    def __init__(self, stream: Any, name: str) -> None:
        os.set_blocking(stream.fileno(), False)
        self.stream, self._name = stream, name
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self.seen, self.tail, self.over = 0, "", False

    def pass_on(self, *, more: bool = False) -> bool:
        """Print what is there; whether there will be more, or, with `more`, may be at once."""
        try:
            data = b"" if self.over else os.read(self.stream.fileno(), READ_BYTES)
        except BlockingIOError:
            return not more
        self.over = not data
        text = self._decoder.decode(data, final=self.over)
        self.seen += len(data)
        self.tail = (self.tail + text)[-TAIL_CHARACTERS:]
        getattr(sys, self._name).write(text)  # as it is now: who runs a task may have exchanged it
        return not self.over
