"""The systemd units of examples/systemd: how much they leave open, and that Umbel works under what they allow."""

from __future__ import annotations

import ctypes.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
from tests.deployment.conftest import APP
from tests.deployment.filtered import calls, settings
from tests.deployment.test_kills import undisturbed

from umbel.cli.program import program
from umbel.testing.machines import Machines

UNITS = sorted((Path(__file__).parents[2] / "examples" / "systemd").glob("*.service"))
FILTERED = Path(__file__).with_name("filtered.py")
MOST = 3.0

analysed = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
filters = pytest.mark.skipif(not ctypes.util.find_library("seccomp"), reason="libseccomp is not installed")


def exposure(unit: Path) -> float:
    """What systemd-analyze says of it, from 0 (closed) to 10."""
    said = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = re.search(r"exposure level for \S+: ([\d.]+)", said.stdout)
    assert found is not None, said.stdout
    return float(found[1])


def test_there_are_two():
    assert [unit.stem for unit in UNITS] == ["umbel-node", "umbel-server"]


@analysed
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_they_leave_little_open(unit, tmp_path):
    assert exposure(unit) <= MOST
    bare = tmp_path / unit.name
    kept = ("ExecStart=", "User=", "[", "Description=")
    bare.write_text("\n".join(line for line in unit.read_text().splitlines() if line.startswith(kept)))
    assert exposure(bare) > MOST, "the figure says something"


@pytest.mark.slow
@analysed
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_understands_every_line(unit, tmp_path):
    there = tmp_path / unit.name  # with a program that is installed here
    there.write_text(re.sub(r"^(ExecStart=)\S+", rf"\1{shutil.which('true')}", unit.read_text(), flags=re.MULTILINE))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(there)], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if unit.name in line]
    assert (done.returncode, said) == (0, []), done.stderr
    there.write_text(there.read_text().replace("ProtectSystem=strict", "ProtectSystm=strict"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(there)], capture_output=True, text=True)
    assert "ProtectSystm" in done.stderr, "it would notice"


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_they_start_what_there_is(unit):
    umbel, command, *arguments = settings(unit)["ExecStart"]
    assert Path(umbel).name == "umbel"
    known = typer.main.get_command(program).commands[command]
    known.make_context(command, list(arguments))  # raises for an option that is none
    folder = arguments[arguments.index("--dir") + 1]
    assert folder == f"/var/lib/{settings(unit)['StateDirectory'][0]}"


@analysed
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_they_let_umbel_close_itself_off(unit):
    found = settings(unit)
    allowed = calls(found["SystemCallFilter"])
    assert {"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "seccomp", "prctl"} <= allowed
    assert {"mount", "ptrace", "bpf", "reboot", "init_module"}.isdisjoint(allowed)
    assert "MemoryDenyWriteExecute" not in found
    assert found["KillMode"] == ["mixed"]


@analysed
@filters
@pytest.mark.slow
def test_a_run_under_what_they_allow(machines: Machines):
    node, server = ([str(FILTERED), str(unit), "--"] for unit in UNITS)
    machines.start_server(point=server)
    machines.start_nodes(2)
    for name in ("0", "1"):
        machines.nodes[name].stop()
        machines.start_node_again(name, point=node).wait_for("connected to")
    filtered = [machines.server.pid, machines.nodes["0"].pid]
    assert all("Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text() for pid in filtered)
    run = machines.submit(f"{APP}:whole", 5, "--only=0", "--only=1")
    with machines.office() as office:
        assert machines.finished(run, office)["model_sha256"] == undisturbed("whole", 5, clients=2)
