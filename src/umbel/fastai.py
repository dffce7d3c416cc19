"""fastai: a Learner's weights as arrays and back, and local training by its loop; tables above all.

Used as ``umbel.fastai``; needs fastai: ``pip install "umbel[fastai]"``. What a Learner learns of the data before it
trains, such as the categories and means of ``TabularPandas``, has to be the same at all clients: give categories their
values and scale columns by known numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from . import torch as adapter
from .core.arrays import Array, Arrays
from .core.native import NativeModel, missing_package
from .core.update import Update
from .errors import AppError
from .torch.native import with_tensors

try:
    from fastai.callback.core import Callback, CancelValidException
except ModuleNotFoundError as error:
    raise missing_package(error, "fastai", "fastai") from error

if TYPE_CHECKING:
    from .core.client import Context

Learner = TypeVar("Learner")

__all__ = ["arrays", "fit", "load_", "model"]


def arrays(learner: Any, *, personal: Sequence[str] = (), trainable_only: bool = False) -> Arrays:
    """The weights of a Learner's model, or of a module: as `umbel.torch.arrays` has them."""
    return adapter.arrays(_net(learner), personal=personal, trainable_only=trainable_only)


def load_(learner: Learner, model: Mapping[str, Array], *, strict: bool = True) -> Learner:
    """Copy a model into a Learner, in place, and return it: as `umbel.torch.load_`."""
    adapter.load_(_net(learner), model, strict=strict)
    return learner


def model(make: Callable[[], Any], *, personal: Sequence[str] = (), trainable_only: bool = False) -> NativeModel:
    """The Learner that `make` makes as an app's model; it is written as ``.pkl``, which ``load_learner`` reads, as
    ``.pt`` (the ``state_dict``) and as ``.safetensors``.
    """
    plain = adapter.model(lambda: _net(make()))
    files = {e: partial(_write_net, write=plain.formats[e]) for e in (".pt", ".safetensors")}
    return NativeModel(
        make,
        partial(arrays, personal=personal, trainable_only=trainable_only),
        partial(load_, strict=not trainable_only),
        {".pkl": lambda learner, path: learner.export(Path(path).resolve()), **files},
    )


def fit(
    learner: Any,
    ctx: Context,
    *,
    lr: float | None = None,
    epochs: int | None = None,
    keep_optimizer: bool = False,
    **options: Any,
) -> Update:
    """Train a Learner on its own training data, on `ctx.device`, and give the update to return.

    `lr` (else the Learner's; a slice for groups of layers) and `epochs` (1) come from `ctx.config` where they are not
    given; `options` go to ``learner.fit``. There are no bars, no lines, and no validation. `keep_optimizer` has the
    client go on with its optimizer's state, which is in ``ctx.state``.

    Corrections that add to the gradient are applied, others are an `UnusedCorrection`. The update has the weight of as
    many examples as there are to train on, and the metrics `loss`, `steps` and `lr`.
    """
    rows = len(learner.dls.train_ds)
    if not rows:
        return Update(arrays(learner), weight=0.0)
    if not len(learner.dls.train):
        raise AppError(
            f"a batch is larger than the {rows} examples that there are, and fastai leaves out the rest",
            hint="Make the data loaders with a smaller batch: bs=min(64, len(table)).",
        )
    lr = ctx.config.get("lr", learner.lr) if lr is None else lr
    epochs = int(ctx.config.get("epochs", 1) if epochs is None else epochs)
    learner.dls.rng.seed(ctx.key.derive("fastai").integer(31))  # a Learner may have been another task's before
    learner.dls.to(adapter.device(ctx))
    learner.model.to(adapter.device(ctx))
    steps = _Steps(ctx, keep_optimizer)
    with learner.no_bar(), learner.no_logging():
        learner.fit(epochs, lr=lr, **{"reset_opt": True, **options, "cbs": [*(options.get("cbs") or ()), steps]})
    learner.model.to("cpu")
    return Update(arrays(learner), weight=rows, metrics={**steps.metrics, "lr": float(getattr(lr, "stop", lr))})


class _Steps(Callback):  # type: ignore[misc]
    """What a task has a Learner do beside: corrections, showing progress, keeping the optimizer's state."""

    order = 70  # after all that works on gradients

    def __init__(self, ctx: Context, keeps: bool) -> None:
        super().__init__()
        self.ctx, self.keeps = ctx, keeps
        self.metrics: dict[str, float] = {"loss": 0.0, "steps": 0.0}

    def before_fit(self) -> None:
        kept = self.ctx.state.get("optimizer") if self.keeps else None
        if not kept:
            return
        now = self.learn.opt.state_dict()
        if len(kept) != len(now["state"]):
            raise AppError("the optimizer's state is of other weights than this one's", hint="Has the model changed?")
        self.learn.opt.load_state_dict({**now, "state": with_tensors(kept)})  # settings stay those of the Learner

    def before_validate(self) -> None:
        raise CancelValidException

    def before_step(self) -> None:
        adapter.correct_gradients_(self.learn.model, self.ctx)

    def after_batch(self) -> None:
        if self.training:
            self.metrics["steps"] += 1
            self.metrics["loss"] += (float(self.loss.detach()) - self.metrics["loss"]) / self.metrics["steps"]
            self.ctx.step()

    def after_fit(self) -> None:
        if self.keeps:
            self.ctx.state["optimizer"] = self.learn.opt.state_dict()["state"]


def _net(learner: Any) -> Any:
    return getattr(learner, "model", learner)


def _write_net(learner: Any, path: Path, write: Callable[[Any, Path], None]) -> None:
    write(_net(learner), path)
