"""Simulated devices: how fast each client computes and transfers, when it can be reached, what it draws.

A client's device is a function of the fleet's seed and the client, drawn when somebody asks for it: a fleet of fifty
million phones takes no more memory than a fleet of ten. What becomes of a task on a device, a `TaskFate`, is known
before anything is computed. All times are virtual seconds since a midnight.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any, Literal, TypeAlias

from ..core.randomness import Key
from ..errors import ClientId, DataError, SettingError

DAY = 86400.0
CACHED = 10_000
"""How many devices a fleet remembers; any other is drawn again, and is the same again."""

_WORD = (1 << 64) - 1
_RATE = ("a positive number of bytes a second", lambda v: v > 0)
_POWER = ("a number of watts that is not negative", lambda v: 0 <= v < math.inf)
_RULES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "share": ("a positive number, its weight beside the other kinds'", lambda v: 0 < v < math.inf),
    "speed": ("a positive number, 1 for the reference machine's", lambda v: 0 < v < math.inf),
    "download": _RATE,
    "upload": _RATE,
    "watts": _POWER,
    "radio_watts": _POWER,
    "drop_out": ("a probability, from 0 to 1", lambda v: 0 <= v <= 1),
    "opens": ("a second of the day, from 0 to below 86400", lambda v: 0 <= v < DAY),
    "lasts": ("a number of seconds from 1 to 86400, which is always", lambda v: 1 <= v <= DAY),
}


def _checked(owner: str, name: str, value: object) -> float:
    words, holds = _RULES[name]
    if isinstance(value, bool) or not isinstance(value, Real) or not holds(float(value)):
        raise SettingError(f"the {name} of {owner} is {words}, not {value!r:.60}")
    return float(value)


def _name(owner: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise SettingError(f"the name of {owner} is a text that is not empty, not {value!r:.60}")
    return value


def _uniform(word: int) -> float:
    return (word >> 11) * 2.0**-53


def _normal(first: int, second: int) -> float:
    """A standard normal from two words: Box & Muller (1958)."""
    return math.sqrt(-2.0 * math.log(((first >> 12) + 0.5) * 2.0**-52)) * math.cos(2.0 * math.pi * _uniform(second))


@dataclass(frozen=True, slots=True)
class Device:
    """One client's device.

    - `kind`: what the log calls it.
    - `speed`: a task of s reference seconds computes for s / speed seconds.
    - `download`, `upload`: bytes a second; `math.inf` makes transfers instant.
    - `watts`, `radio_watts`: drawn while it computes, and while it transfers.
    - `drop_out`: the probability that it abandons a task.
    - `opens`, `lasts`: the second of the day at which it becomes available, and for how many seconds, over midnight
      where need be; 86400 is always.

    A value out of its range is a `SettingError`.
    """

    kind: str = "machine"
    speed: float = 1.0
    download: float = math.inf
    upload: float = math.inf
    watts: float = 0.0
    radio_watts: float = 0.0
    drop_out: float = 0.0
    opens: float = 0.0
    lasts: float = DAY

    def __post_init__(self) -> None:
        try:  # all at once, since devices are drawn by the million; whoever fails is told which value it was
            if (
                0 < self.speed < math.inf
                and self.download > 0
                and self.upload > 0
                and 0 <= self.watts < math.inf
                and 0 <= self.radio_watts < math.inf
                and 0 <= self.drop_out <= 1
                and 0 <= self.opens < DAY
                and 1 <= self.lasts <= DAY
                and type(self.kind) is str
                and self.kind
            ):
                return
        except TypeError:
            pass
        object.__setattr__(self, "kind", _name("a device", self.kind))
        for field in fields(self)[1:]:
            object.__setattr__(self, field.name, _checked("a device", field.name, getattr(self, field.name)))

    def online(self, at: float) -> bool:
        """Whether it is available at a virtual time; the end of an availability is outside of it."""
        return self.lasts >= DAY or at < self._opening(at) + self.lasts

    def online_until(self, at: float) -> float:
        """The end of the availability that holds at `at`: infinity where it always is, `at` itself where none holds."""
        if self.lasts >= DAY:
            return math.inf
        end = self._opening(at) + self.lasts
        return end if at < end else at

    def next_online(self, at: float) -> float:
        """The first time from `at` on at which it is available: `at` itself, or the next opening."""
        if self.lasts >= DAY:
            return at
        opening = self._opening(at)
        return at if at < opening + self.lasts else self.opens + (round((opening - self.opens) / DAY) + 1) * DAY

    def _opening(self, at: float) -> float:
        """The last opening that is not after `at`."""
        # A remainder would be shorter, and its rounding puts the moment of opening just before itself.
        day = math.floor((at - self.opens) / DAY)
        if self.opens + day * DAY > at:
            day -= 1
        elif self.opens + (day + 1) * DAY <= at:
            day += 1
        return self.opens + day * DAY


@dataclass(frozen=True, slots=True)
class TaskFate:
    """What becomes of one task on a device.

    - `begins`, `ends`: virtual seconds; it begins when the device is next available.
    - `download`, `compute`, `upload`: the seconds spent in each, in this order, up to where it failed.
    - `bytes_down`, `bytes_up`: what was transferred by `ends`.
    - `joules`: drawn by `ends`.
    - `failed`: None, or why it did not arrive: ``"dropped out"`` or ``"went offline"``.
    """

    begins: float
    ends: float
    download: float
    compute: float
    upload: float
    bytes_down: int
    bytes_up: int
    joules: float
    failed: str | None


@dataclass(frozen=True, slots=True)
class Spread:
    """A log-normal distribution: half of all values are below `median`, 68 % within a factor of exp(`sigma`) of it.

    `sigma` is from 0 (all alike) to 4. At 0.9 the tenth fastest of a hundred is ten times as fast as the tenth slowest.
    Drawn values are rounded to six digits, so that no mathematical library's last bit shows.
    """

    median: float
    sigma: float

    def __post_init__(self) -> None:
        for name, words, largest in (("median", "a positive number", math.inf), ("sigma", "a number from 0 to 4", 4.0)):
            value = getattr(self, name)
            fits = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
            if not fits or not 0 <= value <= largest or (name == "median" and value == 0):
                raise SettingError(f"a spread's {name} is {words}, not {value!r:.60}")
            object.__setattr__(self, name, float(value))

    def at(self, normal: float) -> float:
        """The value at so many standard deviations."""
        if not self.sigma:
            return self.median
        return float(f"{self.median * math.exp(self.sigma * normal):.6g}")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of device, from which a fleet draws devices: the fields of `Device`, some of them spread.

    - `share`: its weight beside the other kinds'.
    - `speed`, `download`, `upload`: a number or a `Spread`. Up- and download are drawn together: who is fast in one is
      as fast in the other.
    - `opens`: a second of the day, or two between which it is drawn evenly; the range leads over midnight where the
      first is the larger: ``(79200, 7200)`` is from ten to two.
    - the others: as in `Device`.
    """

    name: str = "machine"
    share: float = 1.0
    speed: float | Spread = 1.0
    download: float | Spread = math.inf
    upload: float | Spread = math.inf
    watts: float = 0.0
    radio_watts: float = 0.0
    drop_out: float = 0.0
    opens: float | tuple[float, float] = 0.0
    lasts: float = DAY

    def __post_init__(self) -> None:
        owner = f"kind {_name('a kind', self.name)!r}"
        for field in fields(self)[1:]:
            name, value = field.name, getattr(self, field.name)
            if name == "opens" and isinstance(value, tuple | list):
                value = self._range(owner, value)
            elif not (isinstance(value, Spread) and name in ("speed", "download", "upload")):
                value = _checked(owner, name, value)
            object.__setattr__(self, name, value)

    @staticmethod
    def _range(owner: str, given: Sequence[Any]) -> tuple[float, float]:
        numbers = [float(v) for v in given if isinstance(v, Real) and not isinstance(v, bool) and 0 <= float(v) <= DAY]
        if len(numbers) != 2 or len(given) != 2:
            raise SettingError(
                f"the opens of {owner} is a second of the day or two of them (from, to), not {given!r:.60}"
            )
        return numbers[0], numbers[1]

    def draw(self, bits: int) -> Device:
        """The device that 384 random bits make of it; the lowest 64 of them are left to the choice of the kind."""
        speed, download, upload, opens = self.speed, self.download, self.upload, self.opens
        if isinstance(speed, Spread):
            speed = speed.at(_normal(bits >> 64 & _WORD, bits >> 128 & _WORD))
        if isinstance(download, Spread) or isinstance(upload, Spread):
            link = _normal(bits >> 192 & _WORD, bits >> 256 & _WORD)
            download = download.at(link) if isinstance(download, Spread) else download
            upload = upload.at(link) if isinstance(upload, Spread) else upload
        if isinstance(opens, tuple):
            first, last = opens
            last += DAY if last < first else 0.0
            opens = (first + _uniform(bits >> 320 & _WORD) * (last - first)) % DAY
        return Device(
            self.name, speed, download, upload, self.watts, self.radio_watts, self.drop_out, opens, self.lasts
        )

    def spec(self) -> dict[str, Any]:
        """The kind as a plain dict that JSON can hold, without what is as it is by default."""
        plain: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Spread):
                plain[field.name] = {"median": value.median, "sigma": value.sigma}
            elif field.name == "name" or value != field.default:
                plain[field.name] = list(value) if isinstance(value, tuple) else value
        return plain


Work: TypeAlias = float | Callable[[ClientId, str, Mapping[str, Any]], float]
"""Reference seconds of a task: a number, or a function of the client, the ask's kind and its config."""


class Fleet:
    """The devices of a simulation's clients.

    - `kinds`: one kind, a list of them, or a mapping of names to them; shares need not sum to 1.
    - `work`: for how many seconds the reference machine computes a task. The reference machine is the one that you
      measured this on; its speed is 1. A number is the cost of training, and a third of it that of anything else, which
      has no backward pass. A function of (client, kind of ask, config) says it for each task.
    - `seed`: any integer. Equal seeds, kinds and clients give equal devices, in whatever order they are asked for.

    A client's device takes some ten microseconds to draw; 10,000 are remembered.
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
        return {**self.__dict__, "_drawn": OrderedDict()}

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
            if _uniform(bits & _WORD) < device.drop_out:
                total *= _uniform(bits >> 64)
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
        bits = key.derive("device", client).integer(384)
        return self._kinds[bisect_right(self._upto, _uniform(bits & _WORD))].draw(bits)

    def always_online(self) -> bool:
        """Whether every kind is always available."""
        return all(kind.lasts >= DAY for kind in self._kinds)

    def spec(self) -> dict[str, Any]:
        """The kinds as a plain dict."""
        named = {"preset": self._preset} if self._preset else {}
        return {**named, "kinds": [kind.spec() for kind in self._kinds]}


class Lines:
    """The devices of a trace: some tied to clients, the others dealt by hash."""

    def __init__(self, name: str, tied: Mapping[str, Device], dealt: Sequence[Device], digest: str) -> None:
        self._name = name
        self._tied = dict(tied)
        self._dealt = tuple(dealt)
        self._digest = digest

    def __repr__(self) -> str:
        return f".trace({self._name!r}"

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Lines:
        """Read a CSV file, as `Fleet.trace` describes it."""
        try:
            with open(path, "rb") as file:
                raw = file.read()
            rows = csv.reader(io.StringIO(raw.decode("utf-8-sig"), newline=""), strict=True)
            columns = _columns(path, next(rows, []))
            tied: dict[str, Device] = {}
            dealt: list[Device] = []
            for row in rows:
                if not row:
                    continue
                where = f"{os.fspath(path)}, line {rows.line_num}"
                if len(row) != len(columns):
                    raise DataError(f"{where}: there are {len(row)} values for {len(columns)} columns: {row!r:.60}")
                cells = dict(zip(columns, map(str.strip, row), strict=True))
                client = cells.pop("client", "")
                if client in tied:
                    raise DataError(f"{where}, column client: client {client!r:.60} has a line already")
                device = Device(**{name: _cell(where, name, text) for name, text in cells.items() if text})
                if client:
                    tied[client] = device
                else:
                    dealt.append(device)
        except OSError as error:
            raise DataError(f"the trace {os.fspath(path)} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"the trace {os.fspath(path)} is not text in UTF-8 (byte {error.start})") from error
        except csv.Error as error:
            raise DataError(f"{os.fspath(path)}, line {rows.line_num}: this is no CSV: {error}") from error
        if not tied and not dealt:
            raise DataError(f"the trace {os.fspath(path)} has no device: below its first line, a line for each")
        return cls(os.path.basename(path), tied, dealt, hashlib.sha256(raw).hexdigest())

    def device(self, client: ClientId, key: Key) -> Device:
        """The client's own line, or the one that it is dealt under a fleet's key."""
        own = self._tied.get(str(client))
        if own is not None:
            return own
        if not self._dealt:
            raise SettingError(
                f"the trace {self._name} has no device for client {client!r}, and no line without a client to deal",
                hint="Add a line for it, or lines whose client is empty, which go to all other clients.",
            )
        word = key.derive("device", client).integer(64)
        return self._dealt[int(_uniform(word) * len(self._dealt))]

    def always_online(self) -> bool:
        """Whether every line's device is always available."""
        return all(device.lasts >= DAY for device in (*self._tied.values(), *self._dealt))

    def spec(self) -> dict[str, Any]:
        """The file's name, digest and number of devices, as a plain dict."""
        return {"trace": self._name, "sha256": self._digest, "devices": len(self._tied) + len(self._dealt)}


def _columns(path: str | os.PathLike[str], header: Sequence[str]) -> list[str]:
    known = [field.name for field in fields(Device)]
    columns = [name.strip() for name in header]
    for place, name in enumerate(columns):
        if name not in (*known, "client"):
            raise DataError(
                f"{os.fspath(path)}, line 1: there is no column {name!r:.60}; "
                f"a trace's columns are client, {', '.join(known)}"
            )
        if name in columns[:place]:
            raise DataError(f"{os.fspath(path)}, line 1: column {name} is there twice")
    if not columns:
        raise DataError(f"the trace {os.fspath(path)} is empty; its first line names the columns: {', '.join(known)}")
    return columns


def _cell(where: str, name: str, text: str) -> Any:
    if name == "kind":
        return text
    words, holds = _RULES[name]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not holds(value):
        raise DataError(f"{where}, column {name}: this is {words}, not {text!r:.60}")
    return value


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
