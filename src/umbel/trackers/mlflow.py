"""MLflow: a run of its own in an experiment, in a database or on a server."""

from __future__ import annotations

import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from .tracker import RoundPoints, Tracker

DEFAULT = "sqlite:///mlflow.db"
LAST = "umbel/round"
"""A metric whose last value is the last round that is there whole."""
MOST = 1000
"""MLflow takes so many metrics at once."""
MOST_PARAMS = 100
STATES = {"failed": "FAILED", "refused": "FAILED", "interrupted": "KILLED", "unfinished": "KILLED"}


class MLflow(Tracker):
    """Writes a run with the tag `umbel.run` into the experiment `umbel`, or that of ``MLFLOW_EXPERIMENT_NAME``: numbers
    as metrics by the round, settings as parameters, picture and model as artifacts.

    The place is a tracking URI (``sqlite:///runs.db``, ``http://localhost:5000``); by default ``MLFLOW_TRACKING_URI``
    or else a file mlflow.db here. Letters that MLflow takes in no name are written as ``_``.
    """

    needs = "mlflow"

    def begin(self, run: str, settings: Mapping[str, Any]) -> int:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # by itself it tries for minutes
        # By itself it takes a folder mlruns where there is an old one, and refuses that then.
        self._client = client = MlflowClient(self.where or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "umbel"
        found = client.get_experiment_by_name(name)
        experiment = client.create_experiment(name) if found is None else found.experiment_id
        tag = run.replace("'", "")
        known = client.search_runs([experiment], f"tags.`umbel.run` = '{tag}'")
        if known:
            self._id = known[0].info.run_id
            client.update_run(self._id, "RUNNING")
        else:
            self._id = client.create_run(experiment, tags={"umbel.run": tag}, run_name=run).info.run_id
        there = client.get_run(self._id).data
        if not there.params:
            params = [Param(key, str(value)[:500]) for key, value in _named(settings.items())]
            for start in range(0, len(params), MOST_PARAMS):
                client.log_batch(self._id, params=params[start : start + MOST_PARAMS])
        return int(there.metrics.get(LAST, -1))

    def write(self, rounds: Sequence[RoundPoints]) -> None:
        rows = list(_metrics(rounds))
        for start in range(0, len(rows), MOST):
            self._client.log_batch(self._id, metrics=rows[start : start + MOST])

    def picture(self, path: Path) -> None:
        self._client.log_artifact(self._id, str(path))

    def model(self, path: Path) -> None:
        self._client.log_artifact(self._id, str(path))

    def end(self, reason: str, error: str | None) -> None:
        self._client.set_tag(self._id, "umbel.reason", reason)
        if error is not None:
            self._client.set_tag(self._id, "umbel.error", error)
        self._client.set_terminated(self._id, STATES.get(reason, "FINISHED"))


def _metrics(rounds: Sequence[RoundPoints]) -> Iterator[Any]:
    from mlflow.entities import Metric

    for each in rounds:
        at = int(1000 * each.at)
        for name, value in _named((point.tag, point.value) for point in each.points):
            yield Metric(name, value, at, each.round)
        yield Metric(LAST, each.round, at, each.round)


def _named(values: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Values by names that MLflow takes; of names that would be the same then, each ends in its own hash."""
    values = list(values)
    alike = Counter(_name(name) for name, _ in values)
    for name, value in values:
        clean = _name(name)
        yield clean if alike[clean] == 1 else f"{clean}-{zlib.crc32(name.encode()):08x}", value


@cache
def _name(text: str) -> str:
    """A name with the letters alone that MLflow takes, which is the path of a file to it."""
    parts = re.sub(r"[^\w\-./: ]", "_", text)[:240].split("/")
    return "/".join(re.sub(r"^\.+", "_", part) or "_" for part in parts)
