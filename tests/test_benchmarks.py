"""The harness of benchmarks: turns, spread and verdicts, meters, sides, tables and pictures; and a smoke test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import __main__ as program
from benchmarks import chart, deployment, launch, limits, machines, meter, pages, simulated
from benchmarks.deployed import Deployment
from benchmarks.figures import HEADS, Row, markdown, percentile, plain, shown, spread, turns, with_spread
from benchmarks.launch import Outcome, Side, SideFailed
from benchmarks.workloads import ALL, WORKLOADS, Model, Workload, chosen, cohort, examples, initial, quick
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import PATIENCE

ROOT = Path(__file__).resolve().parent.parent
REGRESSION, CNN, NOOP = (WORKLOADS[name] for name in ("regression", "cnn", "noop"))
LINUX = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads /proc")
TORCH = pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
FIGURES = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9)


def row(*ours: float | None, bar: float | None = 10.0, **more: Any) -> Row:
    return Row("name", "what", "ms", bar, ours, **more)


def done(seconds: float, *, cpu: float = 0.1, handled: float = 0.04, model: Model | None = None) -> Outcome:
    said = {"seconds": [seconds, seconds], "cpu": cpu, "handled": handled, "first": 1.0}
    return Outcome(said, model, whole=2.0, peak=50_000_000)


# --- Turns, spread and verdicts


def test_sides_take_turns_backwards_and_a_failure_stops_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[str] = []

    def side(name: str) -> Callable[[], str]:
        def work() -> str:
            ran.append(name)
            if name == "b":
                raise SideFailed("lightning")
            return name.upper()

        return work

    assert turns({name: side(name) for name in "abc"}, 2) == {"a": ["A", "A"], "b": [None, None], "c": ["C", "C"]}
    assert ran == ["a", "b", "c", "c", "b", "a"]
    assert "lightning" in capsys.readouterr().err


@given(FIGURES)
def test_the_spread_is_that_of_the_middle_half(values: list[float]) -> None:
    reach = spread(values)
    if len(values) < 3:
        assert reach is None
    else:
        low, high = np.percentile(values, [25, 75])
        assert reach == pytest.approx(high - low, abs=1e-9)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (row(8, 8, 8), "holds"),
        (row(10, 10, 10), "holds"),
        (row(12, 12, 12), "MISSED"),
        (row(2, 8, 14), "noisy"),  # reaches 6, and 2 lie between median and bar
        (row(6, 12, 18), "noisy"),
        (row(7, 8, 9), "holds"),  # reaches 1
        (row(100, 101, 102, 9), "MISSED"),  # one lucky turn is none
        (row(8, 8), "too few turns"),
        (row(8, None, 8, 8), "FAILED"),
        (row(None, None, None), "FAILED"),
        (row(), "not measured"),
        (row(8, 8, 8, bar=None), "-"),
        (row(12, 12, 12, at_least=True), "holds"),
        (row(8, 8, 8, at_least=True), "MISSED"),
        (row(11, 12, 20, at_least=True), "noisy"),
        (row(30, 60, 90, bar=1.4, limit=(20, 40, 60), judged="over"), "MISSED"),
        (row(30, 60, 90, bar=3, limit=(20, 40, 60), judged="over"), "holds"),  # noisy alone, and steady as a ratio
        (row(30, 60, 90, bar=15, limit=(20, 50, 80), judged="beyond"), "holds"),
        (row(1, 2, 3, bar=1 / 6, peer=(10, 20, 30), judged="peer"), "holds"),
        (row(1, 2, 3, bar=1 / 6, peer=(10, None, 30), judged="peer"), "too few turns"),
        (row(1, 2, 3, bar=1 / 6, judged="peer"), "not measured"),
    ],
)  # fmt: skip
def test_a_verdict_says_noisy_where_the_spread_is_larger_than_the_margin(found: Row, verdict: str) -> None:
    assert found.verdict == verdict


@given(st.lists(st.tuples(st.floats(0.01, 10), st.floats(0.01, 10)), min_size=1, max_size=5))
def test_ratios_and_differences_are_those_within_the_turns(pairs: list[tuple[float, float]]) -> None:
    ours, limit = zip(*pairs, strict=True)
    over, beyond = row(*ours, limit=limit, judged="over"), row(*ours, limit=limit, judged="beyond")
    assert over.values == pytest.approx([a / b for a, b in pairs])
    assert beyond.values == pytest.approx([a - b for a, b in pairs])
    failed = row(*ours, None, 1.0, limit=(*limit, 1.0, None), judged="over")
    assert failed.values == over.values


def test_a_limit_of_nothing_divides_nothing_and_is_taken_away() -> None:
    assert row(1.0, 2.0, limit=(0.0, 1.0), judged="over").values == [2.0]
    assert row(1.0, 2.0, limit=(0.0, 1.0), judged="beyond").values == [1.0, 1.0]


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentile(range(100), 99) == 99
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([5.0], 99) == 5.0


def test_figures_are_shown_in_three_digits() -> None:
    assert [shown(value, "ms") for value in (0.0, 0.01234, 12.34, 99.4, 123.4, 12_345.6)] == [
        "0 ms", "0.0123 ms", "12.3 ms", "99.4 ms", "123 ms", "12,346 ms"
    ]  # fmt: skip
    assert with_spread([1.0, 2.0, 3.0], "x") == "2x ± 0.5"
    assert with_spread([1.0, 2.0], "s") == "1.5 s"
    assert with_spread([], "s") == "-"


# --- Tables, pictures and pages


ROWS = [
    row(8, 8, 8, limit=(4, 4, 4), limit_is="(a loop)", beside="on a | day"),
    Row("other", "what is longer", "s", 0.5, (1, 1, 1), peer=(None,), peer_is="(flwr)", judged="peer"),
]


def test_tables_have_the_sides_their_names_and_what_stands_beside() -> None:
    head, _, first, sides, second, others = plain(ROWS).splitlines()
    assert first.index("<=") == second.index("<=") == head.index("bar")
    assert first.split()[1:] == ["<=", "10", "ms", "8", "ms", "±", "0", "holds"]
    assert sides.strip() == "Umbel: 8 ms ± 0; limit: 4 ms ± 0 (a loop); on a | day"
    assert second.endswith("not measured")
    assert others.strip() == "Umbel: 1 s ± 0; peer: - (flwr)"
    lines = markdown(ROWS).splitlines()
    assert all(line.count("|") == len(HEADS) + 1 for line in lines[:4])
    assert lines[-1] == "- `name`: on a | day"


def test_pictures_put_every_side_over_the_bar() -> None:
    rows = [
        row(30, 60, 90, bar=3, limit=(20, 40, 60), judged="over"),
        row(1, 2, 3, bar=0.25, peer=(10, 20, 30), judged="peer"),
        row(20, 20, 20, limit=(5, 5, 5), peer=(-1, -1, -1)),
    ]
    over, peer, value = ({name: part[0] for name, part in chart.of_bar(each).items()} for each in rows)
    assert over == pytest.approx({"Umbel": 0.5, "limit": 1 / 3})
    assert peer == pytest.approx({"Umbel": 0.4, "peer": 4.0})
    assert value == pytest.approx({"Umbel": 2.0, "limit": 0.5})  # no bar can be drawn for what is below nothing
    drawn = chart.picture("a < b", [*rows, row(bar=None), row(3, 3, 3, at_least=True)])
    found = xml.fromstring(drawn)
    assert found.find("{*}title").text == "a < b"  # type: ignore[union-attr]
    assert len(found.findall("{*}rect")) == 3 + 6
    assert "prefers-color-scheme:dark" in drawn
    assert chart.picture("nothing", [row(bar=None)]) == ""


def test_figures_are_kept_by_name_and_the_pages_are_made_of_all_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pictures").mkdir()
    for name, file in (("FIGURES", "f.json"), ("RESULTS", "r.md"), ("PAGE", "p.md"), ("PICTURES", "pictures")):
        monkeypatch.setattr(pages, name, tmp_path / file)
    pages.keep("cnn", [row(1, 1, 1)])
    pages.keep("gigabyte", ROWS)
    pages.keep("cnn", [row(12, 12, 12)])
    pages.write()
    page = (tmp_path / "p.md").read_text()
    assert page.count("| what | bar |") == 2
    first, last = page.partition("## Simulations")[2].split("## Large models")
    assert "MISSED" in first
    assert " holds " in last
    assert "## Rounds" not in page
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "benchmarks-models.svg", "benchmarks-simulation.svg"
    ]  # fmt: skip
    assert json.loads((tmp_path / "f.json").read_text())["cnn"]["rows"][0]["ours"] == [12, 12, 12]
    assert "## cnn" in (tmp_path / "r.md").read_text()


def test_everything_that_can_be_measured_has_a_place_on_the_page() -> None:
    placed = [name for _, names in pages.SECTIONS.values() for name in names]
    assert sorted(placed) == sorted(program.NAMED)


# --- The command


def test_only_figures_of_full_sizes_are_kept() -> None:
    with pytest.raises(SystemExit):
        program.main(["--write", "--quick"])


def test_the_command_prints_rows_as_they_come_and_goes_on_after_what_cannot_be_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[int] = []

    def fails(smoke: bool, times: int) -> Any:
        told.append(times)
        yield row(1)
        raise SideFailed("no disk")

    monkeypatch.setattr(program, "NAMED", {"a": (fails, 7), "b": (lambda smoke, times: iter(ROWS), 7)})
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)
    assert program.main([]) == 1
    assert program.main(["a", "--quick"]) == 1
    assert program.main(["b", "--times", "2"]) == 0
    out = capsys.readouterr().out
    assert told == [7, 1]
    assert out.count("a: not measured: no disk") == 2
    assert out.count("what is longer") == 2
    assert "say nothing" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["imports", "overhead", "fedbuff", "fold", "machines", "round-2", "changed", "results"]
)
@LINUX
@TORCH
def test_a_quick_run_measures(name: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    environment.pop("UMBEL_TOKEN", None)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", name], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Umbel: " in done.stdout
    assert done.stdout.splitlines()[-1].startswith("A smoke test")


# --- Meters


def test_laps_leave_out_the_first_round_and_miss_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(meter.TOKEN, "nobody has this")
    monkeypatch.setenv("BENCH_FOLDER", str(tmp_path))
    laps = meter.Laps(3)
    laps.lap()
    with pytest.raises(RuntimeError, match="1 of 3 rounds"):
        laps.report(includes="")
    with meter.handling():
        sum(range(200_000))
    laps.lap()
    laps.lap()
    report = laps.report("numpy", "no-such-package", includes="all")
    assert len(report["seconds"]) == 2
    assert report["handled"] == pytest.approx(meter.handled() / 2)
    assert report["versions"] == {"numpy": np.__version__, "no-such-package": "?"}


def test_what_handlers_take_is_summed_over_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BENCH_FOLDER", str(tmp_path))
    assert meter.handled() == 0.0
    clock = iter([1.0, 1.5, 7.0, 7.25])
    monkeypatch.setattr(meter.time, "thread_time", lambda: next(clock))
    for _ in range(2):
        with meter.handling():
            pass
    code = (
        "from benchmarks import meter\nmeter.time.thread_time = iter([2.0, 4.0]).__next__\nwith meter.handling(): pass"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert meter.handled() == 2.75


def test_a_stopwatch_takes_from_each_part_what_it_has_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(machines.time, "process_time", lambda: next(clock))

    class Part:
        def outer(self) -> None:
            self.inner()
            self.inner()

        def inner(self) -> None:
            pass

    watch = machines.Stopwatch()
    watch.timed(Part, "outer", "out")
    watch.timed(Part, "inner", "in")
    Part().outer()
    assert watch.spent == {"outside": 1, "out": 3, "in": 2}


@LINUX
def test_members_are_those_with_the_token_and_all_below_them_whatever_their_environment() -> None:
    code = (
        "import os, json, subprocess, sys; from benchmarks import meter\n"
        "code = 'import time; print(flush=True); time.sleep(600)'\n"
        "child = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, env={},"
        " start_new_session=True)\n"
        "child.stdout.readline()\n"
        "mine = meter.members(os.environ[meter.TOKEN])\n"
        "meter.say({'pids': mine, 'child': child.pid, 'held': meter.memory(mine), 'memory': meter.memory(mine)[0]})\n"
        "child.kill()"
    )
    outcome = launch.run([sys.executable, "-c", code], limit=PATIENCE)
    assert outcome.said["child"] in outcome.said["pids"]
    held, own = outcome.said["held"]
    assert outcome.peak >= held > own > 1_000_000


@LINUX
def test_cpu_seconds_are_those_of_a_process_and_its_children() -> None:
    def mine() -> float:
        return sum(os.times()[:4])

    subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
    before, found, after = mine(), meter.cpu_seconds([os.getpid(), 0]), mine()
    assert before - 0.05 <= found <= after + 0.05
    assert found > 0.05


@LINUX
def test_the_disk_counts_what_was_synced(tmp_path: Path) -> None:
    try:
        before = meter.disk_bytes(tmp_path)
    except OSError:
        pytest.skip("no block device")
    with (tmp_path / "file").open("wb") as file:
        file.write(os.urandom(1 << 20))
    assert meter.disk_bytes(tmp_path) - before >= 1 << 20


@LINUX
def test_the_limits_do_what_they_are_the_limit_of(tmp_path: Path) -> None:
    assert len(limits.plain_rounds(2, 3, 4, tmp_path)) == 4
    assert (tmp_path / "limit.log").stat().st_size == 4 * 200
    assert limits.copied(limits.PIECE + 1, tmp_path) > 0
    assert not (tmp_path / "limit.bin").exists()


# --- Sides


@LINUX
def test_a_side_tells_what_it_said_and_took_and_leaves_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "PATIENCE", 0.1)
    code = (
        "import os, subprocess, sys, numpy as np; from benchmarks import meter\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; print(flush=True); time.sleep(600)'],"
        " stdout=-1)\n"
        "child.stdout.readline()\n"
        "np.savez(os.environ['BENCH_FOLDER'] + '/model.npz', w=np.arange(3))\n"
        "print('chatter'); meter.say({'child': child.pid})"
    )
    outcome = launch.run([sys.executable, "-c", code], limit=PATIENCE)
    assert outcome.model is not None
    assert outcome.model["w"].tolist() == [0, 1, 2]
    assert outcome.whole > 0
    assert outcome.cpu > 0
    assert not Path(f"/proc/{outcome.said['child']}/exe").exists()


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import sys; print('SomeError: no luck', file=sys.stderr); print('see there', file=sys.stderr); sys.exit(3)", "exit code 3: SomeError: no luck"),  # noqa: E501
        ("import sys; sys.exit(2)", "exit code 2: it said nothing"),
        ("import time; time.sleep(600)", "did not end within"),
    ],
)  # fmt: skip
@LINUX
def test_a_side_that_fails_says_why(code: str, why: str) -> None:
    with pytest.raises(SideFailed, match=why):
        launch.run([sys.executable, "-c", code], limit=0.0 if "sleep" in code else PATIENCE)


def test_a_peer_without_its_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_FLWR", "/nowhere/python")
    with pytest.raises(SideFailed, match="make bench-peers"):
        launch.launch(Side("flwr", "flwr", "flwr_side", peer="flwr"), REGRESSION)


def test_figures_are_a_client() -> None:
    found = replace(done(0.2, cpu=0.05, handled=0.02), clients=100)
    assert [found.wall, found.spent, found.outside] == pytest.approx([2e-3, 5e-4, 3e-4])


def test_sides_that_computed_something_else_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = initial(quick(NOOP))
    moved = {name: value + 1 for name, value in begin.items()}
    models = {"loop-2": moved, "umbel-2": {name: value + 1.5 for name, value in begin.items()}}
    monkeypatch.setattr(simulated, "launch", lambda side, workload, quick: done(1.0, model=models[side.name]))
    with pytest.raises(RuntimeError, match=r"umbel-2 did not compute what loop-2 did: they are 50"):
        simulated.beside("noop", ("loop-2", "umbel-2"), True, 1)
    models["umbel-2"] = moved
    assert simulated.beside("noop", ("loop-2", "umbel-2"), True, 1)[1]["umbel-2"][0] is not None


def test_models_are_compared_by_what_was_learned() -> None:
    begin, learned = {"w": np.zeros(2)}, {"w": np.array([3.0, 4.0])}
    assert simulated.apart(learned, learned, begin) == 0.0
    assert simulated.apart({"w": np.array([3.0, 4.5])}, learned, begin) == pytest.approx(0.1)
    assert simulated.apart({"w": np.array([0.0, 0.5])}, begin, begin) == pytest.approx(0.5)
    assert simulated.apart({"v": np.zeros(2)}, learned, begin) == float("inf")
    assert simulated.apart({"w": np.zeros(3)}, learned, begin) == float("inf")


def test_the_rows_of_overhead_hold_what_lies_outside_the_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {"loop": (0.02, 0.01), "umbel": (0.05, 0.01), "loop-2": (0.02, 0.01), "umbel-2": (0.06, 0.02)}

    def start(side: Side, workload: Workload, quick: bool) -> Outcome:
        cpu, handled = costs[side.name]
        return replace(done(1.0, cpu=cpu, handled=handled), clients=1_000)

    monkeypatch.setattr(simulated, "launch", start)
    alone, two, *noop = simulated.overhead(False, 3)
    assert (alone.name, alone.verdict) == ("overhead", "holds")
    assert [alone.ours, alone.limit] == [pytest.approx([40] * 3), pytest.approx([10] * 3)]
    assert (two.name, two.values, two.verdict) == ("overhead-2", pytest.approx([40] * 3), "holds")
    assert [found.verdict for found in noop] == ["-", "-"]
    assert two.beside == "all that a client costs: Umbel 60 us ± 0, the loop 20 us ± 0"


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


def test_another_process_makes_the_same_data_without_torch() -> None:
    code = (
        "import hashlib, sys; from benchmarks.workloads import *\n"
        "w = WORKLOADS['regression']\n"
        "parts = [*examples(w, 3), *initial(w).values(), np.array(cohort(w, 5))]\n"
        "print(hashlib.sha256(b''.join(p.tobytes() for p in parts)).hexdigest(), 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    told = {
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(told) == 1
    assert told.pop().split()[1] == "False"


def test_a_process_is_told_its_workload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_WORKLOAD", "cnn")
    assert chosen() == CNN
    monkeypatch.setenv("BENCH_QUICK", "1")
    assert chosen() == quick(CNN)
    assert chosen().cohort < CNN.cohort


@TORCH
def test_the_loop_learns_and_torch_modules_take_the_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks.peers import loop_side, nets

    monkeypatch.setenv(meter.TOKEN, "nobody has this")
    monkeypatch.setenv("BENCH_FOLDER", str(tmp_path))
    for task in (REGRESSION, CNN, NOOP):
        assert simulated.apart(nets.arrays(nets.net(task)), initial(task), initial(task)) == 0.0
    laps = meter.Laps(2)
    model = {name: value.numpy() for name, value in loop_side.alone(quick(REGRESSION), 2, laps).items()}
    assert simulated.apart(model, initial(REGRESSION), initial(REGRESSION)) > 0.0
    assert laps.report("numpy", includes="all")["handled"] > 0.0


# --- Deployments


@LINUX
def test_a_deployment_leaves_no_process_and_no_folder() -> None:
    with Deployment() as deployed:
        assert deployed.serve() > 0
        place, server = deployed.folder, deployed.server
        assert server.pid in meter.members(deployed.mark)
    assert not place.exists()
    assert not server.running


def test_a_percentile_and_a_median_of_turns_are_in_milliseconds() -> None:
    assert deployment._of(max, [[0.001, 0.002], None]) == [2.0, None]
