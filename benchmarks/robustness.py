"""Robust folds against attacks on Fashion-MNIST: `python -m benchmarks.robustness [--quick] [--seeds K]`.

Each fold meets each attack, with the same clients, draws and rounds; the table says how accurate the model is in the
end, and of the back door how often it opens. The page, the table and the picture are written by this command.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import umbel
import umbel.torch
from umbel import folds
from umbel.core.client import Context
from umbel.core.optimizers import sgd
from umbel.core.randomness import Key
from umbel.testing import attacks

from .figures import machine
from .heterogeneity import BATCH, client, fashion_folder, images, network, sources, train
from .outcomes import canvas

PAGE = Path(__file__).resolve().parent.parent / "docs" / "robustness.md"
TARGET = 0
"""The class that the back door is to open to."""
ROOT = 100
"""So many images the server has itself, which no client has: for FLTrust."""


@dataclass(frozen=True)
class Size:
    """How much is run: clients, of whom the first are malicious, images of each, rounds, seeds; and how unlike clients
    are (the smaller alpha, the more).
    """

    clients: int = 25
    malicious: int = 5
    each: int = 400
    rounds: int = 20
    seeds: int = 2
    alpha: float = 1.0


FULL, QUICK = Size(), Size(each=50, rounds=2, seeds=1)
CONFIG = {"lr": 0.1, "batches": 8}


def trigger(inputs: torch.Tensor) -> torch.Tensor:
    """A white square of four pixels' width in a corner of each image."""
    marked = inputs.clone().reshape(-1, 28, 28)
    marked[:, -5:-1, -5:-1] = 1.0
    return marked.reshape(-1, 784)


@dataclass(frozen=True)
class ServersOwn:
    """What FLTrust needs: the update of a round's model on the server's own images."""

    folder: str
    first: int

    def __call__(self, model: umbel.Arrays, r: int) -> umbel.Update:
        pixels, labels = images(self.folder, "train", self.first + ROOT)
        data = torch.from_numpy(pixels[self.first :]), torch.from_numpy(labels[self.first :])
        torch.manual_seed(r)
        key = Key.from_seed(r).derive("root")
        ctx = Context(
            client="server", round=r, kind="train", config=CONFIG, key=key, inbox=umbel.Arrays({}), state={}
        )  # fmt: skip
        return train(model, data, ctx)


def the_folds(size: Size, folder: str) -> dict[str, dict[str, Any]]:
    """What FedAvg is given for each row."""
    f, kept = size.malicious, size.clients - size.malicious
    own = folds.fltrust(ServersOwn(folder, size.clients * size.each))
    return {
        "mean": {"fold": folds.mean()},
        "norm_bounded(0.5)": {"fold": folds.norm_bounded(0.5)},
        "median": {"fold": folds.median()},
        f"trimmed_mean(f={f})": {"fold": folds.trimmed_mean(f=f)},
        "geometric_median": {"fold": folds.geometric_median()},
        f"krum(f={f})": {"fold": folds.krum(f=f)},
        f"krum(f={f}, keep={kept})": {"fold": folds.krum(f=f, keep=kept)},
        f"bulyan(f={f})": {"fold": folds.bulyan(f=f)},
        f"divide_and_conquer(f={f})": {"fold": folds.divide_and_conquer(f=f)},
        "centred_clipping(0.5, 5)": {"fold": folds.centred_clipping(0.5, iterations=5)},
        "foolsgold": {"fold": folds.foolsgold()},
        "fltrust": {"fold": own},
        "sign_majority": {"fold": folds.sign_majority(), "server": sgd(0.003)},
    }


def the_attacks() -> dict[str, attacks.Attack]:
    """The columns."""
    return {
        "none": attacks.Attack(),
        "label flip": attacks.label_flip(10),
        "sign flip x5": attacks.sign_flip(5.0),
        "scaled x20": attacks.scaled_update(20.0),
        "Gaussian": attacks.gaussian(0.3),
        "a little, z=1.5": attacks.little_is_enough(1.5),
        "inner product x5": attacks.inner_product(5.0),
        "min-max": attacks.min_max(),
        "back door x5": attacks.backdoor(trigger, TARGET, scale=5.0),
    }


@dataclass
class Cell:
    """How accurate the models of a fold under an attack are, and how often the back door opens, one number a seed."""

    accuracies: list[float] = field(default_factory=list)
    opened: list[float] = field(default_factory=list)

    def text(self, door: bool) -> str:
        """For the table."""
        told = f"{100 * statistics.fmean(self.accuracies):.1f}"
        return f"{told} / {100 * statistics.fmean(self.opened):.0f}" if door else told


def run(
    size: Size, folder: str, fold: Mapping[str, Any], attack: attacks.Attack, seed: int, workers: Any
) -> tuple[float, float]:
    """The accuracy at the end, as the mean of the last three tests, and the share of other images that the trigger has
    taken for `TARGET`.
    """
    malicious = () if type(attack) is attacks.Attack else range(size.malicious)
    app = umbel.App(
        attacks.attacked(client, malicious, attack),
        model=lambda: umbel.torch.arrays(network()),
        strategy=umbel.FedAvg(cohort=size.clients, config=CONFIG, **fold),
        rounds=size.rounds,
    )
    pixels, labels = map(torch.from_numpy, images(folder, "t10k"))
    others = pixels[labels != TARGET]

    @app.test
    @torch.inference_mode()
    def test(model):
        net = umbel.torch.load_(network(), model)
        found = {"accuracy": (net(pixels).argmax(1) == labels).float().mean().item(), "opened": 0.0}
        if isinstance(attack, attacks.backdoor):
            found["opened"] = (net(trigger(others)).argmax(1) == TARGET).float().mean().item()
        return found

    torch.set_num_threads(1)  # of this process, which trains the server's own update, as of workers
    held = sources(folder, size.clients, parts=size.clients, each=size.each, alpha=size.alpha)
    try:
        history = umbel.run(app, on=umbel.Simulation(held, workers=workers), seed=seed, folder=None).history
    except umbel.UmbelError as error:  # training that diverges is what some attacks are for
        print(f"    {type(error).__name__}: {error.message}", file=sys.stderr)
        return 0.1, 0.0
    last = [r.test for r in history if r.test][-3:]
    return statistics.fmean(t["accuracy"] for t in last), statistics.fmean(t["opened"] for t in last)


def measured(size: Size, folder: str, workers: Any, rows: Sequence[str] = ()) -> dict[str, dict[str, Cell]]:
    """The cells, by row and column."""
    found: dict[str, dict[str, Cell]] = {}
    for name, fold in the_folds(size, folder).items():
        if rows and not any(name.startswith(row) for row in rows):
            continue
        began, found[name] = time.perf_counter(), {}
        for column, attack in the_attacks().items():
            cell = found[name][column] = Cell()
            for seed in range(1, size.seeds + 1):
                accuracy, opened = run(size, folder, fold, attack, seed, workers)
                cell.accuracies.append(accuracy)
                cell.opened.append(opened)
        told = ", ".join(cell.text("door" in column) for column, cell in found[name].items())
        print(f"  {name}: {told} ({time.perf_counter() - began:.0f} s)", file=sys.stderr)
    return found


def table(found: Mapping[str, Mapping[str, Cell]]) -> str:
    """The cells in Markdown: percent of the test set, and of the back door also of the other classes with a trigger."""
    columns = list(next(iter(found.values())))
    lines = [["fold", *columns], ["---", *["---:"] * len(columns)]]
    lines += [[f"`{name}`", *(row[c].text("door" in c) for c in columns)] for name, row in found.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(found: Mapping[str, Mapping[str, Cell]]) -> Any:
    """Accuracies as a map."""
    columns = list(next(iter(found.values())))
    figure, (axes,) = canvas("Accuracy in percent on Fashion-MNIST: folds against attacks")
    figure.set_size_inches(8, 1.4 + 0.32 * len(found))
    values = np.array([[100 * statistics.fmean(row[c].accuracies) for c in columns] for row in found.values()])
    axes.grid(False)
    axes.imshow(values, cmap="viridis", vmin=10, vmax=90, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=25, ha="right", fontsize=8)
    axes.set_yticks(range(len(found)), list(found), fontsize=8)
    for (y, x), value in np.ndenumerate(values):
        axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=8, color="white" if value < 60 else "black")
    return figure


def page(size: Size, made: str) -> str:
    """The page about the results."""
    batches, epochs = CONFIG["batches"], CONFIG["batches"] * BATCH / size.each
    return f"""# Robust folds against attacks

Made by `python -m benchmarks.robustness` ([benchmarks/robustness.py](../benchmarks/robustness.py)), which needs
`make data` (or Debian's `dataset-fashion-mnist`). {size.clients} clients with {size.each} images of Fashion-MNIST
each (Dirichlet, alpha = {size.alpha:g}) train a perceptron of 50,890 parameters for {size.rounds} rounds of {batches}
batches ({epochs:g} epoch); {size.malicious} of them are malicious in every round. Each number is the percentage of the
test set that is recognised, as a mean over the last three rounds and {size.seeds} seeds; behind that of the back door
stands how many percent of the images of other classes, with the trigger, are taken for its class. Folds keep their
settings in all columns, and nothing was tuned to an attack; one that is made for a fold may do more harm.

![How accurate models are that each fold makes under each attack](pictures/robustness.png)

{made}

- FoolsGold assumes clients whose data differ far more than here, and FLTrust has {ROOT} clean images of its own.
- Krum with one update learns from one client a round. Clients whose data differ cost every fold that leaves some out.
- `sign_majority` steps every parameter by 0.003.

Measured on: {machine()}.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all cells, print the table, and write the page and the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robustness", description=__doc__)
    parser.add_argument("folds", nargs="*", metavar="FOLD", help="only those that begin so; then nothing is written")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works; the figures are void")
    parser.add_argument("--seeds", type=int, help="how many runs a cell is the mean of")
    parser.add_argument("--out", type=Path, help="the page's place; by default docs/robustness.md, with --quick none")
    parser.add_argument("--data", help="the folder of Fashion-MNIST; by default where `make data` or Debian puts it")
    parser.add_argument("--workers", type=int, help="worker processes; the figures do not depend on them")
    chosen = parser.parse_args(arguments)
    size = QUICK if chosen.quick else FULL
    if chosen.seeds:
        size = Size(**{**vars(size), "seeds": chosen.seeds})
    out = chosen.out or (None if chosen.quick or chosen.folds else PAGE)
    folder = fashion_folder(chosen.data)
    found = measured(size, folder, "auto" if chosen.workers is None else chosen.workers, chosen.folds)
    made = table(found)
    print(made)
    if out is not None:
        (out.parent / "pictures").mkdir(parents=True, exist_ok=True)
        draw(found).savefig(out.parent / "pictures" / "robustness.png")
        out.write_text(page(size, made), encoding="utf-8")


if __name__ == "__main__":
    from benchmarks.robustness import main  # by its own name, so that worker processes find its functions

    main()
