"""FedAvg: average what clients learned, by weight, and step the model by it (McMahan et al. 2017, arXiv 1602.05629)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from ..core.answer import Answer
from ..core.arrays import Array, Arrays, Schema, Spec, is_floating, wide
from ..core.ask import Ask
from ..core.correction import Correction
from ..core.elementwise import weighted_mean
from ..core.fold import Fold
from ..core.optimizers import ServerOptimizer, Slots, sgd
from ..core.schedules import in_round
from ..core.strategy import Asks, State, Strategy
from ..core.sums import magnitude
from ..core.transform import Transform, chain
from ..core.update import Like
from ..core.window import Window
from ..errors import StrategyError
from ..samplers.shorthand import as_sampler


@dataclass(frozen=True, kw_only=True)
class FedAvg(Strategy):
    """Each round a cohort trains the model; the fold of their differences is what the server optimiser steps by.

    `cohort` is a number, a fraction or a sampler of clients. Buffers take the fold of their values. `config` is laid
    over the app's; a value of it, and a rate of the server's, may be a function of the round (`umbel.cosine`). A fold,
    transforms, a server optimiser and a window make most of the field's algorithms out of this one. The server keeps
    float32 masters of 16-bit parameters. It needs nothing of clients.
    """

    collects: ClassVar[bool] = False
    """Whether it works on updates by client, as the fold `collect` gives them."""
    cohort: Any = 10
    fold: Fold = field(default_factory=weighted_mean)
    transforms: Transform | Sequence[Transform] = ()
    server: ServerOptimizer = field(default_factory=sgd)
    window: Window = field(default_factory=Window)
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        as_sampler(self.cohort)
        for name, kind in (("fold", Fold), ("server", ServerOptimizer), ("window", Window), ("config", Mapping)):
            if not isinstance(value := getattr(self, name), kind):
                raise StrategyError(f"{type(self).__name__}'s {name} is {value!r:.60}, not a {kind.__name__}")
        own = type(self)
        if self.fold.keeps_aux and own.stepped is FedAvg.stepped and own.round is FedAvg.round:
            raise StrategyError(
                f"{type(self).__name__} steps by what updates come to, and {self.fold.name} keeps them apart",
                hint="Use a fold that comes to one answer, such as weighted_mean().",
            )
        if own.collects and not self.fold.keeps_aux:
            raise StrategyError(
                f"{own.__name__} works on every update by itself, and {self.fold.name} makes one answer of them",
                hint="Leave its fold as it is.",
            )
        known = [n for n in (self.cohort, self.window.close_after) if type(n) is int]
        if known and min(known) < self.fold.least:
            raise StrategyError(
                f"{self.fold} needs {self.fold.least} updates, and a round has {min(known)} at most",
                hint="Ask more clients, or have the fold withstand fewer malicious ones.",
            )
        transform = chain(self.transforms)
        object.__setattr__(self, "transforms", transform)
        transform.check(self.fold, Like())
        if transform.private:  # or it would be found out in the first round
            Ask(clients=self.cohort, fold=self.fold, transforms=transform, window=self.window)
        if transform.private and (own.round is not FedAvg.round or own.stepped is not FedAvg.stepped):
            raise StrategyError(
                f"{transform.parts[0].name} under {own.__name__}, which may go by how many clients came",
                hint="Use FedAvg, with a server optimiser.",
            )

    def correction(self) -> Correction | None:
        """What the training loop has to add to its loss."""
        return None

    def start(self, model: Arrays) -> State:
        masters = masters_of(model)
        return State(model, masters=masters, slots=self.server.init({**model.of_role("parameter"), **masters}))

    def in_round(self, r: int) -> FedAvg:
        config, server = in_round(self.config, r), self.server.in_round(r)
        same = config is self.config and server is self.server
        return self if same else replace(self, config=config, server=server)

    def round(self, state: State, r: int) -> Asks:
        answer = yield self.ask(state, r)
        return self.apply(state, answer)

    def ask(self, state: State, r: int) -> Ask:
        """What the cohort of round `r` is asked."""
        return Ask(
            clients=self.cohort,
            model=state.model,
            config=self.config,
            correction=self.correction(),
            fold=self.fold.for_round(state.parts().get("memory"), state.model, r),
            transforms=self.transforms,
            window=self.window,
        )

    def apply(self, state: State, answer: Answer) -> State:
        """The state after the answer, with what the fold remembers of it."""
        memory = self.fold.remember(state.parts().get("memory"), answer)
        after = self.stepped(state, answer)
        return after if memory is None else after.replace(memory=memory)

    def stepped(self, state: State, answer: Answer) -> State:
        """The state after the server optimiser's step by the answer; the same state for an empty one."""
        model: Arrays = state.model
        value: Arrays = answer.value
        if not value:
            return state  # nobody's update, and the window's quorum is 0
        if value.is_computed and self.server.elementwise:
            return self._by_stretches(state, value)
        masters = {n: state.masters.get(n, a) for n, a in model.of_role("parameter").items() if n in value}
        with np.errstate(all="ignore"):  # what is not finite is an error by name
            difference = {n: value[n].astype(m.dtype, copy=False) for n, m in masters.items()}
            stepped, slots = self.server.step(masters, difference, state.slots)
            _check_finite(stepped, slots)
            changed = {n: _held(n, v, model[n].dtype) for n, v in {**value, **stepped}.items()}
        kept = {n: stepped.get(n, m) for n, m in state.masters.items()}
        return state.replace(model=model.replace(changed), masters=kept, slots=slots)

    def _by_stretches(self, state: State, value: Arrays) -> State:
        """The same of a model so large that nobody holds it: what is computed once it is written."""
        model: Arrays = state.model
        schema, roles = model.schema, model.roles

        def stepped(slot: str | None, name: str, start: int, stop: int) -> Array:
            """Of a slot, or of the parameters where there is no slot; buffers are as the answer has them."""
            if roles[name] != "parameter":
                return value.stretch(name, start, stop)
            master = _stretch(state.masters if name in state.masters else model, name, start, stop)
            before = {s: {name: _stretch(arrays, name, start, stop)} for s, arrays in state.slots.items()}
            if name not in value:
                return master if slot is None else before[slot][name]
            difference = value.stretch(name, start, stop).astype(master.dtype, copy=False)
            with np.errstate(all="ignore"):  # what is not finite is an error by name
                parameters, slots = self.server.step({name: master}, {name: difference}, before)
                _check_finite(parameters, slots)
            return parameters[name] if slot is None else slots[slot][name]

        def held(name: str, start: int, stop: int) -> Array:
            if name not in value:
                return model.stretch(name, start, stop)
            with np.errstate(all="ignore"):
                return _held(name, stepped(None, name, start, stop), schema[name].dtype)

        def computed(arrays: Mapping[str, Array], slot: str | None) -> Arrays:
            specs = {n: Spec(schema[n].shape, wide(schema[n].dtype), "parameter") for n in arrays}
            return Arrays.computed(Schema(specs), partial(stepped, slot))

        slots = {slot: computed(arrays, slot) for slot, arrays in state.slots.items()}
        masters = computed(state.masters, None)
        return state.replace(model=Arrays.computed(schema, held), masters=masters, slots=slots)


def _stretch(arrays: Mapping[str, Array], name: str, start: int, stop: int) -> Array:
    if isinstance(arrays, Arrays):
        return arrays.stretch(name, start, stop)
    return arrays[name].reshape(-1)[start:stop]


def _held(name: str, array: Array, dtype: np.dtype[Any]) -> Array:
    """The array in the dtype that the model has for it. Raises `StrategyError` where that cannot hold its values."""
    held = array.astype(dtype, copy=False)
    if array.dtype == dtype or dtype.kind == "b":
        return held
    if not (magnitude(held) < math.inf if is_floating(dtype) else np.array_equal(held, array)):
        raise StrategyError(
            f"the server's step made {name!r} larger than {dtype.name} holds",
            hint="Did training diverge? Lower the learning rate, or clip; or give the model a wider dtype. "
            "The last checkpoint is whole.",
        )
    return held


def _check_finite(stepped: Mapping[str, Array], slots: Slots) -> None:
    for kept in (stepped, *slots.values()):
        for name, array in kept.items():
            if not magnitude(array) < math.inf:
                raise StrategyError(
                    f"the server's step made {name!r} infinite or NaN: training diverged",
                    hint="Lower the server's or the clients' learning rate, or clip; the last checkpoint is whole.",
                )


def masters_of(model: Arrays) -> dict[str, Array]:
    """16-bit parameters in float32, for they would lose small steps; all others are their own masters."""
    narrow = {n: a for n, a in model.of_role("parameter").items() if a.dtype != wide(a.dtype)}
    return {n: np.asarray(a, wide(a.dtype)) for n, a in narrow.items()}
