"""Lightning: the arrays of a LightningModule, and local training by a quiet Trainer.

Used as ``umbel.lightning``; needs Lightning: ``pip install "umbel[lightning]"``. A LightningModule is a module of
PyTorch: `arrays` and `load_` are those of `umbel.torch`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import torch as adapter
from .core.native import NativeModel, missing_package
from .core.update import Update
from .errors import AppError
from .torch import arrays, load_
from .torch.batches import rows_of
from .torch.training import plain_steps

try:
    import lightning
except ModuleNotFoundError as error:
    raise missing_package(error, "lightning", "lightning") from error

if TYPE_CHECKING:
    from .core.client import Context

__all__ = ["arrays", "fit", "load_", "model"]

QUIET = {
    "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    "num_sanity_val_steps": 0, "limit_val_batches": 0,
}  # fmt: skip


def model(
    make: Callable[[], Any], *, personal: Sequence[str] = (), trainable_only: bool = False, example: Any = None
) -> NativeModel:
    """What `make` makes as an app's model; it is written as ``.ckpt``, which ``load_from_checkpoint`` reads, and as
    what `umbel.torch.model` writes.
    """
    plain = adapter.model(make, personal=personal, trainable_only=trainable_only, example=example)
    return NativeModel(make, plain.arrays, plain.load, {".ckpt": _write_checkpoint, **plain.formats})


def fit(
    module: Any,
    loader: Any,
    ctx: Context,
    *,
    epochs: int | None = None,
    keep_optimizer: bool = False,
    **trainer: Any,
) -> Update:
    """Train a LightningModule on a client's loader, or a LightningDataModule, and give the update to return.

    A Trainer on `ctx.device`, without logger, files, bars and validation, goes through the data `epochs` times (1, also
    from `ctx.config`); `trainer` are further settings, such as ``precision="bf16-mixed"``. `keep_optimizer` has the
    client go on with the state of its optimizers, which is in ``ctx.state``.

    Corrections that add to the gradient are applied, others are an `UnusedCorrection`. The update has the weight of as
    many examples as an epoch has; its metrics are `loss`, `steps`, `lr` of the first optimizer, and what the module
    logged.
    """
    steps = _Steps(ctx, keep_optimizer)
    epochs = int(ctx.config.get("epochs", 1) if epochs is None else epochs)
    settings = {**QUIET, "max_epochs": epochs, **_placed(ctx.device), **trainer}
    settings["callbacks"] = [*(trainer.get("callbacks") or ()), steps]
    with _quiet():
        made = lightning.Trainer(**settings)
        if isinstance(loader, lightning.LightningDataModule):
            made.fit(module, datamodule=loader)
        else:
            made.fit(module, loader)
    module.to("cpu")
    told = {name: float(value) for name, value in made.callback_metrics.items()}
    return Update(arrays(module), weight=steps.rows / max(1, epochs), metrics={**told, **steps.metrics})


class _Steps(lightning.Callback):  # type: ignore[misc]
    """What a task has a Trainer do beside: corrections, showing progress, keeping the state of optimizers."""

    def __init__(self, ctx: Context, keeps: bool) -> None:
        self._ctx, self._keeps, self.rows = ctx, keeps, 0
        self.metrics: dict[str, float] = {"steps": 0.0}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self._ctx.correction is not None and not pl_module.automatic_optimization:
            raise AppError(
                "the strategy corrects gradients, and the module takes its own steps",
                hint="Call umbel.torch.correct_gradients_(self, ctx) in it, before each step.",
            )
        if trainer.optimizers:
            self.metrics["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        for optimizer, kept in zip(trainer.optimizers, self._ctx.state.get("optimizers", ()), strict=False):
            if self._keeps:
                adapter.load_optimizer_(optimizer, kept)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        adapter.correct_gradients_(pl_module, self._ctx)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        found = outputs.get("loss") if isinstance(outputs, dict) else outputs
        self.metrics["steps"] += 1
        if found is not None:
            before = self.metrics.setdefault("loss", 0.0)
            self.metrics["loss"] += (float(found) - before) / self.metrics["steps"]
        self.rows += rows_of(batch)
        self._ctx.step()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self._ctx.correction is not None and "steps" in self._ctx.correction.reports and trainer.optimizers:
            self.metrics["steps"] = plain_steps(int(self.metrics["steps"]), trainer.optimizers[0].param_groups[0])
        if self._keeps:
            self._ctx.state["optimizers"] = [optimizer.state_dict() for optimizer in trainer.optimizers]


def _placed(device: str) -> dict[str, Any]:
    """A Trainer's settings for one device."""
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return {"accelerator": "cpu", "devices": 1}
    return {"accelerator": {"cuda": "gpu"}.get(kind, kind), "devices": [int(index or 0)] if kind == "cuda" else 1}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Lightning says of the machine: a task is one of thousands, and has one processor."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*(num_workers|logging interval|val_dataloader|GPU).*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _write_checkpoint(module: Any, path: Path) -> None:
    with _quiet():
        trainer = lightning.Trainer(**QUIET, accelerator="cpu", devices=1, max_epochs=0)
        trainer.strategy.connect(module)
        trainer.save_checkpoint(path)
