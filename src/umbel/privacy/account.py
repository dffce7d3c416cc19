"""What clients have spent over runs: entries of a ledger, and what they come to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from .accounting import QUICK, Event, epsilon_of, event_of
from .release import ADD_OR_REMOVE, REPLACE, ZERO_OUT, NoisyRelease

NOTHING: Event = ("nothing",)
Scope = tuple[str, str]
ALL: Scope = ("all", "")
"""Of which answers something was spent: all, those to an app, those to a server, those of a year."""
STREAM_LETTERS = 64
"""The name of a stream has so many letters at most."""
_STREAMING = ("stream", "answers")


@dataclass(frozen=True)
class LedgerEntry:
    """What an answer of a client tells of it, at most.

    `releases` are what the transforms of the ask have promised, as `held` has them: each of the unit ``"client"``, and
    with `stream` where it is one of several that count as one, up to so many `answers`. None of them: nothing holds.
    `examples` are what the handler has told of noise of its own, and how often: they hide single examples, and a client
    not at all. `by` names the transforms, `digest` what was asked.
    """

    client: str
    server: str
    app: str
    run: str
    task: str
    digest: str
    by: tuple[str, ...] = ()
    releases: tuple[Mapping[str, Any], ...] = ()
    examples: tuple[tuple[Mapping[str, Any], int], ...] = ()

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> LedgerEntry:
        """The entry that `plain` described."""
        kept = {name: tuple(plain[name]) for name in ("by", "releases", "examples")}
        return cls(**{name: kept.get(name, plain[name]) for name in cls.__dataclass_fields__})

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    def costs(self, unit: str) -> Counter[tuple[str, str, int]]:
        """How often it has what costs a unit something: a release as JSON, or nothing at all, the stream, and how many
        answers of that cost no more than one; 0 for any number.
        """
        hiding = [(release, 1) for release in self.releases]
        if unit == "example":  # what hides it in the answer hides it in all that is made of that
            hiding = [*self.examples] or [(_replaced(release), 1) for release in self.releases]
        found: Counter[tuple[str, str, int]] = Counter()
        for release, times in hiding or [({}, 1)]:
            told = json.dumps(_alone(release), sort_keys=True) if release else ""
            found[told, release.get("stream") or "", release.get("answers", 0)] += times
        return found


def held(promise: Mapping[str, Any]) -> dict[str, Any]:
    """What a transform has promised, as the holder counts it: against an answer of zeros in the place of its own.

    A client that is added or removed moves a sum by no more than its bound, and so does one whose answer becomes
    zeros; how many came stays, and so do the others that were asked. What sampling gains is not counted: a holder sees
    neither how clients were drawn, nor the rounds in which its own were not, and which cost something then, too.
    Of a stream it counts one more with each time that so many `answers` are in it as it was promised for: nobody else
    sees to that here. Raises `SettingError` and `TypeError` for what is no release of clients.
    """
    release = NoisyRelease(**{**_alone(promise), "sampling": {"kind": "everyone"}})
    if release.unit != "client":
        raise TypeError(f"a transform hides clients, not a unit {release.unit!r}")
    if release.neighbours == ADD_OR_REMOVE:
        # One that is of no sum: from an answer to none, and from that to zeros.
        twice = 2 if release.mechanism == "pure" else 1
        release = replace(release, neighbours=ZERO_OUT, noise=release.noise / twice)
    stream, answers = promise.get("stream"), promise.get("answers", 1)
    if stream is None:
        return release.plain()
    if not (isinstance(stream, str) and len(stream) <= STREAM_LETTERS and type(answers) is int and answers > 0):
        raise TypeError(f"a stream has a short name, and some answers, not {stream!r:.60} and {answers!r:.60}")
    return {**release.plain(), "stream": stream, "answers": answers}


def _alone(release: Mapping[str, Any]) -> dict[str, Any]:
    """A release without the stream that it is of."""
    return {name: value for name, value in release.items() if name not in _STREAMING}


def _replaced(release: Mapping[str, Any]) -> dict[str, Any]:
    """What hides a client, as it hides one of its examples: with that, the answer may become any other, and not zeros
    alone.
    """
    if release["neighbours"] != ZERO_OUT:
        return dict(release)
    twice = 2 if release["mechanism"] == "pure" else 1  # which the accountant leaves as it is
    return {**release, "neighbours": REPLACE, "noise": release["noise"] / twice}


@lru_cache(maxsize=1 << 14)
def _event(text: str) -> Event:
    return event_of(NoisyRelease(**json.loads(text))) if text else NOTHING


class PrivacyAccount:
    """What clients have spent, of one `unit`; kept up entry by entry, in any order.

    Events add up whatever their neighbours: of a client whose answers become zeros each is an upper bound, that of one
    that is replaced too.
    """

    def __init__(self, unit: str = "client") -> None:
        self.unit = unit
        self._events: dict[tuple[str, Scope], Counter[Event]] = {}
        self._streams: Counter[tuple[str | int, ...]] = Counter()

    def add(self, entry: LedgerEntry, year: int) -> None:
        """Count an entry of a year."""
        costs = entry.costs(self.unit)
        events = self._events_of(entry, costs)
        self._streams.update(self._stream(entry, *cost) for cost in costs if cost[1])
        for scope in (ALL, ("app", entry.app), ("server", entry.server), ("year", str(year))):
            self._events.setdefault((entry.client, scope), Counter()).update(events)

    def events(self, entry: LedgerEntry) -> Counter[Event]:
        """What an entry adds to what is there; a release of a stream that is there already costs nothing more, unless
        it is beyond the answers that the stream is for.
        """
        return self._events_of(entry, entry.costs(self.unit))

    def _events_of(self, entry: LedgerEntry, costs: Mapping[tuple[str, str, int], int]) -> Counter[Event]:
        found: Counter[Event] = Counter()
        for (text, stream, answers), times in costs.items():
            before = self._streams[self._stream(entry, text, stream, answers)]
            if not stream:
                found[_event(text)] += times
            elif before % answers == 0 if answers else not before:
                found[_event(text)] += 1
        return found

    def clients(self) -> list[str]:
        """The clients that have answered anything."""
        return sorted({client for client, _ in self._events})

    def scopes(self, client: str) -> list[Scope]:
        """Of what a client has spent something, in order."""
        return sorted(scope for of, scope in self._events if of == client)

    def releases(self, client: str, scope: Scope = ALL) -> int:
        """How many releases there were; of a stream it is one."""
        return self._events.get((client, scope), Counter()).total()

    def epsilon(
        self,
        client: str,
        delta: float,
        scope: Scope = ALL,
        more: Iterable[Counter[Event]] = (),
        most: float | None = None,
    ) -> float:
        """What a client has spent, and would have with `more`. Where it does not matter by how much it is below `most`,
        that may be a looser bound, which is quicker. Infinite where nothing holds.

        Raises `CallerError` where dp-accounting is not installed, and is needed.
        """
        events = self._events.get((client, scope), Counter()).copy()
        for each in more:
            events.update(each)
        if most is not None and (bound := epsilon_of(events, delta, QUICK)) <= most:
            return bound
        return epsilon_of(events, delta, "pld")

    @staticmethod
    def _stream(entry: LedgerEntry, text: str, stream: str, answers: int) -> tuple[str | int, ...]:
        return entry.client, entry.server, entry.run, text, stream, answers
