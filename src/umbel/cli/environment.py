"""`umbel doctor`: what Umbel finds on this machine, by trying, and what to do where something is missing."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from ..errors import SettingError, UmbelError
from .findings import Finding, print_findings
from .terminal import duration, plural

if TYPE_CHECKING:
    from packaging.requirements import Requirement

MB, GB = 10**6, 10**9
LEAST_FREE = GB
SLOW_DISK = 20 * MB
LEAST_FILES = 1024
LEAST_MEMORY = GB
PYTHONS = ((3, 11), (3, 14))


def environment(folder: Path, *, json: bool) -> bool:
    """Print what this machine has for runs that are kept in `folder`; whether nothing is wrong. Raises `SettingError`
    where that is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise SettingError(f"{folder} is no folder", hint="--folder names where runs are kept.")
    return print_findings([finding for check in CHECKS for finding in _examined(check, folder)], json=json)


def _examined(check: Callable[[Path], Iterator[Finding]], folder: Path) -> Iterator[Finding]:
    """What a check finds; one that cannot be done on this machine keeps nobody from the others."""
    try:
        yield from check(folder)
    except Exception as error:
        name = getattr(check, "__name__", "check").strip("_").replace("_", " ")
        yield _found(name, f"it cannot be told: {type(error).__name__}: {error}", "Look whether it is as it should be.")


def _found(check: str, note: str, advice: str = "", *, wrong: bool = False) -> Finding:
    """A finding, which is good where there is nothing to do."""
    return Finding(check, not (advice or wrong), note, wrong, advice)


def _python(folder: Path) -> Iterator[Finding]:
    here, (first, beyond) = sys.version_info[:2], PYTHONS
    fits = first <= here < beyond
    advice = "" if fits else "Make an environment with Python 3.11, 3.12 or 3.13, and install Umbel there."
    yield _found("python", f"{sys.version.split()[0]}, {sys.executable}", advice, wrong=not fits)


def _packages(folder: Path) -> Iterator[Finding]:
    """Umbel and what it needs; then the extras: which are there, and how to get the others."""
    from packaging.requirements import Requirement

    from .. import __version__

    needed: dict[str, list[Requirement]] = {}
    for text in metadata.requires("umbel") or ():
        extra = re.search(r"""extra == ['"]([\w-]+)['"]""", text)
        needed.setdefault(extra[1] if extra else "", []).append(Requirement(text))
    lacking = {extra: _lacking(extra, packages) for extra, packages in needed.items()}
    missing = lacking.pop("", [])
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "torch") if _version(name))
    advice = "Install it again: pip install --force-reinstall umbel" if missing else ""
    note = f"{__version__} with {versions}" + (f"; lacking {', '.join(missing)}" if missing else "")
    yield _found("umbel", note, advice, wrong=bool(missing))
    if here := [extra for extra, names in lacking.items() if not names]:
        yield _found("extras", ", ".join(here))
    if absent := [f'pip install "umbel[{extra}]" has {", ".join(names)}' for extra, names in lacking.items() if names]:
        yield _found("extras not here", "; ".join(absent))


def _lacking(extra: str, packages: list[Requirement]) -> list[str]:
    """Which packages of an extra are not installed, or too old."""
    found = []
    for package in packages:
        marker, here = package.marker, _version(package.name)
        if marker is not None and not marker.evaluate({"extra": extra}):
            continue  # for another system
        if here is None or not package.specifier.contains(here, prereleases=True):
            found.append(str(package).partition(";")[0].strip())
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cores(folder: Path) -> Iterator[Finding]:
    from threadpoolctl import threadpool_info

    from ..simulation.federation import cores

    there = cores()
    allowed = _allowed()
    fewer = max(1, int(allowed)) if allowed is not None and allowed < there else None
    note = plural(there, "core") + (f", of which this container may use {allowed:g}" if fewer else "")
    yield _found("cores", note, f"Simulate with --workers {fewer}: the default is one a core." if fewer else "")
    pools = ", ".join(f"{pool['internal_api']} {pool['num_threads']}" for pool in threadpool_info())
    set_ = ", ".join(f"{name}={value}" for name, value in sorted(os.environ.items()) if name.endswith("_NUM_THREADS"))
    yield _found("threads", f"of numeric libraries: {pools or 'none loaded'}; {set_ or 'no variable sets them'}")


def _allowed(group: Path = Path("/sys/fs/cgroup")) -> float | None:
    """How many cores the processes of this container may keep busy; None where nothing bounds them."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _memory(folder: Path, group: Path = Path("/sys/fs/cgroup")) -> Iterator[Finding]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
        yield _found("memory", f"{total / GB:.1f} GB" if total else "not known on this system")
        return
    found = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    free, note = found["MemAvailable"], f"{found['MemAvailable'] / GB:.1f} of {found['MemTotal'] / GB:.1f} GB free"
    try:
        bound = int((group / "memory.max").read_text())
        free = min(free, bound - int((group / "memory.current").read_text()))
        note += f", of which this container may have {bound / GB:.1f} GB"
    except (OSError, ValueError):
        pass  # nothing bounds it
    fitting = max(1, free // LEAST_MEMORY)
    few = f"Less than 1 GB for each core: simulate with --workers {fitting}, or smaller batches."
    yield _found("memory", note, few if fitting < (os.cpu_count() or 1) else "")


def _gpus(folder: Path) -> Iterator[Finding]:
    if _version("torch") is None:
        yield _found("gpus", "PyTorch is not installed, so none was looked for")
        return
    try:
        import torch
    except (ImportError, OSError) as error:  # libraries of CUDA that are not there, most often
        advice = "Install it again, as pytorch.org says for this machine."
        yield _found("gpus", f"PyTorch is installed and cannot be imported: {error}", advice, wrong=True)
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            yield _found(
                "gpus", f"cuda:{index}, {torch.cuda.get_device_name(index)}, {free // GB} of {total // GB} GB free"
            )
    elif torch.backends.mps.is_available():
        yield _found("gpus", "mps, this machine's own memory")
    elif shutil.which("nvidia-smi"):
        advice = "Install PyTorch for CUDA, as pytorch.org says, or a newer driver."
        yield _found("gpus", f"PyTorch {torch.__version__} cannot use the GPU whose driver is installed", advice)
    else:
        yield _found("gpus", "none; ctx.device is 'cpu'")


def _workers(folder: Path) -> Iterator[Finding]:
    """A round of four clients in two workers: the forkserver, the channel and the memory that they share, as it is."""
    from ..core.app import App
    from ..core.client import Client
    from ..runs.run import run
    from ..simulation.federation import Simulation
    from ..simulation.processes import default_start
    from ..strategies import FedAvg

    client = Client()
    client.train(_told)
    app = App(client, model=_zeros(), strategy=FedAvg(cohort="all"), rounds=1)
    began = perf_counter()
    try:
        run(app, on=Simulation(4, workers=2), folder=None)
    except (UmbelError, OSError) as error:
        advice = "Until that is mended, simulate with --workers 0, which needs no other process."
        yield _found("workers", f"two could not do a round: {error}", advice, wrong=True)
        return
    yield _found(
        "workers", f"two did a round of four clients in {duration(perf_counter() - began)}, by {default_start()}"
    )


def _zeros() -> dict[str, object]:
    import numpy as np

    return {"w": np.zeros(100_000)}  # too large for a frame, so that it goes through shared memory


def _told(model: object, data: object, ctx: object) -> object:
    from ..core.update import Update

    return Update(model)  # type: ignore[arg-type]


def _shared_memory(folder: Path, place: Path = Path("/dev/shm")) -> Iterator[Finding]:
    if not place.is_dir():
        yield _found("shared memory", "there is no /dev/shm; Umbel needs none")
        return
    free = shutil.disk_usage(place).free
    advice = "DataLoaders with num_workers need more (Umbel does not): docker run --shm-size 1g"
    yield _found("shared memory", f"{free / GB:.2f} GB in {place}", advice if free < 256 * MB else "")


def _disk(folder: Path) -> Iterator[Finding]:
    """Whether runs can be written, locked and synced where they will be kept, and how fast."""
    from ..files import locked

    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    elsewhere = "Keep runs on a local disk with room: --folder DIR."
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".umbel-doctor-") as file:
            locked(file.fileno())
            block, began = os.urandom(16 * MB), perf_counter()
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
            speed = len(block) / (perf_counter() - began)
            syncs = []
            for _ in range(5):
                began = perf_counter()
                os.pwrite(file.fileno(), b"umbel", 0)
                os.fsync(file.fileno())
                syncs.append(perf_counter() - began)
    except (OSError, UmbelError) as error:
        yield _found("disk", f"runs cannot be kept in {place}: {error}", elsewhere, wrong=True)
        return
    free, sync = shutil.disk_usage(place).free, statistics.median(syncs)
    note = f"{place}: {free / GB:.1f} GB free, writes {speed / MB:.0f} MB/s, syncs in {1000 * sync:.1f} ms"
    poor = free < LEAST_FREE or speed < SLOW_DISK or sync > 0.1
    yield _found("disk", note, elsewhere if poor else "")


def _open_files(folder: Path) -> Iterator[Finding]:
    try:
        import resource
    except ImportError:
        yield _found("open files", "not bounded on this system")
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    endless = soft == resource.RLIM_INFINITY
    advice = f"ulimit -n {LEAST_FILES if hard < 0 else min(hard, 65536)}; a server with many nodes needs 65536"
    few = not endless and soft < LEAST_FILES
    yield _found("open files", f"up to {'any number' if endless else soft} at once", advice if few else "")


CHECKS: tuple[Callable[[Path], Iterator[Finding]], ...] = (
    _python, _packages, _cores, _memory, _gpus, _workers, _shared_memory, _disk, _open_files,
)  # fmt: skip
