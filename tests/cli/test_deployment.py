from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Command = Callable[..., Any]
COMMANDS = (
    "server", "node", "nodes invite", "nodes ls", "nodes approve", "nodes revoke", "operators add", "operators ls",
    "operators remove", "login", "audit", "pack", "diff",
)  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(umbel: Command, name: str) -> None:
    done = umbel(*name.split(), "--help")
    assert done.code == 0
    assert f"umbel {name}" in done.out
    assert "--debug" in done.out


def test_groups_list_their_commands(umbel: Command) -> None:
    assert all(f"  {name}" in umbel("nodes", "--help").out for name in ("invite", "ls", "approve", "revoke"))
    assert all(f"  {name}" in umbel("operators", "-h").out for name in ("add", "ls", "remove"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("node localhost:1 --listen localhost:2", "--listen goes with --relay"),
        ("node localhost:1 --window 4MiB", "--window goes with --relay"),
        ("node localhost:1 --json", "--json goes with --check"),
        ("run app.py --on localhost:1 --clients 3", "--clients goes with a simulation, not with --on"),
        ("run app.py --on localhost:1 --plan", "--plan goes with a simulation"),
        ("run app.py --clients 3 --detach", "--detach goes with --on"),
        ("run app.py --clients 3 --token x", "--token goes with --on"),
        ("run app.py --clients 3 --wait-for 2", "--wait-for goes with --on"),
        ("run app.py --on localhost:1 --only a --wait-for 2", "keep one of them"),
        ("resume r --on localhost:1 --workers 2", "--workers goes with a run on this machine"),
        ("resume r --detach", "--detach goes with --on"),
        ("server --insecure --listen 0.0.0.0:1", "without TLS"),
        ("server --quota much", "is not a size"),
        ("server --listen here", "is not an address"),
    ],
)
def test_options_that_do_not_fit_are_refused(umbel: Command, line: str, said: str) -> None:
    done = umbel(*line.split())
    assert done.code == 3
    assert said in done.said


@pytest.mark.parametrize("line", ["node", "nodes approve", "stop r", "pull r", "operators add", "diff one", "server x"])
def test_what_is_missing_is_a_wrong_command_line(umbel: Command, line: str) -> None:
    assert umbel(*line.split()).code == 2
