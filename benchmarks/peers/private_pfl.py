"""pfl: its simulated backend on PyTorch in two processes, its `GaussianMechanism` applied centrally.

Its own samplers draw a cohort of a fixed size with replacement, or go through the users in turn, and it divides by how
many came; no account of sampling holds of that. So it is handed what Umbel does: cohorts by Poisson sampling, and a
fixed number to divide by. It is run in pfl's own environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from . import digits
from .pfl_side import PROCESSES, in_processes


def main() -> None:
    """Start the other process, do all rounds, print what they took, and leave the model in the folder of this run."""
    in_processes("private_pfl", simulate)


def simulate() -> None:
    """The part of one process: every second client of a cohort."""
    import numpy as np
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel
    from torch.nn.functional import cross_entropy

    from ..meter import Laps, say
    from ..workloads import leave

    class Stopwatch(TrainingProcessCallback):
        """Marks the end of each round."""

        def after_central_iteration(self, *_: Any, **__: Any) -> Any:
            laps.lap()
            return False, Metrics()

    task = digits.given()
    setting = task.setting
    np.random.seed(setting.seed)  # of which pfl draws its noise, the same in both processes
    torch.manual_seed(setting.seed)
    laps = Laps(setting.rounds)
    net = digits.net(task.model)
    net.loss = lambda x, y: cross_entropy(net(x), y)
    net.metrics = lambda *_, **__: {"none": Weighted(0.0, 1.0)}  # asked for in the first round, which is not counted
    central = torch.optim.SGD(net.parameters(), lr=setting.server_lr, momentum=setting.momentum)
    hides, own = _mechanism(setting)
    data = _dataset(task)
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=setting.rounds,
            evaluation_frequency=setting.rounds + 1,
            train_cohort_size=setting.cohort,
            val_cohort_size=None,
        ),
        SimulatedBackend(data, data, postprocessors=hides),
        PyTorchModel(net, torch.optim.SGD, central),
        NNTrainHyperParams(local_batch_size=setting.batch, local_num_epochs=1, local_learning_rate=setting.lr),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[Stopwatch()],
        send_metrics_to_platform=False,
    )
    if os.environ["PFL_WORKER_RANK"] == "0":
        report = laps.report("pfl", "torch", "numpy", includes="no log, nothing on disk")
        say({**report, "releases": _releases(setting), "own": own})
        leave({name: np.array(value.detach().numpy()) for name, value in net.state_dict().items()})
    torch.distributed.destroy_process_group()


def _mechanism(setting: digits.Setting) -> tuple[list[Any], float | None]:
    """What clips, noises and fixes what is divided by, and the epsilon that pfl's own accountant finds."""
    if setting.noise is None:
        return [], None
    from pfl.metrics import Metrics
    from pfl.postprocessor.base import Postprocessor
    from pfl.privacy.gaussian_mechanism import GaussianMechanism
    from pfl.privacy.privacy_accountant import PLDPrivacyAccountant
    from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism

    class FixedDenominator(Postprocessor):
        """Has FedAvg divide by how many are asked on average, whoever came."""

        def postprocess_server(self, *, stats: Any, central_context: Any, aggregate_metrics: Any) -> Any:
            stats.weight = float(setting.cohort)
            return stats, Metrics()

    accountant = PLDPrivacyAccountant(
        num_compositions=setting.rounds,
        sampling_probability=setting.rate,
        mechanism="gaussian",
        noise_parameter=setting.noise,
        delta=setting.delta,
    )
    gaussian = GaussianMechanism.from_privacy_accountant(accountant, setting.norm)
    return [CentrallyAppliedPrivacyMechanism(gaussian), FixedDenominator()], accountant.epsilon


def _releases(setting: digits.Setting) -> list[dict[str, Any]]:
    """What it released, as Umbel's accountant reads it."""
    if setting.noise is None:
        return []
    release = {
        "mechanism": "gaussian",
        "noise": setting.noise,
        "norm": setting.norm,
        "unit": "client",
        "neighbours": "add or remove one",
        "sampling": {"kind": "poisson", "rate": setting.rate},
        "denominator": float(setting.cohort),
        "steps": None,
    }
    return [release] * setting.rounds


def _dataset(task: digits.Task) -> Any:
    """The federated dataset, whose cohorts each user is in by its own throw of the dice."""
    import numpy as np
    import torch
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset

    rank, setting = int(os.environ["PFL_WORKER_RANK"]), task.setting
    dice = np.random.default_rng([setting.seed, 1])  # the same in both processes

    class Poisson(FederatedDataset):
        """Cohorts by Poisson sampling, whatever size is asked for."""

        def get_cohort(self, cohort_size: int) -> Iterator[tuple[Any, int]]:
            taken = np.flatnonzero(dice.random(setting.clients) < setting.rate)
            for user in taken[rank::PROCESSES]:
                yield self.make_dataset_fn(int(user)), 0  # a seed is for local noise, of which there is none

    users = [
        PyTorchTensorDataset((torch.from_numpy(x), torch.from_numpy(y)), user_id=str(user))
        for user, (x, y) in enumerate(map(task.examples, range(setting.clients)))
    ]
    return Poisson(users.__getitem__, lambda: 0)
