"""What hosts a run's clients on a node of a deployment in memory: a child without a process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ..core import encoding
from ..core.arrays import Arrays
from ..core.ask import SENT, Ask
from ..core.client import Client
from ..core.elementwise import mean
from ..core.randomness import Key
from ..core.task import Failed, Task
from ..core.transform import transform_from_spec
from ..node import signals as nodes
from ..node.child import TaskKeys
from ..wire import messages as m
from ..wire.names import client_id
from ..work.executor import Executor


class Host:
    """The clients of one run on one node, in this process; a stand-in for the node's child."""

    def __init__(self, client: Client, sources: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        self._keys = TaskKeys()
        self._kept: dict[str, Any] = {}
        self._client = client
        self._sources = {client_id(name): source for name, source in sources.items()}
        self._config = config

    def get(self, client: Any) -> dict[str, Any]:
        """The state of the client at work."""
        return self._kept

    def perform(self, start: nodes.Start, read: Callable[[m.Payload], bytes]) -> nodes.TaskDone | nodes.TaskFailed:
        """Do a task as a child does it."""
        task, spec = start.task, start.ask
        sent = encoding.decode(read(spec.shared))
        if spec.HasField("model"):
            sent["model"] = Arrays.from_bytes(read(spec.model)).select(sent["order"])
        own = encoding.decode(read(task.own)) if task.HasField("own") else {}
        given: dict[str, Any] = {name: sent[name] if name in sent else own.get(name) for name in SENT}
        steps = transform_from_spec(json.loads(spec.transforms))
        ask = Ask(clients=(), kind=spec.kind, lane=spec.lane, transforms=steps, fold=mean(), **given)
        executor = Executor(
            self._client, self._sources.__getitem__, config=self._config, keys=self._keys, states=self, data_cache=0
        )
        self._keys.task, self._keys.data = Key(task.key), Key(task.data_key)
        self._kept = {} if start.base is None else dict(encoding.decode(start.base))
        executor.open(spec.ask, ask, spec.round, spec.number, sent.get("params"))
        found = executor.answer(Task(task.task, task.ask, client_id(task.client), task.attempt))
        if isinstance(found, Failed):
            return nodes.TaskFailed(start.run, task.task, task.attempt, found.reason, found.retry)
        receipt = m.Receipt(
            task=task.task,
            client=task.client,
            weight=found.receipt.weight,
            metrics=dict(found.receipt.metrics),
            kept=found.state is not None,
        )
        done = m.Done(receipt=receipt, update=m.Payload(inline=encoding.encode(found.update)))
        return nodes.TaskDone(start.run, task.task, task.attempt, done, found.state)
