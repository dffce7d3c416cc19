"""Numbers that only go up."""

from __future__ import annotations

import pytest

from umbel.errors import CorruptFile
from umbel.trust.epochs import Epoch


def test_it_goes_up_and_is_on_the_disk_before_it_is_said(tmp_path):
    path = tmp_path / "node" / "epoch"
    assert [Epoch(path).raised() for _ in range(3)] == [1, 2, 3]
    epoch = Epoch(path)
    assert (epoch.number, epoch.raised(), epoch.raised(), Epoch(path).number) == (3, 4, 5, 5)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_damaged_file_says_so(tmp_path):
    (tmp_path / "epoch").write_text("x")
    with pytest.raises(CorruptFile, match="holds no number"):
        Epoch(tmp_path / "epoch")
