"""Answers to an ask, checked and folded on their way to the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core import encoding
from ..core.ask import Ask
from ..core.partial import Partial
from ..core.task import Admit, Failed, Task
from ..core.transform import chain_from_spec
from ..core.update import Receipt, Update
from ..errors import StorageError, UpdateRejected
from ..folds.catalogue import fold_from_spec
from ..wire import messages as m
from ..wire.names import client_id
from ..wire.texts import read_json
from ..work import contents
from ..work.intake import Intake
from .uplink import receipts_of


@dataclass(frozen=True, slots=True)
class FoldedAnswers:
    """Answers in one: the partial's tree as bytes, its receipts, and the tasks whose answers could not be taken."""

    data: bytes
    receipts: tuple[m.Receipt, ...]
    refused: frozenset[str]


def bundle(spec: m.AskSpec, answers: Sequence[m.Message], path: Callable[[bytes], Path | None]) -> FoldedAnswers | None:
    """Fold `Result`s and `Partial`s, as the run itself would; None where that cannot be done here.

    `path` gives the file of a blob. The same answers give the same bytes.
    """
    try:
        ask, params = _ask(spec, path)
    except Exception:
        return None  # a transform or an expectation that is not known here, or differs by client
    intake = Intake()
    intake.open(spec.ask, ask, spec.round, spec.number, params)
    claimed: dict[str, m.Receipt] = {}
    for message in answers:
        claimed.update((receipt.task, receipt) for receipt in receipts_of(message))
        try:
            if message.WhichOneof("body") == "partial":
                payload = message.partial.partial
                _merge(intake, spec.ask, ask, message.partial, contents.answer(payload, _file(path, payload)))
            else:
                payload = message.result.done.update
                found = contents.answer(payload, _file(path, payload))
                _admit(intake, message.result, found, mapped=payload.HasField("blob"))
        except Exception:
            continue  # the run is to say what is wrong with it
    folded = intake.close(spec.ask).partial
    folded.agree(small=True)  # answers with other arrays than most, or large integers, are passed on as they are
    if not folded.count:
        return None
    data = encoding.encode(folded.to_tree())
    receipts, rows = [], folded.receipts
    for task in sorted(rows):
        receipt = m.Receipt()
        receipt.CopyFrom(claimed[task])
        receipt.weight = rows[task].weight
        receipts.append(receipt)
    return FoldedAnswers(data, tuple(receipts), frozenset(claimed.keys() - rows.keys()))


def _file(path: Callable[[bytes], Path | None], payload: m.Payload) -> Path | None:
    """The file of a payload; None where it is inline. Raises `StorageError`."""
    if not payload.HasField("blob"):
        return None
    found = path(payload.blob.sha256)
    if found is None:
        raise StorageError("a blob that was there is gone")
    return found


def _ask(spec: m.AskSpec, path: Callable[[bytes], Path | None]) -> tuple[Ask, Any]:
    shared = contents.given(spec.shared, _file(path, spec.shared))
    fold = fold_from_spec(read_json(spec.fold, "its fold", list))
    if fold is None:
        raise ValueError("the fold is not known here")
    model = contents.arrays(spec.model, _file(path, spec.model)) if spec.HasField("model") else shared["model"]
    made = Ask(
        clients=(),
        kind=spec.kind,
        lane=spec.lane,
        model=model,
        expects=shared["expects"],
        fold=fold,
        transforms=chain_from_spec(read_json(spec.transforms, "its transforms", list)),
    )
    return made, shared.get("params")


def _admit(intake: Intake, result: m.Result, update: Any, *, mapped: bool) -> None:
    if not isinstance(update, Update):
        raise UpdateRejected("the answer holds no update")
    told, client = result.done.receipt, client_id(result.client)
    receipt = Receipt(result.task, client, told.weight, dict(told.metrics), told.seconds)
    task = Task(result.task, result.ask, client, result.attempt)
    if not isinstance(intake.arrived(task, update, receipt, None, mapped=mapped), Failed):
        intake.admit(Admit([result.task], result.ask))


def _merge(intake: Intake, number: int, ask: Ask, body: m.Partial, tree: Any) -> None:
    expects, bound = ask.transform.folded(ask.expects), ask.transform.bound  # type: ignore[arg-type]
    found = Partial.from_tree(ask.fold, tree, expects, ask.model, bound)  # type: ignore[arg-type]
    if sorted(found.receipts) != sorted(receipt.task for receipt in body.receipts):
        raise UpdateRejected("a partial does not hold what its receipts say")
    intake.merge(number, found, {})
