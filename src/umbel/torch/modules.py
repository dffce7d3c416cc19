"""Modules as arrays, and back."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..core.arrays import Array, Arrays, Role
from ..core.native import check_names, mark_personal
from ..errors import AppError

Net = TypeVar("Net", bound=nn.Module)


def arrays(net: nn.Module, *, personal: Sequence[str] = (), trainable_only: bool = False, copy: bool = True) -> Arrays:
    """The state of a module as arrays, under the names and in the order of its ``state_dict``; of one that is compiled,
    those of what was compiled.

    Floating-point parameters, frozen ones included, have the role `parameter`; persistent buffers and integer
    parameters have the role `buffer`; names that match a glob pattern in `personal` (``"head.*"``) have the role
    `personal`. Tied parameters appear under each of their names. `trainable_only` leaves out frozen parameters, as of a
    network whose last layers or adapters are trained alone: load such a model with ``strict=False``.

    `copy=False` gives views of tensors that are contiguous in CPU memory: they change when the module is trained. All
    others are always copied, once, into C order.

    Raises `AppError`, naming the tensor, for what cannot travel (complex, quantized, sparse or uninitialised tensors,
    extra state of a module), and for a pattern that matches no name.
    """
    net = plain(net)
    tensors, buffers, _ = state_of(net)
    if trainable_only:
        frozen = {name for name, w in net.named_parameters(remove_duplicate=False) if not w.requires_grad}
        tensors = {name: tensor for name, tensor in tensors.items() if name not in frozen}
    values: dict[str, Array] = {}
    roles: dict[str, Role] = {}
    for name, tensor in tensors.items():
        values[name] = _to_numpy(name, tensor, copy)
        roles[name] = "buffer" if name in buffers or not tensor.is_floating_point() else "parameter"
    mark_personal(roles, personal, type(net).__name__)
    return Arrays.trusted(values, roles)


def load_(net: Net, model: Mapping[str, Any], *, strict: bool = True) -> Net:
    """Copy a model into a module, in place, and return the module.

    Names and shapes must be those of the module's ``state_dict``; with `strict=False` names may be missing (personal
    arrays, for instance), and those tensors keep their values. Floating-point values are converted to the module's
    dtype; other dtypes must be equal. Anything else is an `AppError` that names the tensor, and leaves the module as it
    was.

    The parameters stay the same objects on the same device, so an optimizer that holds them stays valid. Loading one
    `Arrays` object many times is cheaper than ``load_state_dict``: its tensors are made once.
    """
    sources = _tensors(model)
    inner = plain(net)
    targets, _, live = state_of(inner)
    if sources.keys() != targets.keys():
        check_names(type(inner).__name__, targets, sources, strict)
        targets = {name: target for name, target in targets.items() if name in sources}
    chosen = []
    for name, target in targets.items():
        source = sources[name]
        if source.dtype is not target.dtype or source.shape != target.shape or target.is_meta:
            check_fit(name, target, source)
        chosen.append(source)
    try:
        if live and chosen:
            with torch.no_grad():
                torch._foreach_copy_(list(targets.values()), chosen)
        elif not live:
            inner.load_state_dict(dict(zip(targets, chosen, strict=True)), strict=False)
    except RuntimeError as error:  # of tensors that were expanded, say, or made in inference mode
        raise AppError(f"{type(inner).__name__} cannot load this model: {error}") from error
    return net


def plain(net: nn.Module) -> nn.Module:
    """What ``torch.compile`` has wrapped: its names are those of the module that was compiled."""
    inner = getattr(net, "_orig_mod", None)
    return net if inner is None else plain(inner)


# --- The tensors of a module


def state_of(net: nn.Module) -> tuple[dict[str, Tensor], set[str], bool]:
    """The tensors of the state dict, which of them are not parameters, and whether they are the module's very own."""
    tensors: dict[str, Tensor] = {}
    buffers: set[str] = set()
    if _walk(net, "", tensors, buffers):
        return tensors, buffers, True
    parameters = {name for name, _ in net.named_parameters(remove_duplicate=False)}
    tensors = net.state_dict()
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise AppError(
                f"{type(net).__name__} keeps extra state under {name!r} that is no tensor and cannot travel",
                hint="Keep it in a buffer (register_buffer) instead.",
            )
        if nn.parameter.is_lazy(value):
            raise AppError(
                f"the tensor {name!r} of {type(net).__name__} has no shape yet",
                hint="Call the module on one example before, so that its lazy layers take their shape.",
            )
    return tensors, tensors.keys() - parameters, False


def _walk(module: nn.Module, prefix: str, tensors: dict[str, Tensor], buffers: set[str]) -> bool:
    """Collect what ``state_dict`` would, at a fifth of its cost; False where a module keeps state in its own way."""
    kind: Any = type(module)
    if (
        not _keeps_state_plainly(kind)
        or module._state_dict_hooks
        or module._state_dict_pre_hooks
        or module._load_state_dict_pre_hooks
        or module._load_state_dict_post_hooks
    ):
        return False
    for name, value in module._parameters.items():
        if value is not None:
            tensors[prefix + name] = value
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            tensors[prefix + name] = buffer
            buffers.add(prefix + name)
    return all(
        child is None or _walk(child, f"{prefix}{name}.", tensors, buffers) for name, child in module._modules.items()
    )


@lru_cache(maxsize=1024)
def _keeps_state_plainly(kind: type[nn.Module]) -> bool:
    plain = ("state_dict", "load_state_dict", "_save_to_state_dict", "get_extra_state", "set_extra_state")
    loads = (nn.Module._load_from_state_dict, nn.modules.batchnorm._NormBase._load_from_state_dict)
    return (
        all(getattr(kind, method) is getattr(nn.Module, method) for method in plain)
        and kind._load_from_state_dict in loads
        and not issubclass(kind, torch.jit.ScriptModule)
    )


_TRAVELS = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool}
_TRAVELS |= {torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64}


def _to_numpy(name: str, tensor: Tensor, copy: bool) -> Array:
    if tensor.dtype not in _TRAVELS:
        raise AppError(
            f"the tensor {name!r} has dtype {_short(tensor.dtype)}, which cannot travel",
            hint="Keep it as a floating-point, integer or boolean tensor.",
        )
    array: Array
    try:
        if tensor.dtype is torch.bfloat16:
            import ml_dtypes

            array = tensor.detach().view(torch.int16).numpy(force=True).view(ml_dtypes.bfloat16)
        else:
            array = tensor.numpy(force=True)
    except (RuntimeError, TypeError, ValueError) as error:
        raise AppError(f"the tensor {name!r} cannot become an array: {error}") from error
    if not tensor.is_cpu:
        return np.asarray(array, order="C")  # a copy already
    return array.copy() if copy else np.asarray(array, order="C")


def check_fit(name: str, target: Tensor, source: Tensor) -> None:
    """Raise `AppError` where an array cannot be copied into a module's tensor."""
    if source.shape != target.shape:
        raise AppError(f"the array {name!r} has shape {list(source.shape)}, the module's tensor {list(target.shape)}")
    if target.is_meta:
        raise AppError(
            f"the module's tensor {name!r} is on the meta device and holds no values",
            hint="Move the module to a real device with to_empty(device=...) first.",
        )
    if source.dtype is not target.dtype and not (source.is_floating_point() and target.is_floating_point()):
        raise AppError(
            f"the array {name!r} has dtype {_short(source.dtype)}, the module's tensor {_short(target.dtype)}",
            hint="Only floating-point arrays are converted.",
        )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- The tensors of arrays


class _Cached(NamedTuple):
    """What was made from one `Arrays` object, for as long as it lives: its tensors, and its arrays laid end to end."""

    owner: weakref.ref[Arrays]
    tensors: dict[str, Tensor]
    flat: dict[Hashable, Tensor]


_cache: dict[int, _Cached] = {}


def tensors_from(source: Arrays) -> _Cached:
    """What is made of arrays once, and kept for as long as they live."""
    key = id(source)  # arrays are compared by value and have no hash, so a WeakKeyDictionary cannot hold them
    entry = _cache.get(key)
    if entry is None or entry.owner() is not source:
        entry = _Cached(weakref.ref(source, lambda _: _cache.pop(key, None)), _make_tensors(source), {})
        _cache[key] = entry
    return entry


def _tensors(model: Mapping[str, Any]) -> dict[str, Tensor]:
    return tensors_from(model).tensors if isinstance(model, Arrays) else _make_tensors(Arrays(model))


def _make_tensors(source: Arrays) -> dict[str, Tensor]:
    return {name: tensor_of(name, array) for name, array in source.items()}


class _Writable:
    """The memory of an array, declared writable, because torch warns of memory that is not.

    It warns since nothing would stop a write to the tensor. Here that is safe: these tensors never leave this module,
    which only reads from them.
    """

    def __init__(self, array: Array) -> None:
        interface = array.__array_interface__
        self.array = array  # keeps the memory alive
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def tensor_of(name: str, array: Array) -> Tensor:
    """An array as a tensor that shares its memory, and is only to be read where the array is."""
    if array.dtype.kind == "V":  # bfloat16; no other such dtype gets into arrays
        return tensor_of(name, array.view(np.int16)).view(torch.bfloat16)
    flags, size = array.flags, array.itemsize
    if not flags.aligned or (not flags.c_contiguous and any(step < 0 or step % size for step in array.strides)):
        array = np.array(array, order="C")  # torch knows no negative steps and expects aligned memory
    try:
        return torch.from_numpy(np.asarray(_Writable(array)))
    except TypeError as error:
        raise AppError(f"the array {name!r} has dtype {array.dtype}, which torch does not know") from error
