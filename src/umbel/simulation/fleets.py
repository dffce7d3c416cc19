"""Fleets: which device each of a simulation's clients has, and what becomes of a task on it.

A client's device is a function of the fleet's seed and the client, drawn when somebody asks for it: a fleet of fifty
million phones takes no more memory than a fleet of ten. What becomes of a task on a device, a `TaskFate`, is known
before anything is computed.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, Literal, TypeAlias

from ..core.randomness import Key
from ..errors import ClientId, SettingError
from .devices import DAY, WORD, Device, Kind, Spread, TaskFate, available, uniform
from .traces import Lines

CACHED = 10_000
"""How many devices a fleet remembers; any other is drawn again, and is the same again."""
HOURS = 50_000
"""Of how many devices it remembers when they are available."""

Work: TypeAlias = float | Callable[[ClientId, str, Mapping[str, Any]], float]
"""Reference seconds of a task: a number, or a function of the client, the ask's kind and its config."""


class Fleet:
    """The devices of a simulation's clients.

    - `kinds`: one kind, a list of them, or a mapping of names to them; shares need not sum to 1.
    - `work`: for how many seconds the reference machine computes a task. The reference machine is the one that you
      measured this on; its speed is 1. A number is the cost of training, and a third of it that of anything else, which
      has no backward pass. A function of (client, kind of ask, config) says it for each task.
    - `seed`: any integer. Equal seeds, kinds and clients give equal devices, in whatever order they are asked for.

    A client's device takes some ten microseconds to draw; 10,000 are remembered, and of 50,000 when they are available.
    """

    def __init__(
        self, kinds: Kind | Sequence[Kind] | Mapping[str, Kind] | Mixture | Lines, *, work: Work = 1.0, seed: int = 0
    ) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise SettingError(f"a fleet's seed is an integer, not {seed!r:.60}")
        self._source = kinds if isinstance(kinds, Mixture | Lines) else Mixture(_named(kinds))
        self._work = work if callable(work) else _seconds(work, "a fleet's work")
        self._seed = seed
        self._key = Key.from_seed(seed)
        self._drawn: OrderedDict[ClientId, Device] = OrderedDict()
        self._hours: dict[ClientId, tuple[float, float]] = {}

    @classmethod
    def preset(cls, name: Literal["phones", "boards", "workstations"], *, work: Work = 1.0, seed: int = 0) -> Fleet:
        """A fleet of a known sort; its figures are of the right order of magnitude, not measurements of your devices.

        **phones**, against the CPU of a current laptop. 15 % high-end, 35 % mid-range and 50 % low-end, computing at
        1 : 0.52 : 0.34, as the numbers of devices (30, 70, 100) and their GFLOPS (153.6, 80, 52.8) in AutoFL (Kim & Wu
        2021, arXiv 2107.08147). That a high-end phone has half of a laptop's speed is our choice, as is the spread
        within a class (sigma 0.3). The links spread tenfold between the tenth and the ninetieth percentile, the order
        that FedScale (Lai et al. 2022, arXiv 2105.11367) takes from MobiPerf's measurements; the medians, 20 Mbit/s
        down and 6 Mbit/s up, are ours, for Wi-Fi at home. 3.5 to 5.5 W are ours too, in the range of the 3.5 to 7.4 W
        that AnandTech measured under full graphics load (review of the Kirin 970, 2018); 1 W for Wi-Fi is of the order
        of the 0.65 uJ a bit at 2 Mbit/s that Aalborg University's group on mobile devices measured. 8 % drop out:
        between 6 and 10 % do in Google's production, where phones take part when idle, charging and on an unmetered
        network, four times as many of them at the best hour of the night as at the worst of the day (Bonawitz et al.
        2019, arXiv 1902.01046). Half of the phones are therefore available for eight hours from between nine and one at
        night, and half for eight hours from any time on, which varies by just this factor.

        **boards**, against the GPU of a Jetson TX2. A third each of Jetson TX2 on their GPU, Jetson TX2 on their CPU,
        which takes 1.27 times as long (Beutel et al. 2020, arXiv 2007.14390, on ResNet-18 and CIFAR-10), and Raspberry
        Pi 4, for which 0.3 is of the right order, chosen by us. 15 W and 7.5 W are NVIDIA's budgets for the TX2's modes
        Max-P and Max-Q; that its CPU alone keeps to the latter is our assumption. Users measured 5 to 6.5 W for a
        Raspberry Pi 4 with four busy cores and about 3 W otherwise. 100 Mbit/s, the powers during transfers, equal
        shares, and 1 % that drop out are ours.

        **workstations**, against one of them. What hospitals set up for a study, such as those of 20 sites in EXAM
        (Dayan et al. 2021, Nature Medicine 27) and 71 in FeTS (Pati et al. 2022, arXiv 2204.10836): machines with a GPU
        of their own, wired and always on. All figures are ours: four workstations for each server, which is twice as
        fast; speeds that spread by sigma 0.4; 100 Mbit/s and 1 Gbit/s down, half of it up through a hospital's
        firewall; 350 W and 700 W under load, of the order of a GPU of 250 W or two of them and their host; 0.5 % that
        drop out.
        """
        if name not in _PRESETS:
            raise SettingError(f"there is no preset {name!r:.60} of devices; there are {', '.join(_PRESETS)}")
        return cls(Mixture(_PRESETS[name], name), work=work, seed=seed)

    @classmethod
    def trace(cls, path: str | os.PathLike[str], *, work: Work = 1.0, seed: int = 0) -> Fleet:
        """The devices of a CSV file, one a line, in UTF-8.

        Its first line names the columns: any of the fields of `Device`, and `client`. A column that is missing and a
        cell that is empty mean the default. A line with a client is that client's device; the others are dealt to the
        other clients by hash, any number to each line. A file that cannot be read, and a value that does not fit, are a
        `DataError` that says where.
        """
        return cls(Lines.read(path), work=work, seed=seed)

    def __repr__(self) -> str:
        work = getattr(self._work, "__qualname__", self._work)
        return f"Fleet{self._source!r}, work={work}, seed={self._seed})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_drawn": OrderedDict(), "_hours": {}}

    @property
    def spec(self) -> dict[str, Any]:
        """A plain description that JSON can hold, for the log; a function is given by its name."""
        work: Any = self._work
        if callable(work):
            named = getattr(work, "func", work)  # what functools.partial holds
            named = named if hasattr(named, "__qualname__") else type(named)
            work = {"function": f"{named.__module__}.{named.__qualname__}"}
        return {**self._source.spec(), "work": work, "seed": self._seed}

    def always_online(self) -> bool:
        """Whether no device of the fleet is ever unavailable."""
        return self._source.always_online()

    def device(self, client: ClientId) -> Device:
        """The client's device; a `SettingError` where a trace has none for it."""
        drawn = self._drawn
        device = drawn.get(client)
        if device is None:
            device = drawn[client] = self._source.device(client, self._key)
            if len(drawn) > CACHED:
                drawn.popitem(last=False)
        else:
            drawn.move_to_end(client)
        return device

    def online(self, client: ClientId, at: float) -> bool:
        """Whether the client's device is available at a virtual time."""
        hours = self._hours.get(client)
        if hours is None:
            if len(self._hours) >= HOURS:
                self._hours.clear()
            hours = self._hours[client] = self._source.hours(client, self._key)
        return available(*hours, at)

    def reference_seconds(self, client: ClientId, kind: str, config: Mapping[str, Any]) -> float:
        """For how many seconds the reference machine computes such a task, by the fleet's `work`."""
        if callable(self._work):
            return _seconds(self._work(client, kind, config), f"what work gives for a task of kind {kind!r}", client)
        return self._work if kind == "train" else self._work / 3

    def trip(
        self,
        client: ClientId,
        *,
        at: float,
        kind: str,
        config: Mapping[str, Any],
        bytes_down: int,
        bytes_up: int,
        key: Key,
    ) -> TaskFate:
        """What becomes of a task that is sent to a client at a virtual time.

        It waits until the device is available, downloads, computes and uploads. `key` is the task's own: of it is drawn
        whether the device drops out, and at which share of its way. Where the availability ends earlier, the task fails
        there. A failed task has cost what it had cost until then.
        """
        device = self.device(client)
        begins = device.next_online(at)
        down, up = bytes_down / device.download, bytes_up / device.upload
        compute = self.reference_seconds(client, kind, config) / device.speed
        total = down + compute + up
        ends, failed = begins + total, None
        if device.drop_out:
            bits = key.derive("drop-out").integer(128)
            if uniform(bits & WORD) < device.drop_out:
                total *= uniform(bits >> 64)
                ends, failed = begins + total, "dropped out"
        until = device.online_until(begins)
        if ends > until:
            ends, failed, total = until, "went offline", until - begins
        if failed is not None:
            whole_down, whole_up = down, up
            down = min(whole_down, total)
            compute = min(compute, total - down)
            up = min(whole_up, max(total - down - compute, 0.0))
            bytes_down = int(bytes_down * (down / whole_down)) if down < whole_down else bytes_down
            bytes_up = int(bytes_up * (up / whole_up)) if whole_up else 0
        joules = compute * device.watts + (down + up) * device.radio_watts
        return TaskFate(begins, ends, down, compute, up, bytes_down, bytes_up, joules, failed)


class Mixture:
    """Devices drawn from kinds by their shares: what a `Fleet` of kinds or a preset draws from."""

    def __init__(self, kinds: Sequence[Kind], preset: str | None = None) -> None:
        self._kinds = tuple(kinds)
        self._preset = preset
        total = math.fsum(kind.share for kind in self._kinds)
        self._upto = [math.fsum(kind.share for kind in self._kinds[: i + 1]) / total for i in range(len(kinds) - 1)]

    def __repr__(self) -> str:
        if self._preset:
            return f".preset({self._preset!r}"
        whole = math.fsum(kind.share for kind in self._kinds)
        return "([" + ", ".join(f"{kind.name} {kind.share / whole:.3g}" for kind in self._kinds) + "]"

    def device(self, client: ClientId, key: Key) -> Device:
        """The client's device under a fleet's key."""
        kind, bits = self._dealt(client, key)
        return kind.draw(bits)

    def hours(self, client: ClientId, key: Key) -> tuple[float, float]:
        """The `opens` and the `lasts` of that device, for which the rest of it need not be drawn."""
        kind, bits = self._dealt(client, key)
        return kind.opening(bits), kind.lasts

    def _dealt(self, client: ClientId, key: Key) -> tuple[Kind, int]:
        bits = key.derive("device", client).integer(384)
        return self._kinds[bisect_right(self._upto, uniform(bits & WORD))], bits

    def always_online(self) -> bool:
        """Whether every kind is always available."""
        return all(kind.lasts >= DAY for kind in self._kinds)

    def spec(self) -> dict[str, Any]:
        """The kinds as a plain dict."""
        named = {"preset": self._preset} if self._preset else {}
        return {**named, "kinds": [kind.spec() for kind in self._kinds]}


def _named(kinds: Kind | Sequence[Kind] | Mapping[str, Kind]) -> list[Kind]:
    """The kinds as a list, by names of their own."""
    given = [kinds] if isinstance(kinds, Kind) else kinds
    listed = given.values() if isinstance(given, Mapping) else given
    if not isinstance(given, Mapping | Sequence) or not given or not all(isinstance(kind, Kind) for kind in listed):
        raise SettingError(f"a fleet's kinds are a list of Kind, or a mapping of names to them, not {kinds!r:.80}")
    if isinstance(given, Mapping):
        return [replace(kind, name=name) for name, kind in given.items()]
    names = [kind.name for kind in given]
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise SettingError(f"two kinds of a fleet are named {twice!r}; give each a name of its own: Kind('phone', ...)")
    return list(given)


def _seconds(value: object, what: str, client: ClientId | None = None) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise SettingError(f"{what} is a number of seconds that is not negative, not {value!r:.60}", client=client)
    return float(value)


_HOUR = 3600.0
_MBIT = 1e6 / 8  # bytes
_HABITS = {"at night": (21 * _HOUR, 1 * _HOUR), "any time": (0.0, DAY)}
_PRESETS = {
    "phones": tuple(
        Kind(
            f"{grade} phone, {habit}",
            share=share,
            speed=Spread(speed, 0.3),
            download=Spread(20 * _MBIT, 0.9),
            upload=Spread(6 * _MBIT, 0.9),
            watts=watts,
            radio_watts=1.0,
            drop_out=0.08,
            opens=opens,
            lasts=8 * _HOUR,
        )
        for grade, share, speed, watts in (
            ("high-end", 15, 0.5, 5.5),
            ("mid-range", 35, 0.26, 4.5),
            ("low-end", 50, 0.17, 3.5),
        )
        for habit, opens in _HABITS.items()
    ),
    "boards": tuple(
        Kind(name, speed=speed, download=100 * _MBIT, upload=100 * _MBIT, watts=busy, radio_watts=idle, drop_out=0.01)
        for name, speed, busy, idle in (
            ("Jetson TX2 GPU", 1.0, 15.0, 5.0),
            ("Jetson TX2 CPU", 1 / 1.27, 7.5, 5.0),
            ("Raspberry Pi 4", 0.3, 6.0, 3.0),
        )
    ),
    "workstations": tuple(
        Kind(
            name,
            share=share,
            speed=Spread(speed, 0.4),
            download=rate * _MBIT,
            upload=rate * _MBIT / 2,
            watts=busy,
            radio_watts=idle,
            drop_out=0.005,
        )
        for name, share, speed, rate, busy, idle in (
            ("workstation", 4, 1.0, 100, 350.0, 100.0),
            ("server", 1, 2.0, 1000, 700.0, 200.0),
        )
    ),
}
