"""What a run learned, round by round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SettingError
from .events import RoundCommitted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class History(Sequence[RoundCommitted]):
    """The committed rounds of a run, with their metrics as series named `train.loss`, `evaluate.accuracy`,
    `test.accuracy`, ...
    """

    def __init__(self, rounds: Sequence[RoundCommitted]) -> None:
        self._rounds = list(rounds)

    def __getitem__(self, index: int) -> RoundCommitted:  # type: ignore[override]
        return self._rounds[index]

    def __len__(self) -> int:
        return len(self._rounds)

    def __iter__(self) -> Iterator[RoundCommitted]:
        return iter(self._rounds)

    @property
    def names(self) -> list[str]:
        """All series that some round has a value of."""
        return sorted(
            {f"{part}.{name}" for r in self for part in ("train", "evaluate", "test") for name in getattr(r, part)}
        )

    def series(self, name: str) -> list[tuple[int, float]]:
        """The values of one metric as pairs (round, value). Raises `SettingError` for a name that no round has."""
        if name not in self.names:
            raise SettingError(f"no round has a metric {name!r}", hint=f"There are: {', '.join(self.names) or 'none'}.")
        part, _, metric = name.partition(".")
        return [(r.round, getattr(r, part)[metric]) for r in self if metric in getattr(r, part)]

    def last(self, name: str) -> float | None:
        """The newest value of a metric; None where no round has one."""
        return self.series(name)[-1][1] if name in self.names else None

    def metrics(self, round: int | None = None) -> dict[str, float]:
        """The newest value of every metric, by names such as `test.accuracy`; of one `round`, those that it has."""
        chosen = [r for r in self if round in (None, r.round)]
        found = {
            f"{part}.{name}": value
            for r in chosen
            for part in ("train", "evaluate", "test")
            for name, value in getattr(r, part).items()
        }
        return dict(sorted(found.items()))

    def plot(self, path: str | Path | None = None, *, title: str | None = None, failed: bool = False) -> Figure:
        """Draw every metric over the rounds, one panel a metric, and write the picture to `path` where one is given.

        Where the run has `failed`, its title says so in red. A notebook shows the `Figure` that is a cell's value.
        Raises `SettingError` where no round has a metric.
        """
        try:
            from matplotlib.ticker import MaxNLocator

            from ..core.figure import Picture
        except ImportError as error:
            raise ImportError('drawing needs matplotlib: pip install "umbel[plot]"') from error
        metrics = sorted({n.partition(".")[2] for n in self.names})
        if not metrics:
            raise SettingError("there is nothing to draw: no round has a metric")
        rows = len(metrics)
        figure = Picture(figsize=(7.5, 0.8 + 2.7 * rows), layout="constrained")
        for number, metric in enumerate(metrics):
            axes = figure.add_subplot(rows, 1, number + 1)
            for part, colour in (("train", "#0072B2"), ("evaluate", "#E69F00"), ("test", "#009E73")):
                if f"{part}.{metric}" in self.names:
                    pairs = self.series(f"{part}.{metric}")
                    label = {"train": "clients, in training", "evaluate": "clients, evaluated", "test": "test set"}[
                        part
                    ]
                    axes.plot(*zip(*pairs, strict=True), marker="o", markersize=3, color=colour, label=label)
            axes.set_ylabel(metric)
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.axes[-1].set_xlabel("round")
        if title:
            figure.suptitle(f"{title} failed" if failed else title, color="#CC3333" if failed else None)
        if path is not None:
            figure.savefig(path, dpi=130)
        return figure
