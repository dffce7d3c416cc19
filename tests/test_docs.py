"""The documentation is true: its snippets run and print what it shows, its links lead somewhere, its diagrams are drawn
from the code, its tables are those that benchmarks wrote.

How a page is written for this: what a Python snippet prints stands in a ```text block right below it, where ``...``
stands for anything and decimals may differ by two in their last place (processors differ). A snippet that needs an
extra is preceded by ``<!-- needs torch -->``, one that is a file, too, by ``<!-- file train.py -->``, and one that is
only shown by ``<!-- shown -->``. ``python tests/test_docs.py`` draws the pictures of the tutorial and of the page on
splitting data again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
TUTORIAL = ROOT / "docs" / "tutorial.md"
PAGES_OF_SNIPPETS = (
    "analytics", "simulation", "split-data", "track", "write-a-strategy", "write-a-transform", "your-data",
    "your-script",
)  # fmt: skip
COMING_FROM = sorted((ROOT / "docs" / "coming-from").glob("*.md"))
SPLITTING = ROOT / "docs" / "split-data.md"
SESSIONS = [TUTORIAL, *(ROOT / "docs" / f"{name}.md" for name in PAGES_OF_SNIPPETS), *COMING_FROM]
"""Pages whose snippets belong together: they are run in order, in one session."""
LONG = ("analytics", "fedml", "pfl-research", "simulation", "split-data", "tutorial", "your-data")
"""Of these those that are run by `make test-all`."""
LONG_COMMANDS = ("privacy", "sweep", "tutorial")
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), *COMING_FROM]
NOT_RUN = [ROOT / "docs" / "deploy.md"]
"""Pages that another test runs: tests/test_deploy_page.py."""
BY_ITSELF = re.compile(r"umbel (server|node)\b|.* --on ")
"""Commands that need more than one terminal; the same test has their like."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: the number of its first line, what it needs, and what is shown as its output."""

    page: Path
    line: int
    language: str
    text: str
    needs: str | None
    file: str | None
    only_shown: bool
    shown: str | None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def runs(self) -> bool:
        return not self.only_shown and (self.needs is None or importlib.util.find_spec(self.needs) is not None)


_FENCED = re.compile(
    r"(?:^<!-- (?:needs (?P<needs>\w+)|file (?P<file>[\w.]+)|(?P<only>shown)) -->\n+)?"
    r"^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```\n"
    r"(?=(?:\n*^```text\n(?P<shown>.*?)^```\n)?)",
    re.MULTILINE | re.DOTALL,
)


def blocks(page: Path, language: str) -> list[Block]:
    source = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            source.count("\n", 0, m.start("text")) + 1,
            m["language"],
            m["text"],
            m["needs"],
            m["file"],
            bool(m["only"]),
            m["shown"],
        )
        for m in _FENCED.finditer(source)
        if m["language"] == language
    ]


def prose(page: Path) -> str:
    """The page without its blocks and inline code."""
    return re.sub(r"`[^`\n]*`", "", _FENCED.sub("", page.read_text(encoding="utf-8")))


def links(page: Path) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in link]


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+?) *$", _FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def agrees(printed: str, shown: str) -> bool:
    printed, shown = ("\n".join(line.rstrip() for line in text.strip().split("\n")) for text in (printed, shown))
    parts = re.split(r"(\.\.\.|\d+\.\d+)", shown)
    decimals = [part for part in parts[1::2] if part != "..."]
    parts[::2] = map(re.escape, parts[::2])
    parts[1::2] = [r"(?:.|\n)*?" if part == "..." else r"(\d+\.\d*)" for part in parts[1::2]]
    match = re.fullmatch("".join(parts), printed)
    return match is not None and all(
        abs(float(got) - float(wanted)) <= 2.001 * 10.0 ** -len(wanted.partition(".")[2])
        for got, wanted in zip(match.groups(), decimals, strict=True)
    )


def execute(block: Block, namespace: dict[str, Any]) -> str:
    """Run a snippet and return what it printed; a traceback names the line of the page."""
    code = compile("\n" * (block.line - 1) + block.text, str(block.page), "exec", dont_inherit=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(code, namespace)
    return printed.getvalue()


def umbel(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", "from umbel.cli import main; main()"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "100"}
    return subprocess.run(
        [*command, *shlex.split(line, comments=True)[1:]], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page.stem in LONG else ()) for page in SESSIONS],
    ids=lambda page: page.stem,
)
def test_a_session_runs_and_prints_what_it_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": page.stem}
    snippets = blocks(page, "python")
    wrong = []
    for block in (b for b in snippets if b.runs):
        if block.file is not None:
            (tmp_path / block.file).write_text(block.text)
        printed = execute(block, namespace)
        if not agrees(printed, block.shown or ""):
            wrong.append(f"{block.place} prints\n{printed}\nbut the page shows\n{block.shown}")
    assert not wrong, "\n\n".join(wrong)
    if missing := {b.needs for b in snippets if not b.runs and not b.only_shown}:
        pytest.skip(f"all but the snippets that need {', '.join(sorted(map(str, missing)))} ran")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page.stem in ("privacy", "sweep", "tutorial") else ())
        for page in PAGES
    ],
    ids=lambda page: page.stem,
)
def test_its_commands_work(page, tmp_path):
    lines = [line for block in blocks(page, "sh") for line in block.text.splitlines() if line.startswith("umbel ")]
    for line in lines:
        if page not in NOT_RUN and not BY_ITSELF.match(line):
            done = umbel(line, tmp_path)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow if page.stem in ("compare", "sweep") else ()) for page in PAGES],
    ids=lambda page: page.stem,
)  # fmt: skip
def test_its_python_compiles_and_whole_programs_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(page, "python"):
        compile(block.text, block.place, "exec")
        # Outside of sessions a snippet is a whole program if it imports umbel, and else a fragment.
        if page not in [*SESSIONS, *NOT_RUN] and block.runs and re.search(r"^import umbel$", block.text, re.MULTILINE):
            printed = execute(block, {"__name__": "__main__"})
            assert block.shown is None or agrees(printed, block.shown), f"{block.place} prints\n{printed}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_links_lead_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}, which is not there"
        # Git keeps no empty folders, so after a clone such a link would lead nowhere.
        assert target.is_file() or any(target.iterdir()), f"{page.name} links to {link}, an empty folder"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}, a heading that is not there"


@pytest.mark.parametrize("page", [TUTORIAL, SPLITTING], ids=lambda page: page.stem)
def test_pictures_of_a_session_are_small_and_its_own(page):
    pictures = [Path(link).name for link in links(page) if link.endswith(".png")]
    code = "".join(block.text for block in blocks(page, "python"))
    for name in pictures:
        assert (PICTURES / name).stat().st_size < 100_000
        assert f'"{name}"' in code, f"no snippet draws {name}"


def test_tables_of_the_simulations_page_are_those_of_its_pictures():
    page = (ROOT / "docs" / "simulation.md").read_text(encoding="utf-8")
    tables = sorted(PICTURES.glob("heterogeneity-*.md"))
    assert len(tables) == 4
    for path in tables:
        assert path.with_suffix(".png").stat().st_size < 100_000
        assert path.with_suffix(".png").name in page
        assert path.read_text(encoding="utf-8") in page, f"put the table of {path.name} into the page"


def test_the_architecture_shows_the_coordinators_own_diagram():
    from umbel.runs.coordinator import diagram

    shown = [block.text.strip() for block in blocks(ROOT / "docs" / "architecture.md", "mermaid")]
    assert diagram().strip() in shown, f"put this into a mermaid block of docs/architecture.md:\n{diagram()}"


def test_output_is_compared_but_for_last_places_and_ellipses():
    assert agrees("accuracy: 0.81 \n", "accuracy: 0.80\n")
    assert not agrees("accuracy: 0.83", "accuracy: 0.80")
    assert agrees("numpy: 2.4.1\nend", "numpy: ...\nend")
    assert not agrees("20 clients", "21 clients")
    assert not agrees("something", "")


def draw_pictures(page: Path) -> None:
    """Run a session and keep the pictures that it shows."""
    names = {Path(link).name for link in links(page) if link.endswith(".png")}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        namespace: dict[str, Any] = {"__name__": page.stem}
        for block in blocks(page, "python"):
            print(f"--- {block.place}\n{execute(block, namespace)}", end="")
        PICTURES.mkdir(exist_ok=True)
        for name in names:
            shutil.copy(name, PICTURES / name)


if __name__ == "__main__":
    for session in (TUTORIAL, SPLITTING):
        draw_pictures(session)
