"""Simulated devices: how fast one computes and transfers, when it can be reached, what it draws; kinds of them, from
which fleets draw. All times are virtual seconds since a midnight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from ..errors import SettingError

DAY = 86400.0

WORD = (1 << 64) - 1
_RATE = ("a positive number of bytes a second", lambda v: v > 0)
_POWER = ("a number of watts that is not negative", lambda v: 0 <= v < math.inf)
RULES: dict[str, tuple[str, Callable[[float], bool]]] = {
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
    words, holds = RULES[name]
    if isinstance(value, bool) or not isinstance(value, Real) or not holds(float(value)):
        raise SettingError(f"the {name} of {owner} is {words}, not {value!r:.60}")
    return float(value)


def _name(owner: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise SettingError(f"the name of {owner} is a text that is not empty, not {value!r:.60}")
    return value


def uniform(word: int) -> float:
    """A number from 0 to below 1 from a word of 64 bits."""
    return (word >> 11) * 2.0**-53


def _normal(first: int, second: int) -> float:
    """A standard normal from two words: Box & Muller (1958)."""
    return math.sqrt(-2.0 * math.log(((first >> 12) + 0.5) * 2.0**-52)) * math.cos(2.0 * math.pi * uniform(second))


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
        return available(self.opens, self.lasts, at)

    def online_until(self, at: float) -> float:
        """The end of the availability that holds at `at`: infinity where it always is, `at` itself where none holds."""
        if self.lasts >= DAY:
            return math.inf
        end = opening_before(self.opens, at) + self.lasts
        return end if at < end else at

    def next_online(self, at: float) -> float:
        """The first time from `at` on at which it is available: `at` itself, or the next opening."""
        if self.lasts >= DAY:
            return at
        opening = opening_before(self.opens, at)
        return at if at < opening + self.lasts else self.opens + (round((opening - self.opens) / DAY) + 1) * DAY


def available(opens: float, lasts: float, at: float) -> bool:
    """Whether a device that is available for so long from this second of each day on is that at a virtual time."""
    return lasts >= DAY or at < opening_before(opens, at) + lasts


def opening_before(opens: float, at: float) -> float:
    """The last opening that is not after `at`."""
    # A remainder would be shorter, and its rounding puts the moment of opening just before itself.
    day = math.floor((at - opens) / DAY)
    if opens + day * DAY > at:
        day -= 1
    elif opens + (day + 1) * DAY <= at:
        day += 1
    return opens + day * DAY


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
        speed, download, upload = self.speed, self.download, self.upload
        if isinstance(speed, Spread):
            speed = speed.at(_normal(bits >> 64 & WORD, bits >> 128 & WORD))
        if isinstance(download, Spread) or isinstance(upload, Spread):
            link = _normal(bits >> 192 & WORD, bits >> 256 & WORD)
            download = download.at(link) if isinstance(download, Spread) else download
            upload = upload.at(link) if isinstance(upload, Spread) else upload
        hours = self.opening(bits), self.lasts
        return Device(self.name, speed, download, upload, self.watts, self.radio_watts, self.drop_out, *hours)

    def opening(self, bits: int) -> float:
        """The `opens` of the device that these bits make of it."""
        if not isinstance(self.opens, tuple):
            return self.opens
        first, last = self.opens
        last += DAY if last < first else 0.0
        return (first + uniform(bits >> 320 & WORD) * (last - first)) % DAY

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
