from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel import App, Client, FedAdam, FedAvg, FedProx, Strategy, clip_by_norm, mean, top_k
from umbel.core.ask import Ask
from umbel.core.strategy import Asks, State
from umbel.errors import SettingError
from umbel.runs.settings import apply, names

CONFIG: dict[str, Any] = {
    "lr": 0.5,
    "steps": 3,
    "shuffle": True,
    "device": "cpu",
    "limit": None,
    "sizes": [1, 2],
    "shape": (1, 2),
    "optimizer": {"lr": 0.1, "name": "sgd"},
    "half": np.float32(0.5),
    "a.b": 1,
    "rounds": 7,
    "table": np.zeros(2),
}


def app(strategy: Strategy | None = None) -> App:
    return App(Client(), model={"w": [0.0]}, strategy=strategy or FedAvg(cohort=10), config=CONFIG)


@pytest.mark.parametrize(
    ("assignment", "config"),
    [
        ("lr=1", {"lr": 1.0}),
        (" lr = 1e-3 ", {"lr": 1e-3}),
        ("steps=7", {"steps": 7}),
        ("shuffle=FALSE", {"shuffle": False}),
        ("device=cuda:0=x", {"device": "cuda:0=x"}),
        ("device=", {"device": ""}),
        ("limit=3", {"limit": 3}),
        ("limit=true", {"limit": True}),
        ("limit=cuda", {"limit": "cuda"}),
        ("sizes=[3]", {"sizes": [3]}),
        ("shape=4,5", {"shape": (4, 5)}),
        ("optimizer.lr=2", {"optimizer": {"lr": 2.0, "name": "sgd"}}),
        ("half=2", {"half": 2.0}),
        ("a.b=2", {"a.b": 2}),
        ("config.rounds=4", {"rounds": 4}),
    ],
)
def test_config_is_set_and_keeps_its_types(assignment: str, config: dict[str, Any]) -> None:
    changed = apply(app(), [assignment])
    assert changed.config == config
    ((key, value),) = config.items()
    assert type(changed.config[key]) is type(value)
    assert changed.rounds is None


def test_assignments_add_up_and_the_last_wins() -> None:
    changed = apply(app(), ["optimizer.lr=1", "optimizer.name=adam", "lr=2", "lr=3", "rounds=9"])
    assert changed.config == {"optimizer": {"lr": 1.0, "name": "adam"}, "lr": 3.0}
    assert changed.rounds == 9
    assert CONFIG["optimizer"] == {"lr": 0.1, "name": "sgd"}


def test_a_strategy_is_exchanged_and_the_app_left_alone() -> None:
    before = app(FedAvg(cohort=10, fold=mean(), transforms=(top_k(0.1), clip_by_norm(1.0))))
    changed = apply(
        before,
        [
            "strategy.cohort=0.5",
            "strategy.server.lr=0.1",
            "strategy.window.close_after=5",
            "strategy.window.late=keep",
            "strategy.transforms.parts.1.norm=2",
        ],
    ).app
    assert changed.strategy == FedAvg(
        cohort=0.5,
        fold=mean(),
        transforms=(top_k(0.1), clip_by_norm(2.0)),
        server=before.strategy.server.__class__(0.1),  # type: ignore[attr-defined]
        window=before.strategy.window.__class__(close_after=5, late="keep"),  # type: ignore[attr-defined]
    )
    assert before.strategy.cohort == 10  # type: ignore[attr-defined]
    assert apply(changed, ["strategy.window.close_after=none"]).app.strategy.window.close_after is None  # type: ignore[attr-defined]


def test_fields_of_other_strategies_are_known() -> None:
    assert apply(app(FedProx(mu=0.1)), ["strategy.mu=1"]).app.strategy == FedProx(mu=1.0)
    assert apply(app(FedAdam(lr=0.1)), ["strategy.server.beta1=0.5"]).app.strategy == FedAdam(lr=0.1, beta1=0.5)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("lr=fast", "it takes a number, not 'fast'"),
        ("lr=nan", "it takes a number, not 'nan'"),
        ("steps=3.5", "it takes a whole number, not '3.5'"),
        ("steps=true", "it takes a whole number, not 'true'"),
        ("shuffle=1", "it takes true or false, not '1'"),
        ("sizes=3", "it takes a list such as [1, 2], not '3'"),
        ("rounds=0", "it takes a whole number of at least 1, not '0'"),
        ("rounds=many", "it takes a whole number, not 'many'"),
        ("strategy.cohort=abc", "it takes a number, not 'abc'"),
        ("strategy.cohort=0", "cohort must be a whole number of at least 1, not 0"),
        ("strategy.window.late=maybe", "it takes drop or keep, not 'maybe'"),
        ("strategy.window.quorum=-1", "quorum is a whole number of at least 0, not -1"),
        ("strategy.window.close_after=x", "it takes a whole number or none, not 'x'"),
        ("strategy.server.lr=-1", "lr"),
        ("strategy.server=3", "a sgd cannot be set from the command line"),
        ("optimizer=3", "a dict cannot be set from the command line"),
        ("table=3", "a ndarray cannot be set from the command line"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(SettingError) as caught:
        apply(app(), [assignment])
    assert caught.value.message.startswith(f"--set {assignment}: ")
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("lrr", "lr"),
        ("cohort", "strategy.cohort"),
        ("server.lr", "strategy.server.lr"),
        ("strategy.window.close", "strategy.window.close_after"),
        ("optimizer.lrr", "optimizer.lr"),
        ("strategy", None),
        ("lr.x", None),
        ("zzz", None),
    ],
)
def test_an_unknown_name_is_refused_with_what_there_is(name: str, guess: str | None) -> None:
    with pytest.raises(SettingError) as caught:
        apply(app(), [f"{name}=1"])
    assert caught.value.message == f"there is no setting {name!r}"
    hint = caught.value.hint or ""
    if guess is not None:
        assert guess in hint.splitlines()[0].removeprefix("Did you mean ").rstrip("?").split(" or ")
    listed = hint[hint.index("config ") :].replace(",", " ").split()
    assert set(names(app())) <= set(listed)


@pytest.mark.parametrize("assignment", ["lr", "=3", ""])
def test_what_is_no_assignment_is_refused(assignment: str) -> None:
    with pytest.raises(SettingError, match="is not KEY=VALUE"):
        apply(app(), [assignment])


class Plain(Strategy):
    """A strategy that is no dataclass has nothing to set."""

    def round(self, state: State, r: int) -> Asks:
        yield Ask(clients=1, model=state.model)
        return state


def test_a_strategy_without_fields_has_no_settings() -> None:
    assert not [name for name in names(app(Plain())) if name.startswith("strategy")]
    with pytest.raises(SettingError, match="there is no setting"):
        apply(app(Plain()), ["strategy.cohort=3"])


@given(st.sampled_from(names(app())), st.text(max_size=12))
def test_any_text_is_taken_or_refused(name: str, text: str) -> None:
    with suppress(SettingError):
        assert names(apply(app(), [f"{name}={text}"]).app) == names(app())


@given(st.floats(allow_nan=False), st.integers(-(10**9), 10**9))
def test_numbers_arrive_as_they_are(number: float, whole: int) -> None:
    changed = apply(app(), [f"lr={number!r}", f"steps={whole}"])
    assert {**CONFIG, **changed.config}["lr"] == number
    assert {**CONFIG, **changed.config}["steps"] == whole
