"""What Keras and TensorFlow draw in a task depends on the task's seed alone."""

from __future__ import annotations

import gc
import importlib
import random
import subprocess
import sys
import types
from hashlib import blake2b
from importlib.util import find_spec
from itertools import count

import numpy as np
import pytest

from umbel.work.generators import MOST, PHILOX, Keras, Tensorflow
from umbel.work.seeding import generators_kept, seed_all

NAMES = count()


class State:
    def __init__(self, value):
        self.value = list(value)

    def assign(self, value):
        self.value = [int(v) for v in value]


def stand_in():
    """As much of Keras as has generators."""

    class SeedGenerator:
        def __init__(self, seed=None, name=None):
            self.name = name or f"seed_generator_{next(NAMES)}"
            self._initial_seed = seed
            self.state = State([random.randint(1, 10**9) if seed is None else seed, 0])

        def get_config(self):
            return {"seed": self._initial_seed}

        def next(self):
            self.state.value[1] += 1
            return tuple(self.state.value)

    keras = types.ModuleType("keras")
    keras.random = types.SimpleNamespace(SeedGenerator=SeedGenerator)
    keras.utils = types.SimpleNamespace(set_random_seed=lambda seed: setattr(keras, "seeded", seed))
    keras.ops = types.SimpleNamespace(convert_to_numpy=lambda state: np.array(state.value))
    return keras


@pytest.fixture
def keras(monkeypatch):
    monkeypatch.setattr("umbel.work.seeding._keras", Keras())
    monkeypatch.setitem(sys.modules, "keras", stand_in())
    return sys.modules["keras"]


def test_a_layers_generator_begins_each_task_anew_whatever_was_done_before(keras):
    kind = keras.random.SeedGenerator
    net, fixed = [kind(), kind()], kind(7)
    with generators_kept():

        def task(seed):
            seed_all(seed)
            made = kind()
            return [g.next() for g in (*net, fixed, made, made)]

        first = task(1)
        drawn = blake2b(b"1/0", digest_size=8).digest()
        assert first[0][0] == 1 + int.from_bytes(drawn, "big") % MOST  # not 0, which Keras takes for no seed
        assert task(2)[:2] != first[:2]
        assert task(1) == first
        assert first[0] != first[1]
        assert first[2] == (7, 1)
        assert made_config(kind) == {"seed": None}
    assert keras.seeded == 1


def made_config(kind):
    return kind().get_config()


def test_what_was_drawn_outside_of_a_run_goes_on_after_it(keras):
    net = keras.random.SeedGenerator()
    before = net.next()
    with generators_kept():
        seed_all(1)
        net.next()
    assert net.next() == (before[0], before[1] + 1)
    random.seed(5)
    drawn = keras.random.SeedGenerator().next()
    random.seed(5)
    assert drawn == (random.randint(1, 10**9), 1)


class Generator:
    """A generator of TensorFlow's, as far as it is seeded and kept."""

    algorithm = 2

    def __init__(self, value):
        self.state = State([value])
        self.state.numpy = lambda: np.array(self.state.value)

    @classmethod
    def from_seed(cls, value):
        return cls(value)

    def reset_from_seed(self, value):
        self.state.assign([value])


@pytest.fixture
def tensorflow(monkeypatch):
    """TensorFlow, as much of it as is seeded: `(its context, its module of generators)`."""
    context = types.SimpleNamespace(_seed=None, _rng=None)
    generators = types.SimpleNamespace(global_generator=None, Generator=Generator)
    generators.set_global_generator = lambda made: setattr(generators, "global_generator", made)
    random = types.SimpleNamespace(set_seed=lambda seed: setattr(context, "_seed", seed))
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(random=random))
    here = types.SimpleNamespace(context=lambda: context)
    monkeypatch.setitem(sys.modules, "tensorflow.python.eager.context", here)
    monkeypatch.setitem(sys.modules, "tensorflow.python.ops.stateful_random_ops", generators)
    return context, generators


def test_tensorflows_generators_are_seeded_whether_or_not_there_is_a_global_one(tensorflow):
    context, generators = tensorflow
    Tensorflow().seed((1 << 64) + 5)
    assert (context._seed, generators.global_generator.state.value) == (5, [5])
    made = generators.global_generator
    Tensorflow().seed(7)
    assert (context._seed, generators.global_generator, made.state.value) == (7, made, [7])
    made.algorithm = PHILOX
    Tensorflow().seed(9)
    assert made.state.value == [9, 0, 0]


def test_tensorflow_without_a_module_of_generators_has_its_seed_alone(tensorflow, monkeypatch):
    context, _ = tensorflow
    monkeypatch.delitem(sys.modules, "tensorflow.python.ops.stateful_random_ops")
    Tensorflow().seed(7)
    assert context._seed == 7


@pytest.mark.parametrize("before", [None, 3])
def test_what_tensorflow_had_is_given_back(tensorflow, before):
    context, generators = tensorflow
    generators.global_generator = known = None if before is None else Generator(before)
    context._seed, context._rng = 1, "rng"
    kept = Tensorflow().save_rng()
    Tensorflow().seed(7)
    context._rng = None
    Tensorflow().restore_rng(kept)
    assert (context._seed, context._rng, generators.global_generator) == (1, "rng", known)
    assert known is None or known.state.value == [before]


def test_generators_that_are_gone_are_forgotten(keras):
    found = Keras()
    found.watch()
    net = keras.random.SeedGenerator()
    assert len(found._living) == 1
    del net
    gc.collect()
    assert len(found._living) == 0


def test_a_framework_that_a_task_loads_is_seeded_at_once(monkeypatch, tmp_path):
    """The first task of a process must not differ from later ones."""
    (tmp_path / "keras.py").write_text("import random\nrandom.random()\nstate = 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "keras", raising=False)

    class Watched:
        def seed(self, value):
            sys.modules["keras"].state = value

        def save_rng(self):
            return sys.modules["keras"].state

        def restore_rng(self, saved):
            sys.modules["keras"].state = saved

    monkeypatch.setattr("umbel.work.seeding._keras", Watched())
    kept = list(sys.meta_path)
    with generators_kept():
        draws = []
        for _ in range(2):
            seed_all(11)
            assert importlib.import_module("keras").state == 11
            draws.append((random.random(), np.random.random()))
        assert draws[0] == draws[1]
        seed_all(12)
        assert sys.modules["keras"].state == 12
    assert sys.meta_path == kept
    del sys.modules["keras"]
    with generators_kept():
        seed_all(13)


REAL = """
import sys
import keras, numpy as np, tensorflow as tf
import umbel

client = umbel.Client()
net = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dropout(0.4), keras.layers.Dense(1)])
net.compile(optimizer="sgd", loss="mse", run_eagerly=True)

@client.data
def data(source):
    rng = np.random.default_rng(source["index"])
    return rng.normal(size=(12, 6)).astype("float32"), rng.normal(size=(12, 1)).astype("float32")

@client.train
def train(model, data, ctx):
    fresh = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]).get_weights()[0]
    noise = keras.ops.convert_to_numpy(keras.random.normal((3,)))
    drawn = [float(tf.random.normal(())), float(tf.random.get_global_generator().normal(()))]
    net.set_weights([model[name] for name in sorted(model)])
    net.fit(*data, epochs=1, batch_size=4, verbose=0)
    metrics = {"init": float(fresh.sum()), "noise": float(noise.sum()), "op": drawn[0], "generator": drawn[1]}
    return umbel.Update({f"w{i}": w for i, w in enumerate(net.get_weights())}, metrics=metrics)

shapes = [(6, 8), (8,), (8, 1), (1,)]
model = {f"w{i}": np.full(shape, 0.1, "float32") for i, shape in enumerate(shapes)}
app = umbel.App(client, model=model, strategy=umbel.FedAvg(cohort=3), rounds=2, evaluate_every=0)

if __name__ == "__main__":
    found = set()
    for workers in (0, 0, 1, 2):
        result = umbel.run(app, on=umbel.Simulation(4, workers=workers), seed=3, folder=None)
        found.add((result.model_sha256, tuple(result.metrics.items())))
    assert len(found) == 1, found
"""


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_with_keras_itself(tmp_path):
    if find_spec("keras") is None or find_spec("tensorflow") is None:  # to import them sets environment variables
        pytest.skip("Keras and TensorFlow are not installed")
    (tmp_path / "app.py").write_text(REAL)
    done = subprocess.run([sys.executable, "app.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
