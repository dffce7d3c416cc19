"""The holder's side of secure aggregation: an update as integers under masks that cancel in the sum."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..core.arrays import Array, Arrays, Schema
from ..core.fold import Fold
from ..core.randomness import Draws, Key
from ..core.settings import positive, whole
from ..core.transform import Transform, as_arrays, register_transform
from ..core.update import Expectation, Like, Update, finite
from ..entropy import SYSTEM, Entropy
from ..errors import SettingError, StrategyError, UpdateRejected
from . import shamir
from .masks import KEY_BYTES, add_masks, derived

KEYS, SHARES, UNMASK = "phase:keys", "phase:shares", "phase:unmask"
HEAD, BODY = "head", "body"
FIXED = 1 << 20
"""Weights and metrics travel as multiples of one part in so many."""
LARGEST_METRIC = 2.0**30
"""Metrics beyond are cut off there."""
_PART = 1 << 14
_LONGEST_NAME = 200


@register_transform
@dataclass(frozen=True)
class secure_sum(Transform):
    """Seal an update so that nothing but a sum of many can be read (Bonawitz et al. 2017, IACR 2017/281; Bell et al.
    2020, IACR 2020/704): what `umbel.privacy.secure` has clients do, which makes it and the asks that go with it.

    A holder cuts each element of its parameters off at `clip`, multiplies it by its weight as a share of `weight`, the
    largest there may be (0 for all clients alike), and rounds it at random to one of the whole numbers that `bits` bits
    hold; its weight, its `metrics` times that, and how many elements were cut off go beside them. To all it adds masks,
    modulo the power of two that holds the sum of so many `clients`: one for each neighbour, by a secret that both agree
    on, which one adds and the other subtracts, and one of its own. The secrets' shares are with its neighbours: any
    `threshold` of them can have the masks taken off that did not cancel. It tells them either the secret of a neighbour
    that is gone, or that of the own mask of one that is not, and never both. Keys are for the one `session`.
    """

    name: ClassVar[str] = "secure_sum"
    phases: ClassVar[tuple[str, ...]] = (KEYS, SHARES, UNMASK)
    session: str
    threshold: int
    clients: int
    clip: float
    bits: int = 16
    weight: float = 0.0
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", tuple(self.metrics))
        positive(self, "clip")
        whole(self, bits=2, clients=2, threshold=2)
        if self.bits > 32 or self.modulus_bits > 64:
            raise SettingError(f"secure_sum sums values of up to 32 bits, of up to 2^32 clients, not of {self.bits}")
        if not isinstance(self.session, str) or not self.session.isascii() or len(self.session) > _LONGEST_NAME:
            raise SettingError(f"a session of secure_sum has a name of up to {_LONGEST_NAME} characters of ASCII")
        if not 0 <= self.weight < 2.0**40:
            raise SettingError(f"the largest weight of secure_sum is a number from 0 on, not {self.weight!r}")

    @property
    def modulus_bits(self) -> int:
        """Bits in which the sum of all clients' values cannot wrap."""
        return (2 * self.levels * self.clients).bit_length()

    @property
    def levels(self) -> int:
        """A value is at most so many steps above or below zero."""
        return (1 << self.bits - 1) - 1

    def most(self, share: float, count: int) -> float:
        """What no element of a sum of so many updates, that count so much, is larger than in size, in steps."""
        return self.levels * share + count  # each is rounded by less than a step

    @property
    def dtype(self) -> np.dtype[Any]:
        """The unsigned integers, in little-endian order, in which values are summed."""
        return np.dtype(f"<u{next(size for size in (2, 4, 8) if 8 * size >= self.modulus_bits)}")

    @property
    def key(self) -> Key:
        """By which the steps before it draw what they draw, at all clients alike."""
        return Key.from_seed(int.from_bytes(hashlib.sha256(self.session.encode()).digest()[:8], "little"))

    def check(self, fold: Fold, expects: Expectation) -> None:
        if fold.name not in ("total", "collect"):
            raise StrategyError(f"secure_sum under {fold.name}: what is sealed can be added up, and nothing else")
        if fold.name == "total" and not (isinstance(expects, Like) and expects.delta):
            raise StrategyError("secure_sum seals differences", hint="Use Like(delta=True).")

    # At the holder

    def encode(self, update: Update, params: Any, local: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Update, Any]:
        arrays, share = as_arrays(update).of_role("parameter"), self._share(update.weight)
        steps = np.empty(_size(arrays), self.dtype.str.replace("u", "i"))
        cut = self._fill(steps, arrays, share, key, own)
        head = [share * FIXED, cut, *(self._metric(update.metrics, name) * share * FIXED for name in self.metrics)]
        sealed = {HEAD: np.rint(head).astype(np.int64).astype("<u8"), BODY: steps.view(self.dtype)}
        return Update(Arrays(sealed, dict.fromkeys(sealed, "buffer"))), local

    def _fill(self, steps: Array, arrays: Arrays, share: float, key: Key, own: Entropy) -> int:
        """Write all elements as steps, one after the other, and say how many were beyond the bound."""
        at, cut, draws = 0, 0, key.draws()
        for name, array in arrays.items():
            beyond = finite(array, name) > self.clip
            flat = np.ravel(array)
            for start in range(0, flat.size, _PART):
                part = flat[start : start + _PART].astype(np.float64)
                if beyond:
                    cut += int(np.count_nonzero(np.abs(part) > self.clip))
                    np.clip(part, -self.clip, self.clip, out=part)
                part *= share * self.levels / self.clip
                part += thresholds(draws, part.size)
                steps[at : at + part.size] = np.floor(part, out=part)
                at += part.size
        return cut

    def take_part(
        self, kind: str, update: Update, inbox: Mapping[str, Array], secrets: Any, own: Entropy
    ) -> tuple[Update, Any]:
        if kind == KEYS:
            return self._keys(own)
        if not secrets or secrets["session"] != self.session:
            raise UpdateRejected(f"this client has no keys for the session {self.session!r} of secure_sum")
        step = {SHARES: self._shares, UNMASK: self._unmask}.get(kind)
        return step(inbox, secrets, own) if step is not None else self._masked(update, inbox, secrets)

    def _keys(self, own: Entropy) -> tuple[Update, Any]:
        """Draw two key pairs: one to agree on what shares are encrypted with, one on masks."""
        agree, mask = _bytes(own), _bytes(own)
        public = _array(KeyPair(agree).public + KeyPair(mask).public)
        kept = {"session": self.session, "stage": KEYS, "agree": _array(agree), "mask": _array(mask)}
        return Update({"keys": public}), kept

    def _shares(self, inbox: Mapping[str, Array], secrets: Any, own: Entropy) -> tuple[Update, Any]:
        """Share the masks' secrets among the neighbours that are told, encrypted for each."""
        self._check_stage(secrets, KEYS)
        point, points, keys = int(inbox["point"]), inbox["points"].tolist(), inbox["keys"]
        if keys.shape != (len(points), 2 * KEY_BYTES) or len({*points, point}) <= len(points) or min(points) < 1:
            raise UpdateRejected("the neighbours that secure_sum was told are not distinct points with their keys")
        if len({half.tobytes() for half in keys.reshape(-1, KEY_BYTES)}) < 2 * len(points):
            raise UpdateRejected("two of the neighbours that secure_sum was told have the same key")
        if len(points) < self.threshold:
            raise UpdateRejected(f"{len(points)} neighbours are fewer than the threshold of {self.threshold}")
        seed = _bytes(own)
        shares = shamir.split([secrets["mask"].tobytes(), seed], self.threshold, points, own).astype("<u4", copy=False)
        pair = KeyPair(secrets["agree"].tobytes())
        agreed = [pair.agreed(key.tobytes()[:KEY_BYTES]) for key in keys]
        sealed = [
            _array(self._cipher(secret, point, peer).encrypt(_NONCE, shares[:, at].tobytes(), None))
            for at, (peer, secret) in enumerate(zip(points, agreed, strict=True))
        ]
        kept = {name: secrets[name] for name in ("session", "mask")}
        kept |= {"stage": SHARES, "threshold": self.threshold, "point": point, "points": points, "seed": _array(seed)}
        kept |= {"agreed": np.stack([_array(each) for each in agreed]), "keys": keys[:, KEY_BYTES:]}
        return Update({"shares": np.stack(sealed)}), kept

    def _masked(self, update: Update, inbox: Mapping[str, Array], secrets: Any) -> tuple[Update, Any]:
        """Mask the values, for those neighbours that have shared their secrets with this client."""
        self._check_stage(secrets, SHARES)
        points, known = inbox["points"].tolist(), secrets["points"]
        if len({*points}) < len(points) or not {*points} <= {*known} or len(inbox["shares"]) != len(points):
            raise UpdateRejected("secure_sum was told of shares of others than its neighbours")
        if len(points) < self.threshold:
            raise UpdateRejected(
                f"{len(points)} neighbours have shared their secrets, fewer than the threshold of {self.threshold}"
            )
        mask, mine = KeyPair(secrets["mask"].tobytes()), secrets["point"]
        received, keys = [], dict[int, bytes]()
        for peer, sealed in zip(points, inbox["shares"], strict=True):
            at = known.index(peer)
            cipher = self._cipher(secrets["agreed"][at].tobytes(), peer, mine)
            received.append(self._opened(cipher, sealed.tobytes(), peer))
            keys[peer] = pairwise(mask, secrets["keys"][at].tobytes(), self.session)
        vectors = [array.copy() for array in (update.arrays[HEAD], update.arrays[BODY])]
        plus = [own_mask(secrets["seed"].tobytes(), self.session), *(keys[peer] for peer in points if peer > mine)]
        add_masks(vectors, plus=plus, minus=[keys[peer] for peer in points if peer < mine])
        kept = {name: secrets[name] for name in ("session", "threshold")}
        kept |= {"stage": "masked", "points": points, "shares": np.stack(received)}
        sent = dict(zip((HEAD, BODY), vectors, strict=True))
        return replace(update, arrays=Arrays(sent, dict.fromkeys(sent, "buffer"))), kept

    def _unmask(self, inbox: Mapping[str, Array], secrets: Any, own: Entropy) -> tuple[Update, Any]:
        """Tell the shares with which the masks are taken off that did not cancel, and forget everything."""
        self._check_stage(secrets, "masked")
        there, gone, known = inbox["there"].tolist(), inbox["gone"].tolist(), secrets["points"]
        if len({*there, *gone}) < len(there) + len(gone):
            raise UpdateRejected("a neighbour is said to be there and to be gone: its update could be unmasked")
        if {*there, *gone} != {*known}:
            raise UpdateRejected("secure_sum was asked for shares of others than of the neighbours that gave it some")
        if len(there) < self.threshold:
            raise UpdateRejected(
                f"{len(there)} neighbours are left, fewer than the threshold of {self.threshold}: too few are summed"
            )
        places = {peer: at for at, peer in enumerate(known)}
        shares = secrets["shares"]  # by peer, of its key and of its seed
        masks, seeds = shares[[places[peer] for peer in gone], 0], shares[[places[peer] for peer in there], 1]
        return Update({"masks": masks, "seeds": seeds}), None

    def decode(self, update: Update, params: Any, schema: Schema | None = None) -> Update:
        arrays = as_arrays(update)
        if schema is None:
            self._check_told(arrays)
            return update
        if {*arrays} != {HEAD, BODY} or update.delta:
            raise UpdateRejected("a sealed update has a head and a body")
        head, body = arrays[HEAD], arrays[BODY]
        if head.dtype != np.dtype("<u8") or head.shape != (2 + len(self.metrics),):
            raise UpdateRejected("the head of a sealed update is not what secure_sum asks for")
        if body.dtype != self.dtype or body.ndim != 1:
            raise UpdateRejected(f"the body of a sealed update is not a vector of {self.dtype.name}")
        return replace(update, weight=1.0, metrics={})

    def _check_told(self, arrays: Arrays) -> None:
        """Raise `UpdateRejected` for what is no answer of a phase of its own."""
        if {*arrays} not in ({"keys"}, {"shares"}, {"masks", "seeds"}):
            raise UpdateRejected("the update is not what secure_sum asks for in any phase")
        for name, array in arrays.items():
            dimensions, width, dtype = _TOLD[name]
            if array.dtype != dtype or array.ndim != dimensions or array.shape[-1] != width:
                raise UpdateRejected(f"the {name} are not what secure_sum asks for")
            if dimensions == 2 and len(array) >= self.clients:
                raise UpdateRejected(f"the {name} are of more neighbours than there are")

    def _share(self, weight: Any) -> float:
        """The share of the largest weight that an update counts, to a whole part of `FIXED`."""
        if not weight >= 0:
            raise UpdateRejected(f"the update's weight is {weight}", hint="A weight is zero or positive.")
        if not self.weight:
            return 1.0
        if not weight <= self.weight:
            raise UpdateRejected(f"the update's weight is above {self.weight:g}, the most that secure_sum takes")
        return round(float(weight) / self.weight * FIXED) / FIXED

    def _metric(self, metrics: Mapping[str, float], name: str) -> float:
        value = float(metrics.get(name, math.nan))
        if not math.isfinite(value):
            raise UpdateRejected(f"the metric {name!r}, which secure_sum adds up, is missing or not finite")
        return min(max(value, -LARGEST_METRIC), LARGEST_METRIC)

    def _check_stage(self, secrets: Any, stage: str) -> None:
        if secrets["stage"] != KEYS and secrets["threshold"] != self.threshold:
            raise UpdateRejected(f"the threshold of secure_sum was {secrets['threshold']}, and is now {self.threshold}")
        if secrets["stage"] != stage:
            raise UpdateRejected(f"this client has answered for the session {self.session!r} already, and does so once")

    def _cipher(self, secret: bytes, sender: int, receiver: int) -> Any:
        """What encrypts shares from one point to another: a key is for one message."""
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        way = f"{sender} to {receiver}".encode()
        return ChaCha20Poly1305(derived(secret, "shares", self.session.encode(), way))

    def _opened(self, cipher: Any, sealed: bytes, peer: int) -> Array:
        """The shares of a neighbour's two secrets."""
        from cryptography.exceptions import InvalidTag

        try:
            return np.frombuffer(cipher.decrypt(_NONCE, sealed, None), "<u4").reshape(2, -1)
        except (InvalidTag, ValueError):
            raise UpdateRejected(f"the shares of the neighbour at point {peer} were changed on their way") from None


_NONCE = bytes(12)
_TOLD = {"keys": (1, 64, np.uint8), "shares": (2, 88, np.uint8), "masks": (2, 9, np.uint32), "seeds": (2, 9, np.uint32)}
"""How many dimensions, columns and which numbers clients tell in phases of their own."""


class KeyPair:
    """A key pair of X25519, by its private key."""

    __slots__ = ("_private", "public")

    def __init__(self, private: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        self._private = X25519PrivateKey.from_private_bytes(private)
        self.public = self._private.public_key().public_bytes_raw()

    def agreed(self, public: bytes) -> bytes:
        """What both agree on. Raises `UpdateRejected` for a public key with which nothing secret is agreed."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            raise UpdateRejected("a neighbour's public key is one with which nothing secret can be agreed") from error


def own_mask(seed: bytes, session: str) -> bytes:
    """The key of the mask that a client has for itself."""
    return derived(seed, "own mask", session.encode())


def pairwise(mask: KeyPair, public: bytes, session: str) -> bytes:
    """The key of the mask that a client has in common with another one, of this public key."""
    return derived(mask.agreed(public), "pairwise mask", session.encode())


def _size(arrays: Arrays) -> int:
    return sum(math.prod(spec.shape) for spec in arrays.schema.values())


def thresholds(draws: Draws, size: int) -> npt.NDArray[np.float64]:
    """What is added before numbers are rounded down, so that the mean is right: the middles of 2^16 parts of [0, 1)."""
    quarters = draws.words(-(-size // 4)).astype("<u8", copy=False).view("<u2")[:size]
    return (quarters + 0.5) * 2.0**-16


def _bytes(own: Entropy) -> bytes:
    return own.words(KEY_BYTES // 8).astype("<u8", copy=False).tobytes()


def _array(data: bytes | Sequence[int]) -> Array:
    return np.frombuffer(bytes(data), np.uint8).copy()
