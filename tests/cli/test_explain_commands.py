"""`umbel privacy explain`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


def secured(folder: Path) -> None:
    app = folder / "app.py"
    text = app.read_text()
    assert "umbel.App(" in text
    more = "\n\nfrom umbel.privacy import secure\napp.strategy = secure(umbel.FedAvg(cohort=8, fold=umbel.mean()))\n"
    app.write_text(text + more)


def test_who_sees_what_is_said(umbel: Command, folder: Path) -> None:
    done = umbel("privacy", "explain", "app.py", "--clients", 10)
    assert done.code == 0
    assert "the server sees each of them" in " ".join(done.out.split())
    secured(folder)
    done = umbel("privacy", "explain", "app.py", "--clients", 10)
    said = " ".join(done.out.split())
    assert done.code == 0
    assert "8 clients in the first round" in said
    assert "securely: 4 neighbours each, of whom 2 have to stay" in said
    found = umbel("privacy", "explain", "app.py", "--clients", 10, "--json").summary
    assert (found["clients"], found["neighbours"], found["threshold"], found["picture"]) == (8, 4, 2, None)


def test_it_is_drawn(umbel: Command, folder: Path) -> None:
    pytest.importorskip("matplotlib")
    secured(folder)
    assert umbel("privacy", "explain", "app.py", "--clients", 10, "--plot", "seen.png").code == 0
    assert (folder / "seen.png").read_bytes().startswith(b"\x89PNG")


def test_too_few_clients_are_said(umbel: Command, folder: Path) -> None:
    secured(folder)
    done = umbel("privacy", "explain", "app.py", "--clients", 2)
    assert done.code == 3
    assert "asks for 8 clients, but the federation has 2" in " ".join(done.said.split())
