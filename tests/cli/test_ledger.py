"""What is told of a node's ledger: in the terminal, as JSON, and on a page for auditors."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.node.test_ledger import EXAMPLE, Desk

from umbel.privacy.accounting import spent
from umbel.privacy.release import NoisyRelease
from umbel.trust.identity import SigningKey
from umbel.trust.policy import PrivacyBudget

Command = Callable[..., Any]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The folder of a node with two clients, of which one has told something as it is."""
    pytest.importorskip("dp_accounting")
    folder = tmp_path / "ward"
    folder.mkdir()
    desk = Desk(folder, key=SigningKey.kept(folder / "node.key"))
    for number in range(3):
        assert desk.answer("a", number, app="<b>one</b>") == ""
    assert desk.answer("b", 4, accounted=((EXAMPLE, 2),), transforms=(), params=()) == ""
    desk.budget = PrivacyBudget(4.0, 1e-6, per_year=2.0)
    desk.again()
    assert desk.answer("a", 5, app="two", run="other") != ""
    desk.rows()
    desk.spool.close()
    return folder


def test_a_client_has_spent_what_the_accountant_says_of_its_entries(umbel: Command, kept: Path) -> None:
    found = json.loads(umbel("privacy", "show", kept, "--json").out)
    a, b = found["clients"]
    release = NoisyRelease("discrete_gaussian", 4.0, 1.0, "client", "zero out one", {"kind": "everyone"}, 10.0, 2.0**23)
    assert a["epsilon"] == pytest.approx(spent([release] * 3, 1e-6).epsilon, rel=1e-6)
    assert (a["client"], a["releases"], a["budget"]) == ("a", 3, 4.0)
    assert a["left"] == pytest.approx(4.0 - a["epsilon"])
    parts = {(each["scope"], each["name"]): each for each in a["parts"]}
    assert set(parts) == {("app", "<b>one</b>"), ("server", "ab"), ("year", "2026")}
    assert parts["year", "2026"]["left"] == pytest.approx(2.0 - a["epsilon"])
    assert (b["epsilon"], b["left"], b["releases"]) == (None, 0.0, 1)
    assert found["budget"] == {"epsilon": 4.0, "delta": 1e-6, "unit": "client", "per_year": 2.0}
    text = umbel("privacy", "show", kept).out
    assert f"{a['epsilon']:.4g}" in text
    assert "nothing holds" in text
    looser = json.loads(umbel("privacy", "show", kept, "--delta", "1e-3", "--json").out)
    assert looser["clients"][0]["epsilon"] < a["epsilon"]


class Tags(HTMLParser):
    """What stands in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_for_auditors_has_it_all_and_no_script(umbel: Command, kept: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert umbel("privacy", "show", kept, "--html", page).code == 0
    text, tags = page.read_text(), Tags()
    tags.feed(text)
    names = {name for name, _ in tags.found}
    assert not names & {"script", "link", "img", "iframe", "b"}
    assert not [key for _, held in tags.found for key in held if key.startswith("on") or key in ("src", "href")]
    assert text.count("<td>nothing holds<") == 4, "for b, with an app, a server and a year"
    assert "&lt;b&gt;one&lt;/b&gt;" in text
    assert SigningKey.kept(kept / "node.key").public.hex() in text
    head = re.search(r"\d+:[0-9a-f]{64}", text)
    assert head is not None
    assert umbel("privacy", "check", kept, "--against", head[0]).code == 0
    assert "discrete_gaussian, noise 4, bound 1, zero out one" in text
    assert "gaussian, noise 4, bound 1, add or remove one" in text


def test_check_finds_a_change_and_tells_the_head(umbel: Command, kept: Path) -> None:
    found = json.loads(umbel("privacy", "check", kept, "--json").out)
    assert found["entries"] == 4
    assert found["head"] in umbel("privacy", "check", kept).out
    with closing(sqlite3.connect(kept / "node.db")) as database, database:
        database.execute("UPDATE audit SET what = replace(what, '4.0', '8.0') WHERE number = 2")
    for command in (("check",), ("show",)):
        done = umbel("privacy", *command, kept)
        assert done.code == 5
        assert "record 2 does not follow from record 1" in done.said


def test_a_ledger_is_its_own_nodes(umbel: Command, kept: Path, tmp_path: Path) -> None:
    (kept / "node.key").unlink()
    assert umbel("privacy", "check", kept).code == 3
    assert not (kept / "node.key").exists()
    SigningKey.kept(kept / "node.key")
    done = umbel("privacy", "check", kept)
    assert done.code == 5
    assert "is not signed by the node whose key is there" in done.said


def test_a_page_is_of_a_node(umbel: Command, folder: Path) -> None:
    done = umbel("privacy", "show", "last", "--html", "page.html")
    assert done.code == 3
    assert "--html is for a node's folder" in done.said
