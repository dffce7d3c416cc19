"""A run whose disk is full at any of its writes: it waits, and comes to the same bits; or ends, and is resumed."""

from __future__ import annotations

import errno
import os
import subprocess

import numpy as np
import pytest

import umbel
from umbel import files
from umbel.errors import StorageError
from umbel.store import patience

client = umbel.Client()


@client.data
def data(source):
    return float(source["index"])


@client.train
def train(model, data, ctx):
    ctx.state["rounds"] = ctx.state.get("rounds", 0) + 1
    return umbel.Update({"w": model["w"] + data}, weight=1)


app = umbel.App(client, model={"w": np.zeros(2, np.float32)}, strategy=umbel.FedAvg(cohort=2), rounds=2)


class Disk:
    """Counts what reaches the disk, and is full at the writes whose numbers are named."""

    def __init__(self, monkeypatch, folder):
        self.count, self.full, self.slept = 0, set(), 0
        self._folder = str(folder)
        for name in ("write", "fsync"):
            monkeypatch.setattr(os, name, self._faulty(getattr(os, name)))
        monkeypatch.setattr(files, "write_pieces", self._faulty_pieces(files.write_pieces))
        monkeypatch.setattr(patience.time, "sleep", self._sleep)

    def _sleep(self, seconds):
        self.slept += 1

    def _strike(self):
        self.count += 1
        if self.count - 1 in self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _faulty(self, real):
        def work(file, *more):
            if os.readlink(f"/proc/self/fd/{file}").startswith(self._folder):
                self._strike()
            return real(file, *more)

        return work

    def _faulty_pieces(self, real):
        def work(path, pieces, **more):
            with files.writing(path):
                self._strike()
            return real(path, pieces, **more)

        return work


@pytest.fixture(params=[files.LARGE, 1], ids=["small", "large"])
def disk(monkeypatch, tmp_path, request):
    monkeypatch.setattr(files, "LARGE", request.param)  # what is large has files of its own
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("this system does not say where open files are")
    return Disk(monkeypatch, tmp_path)


def trained(folder, **more):
    return umbel.run(app, on=umbel.Simulation(clients=2, workers=0, **more), folder=folder, seed=1, id="r")


def test_a_run_that_waits_comes_to_the_same_bits_whichever_write_finds_the_disk_full(disk, tmp_path, caplog):
    expected = trained(tmp_path / "well").model_sha256
    writes = disk.count
    assert writes > 10
    for number in range(writes):
        disk.count, disk.full, disk.slept = 0, {number, number + 1}, 0
        caplog.clear()
        assert trained(tmp_path / str(number), disk_wait=None).model_sha256 == expected
        assert disk.slept >= 1, number
        assert sum("No space left" in text for text in caplog.messages) in (1, 2), "once where each write waits"
        assert "there is room" in caplog.text


def test_a_run_that_does_not_wait_ends_and_is_resumed(disk, tmp_path):
    expected = trained(tmp_path / "well").model_sha256
    writes = disk.count
    resumed = 0
    for number in range(writes // 2, writes, 3):
        disk.count, disk.full = 0, {number}
        folder = tmp_path / str(number)
        try:
            found = trained(folder)
        except StorageError as error:
            ended = error
            disk.full = set()
            found = umbel.resume(app, folder / "r", on=umbel.Simulation(clients=2, workers=0))
            assert "No space left" in ended.message
            assert disk.slept == 0
            resumed += 1
        assert found.model_sha256 == expected
    assert resumed > 2


@pytest.mark.slow
def test_a_real_file_system_that_is_full(tmp_path, monkeypatch):
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        expected = trained(tmp_path / "well").model_sha256
        ballast = place / "ballast"
        slept = []

        def sleep(seconds):
            slept.append(seconds)
            if len(slept) == 3:
                ballast.unlink()

        monkeypatch.setattr(patience.time, "sleep", sleep)

        def observe(event):
            if type(event).__name__ == "RoundStarted" and not ballast.exists() and not slept:
                with open(ballast, "wb", buffering=0) as file:
                    try:
                        while True:
                            file.write(bytes(4096))
                    except OSError:
                        pass

        simulation = umbel.Simulation(clients=2, workers=0, disk_wait=None)
        found = umbel.run(app, on=simulation, folder=place, seed=1, id="r", observers=[observe])
        assert len(slept) >= 3
        assert found.model_sha256 == expected
    finally:
        subprocess.run(["umount", place], check=True)
