"""FedDF: what the clients' models say together is distilled into one (Lin et al. 2020, arXiv 2006.07242)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ..core.answer import Answer
from ..core.arrays import Arrays
from ..core.elementwise import weighted_mean
from ..core.fold import Fold
from ..core.settings import functions
from ..core.strategy import State
from ..core.update import Contribution
from ..errors import StrategyError
from ..folds.collect import collect
from .fedavg import FedAvg, masters_of

Distil = Callable[[Arrays, Sequence[Arrays]], Arrays]
"""Makes, of a student and its teachers, the student that has learned from them."""


@dataclass(frozen=True, kw_only=True)
class FedDF(FedAvg):
    """FedAvg whose server then trains the mean on data of its own, without labels, to say what the clients' models say
    on average: `distil(student, teachers)`, such as `umbel.torch.distil(make, batches)`.

    The server holds every update of a round, and every array of the teachers. It needs nothing of clients.
    """

    collects: ClassVar[bool] = True
    distil: Distil
    fold: Fold = field(default_factory=collect)

    def __post_init__(self) -> None:
        super().__post_init__()
        functions(self, "distil")

    def stepped(self, state: State, answer: Answer) -> State:
        if not answer.count:
            return state
        sent: Arrays = state.model
        mean, teachers = mean_of(sent, answer)
        after = super().stepped(state, mean)
        student = self.distil(after.model, teachers)
        if not isinstance(student, Arrays) or student.schema.items() != sent.schema.items():
            raise StrategyError(
                "what distil gives is not a model like the student", hint="Return umbel.torch.arrays(net)."
            )
        return after.replace(model=student, masters=masters_of(student))


def mean_of(sent: Arrays, answer: Answer) -> tuple[Answer, list[Arrays]]:
    """The answer that the weighted mean of collected updates to this model would have been, and the clients' models."""
    fold = weighted_mean()
    acc, models = fold.zero(), []
    for client, update in answer.value.items():
        arrays = update.arrays
        moved = {n: (sent[n] + a).astype(sent[n].dtype) for n, a in arrays.items() if sent.roles[n] == "parameter"}
        models.append(sent.replace({**arrays, **moved}))
        sizes = {n: float(abs(a).max(initial=0)) for n, a in arrays.items()}
        acc = fold.add(acc, Contribution(client, arrays, Arrays(), update.weight, sizes, {}))
    return Answer(fold.finish(acc)), models
