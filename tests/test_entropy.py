"""Words that nobody can foretell, and, for tests, those that somebody can."""

import numpy as np

from umbel.core.randomness import Key
from umbel.entropy import SYSTEM, Entropy


def test_the_operating_systems_words_are_others_each_time():
    drawn = np.concatenate([SYSTEM.words(1000), SYSTEM.words(1000)])
    assert drawn.dtype == np.uint64
    assert len(set(drawn.tolist())) == 2000
    ones = np.unpackbits(drawn.view(np.uint8)).mean()
    assert abs(ones - 0.5) < 0.02  # 14 standard errors


def test_a_pinned_source_goes_on_where_it_was():
    pinned, key = Entropy(Key.from_seed(7).draws().words), Key.from_seed(7).draws()
    assert [*pinned.words(3).tolist(), *pinned.words(5).tolist()] == key.words(8).tolist()
