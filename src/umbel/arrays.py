"""Named, read-only arrays with roles: what models, updates and messages are made of.

A **role** says how an array is treated: a `parameter` is trained, clipped, noised and stepped; a `buffer` (running
statistics, counters) travels as a value and is never any of these; a `personal` array never leaves its holder. Where
nobody says, floating-point arrays are parameters and all others buffers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import CorruptFile, StrategyError

Role = Literal["parameter", "buffer", "personal"]
Array = npt.NDArray[Any]
ROLES: tuple[Role, ...] = ("parameter", "buffer", "personal")


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is a floating-point type, the 16-bit brain float included."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which differences and means of `dtype` are kept: float64 for float64, float32 for other floats,
    itself otherwise.
    """
    if not is_floating(dtype) or dtype.itemsize >= 8:
        return dtype
    return np.dtype(np.float32)


class Spec(NamedTuple):
    """Shape, dtype and role of one array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    role: Role

    def __str__(self) -> str:
        return f"{self.dtype.name}{list(self.shape)}"


class Schema(Mapping[str, Spec]):
    """Names to specs: what arrays look like, without their values."""

    __slots__ = ("_specs", "roles")

    def __init__(self, specs: Mapping[str, Spec]) -> None:
        self._specs = dict(specs)
        self.roles: Mapping[str, Role] = {n: s.role for n, s in self._specs.items()}

    def __getitem__(self, name: str) -> Spec:
        return self._specs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def keys(self) -> KeysView[str]:
        return self._specs.keys()

    def items(self) -> ItemsView[str, Spec]:
        return self._specs.items()

    def __repr__(self) -> str:
        return f"Schema({', '.join(f'{name}: {spec}' for name, spec in self.items())})"

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        return sum(int(np.prod(s.shape, dtype=np.int64)) * s.dtype.itemsize for s in self.values())


class Arrays(Mapping[str, Array]):
    """Names to read-only arrays, each with a role.

    `arrays` maps names to anything that `numpy.asarray` takes; nothing is copied, so the caller must not change them
    afterwards. `roles` gives the role of some or all names; names that are not arrays are an error, as are arrays of
    objects or strings.
    """

    __slots__ = ("__weakref__", "_arrays", "_digest", "_roles", "_schema")

    def __init__(self, arrays: Mapping[str, Any] = {}, roles: Mapping[str, Role] | None = None) -> None:
        known = arrays._roles if isinstance(arrays, Arrays) else {}
        given = roles or {}
        self._arrays: dict[str, Array] = {}
        named: dict[str, Role] = {}
        self._roles: Mapping[str, Role] = named
        self._schema: Schema | None = None
        self._digest: str | None = None
        for name, value in arrays.items():
            array = _read_only(name, value)
            self._arrays[name] = array
            role = given.get(name) or known.get(name)
            if role == "parameter" and not is_floating(array.dtype):
                raise StrategyError(
                    f"array {name!r} is {array.dtype.name}, and cannot be a parameter",
                    hint="Parameters are floating-point arrays; leave its role out, or make it a buffer.",
                )
            named[name] = role or ("parameter" if is_floating(array.dtype) else "buffer")
        for name, role in given.items():
            if name not in self._arrays:
                raise StrategyError(f"a role is given for {name!r}, but there is no array of that name")
            if role not in ROLES:
                raise StrategyError(
                    f"array {name!r} has the unknown role {role!r}", hint=f"Roles are {', '.join(ROLES)}."
                )

    @classmethod
    def trusted(cls, arrays: dict[str, Array], roles: Mapping[str, Role]) -> Arrays:
        """Arrays from parts that are known to be valid, without checks: `roles` must name just the names in
        `arrays`.
        """
        self = cls.__new__(cls)
        for array in arrays.values():
            array.flags.writeable = False
        self._arrays, self._roles, self._schema, self._digest = arrays, roles, None, None
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # bfloat16 knows no buffers, and what is pickled apart from the rest has to be one.
        plain = {n: a.view(np.uint16) if a.dtype.name == "bfloat16" else a for n, a in self._arrays.items()}
        return _unpickled, (plain, dict(self._roles), [n for n in plain if plain[n] is not self._arrays[n]])

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    # The dictionary's own views are several times faster than those that Mapping would make.
    def keys(self) -> KeysView[str]:
        return self._arrays.keys()

    def values(self) -> ValuesView[Array]:
        return self._arrays.values()

    def items(self) -> ItemsView[str, Array]:
        return self._arrays.items()

    def __eq__(self, other: object) -> bool:
        """Equal names, roles, dtypes, shapes and bits (so a NaN equals itself)."""
        if not isinstance(other, Arrays):
            return NotImplemented
        return self.schema.items() == other.schema.items() and all(
            np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(other[name]).tobytes() for name, a in self.items()
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}: {spec}" for name, spec in list(self.schema.items())[:6])
        more = f", ... {len(self) - 6} more" if len(self) > 6 else ""
        return f"Arrays({shown}{more})"

    @property
    def roles(self) -> Mapping[str, Role]:
        """The role of each array."""
        return self._roles

    @property
    def schema(self) -> Schema:
        """Shape, dtype and role of each array."""
        if self._schema is None:
            roles = self._roles
            self._schema = Schema({n: Spec(a.shape, a.dtype, roles[n]) for n, a in self._arrays.items()})
        return self._schema

    @property
    def has_personal(self) -> bool:
        """Whether some array is personal."""
        return "personal" in self._roles.values()

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        return sum(a.nbytes for a in self._arrays.values())

    @property
    def digest(self) -> str:
        """SHA-256 over names, roles, dtypes, shapes and values, whatever the order of the names."""
        if self._digest is None:
            hashed = hashlib.sha256()
            for name in sorted(self._arrays):
                array = self._arrays[name]
                header = (name, self._roles[name], array.dtype.name, list(array.shape))
                hashed.update(json.dumps(header).encode() + b"\n")
                hashed.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.size else b"")
            self._digest = hashed.hexdigest()
        return self._digest

    def select(self, names: Iterable[str]) -> Arrays:
        """The arrays of these names, in that order; an unknown name is a KeyError."""
        chosen = list(names)
        return Arrays.trusted({n: self._arrays[n] for n in chosen}, {n: self._roles[n] for n in chosen})

    def of_role(self, *roles: Role) -> Arrays:
        """The arrays that have one of these roles."""
        return self.select(n for n, role in self._roles.items() if role in roles)

    def replace(self, arrays: Mapping[str, Any]) -> Arrays:
        """These arrays with some of them exchanged or added; names that stay keep their role and place."""
        return Arrays({**self._arrays, **arrays}, {**_roles_of(arrays), **self._roles})

    def map(self, function: Callable[[str, Array], Any]) -> Arrays:
        """Apply `function(name, array)` to each array, keeping names and roles."""
        return Arrays({n: function(n, a) for n, a in self._arrays.items()}, self._roles)

    def to_bytes(self) -> bytes:
        """These arrays in the safetensors format: equal arrays give equal bytes."""
        return write_safetensors({n: self._arrays[n] for n in sorted(self._arrays)}, _metadata(self))

    @staticmethod
    def from_bytes(data: bytes) -> Arrays:
        """Read the safetensors format; roles come from the file's metadata where Umbel wrote it. Raises
        `CorruptFile`.
        """
        arrays, metadata = read_safetensors(data)
        try:
            roles = json.loads(metadata.get("umbel", "{}")).get("roles", {})
            return Arrays(arrays, {n: r for n, r in roles.items() if n in arrays})
        except (ValueError, AttributeError) as error:
            raise CorruptFile(f"these bytes hold arrays, but their roles cannot be read: {error}") from error


def _read_only(name: object, value: Any) -> Array:
    array = np.asarray(value)
    if not isinstance(name, str) or not name or name == RESERVED:
        raise StrategyError(f"array names are non-empty strings other than {RESERVED!r}, not {name!r}")
    if not can_travel(array.dtype):
        raise StrategyError(
            f"array {name!r} has dtype {array.dtype}, which cannot travel",
            hint="Use floating-point, integer or boolean arrays; text and bytes travel as arrays of uint8.",
        )
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable:
        return array
    view = array.view()
    view.flags.writeable = False
    return view


def _unpickled(arrays: dict[str, Array], roles: Mapping[str, Role], brain_floats: Sequence[str]) -> Arrays:
    return Arrays.trusted({n: a.view(_dtype_of("BF16")) if n in brain_floats else a for n, a in arrays.items()}, roles)


def _roles_of(arrays: Mapping[str, Any]) -> Mapping[str, Role]:
    return arrays._roles if isinstance(arrays, Arrays) else {}


def _metadata(arrays: Arrays) -> dict[str, str]:
    unusual = {
        n: r
        for n, r in sorted(arrays.roles.items())
        if r != ("parameter" if is_floating(arrays[n].dtype) else "buffer")
    }
    # One key only: the format leaves the order of several keys open, and equal arrays must give equal bytes.
    return {"umbel": json.dumps({"roles": unusual})} if unusual else {}


def write_safetensors(arrays: Mapping[str, Array], metadata: dict[str, str]) -> bytes:
    """Encode arrays and at most one metadata entry in the safetensors format."""
    from safetensors.numpy import save

    contiguous = {n: a if a.flags.c_contiguous else np.ascontiguousarray(a) for n, a in arrays.items()}
    return save(contiguous, metadata=metadata or None)


def read_safetensors(data: bytes) -> tuple[dict[str, Array], dict[str, str]]:
    """Decode the safetensors format into arrays and metadata. Raises `CorruptFile`."""
    from safetensors import SafetensorError, deserialize

    try:
        arrays = {
            name: np.frombuffer(part["data"], dtype=_dtype_of(part["dtype"])).reshape(part["shape"])
            for name, part in deserialize(data)  # type: ignore[no-untyped-call]
        }
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError, KeyError) as error:
        raise CorruptFile(f"these {len(data)} bytes are not in the safetensors format: {error}") from error
    return arrays, header.get("__metadata__", {})


_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "F32": "float32", "F64": "float64",
}  # fmt: skip
_COMMON = frozenset(map(np.dtype, _DTYPES.values()))
RESERVED = "__metadata__"  # the safetensors format's own name


def can_travel(dtype: np.dtype[Any]) -> bool:
    """Whether arrays of this dtype can be written, sent and summed."""
    return dtype in _COMMON or dtype.name == "bfloat16" or dtype.newbyteorder("=") in _COMMON


def _dtype_of(code: str) -> np.dtype[Any]:
    if code == "BF16":
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return found
    return np.dtype(_DTYPES[code])


def difference(new: Arrays, old: Arrays, schema: Schema) -> Arrays:
    """The arrays of `schema`: `new - old` for parameters, in float32 (float64 for float64); all others as in `new`."""
    mine, theirs = new._arrays, old._arrays
    result: dict[str, Array] = {}
    for name, role in schema.roles.items():
        value = mine[name]
        if role != "parameter":
            result[name] = value
        elif value.dtype.itemsize >= 4 and value.dtype == theirs[name].dtype:
            result[name] = np.asarray(np.subtract(value, theirs[name]))  # a scalar where there is no dimension
        else:
            result[name] = np.asarray(np.subtract(value, theirs[name], dtype=wide(value.dtype)))
    return Arrays.trusted(result, schema.roles)
