"""Secure sums that have noise already: every holder adds a share of it before the masks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..core.answer import Answer
from ..core.arrays import Array, Arrays
from ..core.randomness import Key
from ..core.settings import whole
from ..core.transform import register_transform
from ..core.update import finite
from ..entropy import Entropy
from ..errors import SettingError
from ..transforms.clip_by_norm import parameter_norm
from .distributed import DistributedNoise, rounded_norm
from .secure_sum import secure_sum, thresholds

RETRIED = math.exp(-0.5)
"""With this probability at most a vector is rounded to one that is too long, and rounded again (Kairouz, Liu & Steinke
2021).
"""


@register_transform
@dataclass(frozen=True)
class noised_sum(secure_sum):
    """Seal an update as `secure_sum` does, with a share of noise in it (Kairouz, Liu & Steinke 2021, arXiv 2102.06387;
    Agarwal, Kairouz & Liu 2021, arXiv 2110.04995): what `umbel.privacy.secure(..., noise=...)` has clients do.

    A holder scales its `size` parameters to an L2 norm of at most `clip`, rounds them to the grid, again and again
    until they are no longer than rounding mostly makes them, and adds noise of its own to each. The shares of `sharers`
    clients make a standard deviation of `noise` times that length; so many have to stay beside the `colluding` ones,
    who may tell the server theirs. All count alike, and metrics are not told. `event` says what the noise of those who
    stayed costs: hidden is what a client sends, and not that it does.
    """

    name: ClassVar[str] = "noised_sum"
    noise: float = field(kw_only=True)
    size: int = field(kw_only=True)
    sharers: int = field(kw_only=True)
    colluding: int = field(default=0, kw_only=True)
    mechanism: str = field(default="distributed_gaussian", kw_only=True)

    def __post_init__(self) -> None:
        whole(self, bits=2, size=1, sharers=1, colluding=0)
        if self.weight or self.metrics:
            raise SettingError("under noise all clients count alike, and their metrics are not told")
        assert self.shares  # raises for settings of noise that cannot be
        super().__post_init__()

    @property
    def private(self) -> bool:
        return True

    @cached_property
    def longest(self) -> float:
        """The L2 norm, in steps, that no client's values exceed."""
        return rounded_norm(float(self.levels), self.size, RETRIED)

    @cached_property
    def shares(self) -> DistributedNoise:
        """The noise, in steps."""
        return DistributedNoise(self.mechanism, self.noise, self.longest, self.size, self.sharers)

    @property
    def modulus_bits(self) -> int:
        return self.shares.modulus_bits(self.clients)

    def most(self, share: float, count: int) -> float:
        return count * math.floor(self.longest) + self.shares.largest(count, 1e-9)

    @property
    def fewest(self) -> int:
        """So many clients have to be in a sum."""
        return self.sharers + self.colluding

    def _fill(self, steps: Array, arrays: Arrays, share: float, key: Key, own: Entropy) -> int:
        if steps.size != self.size:
            raise SettingError(f"the update has {steps.size} parameters, and the noise is for {self.size}")
        for name, array in arrays.items():
            finite(array, name)
        flat = np.concatenate([np.ravel(array) for array in arrays.values()]).astype(np.float64)
        flat *= self.levels / max(parameter_norm(arrays), self.clip)
        draws = key.draws()
        while True:
            rounded = np.floor(flat + thresholds(draws, flat.size))
            if float(np.dot(rounded, rounded)) <= self.longest**2:
                break
        np.add(rounded.astype(np.int64), self.shares.share(own), out=steps, casting="unsafe")  # modulo what it holds
        return 0

    def event(self, answer: Answer, state: Any) -> Any:
        if not isinstance(answer.value, Arrays):
            return None  # a phase of its own
        return self._release(max(answer.count, self.colluding + 1) if answer.count else self.fewest)

    def promises(self, params: Any) -> Any:
        return self._release(self.fewest)

    def _release(self, survivors: int) -> dict[str, Any]:
        release = self.shares.release(survivors, self.colluding, self.clip / self.levels)
        return {**release, "denominator": None}  # how many there were is told
