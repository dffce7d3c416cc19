"""What `umbel doctor` finds on this machine, and what it says where something is missing."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from umbel.cli import environment
from umbel.cli.findings import BETTER, CRITICAL, GOOD, Finding
from umbel.errors import RunFailed

Command = Callable[..., Any]


def only(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "CHECKS", (check,))


def found(check: Any, *arguments: object) -> list[Finding]:
    return list(check(Path("umbel-runs"), *arguments))


@pytest.mark.slow
def test_a_machine_that_runs_the_tests_is_well(umbel: Command, folder: Path) -> None:
    done = umbel("doctor", "--json")
    rows = json.loads(done.out)
    assert done.code == 0, rows
    assert {row["check"] for row in rows} >= {"python", "umbel", "cores", "memory", "workers", "disk"}
    assert not [row for row in rows if row["critical"]]
    assert "two did a round of four clients" in next(row["note"] for row in rows if row["check"] == "workers")
    assert [path.name for path in folder.iterdir()] == ["app.py"]


def test_it_prints_a_table_with_what_to_do(umbel: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    only(
        lambda folder: [environment._found("disk", "slow [3 MB/s]", "Get another."), environment._found("cores", "2")],
        monkeypatch,
    )
    done = umbel("doctor")
    assert done.code == 0
    assert "could be better" in done.out
    assert "slow [3 MB/s]" in done.out
    assert "Get another." in done.out


def test_what_is_wrong_is_an_exit_code(umbel: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    only(lambda folder: [environment._found("disk", "gone", "Get one.", wrong=True)], monkeypatch)
    assert umbel("doctor").code == 3
    assert umbel("doctor", "--json").code == 3


def test_a_check_that_breaks_keeps_nobody_from_the_others(umbel: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def _odd_memory(folder: Path) -> Iterator[Finding]:
        yield environment._found("cores", "2")
        raise KeyError("MemAvailable")

    monkeypatch.setattr(environment, "CHECKS", (_odd_memory, lambda folder: [environment._found("disk", "quick")]))
    done = umbel("doctor")
    assert done.code == 0
    for said in ("cores", "odd memory", "cannot be told: KeyError: 'MemAvailable'", "quick"):
        assert said in done.out


def test_a_pytorch_that_cannot_be_imported_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_version", lambda name: "2.13.0")
    monkeypatch.setitem(sys.modules, "torch", None)
    (row,) = found(environment._gpus)
    assert row.state == CRITICAL
    assert "cannot be imported" in row.note
    assert "pytorch.org" in row.advice


def test_another_python_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PYTHONS", ((3, 2), (3, 3)))
    (row,) = found(environment._python)
    assert (row.state, "environment" in row.advice) == (CRITICAL, True)


def test_the_pythons_are_those_of_the_package() -> None:
    (first, beyond) = (".".join(map(str, each)) for each in environment.PYTHONS)
    assert metadata.metadata("umbel")["Requires-Python"].replace(" ", "") in (
        f">={first},<{beyond}",
        f"<{beyond},>={first}",
    )


def test_packages_that_are_missing_or_too_old_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["numpy>=1", "gone>=2", 'torch>=999; extra == "torch"', 'rich; extra == "nice"', 'x; python_version < "3"']
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    rows = {row.check: row for row in found(environment._packages)}
    assert rows["umbel"].state == CRITICAL
    assert "lacking gone>=2" in rows["umbel"].note
    assert rows["extras"].note == "nice"
    assert rows["extras not here"].note == 'pip install "umbel[torch]" has torch>=999'


def test_a_container_with_fewer_cores_gets_fewer_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert environment._allowed(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert environment._allowed(tmp_path) is None
    assert environment._allowed(tmp_path / "none") is None
    monkeypatch.setattr(environment, "_allowed", lambda: 0.5)
    monkeypatch.setattr("umbel.simulation.federation.cores", lambda: 8)
    row = found(environment._cores)[0]
    assert "this container may use 0.5" in row.note
    assert "--workers 1" in row.advice


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="needs /proc")
def test_little_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(environment._memory, tmp_path)[0].note.endswith("GB free")
    (tmp_path / "memory.max").write_text(f"{3 * 10**9}\n")
    (tmp_path / "memory.current").write_text(f"{10**9}\n")
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    (row,) = found(environment._memory, tmp_path)
    assert "may have 3.0 GB" in row.note
    assert "--workers 2" in row.advice or "--workers 1" in row.advice


def test_a_gpu_that_nothing_can_use_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert found(environment._gpus)[0].state == GOOD
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert "driver" in found(environment._gpus)[0].advice
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (70 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H100")
    assert [row.note for row in found(environment._gpus)][1] == "cuda:1, H100, 70 of 80 GB free"
    monkeypatch.setattr(environment, "_version", lambda name: None)
    assert "not installed" in found(environment._gpus)[0].note


def test_workers_that_cannot_work_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object, **settings: object) -> None:
        raise RunFailed("no worker started")

    monkeypatch.setattr("umbel.runs.run.run", fails)
    (row,) = found(environment._workers)
    assert row.state == CRITICAL
    assert "no worker started" in row.note
    assert "--workers 0" in row.advice


def test_small_shared_memory_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(64 * 10**6, 0, 64 * 10**6))
    assert "--shm-size" in found(environment._shared_memory, tmp_path)[0].advice
    assert found(environment._shared_memory, tmp_path / "none")[0].state == GOOD


def test_a_disk_without_room_or_rights_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment, "MB", 1000)  # so that little is written
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(1, 1, 0))
    (row,) = environment._disk(tmp_path / "runs" / "of mine")
    assert (row.state, "--folder" in str(row.advice)) == (BETTER, True)

    def refused(**settings: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(environment.tempfile, "NamedTemporaryFile", refused)
    (row,) = environment._disk(tmp_path)
    assert row.state == CRITICAL
    assert "Permission denied" in str(row.note)


@pytest.mark.parametrize(
    ("limits", "advice"), [((256, 4096), "4096"), ((256, -1), "1024"), ((-1, -1), ""), ((1024, 1024), "")]
)
def test_few_open_files_are_said(limits: tuple[int, int], advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    (row,) = found(environment._open_files)
    assert (f"ulimit -n {advice};" in row.advice) if advice else not row.advice
