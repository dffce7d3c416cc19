"""Scripts that keep their own main loop, as clients: a script's side in three lines, and the client that runs it.

In the script (``import umbel.script as fl``): `tasks`, `answer`, `source`, and callbacks for trainers that have them:
`lightning_callback`, `transformers_callback`, `keras_callback`. In the app: ``umbel.script.client("train.py")``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .callbacks import keras_callback, lightning_callback, transformers_callback
from .loop import LocalTask, answer, source, tasks

if TYPE_CHECKING:
    from .host import ScriptClient

__all__ = [
    "LocalTask", "answer", "client", "keras_callback", "lightning_callback", "source", "tasks", "transformers_callback",
]  # fmt: skip


def client(
    path: str | Path,
    *,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    python: str = sys.executable,
    evaluate: bool = False,
    initial_source: Any = None,
    processes: int = 8,
    stall: float | None = 600.0,
) -> ScriptClient:
    """A client whose training is a script that loops over `fl.tasks`; its ``model`` is what the script begins with.

    - `path`: the script; a relative path begins at the folder of the file that calls this.
    - `args`, `env`: its arguments, and environment variables beside those of this process; ``{source[path]}`` and
      ``{client}`` in them stand for where its client's data is, and for who that is.
    - `python`: the interpreter, which has Umbel installed.
    - `evaluate`: whether the script answers evaluations, too: whether it looks at ``task.kind``.
    - `initial_source`: the source that it gets where it is asked for its initial model, by default ``{"index": 0,
      "count": 1}``.
    - `processes`: so many scripts at most are kept warm, each a client's own, in each process that hosts clients; who
      has had nothing to do for longest is ended. With 0 each task has a new one.
    - `stall`: after so many seconds without a sign of life, which is processor time or output, it is ended.

    Raises `AppError` where there is no such file.
    """
    from .host import ScriptClient

    place = Path(path)
    if not place.is_absolute() and (caller := sys._getframe(1).f_globals.get("__file__")):
        place = Path(caller).resolve().parent / place
    return ScriptClient(
        place.resolve(), tuple(args), dict(env or {}), python, evaluate, initial_source, processes, stall
    )
