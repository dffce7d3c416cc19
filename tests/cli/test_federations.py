"""The federation that a command line asks for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from umbel.cli import federations
from umbel.cli.application import LoadedApp
from umbel.cli.federations import Wanted, start_early
from umbel.errors import SettingError
from umbel.simulation import Simulation

Command = Callable[..., Any]


class Holder:
    """As much of an app as is needed."""

    def __init__(self, federation: Any = None) -> None:
        self.federation = federation


def loaded(federation: Any = None) -> LoadedApp:
    return LoadedApp(Holder(federation), Path("app.py"), "0" * 64)  # type: ignore[arg-type]


def test_the_command_line_goes_before_the_app() -> None:
    own = Simulation(5, workers=3)
    assert Wanted().federation(loaded(own)) is own
    assert len(Wanted(clients=9).federation(loaded(own)).clients) == 9
    assert Wanted(workers=1).federation(loaded(own)).workers == 1
    found = Wanted(devices="phones", work=7.0).federation(loaded(own))
    assert (found.workers, len(found.clients), own.devices) == (3, 5, None)
    assert found.devices.reference_seconds(0, "train", {}) == 7.0


def test_somebody_has_to_say_how_many() -> None:
    with pytest.raises(SettingError, match=r"neither the command line nor app\.py says how many clients"):
        Wanted(workers=2).federation(loaded())


def test_devices_have_to_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"there are no devices 'toasters'"):
        Wanted(4, devices="toasters").federation(loaded())
    with pytest.raises(SettingError, match=r"--work goes with --devices"):
        Wanted(4, work=2.0).federation(loaded())
    trace = tmp_path / "fleet.csv"
    trace.write_text("speed\n0.5\n")
    found = Wanted(4, devices=str(trace)).federation(loaded())
    assert found.devices.device(2).speed == 0.5


def test_a_run_is_resumed_on_the_same_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = Wanted(4, 2, "fleet.csv", 3.0)
    kept = json.loads(json.dumps(wanted.source()))
    assert Wanted.again(kept, None) == Wanted(4, None, str(tmp_path / "fleet.csv"), 3.0)
    assert Wanted.again(json.loads(json.dumps(Wanted(4, devices="boards").source())), 1) == Wanted(4, 1, "boards")
    assert Wanted.again({"path": "app.py", "clients": 3}, None) == Wanted(3)


def test_what_workers_need_is_found_in_the_app_and_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(federations, "prepare", lambda how, modules: asked.append(list(modules)))
    app = tmp_path / "app.py"
    app.write_text("import client\n")
    start_early(app)
    (tmp_path / "client.py").write_text("import umbel.torch\n")
    start_early(app)
    (tmp_path / "client.py").write_text("from torch import nn\nimport sklearn.tree\noptimizer = torch.optim.SGD\n")
    start_early(app)
    app.write_text("def broken(:\n")
    start_early(app)
    assert asked == [[], ["torch"], ["torch", "sklearn", "torch._dynamo"], []]


def test_virtual_time_from_the_command_line(umbel: Command) -> None:
    done = umbel("run", "app.py", "--clients", 9, "--devices", "workstations", "--work", 60, "--json")
    assert done.code == 0
    page = umbel("show", "last")
    assert "of virtual time" in page.out
    assert "kJ" in page.out
    assert umbel("run", "app.py", "--clients", 9, "--devices", "toasters").code == 3


@pytest.mark.slow
def test_workers_change_nothing(umbel: Command) -> None:
    def model(*options: object) -> str:
        return str(umbel("run", "app.py", "--clients", 9, "--json", *options).summary["model_sha256"])

    assert model("--workers", 0) == model("--workers", 2) == model()


@pytest.mark.slow
def test_a_plan_is_printed_and_nothing_written(umbel: Command) -> None:
    done = umbel("run", "app.py", "--clients", 9, "--plan", "--rounds", 40)
    assert done.code == 0
    assert "40 rounds, by what client" in done.out
    assert not Path("umbel-runs").exists()
    said = json.loads(umbel("run", "app.py", "--clients", 9, "--plan", "--json").out)
    assert [part["kind"] for part in said["parts"]] == ["train", "evaluate"]
