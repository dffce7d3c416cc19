"""TensorBoard: event files, written without TensorFlow or PyTorch."""

from __future__ import annotations

import shutil
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from .tracker import RoundPoints, Tracker


class TensorBoard(Tracker):
    """Writes event files into ``FOLDER/RUN``, by default in the folder `tensorboard`: the numbers as scalars, the
    settings as hyperparameters, the picture as an image; and beside them ``model.safetensors``. See them by
    ``tensorboard --logdir tensorboard``.
    """

    needs = "tensorboard"

    def begin(self, run: str, settings: Mapping[str, Any]) -> int:
        # TensorBoard's own switch: it would load TensorFlow where that is installed, for seconds and half a gigabyte.
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))
        from tensorboard.plugins.hparams import summary_v2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._folder = Path(self.where or "tensorboard") / run
        self._last = _last(self._folder)
        self._writer = EventFileWriter(str(self._folder))
        if self._last < 0:
            self._add(summary_v2.hparams_pb(dict(settings), trial_id=run), 0, time.time())
        return self._last

    def write(self, rounds: Sequence[RoundPoints]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        for each in rounds:
            values = [Summary.Value(tag=point.tag, simple_value=point.value) for point in each.points]
            self._add(Summary(value=values), each.round, each.at)
            self._last = each.round
        self._writer.flush()

    def picture(self, path: Path) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        data = path.read_bytes()
        width, height = struct.unpack(">II", data[16:24])  # of a PNG
        image = Summary.Image(encoded_image_string=data, width=width, height=height, colorspace=4)
        self._add(Summary(value=[Summary.Value(tag="metrics", image=image)]), max(0, self._last), time.time())

    def model(self, path: Path) -> None:
        shutil.copyfile(path, self._folder / path.name)

    def end(self, reason: str, error: str | None) -> None:
        self._writer.close()

    def _add(self, summary: Any, step: int, at: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(step=step, wall_time=at, summary=summary))


def _last(folder: Path) -> int:
    """The last round that a folder's event files have; -1 for none. A round is one event, so none is there in part."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return max(
        (
            event.step
            for path in folder.glob("events.out.tfevents.*")
            for event in LegacyEventFileLoader(str(path)).Load()
            if any(value.HasField("simple_value") for value in event.summary.value)
        ),
        default=-1,
    )
