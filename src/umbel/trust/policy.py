"""What the owner of a node lets run there.

A policy is a TOML file, such as::

    # Whose code runs here: authors' keys and archives' hashes, in hexadecimal, or "any", which is for trying out.
    allow = ["author:5f0c...", "archive:9b1d..."]
    # Whether the owner is asked about code that is not allowed yet; what was approved is remembered by its hash.
    ask = true
    # The kinds of ask that are answered; all where this is left out.
    kinds = ["train", "evaluate"]
    # The smallest cohort of which an ask may be.
    smallest_cohort = 10
    # What a run's author has to have signed beside the code: config, contract, federation, expires, version. Where that
    # is the config, no ask lays other settings over it.
    require = ["config", "federation"]

    # Steps that every update has to go through, and how far their settings may go. Later steps may not enlarge it.
    # Where a step bounds updates, asks whose answers hold what it does not bound are refused: buffers, aux arrays,
    # values in place of differences, free answers.
    [[transforms]]
    name = "clip_by_norm"
    most = { norm = 1.0 }

    # What the app's settings may be.
    [config.epochs]
    least = 1
    most = 5
    [config.optimizer]
    one_of = ["sgd", "adam"]

    # What each client may spend of its privacy over all runs (epsilon at delta), with any one app, and in any one year.
    # Answers of which nothing is promised are refused then. With unit = "example" single rows are hidden, and what the
    # client's own code says of its noise counts.
    [budget]
    epsilon = 4.0
    delta = 1e-6
    per_app = 2.0
    per_year = 1.0

Without a file nobody's code is allowed. Evaluations answer with numbers alone: they need no transforms. These numbers,
and the metrics and the weight of any update, are not bounded.

A policy judges what the run says of itself, as cohorts and transforms; the code of the client is judged by whoever
approves its archive.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from ..core.ask import PHASE
from ..core.settings import not_negative, positive
from ..core.transform import accounts, chain_from_spec, transform_from_spec
from ..core.update import Like
from ..errors import CorruptFile, SettingError, StorageError, StrategyError, UmbelError
from ..wire import messages as m
from . import keyfile
from .archive import MOST_BYTES
from .statement import BOUND, Statement

_RULE = re.compile(r"any|(author|archive|older):[0-9a-f]{64}")


@dataclass(frozen=True)
class Range:
    """What a setting may be: a number from `least` to `most`, or one of some values. Raises `SettingError`."""

    least: float | None = None
    most: float | None = None
    one_of: tuple[Any, ...] | None = None

    def __post_init__(self) -> None:
        for bound in (self.least, self.most):
            if bound is not None and not _is_number(bound):
                raise SettingError(f"a policy's bound is a number, not {bound!r:.60}")
        if self.one_of is not None and not isinstance(self.one_of, list | tuple):
            raise SettingError(f"a policy's one_of is a list, not {self.one_of!r:.60}")

    def fault(self, value: Any) -> str | None:
        """Why a value is not allowed; None if it is."""
        if self.one_of is not None and not any(type(one) is type(value) and one == value for one in self.one_of):
            return f"is {value!r:.60}, not one of {', '.join(map(repr, self.one_of))}"
        if self.least is None and self.most is None:
            return None
        if not _is_number(value):
            return f"is {value!r:.60}, not a number"
        if self.least is not None and not value >= self.least:
            return f"is {value}, below {self.least}"
        if self.most is not None and not value <= self.most:
            return f"is {value}, above {self.most}"
        return None


@dataclass(frozen=True)
class RequiredStep:
    """A transform that updates have to go through, and the bounds of its settings."""

    name: str
    settings: Mapping[str, Range] = field(default_factory=dict)

    def fault(self, specs: Sequence[Mapping[str, Any]]) -> str | None:
        """Why the steps of an ask do not do; None if they do."""
        faults = []
        for place, spec in enumerate(specs):
            if spec["name"] != self.name:
                continue
            said = {key: bound.fault(spec["settings"].get(key)) for key, bound in self.settings.items()}
            wrong = [f"its {key} {fault}" for key, fault in said.items() if fault is not None]
            moving = [key for key in self.settings if key in transform_from_spec(spec).moving]
            wrong += [f"its {key} moves from round to round" for key in moving]
            growing = [later["name"] for later in specs[place + 1 :] if transform_from_spec(later).grows]
            wrong += [f"{name} after it can enlarge the update again" for name in growing]
            hiding = [before["name"] for before in specs[:place] if not transform_from_spec(before).keeps_norm]
            wrong += [f"after {name} it does not see what is sent" for name in hiding]
            if not wrong:
                return None
            faults.append("; ".join(wrong))
        reason = f"updates have to go through {self.name} here"
        return f"{reason}, and {faults[0]}" if faults else f"{reason}, and the app does not ask for that"


@dataclass(frozen=True)
class PrivacyBudget:
    """What each client of a node may spend of its privacy: `epsilon` at `delta` over all runs, `per_app` of that with
    any one app and `per_year` in any one calendar year (UTC), None for no such bound. `unit` is what is hidden: the
    whole ``client``, or each ``example`` of it. Raises `SettingError`.
    """

    name: ClassVar[str] = "a policy's budget"
    epsilon: float
    delta: float
    unit: str = "client"
    per_app: float | None = None
    per_year: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("per_app", "per_year") if getattr(self, name) is not None]
        not_negative(self, "epsilon", *given)
        positive(self, "delta")
        if not self.delta < 1:
            raise SettingError(f"{self.name} takes a delta below 1, not {self.delta!r:.60}")
        if self.unit not in ("client", "example"):
            raise SettingError(f"{self.name} has the unit client or example, not {self.unit!r:.60}")

    @classmethod
    def of(cls, table: Any) -> PrivacyBudget | None:
        """The budget of a policy's table; None for none."""
        if table is None:
            return None
        try:
            return cls(**table)
        except TypeError as error:
            names = ", ".join(f.name for f in fields(cls))
            raise SettingError(
                f"{cls.name} cannot be read: {error}", hint=f"It has epsilon and delta, and may have more: {names}."
            ) from None


class Approvals:
    """The archives that the owner has approved, by hash; kept in a file, or in memory alone."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: set[str] = set()
        if path is None:
            return
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from error
        for line in lines:
            if not re.fullmatch(r"[0-9a-f]{64}", line):
                raise CorruptFile(f"{path} is damaged: {line!r:.80} is no hash", hint="Remove that line.")
        self._known.update(lines)

    def __contains__(self, sha256: bytes) -> bool:
        return sha256.hex() in self._known

    def add(self, sha256: bytes) -> None:
        """Remember an archive as approved. Raises `StorageError`."""
        self._keep({*self._known, sha256.hex()})

    def remove(self, sha256: bytes) -> None:
        """Forget an approval. Raises `StorageError`."""
        self._keep(self._known - {sha256.hex()})

    def _keep(self, known: set[str]) -> None:
        if self._path is not None:
            keyfile.replace(self._path, "".join(f"{line}\n" for line in sorted(known)).encode())
        self._known = known


@dataclass(frozen=True)
class Policy:
    """What may run on a node; see the module for the file. `approvals` are what the owner has approved by hash.

    Raises `SettingError` for what cannot be.
    """

    allow: tuple[str, ...] = ()
    ask: bool = False
    kinds: tuple[str, ...] | None = None
    smallest_cohort: int = 1
    largest_archive: int = MOST_BYTES
    transforms: tuple[RequiredStep, ...] = ()
    config: Mapping[str, Range] = field(default_factory=dict)
    require: tuple[str, ...] = ()
    budget: PrivacyBudget | None = None
    approvals: Approvals = field(default_factory=Approvals, compare=False)

    def __post_init__(self) -> None:
        for rule in self.allow:
            if not isinstance(rule, str) or not _RULE.fullmatch(rule):
                raise SettingError(
                    f"a policy cannot allow {rule!r:.100}",
                    hint="Write author:KEY, archive:HASH or older:HASH, each with 64 hexadecimal digits, or any.",
                )
        if not isinstance(self.ask, bool):
            raise SettingError(f"a policy's ask is true or false, not {self.ask!r:.60}")
        if type(self.smallest_cohort) is not int or self.smallest_cohort < 1:
            raise SettingError(f"a policy's smallest_cohort is a whole number, not {self.smallest_cohort!r:.60}")
        if type(self.largest_archive) is not int or self.largest_archive < 1:
            raise SettingError(f"a policy's largest_archive is a number of bytes, not {self.largest_archive!r:.60}")
        if self.kinds is not None and not all(isinstance(kind, str) for kind in self.kinds):
            raise SettingError("a policy's kinds are text")
        for name in self.require:
            if name not in BOUND:
                raise SettingError(f"a policy cannot require {name!r:.60}", hint=f"It may: {', '.join(BOUND)}.")

    @classmethod
    def load(cls, path: Path, approvals: Approvals | None = None) -> Policy:
        """The policy in a file. Raises `SettingError`."""
        try:
            return cls.read(path.read_text(encoding="utf-8"), approvals)
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"the policy {path} cannot be read: {error}") from error
        except SettingError as error:
            raise SettingError(f"the policy {path}: {error.message}", hint=error.hint) from error

    @classmethod
    def read(cls, text: str, approvals: Approvals | None = None) -> Policy:
        """The policy that a file's text describes. Raises `SettingError`."""
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise SettingError(f"it is not TOML: {error}") from error
        known = [f.name for f in fields(cls) if f.name != "approvals"]
        for key in table.keys() - set(known):
            raise SettingError(f"a policy has no {key!r}", hint=f"It may have {', '.join(known)}.")
        for key in ("allow", "kinds", "transforms", "require"):
            if not isinstance(table.get(key, []), list):
                raise SettingError(f"a policy's {key} is a list")
        steps = tuple(_step(entry) for entry in table.pop("transforms", []))
        config = table.pop("config", {})
        if not isinstance(config, dict):
            raise SettingError("a policy's config has a table for each setting, such as [config.lr]")
        ranges = {key: _range(entry, f"config.{key}") for key, entry in config.items()}
        settings: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in table.items()
        }
        settings["budget"] = PrivacyBudget.of(table.get("budget"))
        return cls(**settings, transforms=steps, config=ranges, approvals=approvals or Approvals())

    def is_allowed(self, sha256: bytes, author: bytes = b"") -> bool:
        """Whether an archive may run, by its hash or by its author, whose signature has been checked."""
        rules = {"any", f"archive:{sha256.hex()}", *([f"author:{author.hex()}"] if author else [])}
        return bool(rules & set(self.allow)) or sha256 in self.approvals

    def check_run(self, spec: m.RunSpec, manifest: Mapping[str, Any], author: bytes = b"") -> list[str]:
        """Why a run may not take place here; empty if it may. `author` is the key whose signature has been checked,
        `manifest` that of the archive. Where `asks_owner` is true, only the owner's approval is missing.
        """
        sha256 = archive_sha256(spec)
        reasons = self._check_rules(spec, manifest)
        if not self.is_allowed(sha256, author):
            by = f"by {author.hex()}" if author else "by nobody who signed it"
            reasons.insert(0, f"the node's owner has not approved the archive {sha256.hex()} ({by})")
        return reasons

    def check_statement(self, said: Statement | None, sha256: bytes, greatest: int) -> list[str]:
        """Why what its author has signed of a run does not do; empty if it does. `greatest` is the greatest version of
        the same author and app that was let in here.
        """
        lacking = [name for name in self.require if not getattr(said, name, None)]
        reasons = [f"its author has not signed its {name}, which is required here" for name in lacking]
        if said is not None and said.version < greatest and f"older:{sha256.hex()}" not in self.allow:
            reasons.append(
                f"it is version {said.version} of {said.app}, and version {greatest} was let in here before: "
                f"`--allow older:{sha256.hex()}` lets it in all the same"
            )
        return reasons

    def check_announced(self, spec: m.RunSpec, author: bytes = b"") -> list[str]:
        """Why a run may not take place here whatever is in its archive; empty where that has to be seen."""
        return [] if self.asks_owner(spec, {}, author) else self.check_run(spec, {}, author)

    def asks_owner(self, spec: m.RunSpec, manifest: Mapping[str, Any], author: bytes = b"") -> bool:
        """Whether the owner is to be asked, since nothing but an approval of the archive is missing."""
        return self.ask and not self.is_allowed(archive_sha256(spec), author) and not self._check_rules(spec, manifest)

    @property
    def judges_tasks(self) -> bool:
        """Whether what a client would get makes a difference."""
        return bool(self.config or self.transforms or "config" in self.require)

    def check_ask(self, spec: m.AskSpec) -> list[str]:
        """Why an ask is not answered here, as far as that is known without what clients are sent; empty if it is."""
        phase = spec.kind.startswith(PHASE)  # answered without data; the update comes in an ask of another kind
        reasons = [] if phase else self._check_kinds([spec.kind])
        if spec.cohort < self.smallest_cohort:
            reasons.append(f"a cohort of {spec.cohort} is asked, and here it has to be at least {self.smallest_cohort}")
        if phase:
            return reasons
        if spec.kind != "evaluate":
            reasons += self._check_steps(spec.transforms)
        return reasons + self._check_promises(spec.transforms)

    def check_task(self, spec: m.AskSpec, sent: Mapping[str, Any]) -> list[str]:
        """Why an ask is not answered by a client that is sent this; empty if it is. `config` are the app's settings
        with those of the ask and the task laid over them, `laid_over` names these; `model` and `expects` are as the ask
        has them.
        """
        reasons = self.check_ask(spec) + self._check_config(sent["config"], whole=True)
        if "config" in self.require and sent["laid_over"]:
            names = ", ".join(map(repr, sent["laid_over"][:5]))
            reasons.append(f"the ask lays other settings over those that the author has signed: {names:.200}")
        if reasons or spec.kind == "evaluate" or spec.kind.startswith(PHASE):
            return reasons
        required = {step.name for step in self.transforms}
        parts = chain_from_spec(json.loads(spec.transforms)).parts if required else ()
        # What hides every client drops what it does not bound.
        bounds = [p.name for p in parts if p.name in required and p.bound < math.inf and not p.private]
        free = _unbounded(sent.get("expects"), sent.get("model")) if bounds else None
        return [] if free is None else [f"{free}, which {bounds[0]} does not bound, and it has to bound all here"]

    def _check_rules(self, spec: m.RunSpec, manifest: Mapping[str, Any]) -> list[str]:
        try:
            said = json.loads(spec.contract) if spec.contract else {}
            kinds = [str(kind) for kind in said.get("kinds", manifest.get("handlers", []))]
            steps = json.dumps(said.get("transforms", []))
            config = json.loads(spec.config) if spec.config else {}
            if not isinstance(config, dict):
                raise ValueError("its settings are no object")
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            return [f"the run's description cannot be read: {error}"]
        reasons = self._check_kinds(kinds) + self._check_config(config, whole=False)
        reasons += self._check_steps(steps) if set(kinds) - {"evaluate"} else []
        return reasons + self._check_promises(steps)

    def _check_kinds(self, kinds: Sequence[str]) -> list[str]:
        if self.kinds is None:
            return []
        only = ", ".join(self.kinds) or "nothing"
        return [f"{kind} is not answered here, only {only}" for kind in kinds if kind not in self.kinds]

    def _check_steps(self, text: str) -> list[str]:
        """Judge the steps that JSON describes."""
        if not self.transforms:
            return []
        try:
            specs = json.loads(text) if text else []
            faults = [step.fault(specs) for step in self.transforms]
        except StrategyError as error:
            return [error.message]
        except Exception:
            return ["the ask's transforms cannot be read"]
        return [fault for fault in faults if fault is not None]

    def _check_promises(self, text: str) -> list[str]:
        """Judge whether steps that JSON describes promise anything, where a budget needs that."""
        if self.budget is None or self.budget.unit != "client":
            return []  # what handlers do is seen when they have done it
        try:
            promising = accounts(chain_from_spec(json.loads(text) if text else []))
        except Exception:
            promising = False
        return [] if promising else ["answers have to be hidden by noise here (budget), and no transform says it is"]

    def _check_config(self, config: Mapping[str, Any], *, whole: bool) -> list[str]:
        reasons = []
        for key, allowed in self.config.items():
            if key not in config:
                if whole:
                    reasons.append(f"the setting {key} is not given, and here it has bounds")
            elif (fault := allowed.fault(config[key])) is not None:
                reasons.append(f"the setting {key} {fault}")
        return reasons


def _unbounded(expects: Any, model: Any) -> str | None:
    """What an answer may hold beside differences of parameters; None where there is no such thing."""
    if not isinstance(expects, Like):
        return "the ask expects a free answer"
    if not expects.delta:
        return "the ask expects values and not differences"
    if expects.aux is not None:
        return "the ask expects aux arrays"
    try:
        roles = expects.schema(model).roles
    except UmbelError as error:
        return f"the ask expects what cannot be read ({error.message})"
    others = sorted(name for name, role in roles.items() if role != "parameter")
    return f"the ask expects the buffers {', '.join(map(repr, others[:5]))}" if others else None


def archive_sha256(spec: m.RunSpec) -> bytes:
    """The hash of a run's archive."""
    if spec.archive.WhichOneof("at") == "blob":
        return spec.archive.blob.sha256
    return hashlib.sha256(spec.archive.inline).digest()


def _step(entry: Any) -> RequiredStep:
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("name"), str)
        or entry.keys() - {"name", "least", "most"}
    ):
        raise SettingError(
            f"a policy's transforms cannot have {entry!r:.80}",
            hint="Write [[transforms]] with a name, and most or least for its settings.",
        )
    least, most = entry.get("least", {}), entry.get("most", {})
    if not isinstance(least, dict) or not isinstance(most, dict):
        raise SettingError(f"bounds of {entry['name']} name its settings, such as most = {{ norm = 1.0 }}")
    return RequiredStep(entry["name"], {key: Range(least.get(key), most.get(key)) for key in sorted({*least, *most})})


def _range(entry: Any, where: str) -> Range:
    if not isinstance(entry, dict) or not entry or entry.keys() - {"least", "most", "one_of"}:
        raise SettingError(f"{where} has least, most or one_of")
    one_of = entry.get("one_of")
    return Range(entry.get("least"), entry.get("most"), tuple(one_of) if isinstance(one_of, list) else one_of)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
