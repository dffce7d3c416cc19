from __future__ import annotations

from pathlib import Path

import pytest

from umbel.cli.lock import alone
from umbel.errors import SettingError, StorageError


def test_a_folder_is_one_process_s_alone(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    with alone(folder, "a node", "Take another."):
        with pytest.raises(SettingError, match="a node runs in") as error, alone(folder, "a node", "Take another."):
            pass
        assert error.value.hint == "Take another."
    with alone(folder, "a node", ""):
        pass


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"), alone(tmp_path / "file", "a node", ""):
        pass
