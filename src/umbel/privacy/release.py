"""What an accountant has to know of a noisy release: what a transform's `event` returns, and a run's log keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ..core.settings import not_negative, positive, whole
from ..errors import SettingError

MECHANISMS = ("gaussian", "discrete_gaussian", "laplace", "pure", "distributed_gaussian", "distributed_skellam")
GAUSSIAN, DISTRIBUTED = MECHANISMS[:2], MECHANISMS[4:]
UNITS = ("client", "example")
ADD_OR_REMOVE, ZERO_OUT, REPLACE = NEIGHBOURS = ("add or remove one", "zero out one", "replace one")
SAMPLINGS = {"poisson": {"rate"}, "fixed": {"count", "of"}, "everyone": set[str](), "unknown": {"why"}}
"""The kinds of sampling, and what is said beside `kind` of each."""


@dataclass(frozen=True)
class NoisyRelease:
    """One noisy answer. Raises `SettingError` for what cannot be.

    ``noise * norm`` is the standard deviation of the noise on the sum (of Laplace noise its scale). `norm` bounds what
    one unit adds to that sum, rounding included: in L2, of Laplace noise in L1. Whether twice that can change, as where
    one is replaced, is for the accountant to see. Of several sums that are told together `noise` is that of all, and
    `steps` that of the coarsest grid.

    `mechanism` is ``gaussian``; ``discrete_gaussian``, whose standard deviation in steps of its grid is `steps`;
    ``laplace``; or ``pure``, any mechanism that by itself, between neighbours, is 1/`noise`-differentially private, as
    PrivUnit and randomised response are. Of ``distributed_gaussian`` and ``distributed_skellam`` noise there are
    `shares`, each of a client that does not tell it to whoever sees the sum, on `size` elements; `steps` are those of
    all together. There one client cannot be added or removed: it would bring a share, and is seen.

    `sampling` says how a release's units were taken: ``{"kind": "poisson", "rate": q}`` each by its own throw of the
    dice, of which nobody who sees the release learns anything; ``{"kind": "fixed", "count": n, "of": N}`` so many, each
    set equally likely; ``{"kind": "everyone"}``; or ``{"kind": "unknown", "why": "..."}``: by whatever else does not go
    by anybody's data, as availability or speed. (What goes by what clients told cannot be described: no account of
    it holds.) What was noised by its holder was not sampled for whoever sees who sent it.

    Releases whose noise is correlated are of one `stream`, by its id; others have None. There `noise` is that of all
    the stream's answers together, relative to how far one unit can move them, and `steps` are of that noise, too: the
    stream counts as one release, however much of it was told.

    `denominator` is the fixed number that the sum is divided by, None where that is how many came.
    """

    mechanism: str
    noise: float
    norm: float
    unit: str
    neighbours: str
    sampling: Mapping[str, Any]
    denominator: float | None
    steps: float | None = None
    stream: str | None = None
    shares: int | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        for name, known in (("mechanism", MECHANISMS), ("unit", UNITS), ("neighbours", NEIGHBOURS)):
            if getattr(self, name) not in known:
                raise SettingError(f"a release's {name} is one of {', '.join(known)}, not {getattr(self, name)!r:.60}")
        not_negative(self, "noise")
        positive(self, "norm", *(["denominator"] if self.denominator is not None else []))
        distributed = self.mechanism in DISTRIBUTED
        if (distributed or self.mechanism == "discrete_gaussian") != (self.steps is not None):
            raise SettingError("a release: steps go with discrete and distributed noise, which cannot do without")
        for name, value in (("shares", self.shares), ("size", self.size)):
            if distributed != (value is not None):
                raise SettingError(f"a release: {name} goes with distributed noise, which cannot do without")
            if distributed:
                whole(self, **{name: 1})
        if distributed and self.neighbours == ADD_OR_REMOVE:
            raise SettingError(
                "a release of distributed noise cannot hide that a client is added or removed: its share comes with it",
                hint=f"Its neighbours are {ZERO_OUT!r} or {REPLACE!r}.",
            )
        if self.steps is not None:
            not_negative(self, "steps")
        if self.stream is not None and not (isinstance(self.stream, str) and self.mechanism in GAUSSIAN):
            raise SettingError(
                f"a release's stream is the id, a text, of one of Gaussian noise, not {self.stream!r:.60}"
            )
        object.__setattr__(self, "sampling", dict(_Sampling.checked(self.sampling)))

    def plain(self) -> dict[str, Any]:
        """The release as JSON can hold it; `of` reads it."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("shares", "size")}
        shared = {} if self.shares is None else {"shares": self.shares, "size": self.size}
        return {**found, **shared, "sampling": dict(self.sampling)}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> NoisyRelease:
        """The release that `plain` described. Raises `SettingError` for anything else."""
        if not isinstance(plain, Mapping):
            raise SettingError(f"a release is described by a dict, not by {plain!r:.60}")
        names = {f.name for f in fields(cls)}
        if wrong := sorted(map(str, (plain.keys() ^ names) - {"stream", "shares", "size"})):  # which most have not
            raise SettingError(f"a release is described by {', '.join(sorted(names))}; these do not fit: {wrong}")
        return cls(**plain)


@dataclass(frozen=True)
class _Sampling:
    """The numbers of a sampling, to be checked as settings are."""

    name: ClassVar[str] = "a release's sampling"
    rate: Any = 1.0
    count: Any = 1
    of: Any = 1

    @classmethod
    def checked(cls, plain: Mapping[str, Any]) -> Mapping[str, Any]:
        """A sampling. Raises `SettingError` for what is none."""
        kind = plain.get("kind") if isinstance(plain, Mapping) else None
        if not isinstance(kind, str) or kind not in SAMPLINGS or plain.keys() != SAMPLINGS[kind] | {"kind"}:
            known = "; ".join(" and ".join([name, *sorted(with_)]) for name, with_ in SAMPLINGS.items())
            raise SettingError(f"a release's sampling has a kind and what belongs to it ({known}), not {plain!r:.80}")
        if kind == "unknown" and not isinstance(plain["why"], str):
            raise SettingError(f"a release: why a sampling is unknown is a text, not {plain['why']!r:.60}")
        one = cls(**{name: value for name, value in plain.items() if name in ("rate", "count", "of")})
        positive(one, "rate", most=1.0)
        whole(one, count=1)
        whole(one, of=one.count)
        return plain
