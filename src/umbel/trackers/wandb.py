"""Weights & Biases: a run by the same id, offline where there is no key."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .tracker import RoundPoints, Tracker


class WandB(Tracker):
    """Writes a run of the project `umbel`, or that of ``WANDB_PROJECT``: numbers by the round, settings as its config,
    picture and model as an image and an artifact.

    The place is a folder, below which a folder `wandb` is made, by default here. Where nobody has logged in, and
    ``WANDB_MODE`` says nothing else, it is `offline`: ``wandb sync wandb/offline-run-*`` sends it later. A file
    ``wandb/umbel-RUN-MODE`` remembers the last round, for a run that goes on.
    """

    needs = "wandb"

    def begin(self, run: str, settings: Mapping[str, Any]) -> int:
        import wandb

        folder = Path(self.where or ".")
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
        self._mark = folder / "wandb" / f"umbel-{run}-{mode}"  # what one of them has the other may lack
        self._mark.parent.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "umbel",
            id=run,
            name=run,
            dir=folder,
            mode=mode,
            config=dict(settings),
            resume="allow",
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )
        return int(self._mark.read_text()) if self._mark.exists() else -1

    def write(self, rounds: Sequence[RoundPoints]) -> None:
        for each in rounds:
            self._run.log({point.tag: point.value for point in each.points}, step=each.round)
        self._mark.write_text(str(rounds[-1].round))

    def picture(self, path: Path) -> None:
        import wandb

        self._run.summary["metrics"] = wandb.Image(str(path))

    def model(self, path: Path) -> None:
        import wandb

        artifact = wandb.Artifact(f"{self._run.id}-model", "model")
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)
        if not self._run.offline:
            artifact.wait()

    def end(self, reason: str, error: str | None) -> None:
        self._run.summary["reason"] = reason if error is None else f"{reason}: {error}"
        self._run.finish(exit_code=int(reason in ("failed", "refused")))
