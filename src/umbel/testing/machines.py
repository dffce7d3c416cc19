"""Servers, nodes and commands as real processes of this machine, in one folder, and what they print."""

from __future__ import annotations

import json
import os
import random
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..office.operator import Operator
from ..trust.credentials import Credentials

SOURCES = Path(__file__).parents[2]
SECONDS = 240.0
"""So long a process may take for what is waited for: on a busy machine all take their time."""
TAIL = 25
"""So many last lines of what each process printed are shown where something has failed."""


class MachineProcess:
    """A process of Python, and what it prints, as it comes; the file `log` has it too. It `began` at that time of
    `perf_counter`.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, environment: dict[str, str], log: Path) -> None:
        self.arguments = arguments
        self.log = log
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._over = False
        self.began = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        """All that was printed so far."""
        with self._news:
            return "".join(self.lines)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait_for(self, pattern: str, *, seen: int = 0, seconds: float = SECONDS) -> re.Match[str]:
        """Wait until it has printed this, beyond the first `seen` characters; ``^`` and ``$`` stand for lines' ends."""

        def printed() -> re.Match[str] | None:
            return re.search(pattern, "".join(self.lines)[seen:], re.MULTILINE)

        with self._news:
            self._news.wait_for(lambda: self._over or printed() is not None, seconds)
            match = printed()
        assert match is not None, f"{self.arguments} did not print {pattern!r}:\n{self.output}"
        return match

    def wait(self, seconds: float = SECONDS) -> int:
        """Wait for its end, and return its exit code. Raises `subprocess.TimeoutExpired`."""
        code = self._process.wait(seconds)
        self._reader.join(SECONDS)
        return code

    def kill(self) -> None:
        """End it at once, with no word to it."""
        self._process.kill()
        self.wait()

    def ask_to_end(self) -> None:
        """Have it end."""
        if self.running:
            self._process.terminate()

    def stop(self) -> int:
        """Ask it to end, and wait until it has."""
        self.ask_to_end()
        return self.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as printed, self.log.open("w") as log:
            for line in printed:
                log.write(line)
                log.flush()
                with self._news:
                    self.lines.append(line)
                    self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()


class Machines:
    """One server, its nodes and what operators type, in one folder; clients may write to `shared` in there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = ""
        self.ended: list[MachineProcess] = []
        self.nodes: dict[str, MachineProcess] = {}
        self._server: MachineProcess | None = None
        self._started = 0
        self._arguments: dict[str, list[str]] = {}
        for name in ("home", "tmp", "printed", "shared"):
            (folder / name).mkdir(parents=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("UMBEL_", "PYTEST_"))}
        self.environment = {
            **kept,
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "UMBEL_HOME": str(folder / "home"),
            "PYTHONPATH": str(SOURCES),
            "COLUMNS": "200",
        }

    # Processes

    def command(self, *arguments: str, point: Sequence[str] = (), **variables: str) -> MachineProcess:
        """Start `umbel` with these arguments, or the program `point` with these behind its own."""
        return self.program(*(point or ("-m", "umbel.cli")), *arguments, **variables)

    def program(self, *arguments: str, **variables: str) -> MachineProcess:
        """Start Python with these arguments."""
        self._started += 1
        log = self.folder / "printed" / f"{self._started:03d}.log"
        return self._noted(MachineProcess(arguments, self.folder, {**self.environment, **variables}, log))

    @property
    def server(self) -> MachineProcess:
        """The server."""
        assert self._server is not None
        return self._server

    def start_server(self, *arguments: str, ready: bool = True, point: Sequence[str] = ()) -> MachineProcess:
        """Start the server, for the second time at the address that it had."""
        listen = self.address or f"127.0.0.1:{free_ports(1)[0]}"
        fixed = ("server", "--dir", "server", "--http", "no", "--listen", listen)
        self._arguments["server"] = list(arguments)
        self._server = self.command(*fixed, *arguments, point=point)
        if ready:
            self.address = self._server.wait_for(r"server +(127\.0\.0\.1:\d+)")[1]
            self._server.wait_for("--join")
        return self._server

    def invitation(self, below: str | None = None, *, relay: bool = False) -> str:
        """A line that lets one node (or one `relay`) join, at the server or below a relay."""
        with self.office(below) as office:
            return str(office.call("nodes.invite", relay=relay)["line"]).split()[-1]

    def start_node(self, name: str, *arguments: str, join: str | None = None, address: str = "") -> MachineProcess:
        """Start a node that runs anybody's code, without waiting until it is connected."""
        joining = ["--join", join] if join is not None else []
        given = [address or self.address, "--name", name, "--dir", f"node-{name}", *arguments]
        self._arguments[name] = given
        allowed = [] if "--relay" in arguments else ["--allow", "any", "--write", "shared"]
        self.nodes[name] = self.command("node", *given, *joining, *allowed)
        return self.nodes[name]

    def start_relay(self, name: str, address: str = "") -> str:
        """Start a relay, and return the address at which it is the server of the nodes below."""
        join = self.invitation(relay=True)
        listen = ("--listen", f"127.0.0.1:{free_ports(1)[0]}")
        relay = self.start_node(name, "--relay", *listen, join=join, address=address)
        below = relay.wait_for(r"umbel node (127\.0\.0\.1:\d+) --join")[1]
        self._arguments[name][-1] = below
        return below

    def start_nodes(self, count: int) -> None:
        """Start so many nodes, called 0, 1, ..., with one client each, and wait until they are connected."""
        for index in range(count):
            self.start_node(str(index), "--source", f"index={index}", join=self.invitation())
        for node in self.nodes.values():
            node.wait_for("connected to")

    def start_node_again(self, name: str, point: Sequence[str] = ()) -> MachineProcess:
        """Start a node that has ended, as it was."""
        given = self._arguments[name]
        allowed = [] if "--relay" in given else ["--allow", "any", "--write", "shared"]
        self.nodes[name] = self.command("node", *given, *allowed, point=point)
        return self.nodes[name]

    def _noted(self, process: MachineProcess) -> MachineProcess:
        self.ended.append(process)
        return process

    # Operators

    @property
    def token(self) -> str:
        """The line of this machine's own operator."""
        return self.credentials().line

    def credentials(self, relay: str | None = None) -> Credentials:
        """How this machine's own operator connects to the server, or to a relay."""
        folder = self.folder / ("server" if relay is None else f"node-{relay}/below")
        found = json.loads((folder / "operator.json").read_text())
        return Credentials(self.address if relay is None else found["address"], found["token"])

    def office(self, relay: str | None = None) -> Operator:
        """A connection to the server, or to a relay; to be closed."""
        return Operator.connect(self.credentials(relay))

    def submit(self, app: str, seed: int = 0, *arguments: str) -> str:
        """Have the server begin a run, and return its id."""
        typed = ("run", app, "--on", self.address, "--seed", str(seed), "--detach", "--json", *arguments)
        asked = self.command(*typed, UMBEL_TOKEN=self.token)
        assert asked.wait() == 0, asked.output
        return str(json.loads(asked.lines[-1])["run"])

    def finished(self, run: str, office: Operator) -> dict[str, Any]:
        """Follow a run to its end, and return the event that says how it ended."""
        last: dict[str, Any] = {}
        for number, record in office.logs(run):
            last = record if number else last
        assert last.get("event") == "run_finished", (last, office.call("runs.show", run=run), self.printed(run))
        assert last["error"] is None, last
        return last

    def printed(self, run: str) -> str:
        """What the process of a run has printed."""
        path = self.folder / "server" / "runs" / run / "run.log"
        return path.read_text() if path.exists() else ""

    def report(self) -> str:
        """The last of what every process has printed: those of this folder's own, of runs, and of nodes' children."""
        told = {f"{process.log.name} {' '.join(process.arguments)}": process.output for process in self.ended}
        for pattern in ("server/runs/*/run.log", "node-*/logs/*.log"):
            for path in sorted(self.folder.glob(pattern)):
                told[str(path.relative_to(self.folder))] = path.read_text(errors="replace")
        parts = [f"--- {what}\n" + "\n".join(text.splitlines()[-TAIL:]) for what, text in told.items() if text]
        return "\n".join([*parts, f"All of it is in {self.folder}"])

    # What runs

    def run_process(self, run: str) -> int | None:
        """The process of a run that the server has started."""
        home = f"HOME={(self.folder / 'server' / 'runs' / run / 'home').resolve()}"
        found = [pid for pid, environment in _environments() if home in environment.split("\0")]
        guarded = [pid for guard in found for pid in _children(guard)]
        return guarded[0] if guarded else None

    def children(self, name: str) -> list[int]:
        """The processes in which a node runs the code of runs."""
        guards = [pid for pid in _children(self.nodes[name].pid) if "umbel.node.child" in _command(pid)]
        return [pid for guard in guards for pid in _children(guard)]

    def left(self) -> list[int]:
        """The processes that have anything to do with this folder."""
        return [pid for pid, environment in _environments() if str(self.folder) in environment]

    # The end

    def stop(self) -> None:
        """End all, and see to it that nothing is left."""
        for process in [*self.nodes.values(), *([self._server] if self._server is not None else [])]:
            process.stop()
        assert not _wait_for_the_end_of(self.left()), "processes are left"
        assert not [path for path in self.folder.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]
        if self.address:
            host, _, port = self.address.rpartition(":")
            socket.create_server((host, int(port))).close()  # nobody listens any more

    def kill(self) -> None:
        """End all that is left, where a test has failed."""
        for process in self.ended:
            if process.running:
                process.kill()
        for pid in _wait_for_the_end_of(self.left(), 5.0):
            os.kill(pid, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, and that nobody is given by chance: systems draw theirs from 32768 on.

    They come from the operating system's randomness: what is under test seeds the global generators, and two processes
    of tests would draw the same.
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 30_000), 1000):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("there are no free ports")


def _environments() -> Iterator[tuple[int, str]]:
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            found = place.read_text(errors="replace")
        except OSError:
            continue
        if int(place.parent.name) != os.getpid():
            yield int(place.parent.name), found


def _children(parent: int) -> list[int]:
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, above = place.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(above) == parent and state != "Z":
            found.append(int(place.parent.name))
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _wait_for_the_end_of(pids: Iterable[int], seconds: float = SECONDS) -> list[int]:
    """Wait until processes have ended; gives those that have not."""
    left = []
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ended, _, _ = select.select([descriptor], [], [], seconds)
        os.close(descriptor)
        if not ended:
            left.append(pid)
    return left
