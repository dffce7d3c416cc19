"""The processes of a server's runs, with a supervisor that only notes what it is told."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import threading

import pytest
from tests.conftest import PATIENCE
from tests.server.serving import APP, CLIENT, SPEC, asked, play

from umbel.errors import Refused, StorageError
from umbel.server import programs
from umbel.server.supervision import Exit
from umbel.trust.authority import JoinText
from umbel.trust.identity import SigningKey
from umbel.trust.proofs import TokenProof
from umbel.trust.statement import Statement
from umbel.wire import messages as m


class Supervisors:
    """Stands for the supervisor: notes what it is told."""

    def __init__(self, service):
        self.service = service
        self.started, self.stopped = [], []
        self.running = {}
        service.programs.supervisor = self

    def start(self, run, folder, **how):
        self.started.append((run, how))
        self.running[run] = 1

    async def stop(self, run, grace=None):
        self.stopped.append(run)
        self.running.pop(run, None)

    async def close(self, grace=None):
        pass

    async def ends(self, code):
        """The process of run r has ended for good."""
        self.running.pop("r")
        self.service.programs._exited(Exit("r", code, False))
        while self.service.store.rows("runs", id="r")[0]["ended_at"] is None:
            await asyncio.sleep(0)


async def submitted(here):
    """An operator that has submitted run r, and who starts its process."""
    supervisors, ann, key = Supervisors(here.service), await here.operator(), SigningKey.new()
    sha = hashlib.sha256(CLIENT).digest()
    body = {
        name: {"sha256": blob.sha256.hex(), "size": blob.size}
        for name, blob in (("client", ann.blobs.put(CLIENT, "t")), ("app", ann.blobs.put(APP, "t")))
    }
    said = Statement("mnist", sha.hex())
    body |= {"author": key.public.hex(), "statement": said.text().decode(), "signature": said.signed(key).hex()}
    body |= {"settings": {"rounds": 3}}
    assert await asked(ann, "runs.submit", run="r", name="mnist", **body) == {"run": "r"}
    return ann, supervisors


def test_a_run_that_is_submitted_finds_what_it_needs(tmp_path):
    async def act(here):
        _, supervisors = await submitted(here)
        ((run, how),) = supervisors.started
        assert (run, how["address"]) == ("r", here.service.address)
        assert JoinText.parse(how["token"]).token is not None
        folder = tmp_path / "server" / "runs" / "r"
        assert (folder / "app" / "app.py").read_text() == "y = 1\n"
        assert (folder / "client.archive").read_bytes() == CLIENT
        found = json.loads((folder / "submission.json").read_text())
        assert (found["run"], found["name"], found["settings"]) == ("r", "mnist", {"rounds": 3})
        assert stat_of(folder) == 0o700

    play(act, tmp_path)


def stat_of(folder):
    return folder.stat().st_mode & 0o777


def test_a_run_whose_process_gave_up_has_failed_and_says_why(tmp_path):
    async def act(here):
        ann, supervisors = await submitted(here)
        run = await here.run()
        run.say(run_spec=SPEC)
        await run.settled()
        (tmp_path / "server" / "runs" / "r" / "home").mkdir(exist_ok=True)
        (tmp_path / "server" / "runs" / "r" / "home" / "error.json").write_text(
            '{"error": "no data", "kind": "DataError"}'
        )
        await supervisors.ends(3)
        await here.service.commit()
        found = await asked(ann, "runs.show", 2, run="r")
        assert found["status"] == "failed"
        assert found["exit"] == {"code": 3, "error": "no data", "kind": "DataError"}
        assert (await asked(ann, "runs.resume", 3, run="r", rounds=5)) == {"run": "r"}
        assert [run for run, _ in supervisors.started] == ["r", "r"]
        found = await asked(ann, "runs.show", 4, run="r")
        assert (found["status"], found["exit"], found["settings"]) == ("running", None, {"rounds": 5})

    play(act, tmp_path)


def test_a_run_that_said_how_it_went_has_not_failed(tmp_path):
    async def act(here):
        _, supervisors = await submitted(here)
        run = await here.run()
        run.say(run_spec=SPEC)
        run.say(close_run=m.CloseRun(run="r", status="finished"))
        await run.settled()
        await here.service.commit()
        await supervisors.ends(0)
        await here.service.commit()
        assert here.service.store.rows("runs")[0]["status"] == "finished"

    play(act, tmp_path)


def test_a_run_can_be_stopped(tmp_path):
    async def act(here):
        ann, supervisors = await submitted(here)
        assert await asked(ann, "runs.stop", 2, run="r") == {"run": "r"}
        assert supervisors.stopped == ["r"]
        assert (await asked(ann, "runs.show", 3, run="r"))["status"] == "stopped"

    play(act, tmp_path)


def test_a_stop_is_seen_to_its_end_though_whoever_asked_is_gone(tmp_path):
    async def act(here):
        ann, _ = await submitted(here)
        ending, kept = asyncio.Event(), here.service.programs.supervisor.stop

        async def stop(run):
            begun.set()
            await ending.wait()
            return await kept(run)

        begun = asyncio.Event()
        here.service.programs.supervisor.stop = stop
        ann.say(request=m.Request(id=2, method="runs.stop", body='{"run": "r"}'))
        await begun.wait()
        await ann.close()
        while any(peer.identity.role == m.ROLE_OPERATOR for peer in here.service.connections.peers.values()):
            await asyncio.sleep(0)
        ending.set()
        while here.service.store.rows("runs", id="r")[0]["ended_at"] is None:
            await asyncio.sleep(0)
        assert here.service.store.rows("runs", id="r")[0]["status"] == "stopped"

    play(act, tmp_path)


async def finishes(here, ann, supervisors, run):
    run.say(close_run=m.CloseRun(run="r", status="finished"))
    await run.settled()


async def is_stopped(here, ann, supervisors, run):
    assert await asked(ann, "runs.stop", 2, run="r") == {"run": "r"}


async def fails(here, ann, supervisors, run):
    await supervisors.ends(3)


@pytest.mark.parametrize(("end", "status"), [(finishes, "finished"), (is_stopped, "stopped"), (fails, "failed")])
def test_the_token_of_a_run_is_worth_nothing_after_its_end(tmp_path, end, status):
    async def act(here):
        ann, supervisors = await submitted(here)
        first = supervisors.started[0][1]["token"]
        run = await here.by(first)
        run.say(run_spec=SPEC)
        await run.settled()
        await end(here, ann, supervisors, run)
        with pytest.raises(Refused) as caught:
            await here.by(first)
        assert caught.value.code == m.CODE_UNAUTHENTICATED
        await here.service.commit()
        assert (await asked(ann, "runs.show", 3, run="r"))["status"] == status
        assert await asked(ann, "runs.resume", 4, run="r") == {"run": "r"}
        second = supervisors.started[1][1]["token"]
        await run.over()  # by the first token
        again = await here.by(second)
        again.say(run_spec=SPEC)
        again.say(log_event=m.LogEvent(run="r", number=1, event='{"event": "e"}'))
        await again.hears("log_ack", where=lambda body: body.number == 1)
        with pytest.raises(Refused):
            await here.by(first)
        assert (await asked(ann, "runs.show", 5, run="r"))["status"] == "running"

    play(act, tmp_path)


def test_a_run_that_is_gone_on_with_while_its_last_driver_leaves_is_not_stopped_by_that(tmp_path):
    async def act(here):
        ann, supervisors = await submitted(here)
        run = await here.by(supervisors.started[0][1]["token"])
        run.say(run_spec=SPEC)
        await finishes(here, ann, supervisors, run)
        await supervisors.ends(0)
        prepare, preparing, go = here.service.programs._lay_out, asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def held(row):
            loop.call_soon_threadsafe(preparing.set)
            assert go.wait(PATIENCE)
            prepare(row)

        here.service.programs._lay_out = held
        ann.say(request=m.Request(id=2, method="runs.resume", body='{"run": "r"}'))
        await preparing.wait()
        await run.close()
        while any(peer.identity.role == m.ROLE_RUN for peer in here.service.connections.peers.values()):
            await asyncio.sleep(0)
        for _ in range(3):  # as many as it takes for the run to be stopped, if it is
            await here.service.commit()
        go.set()
        await ann.hears("response", where=lambda found: found.id == 2)
        await here.by(supervisors.started[1][1]["token"])
        assert (await asked(ann, "runs.show", 3, run="r"))["status"] == "running"

    play(act, tmp_path)


def test_a_run_of_a_users_own_program_goes_on_by_what_it_does(tmp_path):
    async def act(here):
        ann, token = await here.operator(), here.service.registry.tokens.grant("test", "bea", "run")

        async def program():
            found = await here._in(TokenProof(token), m.Hello(role=m.ROLE_RUN, name="r", token=token.id))
            found.say(run_spec=SPEC)
            await found.settled()
            return found

        run = await program()
        run.say(log_event=m.LogEvent(run="r", number=1, event='{"event": "e"}'))
        run.say(close_run=m.CloseRun(run="r", status="finished"))
        await run.settled()
        await run.close()
        again = await program()
        assert (await asked(ann, "runs.show", 1, run="r"))["status"] == "finished"
        again.say(log_event=m.LogEvent(run="r", number=2, event='{"event": "run_resumed", "run": "r", "round": 0}'))
        await again.hears("log_ack", where=lambda body: body.number == 2)
        assert (await asked(ann, "runs.show", 2, run="r"))["status"] == "running"
        ann.say(request=m.Request(id=3, method="runs.logs", body='{"run": "r", "from": 2, "follow": true}'))
        again.say(log_event=m.LogEvent(run="r", number=3, event='{"event": "e"}'))
        await ann.hears("response", where=lambda found: found.id == 3 and "[3," in found.body)

    play(act, tmp_path)


def test_a_token_of_a_run_that_was_over_is_swept_when_the_server_starts(tmp_path):
    async def act(here):
        await here.operator()
        here.service.registry.tokens.issue_run("test", "r")
        here.service.store.put("runs", {"id": "r", "status": "stopped", "ended_at": 1.0})

    play(act, tmp_path)

    async def again(here):
        assert [row["kind"] for row in here.service.store.rows("tokens") if row["kind"] == "run"] == []

    play(again, tmp_path)


def test_a_run_that_leaves_half_of_a_reason_has_failed(tmp_path):
    async def act(here):
        ann, supervisors = await submitted(here)
        (tmp_path / "server" / "runs" / "r" / "home").mkdir(exist_ok=True)
        (tmp_path / "server" / "runs" / "r" / "home" / "error.json").write_text("")  # its disk was full
        await supervisors.ends(1)
        found = await asked(ann, "runs.show", 2, run="r")
        assert (found["status"], found["exit"]) == ("failed", {"code": 1, "error": "its process ended with 1"})

    play(act, tmp_path)


def test_a_run_that_cannot_be_started_has_failed_and_keeps_no_server_from_starting(tmp_path, monkeypatch):
    async def act(here):
        await submitted(here)

    play(act, tmp_path)
    shutil.rmtree(tmp_path / "server" / "runs" / "r")
    (tmp_path / "server" / "runs" / "r").write_text("no folder")

    async def again(here):
        (row,) = here.service.store.rows("runs")
        assert (row["status"], "error" in row["exit"]) == ("failed", True)

    play(again, tmp_path)


def test_a_run_for_which_there_is_no_process_has_failed(tmp_path, monkeypatch):
    async def act(here):
        _, supervisors = await submitted(here)

        def full(run, folder, **how):
            raise StorageError("no inodes are left")

        supervisors.start = full
        with pytest.raises(StorageError, match="no inodes"):
            await here.service.programs.start("r")
        (row,) = here.service.store.rows("runs")
        assert (row["status"], row["exit"]) == ("failed", {"error": "no inodes are left"})

    play(act, tmp_path)


def test_a_run_that_is_stopped_before_its_turn_is_not_started_again_with_the_server(tmp_path):
    async def act(here):
        _, supervisors = await submitted(here)
        supervisors.running.clear()  # as after a restart
        turns, turn = [], here.service.desk.submissions.turn

        def late(run):
            turns.append(run)
            return turn(run)

        async with turn("r"):
            resuming = asyncio.create_task(here.service.programs.resume(late))
            while not turns:
                await asyncio.sleep(0)
            await here.service.stop("r")
        await resuming
        assert [run for run, _ in supervisors.started] == ["r"]
        assert here.service.store.rows("runs")[0]["status"] == "stopped"

    play(act, tmp_path)


def test_runs_that_were_going_on_are_started_again_with_the_server(tmp_path, monkeypatch):
    async def act(here):
        await submitted(here)

    play(act, tmp_path)
    started = []
    monkeypatch.setattr(programs.Supervisor, "start", lambda self, run, folder, **how: started.append(run))

    async def again(here):
        assert started == ["r"]

    play(again, tmp_path)
