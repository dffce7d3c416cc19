"""What adapters cost a client over conversion by hand: python -m benchmarks.adapters

A client's whole task, from the model that it is sent to its update: the adapter's, beside the same written by hand for
that one estimator. A row prints the least seconds of some repeats of each, and their ratio; the bar is 1.2.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import umbel
from umbel.core.client import Context
from umbel.core.randomness import Key

BAR = 1.2
Task = Callable[[], Any]


def context() -> Context:
    """What a handler gets."""
    return Context(client=0, round=1, kind="train", config={}, key=Key.from_seed(1), inbox=umbel.Arrays(), state={})


def rows(count: int, features: int = 30) -> tuple[Any, Any]:
    """Rows of two classes."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(count, features))
    return x, (x[:, 0] > 0).astype(np.int64)


def linear(count: int) -> tuple[Task, Task]:
    """SGD, one pass."""
    from sklearn.linear_model import SGDClassifier

    x, y = rows(count)
    native = umbel.sklearn.model(lambda: SGDClassifier(loss="log_loss"), x.shape[1], [0, 1])
    model = native()

    def by_hand() -> Any:
        estimator = SGDClassifier(loss="log_loss", random_state=1)
        estimator.classes_, estimator.t_ = np.array([0, 1]), float(model["t_"])
        estimator.coef_, estimator.intercept_ = model["coef_"].copy(), model["intercept_"].copy()
        estimator.partial_fit(x, y, classes=[0, 1])
        found = {"coef_": estimator.coef_, "intercept_": estimator.intercept_, "t_": np.array(estimator.t_)}
        return umbel.Update(found, len(y), {"accuracy": float((estimator.predict(x) == y).mean())})

    return lambda: umbel.sklearn.fit(native.loaded(model), x, y, context()), by_hand


def trees(count: int) -> tuple[Task, Task]:
    """XGBoost, one boosting round on top of twenty."""
    import xgboost

    x, y = rows(count)
    params = {"objective": "binary:logistic", "max_depth": 6, "nthread": 1}
    model = umbel.xgboost.arrays(xgboost.train(params, xgboost.DMatrix(x, y), 20))

    def by_hand() -> Any:
        booster = xgboost.Booster()
        booster.load_model(bytearray(model["booster"].tobytes()))
        matrix = xgboost.DMatrix(x, y)
        told: dict[str, Any] = {}
        after = xgboost.train(
            params, matrix, 1, xgb_model=booster, evals=[(matrix, "own")], evals_result=told, verbose_eval=False
        )
        return umbel.Update({"trees": np.frombuffer(bytes(after[20:].save_raw("json")), np.uint8)}, len(y))

    return lambda: umbel.xgboost.fit(model, (x, y), context(), params), by_hand


def boosting(count: int) -> tuple[Task, Task]:
    """LightGBM, one boosting round on top of twenty."""
    import lightgbm

    x, y = rows(count)
    params = {"objective": "binary", "num_threads": 1, "verbosity": -1, "deterministic": True, "force_row_wise": True}
    made = lightgbm.train(params, lightgbm.Dataset(x, y), 20)
    model, text = umbel.lightgbm.arrays(made), made.model_to_string()

    def by_hand() -> Any:
        before = lightgbm.Booster(model_str=text).predict(x, raw_score=True, num_threads=1)
        own = lightgbm.Dataset(x, y, init_score=before, free_raw_data=False)
        after = lightgbm.train(params, own, 1, valid_sets=[own], valid_names=["own"])
        return umbel.Update({"trees": np.frombuffer(after.model_to_string().encode(), np.uint8)}, len(y))

    return lambda: umbel.lightgbm.fit(model, (x, y), context(), params), by_hand


def least(tasks: tuple[Task, ...], repeats: int) -> list[float]:
    """The least processor seconds of each task, taken by turns: what slows the machine down slows all of them."""
    seconds: list[list[float]] = [[] for _ in tasks]
    for _ in range(repeats):
        for task, taken in zip(tasks, seconds, strict=True):
            began = time.process_time()
            task()
            taken.append(time.process_time() - began)
    return [min(taken) for taken in seconds]


def measured(repeats: int = 100) -> Iterator[tuple[str, float, float]]:
    """For each adapter its name, and the seconds of its task and of that by hand."""
    tasks = {"sklearn": linear, "xgboost": trees, "lightgbm": boosting}
    for name, make in tasks.items():
        for count in (200, 5000):
            try:
                sides = make(count)
            except ImportError:
                continue
            least(sides, 3)  # to warm up
            own, hand = least(sides, repeats)
            yield f"{name}, {count} rows", own, hand


if __name__ == "__main__":
    print(f"{'adapter':22} {'its task':>10} {'by hand':>10} {'ratio':>6}")
    for name, own, hand in measured():
        note = "" if own <= BAR * hand else f"  above {BAR}"
        print(f"{name:22} {1e3 * own:7.2f} ms {1e3 * hand:7.2f} ms {own / hand:6.2f}{note}")
