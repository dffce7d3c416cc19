"""The site of `make docs`: it builds without a warning, and every link in it leads somewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("mkdocstrings") is None, reason="`make docs` installs what builds it"),
]


def build(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder), *options],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert re.search(r"followed the links of (\d+) pages", done.stderr), done.stderr
    return folder


def text(page: Path) -> str:
    return re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))


def test_every_page_is_there_and_can_be_found(site: Path) -> None:
    index = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        place = page.relative_to(ROOT / "docs").with_suffix("")
        if place.parts[0] != "pictures":
            assert (site / place / "index.html").exists(), page
            assert f'"{place.as_posix()}/' in index, page


def test_the_reference_has_every_public_name(site: Path) -> None:
    import umbel
    from umbel import analytics, data, folds, samplers, strategies, testing, transforms

    for module in (umbel, analytics, data, folds, samplers, strategies, testing, transforms):
        page = (site / "api" / module.__name__ / "index.html").read_text(encoding="utf-8")
        found = set(re.findall(rf'id="{re.escape(module.__name__)}\.(\w+)"', page))
        assert set(module.__all__) - found <= {"errors", "events"}, module.__name__
    krum = text(site / "api" / "umbel.folds" / "index.html").partition("krum(")[2]
    assert "Blanchard" in krum
    assert (site / "api" / "umbel.torch" / "index.html").exists()


def test_the_gallery_has_every_example_with_its_picture(site: Path) -> None:
    gallery = (site / "gallery" / "index.html").read_text(encoding="utf-8")
    for readme in (ROOT / "examples").glob("*/README.md"):
        assert f"examples/{readme.parent.name}/" in gallery
    for name in ("demo", "example-hospitals", "example-quickstart-numpy", "example-xgboost"):
        assert f"{name}.png" in gallery
        assert (site / "pictures" / f"{name}.png").exists()


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not re.search(r'(?:src|<link[^>]*stylesheet[^>]*href)="(?:https?:)?//', page.read_text("utf-8")), page


def test_a_link_that_leads_nowhere_ends_the_build(site: Path, tmp_path: Path) -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text('# A\n\n<a href="nowhere/">x</a> <img src="https://a.b/c.png">\n')
    hook = re.sub(
        r"^def on_(config|files|page_markdown|page_content)",
        r"def _\1",
        (ROOT / ".ci" / "site.py").read_text(),
        flags=re.M,
    )
    (tmp_path / "hook.py").write_text(hook)
    (tmp_path / "mkdocs.yml").write_text(
        f"site_name: x\nhooks: [hook.py]\n{settings[settings.index('theme:') : settings.index('extra:')]}"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "links to nowhere/, which is not there" in done.stderr
    assert "fetches https://a.b/c.png" in done.stderr
