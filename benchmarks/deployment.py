"""Deployments: what a round takes over real connections, what large models take, how many nodes a server bears.

Everything is on this machine: server, nodes, their children and the run share its cores.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from umbel.testing.machines import MachineProcess

from . import limits
from .deployed import Deployment, many_open_files
from .figures import Row, percentile, turns
from .launch import Side, launch
from .meter import Watch, disk_bytes, loopback_bytes, members, memory
from .served import loosen

GIGA, MEGA = 10**9, 10**6
WARM = 20
"""Rounds that do not count."""
FLOAT = 4
FLWR = Side("flwr", "flwr", "flwr_deployed", peer="flwr")


# Rounds


def round_(nodes: int, bars: tuple[float | None, float | None], peer: bool, smoke: bool, times: int) -> Iterator[Row]:
    """A round of so many nodes, from commit to commit."""
    nodes, rounds = (2, 5) if smoke else (nodes, 100)
    with Deployment() as deployed:
        deployed.serve()
        programs, _ = deployed.join(nodes)
        held: list[float | None] = []

        def ours() -> list[float]:
            found = _rounds(deployed, rounds)
            mine = [pid for pid in members(deployed.mark) if any(_descends(pid, node.pid) for node in programs)]
            held.append(memory(mine)[0] / nodes / MEGA)
            return found

        sides: dict[str, Callable[[], Any]] = {
            "umbel": ours,
            "plain": lambda: limits.plain_rounds(nodes, 1, rounds, deployed.folder),
        }
        if peer:
            sides["flwr"] = lambda: launch(FLWR, nodes=nodes, floats=10, rounds=3, arrays=1).said
        found = turns(sides, times)
    halves = {name: _of(median, all_) for name, all_ in found.items()}
    what = f"one round of {nodes} nodes, 10 floats, no-op"
    yield Row(
        f"round-{nodes}", what, "ms", bars[0], halves["umbel"], halves["plain"], halves.get("flwr", ()),
        "(plain sockets and one sync)", "(flwr, without TLS, in memory)" if peer else "",
        beside=f"wall, from commit to commit; medians of {rounds} rounds",
    )  # fmt: skip
    most, bounds = (_of(lambda all_: percentile(all_, 99), found[name]) for name in ("umbel", "plain"))
    yield Row(f"round-{nodes}-99", f"{what}: 99 %", "ms", bars[1], most, bounds, limit_is="(plain sockets)")
    yield Row(f"round-{nodes}-memory", f"{what}: memory of a node (PSS)", "MB", 100.0, held)


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1 and pid != ancestor:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return pid == ancestor


def _of(figure: Callable[[Sequence[float]], float], turns: Sequence[Sequence[float] | None]) -> list[float | None]:
    """A figure of the seconds of each turn, in milliseconds."""
    return [None if seconds is None else 1000 * figure(seconds) for seconds in turns]


def _rounds(deployed: Deployment, rounds: int, asked: int | None = None) -> list[float]:
    """The seconds from commit to commit, the first rounds aside; in each of which so many clients answered."""
    warm = min(WARM, rounds)
    log = deployed.followed(deployed.run(floats=10, rounds=rounds + warm))
    counts = {event["count"] for event in log if event["event"] == "ask_closed" and event["round"] > warm}
    assert asked is None or counts == {asked}, counts
    ends = [event["at"] for event in log if event["event"] == "round_committed"]
    return [end - begin for begin, end in pairwise(ends)][warm - 1 :]


def slow_disk(smoke: bool, times: int) -> Iterator[Row]:
    """Rounds where each commit of the server takes longer."""
    nodes, rounds = (2, 5) if smoke else (10, 60)
    with Deployment() as deployed:
        deployed.serve_otherwise(delay=0.005)
        deployed.join(nodes)
        found = turns({"umbel": lambda: _rounds(deployed, rounds)}, times)["umbel"]
    what = f"one round of {nodes} nodes, each commit of the server 5 ms longer"
    yield Row("slow-disk", what, "ms", 50.0, _of(median, found), [5.0] * len(found), limit_is="(one commit)")


def thousand(smoke: bool, times: int) -> Iterator[Row]:
    """Many clients in a few nodes."""
    nodes, clients, rounds = (2, 5, 5) if smoke else (4, 250, 20)
    with Deployment() as deployed:
        deployed.serve()
        deployed.join(nodes, clients)
        sides: dict[str, Callable[[], Any]] = {
            "umbel": lambda: _rounds(deployed, rounds, nodes * clients),
            "plain": lambda: limits.plain_rounds(nodes, clients, rounds, deployed.folder),
        }
        ours, bounds = (_of(median, all_) for all_ in turns(sides, times).values())
    what = f"one round of {nodes * clients:,} clients in {nodes} nodes, 10 floats, all asked"
    yield Row("thousand", what, "ms", 400.0, ours, bounds, limit_is="(plain sockets and one sync)")


# Large models


def two_nodes(smoke: bool, times: int) -> Iterator[Row]:
    """A model that goes to two nodes and comes back from both."""
    size, nodes = MEGA if smoke else 400 * MEGA, 2
    with Deployment() as deployed:
        deployed.serve()
        deployed.join(nodes)
        seeds = iter(range(1_000))
        sides: dict[str, Callable[[], Any]] = {
            "umbel": lambda: _phase(deployed, size, next(seeds))[0],
            "copies": lambda: sum(limits.copied(size, deployed.folder) for _ in range(2 * nodes)),
            "flwr": lambda: launch(FLWR, nodes=nodes, floats=size // FLOAT, rounds=1, arrays=10),
        }
        ours, copies, peer = turns(sides, times).values()
    held = [f"{done.peak / GIGA:.1f} GB" for done in peer if done is not None]
    yield Row(
        "two-nodes", f"{size // MEGA} MB model, {nodes} nodes, one train phase, no-op", "s", 1 / 6, ours, copies,
        [done and done.said[0] for done in peer], "(write, sync, read and hash it, once a leg and node)",
        "(flwr, without TLS, in memory)", "peer", beside=f"memory of all of flwr: {', '.join(held)}" if held else "",
    )  # fmt: skip


def gigabyte(smoke: bool, times: int) -> Iterator[Row]:
    """A model that goes to one node and comes back: time, memory, and what is written to the disk."""
    size = MEGA if smoke else GIGA
    held: list[float | None] = []
    rest: list[float | None] = []
    written: list[float | None] = []
    whole = []

    def there_and_back() -> float:
        with Deployment() as deployed:
            deployed.serve()
            deployed.join(1)
            watch = Watch(deployed.mark)
            rest.append(memory(members(deployed.mark))[1] / GIGA)
            with watch.watched():
                seconds, run, disk = _phase(deployed, size)
            held.append(watch.own / GIGA)
            written.append(disk / size)
            whole.append(run)
            return seconds

    def copies() -> float:
        with Deployment() as deployed:
            return sum(limits.copied(size, deployed.folder) for _ in range(2))

    ours, limit = turns({"umbel": there_and_back, "copies": copies}, times).values()
    what = f"{size / GIGA:g} GB model, 1 node, there and back"
    yield Row(
        "gigabyte", what, "s", 2.5, ours, limit, limit_is="(write, sync, read and hash it, once a leg)", judged="over",
        beside=f"wall, from ask to answer; the whole run {median(whole):.1f} s" if whole else "",
    )  # fmt: skip
    yield Row(
        "gigabyte-memory", f"{what}: memory of all processes in no file", "GB", 0.6, held, rest, limit_is="(before)"
    )
    yield Row(
        "gigabyte-disk", f"{what}: bytes written to the disk, over the model's", "x", 4.0, written,
        [2.0] * len(written),
        limit_is="(once a leg)",
        beside="by the block device's counter, after the initial model is there; others who write to it count as well",
    )  # fmt: skip


def changed(smoke: bool, times: int) -> Iterator[Row]:
    """A second round in which one array of a hundred changes."""
    size, arrays = (MEGA if smoke else 400 * MEGA), 100
    sent: list[float | None] = []

    def second() -> float:
        with Deployment() as deployed:
            deployed.serve()
            deployed.join(1)
            seen = [(loopback_bytes(), disk_bytes(deployed.folder))]
            run = deployed.run(floats=size // FLOAT, rounds=2, arrays=arrays, changed=1)

            def look(_: int) -> None:
                if len(seen) == 1 and len(_committed(run)) == 1:
                    seen.append((loopback_bytes(), disk_bytes(deployed.folder)))

            deployed.followed(run, between=look, every=0.02)
            seen.append((loopback_bytes(), disk_bytes(deployed.folder)))
        assert len(seen) == 3, "the second round was over before the first was seen to be"
        first, again = ([after - before for before, after in zip(*pair, strict=True)] for pair in pairwise(seen))
        sent.append(100 * again[0] / first[0])
        return 100 * again[1] / first[1]

    written = turns({"umbel": second}, times)["umbel"]
    what = f"{size // MEGA} MB model of {arrays} arrays, 1 node, a second round in which one changes"
    limit = [100 / arrays] * len(written)
    yield Row("changed", f"{what}: bytes sent, over the first round's", "%", 3.0, sent, limit, limit_is="(its share)")
    yield Row(
        "changed-disk", f"{what}: bytes written to the disk, over the first round's", "%", 3.0, written, limit,
        limit_is="(its share)",
    )  # fmt: skip


def _phase(deployed: Deployment, size: int, seed: int = 0) -> tuple[float, float, int]:
    """The seconds of the one ask of a run with a model of so many bytes, those of the whole run, and the bytes that
    were written to the disk from its beginning on, the initial model being there.
    """
    begun: list[int] = []

    def look(_: int) -> None:
        begun or begun.append(disk_bytes(deployed.folder))

    log = deployed.followed(
        deployed.run(floats=size // FLOAT, rounds=1, arrays=10, seed=seed, delta=True), between=look, every=0.02
    )
    (ask,) = (event for event in log if event["event"] == "ask_closed")
    return ask["seconds"], log[-1]["at"] - log[0]["at"], disk_bytes(deployed.folder) - begun[0]


def stream(smoke: bool, times: int) -> Iterator[Row]:
    """A model that is larger than the memory of server and run."""
    nodes, size, limit = (2, 4 * MEGA, 400 * MEGA) if smoke else (6, 3_200 * MEGA, GIGA)
    arrays = 32

    def streamed() -> float:
        with ExitStack() as stack:
            deployed = Deployment()
            stack.callback(loosen, deployed.folder.name)
            stack.enter_context(deployed)
            deployed.serve_otherwise(memory=limit)
            path = str(deployed.folder / "update")
            light = _light(deployed, "stream", str(deployed.place), path, nodes, size // FLOAT, arrays)
            light.wait_for("^ready", seconds=300)
            log = deployed.followed(deployed.run(floats=size // FLOAT, rounds=1, arrays=arrays), 1200)
            said = _said(light)
        (ask,) = (event for event in log if event["event"] == "ask_closed")
        assert ask["count"] == nodes, ask["failed"]
        return float(said["bytes"] / said["seconds"] / MEGA)

    def copy() -> float:
        with Deployment() as deployed:
            return size / limits.copied(size, deployed.folder) / MEGA

    ours, bound = turns({"umbel": streamed, "copy": copy}, times).values()
    yield Row(
        "stream", f"{size / GIGA:g} GB model, {nodes} light clients, server and run in a group of {limit / GIGA:g} GB",
        "MB/s", 300.0, ours, bound, limit_is="(write, sync, read and hash)", at_least=True,
        beside="from the first Want to the last Ack, both ways; the group's limit counts caches too",
    )  # fmt: skip


# What a server bears


def idle(smoke: bool, times: int) -> Iterator[Row]:
    """Many nodes that are connected and do nothing."""
    count, seconds = (20, 0.5) if smoke else (5_000, 30.0)
    _enough_files(count + 500)

    def side() -> Any:
        with Deployment() as deployed:
            deployed.serve()
            said = _said(_light(deployed, "idle", str(deployed.place), deployed.server.pid, count, seconds))
        assert said["connected"] == count, said
        return said

    found = turns({"umbel": side}, times)["umbel"]
    what = f"{count:,} connected idle nodes on one server"
    yield Row("idle", f"{what}: its memory (RSS)", "GB", 1.0, [said and said["bytes"] / GIGA for said in found])
    yield Row("idle-cpu", f"{what}: its process", "% of a core", 20.0, [said and 100 * said["share"] for said in found])


def hostile(smoke: bool, times: int) -> Iterator[Row]:
    """Rounds of honest nodes while others do harm."""
    count, seconds, before, rounds = (8, 2.0, 5, 40) if smoke else (1_000, 100.0, 200, 1_000_000)
    _enough_files(2 * count + 500)
    more: list[float | None] = []
    calm_rounds: list[float | None] = []

    def side() -> float:
        with Deployment() as deployed:
            deployed.serve()
            deployed.join(2 if smoke else 10)
            run = deployed.run(floats=10, rounds=rounds)
            calm = _ends(run, before)
            most = held = _resident(deployed.server.pid)
            attackers = _light(deployed, "attack", str(deployed.place), run.name, count, seconds, of="hostile")
            attackers.wait_for("^attacking", seconds=300)
            first = len(_committed(run))
            while not re.search("^said (.*)$", attackers.output, re.MULTILINE) and attackers.running:
                most = max(most, _resident(deployed.server.pid))
                time.sleep(0.2)
            ends = _committed(run)[max(0, first - 1) :]
            assert deployed.server.running
        more.append((most - held) / MEGA)
        usual = [end - begin for begin, end in pairwise(calm[min(WARM, before // 2) :])]
        calm_rounds.append(1000 * median(usual))
        found = [end - begin for begin, end in pairwise(ends)]
        assert found, "no round was committed"
        return 1000 * median(found)

    ours = turns({"umbel": side}, times)["umbel"]
    what = f"{count:,} hostile connections for {seconds:.0f} s: silent, slow, flooding, unread"
    yield Row(
        "hostile", f"{what}: a round of honest nodes", "ms", 2.0, ours, calm_rounds, limit_is="(before)", judged="over"
    )
    yield Row("hostile-memory", f"{what}: the server's memory grows by (RSS)", "MB", 300.0, more)


def _enough_files(wanted: int) -> None:
    if (files := many_open_files()) < wanted:
        raise RuntimeError(f"a process may have {files} files open here: ulimit -n")


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


def results(smoke: bool, times: int) -> Iterator[Row]:
    """Many small results that are stored and acknowledged."""
    nodes, clients, asks = (2, 10, 2) if smoke else (20, 250, 4)

    def side() -> float:
        with Deployment() as deployed:
            (line,) = deployed.serve_otherwise(runs=["rate"])
            said = _said(_light(deployed, "rate", str(deployed.place), line, nodes, clients, asks))
        return float(said["results"] / said["seconds"])

    found = turns({"umbel": side}, times)["umbel"]
    what = f"{nodes * clients * asks:,} results of 1 KB from {nodes} light nodes, stored and acknowledged"
    yield Row("results", what, "a second", 2_000.0, found, at_least=True)


def ready(smoke: bool, times: int) -> Iterator[Row]:
    """The start of a server and of a node."""

    def side() -> tuple[float, float]:
        with Deployment() as deployed:
            return deployed.serve(), deployed.join(1)[1][0]

    found = turns({"umbel": side}, times)["umbel"]
    for place, what in enumerate(("umbel server, to ready", "umbel node, to connected")):
        yield Row(what.split(",")[0].replace(" ", "-"), what, "s", 1.0, [both and both[place] for both in found])


def _light(deployed: Deployment, name: str, *arguments: Any, of: str = "light_clients") -> MachineProcess:
    """Start a process of light clients, or of what another module has."""
    code = f"import sys, json; from benchmarks import {of}; {of}.{name}(*json.loads(sys.argv[1]))"
    return deployed.program("-c", code, json.dumps(arguments))


def _said(light: MachineProcess) -> Any:
    return json.loads(light.wait_for(r"^said (.*)$", seconds=1200)[1])


PARTS: dict[str, tuple[Callable[[bool, int], Iterator[Row]], int]] = {
    "round-2": (partial(round_, 2, (None, None), True), 3),
    "round-10": (partial(round_, 10, (15.0, 40.0), True), 5),
    "round-50": (partial(round_, 50, (70.0, None), False), 5),
    "thousand": (thousand, 5),
    "slow-disk": (slow_disk, 3),
    "two-nodes": (two_nodes, 5),
    "gigabyte": (gigabyte, 5),
    "changed": (changed, 3),
    "stream": (stream, 3),
    "results": (results, 3),
    "idle": (idle, 3),
    "hostile": (hostile, 3),
    "ready": (ready, 5),
}
"""What can be measured, and in how many turns unless said otherwise."""
