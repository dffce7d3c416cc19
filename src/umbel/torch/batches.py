"""A client's data, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import AppError


class Batches:
    """Batches of a client's data on a device, in another order each time they are gone through.

    `data` is a pair (or any tuple or list) of tensors, arrays or frames with a row an example, a map-style data set, or
    a `DataLoader` of one, which says itself how large its batches are and whether they are shuffled. A `size` of None
    is one batch of all. Raises `AppError` for other data.
    """

    def __init__(self, data: Any, size: int | None, device: torch.device) -> None:
        self._device, self._size = device, size
        self._rows: tuple[Tensor, ...] | None = None
        if isinstance(data, DataLoader) and hasattr(data.dataset, "__len__"):
            self._loader, self.examples = data, len(data.dataset)
        elif isinstance(data, tuple | list) and data and all(hasattr(part, "shape") for part in data):
            self._rows = tuple(_tensor(part).to(device) for part in data)
            self.examples = len(self._rows[0])
            if any(len(part) != self.examples for part in self._rows):
                raise AppError(
                    f"the data's parts have {[len(part) for part in self._rows]} rows: they have to be as many"
                )
        elif hasattr(data, "__getitem__") and hasattr(data, "__len__") and not _is_no_dataset(data):
            self.examples = len(data)
            self._loader = DataLoader(data, size or max(1, self.examples), shuffle=self.examples > 0)
        else:
            raise AppError(
                f"a {type(data).__name__} is no data to train on",
                hint="Give (x, y) of arrays, tensors or frames, a torch Dataset with a length, or its DataLoader.",
            )

    def __iter__(self) -> Iterator[Any]:
        if self._rows is None:
            yield from (_moved(batch, self._device) for batch in (self._loader if self.examples else ()))
            return
        size = self._size or max(1, self.examples)
        whole = size >= self.examples
        order = None if whole else torch.randperm(self.examples).to(self._device)
        for at in range(0, self.examples, size):
            yield self._rows if order is None else tuple(part[order[at : at + size]] for part in self._rows)

    def at(self, chosen: Any) -> Any:
        """The batch of the examples at these indices, an array."""
        if self._rows is not None:
            return tuple(part[torch.as_tensor(chosen).to(self._device)] for part in self._rows)
        return _moved(self._loader.collate_fn([self._loader.dataset[int(i)] for i in chosen]), self._device)


def _is_no_dataset(data: Any) -> bool:
    """Whether what has a length and items are no examples: such as the columns of a frame, or lists beside lists."""
    return isinstance(data, str | bytes | Mapping | tuple) or hasattr(data, "columns")


def _tensor(part: Any) -> Tensor:
    try:
        return torch.as_tensor(np.array(part) if hasattr(part, "to_numpy") else part)
    except (TypeError, ValueError) as error:
        raise AppError(
            f"a {type(part).__name__} is no part of data to train on: {error}", hint="Its cells have to be numbers."
        ) from error


def rows_of(batch: Any) -> int:
    """How many examples a batch has."""
    while isinstance(batch, dict | Sequence) and not isinstance(batch, str) and batch:
        batch = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
    return len(batch) if getattr(batch, "ndim", 0) else 1


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {name: _moved(part, device) for name, part in batch.items()}
    if not isinstance(batch, tuple | list):
        return batch
    parts = [_moved(part, device) for part in batch]
    return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
