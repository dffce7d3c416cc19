"""`make fuzz`: each target for its share of the minutes, in a process of its own; what crashes, hangs or grows is kept.

    python -m tests.fuzz.campaign --minutes 60 [--target NAME]... [--seed N]

Half of the time atheris leads the way by what code an input has reached, where it is installed; in the other half
inputs are changed without looking, and time and memory are measured: an input that takes over a second of processor
time is a hang, and a process whose memory has grown to over 1.2 times what it was after a fifth of its time has a leak.
What is found lies in the folder `.fuzz/found`, with the traceback beside it; put it into `tests/fuzz/corpus/TARGET`
once it is mended.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import random
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
PLACE = ROOT / ".fuzz"
HANG, GROWTH = 1.0, 1.2
WARM = 0.2
"""After this part of its time a process has loaded and cached what it will."""
POOL = 4 << 20
STUCK = 300.0
"""So many seconds after its time a process that has not ended hangs: machines may be busy."""
LONGEST = 1 << 16


class Watch:
    """Has a target read inputs, and keeps those that it should not have choked on; `told` is what came of them so far.

    What is being read lies in `current`, so that it is not lost with the process.
    """

    def __init__(self, name: str, read: Callable[[bytes], object], place: Path, way: str) -> None:
        self.told: dict[str, Any] = {"target": name, "way": way, "inputs": 0, "found": [], "growth": None}
        self._read, self._place, self._name = read, place, name
        self._kinds: set[tuple[str, ...]] = set()
        self._began = self._due = time.monotonic()
        place.mkdir(parents=True, exist_ok=True)
        with open(place / f"{name}.current", "w+b") as file:
            file.truncate(LONGEST + 8)
            self._current = mmap.mmap(file.fileno(), LONGEST + 8)

    def read(self, data: bytes) -> None:
        """Have one input read."""
        data = data[:LONGEST]
        self._current[: 8 + len(data)] = len(data).to_bytes(8, "little") + data
        spent = self._timed(data)
        if spent > HANG and (spent := min(spent, self._timed(data))) > HANG:  # once, garbage may have been collected
            self._keep(data, ("hang",), f"it took {spent:.1f} s of processor time")
        self.told["inputs"] += 1
        if self.told["inputs"] % 100 == 0 and time.monotonic() > self._due:
            self.tell()

    def tell(self) -> None:
        """Write down what came of it so far, for whoever has started this process."""
        self.told["seconds"] = round(time.monotonic() - self._began, 1)
        self._due = time.monotonic() + 1.0
        told = self._place / f"{self._name}.{self.told['way']}.json"
        told.with_suffix(".part").write_text(json.dumps(self.told))
        os.replace(told.with_suffix(".part"), told)

    def _timed(self, data: bytes) -> float:
        """The seconds of this thread that an input takes to be read."""
        began = time.thread_time()
        try:
            self._read(data)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            where = [f"{frame.filename}:{frame.lineno}" for frame in frames if "umbel" in frame.filename][-2:]
            self._keep(data, (type(error).__name__, *where), traceback.format_exc())
        return time.thread_time() - began

    def _keep(self, data: bytes, kind: tuple[str, ...], why: str) -> None:
        if kind in self._kinds:
            return
        self._kinds.add(kind)
        self.told["found"].append(keep(self._place, self._name, data, why))
        self.tell()


def keep(place: Path, name: str, data: bytes, why: str) -> str:
    """Put an input aside, and why; the name of its file."""
    kept = place / "found" / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(data)
    kept.with_suffix(".txt").write_text(why)
    return kept.name


def memory() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def known(name: str, place: Path) -> list[bytes]:
    """The corpus of a target, with what atheris has found interesting."""
    folders = (CORPUS / name, place / "corpus" / name)
    return [path.read_bytes() for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]


def plainly(name: str, seconds: float, seed: int, place: Path) -> None:
    """Change inputs without looking at what they reach, and see to time and memory."""
    from tests.fuzz.mutations import mutate
    from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    watch, draw = Watch(name, target.read, place, "plain"), random.Random(seed)
    seeds = [*target.seeds(), *known(name, place)]
    while sum(map(len, seeds)) > POOL:
        del seeds[draw.randrange(len(seeds))]
    began, warm = time.monotonic(), 0
    while (spent := time.monotonic() - began) < seconds:
        if not warm and spent > WARM * seconds:
            warm = memory()
        watch.read(mutate(draw.choice(seeds), draw, target.shape, seeds))
    watch.told["growth"] = round(memory() / warm, 3) if warm else None
    if warm and memory() > GROWTH * warm:
        watch.told["found"].append(f"{name} has grown from {warm >> 20} to {memory() >> 20} MiB")
    watch.tell()


def guided(name: str, seconds: float, seed: int, place: Path) -> None:
    """Let atheris lead the way."""
    import atheris

    with atheris.instrument_imports(include=["umbel"]):
        from tests.fuzz.targets import TARGETS
    from tests.fuzz.mutations import mutate

    target = TARGETS[name]
    watch = Watch(name, target.read, place, "guided")
    corpus = place / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    pool = [*target.seeds(), *known(name, place)][:500]
    for data in pool:
        (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)

    def changed(data: bytes, most: int, number: int) -> bytes:
        draw = random.Random(number)
        return mutate(data, draw, target.shape, pool)[:most] if draw.random() < 0.8 else atheris.Mutate(data, most)

    said = [sys.argv[0], str(corpus), f"-max_total_time={int(seconds)}", f"-max_len={LONGEST}", f"-seed={seed}"]
    said += ["-rss_limit_mb=4096", "-timeout=30", "-print_final_stats=0", "-verbosity=0", f"-artifact_prefix={place}/"]
    watch.tell()
    atheris.Setup(said, watch.read, custom_mutator=changed)
    atheris.Fuzz()


WAYS = {"plain": plainly, "guided": guided}


def share(name: str, way: str, seconds: float, seed: int, place: Path) -> dict[str, Any]:
    """Have one target fuzzed one way in a process of its own; what came of it."""
    said = ["--one", name, "--way", way, "--seconds", str(seconds), "--seed", str(seed), "--place", str(place)]
    told = place / f"{name}.{way}.json"
    told.unlink(missing_ok=True)
    error = ""
    log = place / f"{name}.{way}.log"
    with log.open("w") as file:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "tests.fuzz.campaign", *said],
                cwd=ROOT,
                timeout=seconds + STUCK,
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
            )
            error = f"the process ended with {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            error = "it hangs"
    found: dict[str, Any] = json.loads(told.read_text()) if told.exists() else {"inputs": 0, "found": [], "seconds": 0}
    if error:
        current = (place / f"{name}.current").read_bytes() if (place / f"{name}.current").exists() else bytes(8)
        data = current[8 : 8 + int.from_bytes(current[:8], "little")]
        kept = keep(place, name, data, "\n".join([error, log.read_text()[-2000:]]))
        found["found"].append(f"{kept}: {error}")
    return found


def campaign(names: list[str], minutes: float, seed: int, place: Path) -> int:
    """Fuzz these targets for so long in all, and print what came of it; 1 where something was found."""
    place.mkdir(parents=True, exist_ok=True)
    try:
        import atheris  # noqa: F401

        ways = ["guided", "plain"]
    except ImportError:
        print("atheris is not installed: inputs are changed without looking at what they reach", flush=True)
        ways = ["plain"]
    seconds = minutes * 60 / (len(names) * len(ways))
    everything: list[str] = []
    inputs = 0
    print(f"{'target':8} {'way':7} {'inputs':>9} {'a second':>9} {'memory':>7}  found", flush=True)
    for name in names:
        for way in ways:
            told = share(name, way, seconds, seed, place)
            each = told["inputs"] / (told["seconds"] or 1)
            grown = f"{told['growth']:.2f}x" if told.get("growth") else ""
            what = ", ".join(told["found"])
            print(f"{name:8} {way:7} {told['inputs']:9,} {each:9,.0f} {grown:>7}  {what}", flush=True)
            everything += told["found"]
            inputs += told["inputs"]
    print(f"{inputs:,} inputs, {len(everything)} found{f', in {place}/found' if everything else ''}", flush=True)
    return 1 if everything else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz what reads bytes that others sent.")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--target", action="append")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--place", type=Path, default=PLACE)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, default="plain", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=10.0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        WAYS[given.way](given.one, given.seconds, given.seed, given.place)
        return 0
    from tests.fuzz.targets import TARGETS

    return campaign(given.target or list(TARGETS), given.minutes, given.seed, given.place)


if __name__ == "__main__":
    sys.exit(main())
