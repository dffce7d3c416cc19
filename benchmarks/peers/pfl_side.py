"""pfl: its simulated backend on PyTorch, in two processes by its own PFL_WORKER_ADDRESSES and torch.distributed.

It is run in pfl's own environment.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

PROCESSES = 2


def main() -> None:
    """Start the other process, do all rounds, print what they took, and leave the model in the folder of this run."""
    in_processes("pfl_side", simulate)


def in_processes(side: str, simulate: Callable[[], None]) -> None:
    """Do a side's rounds in this process and in another."""
    os.environ["PFL_PYTORCH_DEVICE"] = "cpu"
    if "PFL_WORKER_RANK" in os.environ:
        simulate()
        return
    addresses = ",".join(f"127.0.0.1:{port}" for port in free_ports(PROCESSES))
    os.environ.update(PFL_WORKER_ADDRESSES=addresses, GLOO_SOCKET_IFNAME="lo", PFL_WORKER_RANK="1")
    other = subprocess.Popen([sys.executable, "-c", f"from benchmarks.peers import {side}; {side}.main()"])
    os.environ["PFL_WORKER_RANK"] = "0"
    try:
        simulate()
        other.wait(60)
    finally:
        other.kill()
        other.wait()


def simulate() -> None:
    """The part of one process: every second client of a cohort."""
    import numpy as np
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    from ..meter import Laps, say
    from ..workloads import chosen, cohort, leave
    from . import nets

    class NoOp(FederatedAveraging):
        """FedAvg of clients that train nothing."""

        def train_one_user(self, initial_model_state: Any, model: Any, user_dataset: Any, central_context: Any) -> Any:
            return model.get_model_difference(initial_model_state), Metrics()

    class Stopwatch(TrainingProcessCallback):
        """Marks the end of each round."""

        def after_central_iteration(self, *_: Any, **__: Any) -> Any:
            laps.lap()
            return False, Metrics()

    np.random.seed(0)
    torch.manual_seed(0)
    workload = chosen()
    rounds = workload.rounds_of("pfl") + 1
    laps = Laps(rounds)
    net: Any = nets.net(workload)
    net.metrics = lambda *_, **__: {"none": Weighted(0.0, 1.0)}  # asked for in the first round, which is not counted
    model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0))
    federated = _dataset(workload)
    (NoOp() if workload.model == "noop" else FederatedAveraging()).run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds + 1,
            train_cohort_size=workload.cohort,
            val_cohort_size=None,
        ),
        SimulatedBackend(federated, federated, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(local_batch_size=workload.batch, local_num_epochs=1, local_learning_rate=workload.rate),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[Stopwatch()],
        send_metrics_to_platform=False,
    )
    assert len(cohort(workload, 1)) % PROCESSES == 0
    if os.environ["PFL_WORKER_RANK"] == "0":
        includes = (
            "two processes with half of the cohort each, then an all-reduce; data in its datasets, which keep batches; "
            "no evaluation, no log"
        )
        say(laps.report("pfl", "torch", "numpy", includes=includes))
        leave(nets.arrays(net))
    torch.distributed.destroy_process_group()


def _dataset(workload: Any) -> Any:
    """The federated dataset, its sampler the cohorts of the workload one after the other."""
    import torch
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset

    from ..workloads import cohort, data

    def draws() -> Iterator[int]:
        for number in count(1):
            yield from cohort(workload, number)

    if workload.model == "noop":
        nothing = (torch.zeros(1),)
        return FederatedDataset(lambda user: PyTorchTensorDataset(nothing, user_id=user), draws().__next__)
    users = [
        PyTorchTensorDataset((torch.from_numpy(x), torch.from_numpy(y)), user_id=str(user))
        for user, (x, y) in enumerate(data(workload))
    ]
    return FederatedDataset(users.__getitem__, draws().__next__)


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens at."""
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports
