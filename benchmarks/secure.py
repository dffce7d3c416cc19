"""What secure sums cost beyond plain ones: whole rounds in the simulation, masks beside the cipher, and shares."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from .figures import Row, turns
from .launch import call
from .meter import say

WORKERS = 2


@dataclass(frozen=True)
class Size:
    """So many clients, of whom a share drops out while it trains, and a model of so many parameters."""

    name: str
    clients: int
    parameters: int
    dropped: float
    bar: float

    @property
    def title(self) -> str:
        """For people."""
        return (
            f"{self.clients:,} clients, {self.parameters:,} parameters, {self.dropped:.0%} dropped, {WORKERS} workers"
        )


SIZES = (Size("secure-100", 100, 1_000_000, 0.05, 4.0), Size("secure-1000", 1_000, 100_000, 0.10, 20.0))
SMOKE = (Size("secure-100", 10, 1_000, 0.1, 4.0),)
CORRUPT = 0.1
MASKS = 16
"""So many masks a client adds at once."""


def rows(smoke: bool, times: int) -> Iterator[Row]:
    """Rounds, masks, shares."""
    for size in SMOKE if smoke else SIZES:
        sides: dict[str, Any] = {
            kind: partial(call, rounds, kind == "secure", size.clients, size.parameters, size.dropped)
            for kind in ("plain", "secure")
        }
        found = turns(sides, times)
        ours, without = ([None if each is None else each.said for each in found[kind]] for kind in ("secure", "plain"))
        yield Row(
            size.name, f"{size.title}, a round", "s", size.bar, ours, without, limit_is="(the same round without)",
            judged="beyond",
        )  # fmt: skip
    sides = {"ours": partial(call, masks, True), "cipher": partial(call, masks, False)}
    found = turns(sides, times)
    ours, cipher = ([None if each is None else each.said * 1e9 for each in found[side]] for side in sides)
    yield Row(
        "masks", "masks, an element of a million of 32 bits", "ns", 1.3, ours, cipher,
        limit_is="(the cipher alone)", judged="over",
    )  # fmt: skip
    found = turns({"ours": partial(call, shares)}, times)
    yield Row(
        "shares", "the shares of one client's two secrets for 200 others, split", "ms", 50.0,
        [None if each is None else each.said * 1e3 for each in found["ours"]],
    )  # fmt: skip


def rounds(secure: bool, clients: int, parameters: int, dropped: float) -> None:
    """Print the seconds of a round, the first apart, of clients that do next to nothing."""
    import numpy as np

    import umbel
    from umbel.privacy import secure as secured

    client = umbel.Client()
    gone = round(1 / dropped)

    @client.train
    def train(model: Any, data: Any, ctx: Any) -> umbel.Update:
        if ctx.client % gone == 0:
            raise RuntimeError("dropped out")
        return umbel.Update({"w": model["w"] + np.float32(0.001)})

    plain = umbel.FedAvg(cohort="all", fold=umbel.mean())
    strategy = secured(plain, corrupt=CORRUPT, dropped=dropped) if secure else plain
    model = {"w": np.zeros(parameters, np.float32)}
    app = umbel.App(client, model=model, strategy=strategy, rounds=3, evaluate_every=0)
    done = umbel.run(app, on=umbel.Simulation(clients, workers=WORKERS), folder=None)
    say(min(each.seconds for each in list(done.history)[1:]))


def masks(ours: bool) -> None:
    """Print the seconds an element that a mask takes to be added, or the cipher to make it."""
    import numpy as np
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    from umbel.privacy.masks import add_masks

    vector, nought = np.zeros(1_000_000, "<u4"), bytes(4_000_000)
    room = bytearray(len(nought))

    def cipher() -> None:
        Cipher(algorithms.AES256(bytes(32)), modes.CTR(bytes(16))).encryptor().update_into(nought, room)

    say(
        _least(partial(add_masks, [vector], plus=[bytes(32)] * MASKS) if ours else cipher)
        / len(vector)
        / (MASKS if ours else 1)
    )


def shares() -> None:
    """Print the seconds that a client takes to split its key and its seed."""
    from umbel.entropy import SYSTEM
    from umbel.privacy import shamir

    say(_least(lambda: shamir.split([bytes(32), bytes(32)], 130, range(1, 201), SYSTEM)))


def _least(work: Callable[[], object], times: int = 20) -> float:
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)
