"""Tasks beside: all are seen to their end, and none of their errors is lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from umbel.transport.tasks import Tasks


def test_over_waits_for_those_that_are_begun_meanwhile() -> None:
    async def main() -> None:
        tasks, done = Tasks(), []

        async def one(left: int) -> None:
            await asyncio.sleep(0)
            done.append(left)
            if left:
                tasks.begin(one(left - 1))

        tasks.begin(one(3))
        await tasks.over()
        assert done == [3, 2, 1, 0]

    asyncio.run(main())


def test_close_cancels_once_and_waits_for_what_each_has_to_put_away() -> None:
    async def main() -> None:
        tasks, told = Tasks(), []

        async def one(steps: int) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                for _ in range(steps):
                    await asyncio.sleep(0)
                told.append(steps)
                if steps == 5:
                    tasks.begin(one(2))
                raise

        for steps in (0, 5, 9):
            tasks.begin(one(steps))
        await asyncio.sleep(0)
        await tasks.close()
        assert told in ([0, 5, 9], [0, 5, 9, 2])  # the one that was begun meanwhile may not have come to its wait
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


@pytest.mark.parametrize("own", [True, False])
def test_an_error_is_told_at_once(own: bool) -> None:
    async def main() -> None:
        told: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        tasks = Tasks(told.append) if own else Tasks()

        async def fails() -> None:
            raise ValueError("no")

        tasks.begin(fails())
        await tasks.over()
        (found,) = told
        if own:
            assert str(found) == "no"
        else:
            assert str(found["exception"]) == "no"
            assert "fails has failed" in found["message"]

    asyncio.run(main())
