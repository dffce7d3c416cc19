"""What a model and single updates give away of clients' data: attacks that holders can make on themselves.

An app says what is to be attacked by a handler ``@client.query("attack")``, which gets the model, the client's data and
``ctx``, and returns an `Update` with float arrays: `members`, a score of each example that the client trains on, and
`others`, of examples that nobody trains on, such as held out ones; the higher, the better the model does (losses with
their sign turned). Either may be empty. With `inputs`, a row for each example that it trains on, it is also seen what
its update gives away of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.answer import Answer
from ..core.app import App
from ..core.arrays import Arrays
from ..core.client import Context
from ..core.randomness import Key
from ..core.transform import chain
from ..core.update import NO_ARRAYS, Like, Receipt, Update, as_delta
from ..errors import AppError, ClientId
from ..privacy.inversion import invert, likeness
from ..privacy.membership import MembershipInference, infer_membership
from ..privacy.secure import Secured
from ..simulation.federation import Simulation

STAGES = ("trained", "sent", "released")


@dataclass(frozen=True)
class Victims:
    """The clients of an app in a simulation, each of which attacks itself. `config` is that of the run."""

    app: App
    federation: Simulation
    config: Mapping[str, Any]

    def told(self, client: ClientId, kind: str, model: Arrays) -> Update:
        """What a handler of a client returns for a model. Raises `AppError` where there is none."""
        if kind not in self.app.client.handlers:
            raise AppError(
                f"the app's client has no handler for {kind}, which says what is to be attacked",
                hint='Write @client.query("attack"): see docs/privacy.md.',
            )
        load, source = self.app.client.load, self.federation.source(client)
        ctx = Context(
            client=client, round=1, kind=kind, config=self.config, key=Key.from_seed(0).derive(str(client)),
            inbox=NO_ARRAYS, state={},
        )  # fmt: skip
        found = self.app.client.handlers[kind](model, source if load is None else load(source), ctx)
        if not isinstance(found, Update):
            raise AppError(f"the handler for {kind} returned {found!r:.60}, not an umbel.Update")
        return found

    def membership(self, model: Arrays, *, confidence: float = 0.95) -> MembershipInference:
        """What the scores of all clients' members and others give away."""
        scores: dict[str, list[Any]] = {"members": [], "others": []}
        for client in self.federation.clients:
            arrays = self.told(client, "query:attack", model).arrays
            for name, found in scores.items():
                found.append(np.ravel(arrays.get(name, np.zeros(0))))
        return infer_membership(*(np.concatenate(found) for found in scores.values()), confidence=confidence)

    def inversion(self, model: Arrays, clients: Iterable[ClientId] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """For each example of clients (the first 100, by default) the largest cosine between it and what its client's
        update gives away: as it was `trained`, as it is `sent` to whoever adds up (nothing, under masks), and as it
        would be `released` if nobody else had come, which is all that is left where all others are known. Empty where
        there are no `inputs`.
        """
        found: dict[str, list[Any]] = {stage: [] for stage in STAGES}
        for client in [*self.federation.clients][:100] if clients is None else clients:
            inputs = self.told(client, "query:attack", model).arrays.get("inputs", ())
            if len(inputs):
                for stage, difference in zip(STAGES, self._stages(client, model), strict=True):
                    rows = [each for each in invert(difference).values() if each.shape[1] == np.size(inputs[0])]
                    likest = max(
                        (likeness(each, inputs) for each in rows), key=np.median, default=np.zeros(len(inputs))
                    )
                    found[stage].append(likest)
        return {stage: np.hstack(each) if each else np.zeros(0) for stage, each in found.items()}

    def _stages(self, client: ClientId, model: Arrays) -> tuple[Mapping[str, Any], ...]:
        expects, key = Like(aux=None), Key.from_seed(0)
        trained = as_delta(self.told(client, "train", model), expects, model)
        if isinstance(self.app.strategy, Secured):
            clients = len(self.federation.clients)
            return trained.arrays, NO_ARRAYS, self.app.strategy.alone(trained, model, clients, key)
        steps = chain(getattr(self.app.strategy, "transforms", ()))
        state = steps.init(expects.schema(model))
        params = steps.send(state)
        sent = steps.decode(steps.encode(trained, params, None, key)[0], params, expects.schema(model))
        receipts = [Receipt(f"0.{client}", client, 1.0, {})]
        alone = Answer(Arrays(sent.arrays), Arrays(sent.aux), receipts=receipts)
        return trained.arrays, sent.arrays, steps.finish(alone, state, key)[0].value
