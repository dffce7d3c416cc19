"""Write the protocol's test vectors: `python proto/make_vectors.py [FOLDER]`, or `make proto`.

Each file holds an object: `about` says what the lists are, and each list has one vector a line. Everything is drawn
from fixed numbers, so the same release writes the same files; tests/wire/test_vectors.py compares them.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf import json_format

from umbel.core import encoding
from umbel.core.arrays import Array, Arrays, is_floating
from umbel.core.ask import Correction
from umbel.core.elementwise import mean, weighted_mean
from umbel.core.fold import Fold
from umbel.core.partial import Partial
from umbel.core.randomness import Key
from umbel.core.sums import ArraySum, ExactScalar
from umbel.core.transform import Transform, chain
from umbel.core.update import Free, Like, Receipt, Update, as_delta, check
from umbel.entropy import Entropy
from umbel.errors import UpdateRejected
from umbel.folds.total import total
from umbel.privacy import secure_sum
from umbel.privacy.unmasking import SumSession
from umbel.transforms import (
    clip_by_norm,
    count_sketch,
    delta_mask,
    error_feedback,
    lloyd_max,
    low_rank,
    quantise,
    random_k,
    rotate,
    top_k,
)
from umbel.wire import messages as m
from umbel.work.contents import in_message

FOLDER = Path(__file__).parent / "umbel" / "v1alpha" / "vectors"
RUN, NODE_SEED, AUTHOR_SEED = "2026-red-fox", bytes(range(32)), bytes(range(32, 64))
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
LIKE = Like()


# How vectors are written: trees as JSON that says what each thing is, arrays with the bytes of their values.


def described_array(array: Array) -> dict[str, Any]:
    """An array as JSON: dtype, shape, the bytes of its values, and the values to read."""
    values = [float(v) if is_floating(array.dtype) else v.item() for v in array.reshape(-1)]
    shown = [v if not isinstance(v, float) or math.isfinite(v) else str(v) for v in values]
    data = np.ascontiguousarray(array).tobytes().hex()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data, "values": shown}


def array_of(described: Mapping[str, Any]) -> Array:
    """The array that `described_array` described."""
    dtype = BFLOAT16 if described["dtype"] == "bfloat16" else np.dtype(described["dtype"])
    return np.frombuffer(bytes.fromhex(described["data"]), dtype).reshape(described["shape"])


def described_arrays(arrays: Arrays) -> dict[str, Any]:
    """Named arrays as JSON, with their roles."""
    return {name: {"role": arrays.roles[name], **described_array(array)} for name, array in arrays.items()}


def arrays_of(described: Mapping[str, Any]) -> Arrays:
    """The arrays that `described_arrays` described."""
    return Arrays({n: array_of(d) for n, d in described.items()}, {n: d["role"] for n, d in described.items()})


KINDS: dict[str, tuple[type, Callable[[Any], list[Any]], Callable[[list[Any]], Any]]] = {
    "update": (Update, lambda u: [u.arrays, u.weight, dict(u.metrics), u.aux, u.delta], lambda p: Update(*p)),
    "like": (Like, lambda e: [e.model, e.names, e.delta, e.aux], lambda p: Like(*p)),
    "free": (Free, lambda e: [e.max_bytes, e.aux], lambda p: Free(*p)),
    "correction": (Correction, lambda c: [c.proximal, c.linear], lambda p: Correction(*p)),
}


def described(tree: Any) -> Any:
    """A tree as JSON in which everything but null, booleans and text says what it is."""
    if tree is None or isinstance(tree, bool | str):
        return tree
    if isinstance(tree, np.generic):  # first, for a float64 is a float, too
        return {"scalar": described_array(np.asarray(tree))}
    if isinstance(tree, int):
        return {"int": str(tree)}
    if isinstance(tree, float):
        return {"float": tree.hex()}
    if isinstance(tree, bytes):
        return {"bytes": tree.hex()}
    if isinstance(tree, Arrays):
        return {"arrays": described_arrays(tree)}
    if isinstance(tree, np.ndarray):
        return {"array": described_array(tree)}
    if isinstance(tree, list | tuple):
        return {type(tree).__name__: [described(item) for item in tree]}
    if isinstance(tree, Mapping):
        return {"map": [[described(k), described(v)] for k, v in tree.items()]}
    name, parts = next((n, to_parts) for n, (kind, to_parts, _) in KINDS.items() if isinstance(tree, kind))
    return {name: [described(part) for part in parts(tree)]}


def tree_of(described: Any) -> Any:
    """The tree that `described` described."""
    if not isinstance(described, dict):
        return described
    ((kind, value),) = described.items()
    plain: dict[str, Callable[[Any], Any]] = {
        "int": int,
        "float": float.fromhex,
        "bytes": bytes.fromhex,
        "arrays": arrays_of,
        "array": array_of,
        "scalar": lambda v: array_of(v)[()],
    }
    if kind in plain:
        return plain[kind](value)
    if kind == "map":
        return {tree_of(k): tree_of(v) for k, v in value}
    items = [tree_of(item) for item in value]
    return items if kind == "list" else tuple(items) if kind == "tuple" else KINDS[kind][2](items)


def structure_of(data: bytes) -> str:
    """The JSON text that an encoded tree carries."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return str(header["__metadata__"]["umbel"])


# arrays.json, trees.json


def arrays_vectors() -> dict[str, Any]:
    every = {
        "bool": np.array([True, False, True]),
        **{f"int{b}": np.array([-(2 ** (b - 1)), 2 ** (b - 1) - 1], f"i{b // 8}") for b in (8, 16, 32, 64)},
        **{f"uint{b}": np.array([0, 2**b - 1], f"u{b // 8}") for b in (8, 16, 32, 64)},
        "float16": np.array([1.5, -65504.0], np.float16),
        "bfloat16": np.array([1.5, -3.0], BFLOAT16),
        "float32": np.array([0.1, -0.0, np.inf, np.nan], np.float32),
        "float64": np.array([0.1, 5e-324]),
    }
    cases = {
        "nothing": Arrays(),
        "one matrix, row by row": Arrays({"w": np.arange(6, dtype=np.float32).reshape(2, 3)}),
        "a scalar, an empty array, names in other scripts": Arrays(
            {"s": np.float64(2.5), "e": np.zeros((0, 3), np.float32), "größe/β\n": np.ones(1, np.int64)}
        ),
        "every dtype: the widest first, then by name": Arrays(every),
        "roles that differ from the usual ones are metadata": Arrays(
            {"mean": np.ones(2, np.float32), "head": np.ones(1, np.float32), "w": np.ones(1, np.float32)},
            {"mean": "buffer", "head": "personal"},
        ),
    }
    return {
        "about": "vectors: named arrays, and the safetensors file that they become. wrong: bytes to refuse.",
        "vectors": [
            {"name": name, "arrays": described_arrays(arrays), "bytes": arrays.to_bytes().hex()}
            for name, arrays in cases.items()
        ],
        "wrong": [{"name": name, "bytes": data.hex()} for name, data in _wrong_arrays().items()],
    }


def _wrong_arrays() -> dict[str, bytes]:
    good = Arrays({"w": np.ones(2, np.float32)}).to_bytes()
    text = b'{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}'
    return {
        "no bytes": b"",
        "cut short": good[:-1],
        "more bytes than the header says": good + b"\0",
        "a header longer than the file": b"\xff" * 7 + b"\0" + good[8:],
        "a shape that does not fit the offsets": len(text).to_bytes(8, "little") + text + bytes(8),
        "no JSON": (8).to_bytes(8, "little") + b'{"w": 1 ',
    }


def trees_vectors() -> dict[str, Any]:
    arrays = Arrays({"w": np.ones(2, np.float32), "n": np.array([3])})
    cases: dict[str, Any] = {
        "null": None,
        "numbers and text": [True, False, 0, -7, 2**70, 1.0, -0.0, 0.1, 1e300, "", "größe"],
        "what JSON has no numbers for": [math.nan, math.inf, -math.inf],
        "an array at the top is named value": np.arange(3, dtype=np.int16),
        "a scalar keeps its dtype": {"lr": np.float32(0.5)},
        "bytes are an array of uint8": {"key": b"\0\xff", "none": b""},
        "arrays in a dictionary": {"model": arrays, "round": 3},
        "tuples are told from lists": {"shape": (2, (3,)), "list": [[1], [np.float64(1.0)]]},
        "keys that are no text": {0: "a", "b": None},
        "a key that is the tag": {"~": 1},
        "two arrays of one name": {"a/b": np.ones(1), "a": {"b": np.zeros(1)}},
        "the reserved name": {"__metadata__": np.ones(1)},
        "an update": Update(arrays, 8.0, {"loss": 0.25}, delta=True),
        "what a model's like is expected": Like(),
        "a subset of another model is expected": Like(arrays, ("w*",), False, Free(100)),
        "anything is expected": Free(),
        "a correction": Correction(0.5, Arrays({"w": np.full(2, 0.25, np.float32)})),
        "what all clients of an ask get": {
            "model": None,
            "config": {"lr": 0.5, "epochs": 2},
            "inbox": None,
            "correction": None,
            "expects": Like(),
            "params": None,
        },
    }
    vectors = []
    for name, tree in cases.items():
        data = encoding.encode(tree)
        vectors.append({"name": name, "tree": described(tree), "structure": structure_of(data), "bytes": data.hex()})
    return {
        "about": "vectors: trees, the JSON of their structure, and the safetensors file. wrong: bytes to refuse.",
        "vectors": vectors,
        "wrong": [{"name": name, "bytes": data.hex()} for name, data in _wrong_trees().items()],
    }


def _wrong_trees() -> dict[str, bytes]:
    def written(structure: str) -> bytes:
        text = json.dumps({"__metadata__": {"umbel": structure}}, separators=(",", ":")).encode()
        return len(text).to_bytes(8, "little") + text

    return {
        "arrays that are no tree": Arrays({"w": np.ones(1)}).to_bytes(),
        "another version": written('{"version": 2, "tree": null}'),
        "no JSON": written('{"version": 1, "tree": '),
        "an unknown tag": written('{"version": 1, "tree": {"~": "pickle", "parts": []}}'),
        "an array that is not there": written('{"version": 1, "tree": {"~": "array", "at": "w"}}'),
    }


# messages.json


def messages_vectors() -> dict[str, Any]:
    """What payloads carry where it is small, and messages to refuse."""
    arrays = Arrays(
        {
            "w": np.array([[0.5, -1.0]], np.float32),
            "n": np.array(3),
            "running": np.zeros((0, 2)),
            "é": np.array([True]),
        },
        {"running": "buffer"},
    )
    shared: dict[str, Any] = {"config": {}, "inbox": None, "correction": None, "expects": Like(), "params": ()}
    cases = {
        "arrays": arrays,
        "no arrays": Arrays(),
        "brain floats": Arrays({"w": np.array([1.5], BFLOAT16)}),
        "a personal array": Arrays({"own": np.zeros(0, np.float32)}, {"own": "personal"}),
        "an update": Update(arrays, 2.5, {}, Arrays(), True),
        "an update with aux arrays": Update(Arrays(), 1.0, {}, arrays),
        "what all clients get, and it is the usual": shared,
        "settings, and what a transform needs": {**shared, "config": {"lr": 0.5}, "params": ({"k": 3},)},
        "an inbox, and anything is expected": {**shared, "inbox": arrays, "expects": Free(100)},
        "tasks have models of their own": {**shared, "own": ["model"]},
    }
    vectors = []
    for name, value in cases.items():
        kind = "Given" if isinstance(value, dict) else type(value).__name__
        vectors.append({"name": name, "message": kind, "tree": described(value), "bytes": in_message(value).hex()})
    whole = {"name": "w", "dtype": m.DTYPE_FLOAT32, "shape": [2], "values": bytes(8)}
    wrong = {
        "values that do not fit the shape": [{**whole, "shape": [3]}],
        "no dtype": [{**whole, "dtype": 0}],
        "a name that is none": [{**whole, "name": ""}],
        "a name twice": [whole, whole],
        "whole numbers that are trained": [{**whole, "dtype": m.DTYPE_INT32, "role": m.ARRAY_ROLE_PARAMETER}],
    }
    return {
        "about": "vectors: what a payload carries, and the message that it becomes. wrong: Arrays to refuse.",
        "vectors": vectors,
        "wrong": [
            {"name": name, "bytes": m.Arrays(arrays=[m.Array(**row) for row in rows]).SerializeToString().hex()}
            for name, rows in wrong.items()
        ],
    }


# draws.json


def draws_vectors() -> dict[str, Any]:
    key = Key.from_seed(20240229)
    task = key.derive("task")
    paths: list[tuple[str | int | bytes, ...]] = [
        ("train", 7), ("train", "7"), ("train", b"7"), ("train7",), (-1,), (0,), ("größe", 2**70), ("", b""),
    ]  # fmt: skip
    return {
        "about": "Floats are C99 hexadecimal. Each draw is the first of its key's stream, unless it says `after`.",
        "key": key.hex(),
        "seeds": [
            {"seed": str(seed), "key": Key.from_seed(seed).hex()} for seed in (0, 1, -1, 20240229, 2**64, 2**128 - 1)
        ],
        "derive": [{"parts": [_part(p) for p in path], "key": key.derive(*path).hex()} for path in paths],
        "tasks": [
            {"kind": kind, "round": r, "number": n, "client": _part(client), **_task_keys(task, kind, r, n, client)}
            for kind, r, n, client in (("train", 1, 0, 0), ("evaluate", 3, 1, 17), ("query:counts", 2, 0, "clinic-7"))
        ],
        "integer": [{"bits": bits, "value": str(key.integer(bits))} for bits in (1, 8, 32, 64, 128, 512)],
        "draws": list(_draws(key)),
    }


def _part(part: str | int | bytes) -> dict[str, str]:
    if isinstance(part, bytes):
        return {"bytes": part.hex()}
    return {"text": part} if isinstance(part, str) else {"int": str(part)}


def _task_keys(task: Key, kind: str, r: int, number: int, client: int | str) -> dict[str, str]:
    key = task.derive(kind, r, number, client)
    return {
        "key": key.hex(),
        "data_key": task.derive("data", client).hex(),
        "seed": str(key.integer(64)),
        "transform": key.derive("transform").hex(),
        "transform_part_1": key.derive("transform").derive("part", 1).hex(),
    }


def _draws(key: Key) -> Iterable[dict[str, Any]]:
    def row(name: str, given: dict[str, Any], values: Any, **more: Any) -> dict[str, Any]:
        shown = [v.hex() if isinstance(v, float) else str(v) for v in np.asarray(values).tolist()]
        return {"name": name, **given, **more, "values": shown}

    yield row("words", {"n": 10}, key.draws().words(10))
    later = key.draws()
    later.words(3)
    yield row("words", {"n": 5}, later.words(5), after=3)
    far = key.draws()
    far.words(100_001)
    yield row("words", {"n": 3}, far.words(3), after=100_001)
    yield row("uniform", {"n": 6}, key.draws().uniform(6))
    for bound in (1, 2, 10, 3 * 2**61, 2**63):
        yield row("integers", {"bound": str(bound), "n": 8}, key.draws().integers(bound, 8))
    yield row("normal", {"n": 12}, key.draws().normal(12))
    normals = key.draws().normal(20_000)
    ends = np.argsort(normals, kind="stable")[[0, 1, -2, -1]]
    for at in ends.tolist():
        yield row("normal", {"n": 1}, normals[at : at + 1], after=at)
    yield row("permutation", {"n": 12}, key.draws().permutation(12))
    for population, k in ((10, 8), (10, 5), (1000, 12), (2**63, 4)):
        yield row("sample", {"population": str(population), "k": k}, key.draws().sample(population, k))
    for p, population in ((0.3, 40), (0.01, 1000), (0.9, 12), (0.0, 5), (1.0, 5)):
        yield row("bernoulli", {"p": p.hex(), "population": population}, key.draws().bernoulli(p, population))
    weights = [1.0, 0.0, 2.5, 10.0, 0.125, 3.0, 3.0]
    yield row("weighted", {"weights": [w.hex() for w in weights], "k": 5}, key.draws().weighted(weights, 5))


# updates.json


def updates_vectors() -> dict[str, Any]:
    return {
        "about": "vectors: what a handler returned, the model it was sent, what the ask expects, and the update "
        "that is sent; with transforms also their parameters, what the last encode left, and what this one leaves. An "
        "encode has the key `key`. decoded: what the receiver makes of it. refused: an error at the holder.",
        "key": _task_key().hex(),
        "vectors": [_update_vector(**case) for case in (*_update_cases(), *_transform_cases())],
        "refused": [_refused(**case) for case in _refused_cases()],
    }


def _task_key() -> Key:
    return Key.from_seed(20240229).derive("task").derive("train", 1, 0, 0)


def _model() -> Arrays:
    return Arrays(
        {
            "w": np.array([[0.1, 0.2], [0.3, 0.4]], np.float32),
            "b": np.array([1.0, -1.0]),
            "h": np.array([0.1, 2.0], np.float16),
            "g": np.array([1.0, 3.0], BFLOAT16),
            "count": np.array([5]),
            "mean": np.array([0.5], np.float32),
            "head": np.array([9.0], np.float32),
        },
        {"mean": "buffer", "head": "personal"},
    ).as_sent()


def _new_weights() -> dict[str, Array]:
    return {
        "w": np.array([[0.7, 0.1], [-0.3, 1e10]], np.float32),
        "b": np.array([1.1, -1e-300]),
        "h": np.array([0.3, 2.002], np.float16),
        "g": np.array([1.0078125, -3.0], BFLOAT16),
        "count": np.array([12]),
        "mean": np.array([0.75], np.float32),
        "head": np.array([9.0], np.float32),
    }


def _update_cases() -> list[dict[str, Any]]:
    model, new = _model(), _new_weights()
    head = Arrays({"v": np.array([1.0, 2.0], np.float32)})
    delta = {"v": np.array([0.25, -0.5], np.float32)}
    return [
        dict(name="differences, values of buffers, nothing personal", model=model, returned=Update(new, 8)),
        dict(name="values", model=model, returned=Update(new, 8), expects=Like(delta=False)),
        dict(name="some of the names", model=model, returned=Update(new, 8), expects=Like(names=("w", "c*"))),
        dict(name="a difference already", model=head, returned=Update(delta, 2.0, delta=True)),
        dict(name="weight zero, metrics", model=head, returned=Update(head, 0, {"loss": 0.5, "at": math.nan})),
        dict(name="free arrays without a model", model=None, returned=Update(delta, 1.5), expects=Free()),
        dict(
            name="aux arrays",
            model=head,
            returned=Update(head, 1, aux=dict(delta)),
            expects=Like(aux=Free(max_bytes=64)),
        ),
        dict(
            name="values like another model's",
            model=None,
            returned=Update({"s": np.array([1, 2])}, 1),
            expects=Like(Arrays({"s": np.array([0, 0])}), delta=False),
        ),
    ]


def _transform_cases() -> list[dict[str, Any]]:
    model = Arrays({"w": np.zeros(4, np.float32), "b": np.zeros(2), "n": np.zeros(1, np.int64)})
    new = {"w": np.array([3, 0, 0, 4], np.float32), "b": np.array([12.0, 0.0]), "n": np.array([70])}
    ties = {**new, "w": np.array([1, -2, 2, 0.1], np.float32)}
    residual = Arrays({"w": np.array([0.5, 0, 0.25, 3], np.float32), "b": np.array([0.0, 100.0])})
    return [
        dict(name="a norm of 13 clipped to 6.5", model=model, returned=Update(new, 1), steps=(clip_by_norm(6.5),)),
        dict(name="clipped by 0.1/13, rounded", model=model, returned=Update(new, 1), steps=(clip_by_norm(0.1),)),
        dict(name="within the norm", model=model, returned=Update(new, 1), steps=(clip_by_norm(13.0),)),
        dict(name="a scale below 1e-30", model=model, returned=Update(new, 1), steps=(clip_by_norm(1e-35),)),
        dict(name="the largest half; of equals the first", model=model, returned=Update(ties, 1), steps=(top_k(0.5),)),
        dict(
            name="the largest tenth, at least one, with what was left before",
            model=model,
            returned=Update(ties, 1),
            steps=(top_k(0.1),),
            local=(residual,),
        ),
        dict(
            name="0.625 of four is two (half to even), nothing is kept",
            model=model,
            returned=Update(ties, 1),
            steps=(top_k(0.625, error_feedback=False),),
            local=(residual,),
        ),
        dict(
            name="a chain",
            model=model,
            returned=Update(new, 1),
            steps=(top_k(0.5), clip_by_norm(1.0)),
            local=(residual, None),
        ),
        *_compressed_cases(),
    ]


def _compressed_cases() -> Iterator[dict[str, Any]]:
    """Those whose sums are exact, so that they are the same on every machine."""
    rows = np.array([[0, 3, 0, -0.5, 6, 0], [0.75, 4, 0, 0, 8, 0.25]], np.float32)
    model = Arrays({"w": np.zeros((2, 6), np.float32), "b": np.zeros(1), "n": np.zeros(1, np.int64)})
    new = {"w": rows, "b": np.array([12.0]), "n": np.array([70])}
    right = Arrays({"w": np.array([[0, 1, 0, 0, 1, 0]], np.float32)})
    for name, steps in {
        "8 bits, the nearer level": (quantise(8, stochastic=False, block=8),),
        "8 bits, drawn": (quantise(8, block=8),),
        "4 bits, drawn, the first in the low bits": (quantise(4, block=8),),
        "4-bit floats, drawn": (quantise(4, kind="e3m0", block=8),),
        "signs and the mean size of a block": (quantise(1, stochastic=False, block=8),),
        "signs, drawn": (quantise(1, block=8),),
        "levels for normal numbers": (delta_mask(5.0), lloyd_max(2, block=8)),
        "rotated by eight and by four, which fills it up": (rotate(8),),
        "rotated, then 8 bits": (rotate(8), quantise(8, stochastic=False, block=8)),
        "the largest quarter in 8 bits": (top_k(0.25, error_feedback=False), quantise(8, stochastic=False, block=8)),
        "a random third": (random_k(1 / 3),),
        "what is above 2": (delta_mask(2.0),),
        "what is left out is kept": (error_feedback(), delta_mask(2.0)),
        "a sketch of two rows of three": (count_sketch(0.5, rows=2, seed=3),),
    }.items():
        yield dict(name=name, model=model, returned=Update(new, 1), steps=steps)
    yield dict(
        name="what was left out before is added",
        model=model,
        returned=Update(new, 1),
        steps=(error_feedback(), delta_mask(2.0)),
        local=(Arrays({"w": np.full((2, 6), 1.5, np.float32)}), None),
    )
    yield dict(
        name="factors of a matrix, from where the server says",
        model=model,
        returned=Update({**new, "w": np.outer([3, 4], rows[0]).astype(np.float32)}, 1),
        steps=(low_rank(1, warm_start=True),),
        params=({"w": right["w"]},),
    )


def _update_vector(
    name: str,
    model: Arrays | None,
    returned: Update,
    expects: Like | Free = LIKE,
    steps: tuple[Transform, ...] = (),
    local: Any = None,
    params: Any = None,
) -> dict[str, Any]:
    step, returned = chain(*steps), _as_tree(returned)
    schema = expects.schema(model)
    params = step.send(step.init(schema)) if params is None else params
    update, left = step.encode(as_delta(returned, expects, model), params, local, _task_key().derive("transform"))
    data = encoding.encode(update)
    received = step.decode(encoding.decode(data), params, schema)
    contribution = check(received, expects, model, 0)
    return {
        "name": name,
        "model": described(model),
        "expects": described(expects),
        "returned": described(returned),
        "transforms": json.dumps(step.spec()),
        "params": described(params),
        "local": described(local),
        "update": described(update),
        "bytes": data.hex(),
        "left": described(left),
        "decoded": described(contribution.arrays),
    }


def _as_tree(update: Update) -> Update:
    return Update(
        Arrays(update.arrays), float(update.weight), dict(update.metrics), Arrays(update.aux), delta=update.delta
    )


def _refused_cases() -> list[dict[str, Any]]:
    model = Arrays({"w": np.zeros(2, np.float32), "n": np.zeros(1, np.int64)})
    good = {"w": np.ones(2, np.float32), "n": np.ones(1, np.int64)}
    return [
        dict(name="a name is missing", model=model, returned=Update({"w": good["w"]})),
        dict(name="a name that the model has not", model=model, returned=Update({**good, "v": np.ones(1)})),
        dict(name="another shape", model=model, returned=Update({**good, "w": np.ones((1, 2), np.float32)})),
        dict(name="another dtype", model=model, returned=Update({**good, "w": np.ones(2)})),
        dict(name="NaN", model=model, returned=Update({**good, "w": np.array([1, np.nan], np.float32)})),
        dict(name="infinity", model=model, returned=Update({**good, "w": np.array([1, np.inf], np.float32)})),
        dict(name="a negative weight", model=model, returned=Update(good, -1.0)),
        dict(name="a weight that is no number", model=model, returned=Update(good, math.nan)),
        dict(name="beyond 2**960", model=model, returned=Update(good, 2.0**960)),
        dict(name="aux arrays that nobody asked for", model=model, returned=Update(good, 1, aux={"a": np.ones(1)})),
        dict(
            name="a difference where values are expected",
            model=model,
            returned=Update(good, delta=True),
            expects=Like(delta=False),
        ),
        dict(
            name="more bytes than allowed", model=None, returned=Update({"a": np.zeros(9)}), expects=Free(max_bytes=64)
        ),
    ]


def _refused(name: str, model: Arrays | None, returned: Update, expects: Like | Free = LIKE) -> dict[str, Any]:
    try:
        check(as_delta(returned, expects, model), expects, model, 0)
    except UpdateRejected as error:
        why = error.message
    return {
        "name": name,
        "model": described(model),
        "expects": described(expects),
        "returned": described(_as_tree(returned)),
        "why": why,
    }


# partials.json


def partials_vectors() -> dict[str, Any]:
    scalars: list[tuple[float, ...]] = [(), (0.0,), (1.0,), (0.1, 0.2, 0.3), (-8.0, 0.5), (1e300, -1e300), (5e-324,)]
    sums = []
    for terms in scalars:
        exact = ExactScalar()
        for term in terms:
            exact.add(term)
        sums.append({"terms": [t.hex() for t in terms], "text": exact.encode(), "value": exact.value.hex()})
    return {
        "about": "scalars: exact sums of floats. sums: reproducible sums of weighted arrays. partials: updates as they "
        "are folded (decoded, with their receipts), the partial's tree and its bytes, and what its fold finishes to.",
        "scalars": sums,
        "sums": [_sum_vector(name, terms) for name, terms in _sum_cases().items()],
        "partials": [_partial_vector(*case) for case in _partial_cases()],
    }


def _sum_cases() -> dict[str, list[tuple[Array, float]]]:
    f32 = np.float32
    return {
        "zeros have no bins": [(np.zeros(3, f32), 1.0)],
        "no elements": [(np.zeros((0, 2), f32), 1.0)],
        "one array": [(np.array([1.0, -0.1, 1e-30], f32), 1.0)],
        "weights": [(np.array([0.1, 0.2], f32), 3.0), (np.array([-0.7, 1e6], f32), 0.1)],
        "the level rises": [(np.array([1.0, 1e-20], f32), 1.0), (np.array([1e20, 0.0], f32), 1.0)],
        "three bins": [(np.array([1.0, 1e-30]), 1.0), (np.array([[0.1, 0.2]])[0], 0.3)],
        "whole numbers": [(np.array([2**62, -1]), 1.0), (np.array([1, -1]), 2.0)],
        "16 bits": [(np.array([1.5, -2.0], np.float16), 1.0)],
        "brain floats": [(np.array([1.5, -2.0], BFLOAT16), 2.0)],
        "booleans": [(np.array([True, False]), 1.0), (np.array([True, True]), 1.0)],
        "a scalar": [(np.array(0.25, f32), 4.0)],
    }


def _sum_vector(name: str, terms: list[tuple[Array, float]]) -> dict[str, Any]:
    result = ArraySum(terms[0][0].shape, terms[0][0].dtype)
    for array, weight in terms:
        result.add(array, weight)
    return {
        "name": name,
        "terms": [{"weight": weight.hex(), "array": described_array(array)} for array, weight in terms],
        "bytes": result.encode().hex(),
        "value": described_array(result.value()),
    }


def _partial_cases() -> list[tuple[str, Fold, list[Update]]]:
    def update(seed: int, weight: float, aux: bool = False) -> Update:
        draws = Key.from_seed(seed).draws()
        arrays = Arrays({"w": draws.normal(3).astype(np.float32), "n": draws.integers(100, 1)})
        return Update(arrays, weight, {"loss": 0.5 * seed}, {"a": draws.normal(2)} if aux else Arrays(), delta=True)

    three = [update(seed, weight) for seed, weight in ((1, 10.0), (2, 0.0), (3, 2.5))]
    return [
        ("nothing", weighted_mean(), []),
        ("by weight", weighted_mean(), three),
        ("by weight, bounded", weighted_mean(max_weight=4.0), three),
        ("plain, with aux arrays", mean(), [update(seed, 1.0, aux=True) for seed in (4, 5)]),
        ("sums, integers exactly", total(), three),
    ]


def folded(fold: Fold, updates: list[Update]) -> Partial:
    """A partial of these updates, of the clients 0, 1, ... in the ask 3."""
    partial = Partial(fold)
    for client, update in enumerate(updates):
        arrays = Arrays(update.arrays)
        aux = Free() if len(update.aux) else None
        item = check(update, Like(arrays, aux=aux), arrays, client)
        partial.add(item, Receipt(f"3.{client}", client, item.weight, dict(update.metrics), 0.5))
    return partial


def _partial_vector(name: str, fold: Fold, updates: list[Update]) -> dict[str, Any]:
    tree = folded(fold, updates).to_tree()
    data = encoding.encode(tree)
    answer = None
    if updates:
        answer = described(folded(fold, updates).finish().value)
    return {
        "name": name,
        "fold": json.dumps(fold.spec()),
        "updates": [described(_as_tree(update)) for update in updates],
        "tree": described(tree),
        "bytes": data.hex(),
        "answer": answer,
    }


# frames.json


def meaning(message: Any) -> Any:
    """A message in protobuf's JSON, with the names of the fields as the schema has them."""
    return _sorted(json_format.MessageToDict(message, preserving_proto_field_name=True))


def _sorted(shown: Any) -> Any:
    """The same with metrics by name: the order of maps is left open."""
    if isinstance(shown, list):
        return [_sorted(item) for item in shown]
    if not isinstance(shown, dict):
        return shown
    return {k: dict(sorted(v.items())) if k == "metrics" else _sorted(v) for k, v in shown.items()}


def written(message: Any) -> bytes:
    """A message as bytes: fields by number, maps by key."""
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def frame(number: int, *bodies: Any) -> Any:
    """A frame of messages, each given as its body."""
    fields = {field.message_type.name: field.name for field in m.Message.DESCRIPTOR.fields}
    return m.Frame(number=number, messages=[m.Message(**{fields[type(b).DESCRIPTOR.name]: b}) for b in bodies])


def _frame_vector(name: str, made: Any) -> dict[str, Any]:
    return {"name": name, "meaning": meaning(made), "bytes": written(made).hex()}


def bodies() -> dict[str, Any]:
    """One message of each kind, with every field set that can be."""
    digest, other = hashlib.sha256(b"model").digest(), hashlib.sha256(b"update").digest()
    model = m.Blob(sha256=digest, size=3_000_000_000)
    receipt = m.Receipt(
        task="3.17", client="17", weight=600.0, metrics={"loss": 0.25, "a": -0.0}, seconds=1.5, staleness=2, kept=True
    )
    steps = [m.Step(name="clip_by_norm", version=1), m.Step(name="top_k", version=2)]
    capabilities = m.Capabilities(
        kinds=["train", "evaluate"], transforms=steps, dtypes=["float32", "bfloat16"], archives=True, partials=False
    )
    done = m.Done(receipt=receipt, update=m.Payload(blob=m.Blob(sha256=other, size=70_000)))
    place: dict[str, Any] = dict(run=RUN, task="3.17", ask=3, client="17", attempt=1)
    limits = m.Limits(
        frame_bytes=4 << 20, chunk_bytes=1 << 20, inline_bytes=1 << 14, name_bytes=256, messages=4096, idle_seconds=30
    )
    member = m.Member(client="17", node="9f86d081884c7d65", standing=m.STANDING_REFUSED, reason="not in its policy")
    keys: dict[str, Any] = dict(key=bytes(range(32)), data_key=bytes(range(32, 64)))
    found = [
        m.Hello(
            version=m.Version(least=1, most=1), role=m.ROLE_NODE, name="clinic", key=bytes(range(32)), token="t1",
            nonce=bytes(range(64, 96)), software="umbel 0.1", capabilities=capabilities, clients=["17", "clinic-7"],
        ),
        m.Challenge(version=1, nonce=bytes(range(96, 128)), server="s1"),
        m.Proof(signature=bytes(64), seal=bytes(64)),
        m.Welcome(session="x1", id="9f86d081884c7d65", limits=limits, same_machine=True, name="ward-3"),
        m.Problem(code=m.CODE_BUSY, text="too many connections", retry=True),
        m.Ping(id=7),
        m.Pong(id=7),
        m.Want(blob=model, run=RUN, offset=1 << 20, credit=8 << 20, place="/var/umbel/x"),
        m.Chunk(sha256=digest, offset=1 << 20, data=b"\0\1\2"),
        m.Credit(sha256=digest, bytes=1 << 20),
        m.Linked(sha256=digest),
        m.Unwanted(sha256=digest, reason="the ask is over"),
        m.RunSpec(
            run=RUN, name="digits", archive=m.Payload(blob=m.Blob(sha256=other, size=4096)), author=bytes(32),
            signature=bytes(64), contract='{"version": 1}', config='{"lr": 0.1}', clients=["17"],
        ),
        m.AskSpec(
            run=RUN, ask=3, round=2, number=1, kind="train", lane="train", digest=digest, cohort=10, whole=True,
            fold='["weighted_mean", {"max_weight": null}]', transforms="[]",
            model=m.Payload(blob=model), shared=m.Payload(inline=b"\1\2"),
        ),
        m.Task(**{**place, **keys, "base": "1.17", "own": m.Payload(inline=b"\3")}),
        m.Cancel(run=RUN, tasks=["3.17", "3.18"]),
        m.CloseAsk(run=RUN, ask=3),
        m.CloseRun(run=RUN, status="finished"),
        m.Refold(run=RUN, ask=3, without=["3.17"]),
        m.RunAnswer(run=RUN, ready=False, reason="it needs torch", clients=["17"]),
        m.Result(**place, done=done),
        m.Partial(run=RUN, ask=3, receipts=[receipt], partial=m.Payload(inline=b"\4")),
        m.Alive(run=RUN, tasks=["3.17"]),
        m.Ack(run=RUN, tasks=["3.17"], attempt=1, failed=True),
        m.Hosted(clients=["17", "clinic-7"]),
        m.Members(run=RUN, members=[member]),
        m.Notice(text="client 4 is hosted by another node"),
        m.LogEvent(run=RUN, number=1, event='{"event": "round_started", "round": 1}'),
        m.LogAck(run=RUN, number=1),
        m.Request(id=1, method="runs", body="{}"),
        m.Response(id=1, body="[]", more=True, code=m.CODE_NOT_ALLOWED, text="a token that reads"),
    ]  # fmt: skip
    return {type(body).DESCRIPTOR.name: body for body in found}


def frames_vectors() -> dict[str, Any]:
    made = bodies()
    failure = m.Failure(reason="its train handler raised ValueError: no data", retry=False)
    result = m.Result(run=RUN, task="3.17", ask=3, client="17", attempt=2, failure=failure)
    largest = 2**64 - 1
    blob = m.Blob(sha256=bytes(32), size=largest >> 1)
    vectors = [
        *(_frame_vector(f"{name}, every field", frame(3, body)) for name, body in made.items()),
        _frame_vector("a result that failed", frame(4, result)),
        _frame_vector("several messages, in this order", frame(2, made["Ack"], made["CloseAsk"], m.Ping())),
        _frame_vector("the largest number", frame(largest, m.Ping(id=largest))),
        _frame_vector("the largest varints", frame(128, m.Want(blob=blob, offset=largest >> 1, credit=largest))),
        _frame_vector("messages whose fields are all unset", frame(1, m.Pong(), m.Alive(), m.Unwanted())),
        _frame_vector("metrics that are not finite", frame(1, _strange_metrics())),
    ]
    return {
        "about": "vectors: frames, in protobuf's JSON and as bytes (fields by number, maps by key). reading: bytes "
        "that mean the same as others, or have fields that are not known, which are kept where a message is sent on. "
        "wrong: what to refuse, with its code, when `sender` has sent its frames up to `next` - 1 under these limits.",
        "vectors": vectors,
        "reading": _reading(),
        "limits": meaning(small_limits()),
        "wrong": [
            {"name": name, "sender": sender, "next": following, "bytes": data.hex(), "code": m.Code.Name(code)}
            for name, sender, following, data, code in _wrong_frames()
        ],
    }


def _strange_metrics() -> Any:
    metrics = {"a": math.nan, "b": math.inf, "c": -math.inf, "": 5e-324}
    return m.Result(run=RUN, task="3.0", done=m.Done(receipt=m.Receipt(task="3.0", metrics=metrics)))


def small_limits() -> Any:
    """The limits under which the wrong frames are wrong."""
    return m.Limits(frame_bytes=400, chunk_bytes=64, inline_bytes=64, name_bytes=32, messages=4, idle_seconds=20)


def _reading() -> list[dict[str, Any]]:
    ping = frame(1, m.Ping(id=3))
    message = m.Message(ping=m.Ping(id=3)).SerializeToString()
    padded = bytes.fromhex("0881800012") + bytes([len(message)]) + message
    unknown = bytes.fromhex("fa3f0378797a")  # field 1023, three bytes
    odd = bytes.fromhex("080112042a020863")  # a problem of code 99
    cases = [
        ("fields in another order", bytes([0x12, len(message)]) + message + bytes([8, 1]), ping, False),
        ("a varint that is longer than it need be", padded, ping, False),
        ("of a number given twice the last one counts", bytes.fromhex("08090801") + written(ping)[2:], ping, False),
        ("an unknown field of the frame", written(ping) + unknown, ping, True),
        (
            "an unknown field of a message's body",
            bytes.fromhex("0801120a3208") + bytes.fromhex("0803") + unknown,
            ping,
            True,
        ),
        ("a code that is not known", odd, m.Frame.FromString(odd), True),
    ]  # fmt: skip
    return [
        {"name": name, "bytes": data.hex(), "meaning": meaning(parsed), "kept": kept}
        for name, data, parsed, kept in cases
    ]


def _wrong_frames() -> list[tuple[str, str, int, bytes, int]]:
    node, server = "node", "server"
    ack = m.Ack(run=RUN, tasks=["3.17"])
    body = written(frame(3, m.Ping()))
    long_name = m.CloseRun(run="r" * 33)
    short_hash = m.Want(blob=m.Blob(sha256=b"x" * 31), run=RUN)
    chunk = m.Chunk(sha256=bytes(32), offset=0, data=bytes(65))
    inline = m.RunSpec(run=RUN, archive=m.Payload(inline=bytes(65)))
    large = body + bytes.fromhex("fa3fa003") + bytes(416)
    group = bytes.fromhex("08031c")  # ends a group that never began
    return [
        ("a frame that is cut", node, 3, body[:-1], m.CODE_MALFORMED),
        ("a varint without an end", node, 3, bytes([8]) + b"\xff" * 11, m.CODE_MALFORMED),
        ("the end of a group", node, 3, group, m.CODE_MALFORMED),
        ("text that is not UTF-8", node, 3, bytes.fromhex("080312062a041202fffe"), m.CODE_MALFORMED),
        ("no message", node, 3, written(frame(3)), m.CODE_MALFORMED),
        ("a message without a body", node, 3, bytes.fromhex("08031200"), m.CODE_MALFORMED),
        ("a body that is not known", node, 3, bytes.fromhex("08031203a20600"), m.CODE_MALFORMED),
        ("a hash of 31 bytes", node, 3, written(frame(3, short_hash)), m.CODE_MALFORMED),
        ("no number", node, 3, b"", m.CODE_OUT_OF_ORDER),
        ("a number again", node, 3, written(frame(2, m.Ping())), m.CODE_OUT_OF_ORDER),
        ("a number left out", node, 3, written(frame(4, m.Ping())), m.CODE_OUT_OF_ORDER),
        ("a second hello", node, 3, written(frame(3, m.Hello())), m.CODE_NOT_ALLOWED),
        ("a first frame that is no hello", node, 1, written(frame(1, m.Ping())), m.CODE_OUT_OF_ORDER),
        ("more bytes than a frame may have", node, 3, large, m.CODE_TOO_LARGE),
        ("more messages than a frame may have", node, 3, written(frame(3, *[m.Ping()] * 5)), m.CODE_TOO_LARGE),
        ("a name that is too long", server, 3, written(frame(3, long_name)), m.CODE_TOO_LARGE),
        ("more inline than may be", server, 3, written(frame(3, inline)), m.CODE_TOO_LARGE),
        ("a chunk that is too large", server, 3, written(frame(3, chunk)), m.CODE_TOO_LARGE),
        ("a node that acknowledges", node, 3, written(frame(3, ack)), m.CODE_NOT_ALLOWED),
        ("a node that gives tasks", node, 3, written(frame(3, m.Task(run=RUN, task="3.17"))), m.CODE_NOT_ALLOWED),
        ("a server that answers tasks", server, 3, written(frame(3, m.Alive(run=RUN))), m.CODE_NOT_ALLOWED),
    ]  # fmt: skip


# handshake.json


NONCES = {name: hashlib.sha256(name.encode()).digest() for name in ("node 1", "server 1", "node 2", "server 2", "run")}
SECRET = "000102030405060708090a0b0c0d0e0f"
TOKEN_SEED = hashlib.sha256(b"umbel/v1alpha\0token\0" + SECRET.encode()).digest()


def transcript(hello: bytes, challenge: bytes) -> bytes:
    """What is signed and sealed."""
    return b"umbel/v1alpha\0" + hashlib.sha256(hello).digest() + hashlib.sha256(challenge).digest()


def public(seed: bytes) -> bytes:
    """The public key of an Ed25519 seed."""
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def greeting(session: int, token: str = "") -> tuple[Any, Any, Any]:
    """A node's hello, the challenge, and its proof."""
    steps = [m.Step(name=name, version=version) for name, version in (("clip_by_norm", 1), ("top_k", 2))]
    hello = m.Hello(
        version=m.Version(least=1, most=1), role=m.ROLE_NODE, name="clinic", key=public(NODE_SEED), token=token,
        nonce=NONCES[f"node {session}"], software="vectors 1", clients=["17"],
        capabilities=m.Capabilities(kinds=["train"], transforms=steps, dtypes=["float32", "float64", "int64"]),
    )  # fmt: skip
    challenge = m.Challenge(version=1, nonce=NONCES[f"server {session}"], server="9d3c")
    about = transcript(written(hello), written(challenge))
    proof = m.Proof(signature=Ed25519PrivateKey.from_private_bytes(NODE_SEED).sign(b"node\0" + about))
    if token:
        proof.seal = sealed(about)
    return hello, challenge, proof


def sealed(about: bytes) -> bytes:
    """The seal of a token's holder."""
    return Ed25519PrivateKey.from_private_bytes(TOKEN_SEED).sign(b"token\0" + about)


def handshake_vectors() -> dict[str, Any]:
    run = m.Hello(
        version=m.Version(least=1, most=3), role=m.ROLE_RUN, name=RUN, token="0123456789ab", nonce=NONCES["run"],
        software="vectors 1",
    )  # fmt: skip
    challenge = m.Challenge(version=1, nonce=NONCES["server 1"], server="9d3c")
    about = transcript(written(run), written(challenge))
    archive = hashlib.sha256(b"archive").digest()
    return {
        "about": "handshakes: of a node that is known, of one that joins by a token, of a run; `hello` and `challenge` "
        "are the messages without the frame, as they are hashed. archives: what an author signs.",
        "node_seed": NODE_SEED.hex(),
        "node_key": public(NODE_SEED).hex(),
        "node_id": node_id(public(NODE_SEED)),
        "token": f"0123456789ab.{SECRET}",
        "token_seed": TOKEN_SEED.hex(),
        "token_key": public(TOKEN_SEED).hex(),
        "handshakes": [
            _handshake("a node that is known", *greeting(1)),
            _handshake("a node that joins", *greeting(2, "0123456789ab")),
            _handshake("a run", run, challenge, m.Proof(seal=sealed(about))),
        ],
        "statements": [
            {
                "author_seed": AUTHOR_SEED.hex(),
                "author": public(AUTHOR_SEED).hex(),
                "statement": statement(archive).decode(),
                "signature": signed(statement(archive)).hex(),
            }
        ],
    }


def statement(archive: bytes) -> bytes:
    """What the author says of a run with this archive."""
    said = {
        "app": "digits",
        "archive": archive.hex(),
        "config": hashlib.sha256(b'{"lr":0.5}').hexdigest(),
        "expires": 1800000000,
        "version": 3,
    }
    return json.dumps(said, sort_keys=True, separators=(",", ":")).encode()


def signed(statement: bytes) -> bytes:
    """The author's signature."""
    return Ed25519PrivateKey.from_private_bytes(AUTHOR_SEED).sign(b"statement\0" + statement)


def _handshake(name: str, hello: Any, challenge: Any, proof: Any) -> dict[str, Any]:
    about = transcript(written(hello), written(challenge))
    return {
        "name": name,
        "hello": written(hello).hex(),
        "challenge": written(challenge).hex(),
        "transcript": about.hex(),
        "signature": proof.signature.hex(),
        "seal": proof.seal.hex(),
        "frames": [
            {"from": "client", **_shown(frame(1, hello))},
            {"from": "server", **_shown(frame(1, challenge))},
            {"from": "client", **_shown(frame(2, proof))},
        ],
    }


def _shown(made: Any) -> dict[str, Any]:
    return {"meaning": meaning(made), "bytes": written(made).hex()}


# exchange.json, task.json


class Dialogue:
    """What two peers say to one another, frame after frame, over several connections."""

    def __init__(self, first: str, second: str) -> None:
        self.lines: list[dict[str, Any]] = []
        self._peers = (first, second)
        self._numbers: dict[str, int] = {}
        self._connection = 0

    def connect(self, sent: int) -> None:
        """A new connection on which each side has sent so many frames."""
        self._connection += 1
        self._numbers = dict.fromkeys(self._peers, sent)

    def say(self, peer: str, why: str, *said: Any) -> None:
        """One frame."""
        self._numbers[peer] += 1
        made = frame(self._numbers[peer], *said)
        self.lines.append({"connection": self._connection, "from": peer, "why": why, **_shown(made)})

    def note(self, text: str) -> None:
        """Something that happens on no connection."""
        self.lines.append({"note": text})


def exchange_vectors() -> dict[str, Any]:
    data = bytes((7 * i) % 256 for i in range(200))
    sha = hashlib.sha256(data).digest()
    blob = m.Blob(sha256=sha, size=len(data))
    absent = m.Blob(sha256=hashlib.sha256(b"absent").digest(), size=6)

    def chunk(start: int, stop: int) -> Any:
        return m.Chunk(sha256=sha, offset=start, data=data[start:stop])

    talk = Dialogue("receiver", "sender")
    talk.connect(2)
    talk.say("receiver", "two chunks' credit", m.Want(blob=blob, run=RUN, offset=0, credit=128))
    talk.say("sender", "as much as a chunk may hold", chunk(0, 64))
    talk.say("sender", "the credit is used up: nothing follows", chunk(64, 128))
    talk.say("receiver", "both are written: as much again", m.Credit(sha256=sha, bytes=128))
    talk.say("sender", "is cut on its way, and never seen", chunk(128, 192))
    talk.note("the connection is lost; the receiver has 128 bytes on disk; credit is forgotten")
    talk.connect(2)
    talk.say("receiver", "from where it stopped", m.Want(blob=blob, run=RUN, offset=128, credit=128))
    talk.say("sender", "chunks may share a frame; the last one is short", chunk(128, 192), chunk(192, 200))
    talk.note("the receiver has 200 bytes with the right SHA-256: done, and nothing is said about it")
    talk.say("receiver", "of what is not to be had", m.Want(blob=absent, run=RUN, credit=128))
    talk.say("sender", "not to be had", m.Unwanted(sha256=absent.sha256, reason="unknown"))
    talk.say("receiver", "again, and then no more", m.Want(blob=blob, run=RUN, credit=64))
    talk.say("sender", "on its way already", chunk(0, 64))
    talk.say("receiver", "the ask is over", m.Unwanted(sha256=sha, reason="the ask is over"))
    talk.note("the sender forgets the want; the receiver drops chunks that were on their way")
    talk.say("sender", "nothing more of it will come", m.Unwanted(sha256=sha))
    talk.say("receiver", "on one machine", m.Want(blob=blob, run=RUN, credit=64, place="/var/lib/umbel/parts/7"))
    talk.say("sender", "the whole file is at that place", m.Linked(sha256=sha))
    ticket = bytes(range(32))
    talk.say("receiver", "a server's, by a side stream or not", m.Want(blob=blob, run=RUN, credit=64, ticket=ticket))
    talk.say("sender", "without one", chunk(0, 64))
    talk.say("receiver", "a client's, which can dial", m.Want(blob=blob, run=RUN, credit=64, dials=True))
    talk.say("sender", "by a side stream", m.Linked(sha256=sha, ticket=ticket))
    return {
        "about": "A blob of 200 bytes goes from a sender to a receiver under these limits, is cut, and resumed.",
        "limits": meaning(small_limits()),
        "blob": data.hex(),
        "sha256": sha.hex(),
        "lines": talk.lines,
    }


def task_vectors() -> dict[str, Any]:
    archive = bytes(100)
    held = m.Blob(sha256=hashlib.sha256(archive).digest(), size=len(archive))
    said = statement(held.sha256)
    spec = m.RunSpec(
        run=RUN, name="digits", archive=m.Payload(blob=held), author=public(AUTHOR_SEED),
        statement=said, signature=signed(said), contract="{}", config='{"lr": 0.5}', clients=["17"],
    )  # fmt: skip
    ask, task = _asked()
    talk = Dialogue("node", "server")
    _greet(talk, 1)
    talk.say("server", "the run, to every node that may take part", spec)
    talk.say("node", "the client's archive", m.Want(blob=held, run=RUN, credit=1 << 20))
    talk.say("server", "all of it", m.Chunk(sha256=held.sha256, data=archive))
    talk.note("the node checks SHA-256, signature, policy and contract, and makes the client ready")
    talk.say("node", "it takes part", m.RunAnswer(run=RUN, ready=True))
    talk.say("server", "what is asked, then whom", ask, task)
    talk.say("node", "it is at it", m.Alive(run=RUN, tasks=[task.task]))
    result = _answered(task)
    talk.note("the result and the record that 3.17 is answered under this digest are on the node's disk")
    talk.say("node", "the result", result)
    talk.note("the connection is lost before the acknowledgement")
    _greet(talk, 2)
    talk.say("node", "what is not acknowledged, again", result)
    talk.say("server", "the run, in each session anew", spec)
    talk.say("server", "the result is stored", m.Ack(run=RUN, tasks=[task.task], attempt=task.attempt))
    talk.say("node", "it takes part, in each session anew", m.RunAnswer(run=RUN, ready=True))
    talk.say("server", "a duplicate", ask, task)
    talk.say("node", "the same answer, not done again", result)
    talk.say("server", "stored before", m.Ack(run=RUN, tasks=[task.task], attempt=task.attempt))
    other = m.AskSpec()
    other.CopyFrom(ask)
    other.digest = hashlib.sha256(b"another ask").digest()
    talk.say("server", "the ask is over", m.CloseAsk(run=RUN, ask=3))
    talk.say("server", "another ask by the same number", other, task)
    talk.say("node", "answered once, never otherwise", _refusal(task))
    refused = m.Ack(run=RUN, tasks=[task.task], attempt=task.attempt, failed=True)
    talk.say("server", "that is stored, too", refused)
    talk.say("server", "the run is over", m.CloseRun(run=RUN, status="finished"))
    talk.note("the node drops all of the run but the record that it is over")
    return {
        "about": "The life of one task, seen from the node 'clinic', which hosts the client 17; its key is that of "
        "handshake.json. The model, the update and what else is asked are inline.",
        "model": described(_small_model()),
        "returned": described(_as_tree(_small_update())),
        "lines": talk.lines,
    }


def _greet(talk: Dialogue, session: int) -> None:
    hello, challenge, proof = greeting(session)
    limits = m.Limits(
        frame_bytes=4 << 20, chunk_bytes=1 << 20, inline_bytes=1 << 14, name_bytes=256, messages=4096, idle_seconds=30
    )
    talk.connect(0)
    talk.say("node", "who it is", hello)
    talk.say("server", "to be proved", challenge)
    talk.say("node", "the proof", proof)
    talk.say("server", "let in", m.Welcome(session=f"s{session}", id=node_id(public(NODE_SEED)), limits=limits))


def node_id(key: bytes) -> str:
    """By what a node is known."""
    return hashlib.sha256(key).hexdigest()[:32]


def _small_model() -> Arrays:
    return Arrays({"w": np.array([0.5, -1.0], np.float32), "n": np.array([0])})


def _small_update() -> Update:
    return Update({"w": np.array([0.75, -1.5], np.float32), "n": np.array([3])}, 8.0, {"loss": 0.25})


def _asked() -> tuple[Any, Any]:
    shared = {"config": {"epochs": 1}, "inbox": None, "correction": None, "expects": Like(), "params": ()}
    ask = m.AskSpec(
        run=RUN, ask=3, round=2, number=0, kind="train", lane="train", digest=hashlib.sha256(b"an ask").digest(),
        cohort=10, whole=True, fold=json.dumps(weighted_mean().spec()), transforms="[]",
        model=m.Payload(message=in_message(_small_model())), shared=m.Payload(message=in_message(shared)),
    )  # fmt: skip
    keys = Key.from_seed(20240229).derive("task")
    task = m.Task(
        run=RUN, task="3.17", ask=3, client="17", attempt=1, key=keys.derive("train", 2, 0, 17).raw,
        data_key=keys.derive("data", 17).raw,
    )  # fmt: skip
    return ask, task


def _answered(task: Any) -> Any:
    update = as_delta(_small_update(), Like(), _small_model())
    receipt = m.Receipt(task=task.task, client=task.client, weight=8.0, metrics={"loss": 0.25}, seconds=1.25, kept=True)
    done = m.Done(receipt=receipt, update=m.Payload(message=in_message(update)))
    return m.Result(run=RUN, task=task.task, ask=task.ask, client=task.client, attempt=task.attempt, done=done)


def _refusal(task: Any) -> Any:
    failure = m.Failure(reason="client 17 has answered ask 3 before, when something else was asked")
    return m.Result(run=RUN, task=task.task, ask=task.ask, client=task.client, attempt=task.attempt, failure=failure)


# Secure sums: four clients through the phases of a session, of whom one is gone when it comes to the last.


def secure_vectors() -> dict[str, Any]:
    step, points = secure_sum("3.0.1", 2, 4, 1.5, 8, 10.0, ("loss",)), {client: client + 1 for client in range(4)}
    values = [[0.5, -1.0, 2.0], [0.25, 0.0, -0.75], [1.0, 1.0, 1.0]]
    words = {client: Key.from_seed(40 + client).draws() for client in points}
    secrets: dict[int, Any] = dict.fromkeys(points)
    server = SumSession("3.0.1", 2, points, {c: tuple(d for d in points if d != c) for c in points}, {})
    rows: list[dict[str, Any]] = []

    def asked(kind: str, client: int, inbox: Mapping[str, Any], update: Update | None = None) -> Arrays:
        drawn: list[str] = []

        def own(n: int) -> Any:
            found = words[client].words(n).astype("<u8")
            drawn.append(found.tobytes().hex())
            return found

        told, secrets[client] = step.take_part(kind, update or Update(), Arrays(inbox), secrets[client], Entropy(own))
        row = {"name": f"{kind} of {client}", "kind": kind, "client": client, "own": drawn}
        plain = {} if update is None else {name: described_array(array) for name, array in update.arrays.items()}
        rows.append({**row, "inbox": described(Arrays(inbox)), **plain, "answer": described(Arrays(told.arrays))})
        return Arrays(told.arrays)

    server.keys = {client: asked("phase:keys", client, {})["keys"] for client in points}
    server.take_shares({c: asked("phase:shares", c, server.asked(c))["shares"] for c in points})
    sent = {}
    for client in range(3):
        update = Update(Arrays({"w": np.float32(values[client])}), 5.0 + client, {"loss": 0.5}, delta=True)
        sealed = step.encode(update, None, None, Key.from_seed(client))[0]
        sent[client] = asked("train", client, server.received(client), sealed)
    server.summed = frozenset(sent)
    opened = {client: asked("phase:unmask", client, server.told(client)) for client in sent}
    vectors = [sent[0][name] + sent[1][name] + sent[2][name] for name in ("head", "body")]
    server.unmask(vectors, opened)
    return {
        "about": "Four clients in a session of secure_sum, at the points 1 to 4, each a neighbour of all others; "
        "client 3 is gone after phase:shares. `own` are the words of each one's own randomness, in hexadecimal, as it "
        "draws them: 32 bytes for each private key and the seed, and 64-bit words for the coefficients, first those of "
        "degree 1, the key's limbs before the seed's, each word modulo 2^31 - 1 unless it is 2^64 - 4 or more. "
        "`head` and `body` are the update before the masks. `sum` is what the server has in the end.",
        "settings": chain(step).spec(),
        "vectors": rows,
        "sum": {"head": described_array(vectors[0]), "body": described_array(vectors[1])},
    }


FILES: dict[str, Callable[[], dict[str, Any]]] = {
    "arrays": arrays_vectors,
    "trees": trees_vectors,
    "messages": messages_vectors,
    "draws": draws_vectors,
    "updates": updates_vectors,
    "partials": partials_vectors,
    "frames": frames_vectors,
    "handshake": handshake_vectors,
    "exchange": exchange_vectors,
    "task": task_vectors,
    "secure": secure_vectors,
}


def text_of(content: Mapping[str, Any]) -> str:
    """A file's text: one line for each item of a list."""
    parts = []
    for name, value in content.items():
        rows = ",\n".join("  " + json.dumps(item) for item in value) if isinstance(value, list) else ""
        parts.append(f" {json.dumps(name)}: " + (f"[\n{rows}\n ]" if rows else json.dumps(value)))
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main(folder: Path) -> None:
    """Write all files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, made in FILES.items():
        (folder / f"{name}.json").write_text(text_of(made()), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
