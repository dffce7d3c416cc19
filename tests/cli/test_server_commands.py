from __future__ import annotations

from pathlib import Path

import pytest

from umbel.cli.server_commands import announce, settings
from umbel.server.settings import ServerOpened, ServerSettings


def test_the_command_line_becomes_settings(tmp_path: Path) -> None:
    assert settings(tmp_path, None, None, [], False, False, None) == ServerSettings(tmp_path)
    assert settings(tmp_path, None, None, [], False, False, None, window="4MiB").window == 4 << 20
    found = settings(tmp_path, "0.0.0.0:1", "no", ["a", "b"], False, False, "2GB")
    assert (found.listen, found.http, found.names, found.quota) == ("0.0.0.0:1", "", ("a", "b"), 2 * 10**9)


def test_a_server_says_where_it_is_and_what_a_node_needs(capsys: pytest.CaptureFixture[str]) -> None:
    line = "umbel node localhost:7420 --join umbel1." + "x" * 120
    announce(ServerOpened("localhost:7420", "http://localhost:7421", Path("umbel-server"), line))
    out = capsys.readouterr().out
    assert f"   {line}\n" in out  # on one line, however long, to be copied
    assert "http://localhost:7421" in out
    announce(ServerOpened("localhost:7420", None, Path("umbel-server"), line))
    assert "pages" not in capsys.readouterr().out


def test_a_server_that_has_made_no_invitation_says_how_to_make_one(capsys: pytest.CaptureFixture[str]) -> None:
    announce(ServerOpened("localhost:7420", None, Path("else where")))
    out = capsys.readouterr().out
    assert "`umbel nodes invite --dir else where` prints" in out
    assert "   umbel node localhost:7420 --join @FILE\n" in out
