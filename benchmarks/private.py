"""What privacy costs: noise on the sum, over the same run without; and hiding single examples on a client."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from operator import attrgetter
from typing import Any

from .figures import Row, turns
from .launch import Side, call, launch
from .meter import say
from .simulated import each
from .workloads import WORKLOADS, examples, quick

SIDES = {
    name: Side(name, title, "umbel_side", {"BENCH_WORKERS": "2", "BENCH_POISSON": name})
    for name, title in (("plain", "the same run without"), ("central", "central_gaussian"))
}
"""The same cohorts, each client by its own throw of the dice."""
BAR = 1.05


def rows(smoke: bool, times: int) -> Iterator[Row]:
    """Noise at the server, and at the client."""
    workload = quick(WORKLOADS["cnn"]) if smoke else WORKLOADS["cnn"]
    sides: dict[str, Any] = {name: partial(launch, side, workload, quick=smoke) for name, side in SIDES.items()}
    found = turns(sides, times)
    for name, what, of, scale, unit in (
        ("central", "a round", attrgetter("wall"), workload.cohort, "s"),
        ("central-cpu", "CPU a client", attrgetter("spent"), 1e3, "ms"),
    ):
        ours, without = (each(found[side], of, scale) for side in ("central", "plain"))
        yield Row(
            name, f"{workload.title}, Poisson, 2 workers, central_gaussian: {what}", unit, BAR, ours, without,
            limit_is="(the same run without)", judged="over",
        )  # fmt: skip
    steps = 10 if smoke else 100
    alone = turns({str(hides): partial(call, stepped, hides, steps) for hides in (True, False)}, times)
    hidden, plain = (each(alone[str(hides)], lambda done: done.said, 1e3) for hides in (True, False))
    yield Row(
        "example", "the same CNN, batches of 20, each example hidden by opacus: CPU a step", "ms", None, hidden, plain,
        limit_is="(a plain step)", judged="over",
    )  # fmt: skip


def stepped(hides: bool, steps: int) -> None:
    """Print the CPU-seconds of a step of `umbel.torch.fit`."""
    import umbel.torch
    from umbel.core.client import Context
    from umbel.core.randomness import Key
    from umbel.privacy import ExamplePrivacy

    from .peers import nets

    workload = WORKLOADS["cnn"]
    net, data = nets.net(workload), examples(workload, 0)
    privacy = ExamplePrivacy(norm=1.0, noise=1.0, examples=workload.samples) if hides else None

    def fit(epochs: int) -> float:
        config: dict[str, Any] = {"lr": 0.01, "batch": workload.batch, "epochs": epochs}
        ctx = Context(
            client=0, round=1, kind="train", config=config, key=Key.from_seed(1), inbox=umbel.Arrays(), state={}
        )
        began = time.process_time()
        done = umbel.torch.fit(net, data, ctx, privacy=privacy).metrics["steps"]
        return (time.process_time() - began) / done

    fit(1)  # in which opacus is loaded
    say(fit(steps * workload.batch // workload.samples))
