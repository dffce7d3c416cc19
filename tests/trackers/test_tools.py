"""The tools themselves: each is told of a real run, live and later, and what it has is read back by its own reader."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import umbel
from umbel.trackers.reading import read_run
from umbel.trackers.tracker import PLACES, Point, RoundPoints, tracker_of

from .test_reading import app

Numbers = dict[tuple[str, int], list[float]]
"""All values by name and round."""


def of_parquet(where: Path, run: str) -> Numbers:
    import pyarrow.parquet as pq

    table = pq.read_table(where / f"{run}.parquet")
    assert table.schema.metadata[b"umbel.config.lr"] == b"0.5"
    assert table.schema.metadata[b"umbel.reason"] == b"rounds"
    found: Numbers = {}
    for row in table.to_pylist():
        tag = row["name"].replace(".", "/", 1)
        found.setdefault((tag if row["client"] is None else f"clients/{row['client']}/{tag}", row["round"]), []).append(
            row["value"]
        )
    return found


def of_aim(where: Path, run: str) -> Numbers:
    from aim import Repo, Run

    repo = Repo.from_path(str(where))
    (known,) = repo.list_all_runs()
    found = Run(known, repo=repo, system_tracking_interval=None, capture_terminal_logs=False)
    try:
        assert (found.name, found["umbel"]["config.lr"], found["reason"]) == (run, 0.5, "rounds")
        assert umbel.load_model(found["model"])
        assert [name for name, _, _ in found.iter_sequence_info_by_type(("aim.image",))] == ["metrics"]
        numbers: Numbers = {}
        for metric in found.metrics():
            steps, (values, *_) = metric.data.items_list()
            for step, value in zip(steps, values, strict=True):
                numbers.setdefault((metric.name, step), []).append(value)
        return numbers
    finally:
        found.close()


def of_csv(where: Path, run: str) -> Numbers:
    import csv

    found: Numbers = {}
    with (where / f"{run}.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            tag = row["name"].replace(".", "/", 1)
            tag = f"clients/{row['client']}/{tag}" if row["client"] else tag
            found.setdefault((tag, int(row["round"])), []).append(float(row["value"]))
    return found


def of_tensorboard(where: Path, run: str) -> Numbers:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    there = EventAccumulator(str(where / run), size_guidance={"scalars": 0, "images": 0})
    there.Reload()
    assert there.Images("metrics")[-1].encoded_image_string[1:4] == b"PNG"
    assert umbel.load_model(where / run / "model.safetensors")
    tags = there.Tags()
    assert "_hparams_/session_start_info" in there.summary_metadata
    return {
        (tag, step): [each.value for each in there.Scalars(tag) if each.step == step]
        for tag in tags["scalars"]
        for step in {each.step for each in there.Scalars(tag)}
    }


def of_mlflow(where: Path, run: str) -> Numbers:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{where}.db")
    (experiment,) = (each for each in client.search_experiments() if each.name == "umbel")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == run
    assert found.info.status == "FINISHED"
    assert found.data.params["config.lr"] == "0.5"
    assert found.data.tags["umbel.reason"] == "rounds"
    folder = Path(found.info.artifact_uri)
    assert umbel.load_model(folder / "model.safetensors")
    assert (folder / "metrics.png").read_bytes()[1:4] == b"PNG"
    numbers: Numbers = {}
    for name in found.data.metrics:
        for each in client.get_metric_history(found.info.run_id, name) if name != "umbel/round" else ():
            numbers.setdefault((name, each.step), []).append(each.value)
    return numbers


def of_wandb(where: Path, run: str) -> Numbers:
    from wandb.proto.wandb_internal_pb2 import Record

    numbers: Numbers = {}
    configs, artifacts = [], 0
    for path in sorted(where.glob("wandb/offline-run-*/*.wandb")):
        for body in _records(path.read_bytes()):
            record = Record.FromString(body)
            if record.WhichOneof("record_type") == "run":
                assert record.run.run_id == run
                configs += [item.value_json for item in record.run.config.update if item.key == "config.lr"]
            if record.WhichOneof("record_type") == "history":
                values = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                for name, value in values.items():
                    if not name.startswith("_"):
                        numbers.setdefault((name, values["_step"]), []).append(value)
            artifacts += "model.safetensors" in str(record)
    assert set(configs) == {"0.5"}
    assert artifacts
    return numbers


def _records(data: bytes) -> list[bytes]:
    """The records of a file of W&B: blocks of 32 KiB as LevelDB's logs have them, behind seven bytes of its own."""
    found, at, rest = [], 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        rest += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            found.append(rest)
            rest = b""
    return found


READERS: dict[str, Callable[[Path, str], Numbers]] = {
    "aim": of_aim,
    "csv": of_csv,
    "mlflow": of_mlflow,
    "parquet": of_parquet,
    "tensorboard": of_tensorboard,
    "wandb": of_wandb,
}


def place(name: str, where: Path) -> str:
    return f"mlflow:sqlite:///{where}.db" if name == "mlflow" else f"{name}:{where}"


def expected(result: umbel.Result) -> Numbers:
    """What a run's own history and clients say."""
    found: Numbers = {}
    for event in result.history:
        for part in ("train", "evaluate", "test"):
            for name, value in getattr(event, part).items():
                found[f"{part}/{name}", event.round] = [value]
    for row in result.clients:
        for name, value in row.metrics.items():
            found[f"clients/{row.client}/{row.kind}/{name}", row.round] = [value]
    return found


def alike(found: Numbers, wanted: Numbers) -> bool:
    """Whether all is there, once each, to the digits of single precision, which is what TensorBoard keeps."""
    return found.keys() == wanted.keys() and all(
        len(found[key]) == len(wanted[key]) == 1 and math.isclose(found[key][0], wanted[key][0], rel_tol=1e-6)
        for key in found
    )


@pytest.fixture
def variables() -> Iterator[None]:
    """Tools leave notes for their other processes in the environment."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.mark.slow
@pytest.mark.usefixtures("variables")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PLACES)
def test_a_tool_has_a_run_live_resumed_and_after_the_fact(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec({"parquet": "pyarrow"}.get(name, name)) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    live, after = tmp_path / "live", tmp_path / "after"
    federation: dict[str, Any] = {"on": umbel.Simulation(clients=5)}
    first = umbel.run(app(), **federation, rounds=2, folder="runs", observers=[umbel.track(place(name, live))])
    assert first.folder is not None
    result = umbel.resume(app(), first.folder, **federation, rounds=4, observers=[umbel.track(place(name, live))])
    assert result.folder is not None
    for _ in range(2):  # the second time adds nothing
        read_run(place(name, after), result.folder)
    told, later = READERS[name](live, result.run), READERS[name](after, result.run)
    assert told == later
    assert told["system/seconds", 4] == pytest.approx([result.history[3].seconds])
    wanted = expected(result)
    assert alike({key: value for key, value in told.items() if key in wanted}, wanted)
    assert all(key[0].startswith("system/") or key[0].endswith("/seconds") for key in told.keys() - wanted.keys())


@pytest.mark.slow
def test_tensorboard_is_written_without_tensorflow(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    program = f"""
import sys
from umbel.trackers.tensorboard import TensorBoard
for there in (-1, -1):
    tracker = TensorBoard({str(tmp_path)!r})
    assert tracker.begin("run-1", {{"config.lr": 0.5}}) == there
    tracker.end("rounds", None)
assert "tensorflow" not in sys.modules
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(umbel.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("variables")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_a_file_here_by_default_and_takes_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what an old release of MLflow left, too, which the new one would refuse."""
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("")
    odd = {"<": 1.0, ">": math.nan, "a//b": math.inf, "tail/": 3.0, "../up": -math.inf, "x y": 4.0}
    rounds = [RoundPoints(r, 1e9 + r, [Point(f"train.{name}", value) for name, value in odd.items()]) for r in (0, 1)]
    for there in (-1, 1):
        tracker = tracker_of("mlflow")
        assert tracker.begin("run-1", {"config.a//b": 1, "config.a__b": 2, "config.lr": 0.5}) == there
        tracker.write(rounds)
        tracker.end("unfinished", None)
    client = tracking.MlflowClient("sqlite:///mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("umbel").experiment_id])
    assert sorted(run.data.params.values()) == ["0.5", "1", "2"]
    assert len(run.data.metrics) == len(odd) + 1
    histories = [client.get_metric_history(run.info.run_id, name) for name in run.data.metrics]
    assert [[each.step for each in history] for history in histories] == [[0, 1]] * len(histories)


@pytest.mark.slow
@pytest.mark.usefixtures("variables")
@pytest.mark.filterwarnings("ignore")
def test_what_wandb_was_told_in_one_mode_it_is_told_in_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    found = []
    for mode in ("disabled", "disabled", "offline", "offline"):
        monkeypatch.setenv("WANDB_MODE", mode)
        tracker = tracker_of(f"wandb:{tmp_path}")
        found.append(tracker.begin("run-1", {}))
        tracker.write([RoundPoints(3, 1e9, [Point("train.loss", 1.0)])])
        tracker.end("rounds", None)
    assert found == [-1, 3, -1, 3]
