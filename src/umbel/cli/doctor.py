"""`umbel server doctor`: what the processes of runs could do to a server on this machine, by having one try."""

from __future__ import annotations

import json as jsons
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..errors import InternalError, SettingError
from ..work.confinement import Confinement, lacking, secrets
from .findings import Row, print_findings

SECRETS = ("operator.json", "server.db", "authority/authority.key", "authority")


def doctor(folder: Path, *, json: bool) -> bool:
    """Print what is isolated of the server in `folder`, or of one that would be there; whether all that is critical
    is. Raises `SettingError` where it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise SettingError(f"{folder} is no folder", hint="--dir names the server's folder.")
    rows = [*_tried(folder.absolute()), *_told()]
    print_findings(rows, _state, json=json)
    return all(row["isolated"] or not row["critical"] for row in rows)


def _state(row: Row) -> tuple[str, str]:
    word = "isolated" if row["isolated"] else "CRITICAL" if row["critical"] else "not isolated"
    return word, "green" if row["isolated"] else "red"


def _tried(folder: Path) -> list[Row]:
    """What a confined process came by."""
    with tempfile.TemporaryDirectory(prefix="umbel-doctor-") as aside:
        place = folder if folder.is_dir() else Path(aside)
        if place != folder:
            (place / SECRETS[0]).write_text("a secret")
        hidden = [str(place), *secrets()]
        command = Confinement(hidden=hidden).command(__name__, str(place), str(os.getpid()))
        source = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": source},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,
            check=False,
        )
    if done.returncode:
        raise InternalError(f"no confined process could be started: {done.stderr.strip()[-500:]}")
    found: dict[str, bool] = jsons.loads(done.stdout.splitlines()[-1])
    return [
        {"check": what, "isolated": not reached, "critical": what != SIGNALS, "note": "tried just now"}
        for what, reached in found.items()
    ]


def _told() -> list[Row]:
    """What the system lacks, and what could be better."""
    rows: list[Row] = [
        {"check": "system", "isolated": False, "critical": critical, "note": what} for what, critical in lacking()
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        note = "runs are root's processes, though without its capabilities: give the server a user of its own"
        rows.append({"check": "user", "isolated": False, "critical": False, "note": note})
    return rows


SIGNALS = "signals to the server"


def _try(folder: Path, server: int) -> dict[str, bool]:
    """What this process can do."""

    def can(deed: Callable[[], object]) -> bool:
        try:
            deed()
        except OSError:
            return False
        return True

    def write() -> None:
        path = folder / f".doctor-{os.getpid()}"
        path.write_bytes(b"")
        path.unlink()

    found = {
        f"reading {name}": can(lambda name=name: os.close(os.open(folder / name, os.O_RDONLY)))  # type: ignore[misc]
        for name in SECRETS
        if (folder / name).exists()
    }
    runs = folder / "runs"
    return {
        **found,
        **({"reading other runs": can(lambda: os.listdir(runs))} if runs.exists() else {}),
        "writing to the server's folder": can(write),
        SIGNALS: can(lambda: os.kill(server, 0)),
    }


if __name__ == "__main__":
    print(jsons.dumps(_try(Path(sys.argv[1]), int(sys.argv[2]))))
