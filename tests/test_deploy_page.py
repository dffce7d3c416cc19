"""Follows docs/deploy.md literally: types what stands there, in shells, and compares what comes.

How the page is written for this: a ```sh block that begins with ``# terminal N`` is typed in that terminal, and the
```text block right below it is what is printed from then on. A ```text block that begins so is what that terminal
prints meanwhile. ``# Ctrl-C`` presses that. In a terminal where a command waits for an answer, the block is the answer.
A line of ``...`` stands for any lines, and ``...`` in one for anything. Ids, times, tokens and measured numbers may
differ. A ```python or ```toml block that begins with ``# NAME.py`` or ``# NAME.toml`` is a file. The ports of the page
are exchanged for free ones.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.conftest import PATIENCE

from umbel.testing.machines import free_ports

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "deploy.md"
DONE = "\x01"

pytestmark = pytest.mark.skipif(os.name != "posix" or not shutil.which("sh"), reason="the page is for POSIX shells")

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TERMINAL = re.compile(r"# terminal (\d)\n")
_TOKEN = re.compile(r"umbel1\.[\w.-]+")
_VARYING = (
    (_TOKEN, "TOKEN"),
    (re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}"), "ID"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|\d\d:\d\d:\d\d"), "TIME"),
    (re.compile(r"\b[0-9a-f]{8,64}\b"), "HEX"),
    (re.compile(r"\b\d+(\.\d+)? (ms|s)\b|\b\d+ min \d+ s\b"), "SPAN"),
    (re.compile(r"\bnow\b|\b\d+ min ago\b"), "AGO"),
    (re.compile(r"(accuracy|loss) +[\d.e-]+"), r"\1 NUMBER"),
    (re.compile(r"\d+\.\d+ kB|\d,\d\d\d bytes"), "SIZE"),
    (re.compile(r"[▁-█]+"), "CURVE"),
    (re.compile(r"─+"), "LINE"),
    (re.compile(r"[ \t]+"), " "),
)


def plain(text: str) -> list[str]:
    """The lines of a text without what may differ, and without empty ones."""
    lines = []
    for line in text.splitlines():
        for pattern, name in _VARYING:
            line = pattern.sub(name, line)
        if line.strip():
            lines.append(line.strip())
    return lines


def shown(text: str, whole: bool) -> re.Pattern[str]:
    """What a block shows, as a pattern for the plain lines of what is printed: all of it, or its beginning."""
    lines = (re.escape(line).replace(r"\.\.\.", ".*") for line in plain(text))
    parts = [r"(?:.*\n)*?" if line == ".*" else rf"{line} ?\n" for line in lines]
    return re.compile("".join(parts) + (r"\Z" if whole else ""))


class Terminal:
    """A shell, and what has been printed in it."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.busy = False
        self._printed = ""
        self._seen = 0
        self._news = threading.Condition()
        self._shell = subprocess.Popen(
            ["sh"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._type("trap : INT\n")  # as in a terminal: Ctrl-C is for the command, and the shell lives on

    def run(self, commands: str) -> None:
        """Type commands; what they print comes after what was printed before."""
        if self.busy:
            self._type(commands)
            return
        joined = " && ".join(line for line in commands.splitlines() if line and not line.startswith("#"))
        quoted = joined.replace("'", "'\\''")
        with self._news:
            self._seen = len(self._printed)
        self.busy = True
        self._type(f"eval '{quoted}'; printf '{DONE}%s\\n' $?\n")

    def interrupt(self) -> None:
        """Press Ctrl-C, and wait until the command has ended."""
        os.killpg(self._shell.pid, signal.SIGINT)
        self.end()

    def end(self) -> tuple[str, int]:
        """Wait until the command has ended; what it printed, and its exit code."""
        text = self._until(lambda text: f"{DONE}" in text and text.endswith("\n"), "the command to end")
        output, _, code = text.partition(DONE)
        self.busy = False
        return output, int(code)

    def expect(self, text: str) -> None:
        """Wait until what a block shows is printed; later blocks show what comes after it."""
        pattern = shown(text, whole=False)

        def found(printed: str) -> bool:
            complete = printed if printed.rstrip(" ").endswith(("\n", "[y/N]")) else printed.rpartition("\n")[0]
            assert DONE not in printed or pattern.match(_joined(printed)), f"it ended:\n{printed}"
            return pattern.match(_joined(complete)) is not None

        printed = self._until(found, f"this:\n{text}")
        with self._news:
            self._seen += len(printed)

    def tokens(self) -> list[str]:
        """The tokens that were printed here."""
        with self._news:
            return _TOKEN.findall(self._printed)

    def last(self, letters: int) -> str:
        """The last so many letters that were printed here."""
        with self._news:
            return self._printed[-letters:]

    def close(self) -> None:
        """End the shell and all that runs in it."""
        for number, seconds in ((signal.SIGINT, 0.0), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            with suppress(ProcessLookupError):
                os.killpg(self._shell.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._shell.wait(seconds)
        self._reader.join(PATIENCE)
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdout.close()
        with suppress(BrokenPipeError):
            self._shell.stdin.close()

    def _type(self, text: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(text.encode())
        self._shell.stdin.flush()

    def _read(self) -> None:
        assert self._shell.stdout is not None
        while data := os.read(self._shell.stdout.fileno(), 1 << 16):
            with self._news:
                self._printed += data.decode(errors="replace")
                self._news.notify_all()

    def _until(self, good: object, what: str) -> str:
        assert callable(good)
        end = time.monotonic() + PATIENCE
        with self._news:
            while not good(self._printed[self._seen :]):
                left = end - time.monotonic()
                if left <= 0 or not self._news.wait(left):
                    pytest.fail(f"terminal {self.name} waited for {what}\nand printed\n{self._printed[self._seen :]}")
            return self._printed[self._seen :]


def _joined(printed: str) -> str:
    return "".join(f"{line}\n" for line in plain(printed))


class Reader:
    """Somebody who follows the page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = dict(zip(("7420", "7421"), map(str, free_ports(2)), strict=True))
        self.terminals: dict[str, Terminal] = {}
        (folder / "home").mkdir()
        commands = folder / "bin"
        commands.mkdir()
        for name, more in (("umbel", " -W error -c 'from umbel.cli import main; main()'"), ("python", " -W error")):
            (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{more} "$@"\n')
            (commands / name).chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("UMBEL_")}
        path = f"{commands}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        more_variables = {"HOME": str(folder / "home"), "PATH": path, "PYTHONPATH": str(ROOT / "src")}
        self.environment = {**kept, **more_variables, "COLUMNS": "200", "NO_COLOR": "1"}

    def terminal(self, name: str) -> Terminal:
        if name not in self.terminals:
            self.terminals[name] = Terminal(name, self.folder, self.environment)
        return self.terminals[name]

    def follow(self) -> None:
        found = [(language, self.translated(text)) for language, text in _BLOCK.findall(PAGE.read_text("utf-8"))]
        for number, (language, text) in enumerate(found):
            said = _TERMINAL.match(text)
            if language in ("python", "toml") and (name := re.match(r"# (\w+\.\w+)\n", text)):
                (self.folder / name[1]).write_text(text)
            elif language == "text" and said is not None:
                self.terminal(said[1]).expect(text[said.end() :])
            elif language == "sh" and said is not None:
                after = found[number + 1] if number + 1 < len(found) else ("", "")
                below = after[1] if after[0] == "text" and not _TERMINAL.match(after[1]) else None
                self.type(said[1], text[said.end() :], below)

    def type(self, name: str, commands: str, below: str | None) -> None:
        terminal = self.terminal(name)
        if "# Ctrl-C\n" in commands:
            terminal.interrupt()
            commands = commands.replace("# Ctrl-C\n", "")
        if (printed := self.last_token()) is not None:
            commands = _TOKEN.sub(printed, commands)
        lasting = terminal.busy or re.match(r"umbel (server|node)\b(?!.* --check\b)", commands)
        terminal.run(commands)
        if lasting:
            if below is not None:
                terminal.expect(below)
            elif not re.fullmatch("y\n", commands):
                terminal.expect("...\n... connected to ...")
            return
        output, code = terminal.end()
        assert code == 0, f"{commands}\n{output}"
        if below is not None:
            assert shown(below, whole=True).match(_joined(output)), f"{commands}prints\n{output}\nnot\n{below}"

    def translated(self, text: str) -> str:
        """A block with this test's ports in place of the page's."""
        for port, mine in self.ports.items():
            text = text.replace(port, mine)
        listen, http = self.ports["7420"], self.ports["7421"]
        return text.replace("umbel server\n", f"umbel server --listen 127.0.0.1:{listen} --http 127.0.0.1:{http}\n")

    def last_token(self) -> str | None:
        """The token of the last block that shows one."""
        found = [
            token
            for terminal in ("1", "5")
            if terminal in self.terminals
            for token in self.terminals[terminal].tokens()
        ]
        return found[-1] if found else None


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    reader = Reader(tmp_path)
    yield reader
    for name in sorted(reader.terminals, reverse=True):  # the server last
        reader.terminals[name].close()


@pytest.mark.slow
def test_the_page_is_followed_literally(reader: Reader) -> None:
    try:
        reader.follow()
    except BaseException:
        for name, terminal in sorted(reader.terminals.items()):
            print(f"--- terminal {name}\n{terminal.last(4000)}")  # pytest shows it
        raise
    for link in re.findall(r"<(http://127\.0\.0\.1[^>]*)>", reader.translated(PAGE.read_text("utf-8"))):
        with urllib.request.urlopen(link, timeout=PATIENCE) as answer:
            assert answer.status == 200
    used = {name for name, terminal in reader.terminals.items() if terminal.busy}
    assert used == {"1", "2", "3", "4", "6"}, "these are what still runs at the end"


def test_the_ports_of_the_page_are_the_defaults() -> None:
    from umbel.server.settings import ServerSettings

    found = ServerSettings(Path("umbel-server"))
    assert (found.listen, found.http) == ("127.0.0.1:7420", "127.0.0.1:7421")


def test_the_files_of_the_page_are_what_a_node_reads(tmp_path: Path) -> None:
    from umbel.trust.policy import Policy

    files = {
        text.partition("\n")[0].removeprefix("# "): text
        for language, text in _BLOCK.findall(PAGE.read_text("utf-8"))
        if language == "toml"
    }
    policy = Policy.read(files["policy.toml"])
    assert policy.ask
    assert policy.smallest_cohort == 5
    assert {step.name for step in policy.transforms} == {"clip_by_norm"}
    assert tomllib.loads(files["clients.toml"]) == {name: {"path": f"/data/{name}"} for name in ("ward-4", "ward-5")}
