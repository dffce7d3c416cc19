"""flwr: its simulation runtime on Ray, two actors of one CPU each, with the message API that its documentation begins
with.

It is run in flwr's own environment. Ray sends functions by the name of their module, so this is imported, not run.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from functools import cache
from typing import Any

FOLDER = os.environ.get("BENCH_FOLDER", "")
os.environ.update(
    FLWR_TELEMETRY_ENABLED="0",
    FLWR_DISABLE_UPDATE_CHECK="1",
    FLWR_LOG_LEVEL="ERROR",
    FLWR_HOME=f"{FOLDER}/flwr",
    RAY_USAGE_STATS_ENABLED="0",
)

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402
from flwr.serverapp.strategy import FedAvg  # noqa: E402

from ..meter import Laps, say  # noqa: E402
from ..workloads import Workload, chosen, cohort, data, initial, leave  # noqa: E402

logging.getLogger("flwr").setLevel(logging.ERROR)

PULL, MANY = 0.02, 1_000
"""Seconds between two looks for answers with so many clients at most. flwr's default of 0.1 was up to 1.4 times as slow
there; with more clients looking costs more than waiting, and the default stays.
"""
client, server = ClientApp(), ServerApp()
reports: list[dict[str, Any]] = []


@cache
def workload() -> Workload:
    """The workload, in the server's process or in an actor."""
    return chosen()


@cache
def kept() -> tuple[Any, list[Any]]:
    """The module and all clients' data, which an actor keeps from one message to the next."""
    import torch

    from . import nets

    return nets.net(workload()), [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in data(workload())]


@client.train()
def train(message: Message, context: Context) -> Message:
    """One epoch, or nothing at all."""
    model = message.content["arrays"]
    if workload().model == "noop":
        return _reply(message, model, 1)
    import torch

    from . import nets

    net, examples = kept()
    net.load_state_dict({name: torch.from_numpy(array.numpy()) for name, array in model.items()})
    mine = examples[message.content["config"]["client"]]
    nets.fit(net, mine, workload())
    trained = ArrayRecord({name: Array(value.detach().numpy()) for name, value in net.state_dict().items()})
    return _reply(message, trained, len(mine[1]))


def _reply(message: Message, model: ArrayRecord, weight: int) -> Message:
    content = RecordDict({"arrays": model, "metrics": MetricRecord({"num-examples": weight})})
    return Message(content, reply_to=message)


class Given(FedAvg):
    """FedAvg that asks the cohorts of the workload: client i is node i, by the order of their ids."""

    def __init__(self, laps: Laps) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.laps = laps
        self.nodes: list[int] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        if workload().pool <= MANY and hasattr(grid, "pull_interval"):
            grid.pull_interval = PULL
        while len(self.nodes) < workload().pool:
            self.nodes = sorted(grid.get_node_ids())
            if len(self.nodes) < workload().pool:
                time.sleep(max(0.1, workload().pool / 50_000))  # asking holds up who registers them
        return [
            Message(
                RecordDict({"arrays": arrays, "config": ConfigRecord({"client": number})}),
                dst_node_id=self.nodes[number],
                message_type="train",
            )
            for number in cohort(workload(), server_round)
        ]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        failed = [reply.error.reason for reply in replies if reply.has_error()]
        if failed or len(replies) != workload().cohort:
            raise RuntimeError(
                f"{len(replies)} of {workload().cohort} clients answered, {len(failed)} failed: {failed[:1]}"
            )
        answer = super().aggregate_train(server_round, replies)
        self.laps.lap()
        return answer


@server.main()
def serve(grid: Grid, context: Context) -> None:
    """Do all rounds and leave the model in the folder of this run."""
    rounds = workload().rounds_of("flwr") + 1
    laps = Laps(rounds)
    began = ArrayRecord({name: Array(array) for name, array in initial(workload()).items()})
    result = Given(laps).start(grid, began, num_rounds=rounds, timeout=3_600)
    includes = (
        "its run_simulation on Ray, two actors; models serialised into messages and back; its polling"
        f"{f', for answers every {PULL} s rather than 0.1' if workload().pool <= MANY else ''}; "
        "data and module kept in the actors; no evaluation, no log"
    )
    reports.append(laps.report("flwr", "ray", "torch", "numpy", includes=includes))
    leave({name: array.numpy() for name, array in result.arrays.items()})


def main() -> None:
    """Simulate, and print what the rounds took."""
    from flwr.simulation import run_simulation

    settings = {
        "init_args": {
            "num_cpus": 2,
            "num_gpus": 0,
            "include_dashboard": False,
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": f"{FOLDER}/ray",
        },
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    run_simulation(server, client, num_supernodes=workload().pool, backend_config=settings)
    say(reports[0])
