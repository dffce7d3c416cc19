"""What a data holder runs: the client's handlers, and the context they get."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..errors import AppError, ClientId, UnusedCorrection
from .arrays import Array, Arrays, wide
from .correction import Correction
from .randomness import Key

Handler = TypeVar("Handler", bound=Callable[..., Any])
Gradient = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""Gives the gradient of a loss at weights, for each of their names."""


class LocalCorrection:
    """What the strategy needs the training loop to do beside its own; a loop that never takes it is an error.

    `anchor` is the model that was sent, `reports` are metrics that the update has to bring.
    """

    __slots__ = ("_correction", "anchor", "reports", "taken")

    def __init__(self, correction: Correction, anchor: Arrays) -> None:
        self._correction = correction
        self.anchor = anchor
        self.reports = correction.reports
        self.taken = correction.optional

    def take(self) -> Correction:
        """The correction, whole; the caller undertakes to apply all of it."""
        self.taken = True
        return self._correction

    def added(self) -> Correction:
        """A correction that is no more than a term to be added to the loss; the caller undertakes to add it. Raises
        `UnusedCorrection` for one that is more.
        """
        if not self._correction.additive:
            raise UnusedCorrection(
                f"the strategy needs more of the training loop than a term in its loss: {self._correction.rest()}",
                hint="Train with umbel.torch.fit(net, data, ctx), or apply all that ctx.correction.take() says: see "
                "umbel.Correction.",
            )
        return self.take()

    def corrected(self, gradient: Gradient, weights: Mapping[str, Array]) -> dict[str, Array]:
        """What to step against at `weights`, all told: `gradient` gives that of the loss of the batch at any weights,
        and is called up to three times. Raises `UnusedCorrection` for a procedure, which is more than a gradient.
        """
        if (procedure := self._correction.procedure) is not None:
            raise UnusedCorrection(
                f"the strategy has clients train by the procedure {procedure!r}, of which a gradient is only a part",
                hint="Train with umbel.torch.fit(net, data, ctx), or do all that ctx.correction.take() says.",
            )
        correction = self.take()
        found = dict(gradient(weights))
        if correction.perturbation is not None:
            step, share = correction.perturbation
            ahead = gradient({n: w + step * found[n] if n in found else w for n, w in weights.items()})
            found = {n: (1 - share) * g + share * ahead[n] for n, g in found.items()}
        if correction.control:
            at = gradient({n: self.anchor.get(n, w) for n, w in weights.items()})
            found = {n: g - at[n] if n in self.anchor else g for n, g in found.items()}
        added = self._added(correction, weights)
        return {n: correction.scale * g + added.get(n, 0) for n, g in found.items()}

    def gradient(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """What to add to the gradient at `weights`: ``proximal * (w - anchor) + linear``, one array a parameter in
        `weights`. Raises `UnusedCorrection` where that is not all.
        """
        return self._added(self.added(), weights)

    def _added(self, correction: Correction, weights: Mapping[str, Array]) -> dict[str, Array]:
        result: dict[str, Array] = {}
        for name, value in weights.items():
            if self.anchor.roles.get(name) != "parameter":
                continue
            gradient = correction.proximal * np.subtract(value, self.anchor[name], dtype=wide(self.anchor[name].dtype))
            if correction.linear is not None and name in correction.linear:
                gradient = gradient + correction.linear[name]
            result[name] = gradient
        return result


class Context:
    """What a handler gets beside the model and the data.

    - `client`, `round`, `kind`: who works on what.
    - `config`: the app's settings with the ask's laid over them.
    - `inbox`: arrays that the strategy sends to this client alone.
    - `state`: a dictionary that the client finds again at its next task; arrays, numbers, text and containers of them.
      It is kept only if the task's result is.
    - `key`: the task's own key; `rng`: a numpy generator made from it; `random`, numpy and torch are seeded from it as
      well.
    - `correction`: what the strategy needs the training loop to do beside its own, or None.
    - `personal`: the names of the model's arrays that are this client's own, and are not sent.
    - `device`: where to compute, such as `"cpu"` or `"cuda:0"`.
    - `step()`: call it now and then in a long loop: it shows progress, and ends the task when nobody wants it any more.
    - `account(release)`: tell the holder what noise of the handler's own has spent; `accounted` has all of it.
    """

    __slots__ = (
        "_on_step",
        "_rng",
        "accounted",
        "client",
        "config",
        "correction",
        "device",
        "inbox",
        "key",
        "kind",
        "personal",
        "round",
        "state",
    )

    def __init__(
        self,
        *,
        client: ClientId,
        round: int,
        kind: str,
        config: Mapping[str, Any],
        key: Key,
        inbox: Arrays,
        state: dict[str, Any],
        correction: LocalCorrection | None = None,
        personal: tuple[str, ...] = (),
        device: str = "cpu",
        on_step: Callable[[], None] | None = None,
    ) -> None:
        self.client = client
        self.round = round
        self.kind = kind
        self.config = config
        self.key = key
        self.inbox = inbox
        self.state = state
        self.correction = correction
        self.personal = personal
        self.device = device
        self.accounted: list[tuple[Mapping[str, Any], int]] = []
        self._on_step = on_step
        self._rng: np.random.Generator | None = None

    @property
    def rng(self) -> np.random.Generator:
        """A numpy generator of this task's own."""
        if self._rng is None:
            self._rng = self.key.derive("rng").generator()
        return self._rng

    def step(self) -> None:
        """Show progress; raises where the task is not wanted any more."""
        if self._on_step is not None:
            self._on_step()

    def account(self, release: Any, times: int = 1) -> None:
        """Tell what noise that the handler has drawn itself costs: a `NoisyRelease` of the unit ``"example"``, made so
        many times, of which all that the task answers is made.

        A node keeps it in its ledger, with the answer; a simulation, and whatever else hosts clients, drops it. It
        never goes to the server. What is told anew adds up with what was told.
        """
        told = release.plain() if hasattr(release, "plain") else dict(release)
        if told.get("unit") != "example":
            raise AppError(
                f"ctx.account takes releases of the unit 'example', not {told.get('unit')!r:.60}",
                hint="What hides the whole client is a transform of the ask, which says what it costs by itself.",
            )
        if type(times) is not int or times < 1:
            raise AppError(f"a release is made a whole number of times, not {times!r:.60}")
        if self.accounted and self.accounted[-1][0] == told:
            times += self.accounted.pop()[1]
        self.accounted.append((told, times))


class Unwanted(BaseException):
    """Ends a task that nobody waits for any more, from within `Context.step`.

    It is no `Exception`, so that a handler's own ways with errors let it pass.
    """


class Client:
    """The handlers of a data holder, registered by decorators.

    `data(source)` makes the data, `train(model, data, ctx)` returns an `Update`, `evaluate(model, data, ctx)` returns
    `Metrics`, and a handler registered with `query(name)` answers anything else that a strategy asks. Without a data
    handler `data` is the source itself. A handler with other parameters is an `AppError` at once.

    `programs` are the Python files, beside the client's module, that handlers start as programs of their own.
    """

    def __init__(self) -> None:
        self.programs: tuple[Path, ...] = ()
        self.load: Callable[[Any], Any] | None = None
        self.handlers: dict[str, Callable[..., Any]] = {}

    def data(self, handler: Handler) -> Handler:
        """Register how to make the data from a source; it may be dropped and rebuilt at any time, and must not be
        changed.
        """
        check_signature(handler, "data", ("source",))
        if self.load is not None:
            raise AppError("this client has two data handlers", hint="Keep one function under @client.data.")
        self.load = handler
        return handler

    def train(self, handler: Handler) -> Handler:
        """Register how to train: `(model, data, ctx) -> Update`."""
        return self._register("train", handler)

    def evaluate(self, handler: Handler) -> Handler:
        """Register how to evaluate: `(model, data, ctx) -> Metrics`."""
        return self._register("evaluate", handler)

    def query(self, name: str) -> Callable[[Handler], Handler]:
        """Register how to answer asks of kind `query:<name>`: `(model, data, ctx) -> Update`."""
        if not isinstance(name, str) or not name:
            raise AppError(
                "client.query needs a name",
                hint='Write @client.query("statistics") above the function, with the name in parentheses.',
            )
        return lambda handler: self._register(f"query:{name}", handler)

    def release(self) -> None:
        """Let go of what handlers hold in this process beside its memory, such as programs that they have started:
        called once a run needs them no more.
        """

    def _register(self, kind: str, handler: Handler) -> Handler:
        check_signature(handler, kind, ("model", "data", "ctx"))
        if kind in self.handlers:
            raise AppError(f"this client has two handlers for {kind}")
        self.handlers[kind] = handler
        return handler


def check_signature(handler: Any, kind: str, wanted: tuple[str, ...]) -> None:
    """Raise `AppError` unless `handler` is a plain function that can be called with the wanted parameters."""
    shape = f"({', '.join(wanted)})"
    if not callable(handler):
        raise AppError(f"the {kind} handler is {handler!r}, not a function", hint=f"Decorate a function of {shape}.")
    try:
        inspect.signature(handler).bind(*wanted)
    except TypeError as error:
        name = getattr(handler, "__name__", repr(handler))
        raise AppError(
            f"the {kind} handler {name}{inspect.signature(handler)} cannot be called with {shape}: {error}",
            hint=f"Write it as `def {name}{shape}`.",
        ) from None
    except ValueError:
        return  # a builtin without a signature
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__):
        raise AppError(f"the {kind} handler is async; handlers are plain functions")
