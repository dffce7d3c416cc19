"""Hugging Face transformers: a model's weights, or those that are fine-tuned alone, and training by its Trainer.

Used as ``umbel.transformers``; needs transformers, accelerate and PyTorch: ``pip install "umbel[transformers]"``. A
PreTrainedModel is a module of PyTorch: `arrays` and `load_` are those of `umbel.torch`. Have the transport and the
clients take fewer weights by freezing the others, or by adapters of PEFT, and ``trainable_only=True``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import torch as adapter
from .core.native import NativeModel, missing_package
from .core.update import Update
from .errors import AppError
from .torch import arrays, load_

try:
    import transformers
except ModuleNotFoundError as error:
    raise missing_package(error, "transformers", "transformers") from error

if TYPE_CHECKING:
    from .core.client import Context

__all__ = ["arrays", "fit", "load_", "model"]


def model(
    make: Callable[[], Any], *, tokenizer: Any = None, personal: Sequence[str] = (), trainable_only: bool = False
) -> NativeModel:
    """What `make` makes, such as ``AutoModelForSequenceClassification.from_pretrained(...)``, as an app's model.

    A path without an ending becomes a folder that ``from_pretrained`` reads, with the `tokenizer` in it; the others are
    what `umbel.torch.model` writes. With `trainable_only` all that is frozen comes from `make`, wherever it runs.
    """
    plain = adapter.model(make, personal=personal, trainable_only=trainable_only)
    files = {ending: write for ending, write in plain.formats.items() if ending != ".onnx"}
    return NativeModel(make, plain.arrays, plain.load, {"": partial(_write_folder, tokenizer=tokenizer), **files})


def fit(
    net: Any,
    data: Any,
    ctx: Context,
    *,
    lr: float | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    trainable_only: bool = False,
    keep_optimizer: bool = False,
    trainer: type[Any] | None = None,
    collator: Any = None,
    **settings: Any,
) -> Update:
    """Fine-tune a model on a client's data set by a Trainer, and give the update to return.

    `data` is a data set with a length whose items are what the model takes, with ``labels``. `lr`, `epochs` (1) and
    `batch` (32; 0 for all data at once) come from `ctx.config` where they are not given; the rate is constant, unless
    `settings`, those of ``TrainingArguments``, say otherwise. `trainer` is a class of Trainer of one's own,
    `collator` makes batches of items. Nothing is written or reported, and random numbers are the task's.
    `keep_optimizer` has the client go on with its optimizer's state, which is in ``ctx.state``.

    Corrections that add to the gradient are applied, after clipping, others are an `UnusedCorrection`. The update has
    the weight of as many examples, of `net` all weights or, with `trainable_only`, those that are trained, and the
    metrics `loss`, `steps` and `lr`.
    """
    config, rows = ctx.config, len(data)
    lr = config.get("lr") if lr is None else lr
    if lr is None:
        raise AppError("fit needs a learning rate", hint="Pass lr=5e-5, or put it into the app's config: {'lr': 5e-5}.")
    if not rows:
        return Update(arrays(net, trainable_only=trainable_only), weight=0.0)
    where = adapter.device(ctx).type
    with tempfile.TemporaryDirectory() as folder:
        given: dict[str, Any] = {
            "output_dir": folder, "report_to": [], "save_strategy": "no", "logging_strategy": "no",
            "disable_tqdm": True, "use_cpu": where == "cpu", "learning_rate": lr, "lr_scheduler_type": "constant",
            "num_train_epochs": float(config.get("epochs", 1) if epochs is None else epochs),
            "per_device_train_batch_size": int(config.get("batch", 32) if batch is None else batch) or max(1, rows),
            "seed": ctx.key.derive("transformers").integer(31), "dataloader_pin_memory": where == "cuda",
        }  # fmt: skip
        arguments = transformers.TrainingArguments(**{**given, **settings})
        steps = _Steps(net, ctx, keep_optimizer)
        made = (trainer or transformers.Trainer)(
            model=net, args=arguments, train_dataset=data, data_collator=collator, callbacks=[steps]
        )
        made.remove_callback(transformers.PrinterCallback)
        told = made.train()
    metrics = {"loss": float(told.training_loss), "steps": float(told.global_step), "lr": float(lr)}
    return Update(arrays(net.to("cpu"), trainable_only=trainable_only), weight=rows, metrics=metrics)


class _Steps(transformers.TrainerCallback):  # type: ignore[misc]
    """What a task has a Trainer do beside: corrections, showing progress, keeping the optimizer's state."""

    def __init__(self, net: Any, ctx: Context, keeps: bool) -> None:
        self._net, self._ctx, self._keeps = net, ctx, keeps

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self._keeps:
            adapter.load_optimizer_(_inner(more["optimizer"]), self._ctx.state.get("optimizer"))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        adapter.correct_gradients_(self._net, self._ctx)

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self._ctx.step()

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self._keeps:
            self._ctx.state["optimizer"] = _inner(more["optimizer"]).state_dict()


def _inner(optimizer: Any) -> Any:
    """The optimizer that accelerate has wrapped."""
    return getattr(optimizer, "optimizer", optimizer)


def _write_folder(net: Any, path: Path, tokenizer: Any) -> None:
    net.save_pretrained(path)
    if tokenizer is not None:
        tokenizer.save_pretrained(path)
