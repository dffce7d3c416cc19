"""The owner of a node is asked: what is shown, what is remembered, and that nobody waits for who is not there."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import pty
import select
import sys
import threading
from pathlib import Path

import pytest

from umbel.cli import owner
from umbel.cli.owner import Owner, settings_lines
from umbel.trust import archive as archives
from umbel.trust.identity import SigningKey
from umbel.trust.policy import Approvals
from umbel.trust.statement import Statement, digest
from umbel.wire import messages as m

KEY = SigningKey.of_seed(b"k" * 32)
MANIFEST = {
    "kind": "client", "module": "client", "attribute": "client", "handlers": ["train"], "imports": [],
    "python": "", "requirements": [],
}  # fmt: skip


def packed(code: str) -> bytes:
    return archives.build(MANIFEST, {"client.py": code.encode()})


def spec_of(data: bytes, run: str = "r", signed: bool = True, **config: object) -> m.RunSpec:
    text = json.dumps(config)
    spec = m.RunSpec(run=run, name="demo", archive=m.Payload(inline=data), config=text, owner="anna")
    if signed:
        said = Statement("demo", hashlib.sha256(data).hexdigest(), version=2, config=digest(text))
        spec.author, spec.statement, spec.signature = KEY.public, said.text(), said.signed(KEY)
    return spec


class Desk:
    """A node's folder, and what is typed there."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, printed: pytest.CaptureFixture[str]) -> None:
        self.folder, self._patch, self._printed = folder, patch, printed
        self.shown = ""

    def ask(self, spec: m.RunSpec, typed: str, anew: bool = True) -> bool:
        """What comes of it, with an owner made anew as after a restart."""
        self._patch.setattr(sys, "stdin", io.StringIO(typed))
        file = self.folder / "archive.zip"
        file.write_bytes(spec.archive.inline)
        said = asyncio.run(Owner(Approvals(self.folder / "approved"), self.folder).ask(spec, file))
        self.shown = self._printed.readouterr().err
        return said


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(("typed", "allowed"), [("y\n", True), ("YES\n", True), ("\n", False), ("no\n", False)])
def test_an_answer_is_remembered(desk: Desk, typed: str, allowed: bool) -> None:
    spec = spec_of(packed("x = 1\n"))
    assert desk.ask(spec, typed) is allowed
    assert KEY.public.hex() in desk.shown
    assert desk.ask(spec, "y\n" if not allowed else "n\n") is allowed, "nobody is asked again"
    assert desk.shown == ""
    again = spec_of(packed("x = 1\n"), "another run")
    assert desk.ask(again, "y\n"), "a no is for one run"


def test_where_nobody_is_there_nothing_waits_and_nothing_is_remembered(desk: Desk) -> None:
    spec = spec_of(packed("x = 1\n"))
    assert not desk.ask(spec, "")
    assert "standard input is at its end" in desk.shown
    assert desk.ask(spec, "y\n")


def test_who_submitted_and_signed_it_and_its_settings_are_shown(desk: Desk) -> None:
    desk.ask(spec_of(packed("x = 1\n"), lr=0.1), "n\n")
    assert "by anna, says the server" in desk.shown
    assert "signed    the code, config, version" in desk.shown
    assert "setting   lr = 0.1" in desk.shown
    assert "nothing of this author's app was accepted here" in desk.shown
    desk.ask(spec_of(packed("x = 1\n"), "b", signed=False), "n\n")
    assert "nobody signed it" in desk.shown


def test_what_changed_since_it_was_accepted_is_shown(desk: Desk) -> None:
    first, second = packed("import os\nx = 1\n"), packed("import os\nx = 2\n")
    assert desk.ask(spec_of(first, lr=0.1, epochs=3), "v\ny\n")
    assert "+import os" in desk.shown
    assert desk.ask(spec_of(second, "s", lr=0.5, epochs=3), "v\ny\n")
    assert "code of this app was accepted" in desk.shown
    assert "lr = 0.5  (was 0.1)" in desk.shown
    assert "setting   epochs = 3\n" in desk.shown
    changes = desk.shown.split("[y/N] ")[1].splitlines()
    assert "-x = 1" in changes
    assert "+x = 2" in changes
    assert "+import os" not in changes
    unsigned = spec_of(packed("x = 3\n"), "t", signed=False)
    desk.ask(unsigned, "n\n")
    assert "all of it is new" in desk.shown, "of nobody's code nothing was accepted under that name"


def test_the_code_lies_there_while_it_is_asked_about_and_not_after(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    async def typed() -> str:
        seen.extend(str(path.relative_to(desk.folder)) for path in (desk.folder / "review").rglob("*.py"))
        return "n\n"

    monkeypatch.setattr(owner, "_line_typed", typed)
    data = packed("x = 1\n")
    stale = desk.folder / "review" / hashlib.sha256(data).hexdigest()[:16] / "other.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("left by a node that was killed")
    desk.ask(spec_of(data), "")
    assert seen == [f"review/{hashlib.sha256(data).hexdigest()[:16]}/client.py"]
    assert not list((desk.folder / "review").rglob("*"))


def test_what_a_terminal_would_act_upon_is_spelled_out(desk: Desk) -> None:
    spec = spec_of(packed("x = 1  # \x1b[2K\n"), note="\x1b[2K")
    spec.owner = "anna\x1b[2K"
    desk.ask(spec, "v\nn\n")
    assert "\x1b" not in desk.shown


def test_where_there_is_no_input_at_all_nobody_is_there(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(packed("x = 1\n"))

    class Gone(io.StringIO):
        def readline(self, size: int | None = -1) -> str:
            raise OSError(5, "Input/output error")  # the terminal was closed

    for stdin in (None, Gone()):
        monkeypatch.setattr(io, "StringIO", lambda typed, stdin=stdin: stdin)
        assert not desk.ask(spec, "")
        assert "standard input is at its end" in desk.shown
    monkeypatch.undo()
    assert desk.ask(spec, "y\n")


def test_what_was_typed_before_there_was_a_question_is_no_answer(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    asked = threading.Event()

    class Seen(io.StringIO):
        def write(self, text: str) -> int:
            if "allow it" in text:
                asked.set()
            return super().write(text)

    def types() -> None:
        asked.wait()
        os.write(ours, b"n\n")

    with os.fdopen(theirs) as stdin:
        os.write(ours, b"y\n")  # a second time, to the question before
        while not select.select([theirs], [], [], 0)[0]:
            pass
        monkeypatch.setattr(sys, "stderr", Seen())
        typing = threading.Thread(target=types)
        typing.start()
        monkeypatch.setattr(io, "StringIO", lambda typed: stdin)
        assert not desk.ask(spec_of(packed("x = 1\n")), "")
        typing.join()
    os.close(ours)


def test_the_node_goes_on_while_large_code_is_laid_out(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, difference = threading.Event(), archives.difference

    def slow(old: archives.Archive, new: archives.Archive) -> str:
        heard.wait()
        return difference(old, new)

    monkeypatch.setattr(archives, "difference", slow)
    ask = Owner.ask

    async def asked(self: Owner, spec: m.RunSpec, file: Path) -> bool:
        asyncio.get_running_loop().call_later(0.01, heard.set)
        return await ask(self, spec, file)

    monkeypatch.setattr(Owner, "ask", asked)
    assert desk.ask(spec_of(packed("x = 1\n")), "y\n")


def test_a_disk_that_fails_refuses_and_the_node_lives_on(desk: Desk) -> None:
    (desk.folder / "review").write_text("in the way")
    assert not desk.ask(spec_of(packed("x = 1\n")), "y\n")
    assert "nobody can be asked about run r" in desk.shown


def test_settings_that_have_changed_come_first() -> None:
    assert settings_lines({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "d": 4}) == [
        "b = 2  (was 5)", "c = 3  (new)", "d is left out  (was 4)", "a = 1",
    ]  # fmt: skip
    many = settings_lines({str(n): n for n in range(30)}, None)
    assert len(many) == owner.MOST_SETTINGS + 1
    assert many[-1].startswith("and 10 others")
