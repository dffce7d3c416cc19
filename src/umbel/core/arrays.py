"""Named, read-only arrays with roles: what models, updates and messages are made of.

A **role** says how an array is treated: a `parameter` is trained, clipped, noised and stepped; a `buffer` (running
statistics, counters) travels as a value and is never any of these; a `personal` array never leaves its holder, and what
a run has under its name is the run's own. Where nobody says, floating-point arrays are parameters and all others
buffers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import CorruptFile, StrategyError
from ..files import Bytes, mapped, reading, write_pieces
from .markup import table
from .trees import as_array

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
        return sum(math.prod(s.shape) * s.dtype.itemsize for s in self.values())


Make = Callable[[str, int, int], Array]
"""Makes the elements of the array of a name from one to another, in the order of C."""
STRETCH = 1 << 18
"""Elements of an array that are made at a time."""


class Stored(NamedTuple):
    """A file that holds what `Arrays.to_bytes` gives, its SHA-256 in hexadecimal, and its size."""

    path: Path
    sha256: str
    size: int


class _Computed(Mapping[str, Array]):
    """Arrays that are made whenever they are looked at, and kept by nobody."""

    def __init__(self, schema: Schema, make: Make) -> None:
        self.schema, self.make = schema, make

    def __getitem__(self, name: str) -> Array:
        shape, dtype, _ = self.schema[name]
        made = np.empty(math.prod(shape), dtype)
        for start, stop in self.places(name):
            made[start:stop] = self.make(name, start, stop)
        made.flags.writeable = False
        return made.reshape(shape)

    def __contains__(self, name: object) -> bool:
        return name in self.schema.roles  # and not made for that

    def __iter__(self) -> Iterator[str]:
        return iter(self.schema)

    def __len__(self) -> int:
        return len(self.schema)

    def places(self, name: str) -> list[tuple[int, int]]:
        size = math.prod(self.schema[name].shape)
        return [(start, min(start + STRETCH, size)) for start in range(0, size, STRETCH)]


class Unmade:
    """An array that is made, a stretch at a time, where its values are written."""

    def __init__(self, arrays: _Computed, name: str) -> None:
        self.shape, self.dtype, _ = arrays.schema[name]
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        self._arrays, self._name = arrays, name

    def pieces(self) -> Iterator[Bytes]:
        """The array's memory, one stretch after the other; all cores make those that come next."""
        places = self._arrays.places(self._name)
        make = partial(self._arrays.make, self._name)
        if len(places) < 2:
            yield from (_raw(make(*place)) for place in places)
            return
        from concurrent.futures import Future, ThreadPoolExecutor

        with ThreadPoolExecutor(cores := os.cpu_count() or 1, "umbel-arrays") as pool:
            ahead: deque[Future[Array]] = deque()
            for place in places:
                ahead.append(pool.submit(make, *place))
                if len(ahead) > 2 * cores:
                    yield _raw(ahead.popleft().result())
            while ahead:
                yield _raw(ahead.popleft().result())


def _as_table(arrays: Arrays) -> str:
    """Arrays as a notebook shows them."""
    rows = [(n, s.dtype, "×".join(map(str, s.shape)) or "scalar", s.role) for n, s in arrays.schema.items()]
    return f"<b>Arrays</b>, {arrays.nbytes:,} bytes{table(('name', 'dtype', 'shape', 'role'), rows)}"


class Arrays(Mapping[str, Array]):
    """Names to read-only arrays, each with a role.

    `arrays` maps names to anything that `numpy.asarray` takes, and to tensors. Arrays in C order, as most are, are not
    copied, so the caller must not change them afterwards. Others are brought into that order, which is that of files,
    so that a computation gives the same bits before and after they were saved, or sent. `roles` gives the role of some
    or all names; names that are not arrays are an error, as are arrays of objects or strings.
    """

    __slots__ = ("__weakref__", "_arrays", "_digest", "_roles", "_schema", "stored")

    def __init__(self, arrays: Mapping[str, Any] = {}, roles: Mapping[str, Role] | None = None) -> None:
        known = arrays._roles if isinstance(arrays, Arrays) else {}
        given = roles or {}
        own: dict[str, Array] = {}
        self._arrays: Mapping[str, Array] = own
        self.stored: Stored | None = None
        named: dict[str, Role] = {}
        self._roles: Mapping[str, Role] = named
        self._schema: Schema | None = None
        self._digest: str | None = None
        for name, value in arrays.items():
            array = _read_only(name, value)
            own[name] = array
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
        """Arrays from parts that are known to be valid, and in C order, without checks: `roles` must name just the
        names in `arrays`.
        """
        self = cls.__new__(cls)
        for array in arrays.values():
            array.flags.writeable = False
        self._arrays, self._roles, self._schema, self._digest, self.stored = arrays, roles, None, None, None
        return self

    @classmethod
    def computed(cls, schema: Schema, make: Make) -> Arrays:
        """Arrays that nobody holds: they are made whenever they are looked at, and where they are written a stretch at
        a time. `make` gives the same whenever it is called.
        """
        self = cls.trusted({}, schema.roles)
        self._arrays, self._schema = _Computed(schema, make), schema
        return self

    @property
    def is_computed(self) -> bool:
        """Whether they are made whenever they are looked at."""
        return isinstance(self._arrays, _Computed)

    def stretches(self, name: str) -> Iterator[Array]:
        """The elements of an array, as many at a time as are made of a computed one."""
        if isinstance(self._arrays, _Computed):
            return (self._arrays.make(name, *place) for place in self._arrays.places(name))
        return iter((self._arrays[name],))

    def stretch(self, name: str, start: int, stop: int) -> Array:
        """The elements of an array from one to another, in the order of C."""
        if isinstance(self._arrays, _Computed):
            return self._arrays.make(name, start, stop)
        return self._arrays[name].reshape(-1)[start:stop]

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

    _repr_html_ = _as_table

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
        return self.schema.nbytes if self.is_computed else sum(a.nbytes for a in self._arrays.values())

    def select(self, names: Iterable[str]) -> Arrays:
        """The arrays of these names, in that order; an unknown name is a KeyError."""
        chosen = list(names)
        if isinstance(self._arrays, _Computed):
            return Arrays.computed(Schema({n: self.schema[n] for n in chosen}), self._arrays.make)
        return Arrays.trusted({n: self._arrays[n] for n in chosen}, {n: self._roles[n] for n in chosen})

    def of_role(self, *roles: Role) -> Arrays:
        """The arrays that have one of these roles."""
        return self.select(n for n, role in self._roles.items() if role in roles)

    def as_sent(self) -> Arrays:
        """What of these arrays may be sent: of the personal ones name, dtype and role, as empty arrays, no values."""
        mine = {n for n, role in self._roles.items() if role == "personal"}
        if all(self._arrays[n].shape == (0,) for n in mine):
            return self
        sent = {n: np.zeros(0, a.dtype) if n in mine else a for n, a in self._arrays.items()}
        return Arrays.trusted(sent, self._roles)

    def as_given(self) -> Arrays:
        """What of these arrays the code of a client gets to see: all but the personal ones, which it has itself."""
        return self.of_role("parameter", "buffer") if self.has_personal else self

    def replace(self, arrays: Mapping[str, Any]) -> Arrays:
        """These arrays with some of them exchanged or added; names that stay keep their role and place."""
        return Arrays({**self._arrays, **arrays}, {**_roles_of(arrays), **self._roles})

    def map(self, function: Callable[[str, Array], Any]) -> Arrays:
        """Apply `function(name, array)` to each array, keeping names and roles."""
        return Arrays({n: function(n, a) for n, a in self._arrays.items()}, self._roles)

    def parts(self) -> Iterator[tuple[str, Array | Unmade]]:
        """Names and arrays, as they are to be written."""
        if isinstance(self._arrays, _Computed):
            return ((name, Unmade(self._arrays, name)) for name in self._arrays)
        return iter(self._arrays.items())

    def pieces(self) -> Iterator[Bytes]:
        """The pieces of `to_bytes()`, one after the other: a header, then each array's own memory."""
        return safetensors_pieces(dict(self.parts()), _metadata(self))

    def to_bytes(self) -> bytes:
        """These arrays in the safetensors format: equal arrays give equal bytes."""
        return b"".join(self.pieces())

    def to_file(self, path: str | Path, *, durable: bool = False) -> tuple[str, int]:
        """Write `to_bytes()` to a file, without holding it; returns its SHA-256 and size. Raises `StorageError`."""
        return write_pieces(path, self.pieces(), durable=durable)

    @property
    def sha256(self) -> str:
        """SHA-256 of `to_bytes()`, whatever the order of the names; made once."""
        if self._digest is None:
            if self.stored is not None:
                self._digest = self.stored.sha256
            else:
                hashed = hashlib.sha256()
                for piece in self.pieces():
                    hashed.update(piece)
                self._digest = hashed.hexdigest()
        return self._digest

    @staticmethod
    def from_bytes(data: Bytes) -> Arrays:
        """Read the safetensors format; roles come from the file's metadata where Umbel wrote it. Raises
        `CorruptFile`.

        The arrays are views of `data` wherever they are aligned in it.
        """
        arrays, metadata = read_safetensors(data, views=True)
        try:
            roles = json.loads(metadata.get("umbel", "{}")).get("roles", {})
            return Arrays(arrays, {n: r for n, r in roles.items() if n in arrays})
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise CorruptFile(f"these bytes hold arrays, but their roles cannot be read: {error}") from error

    @staticmethod
    def from_file(path: str | Path) -> Arrays:
        """Map a safetensors file: its arrays are read when they are used. Raises `CorruptFile` and `StorageError`.

        The file may be removed or replaced meanwhile, but must not be written to or cut short.
        """
        with reading(path):
            data = mapped(path)
        return Arrays.from_bytes(data)


def _read_only(name: object, value: Any) -> Array:
    array = as_array(value)
    if not isinstance(name, str) or not name or name == RESERVED:
        raise StrategyError(f"array names are non-empty strings other than {RESERVED!r}, not {name!r}")
    if not can_travel(array.dtype):
        raise StrategyError(
            f"array {name!r} has dtype {array.dtype}, which cannot travel",
            hint="Use floating-point, integer or boolean arrays; text and bytes travel as arrays of uint8.",
        )
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned):
        array = plain(array)
        array.flags.writeable = False
        return array
    if not flags.writeable:
        return array
    view = array.view()
    view.flags.writeable = False
    return view


def plain(array: Array) -> Array:
    """The array as it would be read from a file: in C order and aligned; itself where it is so already."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else array.copy()


def _unpickled(arrays: dict[str, Array], roles: Mapping[str, Role], brain_floats: Sequence[str]) -> Arrays:
    return Arrays.trusted(
        {n: a.view(dtype_named("bfloat16")) if n in brain_floats else a for n, a in arrays.items()}, roles
    )


def _roles_of(arrays: Mapping[str, Any]) -> Mapping[str, Role]:
    return arrays._roles if isinstance(arrays, Arrays) else {}


def _metadata(arrays: Arrays) -> dict[str, str]:
    unusual = {
        n: r
        for n, r in sorted(arrays.roles.items())
        if r != ("parameter" if is_floating(arrays.schema[n].dtype) else "buffer")
    }
    # One key only: the format leaves the order of several keys open, and equal arrays must give equal bytes.
    return {"umbel": json.dumps({"roles": unusual})} if unusual else {}


_CODES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "uint16": "U16", "float16": "F16", "bfloat16": "BF16",
    "int32": "I32", "uint32": "U32", "float32": "F32", "float64": "F64", "int64": "I64", "uint64": "U64",
}  # fmt: skip
_RANKS = {name: rank for rank, name in enumerate(_CODES)}  # files begin with the last of them, which are the widest
_NAMES = {code: name for name, code in _CODES.items()}
_COMMON = frozenset(np.dtype(name) for name in _CODES if name != "bfloat16")
_LONGEST_HEADER = 100_000_000
RESERVED = "__metadata__"  # the safetensors format's own name


def can_travel(dtype: np.dtype[Any]) -> bool:
    """Whether arrays of this dtype can be written, sent and summed."""
    return dtype in _COMMON or dtype.name == "bfloat16" or dtype.newbyteorder("=") in _COMMON


def dtype_named(name: str) -> np.dtype[Any]:
    """The dtype of this name, which is one that can travel; KeyError for all others."""
    if name == "bfloat16":
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return found
    return np.dtype(name if name in _CODES else _CODES[name])


def safetensors_pieces(arrays: Mapping[str, Array | Unmade], metadata: Mapping[str, str]) -> Iterator[Bytes]:
    """The pieces of a safetensors file: its header, then the memory of one array after the other.

    `metadata` has at most one entry, since the format leaves the order of several open. The bytes are those that
    `safetensors.numpy.save` writes, whatever the order of the names. Raises `StrategyError` for names that cannot be
    written, and where names and metadata would be more than is read again.
    """
    names = sorted(arrays, key=lambda name: (-_RANKS[arrays[name].dtype.name], name))
    header: dict[str, Any] = {RESERVED: dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        array, begin = arrays[name], end
        end += array.nbytes
        code = _CODES[array.dtype.name]
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [begin, end]}
    try:
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise StrategyError(f"an array's name cannot be saved, for it is no text: {error}") from error
    text += b" " * (-len(text) % 8)
    if len(text) > _LONGEST_HEADER:
        raise StrategyError(
            f"what is to be saved has a header of {len(text):,} bytes, of at most {_LONGEST_HEADER:,}: "
            "texts, numbers that are in no array, and the names of arrays",
            hint="Keep many numbers as an array, and long texts as np.frombuffer(text.encode(), np.uint8).",
        )
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        array = arrays[name]
        yield from array.pieces() if isinstance(array, Unmade) else (_raw(array),)


def _raw(array: Array) -> Bytes:
    """The memory of an array; that of a copy where it is not contiguous or of another machine's byte order."""
    if not array.size:
        return b""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def write_safetensors(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """Encode arrays and at most one metadata entry in the safetensors format."""
    return b"".join(safetensors_pieces(arrays, metadata))


def read_safetensors(data: Bytes, *, views: bool = False) -> tuple[dict[str, Array], dict[str, str]]:
    """Decode the safetensors format into arrays and metadata. Raises `CorruptFile`.

    With `views` the arrays are views of `data` wherever they are aligned in it; without, they are writable copies.
    """
    whole = memoryview(data).cast("B")
    try:
        start, header = _header(whole)
        metadata = header.pop(RESERVED, {})
        if type(metadata) is not dict or not all(type(text) is str for text in metadata.values()):
            raise ValueError("its metadata is not text")
        arrays: dict[str, Array] = {}
        end = 0
        for name, entry in sorted(header.items(), key=lambda row: row[1]["data_offsets"]):
            code, shape, (begin, after) = entry["dtype"], entry["shape"], entry["data_offsets"]
            dtype = dtype_named(_NAMES[code])
            if not all(type(n) is int and n >= 0 for n in (*shape, begin, after)):
                raise ValueError(f"the shape or the place of {name!r} is wrong")
            if begin != end or after - begin != math.prod(shape) * dtype.itemsize or start + after > len(whole):
                raise ValueError(f"the places of {name!r} and what is before it do not fit together")
            arrays[name] = _placed(whole[start + begin : start + after], dtype, shape, views)
            end = after
        if start + end != len(whole):
            raise ValueError(f"it should have {start + end} bytes")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CorruptFile(f"these {len(whole)} bytes are not in the safetensors format: {error}") from error
    return arrays, metadata


def _header(whole: memoryview) -> tuple[int, dict[str, Any]]:
    """Where the data begins, and the header before it."""
    size = int.from_bytes(whole[:8], "little")
    if len(whole) < 8 or size > min(len(whole) - 8, _LONGEST_HEADER):
        raise ValueError("its header is cut short")
    header = json.loads(str(whole[8 : 8 + size], "utf-8"))
    if type(header) is not dict:
        raise ValueError("its header is no table")
    return 8 + size, header


def _placed(part: memoryview, dtype: np.dtype[Any], shape: list[int], views: bool) -> Array:
    if not len(part):
        return np.zeros(shape, dtype)
    array = np.frombuffer(part, dtype).reshape(shape)
    return array if views and array.flags.aligned else array.copy()


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


def computed_difference(new: Arrays, old: Arrays, schema: Schema) -> Arrays:
    """The same, computed: for whoever writes it before anybody changes `new` or `old`."""
    specs = {n: s._replace(dtype=wide(s.dtype)) if s.role == "parameter" else s for n, s in schema.items()}

    def make(name: str, start: int, stop: int) -> Array:
        cut = {name: schema[name]._replace(shape=(stop - start,))}
        mine, theirs = (Arrays.trusted({name: a.stretch(name, start, stop)}, a.roles) for a in (new, old))
        return difference(mine, theirs, Schema(cut))[name]

    return Arrays.computed(Schema(specs), make)
