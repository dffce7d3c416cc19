from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Command = Callable[..., Any]


def test_an_app_is_packed_twice_alike(umbel: Command, folder: Path) -> None:
    done = umbel("pack", "app.py", "-o", "packed", "--json")
    assert done.code == 0
    for kind, facts in done.summary.items():
        data = Path(facts["file"]).read_bytes()
        assert facts["file"] == f"packed/demo-{kind}.zip"
        assert facts["sha256"] == hashlib.sha256(data).hexdigest()
        assert facts["files"] == ["app.py"]
    assert (
        umbel("pack", "app.py", "-o", "again", "--json").summary["client"]["sha256"] == done.summary["client"]["sha256"]
    )
    shown = umbel("pack", "app.py").out
    assert done.summary["client"]["sha256"] in shown
    assert (folder / "demo-client.zip").exists()


def test_what_changed_between_archives_is_shown(umbel: Command, folder: Path) -> None:
    umbel("pack", "app.py", "-o", "old")
    assert umbel("diff", "old/demo-client.zip", "old/demo-client.zip").out.strip() == "no difference"
    app = folder / "app.py"
    app.write_text(app.read_text().replace("its disk is gone", "its disk is full"))
    umbel("pack", "app.py", "-o", "new")
    out = umbel("diff", "old/demo-client.zip", "new/demo-client.zip").out
    assert '-        raise ValueError("its disk is gone")' in out
    assert '+        raise ValueError("its disk is full")' in out


def test_what_is_no_archive_is_told(umbel: Command, folder: Path) -> None:
    assert umbel("diff", "app.py", "app.py").code == 3
    assert umbel("diff", "none.zip", "app.py").code == 5
    assert json.loads(umbel("pack", "app.py", "--json").out)["app"]["bytes"] > 0
    (folder / "broken.py").write_text("x = 1\n")
    assert umbel("pack", "broken.py").code == 3
