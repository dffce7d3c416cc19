"""What commands do with runs on a server."""

from __future__ import annotations

import json as jsons
import secrets
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.text import Text

from ..core.app import App
from ..core.strategy import Question
from ..errors import SettingError
from ..office.operator import Operator
from ..office.pulling import pull
from ..remote.federation import contract_of
from ..runs import settings
from ..runs.config import laid_over
from ..runs.past import FetchedRun, PastRun
from ..trackers.tracking import Tracking
from ..trust import credentials
from .answers import ShownAnswer
from .application import LoadedApp, load
from .following import Followed, follow, why_ended
from .list_commands import ClientsView, print_runs, show_record
from .log_commands import LogPrinter
from .terminal import plural, stderr, stdout


def server(on: str, token: str | None) -> Operator:
    """A connection to a server; to be closed."""
    from .options import SERVER

    return Operator.connect(credentials.find(on, token, SERVER))


def run_on(
    reference: str,
    on: str,
    token: str | None,
    *,
    rounds: int | None,
    seed: int,
    assignments: Sequence[str],
    only: Sequence[str],
    wait_for: int | None = None,
    wait: float | None = None,
    expires: float | None,
    detach: bool,
    track: Sequence[str],
    json: bool,
) -> None:
    """Pack an app, sign it, submit it, and follow what becomes of it."""
    trackings = _trackings(track, detach)
    loaded = load(reference)
    changed = settings.apply(loaded.app, assignments)
    if rounds is not None and changed.rounds not in (None, rounds):
        raise SettingError(f"--rounds {rounds} and --set rounds={changed.rounds} disagree", hint="Keep one of them.")
    with server(on, token) as office:
        order = {"rounds": rounds or changed.rounds, "seed": seed, "config": changed.config}
        said = {**order, "set": list(assignments), "clients": list(only), "wait_for": wait_for, "wait": wait}
        run = _submit(office, replace(loaded, app=changed.app), said, changed.config, expires)
        if detach:
            _print_detached(run, on, json)
            return
        _follow(office, run, on, trackings, json, changed.app)


def _trackings(track: Sequence[str], detach: bool) -> list[Tracking]:
    if track and detach:
        raise SettingError(
            "--track follows the run, --detach does not", hint="umbel track RUN TRACKER -f does so later."
        )
    return [Tracking(named, local=False) for named in dict.fromkeys(track)]


def _submit(
    office: Operator, loaded: LoadedApp, order: dict[str, Any], config: dict[str, Any], expires: float | None
) -> str:
    from ..trust.packing import pack
    from ..trust.statement import Statement, digest

    packed = pack(loaded.app, loaded.path, loaded.name)
    key = credentials.author_key()
    client, app = office.upload(packed.client), office.upload(packed.app)
    # The id is made here, so that a submission that is sent again after a lost connection makes no second run.
    run = f"{loaded.title}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    said = Statement(
        app=loaded.title,
        archive=client.sha256.hex(),
        version=packed.version,
        config=digest(jsons.dumps(laid_over(loaded.app.config, config))),
        contract=digest(contract_of(loaded.app)),
        federation=office.federation,
        expires=None if expires is None else time.time() + 86400.0 * expires,
    )
    found = office.call(
        "runs.submit",
        run=run,
        name=loaded.title,
        client={"sha256": client.sha256.hex(), "size": client.size},
        app={"sha256": app.sha256.hex(), "size": app.size},
        author=key.public.hex(),
        statement=said.text().decode(),
        signature=said.signed(key).hex(),
        settings={name: value for name, value in order.items() if value not in (None, [], {})},
    )
    return str(found["run"])


def resume_on(
    run: str, on: str, token: str | None, *, rounds: int | None, detach: bool, track: Sequence[str], json: bool
) -> None:
    """Have a server go on with a run, and follow it."""
    trackings = _trackings(track, detach)
    with server(on, token) as office:
        found = office.call("runs.resume", run=run, **({} if rounds is None else {"rounds": rounds}))
        if detach:
            _print_detached(found["run"], on, json)
            return
        follow(office, found["run"], on, trackings).print(json)


def _print_detached(run: str, on: str, json: bool) -> None:
    if json:
        print(jsons.dumps({"run": run, "server": on}))
        return
    console = stdout()
    console.print(Text.assemble("the server has begun ", (run, "bold")))
    console.print(Text(f"  {shlex.join(['umbel', 'logs', run, '-f', '--on', on])}", style="cyan"), soft_wrap=True)


def _follow(
    office: Operator, run: str, on: str, trackings: Sequence[Tracking], json: bool, app: App | None = None
) -> None:
    ending = follow(office, run, on, trackings)
    if app is not None and isinstance(app.strategy, Question):
        with TemporaryDirectory() as scratch:
            model = PastRun(pull(office, run, Path(scratch))[0]).model()[0]
            ending = replace(ending, answer=ShownAnswer.of(app, model))
    ending.print(json)


def runs_on(on: str, token: str | None, *, json: bool) -> None:
    """Print a server's runs."""
    with server(on, token) as office:
        found = office.call("runs.list")["runs"]
    rows = [
        {
            "run": row["run"],
            "app": row["name"],
            "rounds": row["rounds"],
            "asked": row["asked"],
            "state": "waiting" if row["waits"] else row["status"],
            "waits": row["waits"],
            "metrics": row["metrics"],
            "best_round": row["best_round"],
            "began": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["created_at"])),
        }
        for row in found
    ]
    nothing = f"no runs on {on}: {shlex.join(['umbel', 'run', 'app.py', '--on', on])} makes one"
    print_runs(rows, json=json, nothing=nothing)
    for row in rows if not json else ():
        if row["waits"]:
            stdout().print(Text(f" {row['run']} waits for {row['waits']}", style="yellow"), soft_wrap=True)


def show_on(run: str, on: str, token: str | None, plot: Path | None, part: ClientsView | None = None) -> None:
    """Print the page of a run on a server, or a part."""
    with server(on, token) as office:
        found = office.call("runs.show", run=run)
        followed = Followed(on)
        for _, record in office.logs(found["run"], follow=False):
            followed.take(record)
    members = found.get("members", [])
    standings = ", ".join(f"{row['client']} {row['standing']}" for row in members[:12])
    more = f" and {plural(len(members) - 12, 'other')}" if len(members) > 12 else ""
    facts = {"server": on, "owner": found["owner"], "clients": standings + more}
    if not followed.ended:
        facts["error"] = why_ended(found)
    if not followed.events:
        console = stdout()
        state = f"waits for {found['waits']}" if found["waits"] else f"{found['status']}, nothing has happened yet"
        console.print(Text.assemble((found["run"], "bold"), f"  {state}"), soft_wrap=True)
        if plot is not None:
            raise SettingError("there is nothing to draw: nothing has happened yet", run=found["run"])
        return
    show_record(FetchedRun.of(found["run"], followed.log(), found["status"], facts), plot, part)


def logs_on(run: str, on: str, token: str | None, *, follow: bool, json: bool) -> None:
    """Print what has happened in a run on a server, and, to follow it, what happens."""
    printer = LogPrinter(json)
    with server(on, token) as office:
        found = office.call("runs.show", run=run)["run"]
        for _, record in office.logs(found, follow=follow, watched=False, lost=_tell_lost):
            printer.print(record)
        if not follow:
            return
        ended = office.call("runs.show", run=found) if not printer.ended else {}
    failed = (why_ended(ended) or "the server does not say why") if ended.get("status") == "failed" else None
    printer.check(found, failed)


def stop_on(run: str, on: str, token: str | None) -> None:
    """Stop a run on a server."""
    with server(on, token) as office:
        answer = office.call("runs.stop", run=run)
    found = answer["run"]
    again = shlex.join(["umbel", "resume", found, "--on", on])
    if answer.get("driven"):
        again = f"umbel.resume(app, FOLDER, on=umbel.Remote({on!r}))  in the program that started it"
    console = stdout()
    console.print(Text(f"{found} is stopped; go on with:"))
    console.print(Text(f"  {again}", style="cyan"), soft_wrap=True)


def pull_from(run: str, on: str, token: str | None, folder: Path) -> None:
    """Fetch a run's folder."""
    with server(on, token) as office, stderr().status("fetching"):
        place, count = pull(office, run, folder)
    elsewhere = [] if folder.resolve() == Path("umbel-runs").resolve() else ["--folder", str(folder)]
    console = stdout()
    console.print(Text(f"{plural(count, 'file')} fetched to {place}"), soft_wrap=True)
    for verb in (["show", place.name], ["export", place.name, "model.safetensors"]):
        console.print(Text(f"  {shlex.join(['umbel', *verb, *elsewhere])}", style="cyan"), soft_wrap=True)


def _tell_lost(error: Exception) -> None:
    stderr().print(Text("the server is gone; trying to reach it again", style="yellow"))
