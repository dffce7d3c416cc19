"""The recorded vectors are what their generator writes, and Umbel reads and writes each of them."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from google.protobuf import json_format

from umbel.core import encoding
from umbel.core.arrays import Arrays
from umbel.core.partial import Partial
from umbel.core.randomness import Key
from umbel.core.sums import ArraySum, ExactScalar
from umbel.core.transform import chain_from_spec
from umbel.core.update import Like, as_delta, check
from umbel.errors import CorruptFile, ProtocolError, UmbelError, UpdateRejected
from umbel.folds.catalogue import fold_from_spec
from umbel.transport import frames
from umbel.trust import identity, tokens
from umbel.trust.statement import Statement
from umbel.wire import messages as m
from umbel.wire import roles
from umbel.work import contents

PROTO = Path(__file__).parents[2] / "proto"
FOLDER = PROTO / "umbel" / "v1alpha" / "vectors"


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("make_vectors", PROTO / "make_vectors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


make = generator()


@cache
def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return found


def each(file: str, part: str = "vectors") -> pytest.MarkDecorator:
    rows = read(file)[part]
    return pytest.mark.parametrize("row", [pytest.param(row, id=str(row.get("name", i))) for i, row in enumerate(rows)])


def same(one: Any, other: Any) -> bool:
    """Whether two trees are the same to the last bit."""
    return bool(make.described(one) == make.described(other))


@pytest.mark.parametrize("name", list(make.FILES))
def test_files_are_what_the_generator_writes(name: str) -> None:
    written = (FOLDER / f"{name}.json").read_text("utf-8")
    assert written == make.text_of(make.FILES[name]()), "run `make proto`"


def test_there_are_no_other_files() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(make.FILES)


@each("arrays")
def test_arrays(row: dict[str, Any]) -> None:
    data, arrays = bytes.fromhex(row["bytes"]), make.arrays_of(row["arrays"])
    assert arrays.to_bytes() == data
    assert Arrays.from_bytes(data) == arrays


@each("arrays", "wrong")
def test_wrong_arrays(row: dict[str, Any]) -> None:
    with pytest.raises(CorruptFile):
        Arrays.from_bytes(bytes.fromhex(row["bytes"]))


@each("trees")
def test_trees(row: dict[str, Any]) -> None:
    data, tree = bytes.fromhex(row["bytes"]), make.tree_of(row["tree"])
    assert encoding.encode(tree) == data
    assert same(encoding.decode(data), tree)


@each("trees", "wrong")
def test_wrong_trees(row: dict[str, Any]) -> None:
    with pytest.raises(CorruptFile):
        encoding.decode(bytes.fromhex(row["bytes"]))


@each("messages")
def test_messages(row: dict[str, Any]) -> None:
    data, tree = bytes.fromhex(row["bytes"]), make.tree_of(row["tree"])
    assert contents.in_message(tree) == data
    payload = m.Payload(message=data)
    if row["message"] == "Arrays":
        assert contents.arrays(payload) == tree
    elif row["message"] == "Update":
        assert same(contents.answer(payload), tree)
    else:
        own = tree.pop("own", [])
        everything = {"model": None, "order": [], **tree}
        found = {"order": [], **contents.given(payload)}
        assert same(
            {name: found[name] for name in sorted(found)},
            {name: everything[name] for name in sorted(everything) if name not in own},
        )


@each("messages", "wrong")
def test_wrong_messages(row: dict[str, Any]) -> None:
    with pytest.raises(UmbelError):
        contents.arrays(m.Payload(message=bytes.fromhex(row["bytes"])))


def part_of(part: dict[str, str]) -> str | int | bytes:
    ((kind, text),) = part.items()
    return int(text) if kind == "int" else bytes.fromhex(text) if kind == "bytes" else text


def test_keys() -> None:
    draws = read("draws")
    key = Key(bytes.fromhex(draws["key"]))
    for row in draws["seeds"]:
        assert Key.from_seed(int(row["seed"])).hex() == row["key"]
    for row in draws["derive"]:
        assert key.derive(*map(part_of, row["parts"])).hex() == row["key"]
    for row in draws["integer"]:
        assert key.integer(row["bits"]) == int(row["value"])
    for row in draws["tasks"]:
        task = key.derive("task").derive(row["kind"], row["round"], row["number"], part_of(row["client"]))
        assert (task.hex(), str(task.integer(64))) == (row["key"], row["seed"])


@each("draws", "draws")
def test_draws(row: dict[str, Any]) -> None:
    stream = Key(bytes.fromhex(read("draws")["key"])).draws()
    stream.words(row.get("after", 0))
    given = {k: row[k] for k in row if k not in ("name", "after", "values")}
    for name, value in given.items():
        if isinstance(value, list):
            given[name] = [float.fromhex(v) for v in value]
        elif isinstance(value, str):
            given[name] = float.fromhex(value) if "0x" in value else int(value)
    found = getattr(stream, row["name"])(**given).tolist()
    assert [v.hex() if isinstance(v, float) else str(v) for v in found] == row["values"]


@each("updates")
def test_updates(row: dict[str, Any]) -> None:
    model, expects, returned, local = (make.tree_of(row[n]) for n in ("model", "expects", "returned", "local"))
    step, key = chain_from_spec(json.loads(row["transforms"])), Key(bytes.fromhex(read("updates")["key"]))
    params, data = make.tree_of(row["params"]), bytes.fromhex(row["bytes"])
    update, left = step.encode(as_delta(returned, expects, model), params, local, key.derive("transform"))
    assert encoding.encode(update) == data
    assert same(left, make.tree_of(row["left"]))
    received = step.decode(encoding.decode(data), params, expects.schema(model))
    assert same(check(received, expects, model, 0).arrays, make.tree_of(row["decoded"]))


@each("updates", "refused")
def test_refused_updates(row: dict[str, Any]) -> None:
    model, expects, returned = (make.tree_of(row[n]) for n in ("model", "expects", "returned"))
    with pytest.raises(UpdateRejected) as error:
        check(as_delta(returned, expects, model), expects, model, 0)
    assert error.value.message == row["why"]


@each("partials", "scalars")
def test_exact_sums(row: dict[str, Any]) -> None:
    exact = ExactScalar()
    for term in reversed(row["terms"]):
        exact.add(float.fromhex(term))
    assert exact.encode() == row["text"]
    assert ExactScalar.decode(row["text"]).value == float.fromhex(row["value"])


@each("partials", "sums")
def test_sums(row: dict[str, Any]) -> None:
    terms = [(make.array_of(term["array"]), float.fromhex(term["weight"])) for term in row["terms"]]
    merged = ArraySum(terms[0][0].shape, terms[0][0].dtype)
    for array, weight in reversed(terms):
        one = ArraySum(array.shape, array.dtype)
        one.add(array, weight)
        merged.merge(one)
    data = bytes.fromhex(row["bytes"])
    assert merged.encode() == data
    assert np.array_equal(ArraySum.decode(data).value(), make.array_of(row["value"]))


@each("partials", "partials")
def test_partials(row: dict[str, Any]) -> None:
    fold = fold_from_spec(json.loads(row["fold"]))
    assert fold is not None
    data, tree = bytes.fromhex(row["bytes"]), make.tree_of(row["tree"])
    made = make.folded(fold, [make.tree_of(update) for update in row["updates"]])
    assert encoding.encode(made.to_tree()) == data == encoding.encode(tree)
    read_back = Partial.from_tree(fold, encoding.decode(data))
    assert encoding.encode(read_back.to_tree()) == data
    if row["answer"] is not None:
        assert same(read_back.finish().value, make.tree_of(row["answer"]))


def parsed(meaning: dict[str, Any]) -> m.Frame:
    return json_format.ParseDict(meaning, m.Frame())


@each("frames")
def test_frames(row: dict[str, Any]) -> None:
    data = bytes.fromhex(row["bytes"])
    assert make.written(parsed(row["meaning"])) == data
    assert make.meaning(m.Frame.FromString(data)) == row["meaning"]


def test_there_is_a_frame_of_each_kind() -> None:
    found = {
        body for row in read("frames")["vectors"] for message in row["meaning"].get("messages", []) for body in message
    }
    assert found == {field.name for field in m.Message.DESCRIPTOR.fields}


@each("frames", "reading")
def test_frames_that_are_written_otherwise(row: dict[str, Any]) -> None:
    data = bytes.fromhex(row["bytes"])
    frame = m.Frame.FromString(data)
    assert make.meaning(frame) == row["meaning"]
    assert (make.written(frame) == data) == row["kept"]


def code_of(row: dict[str, Any]) -> int:
    """What a peer is told who sends this frame after its handshake, or as its first one."""
    limits = json_format.ParseDict(read("frames")["limits"], m.Limits())
    table = roles.SAYS if row["sender"] == "node" else roles.HEARS
    try:
        found = frames.read(bytes.fromhex(row["bytes"]), row["next"], limits)
    except ProtocolError as error:
        return error.code
    bodies = {message.WhichOneof("body") for message in found}
    if row["next"] == 1:
        return 0 if bodies == {"hello"} else m.CODE_OUT_OF_ORDER
    return 0 if bodies <= table["node"] | roles.EITHER else m.CODE_NOT_ALLOWED


@each("frames", "wrong")
def test_wrong_frames(row: dict[str, Any]) -> None:
    assert m.Code.Name(code_of(row)) == row["code"]


@pytest.mark.parametrize("part", ["vectors", "reading"])
def test_the_other_frames_are_within_the_limits(part: str) -> None:
    for row in read("frames")[part]:
        data = bytes.fromhex(row["bytes"])
        assert frames.read(data, m.Frame.FromString(data).number, frames.standard_limits())


@each("handshake", "handshakes")
def test_handshakes(row: dict[str, Any]) -> None:
    file = read("handshake")
    hello, challenge = bytes.fromhex(row["hello"]), bytes.fromhex(row["challenge"])
    about = identity.transcript(hello, challenge)
    assert about.hex() == row["transcript"]
    said = m.Hello.FromString(hello)
    if said.role == m.ROLE_NODE:
        assert identity.check_node(said.key, about, bytes.fromhex(row["signature"]))
        assert not identity.check_node(said.key, about + b"x", bytes.fromhex(row["signature"]))
    if said.token:
        token = tokens.Token.parse(file["token"])
        assert (token.id, token.key.public.hex()) == (said.token, file["token_key"])
        assert identity.check_seal(token.key.public, about, bytes.fromhex(row["seal"]))
    for line in row["frames"]:
        data = bytes.fromhex(line["bytes"])
        assert make.written(parsed(line["meaning"])) == data
    first, second, _ = (bytes.fromhex(line["bytes"]) for line in row["frames"])
    assert hello in first
    assert challenge in second


def test_node_ids_and_signed_statements() -> None:
    file = read("handshake")
    assert identity.node_id(bytes.fromhex(file["node_key"])) == file["node_id"]
    for row in file["statements"]:
        author, signature = (bytes.fromhex(row[name]) for name in ("author", "signature"))
        text = row["statement"].encode()
        said = Statement.read(author, text, signature)
        assert (said.app, said.version, said.text()) == ("digits", 3, text)
        assert not identity.check_statement(author, text[::-1], signature)


@pytest.mark.parametrize("name", ["exchange", "task"])
def test_dialogues_number_their_frames(name: str) -> None:
    numbers: dict[tuple[int, str], list[int]] = {}
    for line in read(name)["lines"]:
        if "note" in line:
            continue
        data = bytes.fromhex(line["bytes"])
        assert make.written(parsed(line["meaning"])) == data
        numbers.setdefault((line["connection"], line["from"]), []).append(m.Frame.FromString(data).number)
    assert all(found == list(range(found[0], found[0] + len(found))) for found in numbers.values())


def messages(name: str) -> list[Any]:
    lines = [line for line in read(name)["lines"] if "bytes" in line]
    return [message for line in lines for message in m.Frame.FromString(bytes.fromhex(line["bytes"])).messages]


def test_an_update_of_a_dialogue_is_the_one_described() -> None:
    file = read("task")
    model, returned = make.tree_of(file["model"]), make.tree_of(file["returned"])
    said = messages("task")
    asks = [message.ask_spec for message in said if message.HasField("ask_spec")]
    assert contents.arrays(asks[0].model) == model
    assert same(contents.given(asks[0].shared)["expects"], Like())
    results = [message.result.done for message in said if message.result.HasField("done")]
    assert {done.SerializeToString(deterministic=True) for done in results} == {make.written(results[0])}
    assert results[0].update.message == contents.in_message(as_delta(returned, Like(), model))


def test_a_transfer_brings_its_blob_within_credit() -> None:
    file = read("exchange")
    data, held, credit = bytes.fromhex(file["blob"]), b"", 0
    for line in file["lines"]:
        if "note" in line or "never seen" in line["why"]:
            continue
        for message in m.Frame.FromString(bytes.fromhex(line["bytes"])).messages:
            if message.HasField("want") and len(held) < len(data):
                assert message.want.offset == len(held)
                credit = message.want.credit
            elif message.HasField("credit"):
                credit += message.credit.bytes
            elif message.HasField("chunk") and len(held) < len(data):
                assert message.chunk.offset == len(held)
                assert len(message.chunk.data) <= min(credit, file["limits"]["chunk_bytes"])
                held, credit = held + message.chunk.data, credit - len(message.chunk.data)
    assert held == data


class Outsider:
    """A client of a secure sum, by the protocol's page alone: with the cipher's library, and integers."""

    session, prime = "3.0.1", (1 << 31) - 1

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = {row["kind"]: row for row in rows}
        drawn = [bytes.fromhex(text) for kind in ("phase:keys", "phase:shares") for text in self.rows[kind]["own"]]
        _, self.mask, self.seed = drawn[:3]
        self.agree, self.mask_pair = map(X25519PrivateKey.from_private_bytes, drawn[:2])

    def got(self, kind: str, name: str) -> Any:
        return make.tree_of(self.rows[kind]["inbox"])[name]

    def said(self, kind: str, name: str) -> Any:
        return make.tree_of(self.rows[kind]["answer"])[name]

    def derived(self, secret: bytes, purpose: str, *parts: str) -> bytes:
        more = b"".join(len(part.encode()).to_bytes(4, "little") + part.encode() for part in parts)
        return HKDF(SHA256(), 32, None, f"umbel {purpose}".encode() + more).derive(secret)

    def opened(self, sealed: bytes, peer: int, mine: int, public: bytes) -> list[list[int]]:
        secret = self.agree.exchange(X25519PublicKey.from_public_bytes(public))
        cipher = ChaCha20Poly1305(self.derived(secret, "shares", self.session, f"{peer} to {mine}"))
        plain = cipher.decrypt(bytes(12), sealed, None)
        limbs = [int.from_bytes(plain[at : at + 4], "little") for at in range(0, len(plain), 4)]
        return [limbs[:9], limbs[9:]]

    def keystream(self, key: bytes, size: int) -> bytes:
        return Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(size))


def at_zero(shares: dict[int, int], prime: int) -> int:
    """What a polynomial through these points is at 0."""
    total = 0
    for x, y in shares.items():
        for other in shares:
            y = y * other * pow(other - x, -1, prime) % prime if other != x else y
        total += y
    return total % prime


def test_an_outsider_can_take_part_in_a_secure_sum() -> None:
    """What the vectors of all phases say follows from the page, by code that is not Umbel's."""
    file = read("secure")
    clients = {at: Outsider([row for row in file["vectors"] if row["client"] == at]) for at in range(4)}
    keys = {at: each.said("phase:keys", "keys").tobytes() for at, each in clients.items()}
    held: dict[int, dict[int, list[list[int]]]] = {at: {} for at in clients}
    for at, each in clients.items():
        assert keys[at] == b"".join(pair.public_key().public_bytes_raw() for pair in (each.agree, each.mask_pair))
        peers = [point - 1 for point in each.got("phase:shares", "points").tolist()]
        for peer, sealed in zip(peers, each.said("phase:shares", "shares"), strict=True):
            held[peer][at] = clients[peer].opened(sealed.tobytes(), at + 1, peer + 1, keys[at][:32])
    for at, each in clients.items():  # any two of the others have both secrets
        for which, secret in ((0, each.mask), (1, each.seed)):
            for pair in itertools.combinations([peer for peer in clients if peer != at], 2):
                limbs = [{peer + 1: held[peer][at][which][i] for peer in pair} for i in range(9)]
                whole = sum(at_zero(limb, each.prime) << 30 * i for i, limb in enumerate(limbs))
                assert whole.to_bytes(32, "little") == secret
    total: dict[str, Any] = dict.fromkeys(("head", "body"), 0)
    for at in range(3):
        each, row = clients[at], clients[at].rows["train"]
        streams = [(1, each.derived(each.seed, "own mask", each.session))]
        for point in each.got("train", "points").tolist():
            secret = each.mask_pair.exchange(X25519PublicKey.from_public_bytes(keys[point - 1][32:]))
            streams.append((-1 if at + 1 > point else 1, each.derived(secret, "pairwise mask", each.session)))
        for name, skipped, dtype in (("head", 0, "<u8"), ("body", 24, "<u2")):
            plain = np.frombuffer(bytes.fromhex(row[name]["data"]), dtype)
            made = plain.copy()
            for sign, key in streams:
                stream = np.frombuffer(each.keystream(key, skipped + plain.nbytes)[skipped:], dtype)
                made = made + stream if sign > 0 else made - stream
            assert made.tolist() == each.said("train", name).tolist()
            total[name] = total[name] + plain
        there = [point - 1 for point in each.got("phase:unmask", "there").tolist()]
        assert each.said("phase:unmask", "seeds").tolist() == [held[at][peer][1] for peer in there]
        assert each.said("phase:unmask", "masks").tolist() == [held[at][3][0]]
    for name, row in file["sum"].items():
        assert total[name].tolist() == row["values"]
