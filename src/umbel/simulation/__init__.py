"""Federations of clients that exist only on this machine: worker processes, device models, virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .federation import Simulation

if TYPE_CHECKING:
    from .devices import Device, Kind, Spread
    from .fleets import Fleet

__all__ = ["Device", "Fleet", "Kind", "Simulation", "Spread"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import devices, fleets  # when they are needed: most simulations have no device model

    return fleets.Fleet if name == "Fleet" else getattr(devices, name)
