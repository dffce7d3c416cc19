"""Deployments: what a round takes over real connections, what large models take, how many nodes a server bears.

Everything is on this machine: server, nodes, their children and the run share its cores.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

from .deployed import Deployment, MachineProcess, Memory, many_open_files
from .measure import Row

GIGA, MEGA = 10**9, 10**6
WARM = 20
"""Rounds that do not count."""
FLOAT = 4
RUN_SHARE = 0.85
"""Of the memory that a server and a run may have together, what the run may."""


def rows(quick: bool, only: Sequence[str] = ()) -> list[Row]:
    """Measure deployments; `only` names the `PARTS` that are wanted."""
    return [row for name, part in PARTS.items() if not only or name in only for row in _measured(name, part, quick)]


def _measured(name: str, part: Callable[[bool], Iterator[Row]], quick: bool) -> list[Row]:
    if sys.platform != "linux":
        return [Row(f"deployment.{name}", "-", "-", None, "processes are looked at as Linux shows them")]
    print(f"deployment.{name}", file=sys.stderr)
    return list(part(quick))


# Rounds


def _round(quick: bool) -> Iterator[Row]:
    nodes, rounds = (2, 5) if quick else (10, 200)
    with Deployment() as deployed:
        deployed.serve()
        deployed.join(nodes)
        found = _rounds(deployed, rounds)
    half, most = median(found), _percentile(found, 99)
    what = f"one round: {nodes} nodes, 10 floats, no-op: from commit to commit"
    yield Row(
        what,
        f"{half:.1f} ms, 99 %: {most:.1f} ms",
        "<= 15 ms, 99 %: <= 50 ms",
        half <= 15 and most <= 50,
        f"wall, {len(found)} rounds after {_warm(rounds)}; mean {mean(found):.1f} ms, worst {max(found):.0f} ms",
    )


def _slow_disk(quick: bool) -> Iterator[Row]:
    nodes, rounds = (2, 5) if quick else (10, 120)
    with Deployment() as deployed:
        deployed.serve_otherwise(delay=0.005)
        deployed.join(nodes)
        found = _rounds(deployed, rounds)
    half = median(found)
    yield Row(
        f"the same, {nodes} nodes, each commit of the server 5 ms longer",
        f"{half:.1f} ms",
        "<= 50 ms",
        half <= 50,
        f"wall, {len(found)} rounds; 99 %: {_percentile(found, 99):.1f} ms",
    )


def _fifty(quick: bool) -> Iterator[Row]:
    nodes, rounds = (2, 5) if quick else (50, 60)
    held: dict[int, int] = {}
    with Deployment() as deployed:
        deployed.serve()
        programs, _ = deployed.join(nodes)

        def look(size: int) -> None:
            if not held:
                held.update(Memory().look())

        found = _rounds(deployed, rounds, look)
        each = _of_nodes(held, programs) / len(programs) / MEGA
    half = median(found)
    yield Row(
        f"one round: {nodes} nodes, 10 floats, no-op",
        f"{half:.1f} ms",
        "<= 80 ms",
        half <= 80,
        f"wall, {len(found)} rounds; 99 %: {_percentile(found, 99):.1f} ms",
    )
    yield Row(
        "the same: memory of a node with its child",
        f"{each:.0f} MB",
        "<= 100 MB",
        each <= 100,
        "what it shares with others by its share (PSS)",
    )


def _rounds(deployed: Deployment, rounds: int, between: Callable[[int], object] | None = None) -> list[float]:
    """The milliseconds from commit to commit, the first rounds aside."""
    run = deployed.run(floats=10, rounds=rounds + _warm(rounds))
    log = deployed.followed(run, between=between)
    ends = [event["at"] for event in log if event["event"] == "round_committed"]
    return [1000 * (end - begin) for begin, end in pairwise(ends)][_warm(rounds) - 1 :]


def _warm(rounds: int) -> int:
    return min(WARM, rounds)


def _percentile(values: Sequence[float], percent: float) -> float:
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(len(ranked) * percent / 100))]


def _of_nodes(held: dict[int, int], nodes: Sequence[MachineProcess]) -> int:
    """The memory of nodes and of all that they have started."""
    mine = {node.pid for node in nodes}
    for pid in held:
        parent = pid
        while parent > 1 and parent not in mine:
            parent = _parent(parent)
        if parent in mine:
            mine.add(pid)
    return sum(size for pid, size in held.items() if pid in mine)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


# Large models


def _two_nodes(quick: bool) -> Iterator[Row]:
    size = MEGA if quick else 400 * MEGA
    with Deployment() as deployed:
        deployed.serve()
        deployed.join(2)
        seconds, whole = _phase(deployed, size)
    yield Row(
        f"{size // MEGA} MB model, 2 nodes, one train phase, no-op",
        f"{seconds:.1f} s",
        "<= 4 s",
        seconds <= 4,
        f"wall, from ask to answer; the whole run, from start to end, {whole:.1f} s",
    )


def _gigabyte(quick: bool) -> Iterator[Row]:
    size = MEGA if quick else GIGA
    memory = Memory()
    with Deployment() as deployed:
        deployed.serve()
        deployed.join(1)
        with memory.watched():
            seconds, whole = _phase(deployed, size)
    what = f"{size / GIGA:g} GB model of random arrays, 1 node, there and back"
    yield Row(
        what, f"{seconds:.1f} s", "<= 6 s", seconds <= 6, f"wall, from ask to answer; the whole run {whole:.1f} s"
    )
    held = memory.all / GIGA
    yield Row(
        "the same: memory of all processes together",
        f"{held:.2f} GB",
        "<= 3.5 GB",
        held <= 3.5,
        f"PSS, looked at every 0.2 s; {memory.own / GIGA:.2f} GB at most was in no file",
    )


def _phase(deployed: Deployment, size: int) -> tuple[float, float]:
    """The seconds of the one ask of a run with a model of so many bytes, and those of the whole run."""
    log = deployed.followed(deployed.run(floats=size // FLOAT, rounds=1, arrays=10))
    (ask,) = (event for event in log if event["event"] == "ask_closed")
    return ask["seconds"], log[-1]["at"] - log[0]["at"]


def _stream(quick: bool) -> Iterator[Row]:
    nodes, size, spare = (2, 4 * MEGA, 1600 * MEGA) if quick else (6, 3_200 * MEGA, 300 * MEGA)
    arrays = 32
    limit = int(2.5 * size) + spare
    share = int(limit * (1 - RUN_SHARE))
    first = f"import resource\nresource.setrlimit(resource.RLIMIT_DATA, ({limit - share}, {limit - share}))\n"
    memory = Memory()
    with Deployment() as deployed:
        deployed.serve_otherwise(memory=limit, share=share)
        path = str(deployed.folder / "update")
        light = _light(deployed, "stream", str(deployed.place), path, nodes, size // FLOAT, arrays)
        light.wait_for("^ready", seconds=300)
        with memory.watched(1.0):
            run = deployed.run(floats=size // FLOAT, rounds=1, arrays=arrays, first=first)
            log = deployed.followed(run, 1200)
        said = _said(light)
    rate = said["bytes"] / said["seconds"] / MEGA
    (ask,) = (event for event in log if event["event"] == "ask_closed")
    assert ask["count"] == nodes, ask["failed"]
    what = f"{size / GIGA:g} GB model, {nodes} light clients stream it there and back"
    yield Row(
        f"{what}: server and run within {limit / GIGA:.1f} GB",
        "finishes",
        "finishes",
        True,
        f"RLIMIT_DATA: {share / GIGA:.1f} GB for the server, {(limit - share) / GIGA:.1f} GB for the run; "
        f"{ask['seconds']:.0f} s from ask to answer",
    )
    yield Row(
        "the same: aggregate transfer",
        f"{rate:.0f} MB/s",
        ">= 300 MB/s",
        rate >= 300,
        f"from the first Want to the last Ack; results are on the disk by then: {said['bytes'] / 2e9:.1f} GB written",
    )


# What a server bears


def _idle(quick: bool) -> Iterator[Row]:
    count, seconds = (20, 0.5) if quick else (5_000, 30.0)
    what = f"{count:,} connected idle nodes on one server"
    if (files := many_open_files()) < count + 500:
        yield Row(what, "-", "<= 1 GB", None, f"a process may have {files} files open here: ulimit -n")
        return
    with Deployment() as deployed:
        deployed.serve()
        light = _light(deployed, "idle", str(deployed.place), deployed.server.pid, count, seconds)
        said = _said(light)
    assert said["connected"] == count, said
    held, share = said["bytes"] / GIGA, 100 * said["share"]
    yield Row(
        f"{what}: memory of the server",
        f"{held:.2f} GB",
        "<= 1 GB",
        held <= 1,
        f"RSS; {said['before'] / GIGA:.2f} GB before; to connect them took {said['connecting']:.0f} s",
    )
    yield Row(
        "the same: time of the server's process",
        f"{share:.0f} % of a core",
        "<= 20 %",
        share <= 20,
        f"over {seconds:.0f} s, in which each is pinged once",
    )


def _hostile(quick: bool) -> Iterator[Row]:
    count, seconds, before, rounds = (8, 2.0, 5, 40) if quick else (1_000, 300.0, 200, 1_000_000)
    what = f"{count:,} hostile connections for {seconds:.0f} s: silent, slow, flooding, unread"
    if (files := many_open_files()) < 2 * count + 500:
        yield Row(what, "-", "<= 2x", None, f"a process may have {files} files open here: ulimit -n")
        return
    with Deployment() as deployed:
        deployed.serve()
        deployed.join(2 if quick else 10)
        run = deployed.run(floats=10, rounds=rounds)
        calm = _ends(run, before)
        held = _resident(deployed.server.pid)
        most, attackers = held, _light(deployed, "attack", str(deployed.place), run.name, count, seconds, of="hostile")
        attackers.wait_for("^attacking", seconds=300)
        first = len(_committed(run))
        while not (said := re.search("^said (.*)$", attackers.output, re.MULTILINE)) and attackers.running:
            most = max(most, _resident(deployed.server.pid))
            time.sleep(0.2)
        assert said is not None, attackers.output
        ends = _committed(run)[max(0, first - 1) :]
        assert deployed.server.running
    usual = median(1000 * (end - begin) for begin, end in pairwise(calm[min(WARM, before // 2) :]))
    found = [1000 * (end - begin) for begin, end in pairwise(ends)]
    assert found, "no round was committed"
    beside = ", ".join(f"{name} {number:,}" for name, number in json.loads(said[1]).items())
    yield Row(
        f"{what}: a round of honest nodes",
        f"{median(found) / usual:.1f}x, 99 %: {_percentile(found, 99) / usual:.1f}x",
        "<= 2x",
        median(found) <= 2 * usual,
        f"wall, against {usual:.0f} ms before; {len(found)} rounds, worst {max(found):.0f} ms; {beside}",
    )
    more = (most - held) / MEGA
    yield Row("the same: memory of the server", f"{more:+.0f} MB", "<= 300 MB more", more <= 300, "RSS, every 0.2 s")


def _ends(run: Path, count: int) -> list[float]:
    """When rounds of a run were committed, once so many are."""
    until = time.monotonic() + 600
    while len(found := _committed(run)) < count:
        if time.monotonic() > until:
            raise RuntimeError(f"{len(found)} rounds were committed in 10 minutes")
        time.sleep(0.1)
    return found


def _committed(run: Path) -> list[float]:
    log = run / "run" / "events.jsonl"
    lines = log.read_bytes().splitlines(keepends=True) if log.exists() else []
    return [json.loads(line)["at"] for line in lines if b'"event":"round_committed"' in line and line.endswith(b"\n")]


def _resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) * 1024


def _results(quick: bool) -> Iterator[Row]:
    nodes, clients, asks = (2, 10, 2) if quick else (20, 250, 4)
    with Deployment() as deployed:
        (line,) = deployed.serve_otherwise(runs=["rate"])
        light = _light(deployed, "rate", str(deployed.place), line, nodes, clients, asks)
        said = _said(light)
        deployed.server.kill()
        stored = _stored(deployed.place / "server.db")
    rate = said["results"] / said["seconds"]
    assert stored == said["results"], (stored, said)
    yield Row(
        f"{said['results']:,} results of {said['bytes']} bytes from {nodes} light nodes: stored and acknowledged",
        f"{rate:,.0f} a second",
        ">= 2,000",
        rate >= 2000,
        "all of them were in the store of the server, which was killed at the last acknowledgement",
    )


def _stored(path: Path) -> int:
    from umbel.store.sql import SqlStore

    store = SqlStore(path)
    count = len(store.rows("answers"))
    store.close()
    return count


def _start(quick: bool) -> Iterator[Row]:
    servers, nodes = [], []
    for _ in range(1 if quick else 5):
        with Deployment() as deployed:
            servers.append(deployed.serve())
            nodes.append(deployed.join(1)[1][0])
    for what, seconds in (("`umbel server` to ready", servers), ("`umbel node` to connected", nodes)):
        half = median(seconds)
        beside = f"wall, from the start of the process to its line, on empty folders; at most {max(seconds):.2f} s"
        yield Row(what, f"{half:.2f} s", "<= 1 s", half <= 1, beside)


def _light(deployed: Deployment, name: str, *arguments: Any, of: str = "light_clients") -> MachineProcess:
    """Start a process of light clients, or of what another module has."""
    code = f"import sys, json; from benchmarks import {of}; {of}.{name}(*json.loads(sys.argv[1]))"
    return deployed.program("-c", code, json.dumps(arguments))


def _said(light: MachineProcess) -> Any:
    return json.loads(light.wait_for(r"^said (.*)$", seconds=1200)[1])


PARTS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "round": _round,
    "slow-disk": _slow_disk,
    "two-nodes": _two_nodes,
    "gigabyte": _gigabyte,
    "fifty": _fifty,
    "stream": _stream,
    "idle": _idle,
    "hostile": _hostile,
    "results": _results,
    "start": _start,
}
