from __future__ import annotations

import io
import json
import stat
from pathlib import Path

import pytest

from umbel.errors import SettingError
from umbel.trust import credentials
from umbel.trust.authority import JoinText
from umbel.trust.credentials import Credentials, author_key, find, keep, write_own
from umbel.trust.tokens import Token


def line() -> str:
    return JoinText(b"", Token.new()).text


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("UMBEL_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_each_place_goes_before_those_after_it(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, variable, kept, own = (line() for _ in range(4))
    folder = tmp_path / "server"
    write_own(folder, Credentials("127.0.0.1:7420", own))
    assert find("localhost:7420", None, folder).line == own
    keep(Credentials("LOCALHOST", kept))
    assert find("localhost:7420", None, folder) == Credentials("localhost:7420", kept)
    monkeypatch.setenv("UMBEL_TOKEN", variable)
    assert find("localhost", None, folder).line == variable
    assert find("localhost", said, folder).line == said


def test_the_servers_own_folder_says_which_server_is_meant(home: Path, tmp_path: Path) -> None:
    own = line()
    with pytest.raises(SettingError, match="no server is named"):
        find(None, None, tmp_path / "none")
    write_own(tmp_path, Credentials("127.0.0.1:7000", own))
    assert find(None, None, tmp_path) == Credentials("127.0.0.1:7000", own)
    for elsewhere in ("127.0.0.1:7001", "10.0.0.1:7000"):
        with pytest.raises(SettingError, match="there is no token") as error:
            find(elsewhere, None, tmp_path)
        assert error.value.hint is not None
        assert f"umbel login {elsewhere}" in error.value.hint


def test_a_token_may_be_in_a_file(home: Path, tmp_path: Path) -> None:
    text = line()
    (tmp_path / "plain").write_text(f"{text}\n")
    assert find("localhost:1", str(tmp_path / "plain")).line == text
    write_own(tmp_path, Credentials("localhost:1", text))
    assert find("localhost:1", str(tmp_path / "operator.json")).line == text
    assert find("localhost:1", f" {text} ").line == text
    (tmp_path / "bad.json").write_text("{")
    for wrong in ("nonsense", "x" * 5000, "a\0b", JoinText(b"").text, str(tmp_path / "bad.json"), str(tmp_path)):
        with pytest.raises(SettingError):
            find("localhost:1", wrong)


def test_files_are_their_owners_alone_and_secrets_are_not_shown(home: Path, tmp_path: Path) -> None:
    found = Credentials("localhost:1", line())
    path = keep(found)
    write_own(tmp_path, found)
    key = author_key()
    assert author_key().public == key.public
    for file in (path, tmp_path / "operator.json", home / "author.key"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert found.token.secret not in repr(found)
    assert found.join.root() is None


def test_several_servers_are_kept(home: Path) -> None:
    first, second = Credentials("127.0.0.1:1", line()), Credentials("localhost:2", line())
    keep(first)
    keep(second)
    assert (find("127.0.0.1:1"), find("localhost:2")) == (first, second)


def test_a_damaged_file_is_named(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    for text in ("{", "[]"):
        (home / "servers.json").write_text(text)
        with pytest.raises(SettingError, match=r"servers\.json is damaged"):
            find("a:1")
    (tmp_path / "operator.json").write_text(json.dumps({"address": "a:1"}))
    with pytest.raises(SettingError, match="does not hold an operator's credentials"):
        find(None, None, tmp_path)


def test_without_a_variable_files_are_in_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("UMBEL_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert credentials.home() == Path.home() / ".config" / "umbel"


def test_files_follow_the_variable_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UMBEL_HOME", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    credentials.author_key()
    keep(Credentials("a:1", line()))
    assert sorted(path.name for path in (tmp_path / "umbel").iterdir()) == ["author.key", "servers.json"]


def test_another_machine_is_not_spoken_to_without_tls_unless_somebody_insists(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for there in ("127.0.0.1:7420", "localhost:7420", "[::1]:7420"):
        assert find(there, line()).join.authority == b""
    keep(Credentials("10.0.0.1:7420", line()))
    for given in (line(), None):
        with pytest.raises(SettingError, match=r"10\.0\.0\.1:7420 would be spoken to without TLS"):
            find("10.0.0.1:7420", given)
    monkeypatch.setenv("UMBEL_INSECURE", "1")
    assert find("10.0.0.1:7420").address == "10.0.0.1:7420"


def test_a_line_may_come_from_where_nobody_else_reads_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = line()
    assert credentials.given(f" {text} ") == text
    file = tmp_path / "ward-3.join"
    file.write_text(f"good for node ward-3; on the machine that has the data:\n  umbel node here:1 --join {text}\n")
    assert credentials.given(f"@{file}") == text
    assert find("localhost:1", f"@{file}").line == text
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{text}\n{text}\n"))
    assert credentials.given("-") == text
    assert find("localhost:1", "-").line == text
    for nothing in ("-", "@gone", f"@{tmp_path}"):
        with pytest.raises(SettingError, match=r"there is no line in standard input|cannot be read"):
            credentials.given(nothing)
