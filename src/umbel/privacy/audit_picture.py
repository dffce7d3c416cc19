"""The picture of audits: how far canaries' scores lie apart, and what that proves beside what is claimed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .audit import PrivacyAudit
from .plan_picture import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_audits(audits: Sequence[PrivacyAudit], path: str | Path | None = None) -> Figure:
    """Draw for each audit the scores with a canary and without it, and its bounds beside the claim. Needs
    matplotlib.
    """
    try:
        from ..core.figure import Picture
    except ImportError as error:
        raise ImportError('drawing needs matplotlib: pip install "umbel[plot]"') from error
    figure = Picture(figsize=(9.0, 3.2 * len(audits)), layout="constrained")
    for audit, row in zip(audits, np.atleast_2d(figure.subplots(len(audits), 2, width_ratios=(3, 2))), strict=True):
        scores, bars = row
        low, high = np.quantile(np.concatenate([audit.present, audit.absent]), (0.002, 0.998))
        marks = np.linspace(low, high, 40)
        for found, name, colour in ((audit.absent, "absent", COLOURS[0]), (audit.present, "present", COLOURS[1])):
            scores.hist(np.clip(found, low, high), marks.tolist(), alpha=0.6, color=colour, label=f"canary {name}")
        scores.set_xlabel("score of a canary")
        scores.set_title(f"{audit.kind}, {100 * audit.confidence:.4g} % confidence", fontsize=10)
        scores.legend(frameon=False, fontsize=8)
        values = {"claimed": audit.claim, "if just true": audit.ideal, "proved": audit.epsilon}
        if audit.gaussian is not None:
            values["proved,\nif Gaussian"] = audit.gaussian
        bars.bar(range(len(values)), [*values.values()], color=["0.6", "0.8", *COLOURS[1:]][: len(values)])
        bars.set_xticks(range(len(values)), list(values), fontsize=8)
        bars.axhline(audit.claim, color="0.4", linestyle="--", linewidth=1)
        bars.set_ylabel(f"epsilon at delta {audit.delta:g}")
    if path is not None:
        figure.savefig(path, dpi=130)
    return figure
