"""The process of a run that a server has started: ``python -m umbel.cli.runner`` in the home of the run's
folder, ``home`` below it.

One line of JSON comes on the standard input: the run's id, its token, and the server's address. The folder holds the
app, the client's archive as data holders get it, and what the run was submitted with; only what is below ``home``,
``tmp``, ``run`` (the run's own folder) and ``link`` may be written to. Why it failed is left in ``home/error.json``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from ..errors import CallerError, RunError, RunInterrupted, StorageError, UmbelError
from ..remote.federation import Remote, Signed
from ..runs.journal import has_log
from ..runs.run import resume, run
from ..trust.credentials import Credentials

CODES = ((RunInterrupted, 0), (CallerError, 3), (RunError, 4), (StorageError, 5))
"""Exit codes by error, as those of the command line; an interrupted run ends as it was told to."""
OVER = "run"


def main() -> int:
    """Drive the run in this folder to its end."""
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_server, daemon=True).start()
    signal.signal(signal.SIGTERM, _interrupt)
    home = Path.cwd()
    folder = home.parent
    submission = json.loads((folder / "submission.json").read_text())
    (home / "error.json").unlink(missing_ok=True)
    try:
        _drive(folder, submission, order)
    except UmbelError as error:
        from .application import note_place

        note_place(error, folder / "app")
        text = " ".join([str(error), *(f"({note})" for note in getattr(error, "__notes__", ()))])
        print(text, file=sys.stderr, flush=True)
        where = {"error": text, "kind": type(error).__name__}
        (home / "error.json").write_text(json.dumps(where))
        return next((code for kind, code in CODES if isinstance(error, kind)), 1)
    except KeyboardInterrupt:  # before the run began, or after its end
        return 0
    return 0


def _drive(folder: Path, submission: dict[str, Any], order: dict[str, str]) -> None:
    from ..remote.link import ServerLink
    from ..runs.settings import apply
    from .application import load

    manifest = submission["manifest"] if "manifest" in submission else _manifest(folder)
    name = f":{manifest['attribute']}" if manifest["attribute"] else ""
    sys.path.insert(0, str(folder / "app"))
    loaded = load(f"{folder / 'app' / manifest['file']}{name}")
    settings = submission["settings"]
    changed = apply(loaded.app, settings.get("set", ()))
    credentials = Credentials(order["address"], order["token"])
    signed = Signed(
        (folder / "client.archive").read_bytes(),
        bytes.fromhex(submission["author"]),
        submission["statement"].encode(),
        bytes.fromhex(submission["signature"]),
    )
    remote = Remote(
        order["address"],
        clients=_clients(settings) or settings.get("wait_for"),
        wait=settings.get("wait"),
        connect=lambda address, **how: ServerLink(
            credentials, order["run"], patient=True, scratch=folder / "link", given=_given(folder)
        ),
        signed=signed,
    )
    place = folder / OVER
    source = {"name": manifest["attribute"], "file": manifest["file"], "sha256": submission["app"]["sha256"]}
    if has_log(place):
        resume(changed.app, place, on=remote, rounds=settings.get("rounds"), source=source)
        return
    run(
        changed.app,
        on=remote,
        rounds=settings.get("rounds") or changed.rounds,
        seed=settings.get("seed", 0),
        config={**changed.config, **settings.get("config", {})},
        folder=folder,
        name=submission["name"],
        source=source,
        settings={"set": settings.get("set", [])},
        id=order["run"],
        place=OVER,
    )


def _given(folder: Path) -> Path | None:
    return folder / "given" if (folder / "given").is_dir() else None


def _clients(settings: dict[str, Any]) -> Any:
    from ..wire.names import client_id

    named = settings.get("clients") or []
    return [client_id(name) for name in named] or None


def _manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "app" / "manifest.json").read_text())
    return found


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end_with_server() -> None:
    """The server's end of the standard input closes when it dies."""
    while sys.stdin.readline():
        pass
    os._exit(70)


if __name__ == "__main__":
    sys.exit(main())
