"""Corrections: what a strategy needs a client's training loop to do beside its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import StrategyError, UnusedCorrection, UpdateRejected
from . import encoding
from .arrays import Arrays

REPORTS = {"steps": (0.0, 1e12), "lr": (0.0, 1e12), "initial_loss": (-1e12, 1e12)}
"""Metrics that strategies go by, and between what they have to be."""


def check_reports(wanted: Iterable[str], metrics: Mapping[str, float]) -> None:
    """Raise `UnusedCorrection` where a metric is missing that is wanted, `UpdateRejected` where one cannot be."""
    for name in wanted:
        if name not in metrics:
            raise UnusedCorrection(
                f"the strategy needs the metric {name!r} of each update, and there is none",
                hint="Train with umbel.torch.fit(net, data, ctx), or return Update(..., metrics={"
                f"{name!r}: ...}}): see umbel.Correction.",
            )
        low, high = REPORTS.get(name, (-1e12, 1e12))
        if not low <= metrics[name] <= high:
            raise UpdateRejected(f"the metric {name!r}, by which the strategy goes, is {metrics[name]}")


@dataclass(frozen=True)
class Correction:
    """What a strategy needs a training loop to do beside its own: above all, to minimise ``scale * loss + proximal / 2
    * |w - model|**2 + <linear, w>`` in place of its loss.

    FedProx (Li et al. 2020) sets `proximal`; control variates, as in SCAFFOLD (Karimireddy et al. 2020), set `linear`;
    FedDyn sets both; momentum that stands still within a round, as in MimeLite, `scale` and `linear`.

    - `control`: of the gradient of each batch that at the model sent, of the same batch, is taken off (SVRG).
    - `perturbation`: a step and a share: of the gradient this share is that at ``w + step * g``, where g is that at w,
      of the same batch (FedSpeed).
    - `procedure`, `settings`: a way to train of its own, by its name, and plain settings of it (Ditto, MOON).
    - `reports`: metrics that the update has to bring: ``steps`` (of the local optimiser), ``lr`` (its rate),
      ``initial_loss`` (the mean loss of the model as it was sent, over all data).
    """

    proximal: float = 0.0
    linear: Arrays | None = None
    scale: float = 1.0
    control: bool = False
    perturbation: tuple[float, float] | None = None
    procedure: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    reports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.linear is not None:
            object.__setattr__(self, "linear", self.linear.as_given())

    @property
    def additive(self) -> bool:
        """Whether all that it takes is a term that is added to the loss."""
        return self.scale == 1.0 and not self.control and self.perturbation is None and self.procedure is None

    @property
    def optional(self) -> bool:
        """Whether a loop need not take it, for all that it wants is metrics."""
        return bool(self.reports) and self == Correction(reports=self.reports)

    def with_(self, other: Correction | None) -> Correction:
        """Both together. Raises `StrategyError` where each has the loop train in a way of its own."""
        if other is None:
            return self
        for name in ("perturbation", "procedure"):
            if getattr(self, name) is not None and getattr(other, name) is not None:
                raise StrategyError(f"two corrections of one ask both say what the training loop's {name} is")
        linear = self.linear if other.linear is None else other.linear
        if self.linear is not None and other.linear is not None:
            linear = _sum(self.linear, other.linear)
        return Correction(
            proximal=self.proximal + other.proximal,
            linear=linear,
            scale=self.scale * other.scale,
            control=self.control or other.control,
            perturbation=self.perturbation or other.perturbation,
            procedure=self.procedure or other.procedure,
            settings={**self.settings, **other.settings},
            reports=tuple(sorted({*self.reports, *other.reports})),
        )

    def rest(self) -> dict[str, Any]:
        """All but `proximal` and `linear`, as far as it is not the usual."""
        usual = Correction()
        names = (each.name for each in fields(self) if each.name not in ("proximal", "linear"))
        return {name: value for name in names if (value := getattr(self, name)) != getattr(usual, name)}

    def plain(self) -> list[Any]:
        """What a digest says of it."""
        linear, rest = self.linear, self.rest()
        return [self.proximal, linear.sha256 if linear is not None else None, *([rest] if rest else [])]


def _sum(one: Arrays, two: Arrays) -> Arrays:
    """The sum of two linear terms, in which what one of them lacks is zero."""
    both = {n: a + two[n] if n in two else a for n, a in one.items()}
    return Arrays({**both, **{n: a for n, a in two.items() if n not in one}}, {**two.roles, **one.roles})


encoding.register(
    Correction,
    "correction",
    lambda c: [c.proximal, c.linear, *([rest] if (rest := c.rest()) else [])],
    lambda p: Correction(p[0], p[1], **(p[2] if len(p) > 2 else {})),
)
