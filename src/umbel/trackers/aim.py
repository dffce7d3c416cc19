"""Aim: a run of its own in a repository, which is a folder `.aim`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .tracker import RoundPoints, Tracker


class Aim(Tracker):
    """Writes a run of the experiment `umbel` into the repository of a folder, by default here: numbers as metrics by
    the round, the settings as ``run.umbel``, the picture as an image; the model is beside them, in ``.aim/umbel/RUN``.
    See them by ``aim up``.
    """

    needs = "aim"

    def begin(self, run: str, settings: Mapping[str, Any]) -> int:
        from aim.sdk.repo import Repo
        from aim.sdk.run import Run

        folder = Path(self.where or ".")
        folder.mkdir(parents=True, exist_ok=True)
        repo = Repo.from_path(str(folder), init=True)
        self._place = folder / ".aim" / "umbel" / run
        self._place.mkdir(parents=True, exist_ok=True)
        mark = self._place / "hash"  # Aim finds a run by what it calls it itself, and by nothing else at once
        known = mark.read_text() if mark.exists() else ""
        self._run = Run(
            known if repo.run_exists(known) else None,
            repo=repo,
            experiment="umbel",
            system_tracking_interval=None,
            capture_terminal_logs=False,
        )
        if self._run.hash != known:
            self._run.name = run
            self._run["umbel"] = dict(settings)
            mark.write_text(self._run.hash)
        return int(self._run.get("umbel_round", -1))

    def write(self, rounds: Sequence[RoundPoints]) -> None:
        for each in rounds:
            for point in each.points:  # what a step has is written over, so that no number is there twice
                self._run.track(point.value, name=point.tag, step=each.round)
            self._run["umbel_round"] = each.round

    def picture(self, path: Path) -> None:
        from aim.sdk.objects.image import Image

        self._run.track(Image(str(path)), name="metrics", step=0)

    def model(self, path: Path) -> None:
        kept = self._place / path.name
        shutil.copyfile(path, kept)
        self._run["model"] = str(kept.absolute())

    def end(self, reason: str, error: str | None) -> None:
        self._run["reason"] = reason if error is None else f"{reason}: {error}"
        self._run.close()
