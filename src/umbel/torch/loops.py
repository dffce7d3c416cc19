"""Local training as strategies want it done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..core.correction import Correction
from ..core.update import Update
from ..errors import AppError, UnusedCorrection
from .batches import Batches, rows_of
from .generators import FeatureGenerator
from .modules import arrays, plain
from .personal import load_personal_
from .procedures import PROCEDURES, UNCORRECTED, WITH_MODELS
from .seeds import device
from .training import PRECISIONS, Loss, MakeOptimizer, Training, classified, in_precision

if TYPE_CHECKING:
    from ..core.client import Context
    from ..privacy.example import ExamplePrivacy


def fit(
    net: nn.Module,
    data: Any,
    ctx: Context,
    *,
    loss: Loss | None = None,
    lr: float | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    optimizer: MakeOptimizer | None = None,
    features: Callable[[nn.Module, Any], Tensor] | None = None,
    generator: FeatureGenerator | None = None,
    precision: str | None = None,
    keep_optimizer: bool = False,
    privacy: ExamplePrivacy | None = None,
) -> Update:
    """Train a module on a client's data, as the strategy wants it done, and give the update to return.

    `net` has the model loaded (with personal arrays `load_(net, model, strict=False)`; what the client keeps of those
    is put in here). `data` is ``(x, y)``, a data set or a `DataLoader`. `lr`, `epochs` (1) and `batch` (32; 0 for all
    data at once) are taken from `ctx.config` where they are not given. ``loss(net, batch)`` gives the mean loss of a
    batch, by default cross-entropy on ``(x, y)``; `optimizer` makes an optimizer of parameters, by default plain SGD,
    for which the corrections were made. `features(net, batch)` gives what MOON and FedProto compare;
    `generator` is FedGen's. `precision`, also from `ctx.config`, is ``"float32"``, or for mixed precision (autocast on
    `ctx.device`; the weights stay in float32) ``"bfloat16"`` or ``"float16"``, whose gradients are scaled.
    `keep_optimizer` has the client go on with its optimizer's moments at its next task; they are in `ctx.state`.
    `privacy`, an `umbel.privacy.ExamplePrivacy`, hides each example of the data (needs opacus); `batch` is then how
    many a step takes on average, the weight is what `privacy` says, and there is no loss among the metrics.

    All corrections are applied, and procedures done: see `umbel.Correction`. The update has the weight of as many
    examples, and the metrics `loss`, `steps`, `lr`, and `initial_loss` where it is wanted. For a strategy that goes by
    steps, those of SGD with momentum are as many as plain ones that lead as far.
    """
    offered, config = ctx.correction, ctx.config
    correction = Correction() if offered is None else offered.take()
    lr = config.get("lr") if lr is None else lr
    if lr is None:
        raise AppError("fit needs a learning rate", hint="Pass lr=0.1, or put it into the app's config: {'lr': 0.1}.")
    size = config.get("batch", 32) if batch is None else batch
    epochs = int(config.get("epochs", 1) if epochs is None else epochs)
    if size < 0 or epochs < 0:
        raise AppError(f"fit takes a batch and epochs of at least 0, not {size} and {epochs}")
    where = device(ctx)
    net.to(where)
    if ctx.personal:
        load_personal_(net, ctx)
    precision = config.get("precision", "float32") if precision is None else precision
    _check_precision(precision, correction, keep_optimizer)
    kind: Callable[..., Training] = Training
    if privacy is not None:
        from .private import PrivateTraining

        _check_private(data, precision)
        kind = partial(PrivateTraining, privacy=privacy, size=size or privacy.examples)
    scaler = torch.amp.GradScaler(where.type, init_scale=2.0**10) if precision == "float16" else None
    batches, loss = Batches(data, size or None, where), in_precision(loss or classified(), precision, where)
    training = kind(
        net, batches, ctx, correction, loss, lr, epochs, optimizer, features, generator, scaler, keep_optimizer
    )
    if "initial_loss" in correction.reports:
        training.metrics["initial_loss"] = training.mean_loss()
    if correction.procedure is None or privacy is not None:
        training.train()
    elif correction.procedure in PROCEDURES:
        _check_procedure(correction, ctx)
        PROCEDURES[correction.procedure](training, correction.settings)
    else:
        raise AppError(
            f"fit does not know the procedure {correction.procedure!r} that the strategy wants",
            hint=f"It knows {', '.join(sorted(PROCEDURES))}. For others write the loop by hand: see umbel.Correction.",
        )
    if ctx.personal:
        ctx.state["personal"] = {n: array for n, array in arrays(net).items() if n in ctx.personal}
    answer = arrays(net) if training.answer is None else training.answer
    weight = batches.examples if privacy is None else privacy.examples
    return Update(answer, weight=weight, metrics=training.metrics, aux=training.aux)


def _check_private(data: Any, precision: Any) -> None:
    """Raise `AppError` for what does not go together with hiding examples."""
    if isinstance(data, DataLoader):
        raise AppError(
            "under example privacy batches are drawn by dice, and a DataLoader draws its own",
            hint="Give its data set: loader.dataset.",
        )
    if precision != "float32":
        raise AppError(f"example privacy needs precision='float32', not {precision!r}: a bound has to be kept")


def _check_precision(precision: Any, correction: Correction, keeps: bool) -> None:
    """Raise `AppError` for what does not go together with how the strategy has clients train."""
    if precision not in PRECISIONS:
        raise AppError(f"fit does not know the precision {precision!r}", hint=f"It knows {', '.join(PRECISIONS)}.")
    own = correction.procedure is not None
    if precision == "float16" and (own or correction.control or correction.perturbation is not None):
        raise AppError(
            "float16 needs gradients that are scaled, and this strategy has clients take others than those of a step",
            hint='Take precision="bfloat16", which needs no scaling.',
        )
    if keeps and own:
        raise AppError(f"the procedure {correction.procedure!r} has optimizers of its own, which are not kept")


def _check_procedure(correction: Correction, ctx: Context) -> None:
    """Raise `UnusedCorrection` for what a procedure does not apply, or does not go together with."""
    name, plain = correction.procedure, Correction(procedure=correction.procedure, settings=correction.settings)
    if name in UNCORRECTED and replace(correction, reports=()) != plain:
        raise UnusedCorrection(
            f"the procedure {name!r} has its own steps, to which the corrections of another transform are not applied",
            hint="Leave out the transform, or take another strategy.",
        )
    if name in WITH_MODELS and ctx.personal:
        raise UnusedCorrection(
            f"the procedure {name!r} keeps a whole model of the client's own, and parts of this one are personal, too",
            hint="Have no personal arrays, or take FedPer or FedRep.",
        )


def gradient(net: nn.Module, data: Any, ctx: Context, *, loss: Loss | None = None, batch: int | None = None) -> Update:
    """The gradient of the loss over all of a client's data, as an answer to the query `gradient`; see `fit`.

    Buffers are those that the module has afterwards.
    """
    size = ctx.config.get("batch", 32) if batch is None else batch
    net.to(device(ctx)).zero_grad()
    batches = Batches(data, size or None, device(ctx))
    seen = 0
    for each in batches:
        torch.autograd.backward((loss or classified())(net, each) * (rows_of(each) / batches.examples))
        seen += rows_of(each)
        ctx.step()
    found = arrays(net)
    slopes = {
        n: _slope(w) for n, w in plain(net).named_parameters(remove_duplicate=False) if found.roles[n] != "buffer"
    }
    if 0 < seen != batches.examples:  # a loader may leave out the last batch, or draw rows more than once
        slopes = {n: slope * (batches.examples / seen) for n, slope in slopes.items()}
    return Update(found.replace(slopes), weight=seen, delta=True)


def _slope(weight: nn.Parameter) -> Any:
    slope = torch.zeros_like(weight) if weight.grad is None else weight.grad
    slope = slope.detach().to("cpu")
    return slope.float().numpy() if slope.dtype in (torch.float16, torch.bfloat16) else slope.numpy()
