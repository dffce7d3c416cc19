"""Who sees what of a round, phase by phase, and what becomes of it when clients vanish."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..core.arrays import Arrays
from ..core.ask import Ask
from ..core.contract import first_asks
from ..core.strategy import Strategy
from ..core.update import Like
from .clipped import Clipped
from .neighbours import neighbourhood
from .secure import Secured

SHARE_BYTES = 88


@dataclass(frozen=True)
class PhaseView:
    """What a client sends in a phase, and what of that the server, with the run, and the other clients see."""

    phase: str
    sends: str
    server: str
    others: str


@dataclass(frozen=True)
class Explanation:
    """The phases of a round of so many `clients`, what is seen in each, and what follows if some vanish or conspire.
    `neighbours` is how many of the others each shares secrets with, 0 where updates are not summed securely.
    """

    clients: int
    neighbours: int
    threshold: int
    phases: tuple[PhaseView, ...]
    follows: tuple[tuple[str, str], ...]

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def explain(strategy: Strategy, model: Arrays, clients: int) -> Explanation:
    """What there is to say of a strategy's first round that asks so many clients. Raises `StrategyError`, and
    `SettingError` where so few cannot be summed securely.
    """
    asks = [ask for ask in first_asks(strategy.wrapped, model) if ask.kind != "evaluate"]
    if isinstance(strategy, Secured):
        return _secured(strategy, asks, model, clients)
    return Explanation(clients, 0, 0, tuple(_plain(ask, model) for ask in asks), _follows(asks))


def _plain(ask: Ask, model: Arrays) -> PhaseView:
    parts, seen = ask.transform.parts, "each client's update, as it was trained"
    if parts:
        seen = f"each client's update, after {', '.join(part.name for part in parts)}"
    if ask.transform.private:
        seen += ", before there is noise" if any(isinstance(part, Clipped) for part in parts) else ", noise and all"
    return PhaseView(ask.kind, f"its update, {_size(ask, model)}", seen, "nothing")


def _follows(asks: Sequence[Ask]) -> tuple[tuple[str, str], ...]:
    rows = [("clients vanish", "the answer is made of those who stayed")]
    if any(ask.transform.private for ask in asks):
        rows.append(("the model is looked at", "hardly tells whether a client took part: umbel privacy plan"))
    else:
        rows.append(("the model is looked at", "may tell of single clients: there is no noise"))
    return tuple(rows)


def _secured(strategy: Secured, asks: Sequence[Ask], model: Arrays, clients: int) -> Explanation:
    degree, threshold = neighbourhood(clients, strategy.corrupt, strategy.dropped)
    size = f"{sum(_sealed_bytes(strategy, ask, model, clients) for ask in asks):,} bytes"
    gone, shares = int(strategy.dropped * clients), " with a share of noise" if strategy.noise else ""
    phases = (
        PhaseView("phase:keys", "two public keys, 64 bytes", "who takes part", "the keys of their neighbours"),
        PhaseView(
            "phase:shares",
            f"shares of two secrets, {degree} x {SHARE_BYTES} bytes",
            "bytes that are encrypted for others",
            "a share each, of their neighbours' secrets",
        ),
        PhaseView(
            asks[0].kind if asks else "train",
            f"its update{shares} under masks, {size}",
            "numbers like noise",
            "nothing",
        ),
        PhaseView(
            "phase:unmask",
            f"up to {degree} x 36 bytes: the shares that it got",
            "the sum over those who stayed, with its noise" if strategy.noise else "the sum over those who stayed",
            "nothing",
        ),
    )
    hardly = "hardly tells what a client sent: umbel privacy show"
    follows = (
        (f"up to {gone} of {clients} vanish", "the sum is over those whose masked updates came"),
        ("more vanish", f"after {strategy.attempts} sessions, each with fresh keys, nothing comes of it"),
        (f"fewer than {threshold} neighbours of a client conspire", "with the server they learn the sum, and no more"),
        (f"{threshold} or more do", "with the server they can have that client's update"),
        ("the server lies", "it can have one client's update: against that there is nothing yet"),
        ("the model is looked at", hardly if strategy.noise else "may tell of single clients: there is no noise"),
    )
    return Explanation(clients, degree, threshold, phases, follows)


def _size(ask: Ask, model: Arrays) -> str:
    if not isinstance(ask.expects, Like):
        return "of any size"
    sent = ask.model if isinstance(ask.model, Arrays) else model
    return f"{ask.transform.encoded(ask.expects.schema(sent)).nbytes:,} bytes"


def _sealed_bytes(strategy: Secured, ask: Ask, model: Arrays, clients: int) -> int:
    """Of a masked update: its head and its body."""
    sent = ask.model if isinstance(ask.model, Arrays) else model
    expects = ask.expects if isinstance(ask.expects, Like) else Like()
    looks = ask.transform.encoded(expects.schema(sent)).values()
    elements = sum(math.prod(spec.shape) for spec in looks if spec.role == "parameter")
    step = strategy.step(ask, "-", 2, clients)
    return 8 * (2 + len(step.metrics)) + step.dtype.itemsize * elements
