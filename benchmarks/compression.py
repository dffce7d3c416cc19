"""Bytes that clients send, and what that costs in accuracy, on Fashion-MNIST: `python -m benchmarks.compression`.

FedAvg with updates as float32 beside the same with each of the transforms that compress: the same clients, batches,
rounds and learning rate. Bytes are those that the run's log has measured, over what the same updates take as float32.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

import umbel
import umbel.torch
from umbel.core.randomness import Key
from umbel.transforms import (
    chain,
    count_sketch,
    drive,
    eden,
    error_feedback,
    power_sgd,
    quantise,
    random_k,
    top_k,
)

from .figures import VOID, Row, machine, markdown, plain
from .heterogeneity import client, fashion_folder, images, network, sources

PAGE = Path(__file__).resolve().parent / "compression.md"
APART = 0.5
"""So many points of accuracy a compressed run may be below the plain one, at most, to count as equal."""
TESTED, LAST = 10, 5
"""Every so many rounds the model is tested; the accuracy of a run is the mean of so many last tests."""
PLAIN = "float32"
COSTS = 9
"""So often a way's time is measured."""
WAYS: dict[str, tuple[Any, float | None]] = {
    PLAIN: ((), None),
    "8 bits": (quantise(8), 0.27),
    "4 bits": (quantise(4), 0.15),
    "top-k 1 %": (top_k(0.01), 0.03),
    "4-bit floats": (quantise(4, kind="e3m0"), None),
    "top-k 1 %, 8 bits": ((error_feedback(), top_k(0.01, error_feedback=False), quantise(8)), None),
    "top-k 10 %, 4 bits": ((error_feedback(), top_k(0.1, error_feedback=False), quantise(4)), None),
    "random 10 %": (random_k(0.1), None),
    "EDEN, 2 bits": (eden(2), None),
    "DRIVE, 1 bit": (drive(), None),
    "signs with feedback": ((error_feedback(), quantise(1, stochastic=False)), None),
    "PowerSGD, rank 4": (power_sgd(4), None),
    "count sketch, 50 %": (count_sketch(0.5, fraction=0.001), None),
}
"""What is measured, and the bar of its bytes, if it has one."""


@dataclass(frozen=True)
class Size:
    """How much is run."""

    clients: int = 10
    each: int = 1000
    rounds: int = 600
    batches: int = 5
    lr: float = 0.1
    seeds: tuple[int, ...] = (1, 2, 3)


FULL = Size()
QUICK = Size(clients=3, each=100, rounds=3, batches=2, seeds=(1,))


def once(folder: str, size: Size, steps: Any, seed: int, workers: Any) -> tuple[float, float]:
    """The accuracy in percent of one run, and its bytes over those of float32."""
    strategy = umbel.FedAvg(cohort=1.0, transforms=steps)
    settings = {"lr": size.lr, "batches": size.batches}
    app = umbel.App(
        client,
        model=lambda: umbel.torch.arrays(network()),
        strategy=strategy,
        rounds=size.rounds,
        config=settings,
        evaluate_every=TESTED,
    )
    pixels, labels = map(torch.from_numpy, images(folder, "t10k"))

    @app.test
    @torch.inference_mode()
    def test(model: umbel.Arrays) -> dict[str, float]:
        right = umbel.torch.load_(network(), model)(pixels).argmax(1) == labels
        return {"accuracy": 100 * right.float().mean().item()}

    found: list[Any] = []
    given = sources(folder, size.clients, parts=size.clients, each=size.each)
    on = umbel.Simulation(given, workers=workers)
    umbel.run(app, on=on, seed=seed, folder=None, observers=[found.append])
    rounds = [event for event in found if event.name == "round_committed"]
    sent, whole = (sum(event.account[name] for event in rounds) for name in ("update_bytes", "plain_bytes"))
    tests = [event.test["accuracy"] for event in rounds if event.test]
    return fmean(tests[-LAST:]), sent / whole if whole else 1.0


def cost(steps: Any, times: int) -> tuple[list[float], list[float]]:
    """Nanoseconds an element to encode, and to decode, a matrix of a million."""
    whole, encode, decode = chain(steps), [], []
    values = np.random.default_rng(0).normal(size=(1000, 1000)).astype(np.float32)
    item = umbel.Update(umbel.Arrays({"w": values}), delta=True)
    schema, key = item.arrays.schema, Key.from_seed(1)
    params = whole.send(whole.init(schema))
    for _ in range(times):
        began = time.perf_counter()
        sent, _ = whole.encode(item, params, None, key)
        between = time.perf_counter()
        whole.decode(sent, params, schema)
        encode.append((between - began) * 1e9 / values.size)
        decode.append((time.perf_counter() - between) * 1e9 / values.size)
    return encode, decode


def measure(folder: str, size: Size, names: Sequence[str], workers: Any) -> list[Row]:
    """Rows for each way: its bytes, how far its accuracy is below that of float32, a turn for each seed, of which those
    without a bar have one; and its time.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for name in names:
        began = time.perf_counter()
        seeds = size.seeds if name == PLAIN or WAYS[name][1] is not None else size.seeds[:1]
        try:
            found[name] = [once(folder, size, WAYS[name][0], seed, workers) for seed in seeds]
        except umbel.errors.RunFailed as error:  # the others are to be told of all the same
            print(f"  {name} has failed, and is left out: {error.message}", file=sys.stderr)
            continue
        print(f"  {name}: {time.perf_counter() - began:.1f} s", file=sys.stderr)
    whole = [accuracy for accuracy, _ in found[PLAIN]]
    rows = [Row(PLAIN, f"{PLAIN}: accuracy", "%", None, whole)]
    for name in names:
        if name == PLAIN or name not in found:
            continue
        accuracies, bytes_ = zip(*found[name], strict=True)
        bar = WAYS[name][1]
        rows.append(Row(name, f"{name}: bytes over float32", "", bar, bytes_))
        below = [a - b for a, b in zip(whole, accuracies, strict=False)]
        rows.append(Row(name, f"{name}: points below float32", "", None if bar is None else APART, below))
        for what, spent in zip(("encode", "decode"), cost(WAYS[name][0], COSTS), strict=True):
            rows.append(Row(name, f"{name}: {what}", "ns an element", None, spent))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the rows beside their bars."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compression", description=__doc__)
    parser.add_argument(
        "names", nargs="*", choices=[[], *WAYS], metavar="NAME", help=f"by default all: {', '.join(WAYS)}"
    )
    parser.add_argument("--bars", action="store_true", help="those that a bar is set for alone")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works; the figures are void")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} anew")
    parser.add_argument("--rounds", type=int, help="other than the usual number of rounds")
    parser.add_argument("--seeds", type=int, help="other than the usual number of seeds")
    parser.add_argument("--data", help="the folder of Fashion-MNIST; by default where `make data` or Debian puts it")
    parser.add_argument("--workers", type=int, help="worker processes; the figures do not depend on them")
    chosen = parser.parse_args(arguments)
    if chosen.write and (chosen.quick or chosen.names or chosen.rounds or chosen.seeds or chosen.bars):
        parser.error("--write is for full sizes")
    folder = fashion_folder(chosen.data)
    size = QUICK if chosen.quick else FULL
    size = replace(size, rounds=chosen.rounds or size.rounds, seeds=size.seeds[: chosen.seeds])
    judged = [name for name, (_, bar) in WAYS.items() if bar is not None]
    names = [PLAIN, *(name for name in chosen.names or (judged if chosen.bars else WAYS) if name != PLAIN)]
    rows = measure(folder, size, names, "auto" if chosen.workers is None else chosen.workers)
    print(plain(rows))
    print(VOID if chosen.quick else f"Measured by `python -m benchmarks.compression` on: {machine()}.")
    if chosen.write:
        about = f"{size.clients} clients with {size.each} images each, {size.rounds} rounds, seeds {size.seeds}"
        PAGE.write_text(f"# Compression\n\n{__doc__.strip()}\n\n{about}. On: {machine()}.\n\n{markdown(rows)}\n")


if __name__ == "__main__":
    from benchmarks.compression import main  # by its own name, so that worker processes find its functions

    main()
