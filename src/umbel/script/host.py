"""The client that a script is: its handlers hand tasks to warm processes of the script, one a client."""

from __future__ import annotations

import os
import sys
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.arrays import Arrays
from ..core.client import Client, Context
from ..core.update import Metrics, Update
from ..errors import AppError, ClientError, ClientId, StrategyError, UnusedCorrection
from ..work.processes import ONE_THREAD
from ..work.seeding import seed_of
from .process import ScriptProcess

PACKAGES = Path(__file__).parents[2]
"""Where Umbel is."""


class ScriptClient(Client):
    """A client that is a script; see `umbel.script.client`, which makes it.

    `model()` asks the script for its initial model, in a process of its own. Its handlers raise `HandlerFailed` where
    the script ends, stalls or says what it should not, and `ClientCrashed` where it is killed.
    """

    def __init__(
        self,
        path: Path,
        args: tuple[str, ...],
        env: dict[str, str],
        python: str,
        evaluate: bool,
        initial_source: Any,
        processes: int,
        stall: float | None,
    ) -> None:
        super().__init__()
        if not path.is_file():
            raise AppError(f"there is no script {path}", hint="Name a Python file that loops over fl.tasks(...).")
        self._path, self._args, self._env, self._python = path, args, env, python
        self._initial_source = {"index": 0, "count": 1} if initial_source is None else initial_source
        self._processes, self._stall = processes, stall
        self.programs = (path,)
        self._begin()
        self.train(self._do)
        if evaluate:
            self.evaluate(self._do)

    def _begin(self) -> None:
        self._warm: OrderedDict[ClientId, ScriptProcess] = OrderedDict()
        weakref.finalize(self, _end, self._warm)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_warm"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def model(self) -> Arrays:
        """The model that the script begins with. Raises `AppError` where it does not come to `fl.tasks`."""
        process = self._started(0, self._initial_source)
        try:
            arrays = process.ask({"says": "model"}, "model", lambda: None)["arrays"]
        except ClientError as error:
            raise AppError(error.message, hint=error.hint) from error
        finally:
            process.end()
        return arrays if isinstance(arrays, Arrays) else Arrays(arrays)

    def release(self) -> None:
        """End the scripts that are warm in this process."""
        _end(self._warm)

    def _do(self, model: Arrays, source: Any, ctx: Context) -> Update | Metrics:
        """Have the client's script do a task."""
        if ctx.correction is not None:
            raise UnusedCorrection(
                f"the strategy needs a correction in the local loss, which the loop of {self._path.name} does not take",
                hint="Take a strategy without one, such as FedAvg, or have a handler of an umbel.Client() train by "
                "umbel.torch.fit(net, data, ctx).",
            )
        process = self._warm.pop(ctx.client, None)
        if process is not None and process.over:  # killed while it had nothing to do
            process.end()
            process = None
        process = process or self._started(ctx.client, source)
        task = {
            "says": "task", "client": ctx.client, "kind": ctx.kind, "round": ctx.round, "seed": seed_of(ctx.key),
            "config": dict(ctx.config), "device": ctx.device, "model": model, "state": ctx.state,
            "personal": tuple(ctx.personal),
        }  # fmt: skip
        try:
            said = process.ask(task, "answer", ctx.step)
        except BaseException:  # it is in the middle of something
            process.end(0)
            raise
        self._warm[ctx.client] = process
        while len(self._warm) > self._processes:
            self._warm.popitem(last=False)[1].end()
        ctx.state.clear()
        ctx.state.update(said["state"])
        if ctx.kind == "evaluate":
            return Metrics(said["metrics"], said["examples"])
        return Update(said["arrays"], weight=said["examples"], metrics=said["metrics"])

    def _started(self, client: ClientId, source: Any) -> ScriptProcess:
        name, values = self._path.name, {"client": client, "source": source}
        args = _filled(self._args, values, name)
        env = dict(zip(self._env, _filled(list(self._env.values()), values, name), strict=True))
        environment = {**os.environ, **ONE_THREAD, **env}
        installed = {"site-packages", "dist-packages"} & set(PACKAGES.parts)
        if self._python == sys.executable and not installed:  # it may have found Umbel in a way of its own
            known = environment.get("PYTHONPATH")
            environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGES), *([known] if known else [])])
        process = ScriptProcess(name, [self._python, str(self._path), *args], environment, self._stall)
        try:
            process.send({"says": "begin", "client": client, "source": source})
        except StrategyError as error:
            process.end(0)
            raise AppError(
                f"the source of client {client} cannot be handed to {name}: {error.message}",
                hint="Sources of scripts are numbers, text, arrays, lists and dictionaries.",
            ) from error
        return process


def _filled(texts: Sequence[str], values: Mapping[str, Any], name: str) -> list[str]:
    """The texts with what stands in braces replaced."""
    try:
        return [text.format(**values) for text in texts]
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise AppError(
            f"the arguments of {name} name what the source {values['source']!r:.80} does not have: {error!r}",
            hint="For the initial model the source is what umbel.script.client(initial_source=...) says.",
        ) from error


def _end(warm: OrderedDict[ClientId, ScriptProcess]) -> None:
    for process in warm.values():
        process.let_go()  # so that they end at the same time
    while warm:
        warm.popitem()[1].end()
