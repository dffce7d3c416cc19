"""What compressing transforms share: the names, sizes and checks of what they send in place of an array."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from ..core.arrays import Array, Arrays, Schema, Spec, wide
from ..core.fold import Fold
from ..core.randomness import Key
from ..core.transform import Transform, as_arrays
from ..core.update import Expectation, Update, check_schema, finite
from ..entropy import SYSTEM, Entropy
from ..errors import StrategyError, UpdateRejected

BYTES, PLACES = np.dtype(np.uint8), np.dtype(np.int64)


def part(size: int, dtype: np.dtype[Any] = BYTES) -> Spec:
    """What one part of an array looks like that the steps behind leave alone, as they do with all buffers; those that
    they are to work on are parameters.
    """
    return Spec((size,), dtype, "buffer")


@dataclass(frozen=True)
class Compression(Transform):
    """A step that sends something smaller in place of each parameter of a difference: parts, named `array:part`.

    Subclasses say in `layout` what parts there are, make them in `pack`, and read them in `unpack`. All else is done
    here: buffers, empty arrays and those that the parts would not make smaller travel whole; an update that does not
    look just as the ask's schema says (`encoded`) is rejected before anything is made room for. Settings are hashable.
    """

    seeded: ClassVar[bool] = False
    """Whether `pack` and `unpack` share a random key; its seed travels as `<name>:seed`, `uint64`, once an update."""
    counted: ClassVar[bool] = False
    """Whether the number of entries that travel depends on values, and travels as `array:count`."""

    def entries(self, size: int) -> int:
        """How many entries of an array travel, at most if they are `counted`."""
        return size

    @abstractmethod
    def layout(self, spec: Spec, count: int) -> dict[str, Spec]:
        """The parts of a parameter of which `count` entries travel; none where it has to travel whole."""

    @abstractmethod
    def pack(self, name: str, flat: Array, spec: Spec, key: Key, params: Any) -> dict[str, Array]:
        """The parts of a parameter, the finite elements of which are `flat`, in the dtype of differences."""

    @abstractmethod
    def unpack(self, name: str, parts: Mapping[str, Array], spec: Spec, key: Key, params: Any) -> Array:
        """The elements that parts of the right shapes and dtypes stand for. Raises `UpdateRejected`."""

    def applies(self, spec: Spec) -> bool:
        """Whether a parameter is sent in parts: where they are smaller."""
        least = self.layout(spec, 1 if self.counted else self.entries(math.prod(spec.shape)))
        return bool(least) and 8 * self.counted + Schema(least).nbytes < Schema({"": spec}).nbytes

    def check(self, fold: Fold, expects: Expectation) -> None:
        if not expects.delta:
            raise StrategyError(
                f"{self.name} is lossy, which makes sense for differences only", hint="Use Like(delta=True)."
            )

    def encoded(self, schema: Schema, sent: Mapping[str, Array] | None = None) -> Schema:
        made: dict[str, Spec] = {}
        split = False
        for name, spec, parted in self._each(schema):
            split |= parted
            for key, look in (self._parts(name, spec, sent) if parted else {name: spec}).items():
                if key in made:
                    raise StrategyError(f"{self.name} would send two arrays as {key!r}", hint="Rename the model's.")
                made[key] = look
        if split and self.seeded:
            if self._seed in made:
                raise StrategyError(f"an update has {self._seed!r} already", hint=f"Put {self.name} in the chain once.")
            made[self._seed] = Spec((), np.dtype(np.uint64), "buffer")
        return Schema(made)

    def encode(self, update: Update, params: Any, local: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Update, Any]:
        arrays = as_arrays(update)
        sent: dict[str, Array] = {}
        seed = key.integer(64)
        known, split = Key.from_seed(seed) if self.seeded else key, False
        for name, spec, parted in self._each(arrays.schema):
            if not parted:
                sent[name] = np.asarray(arrays[name], spec.dtype)
                continue
            flat = np.ravel(arrays[name]).astype(spec.dtype, copy=False)
            finite(flat, name)
            with np.errstate(all="ignore"):
                parts, split = self.pack(name, flat, spec, known.derive(name), params), True
            sent |= {f"{name}:{each}": array for each, array in parts.items()}
        if split and self.seeded:
            sent[self._seed] = np.array(seed, np.uint64)
        roles = self.encoded(arrays.schema, sent).roles
        return replace(update, arrays=Arrays(sent, roles)), local

    def decode(self, update: Update, params: Any, schema: Schema | None = None) -> Update:
        if schema is None:
            raise UpdateRejected(f"{self.name} cannot be undone where the ask expects any arrays")
        arrays, dense = as_arrays(update), {}
        check_schema(arrays, self.encoded(schema, arrays), "array", delta=False)
        known = Key.from_seed(int(arrays[self._seed])) if self.seeded and self._seed in arrays else None
        for name, spec, parted in self._each(schema):
            if not parted:
                dense[name] = arrays[name]
                continue
            parts = {key.removeprefix(f"{name}:"): arrays[key] for key in self._parts(name, spec, arrays)}
            key = _NO_KEY if known is None else known.derive(name)
            with np.errstate(all="ignore"):  # what is not finite is rejected by name
                dense[name] = self.unpack(name, parts, spec, key, params).reshape(spec.shape)
        return replace(update, arrays=Arrays(dense, schema.roles))

    @property
    def _seed(self) -> str:
        return f"{self.name}:seed"

    def split(self, schema: Schema) -> Iterator[tuple[str, Spec]]:
        """The parameters that are sent in parts."""
        return ((name, spec) for name, spec, parted in self._each(schema) if parted)

    def _each(self, schema: Schema) -> Iterator[tuple[str, Spec, bool]]:
        """Names, specs as of differences, and whether an array is sent in parts."""
        for name, spec in schema.items():
            yield (name, *_sent(self, spec)) if spec.role == "parameter" else (name, spec, False)

    def _parts(self, name: str, spec: Spec, sent: Mapping[str, Array] | None) -> dict[str, Spec]:
        size = math.prod(spec.shape)
        count, parts = self.entries(size), {}
        if self.counted:
            parts[f"{name}:count"] = Spec((), PLACES, "buffer")
            if sent is not None:
                count = _count(sent.get(f"{name}:count"), name, size)
        return parts | {f"{name}:{each}": look for each, look in _layout(self, spec, count).items()}


@lru_cache(maxsize=4096)  # of small arrays this would take longer than all else
def _sent(step: Compression, spec: Spec) -> tuple[Spec, bool]:
    """The spec of a parameter's difference, and whether it is sent in parts."""
    spec = spec._replace(dtype=wide(spec.dtype))
    return spec, math.prod(spec.shape) > 0 and step.applies(spec)


@lru_cache(maxsize=4096)
def _layout(step: Compression, spec: Spec, count: int) -> Mapping[str, Spec]:
    return step.layout(spec, count)


def _count(claimed: Array | None, name: str, most: int) -> int:
    if claimed is None or claimed.shape != () or claimed.dtype != PLACES or not 0 <= claimed <= most:
        raise UpdateRejected(f"how many entries of array {name!r} are sent is not a number up to {most}")
    return int(claimed)


_NO_KEY = Key.from_seed(0)
