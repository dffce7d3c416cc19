"""Problems: what algorithms are compared on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..core.app import App, EarlyStop
from ..core.arrays import Arrays
from ..core.client import Client
from ..core.strategy import Strategy
from ..errors import SettingError
from ..simulation.federation import Simulation
from ..simulation.fleets import Fleet

Part = Literal["validation", "test"]
"""What a trial is scored on: settings are chosen on the one, and the chosen ones compared on the other."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A client, a model, a split of the data and a metric; and the budget, which is the same for all algorithms.

    - `client`, `model`: as an `App` has them. Handlers find the client's learning rate in ``ctx.config[rate]``, and in
      ``ctx.config["part"]`` whether to evaluate on ``"validation"`` or on ``"test"``.
    - `clients`: how many, their sources, or a function of the seed that gives them: then the split differs from seed to
      seed, and the spread is that of the split, too.
    - `test`: ``(model, part) -> {name: number}``, the server's own evaluation; None where clients alone evaluate.
    - `metric`: what counts, such as ``"test.accuracy"`` or ``"evaluate.accuracy"``; `goal` whether its most or its
      least is best; `also`: further metrics for the table.
    - `cohort`: how many clients a round; every strategy with such a field has it set.
    - `rounds`, or `updates`: the budget of a run, in rounds or in client updates, of which a strategy then has as many
      rounds as these make.
    - `config`: for all algorithms: epochs, size of a batch.
    - `rates`: the learning rates of clients that are tried for every algorithm; `rate` is their name in `config`.
    - `evaluate_every`, `evaluate_clients`: as an `App` has them.
    - `target`: the value of the metric for "rounds to"; by default 95 % of the best algorithm's. `to_target` ends a
      run there.
    - `devices`: a `Fleet`, where time is to pass as on other devices than equal ones that are always there.
    - `depends`: what else results depend on, as plain values: a digest of the data, say.
    """

    name: str
    client: Client
    model: Mapping[str, Any] | Callable[[], Mapping[str, Any]]
    clients: int | Sequence[Any] | Mapping[str, Any] | Callable[[int], Any]
    test: Callable[[Arrays, str], Mapping[str, float]] | None = None
    metric: str = "test.accuracy"
    goal: Literal["max", "min"] = "max"
    also: tuple[str, ...] = ()
    cohort: int | float | None = 10
    rounds: int | None = None
    updates: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    rates: Sequence[float] = (0.01, 0.03, 0.1, 0.3)
    rate: str = "lr"
    evaluate_every: int = 1
    evaluate_clients: Any = None
    target: float | None = None
    to_target: bool = False
    devices: Fleet | None = None
    depends: Any = None

    def __post_init__(self) -> None:
        if (self.rounds is None) == (self.updates is None):
            raise SettingError(f"the budget of {self.name!r} is a number of rounds or of updates: give one of the two")
        for name in ("rounds", "updates", "evaluate_every"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise SettingError(f"the {name} of {self.name!r} are a whole number of at least 1, not {value!r}")
        if not self.rates or not all(isinstance(r, int | float) and 0 < r < math.inf for r in self.rates):
            raise SettingError(f"the rates of {self.name!r} are positive numbers, at least one, not {self.rates!r}")
        if self.to_target and self.target is None:
            raise SettingError(f"the runs of {self.name!r} end at its target: give it target=...")
        if self.metric.startswith("test.") and self.test is None:
            raise SettingError(
                f"{self.name!r} is scored by {self.metric} and has no test",
                hint="Give it test=..., or metric='evaluate.accuracy', say, which clients evaluate.",
            )
        if self.metric.startswith("evaluate.") and "evaluate" not in self.client.handlers:
            raise SettingError(f"{self.name!r} is scored by {self.metric}, and its client has no evaluate handler")

    @property
    def essence(self) -> dict[str, Any]:
        """The fields that what comes of a run depends on, beside its own rounds, settings and seed."""
        names = "client model clients test cohort config rate evaluate_clients devices depends"
        return {name: getattr(self, name) for name in names.split()} | ({"stop": self.stop} if self.to_target else {})

    @property
    def stop(self) -> EarlyStop | None:
        """Where a run ends before its last round."""
        return EarlyStop(self.metric, None, self.goal, target=self.target) if self.to_target else None

    def app(
        self, strategy: Strategy, rounds: int, part: Part, config: Mapping[str, Any], every: int | None = None
    ) -> App:
        """The app of one run, with `config` laid over the problem's own, that evaluates `every` so many rounds."""
        app = App(
            self.client,
            model=self.model,
            strategy=strategy,
            rounds=rounds,
            config={**self.config, **config, "part": part},
            evaluate_every=min(every or self.evaluate_every, rounds),
            evaluate_clients=self.evaluate_clients,
            early_stop=self.stop,
        )
        if (test := self.test) is not None:
            app.test(lambda model: test(model, part))
        return app

    def federation(self, seed: int, workers: Any) -> Simulation:
        """Its clients, for a seed. With a device model, if only of equal devices, a run counts its bytes."""
        from ..simulation.devices import Kind

        clients = self.clients(seed) if callable(self.clients) else self.clients
        return Simulation(clients, workers=workers, devices=self.devices or Fleet(Kind("client")))

    def better(self, one: float, other: float) -> bool:
        """Whether a score is better than another; what is no number is worst."""
        if math.isnan(one) or math.isnan(other):
            return not math.isnan(one)
        return one > other if self.goal == "max" else one < other
