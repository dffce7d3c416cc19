"""Where to compute, and with which random numbers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from ..errors import AppError


class Placed(Protocol):
    """A context that says where to compute, such as ``"cpu"`` or ``"cuda:0"``."""

    @property
    def device(self) -> str: ...


def seed(value: int) -> None:
    """Seed torch's global generators for one task, those of accelerators included; `value` counts modulo 2**64."""
    value %= 1 << 64
    if _cuda_is_initialized():
        torch.default_generator.manual_seed(value)
        torch.cuda.manual_seed_all(value)
    elif _has_accelerator():
        # Queues the seed where CUDA is not initialised yet: the first task to use it must not differ from later ones.
        torch.manual_seed(value)
    else:
        # 1 us, where torch.manual_seed takes 100 us to visit every kind of device.
        torch.default_generator.manual_seed(value)


def save_rng() -> list[Tensor]:
    """The states of torch's global generators, for `restore_rng`: the CPU's, then each CUDA device's if initialised."""
    cuda = torch.cuda.get_rng_state_all() if _cuda_is_initialized() else []
    return [torch.default_generator.get_state(), *cuda]


def restore_rng(state: Sequence[Tensor]) -> None:
    """Set torch's global generators to what `save_rng` returned."""
    torch.default_generator.set_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state_all(state[1:])


def deterministic(wanted: bool = True) -> None:
    """Have torch take algorithms alone that give the same bits each time; an operation that has none is an error.

    On a CPU that is so anyway: each worker has one thread, and each task its seed. On a GPU call it where the client's
    module is imported, before CUDA is used; matrices are then multiplied in full float32, too, and convolutions are not
    timed first. It costs speed. Bits of a CPU and a GPU, or of two kinds of GPU, differ all the same.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA is first used
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not wanted


def device(ctx: Placed) -> torch.device:
    """Where this task is to compute, from `ctx.device`."""
    try:
        return torch.device(ctx.device)
    except (RuntimeError, TypeError) as error:
        hint = "Use a name such as 'cpu', 'cuda' or 'cuda:0'."
        raise AppError(f"torch does not know the device {ctx.device!r}", hint=hint) from error


_cuda_is_initialized: Callable[[], bool] = torch.cuda.is_initialized


@cache
def _has_accelerator() -> bool:
    return bool(torch.accelerator.is_available())
