"""The plain PyTorch loop, in one process or in two that share memory."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..meter import Laps, handling, say
from ..workloads import Workload, chosen, cohort, data, initial, leave
from . import nets

State = dict[str, Tensor]


def main() -> None:
    """Do all rounds, print what they took, and leave the model in the folder of this run."""
    workload, processes = chosen(), int(os.environ["BENCH_PROCESSES"])
    rounds = workload.rounds_of(f"loop-{processes}") + 1
    laps = Laps(rounds)
    model = alone(workload, rounds, laps) if processes == 1 else together(workload, rounds, laps)
    includes = "training and a float32 sum; nothing is checked, logged or written"
    if processes > 1:
        includes += "; two processes with half of the cohort each, model and sums in shared memory"
    say(laps.report("torch", "numpy", includes=includes))
    leave({name: value.numpy() for name, value in model.items()})


def alone(workload: Workload, rounds: int, laps: Laps) -> State:
    """All rounds in this process."""
    net, examples = nets.net(workload), ready(workload)
    model = {name: value.clone() for name, value in net.state_dict().items()}
    for number in range(1, rounds + 1):
        total = {name: torch.zeros_like(value) for name, value in model.items()}
        weight = train(workload, net, model, examples, cohort(workload, number), total)
        model = {name: value / weight for name, value in total.items()}
        laps.lap()
    return model


def together(workload: Workload, rounds: int, laps: Laps) -> State:
    """All rounds in this process and one more, each with every second client of a cohort."""
    context = multiprocessing.get_context("spawn")
    size = sum(array.size for array in initial(workload).values())
    shared = [context.RawArray("f", size) for _ in range(3)]
    ours, theirs = context.Pipe()
    other = context.Process(target=work, args=(theirs, shared), daemon=True)
    other.start()
    theirs.close()
    net, examples = nets.net(workload), ready(workload)
    model, mine, others = (named(memory, workload) for memory in shared)
    for name, value in net.state_dict().items():
        model[name].copy_(value)
    for number in range(1, rounds + 1):
        clients = cohort(workload, number)
        ours.send(clients[1::2])
        clear(mine)
        weight = train(workload, net, model, examples, clients[::2], mine)
        weight += ours.recv()
        for name, value in model.items():
            torch.add(mine[name], others[name], out=value).div_(weight)
        laps.lap()
    ours.send(None)
    other.join()
    return model


def work(pipe: Connection, shared: Sequence[Any]) -> None:
    """The other process: train who it is told to, until it is told nobody."""
    workload = chosen()
    net, examples = nets.net(workload), ready(workload)
    model, _, mine = (named(memory, workload) for memory in shared)
    while (clients := pipe.recv()) is not None:
        clear(mine)
        pipe.send(train(workload, net, model, examples, clients, mine))


def train(
    workload: Workload, net: nn.Module, model: State, examples: list[nets.Tensors], clients: Sequence[int], total: State
) -> float:
    """Train clients one after the other, add their models to `total`, and return the sum of their weights."""
    weight = 0.0
    for client in clients:
        with handling():
            net.load_state_dict(model)
            nets.fit(net, examples[client], workload)
        count = len(examples[client][1])
        for name, value in net.state_dict().items():
            total[name].add_(value, alpha=count)
        weight += count
    return weight


def ready(workload: Workload) -> list[nets.Tensors]:
    """The data of all clients as tensors; no-ops have one number each."""
    if workload.model == "noop":
        return [(torch.zeros(1), torch.zeros(1))] * workload.pool
    return [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in data(workload)]


def named(memory: Any, workload: Workload) -> State:
    """A model's tensors in a stretch of shared memory."""
    flat, views, start = torch.from_numpy(np.frombuffer(memory, np.float32)), {}, 0
    for name, array in initial(workload).items():
        views[name] = flat[start : start + array.size].view(array.shape)
        start += array.size
    return views


def clear(total: State) -> None:
    """Set sums to zero."""
    for value in total.values():
        value.zero_()
