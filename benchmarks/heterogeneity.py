"""Four results on unlike devices, in virtual time, on Fashion-MNIST: `python -m benchmarks.heterogeneity [--quick]`.

Three follow the Flower paper (Beutel et al. 2020, arXiv 2007.14390): local epochs, the number of clients, and a cut-off
per processor, against accuracy, time and energy. The fourth is FedBuff (Nguyen et al. 2022, arXiv 2106.06639) beside
FedAvg on phones. Data, model and fleets are our own, and so are the figures: what can be compared is the direction.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import umbel
import umbel.torch
from umbel.data import Partition, dirichlet
from umbel.data.mnist import idx_folder, idx_part
from umbel.simulation import Fleet, Kind, Spread

from . import outcomes as pictures
from .outcomes import Outcome, Point, common_target, points, table

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
BATCH = 50
BATCH_SECONDS = 1.2
"""What a batch costs the reference machine of the first three: ten epochs of 500 images take it two minutes."""
PHONE_SECONDS = 60.0
"""What a task costs the laptop that phones are compared with."""


@dataclass(frozen=True)
class Size:
    """How much is run: images a client, rounds of each part, seeds, and of the fourth part clients, tasks in flight and
    updates in all.
    """

    each: int = 500
    epochs: int = 30
    clients: int = 20
    cutoff: int = 30
    seeds: tuple[int, ...] = (1, 2, 3)
    phones: int = 1000
    in_flight: int = 100
    updates: int = 5000


FULL = Size()
QUICK = Size(each=100, epochs=4, clients=4, cutoff=2, seeds=(1,), phones=60, in_flight=10, updates=60)


# The data and the client


@cache
def images(folder: str, part: str, items: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The first images [n, 784] from 0 to 1, and their labels, of `part` ("train" or "t10k"). Raises `DataError`."""
    pixels, labels = idx_part(folder, part)
    return pixels[:items].reshape(-1, 784).astype(np.float32) / np.float32(255), labels[:items]


def fashion_folder(folder: str | None) -> str:
    """The folder of Fashion-MNIST; a program ends where there is none."""
    try:
        return idx_folder("fashion-mnist", folder)
    except umbel.UmbelError as error:
        raise SystemExit(str(error)) from None


@cache
def split(folder: str, parts: int, each: int, alpha: float) -> Partition:
    """Who holds what: as many images for each, the fewer classes the smaller alpha."""
    _, labels = images(folder, "train", parts * each)
    return dirichlet(alpha, balanced=True)(labels, parts, seed=0)


def sources(folder: str, clients: int, *, parts: int, each: int, alpha: float = 1.0) -> list[dict[str, Any]]:
    """The first `clients` of `parts` clients."""
    shared = {"folder": folder, "parts": parts, "each": each, "alpha": alpha}
    return [{**shared, "index": index} for index in range(clients)]


def network() -> nn.Module:
    """A perceptron with one hidden layer; 50,890 parameters."""
    return nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


client = umbel.Client()


@client.data
def data(source):
    parts, each = source["parts"], source["each"]
    pixels, labels = images(source["folder"], "train", parts * each)
    mine = split(source["folder"], parts, each, source["alpha"])[source["index"]]
    return torch.from_numpy(pixels[mine]), torch.from_numpy(labels[mine])


@client.train
def train(model, data, ctx):
    """Train `ctx.config["batches"]` batches, as many epochs as these make."""
    net = umbel.torch.load_(network(), model)
    weights = list(net.parameters())
    x, y = data
    left = ctx.config["batches"]
    while left:
        for batch in torch.randperm(len(y)).split(BATCH)[:left]:
            loss = cross_entropy(net(x[batch]), y[batch])
            slopes = torch.autograd.grad(loss, weights)
            with torch.no_grad():  # by hand: the first torch.optim.SGD of a process costs more than a run here
                for weight, slope in zip(weights, slopes, strict=True):
                    weight.sub_(slope, alpha=ctx.config["lr"])
            left -= 1
        ctx.step()
    return umbel.Update(umbel.torch.arrays(net), weight=len(y), metrics={"loss": loss.item()})


def by_batches(client: umbel.errors.ClientId, kind: str, config: Mapping[str, Any]) -> float:
    """The reference seconds of a task: what its batches cost."""
    return config["batches"] * BATCH_SECONDS


@dataclass(frozen=True, kw_only=True)
class CutOff(umbel.FedAvg):
    """FedAvg whose clients train no more batches than their processor has time for.

    `seconds` says how many a kind of device has; a kind that is not in it has no limit.
    """

    fleet: Fleet
    seconds: Mapping[str, float] = field(default_factory=dict)

    def ask(self, state: Any, r: int) -> Any:
        return replace(super().ask(state, r), config=self.config_for)

    def config_for(self, client: umbel.errors.ClientId) -> dict[str, Any]:
        """The settings of one client: all batches, or those that its device has time for."""
        device = self.fleet.device(client)
        limit = self.seconds.get(device.kind, math.inf)
        fits = self.config["batches"] if math.isinf(limit) else int(limit * device.speed / BATCH_SECONDS)
        return {**self.config, "batches": max(1, min(fits, self.config["batches"]))}


@dataclass(frozen=True)
class Lab:
    """Where the data is, how much is run, and on how many workers."""

    folder: str
    size: Size
    workers: Any = "auto"

    def run(
        self, label: str, strategy: umbel.FedAvg, federation: Mapping[str, Any], rounds: int, **app: Any
    ) -> Outcome:
        """Run a strategy once for each seed."""
        began = time.perf_counter()
        runs = [self._once(strategy, federation, rounds, seed, app) for seed in self.size.seeds]
        print(f"  {label}: {time.perf_counter() - began:.1f} s", file=sys.stderr)
        return Outcome(label, runs)

    def _once(
        self, strategy: umbel.FedAvg, federation: Mapping[str, Any], rounds: int, seed: int, settings: Mapping[str, Any]
    ) -> list[Point]:
        app = umbel.App(
            client, model=lambda: umbel.torch.arrays(network()), strategy=strategy, rounds=rounds, **settings
        )
        pixels, labels = map(torch.from_numpy, images(self.folder, "t10k"))

        @app.test
        @torch.inference_mode()
        def test(model):
            right = umbel.torch.load_(network(), model)(pixels).argmax(1) == labels
            return {"accuracy": right.float().mean().item()}

        simulation = umbel.Simulation(**federation, workers=self.workers)
        return list(points(umbel.run(app, on=simulation, seed=seed, folder=None).history))


def kind(name: str, speed: Any, watts: float, **settings: Any) -> Kind:
    """A board or phone as in the presets `"boards"` and `"phones"`, but always there."""
    return Kind(name, speed=speed, watts=watts, **settings)


BOARD = {"download": 12.5e6, "upload": 12.5e6, "radio_watts": 5.0, "drop_out": 0.01}
GPU = kind("TX2 GPU", 1.0, 15.0, **BOARD)
CPU = kind("TX2 CPU", 1 / 1.27, 7.5, **BOARD)
LINK = {"download": Spread(2.5e6, 0.9), "upload": Spread(0.75e6, 0.9), "radio_watts": 1.0, "drop_out": 0.01}
FARM = (
    kind("high-end phone", Spread(0.5, 0.3), 5.5, share=15, **LINK),
    kind("mid-range phone", Spread(0.26, 0.3), 4.5, share=35, **LINK),
    kind("low-end phone", Spread(0.17, 0.3), 3.5, share=50, **LINK),
)


def plan(size: Size, epochs: int) -> dict[str, Any]:
    """The settings of a task of so many epochs."""
    return {"lr": 0.1, "batches": epochs * math.ceil(size.each / BATCH)}


def local_epochs(lab: Lab) -> list[Outcome]:
    """Ten TX2 on their GPU, which train 1, 5 or 10 epochs a round."""
    fleet = Fleet(GPU, work=by_batches)
    clients = sources(lab.folder, 10, parts=10, each=lab.size.each)
    return [
        lab.run(
            f"E = {epochs}",
            umbel.FedAvg(cohort=10, config=plan(lab.size, epochs)),
            {"clients": clients, "devices": fleet},
            lab.size.epochs,
        )
        for epochs in (1, 5, 10)
    ]


def number_of_clients(lab: Lab) -> list[Outcome]:
    """4, 7 or all 10 of ten phones, each with a tenth of the data, that train 5 epochs a round."""
    fleet = Fleet(FARM, work=by_batches)
    return [
        lab.run(
            f"C = {count}",
            umbel.FedAvg(cohort=count, config=plan(lab.size, 5)),
            {"clients": sources(lab.folder, count, parts=10, each=lab.size.each), "devices": fleet},
            lab.size.clients,
        )
        for count in (4, 7, 10)
    ]


def cut_off(lab: Lab) -> list[Outcome]:
    """Ten TX2 that train 10 epochs a round: on GPUs, on CPUs with and without a cut-off, and some on each."""
    clients = sources(lab.folder, 10, parts=10, each=lab.size.each)
    gpu, cpu, both = (Fleet(kinds, work=by_batches) for kinds in (GPU, CPU, [GPU, CPU]))
    config = plan(lab.size, 10)

    def cut(label: str, fleet: Fleet, minutes: float | None = None, **window: Any) -> Outcome:
        limits = {"TX2 CPU": 60 * minutes} if minutes else {}
        strategy = CutOff(cohort=10, config=config, fleet=fleet, seconds=limits, window=umbel.Window(**window))
        return lab.run(label, strategy, {"clients": clients, "devices": fleet}, lab.size.cutoff)

    return [
        cut("GPU", gpu),
        cut("CPU", cpu),
        *(cut(f"CPU, τ = {minutes:g} min", cpu, minutes) for minutes in (2.23, 1.99, 1.0, 0.25)),
        cut("both", both),
        cut("both, CPU τ = 1.99 min", both, 1.99),
        cut("both, deadline 2.1 min", both, deadline=126.0),
    ]


def asynchronous(lab: Lab) -> list[Outcome]:
    """A night of a thousand phones: FedAvg, over-selection, a deadline, and FedBuff, for about as many updates each."""
    size = lab.size
    parts = sources(lab.folder, size.phones, parts=size.phones, each=60, alpha=0.5)
    fleet = Fleet.preset("phones", work=PHONE_SECONDS)
    federation = {"clients": parts, "devices": fleet}
    flying, close = size.in_flight, size.in_flight // 10
    config = {"lr": 0.1, "batches": 6}
    rounds = size.updates // flying

    def night(label: str, rounds: int, every: int = 1, **settings: Any) -> Outcome:
        strategy = umbel.FedAvg(fold=umbel.mean(), config=config, **settings)
        return lab.run(label, strategy, federation, rounds, evaluate_every=every)

    most = flying + 3 * flying // 10
    buffered = umbel.Window(in_flight=flying, close_after=close, late="keep")
    return [
        night("FedAvg, all", rounds, cohort=flying),
        night(f"FedAvg, {flying} of {most}", rounds, cohort=most, window=umbel.Window(close_after=flying)),
        night("FedAvg, 5 min", rounds, cohort=flying, window=umbel.Window(deadline=300.0, quorum=close)),
        night("FedBuff", size.updates // close, 5, cohort=flying, window=buffered),
    ]


PARTS = {
    "epochs": (local_epochs, pictures.draw_epochs),
    "clients": (number_of_clients, pictures.draw_clients),
    "cutoff": (cut_off, pictures.draw_cut_off),
    "fedbuff": (asynchronous, pictures.draw_asynchronous),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts, print their tables, and draw their pictures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.heterogeneity", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works; the figures are void")
    parser.add_argument("--out", type=Path, help="the pictures' folder; by default docs/pictures, with --quick none")
    parser.add_argument("--data", help="the folder of Fashion-MNIST; by default where `make data` or Debian puts it")
    parser.add_argument("--workers", type=int, help="worker processes; the figures do not depend on them")
    chosen = parser.parse_args(arguments)
    out = chosen.out or (None if chosen.quick else PICTURES)
    workers = "auto" if chosen.workers is None else chosen.workers
    lab = Lab(fashion_folder(chosen.data), QUICK if chosen.quick else FULL, workers)
    for name in chosen.parts or PARTS:
        run, draw = PARTS[name]
        outcomes = run(lab)
        target = common_target(outcomes)
        text = table(outcomes, target)
        print(f"{(run.__doc__ or '').strip()}\n\n{text}\n", flush=True)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            draw(outcomes, target).savefig(out / f"heterogeneity-{name}.png")
            (out / f"heterogeneity-{name}.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    from benchmarks.heterogeneity import main  # by its own name, so that worker processes find its functions

    main()
