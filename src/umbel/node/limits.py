"""What a node's owner lets the code of runs reach and use."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import user_folder
from ..work.confinement import LINUX, Confinement, secrets

CACHES = ("huggingface", "keras", "torch", "tensorflow_datasets")
"""Folders of downloaded models and data sets, in the user's cache."""
OF_HOME = (".keras", "nltk_data", "scikit_learn_data", "tensorflow_datasets")
_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*:(//)?(?=/)", re.IGNORECASE)
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The bounds of the processes in which clients run.

    - `network`: whether they may have sockets.
    - `memory`: bytes that each process, and all of one child together, may have; `cpus`: how many processors one child
      has; `task_time`: seconds that a task, or the loading of the client, may take. None for no limit.
    - `read`, `write`: paths that they may read, or also write to, beside what the sources name.
    """

    network: bool = True
    memory: int | None = None
    cpus: int | None = None
    task_time: float | None = None
    read: Sequence[str] = ()
    write: Sequence[str] = ()

    def confined(self, node: Path, run: Path, sources: Mapping[str, Any], slot: int) -> Confinement:
        """What a child may reach: of the `run`'s folder what is its own, and of the `node`'s nothing else."""
        kept = user_folder("XDG_CACHE_HOME", ".cache").parent
        found = [os.environ.get("UMBEL_DATA", ""), str(kept / "umbel"), *(str(kept / name) for name in CACHES)]
        found += [os.path.expanduser(f"~/{name}") for name in OF_HOME]
        return Confinement(
            own=[str(run / "archive")],
            work=[str(run / "results"), str(run / "tmp")],
            given=[str(run / "given")],
            read=[*filter(None, found), *named(sources), *self.read],
            write=self.write,
            hidden=[str(node), *secrets()],
            network=self.network,
            memory=self.memory,
            cpus=None if self.cpus is None or not LINUX else _processors(self.cpus, slot),
        )


def named(value: Any) -> Iterator[str]:
    """The files and folders that a source names, anywhere in it: as paths, as URLs of files, and as patterns, of which
    it is the folder.
    """
    if isinstance(value, Mapping):
        for each in value.values():
            yield from named(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from named(each)
    elif isinstance(value, str) and 0 < len(value) < 4096 and "\0" not in value:
        path = os.path.expanduser(_SCHEME.sub("", value))
        if (wild := _WILD.search(path)) is not None and not os.path.exists(path):
            path = os.path.dirname(path[: wild.start()])
        if path and os.path.exists(path):
            yield os.path.abspath(path)


def _processors(count: int, slot: int) -> list[int]:
    """The processors of a child: those of another one begin behind them."""
    there = sorted(os.sched_getaffinity(0))
    return sorted({there[(slot * count + i) % len(there)] for i in range(min(count, len(there)))})
