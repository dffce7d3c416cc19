"""A script's side: the loop over its tasks, and its answers; the script alone where nobody hosts it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.arrays import Arrays
from ..core.trees import keepable
from ..errors import AppError, ClientId
from ..work.seeding import note_generators, seed_all
from ..work.vitals import die_with
from . import line
from .natives import adapter_of


@dataclass(kw_only=True)
class LocalTask:
    """One task as a script sees it; alone, a script has one of its own making.

    - `model`: the script's own, with the global model loaded into it.
    - `client`, `round`, `config`, `source`, `device`, `seed`: who works on what, where. The global random generators
      are seeded by `seed` when the task comes; alone it is None, and nothing is seeded.
    - `state`: a dictionary that the client finds again at its next task, in whatever process that is: arrays, numbers,
      text and containers of them; tensors come back as arrays. What a script keeps elsewhere is gone when its process
      is.
    """

    model: Any
    client: ClientId | None = None
    round: int = 1
    config: Mapping[str, Any] = field(default_factory=dict)
    source: Any = None
    device: str = "cpu"
    seed: int | None = None
    state: dict[str, Any] = field(default_factory=dict)
    _kind: str = "train"
    _looked: bool = False

    @property
    def kind(self) -> str:
        """What is asked: ``"train"``, or ``"evaluate"``, whose answer has metrics alone."""
        self._looked = True
        return self._kind


class Joined:
    """A script's end of the socket to its host."""

    def __init__(self, descriptor: int) -> None:
        die_with()  # where that cannot be had, it ends when its task is done
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)
        if hasattr(os, "register_at_fork"):  # a process that the script forks must not keep it open
            os.register_at_fork(after_in_child=self._socket.close)
        self._inbox = line.Inbox()
        self._task: LocalTask | None = None
        self._personal: tuple[str, ...] = ()
        self._answer: line.Message | None = None
        self._adapter: Any = None
        self.source = self._receive()["source"]

    def tasks(self, native: Any, adapter: Any) -> Iterator[LocalTask]:
        """The tasks as they come, until the process ends."""
        self._adapter = adapter
        note_generators()
        while True:
            self._settle()
            said = self._receive()
            if said["says"] == "model":
                self._send({"says": "model", "arrays": self._arrays(native)})
                continue
            self._task = self._begun(said, native)
            yield self._task

    def answer(self, model: Any, examples: Any, metrics: Mapping[str, Any]) -> None:
        """Answer the task; what is said is sent once the loop comes round."""
        task = self._task
        if task is None:
            raise AppError("fl.answer(...) is called where there is no task", hint="Call it in the loop of fl.tasks.")
        if self._answer is not None:
            raise AppError(
                "fl.answer(...) is called twice for one task", hint="Call it once, at the end of the loop's body."
            )
        named = {name: _number(name, value) for name, value in metrics.items()}
        answer = {"says": "answer", "examples": _number("examples", examples), "metrics": named}
        if task._kind == "evaluate":
            if not task._looked:
                raise AppError(
                    "an evaluation was answered by a script that never looked at task.kind: it has trained",
                    hint='Train under `if task.kind == "train":`, or have it only train: leave evaluate=True out of '
                    "umbel.script.client(...).",
                )
        else:
            arrays = self._arrays(task.model if model is None else model)
            own = [name for name in self._personal if name in arrays]
            if own:
                task.state["personal"] = {name: arrays[name] for name in own}
                arrays = arrays.select(name for name in arrays if name not in own)
            answer["arrays"] = arrays
        self._answer = answer

    def _begun(self, said: line.Message, native: Any) -> LocalTask:
        model, state = said["model"], said["state"]
        self._personal = said["personal"]
        if self._personal:
            model = {**self._arrays(native), **model, **state.get("personal", {})}
        seed_all(said["seed"])
        named = {name: said[name] for name in ("client", "round", "config", "device", "seed")}
        native = self._adapter.load_(native, model)
        return LocalTask(model=native, source=self.source, state=state, _kind=said["kind"], **named)

    def _arrays(self, native: Any) -> Arrays:
        found = self._adapter.arrays(native)
        return found if isinstance(found, Arrays) else Arrays(found)

    def _settle(self) -> None:
        """Send what the script has answered to the task that it had."""
        if self._task is None:
            return
        if self._answer is None:
            raise AppError(
                "the loop came round, and its task was not answered",
                hint="Call fl.answer(examples=...) at the end of the loop's body.",
            )
        answer, state = self._answer, self._task.state
        self._task = self._answer = None
        self._send({**answer, "state": keepable(state)})

    def _send(self, message: line.Message) -> None:
        for piece in line.packed(message):
            self._socket.sendall(piece)

    def _receive(self) -> line.Message:
        try:
            while (message := self._inbox.take(self._socket)) is None:
                pass
        except (EOFError, ConnectionError):
            raise SystemExit(0) from None  # there is nothing more to do
        return message


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # PyTorch's, of a tensor with several numbers
        raise AppError(
            f"fl.answer({name}=...) got a {type(value).__name__}, which is not one number",
            hint="`examples` and metrics are single numbers: of an array give its mean, say.",
        ) from None


def _joined() -> Joined | None:
    descriptor = os.environ.pop(line.VARIABLE, None)
    return None if descriptor is None else Joined(int(descriptor))


_host = _joined()


def tasks(model: Any, *, adapter: Any = None, alone: int = 1) -> Iterator[LocalTask]:
    """What there is to do: ``for task in fl.tasks(net):`` around a script's training, with `fl.answer` at its end.

    `model` is the script's own, as it is to begin with: a PyTorch module, a Keras model, a scikit-learn estimator, a
    dictionary of arrays or a tree of them; of anything else `adapter` has ``arrays(model)`` and ``load_(model,
    arrays)``. Before each task the global model is loaded into it, in place where that can be, and the global random
    generators are seeded.

    A script that nobody hosts has so many tasks as `alone` says, and its model stays as it is. One that is hosted has
    as many as come, and ends with its last one: what stands after the loop is done by a script alone. Raises `AppError`
    for a model that it does not know, and for a task that was not answered.
    """
    found = adapter_of(model) if adapter is None else adapter
    if _host is None:
        return (LocalTask(model=model, round=number) for number in range(1, alone + 1))
    return _host.tasks(model, found)


def answer(model: Any = None, *, examples: float = 1.0, **metrics: Any) -> None:
    """Answer the task that the loop is at: with the script's model as it is now, how many `examples` it was trained on,
    and named numbers. An evaluation's answer has the numbers alone. Alone it does nothing.

    `model` is given where it is another object than the one that `fl.tasks` got, such as a tree of JAX's arrays. Raises
    `AppError` for a second answer.
    """
    if _host is not None:
        _host.answer(model, examples, metrics)


def source(otherwise: Any = None) -> Any:
    """Where this client's data is, as its holder says; `otherwise` for a script alone. In a simulation that names its
    clients by number: ``{"index": 3, "count": 10}``.
    """
    return otherwise if _host is None else _host.source
