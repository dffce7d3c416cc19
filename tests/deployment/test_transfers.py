"""A large model over a line that is slow and breaks: transfers go on where they stopped, however long it takes."""

from __future__ import annotations

import asyncio

from tests.deployment.conftest import APP, app_of

import umbel
from umbel.testing.proxy import Proxy

SIZE = 30_000_000
CUT = 9 << 20
DRIP = 64 << 10
ON_THE_WAY = 8 << 20
"""So much may be lost with a connection: what was sent and not yet taken in. It is less than a cut comes after."""


def test_a_model_crosses_a_line_that_is_slow_and_breaks_in_parts(machines):
    machines.start_server()
    join = machines.invitation()

    async def scenario():
        async with Proxy(machines.address) as proxy:
            node = machines.start_node("0", "--source", "index=0", join=join, address=proxy.address)
            await asyncio.to_thread(node.wait_for, "connected to")
            run = await asyncio.to_thread(machines.submit, f"{APP}:big", 0, "--only=0")
            for _ in range(5):
                due = proxy.passed + CUT
                proxy.cut_after(CUT)
                await proxy.reached(due)
            for _ in range(40):
                due = proxy.passed + DRIP
                proxy.allow(DRIP)
                await proxy.reached(due)
            proxy.allow(None)
            with machines.office() as office:
                ended = await asyncio.to_thread(machines.finished, run, office)
                (folder,) = [row for row in office.call("runs.list")["runs"] if row["run"] == run]
            await asyncio.to_thread(node.stop)
            return ended, folder, proxy

    ended, listed, proxy = asyncio.run(scenario())
    assert listed["status"] == "finished"
    assert proxy.cuts >= 5
    assert 2 * SIZE < proxy.passed < 2 * SIZE + 5 * ON_THE_WAY
    expected = umbel.run(app_of("big"), on=umbel.Simulation(clients=1), folder=None)
    assert ended["model_sha256"] == expected.model_sha256
