"""Callbacks by which a trainer's own loop is that over tasks: every so many epochs of its training are one task.

The training has to last as long as the run, and the trainer's optimiser goes on from task to task in its process. A
framework is imported by whoever asks for its callback.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from ..errors import AppError
from . import loop


class EpochTasks:
    """Turns the epochs of a training into tasks, as a trainer's callback tells of them; one may be `running`."""

    def __init__(self, epochs: int, examples: int | None) -> None:
        self._epochs, self._examples, self._left = epochs, examples, 0
        self.running = False
        self._tasks: Iterator[loop.LocalTask] | None = None

    def begins(self, model: Any) -> None:
        """An epoch begins: the first of a task waits for that, and loads the global model."""
        self.running = True
        if self._left == 0:
            self._left = self._epochs
            self._tasks = loop.tasks(model) if self._tasks is None else self._tasks
            task = next(self._tasks, None)
            if task is not None and task.kind != "train":
                raise AppError("a callback answers no evaluations", hint="Leave evaluate=True out of the client.")

    def ends(self, metrics: Mapping[str, Any], examples: int | None) -> None:
        """An epoch ends: with the last of a task that is answered."""
        self.running = False
        self._left -= 1
        if self._left == 0:
            found = self._examples or examples
            if found is None:
                raise AppError("nobody says how many examples there are", hint="Pass the callback examples=len(data).")
            loop.answer(examples=found, **_numbers(metrics))

    def over(self) -> None:
        """The training ends; a script that is hosted does, too. Raises `AppError` where there is another task."""
        if self._tasks is not None and next(self._tasks, None) is not None:
            raise AppError(
                "the training is over, and there is another task",
                hint="Let it go on for more epochs: as many as all rounds of a run have together.",
            )


def lightning_callback(*, epochs: int = 1, examples: int | None = None) -> Any:
    """A callback for a Lightning ``Trainer``: every `epochs` epochs are one task, answered with the trainer's
    ``callback_metrics``. `examples` is the length of the training data where it is not given.
    """
    turns, callback = EpochTasks(epochs, examples), import_module("lightning.pytorch.callbacks").Callback()
    callback.on_train_epoch_start = lambda trainer, module: turns.begins(module)
    callback.on_train_epoch_end = lambda trainer, module: turns.ends(
        trainer.callback_metrics, _length(trainer.train_dataloader)
    )
    callback.on_train_end = lambda trainer, module: turns.over()
    return callback


def transformers_callback(*, epochs: int = 1, examples: int | None = None) -> Any:
    """A callback for the ``Trainer`` of Hugging Face transformers: every `epochs` epochs are one task, answered with
    the loss that was logged last, and what stands beside it. `examples` is the length of the training data where it is
    not given.
    """
    turns, callback = EpochTasks(epochs, examples), import_module("transformers").TrainerCallback()

    def begins(args: Any, state: Any, control: Any, **given: Any) -> None:
        settles(state, given)
        turns.begins(given["model"])

    def settles(state: Any, given: Mapping[str, Any]) -> None:
        if turns.running:  # what an epoch has come to is logged after its end
            logged: Mapping[str, Any] = next((log for log in reversed(state.log_history) if "loss" in log), {})
            turns.ends(logged, _length(given["train_dataloader"]))

    def over(args: Any, state: Any, control: Any, **given: Any) -> None:
        settles(state, given)
        turns.over()

    callback.on_epoch_begin, callback.on_train_end = begins, over
    return callback


def keras_callback(*, examples: int, epochs: int = 1) -> Any:
    """A callback for ``fit`` of Keras: every `epochs` epochs are one task, answered with the epoch's logs. Keras does
    not tell how many `examples` there are.
    """
    turns, callback = EpochTasks(epochs, examples), import_module("keras.callbacks").Callback()
    callback.on_epoch_begin = lambda epoch, logs=None: turns.begins(callback.model)
    callback.on_epoch_end = lambda epoch, logs=None: turns.ends(logs or {}, None)
    callback.on_train_end = lambda logs=None: turns.over()
    return callback


def _length(loader: Any) -> int | None:
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        return None


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Those of a trainer's metrics that are numbers."""
    found = {}
    for name, value in metrics.items():
        try:
            found[name] = float(value)
        except (TypeError, ValueError):
            continue
    return found
