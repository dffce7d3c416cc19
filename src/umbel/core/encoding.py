"""Plain trees of arrays, numbers, text and containers as bytes, and back, bit for bit.

The bytes are a safetensors file: its tensors are the tree's arrays, named by their path (`model/conv.weight`), and its
one metadata entry is the tree's structure in JSON. Checkpoints, recorded answers and client state are all written this
way. Nothing is ever pickled.

A tree holds None, booleans, integers, floats, text, bytes, numpy arrays and scalars, `Arrays`, lists, tuples,
dictionaries, and instances of classes that registered themselves with `register`. `Arrays` may have files of their own,
which the tree names by their SHA-256: see `Keep` and `Find`.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CorruptFile, StrategyError
from ..files import Bytes, mapped, reading, write_pieces
from .arrays import (
    RESERVED,
    Array,
    Arrays,
    Unmade,
    can_travel,
    plain,
    read_safetensors,
    safetensors_pieces,
)

VERSION = 1
DEPTH = 64
"""So many lists, tuples and dictionaries of a tree may stand one in another."""
_TAG = "~"
_PLAIN = frozenset((type(None), bool, int, float, str))
Keep = Callable[[Arrays], str | None]
"""Keeps arrays in a file of their own, and gives its SHA-256; None where they are to be inside the tree's."""
Find = Callable[[str], Arrays]
"""Finds them again."""
_to_parts: dict[type, tuple[str, Callable[[Any], Any]]] = {}
_from_parts: dict[str, Callable[[Any], Any]] = {}


def register(kind: type, name: str, to_parts: Callable[[Any], Any], from_parts: Callable[[Any], Any]) -> None:
    """Let instances of `kind` be part of a tree: `to_parts` turns one into a tree, `from_parts` turns that back."""
    _to_parts[kind] = (name, to_parts)
    _from_parts[name] = from_parts


def pieces(tree: Any, keep: Keep = lambda arrays: None) -> Iterator[Bytes]:
    """The pieces of `encode(tree)`, one after the other: a header, then each array's own memory."""
    arrays = _Written(keep)
    try:
        structure = json.dumps({"version": VERSION, "tree": _encode(tree, "", arrays, DEPTH)})
    except StrategyError:
        raise
    except ValueError as error:  # a number of more digits than Python writes
        raise _cannot_save("", f"what JSON cannot hold ({error})") from error
    return safetensors_pieces(arrays, {"umbel": structure})


def encode(tree: Any) -> bytes:
    """Turn a tree into bytes; equal trees give equal bytes. Raises `StrategyError` naming the path of what cannot be
    saved.
    """
    return b"".join(pieces(tree))


def save_file(
    path: str | Path, tree: Any, *, durable: bool = False, keep: Keep = lambda arrays: None
) -> tuple[str, int]:
    """Write `encode(tree)` to a file, without holding it; returns its SHA-256 and size. Raises `StorageError`; an older
    file stays whole.
    """
    return write_pieces(path, pieces(tree, keep), durable=durable)


def load_file(path: str | Path, find: Find | None = None) -> Any:
    """Map a file that `save_file` wrote: the tree's arrays are read-only, and read when they are used. Raises
    `CorruptFile` and `StorageError`.

    The file may be removed or replaced meanwhile, but must not be written to or cut short.
    """
    with reading(path):
        data = mapped(path)
    return decode(data, views=True, find=find)


def decode(data: Bytes, *, views: bool = False, find: Find | None = None) -> Any:
    """Turn the bytes that `encode` made back into the tree. Raises `CorruptFile`.

    With `views` the tree's arrays are views of `data`; without, they are writable copies. `find` finds arrays that are
    in files of their own.
    """
    arrays, metadata = read_safetensors(data, views=views)
    try:
        header = json.loads(metadata["umbel"])
        if header["version"] != VERSION:
            raise CorruptFile(f"this tree has format version {header['version']}; this release reads {VERSION}")
        return _decode(header["tree"], _Read(arrays, find), DEPTH + 1)  # a leaf may be a table too
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise CorruptFile(f"these bytes hold arrays, but not a tree that Umbel wrote ({error!r:.200})") from error


class _Written(dict[str, Array | Unmade]):
    """The arrays of a tree that is written, by the names that they get in its file."""

    def __init__(self, keep: Keep) -> None:
        self.keep = keep


class _Read(dict[str, Array]):
    """The arrays of a tree that is read."""

    def __init__(self, arrays: Mapping[str, Array], find: Find | None) -> None:
        super().__init__(arrays)
        self.find = find


def named_files(path: str | Path) -> set[str]:
    """The hashes of the files that a tree's file names. Raises `CorruptFile` and `StorageError`."""
    with reading(path):
        _, metadata = read_safetensors(mapped(path), views=True)
    found: set[str] = set()

    def note(tree: dict[str, Any]) -> dict[str, Any]:
        if tree.get(_TAG) == "file":
            found.add(tree["sha256"])
        return tree

    json.loads(metadata.get("umbel", "{}"), object_hook=note)
    return found


def settled(tree: Any) -> Any:
    """The tree with its arrays in the order in which they would be read again, that of C; itself where they are.

    What outlives a process, or crosses to another one, goes through this, so that both compute the same bits with it.
    """
    kind = type(tree)
    if kind in _PLAIN:
        return tree
    if isinstance(tree, np.ndarray):
        return plain(tree)
    if kind is list or kind is tuple:
        if _PLAIN.issuperset(map(type, tree)):
            return tree
        parts = [settled(v) for v in tree]
        return tree if all(map(operator.is_, parts, tree)) else kind(parts)
    if kind is dict:
        values = [settled(v) for v in tree.values()]
        same = all(map(operator.is_, values, tree.values()))
        return tree if same else dict(zip(tree, values, strict=True))
    return tree


def _encode(tree: Any, path: str, arrays: _Written, left: int) -> Any:
    if type(tree) in _PLAIN:
        return tree
    if isinstance(tree, Arrays):
        if (sha256 := arrays.keep(tree)) is not None:
            return {_TAG: "file", "sha256": sha256, "names": list(tree)}
        names = {name: _store(array, f"{path}/{name}", arrays) for name, array in tree.parts()}
        return {_TAG: "arrays", "names": names, "roles": dict(tree.roles)}
    if isinstance(tree, np.ndarray):
        return {_TAG: "array", "at": _store(tree, path, arrays)}
    if isinstance(tree, np.generic):
        return {_TAG: "scalar", "at": _store(np.asarray(tree), path, arrays)}
    if isinstance(tree, bytes):
        return {_TAG: "bytes", "at": _store(np.frombuffer(tree, np.uint8), path, arrays)}
    if not left:
        raise _cannot_save(path, f"nested deeper than {DEPTH}")
    left -= 1
    if type(tree) is list:
        if _PLAIN.issuperset(map(type, tree)):  # long lists of numbers are common
            return tree
        return [_encode(v, f"{path}/{i}", arrays, left) for i, v in enumerate(tree)]
    if type(tree) is tuple:
        return {_TAG: "tuple", "items": [_encode(v, f"{path}/{i}", arrays, left) for i, v in enumerate(tree)]}
    if type(tree) in _to_parts:
        name, to_parts = _to_parts[type(tree)]
        return {_TAG: name, "parts": _encode(to_parts(tree), path, arrays, left)}
    if isinstance(tree, Mapping):
        if all(type(k) is str for k in tree) and _TAG not in tree:
            if _PLAIN.issuperset(map(type, tree.values())):
                return dict(tree)
            return {k: _encode(v, f"{path}/{k}", arrays, left) for k, v in tree.items()}
        pairs = [[_encode(k, path, arrays, left), _encode(v, f"{path}/{k}", arrays, left)] for k, v in tree.items()]
        return {_TAG: "map", "pairs": pairs}
    raise _cannot_save(path, f"a {type(tree).__name__}")


def _cannot_save(path: str, what: str) -> StrategyError:
    return StrategyError(
        f"{path.lstrip('/') or 'this value'} is {what}, which cannot be saved",
        hint="Keep state as arrays, numbers, text, lists and dictionaries, so that a run can be resumed from it.",
    )


def _store(array: Array | Unmade, path: str, arrays: _Written) -> str:
    name = path.lstrip("/") or "value"
    if not can_travel(array.dtype):
        raise _cannot_save(path, f"an array of {array.dtype}")
    while name in arrays or name == RESERVED:
        name += "'"
    arrays[name] = array
    return name


def _decode(tree: Any, arrays: _Read, left: int) -> Any:
    # Each array is taken out: one that is named a thousand times would else need a thousand times its memory.
    if not isinstance(tree, list | dict):
        return tree
    if not left:
        raise CorruptFile(f"this tree is nested deeper than {DEPTH}")
    left -= 1
    if isinstance(tree, list):
        return [_decode(v, arrays, left) for v in tree]
    tag = tree.get(_TAG)
    if tag is None:
        return {k: _decode(v, arrays, left) for k, v in tree.items()}
    if tag == "arrays":
        return Arrays({name: arrays.pop(at) for name, at in tree["names"].items()}, tree["roles"])
    if tag == "file":
        if arrays.find is None:
            raise CorruptFile(f"this tree has arrays in the file {tree['sha256']}.safetensors, which is not with it")
        found = arrays.find(tree["sha256"])
        chosen = found.select(tree["names"])
        chosen.stored = found.stored if len(chosen) == len(found) else None
        return chosen
    if tag == "array":
        return arrays.pop(tree["at"])
    if tag == "scalar":
        return arrays.pop(tree["at"])[()]
    if tag == "bytes":
        return arrays.pop(tree["at"]).tobytes()
    if tag == "tuple":
        return tuple(_decode(v, arrays, left) for v in tree["items"])
    if tag == "map":
        return {_decode(k, arrays, left): _decode(v, arrays, left) for k, v in tree["pairs"]}
    if tag not in _from_parts:
        import_module(".strategy", __package__)  # it stands above all of the core's own classes that register
    if tag not in _from_parts:
        raise CorruptFile(f"this tree holds a {tag!r}, which this release does not know")
    return _from_parts[tag](_decode(tree["parts"], arrays, left))
