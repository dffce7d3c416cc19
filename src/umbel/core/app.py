"""What the operator of a federation owns: client, initial model, strategy and settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from weakref import ref

from ..errors import AppError, SettingError, StrategyError, UpdateRejected
from .arrays import Arrays
from .client import Client, check_signature
from .contract import contract
from .strategy import Question, Strategy
from .transform import Transform
from .trees import flat, is_tree
from .update import Metrics, check_metrics

Tree = Mapping[str, Any] | Sequence[Any]
Test = TypeVar("Test", bound=Callable[[Arrays], Any])


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class EarlyStop:
    """Stop once `metric` has not improved by more than `min_change` for `patience` evaluations in a row, or as soon as
    it has come to `target`.

    `metric` is written `test.accuracy`, `evaluate.accuracy` or `train.loss`. Without a `patience` the target alone
    counts.
    """

    metric: str
    patience: int | None = 5
    mode: Literal["max", "min"] = "max"
    min_change: float = 0.0
    target: float | None = None

    def __post_init__(self) -> None:
        _check_metric(self.metric, self.mode)
        if self.patience is not None:
            _whole("patience", self.patience, 1)
        elif self.target is None:
            raise SettingError("an early stop has a patience, a target, or both")
        if self.target is not None and not isinstance(self.target, int | float):
            raise SettingError(f"an early stop's target is a value of {self.metric}, not {self.target!r}")


@dataclass(frozen=True)
class KeepBest:
    """End with the model of the round with the best `metric`, rather than that of the last round."""

    metric: str
    mode: Literal["max", "min"] = "max"

    def __post_init__(self) -> None:
        _check_metric(self.metric, self.mode)


class App:
    """Client, initial model, strategy and settings; `umbel run app.py` looks for one in the file.

    - `model`: the initial model, as `Arrays` (or a mapping of names to arrays), or a function that makes it. A tree of
      dictionaries, lists and tuples has names with dots, such as ``layers.0.kernel``; see `umbel.as_tree`. A `Question`
      needs none.
    - `rounds`: 10 by default; of a `Question` 1.
    - `config`: what handlers find in `ctx.config`.
    - `evaluate_every`: after every so many rounds, and after the last, clients evaluate and the operator's test runs; 0
      for never. By default 1; of a `Question` 0. With `evaluate_at_start` also before the first, which is told as round
      0.
    - `evaluate_clients`: who evaluates (a number, a fraction, a sampler); by default up to 100 clients drawn at random.
    - `evaluate_noise`: a transform that hides who evaluates, `umbel.privacy.central_metrics(...)`; strategies that hide
      every client need it where clients evaluate.
    - `early_stop`, `keep_best`: see there. `early_stop` may also be a function, which is called after each round with
      the history so far: where it returns true the run ends; a text is the reason that the run then gives.
    - `checkpoint_every`: the models of every so many rounds are kept in the run's folder, besides those of the last
      three and of the best; 0 for no others.
    - `max_failed_rounds`: the run fails after so many rounds in a row without an update. It also fails where nobody's
      update comes in the first round, and where the last round brings none; see `RunFailed`.
    - `federation`: where it runs unless the caller says otherwise, such as `Simulation(clients=[...])`.
    """

    def __init__(
        self,
        client: Client | None = None,
        *,
        model: Tree | Callable[[], Tree] | None = None,
        strategy: Strategy | None = None,
        rounds: int | None = None,
        config: Mapping[str, Any] | None = None,
        evaluate_every: int | None = None,
        evaluate_clients: Any = None,
        evaluate_noise: Transform | None = None,
        early_stop: EarlyStop | Callable[[Any], Any] | None = None,
        keep_best: KeepBest | str | None = None,
        checkpoint_every: int = 0,
        evaluate_at_start: bool = False,
        max_failed_rounds: int = 3,
        federation: Any = None,
    ) -> None:
        if not isinstance(client, Client):
            raise AppError(
                f"the app's client is {client!r}", hint="Pass the umbel.Client() that your handlers are registered on."
            )
        if not isinstance(strategy, Strategy):
            raise AppError(f"the app's strategy is {strategy!r}", hint="Pass an instance, such as FedAvg(cohort=10).")
        asks = isinstance(strategy, Question)
        if model is None and isinstance(strategy, Question):
            model = strategy.unanswered
        if model is None:
            raise AppError(
                "the app has no model", hint="Pass model=..., the initial arrays or a function that makes them."
            )
        if config is not None and not isinstance(config, Mapping):
            raise SettingError(f"an app's config is a dictionary, not {config!r:.60}")
        if early_stop is not None and not isinstance(early_stop, EarlyStop) and not callable(early_stop):
            raise SettingError(f"an app's early_stop is an EarlyStop(...) or a function, not {early_stop!r:.60}")
        if keep_best is not None and not isinstance(keep_best, KeepBest | str):
            raise SettingError(f"an app's keep_best is a metric's name or a KeepBest(...), not {keep_best!r:.60}")
        if not isinstance(evaluate_at_start, bool):
            raise SettingError(f"an app's evaluate_at_start is True or False, not {evaluate_at_start!r:.60}")
        self.client = client
        self.model = model
        self.strategy = strategy
        self.rounds = _whole("rounds", (1 if asks else 10) if rounds is None else rounds, 1)
        self.config = dict(config or {})
        self.evaluate_every = _whole("evaluate_every", int(not asks) if evaluate_every is None else evaluate_every, 0)
        if evaluate_noise is not None and not (isinstance(evaluate_noise, Transform) and evaluate_noise.private):
            raise SettingError(f"an app's evaluate_noise is a central_metrics(...), not {evaluate_noise!r:.60}")
        self.evaluate_clients = evaluate_clients
        self.evaluate_noise = evaluate_noise
        self.early_stop = early_stop
        self.keep_best = KeepBest(keep_best) if isinstance(keep_best, str) else keep_best
        self.checkpoint_every = _whole("checkpoint_every", checkpoint_every, 0)
        self.evaluate_at_start = evaluate_at_start
        self.max_failed_rounds = _whole("max_failed_rounds", max_failed_rounds, 1)
        self.federation = federation
        self.check_rounds(self.rounds)
        self._test: Callable[[Arrays], Any] | None = None
        self._made: Callable[[], Arrays | None] = _nothing

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": _nothing}  # what was made stays where it is

    def test(self, handler: Test) -> Test:
        """Register the operator's own evaluation: `(model) -> Metrics` or a dictionary of numbers."""
        check_signature(handler, "test", ("model",))
        self._test = handler
        return handler

    def initial_model(self) -> Arrays:
        """Make the initial model. Raises `AppError` where that fails or gives no arrays."""
        made = self.model
        if callable(made):
            try:
                made = made()
            except AppError:
                raise
            except Exception as error:
                raise AppError(f"making the initial model raised {type(error).__name__}: {error}") from error
        if not is_tree(made) or not made:
            raise AppError(
                f"the initial model is {made!r:.80}, not a mapping of names to arrays",
                hint="For a PyTorch module return umbel.torch.arrays(net).",
            )
        try:
            model = made if isinstance(made, Arrays) else Arrays(flat(made))
            self._made = ref(model)
            return model
        except StrategyError as error:
            raise AppError(f"the initial model: {error.message}", hint=error.hint) from error

    def contract(self) -> dict[str, Any]:
        """What a client has to bring to take part, as JSON: see `umbel.core.contract`. Raises `AppError` and
        `StrategyError`.
        """
        model, evaluates = self._made(), self.evaluate_every > 0
        model = self.initial_model() if model is None else model  # a large one is not held twice
        return contract(model, self.strategy, self.client.handlers, self.config, evaluates)

    def check_released(self, private: bool = False) -> None:
        """Raise `AppError` where the strategy hides every client, as its transforms say or what it has asked, and what
        clients say when they evaluate would be told as it is.
        """
        transforms = getattr(self.strategy, "transforms", None)
        if not (private or (isinstance(transforms, Transform) and transforms.private)):
            return
        evaluates = (self.evaluate_every or self.evaluate_at_start) and "evaluate" in self.client.handlers
        if evaluates and self.evaluate_noise is None:
            raise AppError(
                "the strategy hides every client, but what clients say when they evaluate would be told as it is",
                hint="Set evaluate_noise=umbel.privacy.central_metrics(...). Or leave the client's handler out, "
                "and test on data of your own with @app.test.",
            )

    def check_rounds(self, rounds: int) -> None:
        """Raise `AppError` for more rounds than what hides the strategy's clients was made for."""
        transforms = getattr(self.strategy, "transforms", None)
        if isinstance(transforms, Transform) and rounds > transforms.most_answers:
            raise AppError(
                f"the app has {rounds:,} rounds, and what hides its clients was made for {transforms.most_answers:,}",
                hint="Set the transform's rounds to all that there will be: they are accounted for together.",
            )

    def run_test(self, model: Arrays) -> dict[str, float] | None:
        """Run the operator's evaluation; None where there is none."""
        if self._test is None:
            return None
        try:
            result = self._test(model)
        except Exception as error:
            raise AppError(f"the app's test raised {type(error).__name__}: {error}") from error
        values = result.values if isinstance(result, Metrics) else result
        if not isinstance(values, Mapping):
            raise AppError(f"the app's test returned {values!r:.80}, not umbel.Metrics or a dictionary of numbers")
        try:
            return check_metrics(values, "the metrics of the app's test")
        except UpdateRejected as error:
            raise AppError(f"the app's test returned: {error.message}", hint=error.hint) from error


def _check_metric(metric: Any, mode: Any) -> None:
    part = metric.partition(".")[0] if isinstance(metric, str) else None
    if part not in ("train", "evaluate", "test"):
        raise SettingError(
            f"{metric!r} is not the name of a metric", hint="Write test.accuracy, evaluate.accuracy or train.loss, say."
        )
    if mode not in ("max", "min"):
        raise SettingError(f"a metric is watched for its 'max' or its 'min', not {mode!r}")


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SettingError(f"an app's {name} is a whole number of at least {least}, not {value!r}")
    return value
