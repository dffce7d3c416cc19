"""Run processes that really run: what they may know, how they end, and when they are started again."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.conftest import PATIENCE

import umbel
from umbel.errors import InternalError, StorageError
from umbel.server import supervision
from umbel.server.supervision import ARITHMETIC, LOG, NOT_STARTED, Exit, Output, Restarts, Supervisor

SOURCE = str(Path(umbel.__file__).parents[1])
READY = "open('ready', 'w').close()"  # a named pipe: whoever reads it is told that the child has come so far
WAIT = "import sys; sys.stdin.read()\n"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs process groups and signals")


class Stage:
    """A folder for one run, a module for its process to run, and a supervisor whose pauses only note their length."""

    def __init__(self, folder, code, **how):
        self.folder = folder / "run"
        self.home = self.folder / "home"
        self.home.mkdir(mode=0o700, parents=True)
        self.ends, self.pauses, self.over = [], [], asyncio.Event()
        (folder / "child_of_test.py").write_text(textwrap.dedent(code))
        os.mkfifo(self.home / "ready")
        self.extras = {"PYTHONPATH": os.pathsep.join((SOURCE, str(folder)))}
        self.supervisor = Supervisor(module="child_of_test", on_exit=self.ended, **{"pause": self.pause, **how})

    def start(self, *argv, **how):
        how = {"token": "id.secret", "address": "localhost:1", "authority": "CERT", "extras": self.extras, **how}
        self.supervisor.start("r", self.folder, argv, **how)

    def ended(self, end):
        self.ends.append(end)
        if not end.again:
            self.over.set()

    async def pause(self, seconds):
        self.pauses.append(seconds)

    async def ready(self):
        """Wait until the child has come as far as READY."""
        await asyncio.to_thread((self.home / "ready").read_bytes)

    @property
    def output(self):
        return (self.folder / LOG).read_text()


def staged(act, tmp_path, code, **how):
    """Run a coroutine function on a stage, and end what is left."""

    async def play():
        stage = Stage(tmp_path, code, **how)
        try:
            await asyncio.wait_for(act(stage), PATIENCE)
        finally:
            await stage.supervisor.close(grace=0)
        return stage

    return asyncio.run(play())


async def to_the_end(stage):
    stage.start("a", "b c")
    await stage.over.wait()


# What it may know


def test_a_run_process_knows_its_order_and_little_else(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET", "x")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    for name in [name for name in os.environ if name.startswith(ARITHMETIC)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    code = """
        import json, os, sys
        order = json.loads(sys.stdin.readline())
        seen = {"argv": sys.argv, "name": __name__, "cwd": os.getcwd(), "env": dict(os.environ), "order": order}
        seen["group"] = os.getpgrp() == os.getppid()  # which is its guard
        seen["path"] = "" in sys.path or os.getcwd() in sys.path
        seen["line"] = open("/proc/self/cmdline").read() if os.path.exists("/proc/self/cmdline") else ""
        print(json.dumps(seen))
    """
    stage = staged(to_the_end, tmp_path, code)
    seen = json.loads(stage.output)
    folder = str(stage.folder)
    assert seen["order"] == {"run": "r", "token": "id.secret", "address": "localhost:1", "authority": "CERT"}
    assert (seen["argv"][1:], seen["name"], seen["cwd"]) == (["a", "b c"], "__main__", f"{folder}/home")
    env = {name: value for name, value in seen["env"].items() if name not in ("LC_CTYPE", "PYTHONUSERBASE")}
    assert env.pop("LANG")
    assert env == {
        "PATH": os.environ["PATH"],
        "HOME": f"{folder}/home",
        "TMPDIR": f"{folder}/tmp",
        "OMP_NUM_THREADS": "3",
        "OPENBLAS_CORETYPE": "Haswell",
        **stage.extras,
    }
    assert seen["group"]
    assert not seen["path"]
    assert "secret" not in seen["line"] + json.dumps(seen["env"])
    assert (stage.folder / LOG).stat().st_mode & 0o777 == 0o600
    assert stage.ends == [Exit("r", 0, False)]


def test_umbel_is_found_where_it_is_not_installed(tmp_path):
    assert supervision.environment(tmp_path, {})["PYTHONPATH"] == SOURCE


def test_what_is_known_of_a_run_shows_no_secret(tmp_path):
    async def act(stage):
        stage.start()
        assert "secret" not in repr(stage.supervisor._runs)
        await stage.supervisor.stop("r", grace=0)

    staged(act, tmp_path, WAIT)


# What it prints


def test_all_that_it_prints_is_kept_in_order(tmp_path):
    code = "import sys\nfor n in range(500):\n    print(n, file=(sys.stdout, sys.stderr)[n % 2])"
    assert staged(to_the_end, tmp_path, code).output.split() == [str(n) for n in range(500)]


def test_what_it_prints_is_bounded(tmp_path):
    stage = staged(to_the_end, tmp_path, "for n in range(20_000):\n    print(f'{n:09}')", log_bytes=70_000)
    kept = (stage.folder / f"{LOG}.1").read_text() + stage.output
    assert kept.endswith("000019999\n")
    assert 0 < len(stage.output) <= 70_000
    assert len(kept) <= 140_000 + (256 << 10)  # one piece of a pipe may be larger than the bound
    assert sorted(path.name for path in stage.folder.iterdir()) == [
        "given", "home", "link", "run", LOG, f"{LOG}.1", "tmp"
    ]  # fmt: skip


def test_a_full_disk_does_not_matter(tmp_path):
    output = Output(tmp_path / LOG, 1000)
    output.write(b"before\n")
    output._file.close()
    output._file = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
    output.write(b"lost\n")
    output.close()
    assert (tmp_path / LOG).read_text() == "before\n"


# How it ends


def test_stopping_asks_first(tmp_path):
    code = f"""
        import os, signal, sys
        heard, wakes = os.pipe()
        os.set_blocking(wakes, False)
        signal.set_wakeup_fd(wakes)
        signal.signal(signal.SIGTERM, lambda *_: None)
        {READY}
        os.read(heard, 1)  # a signal that has come meanwhile is there
        print("asked")
        sys.exit(7)
    """

    async def act(stage):
        stage.start()
        await stage.ready()
        assert stage.supervisor.running["r"] > 0
        assert await stage.supervisor.stop("r", grace=PATIENCE) == 7
        assert stage.supervisor.running == {}
        assert await stage.supervisor.stop("r") is None

    stage = staged(act, tmp_path, code)
    assert stage.ends == [Exit("r", 7, False)]
    assert stage.output == "asked\n"


GRANDCHILD = "import signal; file = open('ready', 'wb', 0); file.write(b'1'); signal.pause()"


def test_who_does_not_listen_is_killed_with_all_that_it_started(tmp_path):
    code = f"""
        import signal, subprocess, sys
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-c", {GRANDCHILD!r}])
        signal.pause()
    """

    async def act(stage):
        stage.start()
        with await asyncio.to_thread(open, stage.home / "ready", "rb") as pipe:
            assert await asyncio.to_thread(pipe.read, 1) == b"1"
            assert await stage.supervisor.stop("r", grace=0.01) == -signal.SIGKILL
            assert await asyncio.to_thread(pipe.read) == b""  # the end comes when the grandchild is gone

    staged(act, tmp_path, code)


def test_what_a_dead_process_leaves_behind_goes_with_it(tmp_path):
    code = f"""
        import subprocess, sys
        subprocess.Popen([sys.executable, "-c", {GRANDCHILD!r}])
        sys.stdin.readline()
        print("done")
        open("go").read()
    """

    async def act(stage):
        os.mkfifo(stage.home / "go")
        stage.start()
        with await asyncio.to_thread(open, stage.home / "ready", "rb") as pipe:
            assert await asyncio.to_thread(pipe.read, 1) == b"1"
            await asyncio.to_thread((stage.home / "go").write_text, "")
            await stage.over.wait()
            assert await asyncio.to_thread(pipe.read) == b""

    stage = staged(act, tmp_path, code)
    assert (stage.output, stage.ends) == ("done\n", [Exit("r", 0, False)])


def test_a_stop_before_the_first_breath(tmp_path):
    async def act(stage):
        stage.start()
        assert await stage.supervisor.stop("r") == -signal.SIGTERM

    assert staged(act, tmp_path, WAIT).ends == [Exit("r", -signal.SIGTERM, False)]


def test_close_ends_all(tmp_path):
    async def act(stage):
        stage.start()
        stage.supervisor.start("s", stage.folder.parent / "s", token="t.s", address="a", extras=stage.extras)
        assert set(stage.supervisor.running) == {"r", "s"}
        await stage.supervisor.close()
        assert stage.supervisor.running == {}

    staged(act, tmp_path, WAIT)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
@pytest.mark.parametrize("ending", ["import signal; signal.pause()", "import sys; sys.stdin.read(); raise SystemExit"])
def test_it_dies_with_the_server(tmp_path, ending):
    (tmp_path / "child_of_test.py").write_text(f"import os; print(os.getpid(), file=open('ready', 'w'))\n{ending}")
    (tmp_path / "r" / "home").mkdir(parents=True)
    os.mkfifo(tmp_path / "r" / "home" / "ready")
    server = f"""
        import asyncio
        from umbel.server.supervision import Supervisor
        async def main():
            supervisor = Supervisor(module="child_of_test")
            extras = {{"PYTHONPATH": {os.pathsep.join((SOURCE, str(tmp_path)))!r}}}
            supervisor.start("r", {str(tmp_path / "r")!r}, token="", address="", extras=extras)
            await asyncio.Event().wait()
        asyncio.run(main())
    """
    env = {**os.environ, "PYTHONPATH": SOURCE}
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(server)], env=env)
    watched = os.pidfd_open(int((tmp_path / "r" / "home" / "ready").read_text()))
    try:
        process.kill()
        process.wait()
        assert select.select([watched], [], [], PATIENCE)[0]
    finally:
        os.close(watched)


# When it is started again


def test_a_crash_is_tried_again_so_many_times(tmp_path):
    stage = staged(to_the_end, tmp_path, "raise SystemExit(1)", restarts=Restarts(tries=2, first=4.0))
    assert stage.ends == [Exit("r", 1, True), Exit("r", 1, True), Exit("r", 1, False)]
    assert [2 < stage.pauses[0] <= 4, 4 < stage.pauses[1] <= 8] == [True, True]


def test_a_killed_process_is_started_again(tmp_path):
    code = """
        import os, signal
        if not os.path.exists("second"):
            open("second", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert staged(to_the_end, tmp_path, code).ends == [Exit("r", -9, True), Exit("r", 0, False)]


def test_an_exit_that_would_come_again_is_the_last(tmp_path):
    assert staged(to_the_end, tmp_path, "raise SystemExit(4)").ends == [Exit("r", 4, False)]


def test_progress_wins_new_tries(tmp_path):
    rounds = iter([0, 0, 1, 1, 1])
    how = {"restarts": Restarts(tries=1), "committed": lambda run: next(rounds)}
    assert len(staged(to_the_end, tmp_path, "raise SystemExit(1)", **how).ends) == 3


@pytest.mark.parametrize("reads", [0, 1])
def test_a_run_whose_progress_is_not_to_be_had_is_over_and_said_to_be(tmp_path, reads):
    left = [0] * reads

    def committed(run):
        if left:
            return left.pop()
        raise StorageError("the disk is gone")

    stage = staged(to_the_end, tmp_path, "raise SystemExit(1)", committed=committed)
    assert stage.ends == [Exit("r", 1 if reads else NOT_STARTED, False)]
    assert stage.supervisor.running == {}
    assert "the disk is gone" in stage.output


def test_a_stop_between_two_tries_is_at_once(tmp_path):
    async def act(stage):
        stage.start()
        await stage.paused.wait()
        assert stage.supervisor.running == {"r": None}
        assert await stage.supervisor.stop("r") == 1

    async def outer(stage):
        stage.paused = asyncio.Event()

        async def pause(seconds):
            stage.paused.set()
            await asyncio.Event().wait()

        stage.supervisor._pause = pause
        await act(stage)

    assert staged(outer, tmp_path, "raise SystemExit(1)").ends == [Exit("r", 1, True), Exit("r", 1, False)]


def test_a_process_that_cannot_be_started_counts_as_crashed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    stage = staged(to_the_end, tmp_path, "", restarts=Restarts(tries=0))
    assert stage.ends == [Exit("r", NOT_STARTED, False)]
    assert "cannot be started" in stage.output


def test_one_process_for_a_run_and_a_new_one_when_it_is_over(tmp_path):
    async def act(stage):
        stage.start()
        with pytest.raises(InternalError, match="run r has a process"):
            stage.start()
        await stage.over.wait()
        stage.over.clear()
        stage.start()
        await stage.over.wait()

    assert len(staged(act, tmp_path, "").ends) == 2


def test_a_folder_that_cannot_be(tmp_path):
    async def act(stage):
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match="cannot be written"):
            stage.supervisor.start("s", tmp_path / "file" / "s", token="", address="")
        assert stage.supervisor.running == {}

    staged(act, tmp_path, "")


def test_pauses_grow_and_end_growing():
    restarts = Restarts(first=1.0, most=8.0)
    assert [restarts.delay(tried, 0.0) for tried in range(5)] == [1, 2, 4, 8, 8]
    assert restarts.delay(3, 0.999) == pytest.approx(4, abs=0.1)
