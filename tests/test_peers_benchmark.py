"""The benchmark beside peers, without peers: workloads, measuring, ratios, agreement, tables."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from benchmarks.peers import __main__ as program
from benchmarks.peers import launch, meter, table
from benchmarks.peers.launch import Outcome, Side
from benchmarks.peers.workloads import (
    ALL,
    WORKLOADS,
    Model,
    Workload,
    chosen,
    cohort,
    examples,
    held_out,
    initial,
    quick,
)
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import PATIENCE

ROOT = Path(__file__).resolve().parent.parent
REGRESSION, CNN, NOOP = WORKLOADS["regression"], WORKLOADS["cnn"], WORKLOADS["noop-3000"]
LINUX = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads /proc")
TORCH = pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")


def done(seconds: float, *, cpu: float = 0.1, model: Model | None = None, peak: int = 50_000_000) -> Outcome:
    said = {"seconds": [seconds, seconds], "cpu": cpu, "versions": {"thing": "1.2"}, "includes": "everything"}
    return Outcome(said=said, model=model, whole=2.0, peak=peak)


def side(name: str) -> Side:
    return Side(name, f"the {name}", f"{name}_side", sys.executable, {})


# --- Workloads


@pytest.mark.parametrize("workload", ALL, ids=lambda workload: workload.name)
def test_cohorts_are_different_clients_of_the_pool_and_split_evenly(workload: Workload) -> None:
    for task in (workload, quick(workload)):
        first, again, second = cohort(task, 1), cohort(task, 1), cohort(task, 2)
        assert first == again
        assert len(set(first)) == len(first) == task.cohort <= task.pool
        assert all(isinstance(client, int) and 0 <= client < task.pool for client in first)
        assert len(first) % 2 == 0  # pfl draws one client for each process at a time
        assert first != second or task.pool == task.cohort


def test_data_depends_on_the_seed_and_the_client_alone() -> None:
    for task, shape in ((REGRESSION, (10, 784)), (CNN, (100, 1, 28, 28))):
        x, y = examples(task, 7)
        assert (x.shape, x.dtype, y.shape, y.dtype) == (shape, np.float32, shape[:1], np.int64)
        assert np.array_equal(x, examples(task, 7)[0])
        assert not np.array_equal(x, examples(task, 8)[0])
        assert set(y.tolist()) <= set(range(10))
        assert (y == 7).mean() >= 0.3


def test_another_process_makes_the_same_data() -> None:
    code = (
        "import hashlib, sys; from benchmarks.peers.workloads import *\n"
        "w = WORKLOADS['regression']\n"
        "parts = [*examples(w, 3), *held_out(w), *initial(w).values(), np.array(cohort(w, 5))]\n"
        "print(hashlib.sha256(b''.join(p.tobytes() for p in parts)).hexdigest(), 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    told = {
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(told) == 1
    assert told.pop().split()[1] == "False"


def test_the_test_set_and_the_models_have_the_promised_shapes() -> None:
    x, y = held_out(CNN)
    assert x.shape == (2_000, 1, 28, 28)
    assert np.array_equal(np.bincount(y), [200] * 10)
    sizes = {task.name: sum(array.size for array in initial(task).values()) for task in (REGRESSION, CNN, NOOP)}
    assert sizes == {"regression": 7_850, "cnn": 1_199_882, "noop-3000": 1_000}
    assert all(array.dtype == np.float32 for array in initial(CNN).values())


def test_a_process_is_told_its_workload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERS_WORKLOAD", "cnn")
    assert chosen() == CNN
    monkeypatch.setenv("PEERS_QUICK", "1")
    assert chosen() == quick(CNN)
    assert chosen().cohort < CNN.cohort


def test_some_sides_do_fewer_rounds() -> None:
    assert NOOP.rounds_of("flwr") < NOOP.rounds_of("umbel")
    assert REGRESSION.rounds_of("flwr") == REGRESSION.rounds_of("loop-1")


@TORCH
def test_torch_modules_take_the_models_and_one_epoch_changes_them() -> None:
    import torch
    from benchmarks.peers import nets

    for task in (REGRESSION, CNN):
        net = nets.net(task)
        begin = initial(task)
        assert list(nets.arrays(net)) == list(begin)
        assert table.apart(nets.arrays(net), begin, begin) == 0.0
    task = REGRESSION
    net = nets.net(task)
    x, y = examples(task, 0)
    nets.fit(net, (torch.from_numpy(x), torch.from_numpy(y)), task)
    assert table.apart(nets.arrays(net), initial(task), initial(task)) > 0.0
    assert 0.0 <= nets.accuracy(task, nets.arrays(net)) <= 1.0


@TORCH
def test_the_loop_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.peers import loop_side, nets

    laps = meter.Laps(6)
    monkeypatch.setenv("PEERS_TOKEN", "nobody has this")
    model = {name: value.numpy() for name, value in loop_side.alone(REGRESSION, 6, laps).items()}
    assert nets.accuracy(REGRESSION, model) > nets.accuracy(REGRESSION, initial(REGRESSION)) + 0.1
    assert len(laps.report("numpy", includes="all")["seconds"]) == 5


# --- Measuring


def test_laps_leave_out_the_first_round_and_miss_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERS_TOKEN", "nobody has this")
    laps = meter.Laps(3)
    laps.lap()
    with pytest.raises(RuntimeError, match="1 of 3 rounds"):
        laps.report(includes="")
    laps.lap()
    laps.lap()
    report = laps.report("numpy", "no-such-package", includes="all")
    assert len(report["seconds"]) == 2
    assert report["versions"] == {"numpy": np.__version__, "no-such-package": "?"}


@LINUX
def test_a_run_tells_what_a_process_said_and_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "PATIENCE", 0.1)
    code = (
        "import os, json, subprocess, sys, numpy as np; from benchmarks.peers import meter\n"
        "code = 'import time; print(flush=True); time.sleep(600)'\n"
        "child = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"  # else it may still be on its way to an environment of its own
        "mine = meter.members(os.environ['PEERS_TOKEN'])\n"
        "np.savez(os.environ['PEERS_FOLDER'] + '/model.npz', w=np.arange(3))\n"
        "print('chatter'); meter.say({'pids': mine, 'child': child.pid, 'memory': meter.memory(mine)})"
    )
    outcome = launch.run([sys.executable, "-c", code], {}, PATIENCE)
    assert outcome.why is None
    assert outcome.said is not None
    assert outcome.model is not None
    assert outcome.said["child"] in outcome.said["pids"]
    assert outcome.peak >= outcome.said["memory"] > 1_000_000
    assert outcome.model["w"].tolist() == [0, 1, 2]
    assert not Path(f"/proc/{outcome.said['child']}/exe").exists()  # nobody is left behind


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import sys; print('SomeError: no luck', file=sys.stderr); print('see there', file=sys.stderr); sys.exit(3)", "exit code 3: SomeError: no luck"),  # noqa: E501
        ("import sys; sys.exit(2)", "exit code 2: it said nothing"),
        ("print('no json')", "without a report"),
        ("import time; time.sleep(600)", "did not end within"),
    ],
)  # fmt: skip
@LINUX
def test_a_side_that_fails_says_why(code: str, why: str) -> None:
    outcome = launch.run([sys.executable, "-c", code], {}, 0.0 if "sleep" in code else PATIENCE)
    assert outcome.why is not None
    assert why in outcome.why


def test_a_side_without_its_environment_says_so() -> None:
    absent = Side("flwr", "flwr", "flwr_side", "/nowhere/python", {})
    assert "make bench-peers" in str(launch.launch(absent, REGRESSION).why)


def test_sides_take_turns_backwards_and_a_failure_stops_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[str] = []

    def start(side: Side, workload: Workload) -> Outcome:
        ran.append(side.name)
        return Outcome(why="broken") if side.name == "b" else done(0.1)

    turns = list(program.turns(REGRESSION, [side("a"), side("b"), side("c")], 2, start))
    assert ran == ["a", "b", "c", "c", "b", "a"]
    assert [turn["b"].why for turn in turns] == ["broken", "broken"]
    assert "the b: broken" in capsys.readouterr().err


# --- Ratios and agreement


def test_figures_are_a_client() -> None:
    assert table.per_client(done(0.2), REGRESSION) == pytest.approx(2.0)
    assert table.cpu_per_client(done(0.2, cpu=0.05), REGRESSION) == pytest.approx(0.5)


@given(st.lists(st.tuples(st.floats(0.01, 10), st.floats(0.01, 10)), min_size=1, max_size=5))
def test_ratios_are_medians_within_the_turns(pairs: list[tuple[float, float]]) -> None:
    turns = [{"a": done(a), "b": done(b)} for a, b in pairs]

    def wall(outcome: Outcome) -> float:
        return table.per_client(outcome, REGRESSION)

    assert table.ratio(turns, "a", "b", wall) == pytest.approx(float(np.median([a / b for a, b in pairs])))
    assert table.difference(turns, "a", "b", wall) == pytest.approx(
        float(np.median([10 * (a - b) for a, b in pairs])), abs=1e-9
    )
    failed = [*turns, {"a": Outcome(why="no"), "b": done(1.0)}, {"b": done(1.0)}]
    assert table.ratio(failed, "a", "b", wall) == table.ratio(turns, "a", "b", wall)
    assert table.ratio(failed, "a", "absent", wall) is None


def test_models_are_compared_by_what_was_learned() -> None:
    begin, learned = {"w": np.zeros(2)}, {"w": np.array([3.0, 4.0])}
    assert table.apart(learned, learned, begin) == 0.0
    assert table.apart({"w": np.array([3.0, 4.5])}, learned, begin) == pytest.approx(0.1)
    assert table.apart({"w": np.array([0.0, 0.5])}, begin, begin) == pytest.approx(0.5)
    assert table.apart({"v": np.zeros(2)}, learned, begin) == float("inf")
    assert table.apart({"w": np.zeros(3)}, learned, begin) == float("inf")


@pytest.mark.parametrize(
    ("ours", "theirs", "agrees"),
    [
        ((0.80, 1e-6), (0.80, 0.0), True),
        ((0.805, 1e-3), (0.80, 0.0), True),
        ((0.82, 1e-3), (0.80, 0.0), False),
        ((0.80, 0.5), (0.80, 0.0), False),
        ((None, 0.0), (None, 0.0), True),
        ((None, 0.0), (0.8, 0.0), False),
    ],
)
def test_sides_agree_within_tolerance(
    ours: tuple[float | None, float], theirs: tuple[float | None, float], agrees: bool
) -> None:
    assert table.Verdict(*ours).agrees(table.Verdict(*theirs)) is agrees


def test_verdicts_compare_with_the_first_side_that_came_to_its_end() -> None:
    begin: Model = {"w": np.zeros(1, np.float32)}
    one, two = ({"w": np.full(1, value, np.float32)} for value in (1.0, 1.5))
    turn = {"loop-1": Outcome(why="no"), "loop-2": done(1, model=one), "umbel": done(1, model=two), "flwr": done(1)}
    judged = table.verdicts(REGRESSION, [turn], begin, lambda model: float(model["w"][0]))
    assert judged == {"loop-2": table.Verdict(1.0, 0.0), "umbel": table.Verdict(1.5, 0.5)}
    assert table.verdicts(REGRESSION, [{}], begin, None) == {}


# --- Tables


def three_turns() -> list[Mapping[str, Outcome]]:
    good = {"loop-1": done(0.4), "loop-2": done(0.2, cpu=0.2), "umbel": done(0.1, cpu=0.2), "pfl": done(0.3)}
    return [{**good, "flwr": Outcome(why="no ray here")}] * 3


def test_the_table_has_ratios_and_reasons() -> None:
    sides = [side(name) for name in ("loop-2", "umbel", "flwr", "pfl")]
    judged = {"loop-2": table.Verdict(0.8, 0.0), "umbel": table.Verdict(0.9, 0.0), "pfl": table.Verdict(0.8, 1e-6)}
    rows = table.cells(REGRESSION, three_turns(), sides, judged)
    loop, umbel, flwr, pfl = rows
    assert loop == ("the loop-2", "2.00", "2.00", "1.00", "2.00", "50 MB", "2.0 s", "80.0%", "yes, to 0e+00")
    assert umbel[3:5] == ("0.50", "1.00")
    assert umbel[-1].startswith("NO")
    assert pfl[3:5] == ("1.50", "3.00")
    assert pfl[-1] == "yes, to 1e-06"
    assert flwr == ("the flwr", "failed: no ray here")
    text = table.plain(rows).splitlines()
    assert len(text) == 6
    assert text[4] == "the flwr    failed: no ray here"
    assert text[2].index("2.00") == text[3].index("1.00")
    assert all(line.count("|") == len(table.HEADS) + 1 for line in table.markdown(rows).splitlines())


def test_notes_say_what_figures_include_and_what_failed_once() -> None:
    turns = [{"a": done(0.1)}, {"a": Outcome(why="lightning")}]
    first, second = table.notes(turns, [side("a"), side("b")])
    assert first == "the a (thing 1.2; 2 rounds, 1 times): everything."
    assert "lightning" in second


def test_bars_are_judged() -> None:
    (added,) = table.bars(REGRESSION, three_turns())
    assert (added.measured, added.holds) == ("0 us", True)
    turns = [{"loop-2": done(1.0, cpu=2.0), "umbel": done(1.0, cpu=2.2), "flwr": done(2.0, cpu=4.0)}]
    (over,) = table.bars(CNN, turns)
    assert (over.measured, over.holds) == ("1.10", False)
    assert "flwr 2.00" in over.beside
    (round_,) = table.bars(NOOP, [{"umbel": done(0.1)}])
    assert (round_.measured, round_.holds) == ("0.100 s", True)
    again, memory = table.bars(WORKLOADS["pool-15000000"], [{"umbel": done(0.1, peak=500_000_000)}])
    assert (again.holds, memory.measured, memory.holds) == (False, "500 MB", False)
    assert table.bars(NOOP, [{"umbel": Outcome(why="no")}]) == []


def test_only_whole_tables_are_written() -> None:
    for arguments in (["--write", "--quick"], ["--write", "cnn"], ["--write", "--sides", "umbel"], ["--sides", "tff"]):
        with pytest.raises(SystemExit):
            program.main(arguments)


def test_the_command_prints_a_row_for_each_side(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    started: list[str] = []

    def start(side: Side, workload: Workload, *, quick: bool) -> Outcome:
        started.append(side.name)
        return Outcome(why="not here") if side.name == "flwr" else done(0.1, model=initial(workload))

    monkeypatch.setattr(program, "launch", start)
    program.main(["noop-100", "pool-100000", "--times", "1"])
    out = capsys.readouterr().out
    assert started == ["umbel", "flwr", "pfl", "umbel", "pfl"]  # flwr with 100,000 clients is for --slow
    assert out.count("failed: not here") == 1
    assert out.count("Umbel, 2 workers ") == 4  # a row and a note in each table
    monkeypatch.setattr(program, "RESULTS", tmp_path / "peers.md")
    monkeypatch.setattr(program, "_judge", lambda workload: None)
    program.main(["--write"])
    page = (tmp_path / "peers.md").read_text()
    assert page.startswith("# Beside peers")
    assert all(workload.title in page for workload in ALL)


def test_starting_it_imports_neither_torch_nor_umbel() -> None:
    code = "import sys; import benchmarks.peers.__main__; print({'torch', 'umbel', 'flwr', 'pfl'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
