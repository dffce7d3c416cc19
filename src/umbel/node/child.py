"""A child process of a node: hosts the clients of one run, and does the tasks that it is handed, one at a time.

The node and its child talk in lines of JSON over two pipes of their own, since what clients print goes to the standard
output, which is the run's log. Each line is an object with a `type`. What is large lies in files: a *part* is
``{"file": path}``, ``{"base64": text}``, of a state as it is and of all else as an encoded `Payload`, or null for
nothing. With ``"given": true`` a file is the child's to remove once it has read it. Nothing is pickled.

To the child:

- ``begin``: `folder`, `module`, `attribute`: where the client is; `config`; `sources` by client; `device`, `slot`,
  `data_cache`
- ``ask``: `id`, `round`, `number`, `kind`, `lane`, `transforms` (a spec, as JSON text), `model` (a part: arrays),
  `shared` (a part: what all clients get)
- ``task``: `ask`, `task`, `client`, `attempt`, `key`, `data_key` (hexadecimal), `base` (a part: the client's state),
  `own` (a part: what this client gets), `result`: the path for what it comes to; a large state's has the suffix
  ``.state``
- ``cancel``: `task`. It ends the task at its next ``ctx.step()``
- ``forget``: `asks` that are over
- ``end``

From the child:

- ``ready``: `handlers`, `transforms` (names with versions), `umbel` (the version)
- ``refused``: `reason`; the child ends
- ``stepped``: `task`
- ``done``: `task`, `attempt`, `weight`, `metrics`, `seconds`, `update` (a part, a file's with `sha256` and `size`),
  `state` (a part), `accounted`: pairs of a release, as `NoisyRelease.plain` has it, and how many times it was made
- ``failed``: `task`, `attempt`, `reason`, `retry`
- ``cancelled``: `task`, `attempt`

A child ends when its node's end of the pipes closes.
"""

from __future__ import annotations

import base64
import faulthandler
import gc
import importlib
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

from .. import transforms
from ..core import encoding
from ..core.arrays import Arrays
from ..core.ask import SENT, Ask
from ..core.client import Client, Unwanted
from ..core.elementwise import mean
from ..core.randomness import Key
from ..core.task import Failed, Task
from ..errors import AppError, ClientId, UmbelError
from ..store.patience import Patience
from ..wire import messages as m
from ..wire.names import client_id
from ..work import contents
from ..work.executor import EncodedAnswer, Executor
from ..work.intake import told
from ..work.late import Judged
from ..work.processes import device_of

INLINE_BYTES = 1 << 14
"""What is larger goes into a file."""
TELL_SECONDS = 0.2
"""At least so long between two lines that tell of progress."""

Message = dict[str, Any]


_PATIENCE = Patience(None, lambda text: print(text, file=sys.stderr))
"""Where the disk is full a client that has computed something waits for room."""


class Pipes:
    """The two pipes as the child sees them. A thread sees when the node is gone; orders are read by whoever waits for
    them, and while a task is done by whoever asks whether that is `in` what is not wanted any more.
    """

    def __init__(self, orders: int, answers: int) -> None:
        for descriptor in (orders, answers):
            os.set_inheritable(descriptor, False)
        self._orders, self._answers = orders, answers
        self._rest = b""
        self._waiting: deque[Message] = deque()
        self._unwanted: set[str] = set()
        self._reading = threading.Lock()
        self._come = select.poll()
        self._come.register(orders, select.POLLIN)
        if hasattr(os, "register_at_fork"):  # a process that a client forks must not keep the pipes open
            os.register_at_fork(after_in_child=self._let_go)
        threading.Thread(target=self._watch, daemon=True).start()

    def next(self) -> Message:
        """The next message that is not a cancel."""
        with self._reading:
            while not self._waiting:
                self._read()
        return self._waiting.popleft()

    def __contains__(self, task: object) -> bool:
        """Whether a task is not wanted any more."""
        if self._reading.acquire(blocking=False):
            with suppress(OSError):
                while self._come.poll(0):
                    self._read()
            self._reading.release()
        return task in self._unwanted

    def send(self, type: str, **message: Any) -> None:
        """Tell the node something."""
        data = json.dumps({"type": type, **message}).encode() + b"\n"
        while data:
            data = data[os.write(self._answers, data) :]

    def _read(self) -> None:
        data = os.read(self._orders, 1 << 18)
        if not data:
            os._exit(1)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if message["type"] == "cancel":
                self._unwanted.add(message["task"])
                continue
            if message["type"] == "task":
                self._unwanted.discard(message["task"])  # a cancel of an earlier attempt
            self._waiting.append(message)

    def _watch(self) -> None:
        gone = select.poll()
        gone.register(self._orders, 0)
        gone.poll()
        os._exit(1)  # the node is gone, and with it all that anything could be done for

    def _let_go(self) -> None:
        descriptors, self._orders, self._answers = (self._orders, self._answers), -1, -1
        self._come = select.poll()
        for descriptor in descriptors:
            with suppress(OSError):
                os.close(descriptor)


class TaskKeys:
    """The keys that came with the task that is being done."""

    def __init__(self) -> None:
        self.task = self.data = Key.from_seed(0)

    def of_task(self, kind: str, round: int, number: int, client: ClientId) -> Key:
        """The key of the task."""
        return self.task

    def of_data(self, client: ClientId) -> Key:
        """The key of its client's data."""
        return self.data


class KeptState:
    """What the client of the task that is being done has kept."""

    def __init__(self) -> None:
        self.part: Message | None = None

    def get(self, client: ClientId) -> dict[str, Any]:
        """The state; empty where there is none."""
        part = self.part
        if part is None:
            return {}
        data = Path(part["file"]).read_bytes() if "file" in part else base64.b64decode(part["base64"])
        _taken(part)
        return dict(encoding.decode(data))  # copies: a handler may write to what it has kept


class ChildProgram:
    """The clients of one run: takes the node's messages and says its own, without a process and without pipes.

    `beginning` is the message `begin`, whose `client` was loaded from its folder; `unwanted` has the tasks that were
    cancelled.
    """

    def __init__(
        self, client: Client, beginning: Message, *, say: Callable[..., None], unwanted: Container[str]
    ) -> None:
        self._say, self._unwanted = say, unwanted
        self._keys, self._state = TaskKeys(), KeptState()
        self._own: Message = {}
        self._faults: dict[int, str] = {}
        self._asks: set[int] = set()
        self._task, self._told = "", 0.0
        self._handlers = sorted(client.handlers)
        sources = {client_id(name): source for name, source in beginning["sources"].items()}
        self._executor = Executor(
            client,
            sources.__getitem__,
            config=beginning["config"],
            keys=self._keys,
            states=self._state,
            device=device_of(beginning["device"], beginning["slot"]),
            data_cache=beginning["data_cache"],
            on_step=self._step,
        )
        self._deeds = {"ask": self._open, "task": self._do, "forget": self._forget}

    def ready(self) -> None:
        """Say what can be asked of it."""
        known = [list(step) for step in transforms.known_transforms()]
        self._say("ready", handlers=self._handlers, transforms=known, umbel=sys.modules["umbel"].__version__)

    def hear(self, message: Message) -> None:
        """Do what an `ask`, a `task` or a `forget` says."""
        self._deeds[message["type"]](message)

    def release(self) -> None:
        """Let go of what the clients hold: nothing will be asked any more."""
        self._executor.release()

    def _open(self, message: Message) -> None:
        id = message["id"]
        self._asks.add(id)
        try:
            sent = _read(contents.given, message["shared"])
            params = sent.get("params")
            if message["model"] is not None:
                model = _read(contents.arrays, message["model"])
                sent["model"] = model.select(sent["order"]) if "order" in sent else model
            given: dict[str, Any] = {name: sent[name] if name in sent else self._owned(name) for name in SENT}
            steps = transforms.chain_from_spec(json.loads(message["transforms"] or "[]"))
            # Results are folded elsewhere; this fold is never used.
            judged = Judged(steps.parts)
            ask = Ask(clients=(), kind=message["kind"], lane=message["lane"], transforms=judged, fold=mean(), **given)
            self._executor.open(id, ask, message["round"], message["number"], params)
        except UmbelError as error:
            self._faults[id] = _said(error)
        except Exception as error:
            self._faults[id] = f"the node cannot read what is asked: {type(error).__name__}: {told(error)}"

    def _owned(self, name: str) -> Callable[[ClientId], Any]:
        if name == "weight":  # which is said where there is one
            return lambda client: self._own.get(name)
        return lambda client: self._own[name]

    def _do(self, message: Message) -> None:
        names = {"task": message["task"], "attempt": message["attempt"]}
        self._task, self._told = message["task"], time.monotonic()
        try:
            found = self._answer(message)
            if isinstance(found, Failed):
                self._say("failed", **names, reason=found.reason, retry=found.retry, trace=found.trace)
            else:
                self._say("done", **names, **_written(found, message["result"]))
        except Unwanted:
            self._say("cancelled", **names)
        except OSError as error:
            self._say("failed", **names, reason=f"the node's disk: {told(error)}", retry=True)
        except UmbelError as error:
            self._say("failed", **names, reason=_said(error), retry=error.retry)
        except Exception as error:
            traceback.print_exc()
            reason = f"the node failed: {type(error).__name__}: {told(error)}"
            self._say("failed", **names, reason=reason, retry=False)
        finally:
            self._own, self._state.part = {}, None

    def _answer(self, message: Message) -> EncodedAnswer | Failed:
        task = Task(message["task"], message["ask"], client_id(message["client"]), message["attempt"])
        if task.ask in self._faults:
            return Failed(task.id, self._faults[task.ask])
        if task.id in self._unwanted:
            raise Unwanted
        self._keys.task = Key(bytes.fromhex(message["key"]))
        self._keys.data = Key(bytes.fromhex(message["data_key"]))
        self._state.part = message["base"]
        self._own = {} if message["own"] is None else _read(contents.given, message["own"])
        return self._executor.answer(task)

    def _step(self) -> None:
        if self._task in self._unwanted:
            raise Unwanted
        now = time.monotonic()
        if now - self._told >= TELL_SECONDS:
            self._told = now
            self._say("stepped", task=self._task)

    def _forget(self, message: Message) -> None:
        self._asks.difference_update(message["asks"])
        self._faults = {id: reason for id, reason in self._faults.items() if id in self._asks}
        self._executor.forget(self._asks)


def load_client(folder: Path, module: str, attribute: str) -> Client:
    """Import a client from the folder that its archive was unpacked to. Raises `AppError` that says what is wrong."""
    sys.dont_write_bytecode = True  # the folder stays what was approved
    sys.path.insert(0, str(folder))
    try:
        loaded = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        hint = None
        if isinstance(error, ModuleNotFoundError) and error.name not in (None, module):
            hint = f"Install {error.name!r} where the node runs, or take it out of the client."
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(str(folder))]
        place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
        why = f"{type(error).__name__}: {told(error)}{place}"
        raise AppError(f"the client's module {module!r} cannot be imported: {why}", hint=hint) from error
    file = getattr(loaded, "__file__", None)
    if file is None or not Path(file).resolve().is_relative_to(folder.resolve()):
        raise AppError(
            f"the client's module {module!r} is not in its archive, or goes by the name of one that is there already",
            hint="Give the file another name, and pack the client again.",
        )
    try:
        client = attrgetter(attribute)(loaded)
    except AttributeError:
        client = None
    if not isinstance(client, Client):
        raise AppError(f"{attribute!r} in the client's module {module!r} is no umbel.Client, but {client!r:.60}")
    return client


def _written(answered: EncodedAnswer, result: str) -> Message:
    """What is told of an answer, its larger parts in files."""
    update, receipt = answered.update, answered.receipt
    small = _nbytes(update.arrays) + _nbytes(update.aux) <= INLINE_BYTES
    data = contents.in_message(update) if small else b""
    if small and len(data) <= INLINE_BYTES:
        part: Message = _inline(m.Payload(message=data).SerializeToString())
    else:
        sha256, size = _PATIENCE(encoding.save_file, result, update)
        part = {"file": result, "sha256": sha256, "size": size}
    state: Message | None = None
    if answered.state is not None and len(answered.state) > INLINE_BYTES:
        path = Path(f"{result}.state")
        _PATIENCE(path.write_bytes, answered.state)
        state = {"file": str(path)}
    elif answered.state is not None:
        state = _inline(answered.state)
    return {
        "weight": receipt.weight,
        "metrics": dict(receipt.metrics),
        "seconds": receipt.seconds,
        "update": part,
        "state": state,
        "accounted": answered.accounted,
    }


def _inline(data: bytes) -> Message:
    return {"base64": base64.b64encode(data).decode()}


def _nbytes(arrays: Mapping[str, Any]) -> int:
    return arrays.nbytes if isinstance(arrays, Arrays) else sum(array.nbytes for array in arrays.values())


def _read(read: Callable[[m.Payload, Path | None], Any], part: Message) -> Any:
    """What a payload has, or its file, whose arrays are mapped then."""
    payload = m.Payload() if "file" in part else m.Payload.FromString(base64.b64decode(part["base64"]))
    found = read(payload, Path(part["file"]) if "file" in part else None)
    _taken(part)
    return found


def _taken(part: Message) -> None:
    """What was given is read, or mapped: it needs its name no more."""
    if part.get("given"):
        Path(part["file"]).unlink(missing_ok=True)


def _said(error: UmbelError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message


def main(orders: int, answers: int) -> None:
    """Be a child; the two descriptors are those of the pipes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; only the node decides
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    pipes = Pipes(orders, answers)
    beginning = pipes.next()
    if beginning["type"] != "begin":
        return
    sys.argv[:] = [beginning["module"]]
    try:
        client = load_client(Path(beginning["folder"]), beginning["module"], beginning["attribute"])
        program = ChildProgram(client, beginning, say=pipes.send, unwanted=pipes)
    except UmbelError as error:
        traceback.print_exception(error)
        pipes.send("refused", reason=_said(error))
        return
    gc.collect()
    gc.freeze()  # what the client's modules made stays
    program.ready()
    while (message := pipes.next())["type"] != "end":
        program.hear(message)
        sys.stdout.flush()
        sys.stderr.flush()
    program.release()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
