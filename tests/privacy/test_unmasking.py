"""Secure sums, phase by phase, with holders and a server in one process."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.core.arrays import Arrays
from umbel.core.randomness import Key
from umbel.core.update import Update
from umbel.entropy import SYSTEM, Entropy
from umbel.errors import UpdateRejected
from umbel.privacy import shamir
from umbel.privacy.neighbours import neighbourhood
from umbel.privacy.secure_sum import BODY, HEAD, KEYS, SHARES, UNMASK, KeyPair, own_mask, pairwise, secure_sum
from umbel.privacy.unmasking import SumSession, sound

module = sys.modules[secure_sum.__module__]
NOTHING = Update()


def step_of(threshold: int = 2, **settings: Any) -> secure_sum:
    return secure_sum("1.0.1", threshold, **{"clients": 100, "clip": 8.0, "bits": 8, **settings})


def ring(n: int, degree: int) -> dict[Any, tuple[Any, ...]]:
    """Neighbours on both sides."""
    near = [step for half in range(1, degree // 2 + 1) for step in (half, -half)]
    return {at: tuple(sorted({(at + step) % n for step in near})) for at in range(n)}


class Sitting:
    """A session with clients 0, 1, ..., whose updates are `values`, as it goes on by phases."""

    def __init__(self, step: secure_sum, values: Iterable[Any], degree: int = 0, own: Entropy = SYSTEM) -> None:
        self.step, self.own = step, own
        self.values = {at: np.asarray(value, np.float32) for at, value in enumerate(values)}
        self.secrets: dict[Any, Any] = dict.fromkeys(self.values)
        n = len(self.values)
        self.around = ring(n, degree) if degree else {at: tuple(x for x in range(n) if x != at) for at in range(n)}
        self.sent: dict[Any, Update] = {}

    def plain(self, client: Any, weight: float = 1.0) -> Update:
        update = Update(Arrays({"w": self.values[client]}), weight, delta=True)
        return self.step.encode(update, None, None, Key.from_seed(5).derive(client), self.own)[0]

    def ask(self, kind: str, client: Any, inbox: Any, step: secure_sum | None = None) -> Update:
        update = NOTHING if kind.startswith("phase:") else self.plain(client)
        told, self.secrets[client] = (step or self.step).take_part(
            kind, update, Arrays(inbox), self.secrets[client], self.own
        )
        return told

    def keys(self, dropped: Iterable[Any] = ()) -> None:
        told = {client: self.ask(KEYS, client, {}).arrays["keys"] for client in self.values if client not in dropped}
        points = {client: client + 1 for client in self.values}
        around = {client: tuple(peer for peer in self.around[client] if peer in told) for client in told}
        self.server = SumSession("1.0.1", self.step.threshold, points, around, told)

    def shares(self, dropped: Iterable[Any] = ()) -> None:
        there = [client for client in self.server.keys if client not in dropped]
        self.server.take_shares({c: self.ask(SHARES, c, self.server.asked(c)).arrays["shares"] for c in there})

    def masked(self, dropped: Iterable[Any] = ()) -> None:
        there = [client for client in self.server.able() if client not in dropped]
        self.sent = {client: self.ask("train", client, self.server.received(client)) for client in there}
        self.server.summed = frozenset(self.sent)

    def opened(self, dropped: Iterable[Any] = ()) -> list[Any]:
        there = [client for client in self.server.enough(self.server.summed) if client not in dropped]
        told = {client: self.ask(UNMASK, client, self.server.told(client)).arrays for client in there}
        vectors = self.total(self.sent.values())
        self.server.unmask(vectors, told)
        return vectors

    def total(self, updates: Collection[Update]) -> list[Any]:
        return [sum((u.arrays[name] for u in updates), np.zeros((), dtype)) for name, dtype in self.parts]

    @property
    def parts(self) -> list[tuple[str, Any]]:
        return [(HEAD, np.dtype("<u8")), (BODY, self.step.dtype)]

    def through(self, *dropped: Iterable[Any]) -> list[Any]:
        for phase, gone in zip((self.keys, self.shares, self.masked), dropped, strict=False):
            phase(gone)
        return self.opened(dropped[3])


@st.composite
def sessions(draw: Any) -> tuple[Sitting, list[set[int]]]:
    """Sessions of which everybody has enough neighbours to the end."""
    n = draw(st.integers(3, 9))
    degree = draw(st.sampled_from([each for each in (0, 2, 4, 6) if each < n]))
    step = step_of(2, clients=n, bits=draw(st.integers(2, 20)), clip=draw(st.sampled_from([0.5, 8.0])))
    values = draw(st.lists(st.lists(st.floats(-9, 9, width=32), min_size=5, max_size=5), min_size=n, max_size=n))
    session = Sitting(step, values, degree)
    left, gone = set(range(n)), list[set[int]]()
    for _ in range(4):
        less = {each for each in draw(st.sets(st.sampled_from(sorted(left)), max_size=2)) if left - {each}}
        if any(len(left - less & {*session.around[each]}) < 2 for each in left):
            less = set()
        stay = left - less
        if any(len(stay & {*session.around[each]}) < 2 for each in left):
            less, stay = set(), left
        gone.append(less)
        left = stay
    return session, gone


@given(sessions())
def test_the_sum_is_that_of_those_who_stayed_exactly(given: tuple[Sitting, list[set[int]]]) -> None:
    session, gone = given
    opened = session.through(*gone)
    expected = session.total([session.plain(client) for client in session.sent])
    assert session.sent.keys() == {*session.values} - gone[0] - gone[1] - gone[2]
    for vector, plain in zip(opened, expected, strict=True):
        assert vector.tolist() == plain.tolist()
    for client in session.values:
        kept = session.secrets[client]
        done = client in session.sent and client not in gone[3]
        assert (kept is None) == (done or client in gone[0])
        assert not kept or kept["stage"] != "masked" or {"seed", "mask", "agree", "agreed"}.isdisjoint(kept)


@pytest.mark.parametrize("missing", range(4))
def test_what_is_sent_says_nothing_by_itself(missing: int) -> None:
    """Each masked update, and each sum of some of them, is as good as uniform."""
    session = Sitting(step_of(bits=16), np.zeros((4, 5000)))
    for phase in (session.keys, session.shares, session.masked):
        phase()
    some = [update for client, update in session.sent.items() if client != missing]
    for updates in ([session.sent[missing]], some, [*session.sent.values()]):
        body = session.total(updates)[1]
        bits = np.unpackbits(np.ascontiguousarray(body).view(np.uint8))
        assert abs(bits.mean() - 0.5) < 5.5 * 0.5 / np.sqrt(len(bits))  # 4e-8 for a coin


class Enumerated:
    """Masks that are not drawn but gone through: a number for each key, by a small modulus."""

    def __init__(self, modulus: int, numbers: dict[bytes, int]) -> None:
        self.modulus, self.numbers = modulus, numbers

    def __call__(self, vectors: list[Any], *, plus: Iterable[bytes] = (), minus: Iterable[bytes] = ()) -> None:
        body = vectors[1]
        number = sum(self.numbers[key] for key in plus) - sum(self.numbers[key] for key in minus)
        body[:] = (body + body.dtype.type(number % self.modulus)) % body.dtype.type(self.modulus)


@pytest.mark.parametrize("modulus", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("gone", [None, 2])
def test_the_servers_view_is_that_of_any_updates_of_the_same_sum(
    gone: int | None, modulus: int, monkeypatch: Any
) -> None:
    """By a small modulus, with three clients, for all masks that there are: what is masked, and what is opened."""

    def views(*values: int) -> Counter[Any]:
        session = Sitting(step_of(bits=3, clip=3.0), [[value] for value in values])
        session.keys()
        session.shares()
        begun = dict(session.secrets)
        own = {c: own_mask(begun[c]["seed"].tobytes(), "1.0.1") for c in begun}
        pairs = {
            (c, d): pairwise(KeyPair(begun[c]["mask"].tobytes()), session.server.keys[d][32:].tobytes(), "1.0.1")
            for c, d in itertools.combinations(begun, 2)
        }
        opened = [own[c] for c in begun if c != gone] + [pairs[pair] for pair in pairs if gone in pair]
        seen = Counter[Any]()
        for table in itertools.product(range(modulus), repeat=6):
            numbers = dict(zip([*own.values(), *pairs.values()], table, strict=True))
            monkeypatch.setattr(module, "add_masks", Enumerated(modulus, numbers))
            session.secrets = dict(begun)
            session.masked([] if gone is None else [gone])
            sent = tuple(int(update.arrays[BODY][0]) for update in session.sent.values())
            seen[sent, tuple(numbers[key] for key in opened)] += 1
        return seen

    one, other, third = views(1, 0, 2), views(0, 1, 2), views(1, 1, 2)  # the first two have the same sums
    assert one == other
    assert one != third
    assert len(one) == modulus**5  # and nothing tells them apart that is not in the sum


def test_masks_that_are_left_out_are_seen() -> None:
    """The test above sees what it is there for."""
    session = Sitting(step_of(bits=16), np.zeros((3, 100)))
    session.keys()
    session.shares()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "add_masks", lambda *_, **__: None)
        session.masked()
    assert not session.sent[0].arrays[BODY].any()


def changed(session: Sitting, kind: str, client: Any = 0, **changes: Any) -> None:
    """Ask a client with something changed in what it gets."""
    inbox = {SHARES: session.server.asked, "train": session.server.received, UNMASK: session.server.told}[kind](client)
    session.ask(kind, client, {**inbox, **changes})


def upto(phase: str, n: int = 5, threshold: int = 3, gone: Iterable[Any] = ()) -> Sitting:
    session = Sitting(step_of(threshold), np.zeros((n, 3)))
    session.keys()
    if phase in ("train", UNMASK):
        session.shares()
    if phase == UNMASK:
        session.masked(gone)
    return session


def points(*given: int) -> Any:
    return np.array(given, np.int64)


LIES = {
    "a neighbour at its own point": (SHARES, {"points": points(1, 2, 3, 4)}, "not distinct points"),
    "two neighbours at one point": (SHARES, {"points": points(2, 2, 3, 4)}, "not distinct points"),
    "a point that is none": (SHARES, {"points": points(0, 2, 3, 4)}, "not distinct points"),
    "keys of nobody": (SHARES, {"keys": np.zeros((3, 64), np.uint8)}, "not distinct points"),
    "the same key twice": (SHARES, {"keys": np.ones((4, 64), np.uint8)}, "have the same key"),
    "too few neighbours": (
        SHARES, {"points": points(2, 3), "keys": np.arange(128, dtype=np.uint8).reshape(2, 64)}, "fewer than the thres"
    ),
    "strangers that have shared": (
        "train", {"points": points(2, 3, 9), "shares": np.zeros((3, 88), np.uint8)}, "others than its neighbours"
    ),
    "a neighbour that has shared twice": (
        "train", {"points": points(2, 2, 3), "shares": np.zeros((3, 88), np.uint8)}, "others than its neighbours"
    ),
    "shares that were changed": ("train", {"shares": np.zeros((4, 88), np.uint8)}, "were changed on their way"),
    "too few that have shared": (
        "train", {"points": points(2, 3), "shares": np.zeros((2, 88), np.uint8)}, "fewer than the threshold"
    ),
    "one that is there and gone": (UNMASK, {"gone": points(2)}, "there and to be gone"),
    "one there twice": (UNMASK, {"there": points(2, 2, 3, 4, 5)}, "there and to be gone"),
    "strangers in the sum": (UNMASK, {"there": points(2, 3, 4, 9)}, "of others than"),
    "one left out": (UNMASK, {"there": points(2, 3, 4)}, "of others than"),
    "too few left": (UNMASK, {"there": points(2, 3), "gone": points(4, 5)}, "too few are summed"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_lies_is_refused(lie: str) -> None:
    kind, changes, says = LIES[lie]
    session = upto(kind)
    with pytest.raises(UpdateRejected, match=says):
        changed(session, kind, **changes)
    changed(session, kind)  # the truth is answered


def test_shares_that_are_another_ones_are_refused() -> None:
    session = upto("train")
    inbox = session.server.received(0)
    with pytest.raises(UpdateRejected, match="were changed on their way"):
        session.ask("train", 0, {**inbox, "shares": inbox["shares"][::-1].copy()})


@pytest.mark.parametrize("kind", [SHARES, "train", UNMASK])
def test_a_phase_is_answered_once(kind: str) -> None:
    session = upto(kind)
    inbox = {SHARES: session.server.asked, "train": session.server.received, UNMASK: session.server.told}[kind](0)
    session.ask(kind, 0, inbox)
    with pytest.raises(UpdateRejected, match="does so once" if kind != UNMASK else "has no keys for the session"):
        session.ask(kind, 0, inbox)


@pytest.mark.parametrize("kind", [SHARES, "train", UNMASK])
def test_keys_are_for_one_session_and_one_threshold(kind: str) -> None:
    session = upto(kind)
    other = secure_sum("1.0.2", 3, 100, 8.0, 8)
    with pytest.raises(UpdateRejected, match=r"has no keys for the session '1\.0\.2'"):
        session.ask(kind, 0, {}, other)
    if kind != SHARES:
        with pytest.raises(UpdateRejected, match="the threshold of secure_sum was 3, and is now 2"):
            session.ask(kind, 0, {}, step_of(2))


def test_who_never_sent_keys_has_none() -> None:
    session = Sitting(step_of(), np.zeros((3, 2)))
    with pytest.raises(UpdateRejected, match="has no keys"):
        session.ask(SHARES, 0, {})


@pytest.mark.parametrize("weak", [bytes(32), (1).to_bytes(32, "little")])
def test_keys_with_which_nothing_is_agreed_are_refused(weak: bytes) -> None:
    session = upto(SHARES)
    keys = session.server.asked(0)["keys"].copy()
    keys[1, :32] = np.frombuffer(weak, np.uint8)
    with pytest.raises(UpdateRejected, match="nothing secret can be agreed"):
        changed(session, SHARES, keys=keys)


# What docs/privacy.md says that a server can do that lies


def unmasked(session: Sitting, victim: int, seed: Any, keys: dict[int, Any]) -> bool:
    """Whether a client's update comes of shares of its seed, and of those of its own key or all its neighbours'."""
    vectors = [session.sent[victim].arrays[name].copy() for name in (HEAD, BODY)]
    plus, minus = list[bytes](), [own_mask(shamir.recover(seed, session.step.threshold, 32), "1.0.1")]
    for peer in session.around[victim]:
        mine, theirs = (victim, peer) if victim in keys else (peer, victim)
        private = shamir.recover(keys[mine], session.step.threshold, 32)
        key = pairwise(KeyPair(private), session.server.keys[theirs][32:].tobytes(), "1.0.1")
        (minus if victim < peer else plus).append(key)
    module.add_masks(vectors, plus=plus, minus=minus)
    return bool((vectors[1] == session.plain(victim).arrays[BODY]).all())


@pytest.mark.parametrize(("same", "clients"), [(False, 10), (True, 20)])
def test_a_server_that_lies_has_one_clients_update(same: bool, clients: int) -> None:
    """It tells half of its neighbours that it stayed, and half that it is gone; or everybody that these are gone."""
    degree, threshold = neighbourhood(clients, 0.1, 0.3)
    session = Sitting(step_of(threshold, clients=clients, bits=16), np.arange(clients)[:, None] / 7, degree)
    for phase in (session.keys, session.shares, session.masked):
        phase()
    seed, keys = dict[int, Any](), dict[int, dict[int, Any]]()
    for place, peer in enumerate(session.around[0] if not same else range(1, clients)):
        gone = {*session.around[0]} if same else {0} if place >= threshold else set()
        session.server.summed = frozenset({*range(clients)} - gone)
        inbox = session.server.told(peer)
        if len(inbox["there"]) < threshold:
            continue
        told = session.ask(UNMASK, peer, inbox).arrays
        for point, share in zip(inbox["there"].tolist(), told["seeds"], strict=True):
            seed |= {peer + 1: share} if point == 1 else {}
        for point, share in zip(inbox["gone"].tolist(), told["masks"], strict=True):
            keys.setdefault(point - 1, {})[peer + 1] = share
    assert unmasked(session, 0, seed, keys)


# At the server


def test_too_few_that_stay_unmask_nothing() -> None:
    session = upto(UNMASK)
    with pytest.raises(UpdateRejected, match="2 neighbours have told a share of a secret of client"):
        session.opened([0, 1, 2])


def test_shares_of_another_secret_are_found() -> None:
    session = upto(UNMASK, gone=[4])
    told = {client: session.ask(UNMASK, client, session.server.told(client)).arrays for client in session.sent}
    vectors = session.total(session.sent.values())
    for parts in (
        {0: {**told[0], "masks": told[0]["masks"] ^ 1}},
        {0: {**told[0], "seeds": told[0]["seeds"][1:]}},
        {0: {"seeds": told[0]["seeds"]}},
        {client: {**each, "masks": told[0]["masks"] * 0} for client, each in told.items()},
    ):
        with pytest.raises(UpdateRejected, match=r"not of one secret|told other shares|not of the key"):
            session.server.unmask([each.copy() for each in vectors], {**told, **parts})
    session.server.unmask(vectors, told)
    assert not vectors[1].any()


def test_who_has_too_few_neighbours_that_shared_costs_its_update_alone() -> None:
    session = Sitting(step_of(3), np.ones((12, 3)), degree=6)
    session.keys()
    session.shares([1, 2, 3, 11])  # 0 has two neighbours left
    session.masked()
    assert sorted(session.sent) == [4, 5, 6, 7, 8, 9, 10]
    vectors = session.opened()
    expected = session.total([session.plain(client) for client in session.sent])
    assert [vector.tolist() for vector in vectors] == [plain.tolist() for plain in expected]


def test_keys_that_somebody_else_has_are_nobodys() -> None:
    session = upto(SHARES)
    keys = dict(session.server.keys)
    assert list(sound(keys)) == [0, 1, 2, 3, 4]
    assert sound(keys)[2] is keys[2]
    assert list(sound({**keys, 3: np.concatenate([keys[3][:32], keys[1][32:]])})) == [0, 2, 4]
    assert list(sound({**keys, 3: np.roll(keys[1], 32)})) == [0, 2, 4]
    assert sound({}) == {}


def test_who_has_not_shared_with_everybody_has_dropped_out() -> None:
    session = upto(SHARES)
    shares = {client: session.ask(SHARES, client, session.server.asked(client)).arrays["shares"] for client in range(5)}
    session.server.take_shares({**shares, 2: shares[2][:3], 3: shares[3][0]})
    assert sorted(session.server.shares) == [0, 1, 4]
