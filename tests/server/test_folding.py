"""Folds on the way to the run: the same bytes whatever the order and the relays, and nothing that the run refuses."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

import umbel
from umbel import Arrays, Free, Like, Update
from umbel.core import encoding
from umbel.core.partial import Partial
from umbel.core.transform import chain
from umbel.errors import UpdateRejected
from umbel.server.folding import bundle
from umbel.wire import messages as m

MODEL = Arrays({"w": np.zeros(6, np.float32), "steps": np.int64(3)})
LIKE, NOTHING, WEIGHTED = Like(), chain(), umbel.weighted_mean()


def payload_of(value):
    return m.Payload(inline=value.to_bytes() if isinstance(value, Arrays) else encoding.encode(value))


def spec_of(*, expects=LIKE, transforms=NOTHING, fold=WEIGHTED, params=()):
    tree = {"config": {}, "inbox": None, "correction": None, "expects": expects, "params": params}
    return m.AskSpec(
        run="r", ask=1, kind="train", lane="train", digest=b"d", whole=True, fold=json.dumps(fold.spec()),
        transforms=json.dumps(chain(transforms).spec()), model=payload_of(MODEL), shared=payload_of(tree),
    )  # fmt: skip


def update_of(client, **more):
    values = np.random.default_rng(client).normal(size=6).astype(np.float32) * 10.0**client
    given = {"arrays": Arrays({"w": values, "steps": np.int64(client)}), "weight": client + 1.0, "delta": True, **more}
    return Update(**given)


def answer_of(client, update=None):
    receipt = m.Receipt(task=f"1.{client}", client=str(client), weight=9.0, metrics={"loss": client}, kept=client == 2)
    update = payload_of(update if update is not None else update_of(client))
    done = m.Done(receipt=receipt, update=update)
    return m.Message(result=m.Result(run="r", task=f"1.{client}", ask=1, client=str(client), attempt=1, done=done))


def partial_of(sheaf):
    body = m.Partial(run="r", ask=1, receipts=sheaf.receipts, partial=m.Payload(inline=sheaf.data))
    return m.Message(partial=body)


def no_file(sha):
    return None


@pytest.mark.parametrize("fold", [umbel.weighted_mean(), umbel.mean(), umbel.total()])
def test_the_same_answers_give_the_same_bytes_in_any_order_and_by_any_relays(fold):
    spec = spec_of(fold=fold)
    answers = [answer_of(client) for client in range(5)]
    whole = bundle(spec, answers, no_file)
    for order in itertools.islice(itertools.permutations(answers), 0, 120, 17):
        assert bundle(spec, order, no_file) == whole
        below = bundle(spec, order[:3], no_file)
        assert bundle(spec, [order[3], partial_of(below), order[4]], no_file) == whole


def test_large_integers_are_passed_on_as_they_are_for_the_run_to_say_how_many_it_can_hold():
    spec = spec_of(fold=umbel.total())
    large = Arrays({"w": np.zeros(6, np.float32), "steps": np.int64(2**62)})
    answers = [answer_of(client, update_of(client, arrays=large) if client == 3 else None) for client in range(5)]
    sheaf = bundle(spec, answers, no_file)
    assert [receipt.task for receipt in sheaf.receipts] == ["1.0", "1.1", "1.2", "1.4"]
    assert sheaf.refused == {"1.3"}
    assert bundle(spec, [partial_of(sheaf), answers[3]], no_file) == sheaf
    assert bundle(spec, answers[3:4], no_file) is None
    tree = encoding.decode(sheaf.data)
    tree["sums"]["arrays"]["steps"][2] = 2**31 * 4 + 1
    with pytest.raises(UpdateRejected, match="'steps' holds integers that are too large for a partial"):
        Partial.from_tree(umbel.total(), tree, Like(), MODEL)


def test_receipts_say_what_was_checked_and_what_only_the_node_knows():
    sheaf = bundle(spec_of(), [answer_of(client) for client in range(4)], no_file)
    assert [(r.task, r.client, r.weight, r.kept) for r in sheaf.receipts] == [
        ("1.0", "0", 1.0, False), ("1.1", "1", 2.0, False), ("1.2", "2", 3.0, True), ("1.3", "3", 4.0, False),
    ]  # fmt: skip
    assert sheaf.receipts[3].metrics == {"loss": 3.0}
    found = Partial.from_tree(umbel.weighted_mean(), encoding.decode(sheaf.data), Like(), MODEL)
    assert [receipt.client for receipt in found.finish().receipts] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "wrong",
    [
        Update(Arrays({"w": np.full(6, np.nan, np.float32), "steps": np.int64(1)}), delta=True),
        Update(Arrays({"w": np.zeros(5, np.float32), "steps": np.int64(1)}), delta=True),
        Update(Arrays({"v": np.zeros(6, np.float32)}), delta=True),
        update_of(1, weight=-1.0),
        {"not": "an update"},
    ],
)
def test_what_the_run_would_refuse_is_left_to_it(wrong):
    answers = [answer_of(0), answer_of(1, wrong), answer_of(2)]
    sheaf = bundle(spec_of(), answers, no_file)
    assert sheaf.refused == {"1.1"}
    assert sheaf.data == bundle(spec_of(), [answers[0], answers[2]], no_file).data


def test_bounds_of_transforms_are_checked():
    answers = [answer_of(0), answer_of(3)]  # the last is a thousand times as large
    spec = spec_of(transforms=umbel.clip_by_norm(50.0), fold=umbel.mean(), params=(None,))
    assert bundle(spec, answers, no_file).refused == {"1.3"}


@pytest.mark.parametrize("params", [None, (), (None, None), 3], ids=repr)
def test_an_ask_whose_parameters_are_not_those_of_its_transforms_folds_nothing(params):
    spec = spec_of(transforms=umbel.clip_by_norm(50.0), fold=umbel.mean(), params=params)
    assert bundle(spec, [answer_of(0)], no_file) is None


def test_a_partial_that_is_none_is_left_to_the_run():
    sheaf = bundle(spec_of(), [answer_of(2), answer_of(3)], no_file)
    lying = partial_of(sheaf)
    lying.partial.receipts[0].task = "1.1"
    foreign = partial_of(bundle(spec_of(fold=umbel.mean()), [answer_of(2), answer_of(3)], no_file))
    for wrong in (lying, foreign):
        assert bundle(spec_of(), [answer_of(0), wrong], no_file).refused == {r.task for r in wrong.partial.receipts}


def test_nothing_is_folded_where_the_ask_cannot_be_understood():
    answers = [answer_of(client) for client in range(4)]
    unknown = spec_of()
    unknown.transforms = '{"name": "of my own", "version": 1, "settings": {}}'
    routed = spec_of()
    routed.ClearField("model")
    collected = spec_of()
    collected.fold = '["of my own", {}]'
    damaged = spec_of()
    damaged.shared.inline = b"?"
    for spec in (unknown, routed, collected, damaged):
        assert bundle(spec, answers, no_file) is None
    assert bundle(spec_of(), [answer_of(0, {"not": "an update"})], no_file) is None


def test_blobs_are_read_from_their_files(tmp_path):
    answers = [answer_of(client) for client in range(3)]
    spec = spec_of()
    expected = bundle(spec, answers, no_file)
    files = {}
    payloads = [spec.model, spec.shared, *(answer.result.done.update for answer in answers)]
    for number, payload in enumerate(payloads):
        sha = bytes([number]) * 32
        files[sha] = tmp_path / str(number)
        files[sha].write_bytes(payload.inline)
        payload.blob.CopyFrom(m.Blob(sha256=sha, size=len(payload.inline)))
    assert bundle(spec, answers, files.get) == expected
    files[bytes([3]) * 32].unlink()
    del files[bytes([3]) * 32]
    assert bundle(spec, answers, files.get).refused == {"1.1"}


def test_updates_of_any_arrays_are_folded_if_they_are_alike():
    odd = Update(Arrays({"else": np.zeros(2)}), weight=1.0)
    alike = [Update(Arrays({"w": np.full(2, float(client))}), weight=1.0) for client in range(3)]
    answers = [answer_of(client, update) for client, update in enumerate([*alike, odd])]
    assert bundle(spec_of(expects=Free()), answers, no_file).refused == {"1.3"}
