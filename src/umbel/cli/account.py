"""Where a run's time went, in words, for `umbel show`."""

from __future__ import annotations

from collections.abc import Iterable

from ..runs.events import RoundCommitted
from ..runs.past import PastRun
from .terminal import duration

PARTS = ("training", "data", "folding")


def account(record: PastRun) -> dict[str, str]:
    """What a run's account says: lines by title; none for a run that has no round."""
    rounds = record.log.rounds
    if not rounds:
        return {}
    workers = max(1, int(record.log.started.federation.get("workers", 0)))
    lines = {"time": _shares(rounds, workers, record.seconds)}
    hits, loads = _sum(rounds, "data_hits"), _sum(rounds, "data_loads")
    if hits + loads:
        kept = hits / (hits + loads)
        lines["data"] = f"needed {hits + loads:,.0f} times, and in memory already for {kept:.0%} of them"
    if plain := _sum(rounds, "plain_bytes"):
        sent = _sum(rounds, "update_bytes")
        lines["updates"] = f"{size(sent)} as transforms encode them, {sent / plain:.1%} of {size(plain)}"
    if rounds[-1].clock is not None:
        lines["devices"] = ", ".join(_devices(rounds))
    return lines


def _shares(rounds: Iterable[RoundCommitted], workers: int, seconds: float) -> str:
    rounds = list(rounds)
    counts = [int(event.account.get("processes", workers)) for event in rounds]  # a run may be resumed on others
    spent = {part: _sum(rounds, part) for part in PARTS}
    whole = max(sum(n * event.seconds for n, event in zip(counts, rounds, strict=True)), sum(spent.values()))
    spent["waiting and the rest"] = whole - sum(spent.values())
    few, many = min(counts), max(counts)
    where = processes(many) if few == many else f"{few} to {processes(many)}"
    shares = ", ".join(f"{part} {value / whole:.0%}" for part, value in spent.items()) if whole else "none"
    return f"{duration(seconds)} of {where}: {shares}"


def _devices(rounds: list[RoundCommitted] | tuple[RoundCommitted, ...]) -> Iterable[str]:
    yield f"{duration(rounds[-1].clock or 0.0)} of virtual time"
    yield f"{duration(_sum(rounds, 'device_seconds'))} of computing"
    yield f"{size(_sum(rounds, 'bytes_down'))} down and {size(_sum(rounds, 'bytes_up'))} up"
    yield f"{_sum(rounds, 'joules') / 1000:,.1f} kJ"


def processes(count: int) -> str:
    """So many processes, in words."""
    return "1 process" if count == 1 else f"{count} processes"


def size(count: float) -> str:
    """So many bytes, for people."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        del units[0]
    unit = units[0]
    return f"{count:,.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:,.1f} {unit}"


def _sum(rounds: Iterable[RoundCommitted], name: str) -> float:
    return sum(event.account.get(name, 0) for event in rounds)
