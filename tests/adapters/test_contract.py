"""What every adapter keeps, whatever its framework: see `Case` for how one takes part."""

from __future__ import annotations

import os
import re
import shutil
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.adapters.cases import CASES, FILES_NEED, Case, context
from tests.adapters.networks import NETWORKS

import umbel
from umbel.core import encoding
from umbel.core.app import App
from umbel.core.arrays import Arrays
from umbel.core.trees import keepable
from umbel.errors import AppError
from umbel.runs.export import write_model

ALONE = pytest.mark.filterwarnings("ignore")
"""Frameworks warn of this and that, by themselves."""


@pytest.fixture(
    scope="module",  # what a framework sets as it is imported is not a test's
    params=[
        pytest.param(case, id=case.name, marks=[*([] if case.fast else [pytest.mark.slow]), *marks])
        for cases, marks in ((CASES, []), (NETWORKS, [ALONE]))
        for case in cases
    ],
)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    os.environ.update(HF_HUB_OFFLINE="1", TF_CPP_MIN_LOG_LEVEL="3")
    for package in (found.needs, *found.also):
        pytest.importorskip(package, exc_type=ImportError)
    return found


def trained(case: Case, dtype: str | None = None) -> tuple[Any, Any]:
    """A `NativeModel` and a model of it that has learned something."""
    native = case.make(dtype or case.dtypes[0])
    return native, case.train(native.make())


def close(case: Case, found: Any, wanted: Any, least: float = 0.0) -> None:
    off = max(case.tolerance, least)
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=off, atol=off)


def test_the_initial_model_is_the_same_each_time(case: Case) -> None:
    native = case.make(case.dtypes[0])
    first = native()
    assert isinstance(first, Arrays)
    assert first == native() == case.make(case.dtypes[0])()
    assert App(umbel.Client(), model=native, strategy=umbel.FedAvg()).initial_model() == first


def test_what_a_model_has_learned_makes_a_round_trip(case: Case) -> None:
    for dtype in case.dtypes:
        native, model = trained(case, dtype)
        sent = Arrays.from_bytes(native.arrays(model).to_bytes())
        assert dtype in {array.dtype.name for array in sent.values()}
        assert native.arrays(model).schema == sent.schema
        loaded = native.loaded(sent)
        again = native.arrays(loaded)
        assert again.schema == sent.schema
        for name in sent:
            close(case, again[name], sent[name])
        close(case, case.predict(loaded), case.predict(model))
        assert any((native()[name].tobytes() != sent[name].tobytes()) for name in sent), "nothing was learned"


def test_buffers_have_their_role(case: Case) -> None:
    roles = case.make(case.dtypes[0])().roles
    assert {name for name, role in roles.items() if role == "buffer"} == set(case.buffers)
    assert "personal" not in roles.values()


def test_arrays_do_not_change_when_the_model_goes_on_to_learn(case: Case) -> None:
    native, model = trained(case)
    sent = native.arrays(model)
    before = sent.to_bytes()
    target = native.make()
    loaded = native.load(target, sent)
    assert not case.in_place or loaded is target
    case.train(loaded)
    case.train(model)
    assert sent.to_bytes() == before


def test_a_model_of_another_version_is_refused_by_name_and_left_as_it_was(case: Case) -> None:
    native, model = trained(case)
    sent = native.arrays(model)
    for error, make in case.later.items():
        other = make()
        target = other.make()
        before = other.arrays(target)
        with pytest.raises(AppError, match=error):
            other.load(target, sent)
        assert other.arrays(target) == before


def test_files_of_a_model_are_read_by_the_framework_itself(case: Case, tmp_path: Path) -> None:
    native, model = trained(case)
    sent = native.arrays(model)
    assert set(native.formats) == set(case.read)
    missing = {end: [name for name in FILES_NEED.get(end, ()) if find_spec(name) is None] for end in case.read}
    for ending, read in case.read.items():
        if missing[ending]:
            continue
        if read is None:
            continue
        file = tmp_path / f"model{ending}"
        write_model(sent, file, native)
        close(case, read(file), case.predict(model), 1e-5 if ending == ".onnx" else 0.0)
        assert [path.name for path in tmp_path.iterdir()] == [file.name]
        write_model(sent, file, native)  # over what is there
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    with pytest.raises(AppError, match="not written as"):
        native.save(sent, tmp_path / "model.abc")
    if lacking := sorted({name for names in missing.values() for name in names}):
        pytest.skip(f"the other files were read; not installed: {', '.join(lacking)}")


def test_a_run_of_one_client_learns_what_it_learns_alone(case: Case) -> None:
    if not case.averaged:
        pytest.skip("its clients learn by another strategy")
    native, client = case.make(case.dtypes[0]), umbel.Client()

    @client.train
    def train(model: Any, data: Any, ctx: Any) -> umbel.Update:
        return umbel.Update(native.arrays(case.train(native.loaded(model))))

    app = App(client, model=native, strategy=umbel.FedAvg(cohort=1), rounds=1, evaluate_every=0)
    found = umbel.run(app, on=umbel.Simulation(clients=1, workers=0), folder=None)
    alone = native.arrays(case.train(native.loaded(native())))
    for name in alone:
        np.testing.assert_allclose(found.model[name], alone[name], rtol=1e-6, atol=1e-6)


def test_fit_is_the_frameworks_own_loop_and_goes_on_with_its_optimizer(case: Case) -> None:
    if case.fit is None:
        pytest.skip("it is trained by what is made for it")
    native = case.make(case.dtypes[0])
    start = native()

    def fitted(rounds: int, epochs: int, keep: bool) -> Arrays:
        model, state = start, {}
        for _ in range(rounds):
            update = case.fit(native.loaded(model), context(state), epochs, keep)
            assert update.weight == case.rows
            assert {"loss", "steps", "lr"} <= update.metrics.keys()
            assert update.metrics["steps"] == epochs
            state = encoding.decode(encoding.encode(keepable(state)))
            model = Arrays(update.arrays, start.roles)
        return model

    alone = native.arrays(case.train(native.loaded(start)))
    assert alone.schema == start.schema
    for found in (fitted(1, 2, False), fitted(2, 1, True)):
        assert found.schema == start.schema
        for name in alone:
            close(case, found[name], alone[name], 1e-5)
    anew = fitted(2, 1, False)
    assert any(np.abs(anew[name] - alone[name]).max() > 1e-4 for name in alone if alone.roles[name] == "parameter")


def test_a_task_does_not_depend_on_those_before(case: Case) -> None:
    if case.fit is None:
        pytest.skip("it is trained by what is made for it")
    native = case.make(case.dtypes[0])
    start, made = native(), native.make()
    first, second = (Arrays(case.fit(native.load(made, start), context(), 1).arrays) for _ in range(2))
    assert first == second == Arrays(case.fit(native.loaded(start), context(), 1).arrays)


def test_corrections_hold_a_client_near(case: Case) -> None:
    if case.fit is None:
        pytest.skip("it is trained by what is made for it")
    native, client = case.make(case.dtypes[0]), umbel.Client()
    start = native()
    client.train(lambda model, data, ctx: case.fit(native.loaded(model), ctx, 4))

    def moved(strategy: Any) -> float:
        app = App(client, model=start, strategy=strategy, rounds=1, evaluate_every=0)
        found = umbel.run(app, on=umbel.Simulation(clients=1, workers=0), folder=None).model
        return sum(float(np.abs(found[n] - start[n]).sum()) for n, role in start.roles.items() if role == "parameter")

    assert 0 < moved(umbel.FedProx(cohort=1, mu=5.0)) < 0.9 * moved(umbel.FedAvg(cohort=1))


def test_mixed_precision_keeps_weights_whole(case: Case) -> None:
    if case.mixed is None:
        pytest.skip("it has none")
    native = case.make(case.dtypes[0])
    start = native()
    whole, mixed = (
        Arrays(fit(native.loaded(start), context(), 2).arrays, start.roles) for fit in (case.fit, case.mixed)
    )
    assert mixed.schema == start.schema
    assert mixed != whole
    for name, role in start.roles.items():
        if role == "parameter":
            np.testing.assert_allclose(mixed[name], whole[name], atol=0.02)


def test_a_tied_weight_is_one_however_many_names_it_has(case: Case) -> None:
    if not case.tied:
        pytest.skip("it has none")
    native, model = trained(case)
    for one in (model, case.train(native.loaded(native.arrays(model)))):
        same = [native.arrays(one)[name] for name in case.tied]
        assert all(np.array_equal(same[0], other) for other in same)
        assert not np.array_equal(same[0], native()[case.tied[0]])


def resident(key: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or at most since its peak was forgotten (VmHWM)."""
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def test_a_model_and_its_arrays_take_twice_the_memory_of_the_model(case: Case) -> None:
    peak = Path("/proc/self/clear_refs")
    if case.large is None or not peak.exists():
        pytest.skip("a model that is text has other forms in memory" if case.large is None else "not on this system")
    native = case.large()
    model = native.make()
    native.load(model, native.arrays(model))  # what a framework loads first is not the model's
    before = resident("VmRSS")
    peak.write_text("5")
    sent = native.arrays(model)
    native.load(model, sent)
    assert sent.nbytes > 20e6
    assert resident("VmHWM") - before <= 1.1 * sent.nbytes + 2e6  # beside the model itself


def test_without_its_framework_an_adapter_says_what_to_install(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"umbel.{case.adapter}"
    import_module(name)
    kept = {key: module for key, module in sys.modules.items() if key == name or key.startswith(f"{name}.")}
    monkeypatch.setattr(umbel, case.adapter, None, raising=False)
    monkeypatch.delattr(umbel, case.adapter)
    for key in [key for key in sys.modules if key.startswith(f"{case.needs}.")]:
        monkeypatch.delitem(sys.modules, key)
    monkeypatch.setitem(sys.modules, case.needs, None)
    for key in kept:
        monkeypatch.delitem(sys.modules, key)
    try:
        with pytest.raises(ImportError, match=rf"pip install \"umbel\[{case.adapter}\]\""):
            case.make(case.dtypes[0]).make()
    finally:
        for key in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
            del sys.modules[key]
        sys.modules.update(kept)
