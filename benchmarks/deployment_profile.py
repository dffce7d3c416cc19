"""Where the time of a deployment goes: `python -m benchmarks.deployment_profile [round | transfer] [--size BYTES]`.

Each process of the server, the nodes, their children and the run looks at its own main thread whenever the process has
had another millisecond of processor time, and leaves what it saw when it ends: in a file, or in its log where it is
confined. Printed are the seconds of a kind of
process by function, those that were called from it included, and by line, those alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from .deployed import Deployment

ENDING = 3.0
"""So many seconds a run and its clients' processes have to end."""
KINDS = {"umbel.cli.runner": "run", "umbel.node.child": "child", "server": "server", "node": "node"}
SITE = """
def _watch():
    import atexit, collections, json, os, signal, sys
    seen, began = collections.Counter(), []
    def look(number, frame):
        names = []
        while frame is not None:
            code = frame.f_code
            names.append(f"{code.co_filename}:{frame.f_lineno}:{code.co_qualname}")
            frame = frame.f_back
        seen[tuple(names)] += 1
    def tell():
        signal.setitimer(signal.ITIMER_PROF, 0)
        said = {"argv": began or sys.orig_argv, "cpu": sum(os.times()[:2]), "seen": [[*k, v] for k, v in seen.items()]}
        try:
            with open(f"FOLDER/{os.getpid()}.part", "w") as file:
                file.write(json.dumps(said))
            os.rename(file.name, f"FOLDER/{os.getpid()}.json")
        except OSError:
            print("profile", json.dumps(said), flush=True)
    atexit.register(tell)
    began += sys.orig_argv
    signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)
_watch()
"""


def main() -> None:
    """Profile a deployment, and print what came out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deployment_profile")
    parser.add_argument("what", choices=["round", "transfer"])
    parser.add_argument("--nodes", type=int, default=0, help="10 for rounds, 1 for a transfer")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--size", type=int, default=500_000_000, help="bytes of the model of a transfer")
    parser.add_argument("--top", type=int, default=25)
    chosen = parser.parse_args()
    small = chosen.what == "round"
    with tempfile.TemporaryDirectory(prefix="umbel-profile-") as found:
        site = Path(found)
        (site / "sitecustomize.py").write_text(SITE.replace("FOLDER", found))
        with Deployment(site) as deployed:
            deployed.serve()
            deployed.join(chosen.nodes or (10 if small else 1))
            floats, rounds, arrays = (10, chosen.rounds, 1) if small else (chosen.size // 4, 1, 10)
            log = deployed.followed(deployed.run(floats=floats, rounds=rounds, arrays=arrays))
            time.sleep(ENDING)
            told = [line for path in deployed.folder.rglob("*.log") for line in path.read_text().splitlines()]
            for number, line in enumerate(line for line in told if line.startswith("profile ")):
                (site / f"said-{number}.json").write_text(line.removeprefix("profile "))
        ends = [event["at"] for event in log if event["event"] == "round_committed"]
        print(f"{rounds} rounds in {ends[-1] - log[0]['at']:.3f} s")
        print_profile(site.glob("*.json"), rounds, chosen.top)


def print_profile(files: Iterable[Path], rounds: int, top: int) -> None:
    """Print what the processes saw, by kind of process."""
    kinds: dict[str, list[list[list[str | int]]]] = {}
    cpu: Counter[str] = Counter()
    for path in files:
        said = json.loads(path.read_text())
        kind = next((kind for word, kind in KINDS.items() if word in said["argv"]), "other")
        kinds.setdefault(kind, []).append(said["seen"])
        cpu[kind] += said["cpu"]
    for kind, all_seen in sorted(kinds.items()):
        within: Counter[str] = Counter()
        alone: Counter[str] = Counter()
        loaded = 0
        for *stack, count in (row for seen in all_seen for row in seen):
            names = [str(name) for name in stack]
            if not names or any("importlib" in name for name in names):
                loaded += int(count)
                continue
            alone[_short(names[0])] += int(count)
            for name in {_function(name) for name in names if "/umbel/" in name}:
                within[name] += int(count)
        number = len(all_seen)
        total = sum(alone.values())
        # The system may look less often than it was asked to: a look stands for its share of the time.
        each = 1000 * cpu[kind] / max(1, total + loaded)
        print(
            f"\n{kind}: {number} processes, {cpu[kind]:.2f} CPU-seconds, {loaded * each / 1000:.2f} of them importing"
        )
        each /= rounds * number
        print(f"  {total * each:.3f} ms a round and process besides")
        for title, counted in (("with what they call", within), ("alone", alone)):
            print(f"  {title}:")
            for name, count in counted.most_common(top):
                print(f"    {100 * count / max(1, total):5.1f} %  {count * each:8.3f} ms  {name}")


def _function(name: str) -> str:
    path, _, function = name.split(":", 2)
    return f"{path.rpartition('/umbel/')[2]} {function}"


def _short(name: str) -> str:
    path, line, function = name.split(":", 2)
    return f"{'/'.join(path.split('/')[-3:])}:{line} {function}"


if __name__ == "__main__":
    main()
