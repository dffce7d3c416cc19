"""The federation that a command line asks for, and an early start of its worker processes."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SettingError
from ..simulation import Simulation
from ..simulation.federation import PRESETS
from ..simulation.fleets import Fleet
from ..simulation.processes import PRELOADED, default_start, prepare
from .application import LoadedApp


@dataclass(frozen=True)
class Wanted:
    """What was asked for of a federation; None for what the app says."""

    clients: int | None = None
    workers: int | None = None
    devices: str | None = None
    work: float | None = None

    def source(self) -> dict[str, Any]:
        """What the log keeps, so that a run can be resumed."""
        devices = self.devices if self.devices in (None, *PRESETS) else str(Path(str(self.devices)).resolve())
        return {"clients": self.clients, "devices": devices, "work": self.work}

    @classmethod
    def again(cls, source: Mapping[str, Any], workers: int | None) -> Wanted:
        """What a run was started with."""
        return cls(source.get("clients"), workers, source.get("devices"), source.get("work"))

    def federation(self, loaded: LoadedApp) -> Any:
        """The federation. Raises `SettingError` where nobody says how many clients there are."""
        found = loaded.app.federation
        if self.clients is not None:
            own = found if isinstance(found, Simulation) else Simulation(self.clients)
            found = own.with_clients(self.clients)
        if found is None:
            raise SettingError(
                f"neither the command line nor {loaded.path.name} says how many clients there are",
                hint="Add --clients 100, or give the app a federation=umbel.Simulation(...).",
            )
        if self.work is not None and self.devices is None:
            raise SettingError("--work goes with --devices", hint="Say which devices: --devices phones.")
        if self.devices is not None:
            found = found.with_devices(self._fleet(self.devices))
        return found if self.workers is None else found.with_workers(self.workers)

    def _fleet(self, name: str) -> Fleet:
        work = 1.0 if self.work is None else self.work
        if name in PRESETS:
            return Fleet.preset(name, work=work)  # type: ignore[arg-type]
        if not Path(name).is_file():
            raise SettingError(
                f"there are no devices {name!r}", hint=f"Name one of {', '.join(PRESETS)}, or a CSV file of devices."
            )
        return Fleet.trace(name, work=work)


def start_early(path: Path) -> None:
    """Begin to load what the app's workers will need, as far as its file shows, while it is being imported here."""
    found = _imports(path, depth=2)
    optimizers = ["torch._dynamo"] if {"torch", "optim"} <= found else []
    prepare(default_start(), [*(name for name in PRELOADED if name in found), *optimizers])


def _imports(path: Path, depth: int) -> set[str]:
    """The packages that a file imports, or a file beside it that it imports; `optim` where it speaks of that."""
    try:
        text = path.read_bytes()
        tree = ast.parse(text)
    except (OSError, SyntaxError, ValueError):
        return set()
    names = {"optim"} if b"optim" in text else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
    if "umbel.torch" in names:
        names.add("torch")
    tops = {name.partition(".")[0] for name in names}
    if depth:
        for top in list(tops):
            tops |= _imports(path.with_name(f"{top}.py"), depth - 1)
    return tops
