"""Waits between tries grow, up to a limit."""

from umbel.work.retries import AGAIN_AFTER, AGAIN_AT_MOST, wait


def test_waits_double_until_they_are_as_long_as_they_get():
    waits = [wait(tries) for tries in range(1, 40)]
    assert waits[:3] == [AGAIN_AFTER, 2 * AGAIN_AFTER, 4 * AGAIN_AFTER]
    growing = [now for now in waits if now < AGAIN_AT_MOST]
    assert waits == growing + [AGAIN_AT_MOST] * (len(waits) - len(growing))
    assert growing == [AGAIN_AFTER * 2**n for n in range(len(growing))]
