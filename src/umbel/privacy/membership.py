"""Membership inference: how well it can be told of a model what it was trained on."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SettingError
from .audit import check_confidence, clopper_pearson

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MembershipInference:
    """How well scores tell members from others: the area under the ROC curve, one half for nothing at all, and the true
    positive rate where at most the share `fpr` of the others is taken for members; each with its confidence interval.
    """

    auc: float
    auc_interval: tuple[float, float]
    tpr: float
    tpr_interval: tuple[float, float]
    fpr: float
    members: int
    others: int
    confidence: float

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def infer_membership(
    members: npt.ArrayLike, others: npt.ArrayLike, *, fpr: float = 0.01, confidence: float = 0.95
) -> MembershipInference:
    """What comes of an attack that takes the highest scores for members. For the attack by loss (Yeom et al. 2018,
    arXiv 1709.01604) scores are losses with their sign turned; for that of Carlini et al. 2022 see `likelihood_ratios`.

    The interval of the area is DeLong's (1988), that of the rate Clopper & Pearson's, at the threshold that these
    others give. Raises `SettingError` where there is nobody on one of the sides, or a score is not finite.
    """
    check_confidence(confidence)
    inside, outside = np.asarray(members, np.float64).ravel(), np.sort(np.asarray(others, np.float64).ravel())
    if min(len(inside), len(outside)) < 2 or not (np.isfinite(inside).all() and np.isfinite(outside).all()):
        raise SettingError("a membership attack needs finite scores of two members and of two others, at least")
    below, upto = (np.searchsorted(outside, inside, side) for side in ("left", "right"))
    wins = (below + upto) / 2 / len(outside)  # of each member against all others; a tie counts half
    ordered = np.sort(inside)
    lost = [np.searchsorted(ordered, outside, side) for side in ("left", "right")]
    losses = 1 - (lost[0] + lost[1]) / 2 / len(inside)
    auc = float(wins.mean())
    spread = math.sqrt(wins.var(ddof=1) / len(inside) + losses.var(ddof=1) / len(outside))
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * spread
    mark = outside[len(outside) - 1 - math.floor(fpr * len(outside))]
    hits = int((inside > mark).sum())
    low, high = clopper_pearson(hits, len(inside), (1 - confidence) / 2)
    interval = (max(0.0, auc - reach), min(1.0, auc + reach))
    rates = (float(low), float(high))
    return MembershipInference(
        auc, interval, hits / len(inside), rates, fpr, len(inside), len(outside), confidence
    )  # fmt: skip


def likelihood_ratios(observed: npt.ArrayLike, shadows: npt.ArrayLike, taken: npt.ArrayLike) -> Floats:
    """The score of each example in the likelihood-ratio attack (Carlini et al. 2022, arXiv 2112.03570).

    `observed` has a statistic of each example by the model that is attacked, best the logit of the probability of its
    label; `shadows` the same by models of the attacker's own, a row each; `taken`, shaped alike, says which examples
    each of these was trained on. Each example has two normal distributions, of models with it and without it, whose
    variances are those over all examples. Raises `SettingError` for an example that all shadows have, or none has.
    """
    seen, rows = np.asarray(observed, np.float64), np.asarray(shadows, np.float64)
    with_it = np.asarray(taken, bool)
    counts = with_it.sum(0)
    if (counts == 0).any() or (counts == len(rows)).any():
        raise SettingError("each example has to be in some shadow models, and not in others")
    terms = []
    for side in (with_it, ~with_it):
        mean = np.where(side, rows, 0.0).sum(0) / side.sum(0)
        free = max(1, int(side.sum()) - side.shape[1])
        variance = np.where(side, (rows - mean) ** 2, 0.0).sum() / free + 1e-12
        terms.append(-((seen - mean) ** 2) / 2 / variance - math.log(variance) / 2)
    return np.asarray(terms[0] - terms[1])
