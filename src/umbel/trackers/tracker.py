"""What a tracker is: a reader of a run's log that writes what it says into a tool of somebody else's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ..errors import ClientId, SettingError

PLACES = {
    "aim": "aim.Aim",
    "csv": "csv.CSV",
    "mlflow": "mlflow.MLflow",
    "parquet": "parquet.Parquet",
    "tensorboard": "tensorboard.TensorBoard",
    "wandb": "wandb.WandB",
}
"""The trackers that there are, by the name that they have on the command line."""


class Point(NamedTuple):
    """A number of a round: `name` is `"train.loss"` or `"system.rss"`, say; `client` is whose it is, None for all."""

    name: str
    value: float
    client: ClientId | None = None

    @property
    def tag(self) -> str:
        """The name as tools group by: ``train/loss``, ``clients/3/train/loss``."""
        tag = self.name.replace(".", "/", 1)
        return tag if self.client is None else f"clients/{self.client}/{tag}"


@dataclass(frozen=True)
class RoundPoints:
    """All numbers of a round, which was committed at the wall time `at`."""

    round: int
    at: float
    points: Sequence[Point]


class Tracker:
    """Base of all trackers. A run is told as `begin`, `write` as often as wanted, `picture`, `model`, `end`, all in one
    thread; whatever a method raises is said once, and costs the run nothing. It travels to a process of its own, as
    pickle has it, before `begin`.

    - `where`: what stands behind the colon of `"mlflow:http://localhost:5000"`; None where nothing does.
    - `begin(run, settings)`: a run is told from its first round on; where there is a record of the same `run`, the
      tracker takes that up and returns the last round that it has, or begins it anew and returns -1. `settings` are
      plain values by names such as `config.lr`.
    - `write(rounds)`: further rounds, in order, those alone that the record does not have.
    - `picture(path)`: the metrics over the rounds, a PNG. `model(path)`: the final model, a safetensors file.
    - `end(reason, error)`: as `RunFinished` has them; `"interrupted"` and `"unfinished"` for runs that can be resumed.
    """

    needs: ClassVar[str | None] = None
    """The package, and the extra, that it needs."""

    def __init__(self, where: str | None = None) -> None:
        if self.needs is not None and find_spec(self.needs) is None:
            extra = type(self).__module__.rpartition(".")[2]
            raise SettingError(
                f"tracking with {type(self).__name__} needs the package {self.needs}",
                hint=f'pip install "umbel[{extra}]"',
            )
        self.where = where

    @property
    def keeps_model(self) -> bool:
        """Whether it does anything with the final model."""
        return type(self).model is not Tracker.model

    def begin(self, run: str, settings: Mapping[str, Any]) -> int:
        """Begin, or go on with, the record of a run."""
        raise NotImplementedError

    def write(self, rounds: Sequence[RoundPoints]) -> None:
        """Write further rounds."""
        raise NotImplementedError

    def picture(self, path: Path) -> None:
        """Keep a picture of the run; by default nowhere."""

    def model(self, path: Path) -> None:
        """Keep the final model; by default nowhere."""

    def end(self, reason: str, error: str | None) -> None:
        """The run is over, or can be resumed; everything is to be where it belongs when this returns."""


def tracker_of(named: str | Tracker) -> Tracker:
    """The tracker that ``"mlflow"`` or ``"mlflow:sqlite:///runs.db"`` names. Raises `SettingError` for one that there
    is not, and for one whose package is not installed.
    """
    if isinstance(named, Tracker):
        return named
    name, colon, where = named.partition(":")
    if name not in PLACES or (colon and not where):
        raise SettingError(
            f"{named!r} names no tracker",
            hint=f"Name one of {', '.join(PLACES)}, if wanted with a place behind a colon: mlflow:http://host:5000.",
        )
    module, kind = PLACES[name].split(".")
    made: Tracker = getattr(import_module(f".{module}", __package__), kind)(where or None)
    return made
