"""What a confined process may reach, how it ends, and what it leaves behind: nothing."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest
from tests.conftest import PATIENCE

import umbel
from umbel.work import confinement
from umbel.work.confinement import LEAST_ABI, Confinement, landlock_abi

SOURCE = str(Path(umbel.__file__).parents[1])
linux = pytest.mark.skipif(not confinement.LINUX, reason="there is a guard on Linux alone")
landlocked = pytest.mark.skipif(landlock_abi() < LEAST_ABI, reason="this kernel has no Landlock of version 2")
filtered = pytest.mark.skipif(not confinement._has_seccomp(), reason="there is no seccomp for this system")

PRELUDE = """
import json, os, socket, sys

def tried(deed):
    try:
        deed()
    except OSError as error:
        return type(error).__name__
    return "done"

def told(**found):
    print(json.dumps(found), flush=True)
"""


class Stage:
    """A module for a confined process to run, and a folder that is its own."""

    def __init__(self, folder, code, **how):
        self.own = folder / "own"
        self.own.mkdir()
        (folder / "lib").mkdir()
        (folder / "lib" / "confined_by_test.py").write_text(PRELUDE + textwrap.dedent(code))
        self.how = Confinement(**{"work": [str(self.own)], **how})
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join((SOURCE, str(folder / "lib")))}

    def start(self):
        command = self.how.command("confined_by_test", str(self.own))
        return subprocess.Popen(
            command, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def ended(self):
        """The exit code, and what was told."""
        process = self.start()
        printed, _ = process.communicate(timeout=PATIENCE)
        return process.returncode, {k: v for line in printed.splitlines() for k, v in json.loads(line).items()}


# Files


@landlocked
def test_it_reads_and_writes_what_it_was_given_and_nothing_else(tmp_path):
    folders = {name: tmp_path / name for name in ("read", "write", "given", "hidden")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "file").write_text("x")
    (folders["read"] / "secret").write_text("x")
    code = f"""
    folder = {str(tmp_path)!r} + "/"
    told(own=tried(lambda: open(sys.argv[1] + "/new", "w")), tmp=tried(lambda: open("/tmp/confined", "w")))
    for name in ("read", "write", "given", "hidden"):
        path = folder + name + "/file"
        told(**{{
            f"{{name}} read": tried(lambda: open(path)),
            f"{{name}} written": tried(lambda: open(path, "a")),
            f"{{name}} linked": tried(lambda: os.link(path, sys.argv[1] + "/" + name)),
            f"{{name}} removed": tried(lambda: os.unlink(path)),
        }})
    told(secret=tried(lambda: open(folder + "read/secret")))
    """
    places = {name: [str(folders[name])] for name in ("read", "write", "given", "hidden")}
    places["hidden"].append(str(folders["read"] / "secret"))
    _, found = Stage(tmp_path, code, **places).ended()
    assert {name for name, value in found.items() if value == "done"} == {
        "own", "read read", "write read", "write written", "write linked", "write removed", "given read",
        "given removed",
    }  # fmt: skip


@linux
def test_thousands_of_paths_can_be_given(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    last = tmp_path / "last"
    last.write_text("x")
    read = [*(str(tmp_path / f"a-ward-with-a-long-name-{i}") for i in range(3000)), str(last)]
    assert Stage(tmp_path, f"told(found=open({str(last)!r}).read())", read=read).ended() == (0, {"found": "x"})
    assert not list(tmp_path.glob("umbel-order-*"))


def test_beside_what_is_hidden_all_else_is_to_be_had(tmp_path):
    for name in ("a/b/c", "a/b/d", "a/e"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a" / "link").symlink_to(tmp_path)
    hidden = [tmp_path / "a" / "b" / "c"]
    assert set(confinement._beside(tmp_path / "a", hidden)) == {tmp_path / "a" / "b" / "d", tmp_path / "a" / "e"}
    assert list(confinement._beside(hidden[0] / "deeper", hidden)) == []
    assert list(confinement._beside(tmp_path / "a" / "e", hidden)) == [tmp_path / "a" / "e"]


def test_python_is_to_be_had_even_where_it_is_installed_in_what_is_hidden(tmp_path, monkeypatch):
    place = tmp_path.resolve() / "venv"
    place.mkdir()
    monkeypatch.setattr(sys, "prefix", str(place))
    found = dict(confinement.rules(Confinement(hidden=[str(tmp_path)])))
    assert place in found
    assert tmp_path.resolve() not in found


# How it ends


@linux
@pytest.mark.parametrize(("ending", "code"), [
    ("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", -9), ("os.kill(os.getpid(), 11)", -11), ("pass", 0),
])  # fmt: skip
def test_its_guard_ends_as_it_does(tmp_path, ending, code):
    assert Stage(tmp_path, ending).ended()[0] == code


ESCAPED = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(1, 32):
            if number not in (9, 19):
                signal.signal(number, signal.SIG_IGN)
        told(pid=os.getpid())
        os.close(1)
        signal.pause()
    os._exit(0)
"""


@linux
@pytest.mark.parametrize("ending", ["its own", "the guard's order", "its parent's"])
def test_nobody_whom_it_left_behind_lives_on(tmp_path, ending):
    code = f"import signal\n{ESCAPED}\nsys.stdin.readline()\n"
    stage = Stage(tmp_path, code)
    if ending == "its parent's":
        starter = "import os, subprocess; from umbel.work.confinement import Confinement; import signal; \
subprocess.Popen(Confinement().command('confined_by_test'), start_new_session=True); signal.pause()"
        process = subprocess.Popen(
            [sys.executable, "-c", starter], env=stage.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
    else:
        process = stage.start()
    escaped = os.pidfd_open(json.loads(process.stdout.readline())["pid"])
    try:
        if ending == "its own":
            process.stdin.write("\n")
            process.stdin.flush()
        elif ending == "the guard's order":
            confinement.end(process.pid)
        else:
            process.kill()
        assert select.select([escaped], [], [], PATIENCE)[0]
    finally:
        os.close(escaped)
        process.kill()
        process.communicate()


def test_processes_are_found_however_deep_they_are_below_each_other(monkeypatch):
    monkeypatch.setattr(confinement, "_children", lambda pid: [pid + 1] if pid < 5000 else [])
    assert list(confinement.below(1)) == list(range(2, 5001))


@linux
def test_it_is_asked_to_end_by_way_of_its_guard(tmp_path):
    code = "import signal\nsignal.pthread_sigmask(0, {15})\ntold(ready=1)\nsignal.sigwait({15})\nsys.exit(3)"
    process = Stage(tmp_path, code).start()
    process.stdout.readline()
    process.terminate()
    assert process.wait(PATIENCE) == 3
    process.stdin.close()
    process.stdout.close()


# Capabilities, system calls, sockets, limits


@linux
def test_it_has_no_privileges_and_comes_by_none(tmp_path):
    code = "told(**{k: v.strip() for k, v in (line.split(':', 1) for line in open('/proc/self/status'))})"
    found = Stage(tmp_path, code).ended()[1]
    assert found["NoNewPrivs"] == "1"
    assert {int(found[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Amb")} == {0}
    if os.geteuid() == 0:
        assert int(found["CapBnd"], 16) == 0


@filtered
def test_system_calls_that_lead_out_are_refused(tmp_path):
    code = """
    import ctypes, platform
    libc = ctypes.CDLL(None, use_errno=True)
    def errno(call):
        return ctypes.get_errno() if call < 0 else 0
    told(
        unshare=errno(libc.unshare(0x10000000)), ptrace=errno(libc.ptrace(16, os.getppid(), 0, 0)),
        clone3=errno(libc.syscall(435, None, 0)), io_uring=errno(libc.syscall(425, 1, None)),
        clone=errno(libc.syscall(220 if platform.machine() == "aarch64" else 56, 0x10000011, 0, 0, 0, 0)),
    )
    """
    found = Stage(tmp_path, code).ended()[1]
    assert found == {"unshare": 1, "ptrace": 1, "clone3": 38, "io_uring": 38, "clone": 1}


@filtered
def test_what_landlock_lets_pass_changes_no_file_and_no_process_of_others(tmp_path):
    kept = tmp_path / "kept"
    kept.touch(mode=0o600)
    code = f"""
    import resource
    kept, limit = {str(kept)!r}, resource.RLIMIT_NOFILE
    folder = os.open(sys.argv[1], os.O_RDONLY)
    found = dict(
        chmod=tried(lambda: os.chmod(kept, 0o644)), fchmod=tried(lambda: os.chmod(folder, 0o777)),
        fchmodat=tried(lambda: os.chmod("../kept", 0o644, dir_fd=folder)),
        xattr=tried(lambda: os.setxattr(kept, "user.x", b"")),
        prlimit=tried(lambda: resource.prlimit({os.getpid()}, limit)),
        guard=tried(lambda: resource.prlimit(os.getppid(), limit)),
        nice=tried(lambda: os.setpriority(os.PRIO_PROCESS, {os.getpid()}, 19)),
        all_nice=tried(lambda: os.setpriority(os.PRIO_USER, 0, 19)),
        batch=tried(lambda: os.sched_setscheduler({os.getpid()}, os.SCHED_BATCH, os.sched_param(0))),
        own_limit=tried(lambda: resource.setrlimit(limit, resource.getrlimit(limit))),
        own_nice=tried(lambda: os.setpriority(os.PRIO_PROCESS, 0, 19)),
    )
    told(**found)
    """
    found = Stage(tmp_path, code).ended()[1]
    assert (kept.stat().st_mode & 0o777, os.listxattr(kept)) == (0o600, [])
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o755  # as it was made
    ignored, own = ("chmod", "fchmod", "fchmodat"), ("own_limit", "own_nice")
    assert {found.pop(name) for name in (*ignored, *own)} == {"done"}
    assert set(found.values()) == {"PermissionError"}, found


@filtered
@pytest.mark.parametrize("network", [False, True])
def test_without_a_network_there_are_no_sockets_but_pairs(tmp_path, network):
    code = """
    kinds = {"inet": socket.AF_INET, "inet6": socket.AF_INET6, "unix": socket.AF_UNIX}
    told(**{name: tried(lambda: socket.socket(kind, socket.SOCK_DGRAM)) for name, kind in kinds.items()})
    told(pair=tried(socket.socketpair))
    """
    found = Stage(tmp_path, code, network=network).ended()[1]
    assert found.pop("pair") == "done"
    if network:
        found.pop("unix")  # there are some where nobody is to be reached by them
    assert set(found.values()) == {"done" if network else "PermissionError"}


@filtered
def test_where_a_shell_can_be_driven_by_a_socket_there_are_no_local_ones(tmp_path):
    folder = Path(f"/tmp/tmux-{os.getuid()}")  # where tmux has its own
    folder.mkdir(mode=0o700, exist_ok=True)
    place = folder / f"test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as shell:
        shell.bind(str(place))
        try:
            found = Stage(tmp_path, "told(unix=tried(lambda: socket.socket(socket.AF_UNIX)))").ended()[1]
        finally:
            place.unlink()
            with suppress(OSError):  # there is a tmux
                folder.rmdir()
    assert found == {"unix": "PermissionError"}


@filtered
@pytest.mark.parametrize("place", ["master", "agent/s.1"])
def test_where_an_agent_listens_in_what_is_hidden_there_are_no_local_sockets(tmp_path, place):
    code = "told(unix=tried(lambda: socket.socket(socket.AF_UNIX)))"
    with tempfile.TemporaryDirectory() as keys, socket.socket(socket.AF_UNIX) as agent:  # whose name may not be long
        (Path(keys) / place).parent.mkdir(exist_ok=True)
        agent.bind(f"{keys}/{place}")
        assert Stage(tmp_path, code, hidden=[keys]).ended()[1] == {"unix": "PermissionError"}


@pytest.mark.parametrize("name", [".config/gh", ".npmrc", ".cargo/credentials.toml", ".config/rclone", ".ssh"])
def test_what_is_a_secret_in_a_home_is_known(name, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", "/elsewhere")
    assert os.path.expanduser(f"~/{name}") in confinement.secrets()
    assert {"/elsewhere/gh", "/elsewhere/umbel"} <= set(confinement.secrets())


@linux
def test_memory_and_processors_are_limited(tmp_path):
    code = """
    def take():
        bytearray(1 << 30)
    try:
        take()
    except MemoryError:
        told(memory="refused")
    told(cpus=len(os.sched_getaffinity(0)), more=tried(lambda: os.sched_setaffinity(0, range(8))))
    """
    first = min(os.sched_getaffinity(0))
    found = Stage(tmp_path, code, memory=1 << 29, cpus=[first]).ended()[1]
    assert (found["memory"], found["cpus"]) == ("refused", 1)
    if confinement._has_seccomp():
        assert found["more"] == "PermissionError"


# What it sees of others


@landlocked
def test_it_sees_the_processor_time_of_what_it_has_started(tmp_path):
    code = """
    import subprocess
    from umbel.work.vitals import processor_ticks
    burns = "import sys, time\\nwhile time.process_time() < 0.1: pass\\nprint(1, flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", burns], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    told(closed=tried(lambda: open(f"/proc/{child.pid}/stat")), ticks=processor_ticks(child.pid))
    child.communicate()
    told(gone=processor_ticks(child.pid))
    """
    _, found = Stage(tmp_path, code, read=[SOURCE]).ended()
    assert found["closed"] == "PermissionError"
    assert found["ticks"] >= 0.1 * os.sysconf("SC_CLK_TCK")
    assert found["gone"] == 0


# What is lacking


def test_what_a_system_cannot_do_is_told(monkeypatch):
    monkeypatch.setattr(confinement, "LINUX", False)
    assert [critical for _, critical in confinement.lacking()] == [True]
    monkeypatch.setattr(confinement, "LINUX", True)
    monkeypatch.setattr(confinement, "_has_seccomp", lambda: True)
    told = {}
    for abi in range(8):
        monkeypatch.setattr(confinement, "landlock_abi", lambda abi=abi: abi)
        told[abi] = [critical for _, critical in confinement.lacking()]
    assert told == {0: [True], 1: [True], 2: [False, True], 3: [False], 4: [False], 5: [False], 6: [], 7: []}
    monkeypatch.setattr(confinement, "_has_seccomp", lambda: False)
    assert [critical for _, critical in confinement.lacking()] == [False]
