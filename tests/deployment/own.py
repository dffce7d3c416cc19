"""``own.py APP ADDRESS FOLDER RUN SEED ROUNDS``: a run that a user drives in a process of their own, begun or gone on
with.
"""

from __future__ import annotations

import sys
from pathlib import Path

import umbel
from umbel.cli.application import load
from umbel.errors import ConnectionLost
from umbel.remote.federation import Remote
from umbel.runs.run import run as begin


def main() -> None:
    """Drive the run to its end."""
    reference, address, folder, run, seed, rounds = sys.argv[1:]
    app, log = load(reference).app, Path(folder, run, "events.jsonl")
    remote = Remote(address, clients=range(6))
    while True:
        try:
            if log.exists() and log.stat().st_size:
                found = umbel.resume(app, log.parent, on=remote)
            else:
                found = begin(app, on=remote, seed=int(seed), rounds=int(rounds), folder=folder, id=run, place=run)
        except ConnectionLost:
            continue  # the server is dead, too: a user would try again
        print(found.model_sha256)
        return


if __name__ == "__main__":
    main()
