"""A large model over a line that is slow and breaks: transfers go on where they stopped, however long it takes."""

from __future__ import annotations

import asyncio

import pytest
from tests.deployment.conftest import APP, app_of

import umbel
from umbel.testing.machines import free_ports
from umbel.testing.proxy import Proxy

SIZE = 30_000_000
CUT = 9 << 20
DRIP = 64 << 10
ON_THE_WAY = 8 << 20
"""So much may be lost with a connection: what was sent and not yet taken in. It is less than a cut comes after."""


NEAR = "127.0.0.2"
"""Where nodes find the server: only what a proxy lets through gets there."""


@pytest.fixture(scope="module")
def side_port(machines):
    (port,) = free_ports(1)
    machines.start_server("--blobs-port", str(port))
    return port


@pytest.fixture(scope="module")
def expected():
    return umbel.run(app_of("big"), on=umbel.Simulation(clients=1), folder=None).model_sha256


@pytest.mark.slow
def test_a_model_crosses_a_line_that_is_slow_and_breaks_in_parts(machines, side_port, expected):
    join = machines.invitation()

    async def scenario():
        async with Proxy(machines.address, f"{NEAR}:0") as proxy:
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
    assert ended["model_sha256"] == expected


@pytest.mark.slow
def test_a_model_goes_by_side_streams_and_goes_on_where_one_breaks(machines, side_port, expected):
    join, ports = machines.invitation(), (f"127.0.0.1:{side_port}", f"{NEAR}:{side_port}")

    async def scenario():
        async with Proxy(machines.address, f"{NEAR}:0") as line, Proxy(*ports) as beside:
            node = machines.start_node("1", "--source", "index=1", join=join, address=line.address)
            await asyncio.to_thread(node.wait_for, "connected to")
            beside.cut_after(CUT)  # on its way to the node
            run = await asyncio.to_thread(machines.submit, f"{APP}:big", 0, "--only=1")
            await beside.reached(CUT)
            await line.reached(SIZE - CUT - ON_THE_WAY)
            with machines.office() as office:
                ended = await asyncio.to_thread(machines.finished, run, office)
            await asyncio.to_thread(node.stop)
            return ended, line, beside

    ended, line, beside = asyncio.run(scenario())
    assert CUT + SIZE < beside.passed < CUT + SIZE + ON_THE_WAY, "the update went by a side stream of its own"
    assert SIZE - CUT - ON_THE_WAY < line.passed < SIZE
    assert ended["model_sha256"] == expected
