"""Single processes that die and come back: what callers see of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal

import aiohttp

from tests.e2e.running import Product, Running, Scim, a_talkdesk_user, eventually, replacing

BACK_MAX_S = 45.0


async def killed(system: Running, name: str) -> None:
    """kill -9, and wait until the ready file names another process."""
    before = system.look()["pids"][name]
    os.kill(before, signal.SIGKILL)

    async def replaced() -> bool:
        return system.look()["pids"].get(name, before) != before

    await eventually(replaced, BACK_MAX_S, f"{name} is started again")


async def test_a_gateway_that_was_killed_knows_everything_and_waits_for_the_product_again(
    system: Running, session: aiohttp.ClientSession, to_talkdesk: Scim, talkdesk: Product
) -> None:
    """P1 and P6: it has what it acknowledged, and refuses in the same request as soon as it is on the bus."""
    created = await to_talkdesk.create(a_talkdesk_user())
    await killed(system, "gateway")

    async def bus_is_back() -> bool:
        try:
            return bool((await system.api(session, "/status"))["bus_connected"])
        except aiohttp.ClientError:
            return False

    await eventually(bus_is_back, BACK_MAX_S, "the gateway is connected")

    assert (await to_talkdesk.get(created.id)).status == 200
    refused = await to_talkdesk.create(a_talkdesk_user(role="Superviser"))
    assert refused.is_scim_error(400), (refused.status, refused.text)


async def test_without_nats_everything_is_answered_and_applied_when_it_is_back_empty(
    system: Running, session: aiohttp.ClientSession, to_talkdesk: Scim, talkdesk: Product
) -> None:
    """P1 and R1: nats-server dies and its whole data directory is deleted; reads and writes go on, and nothing is lost."""
    held = await to_talkdesk.create(a_talkdesk_user())
    since = await talkdesk.now()
    pid = system.look()["pids"]["nats-server"]
    os.kill(pid, signal.SIGSTOP)
    fresh = a_talkdesk_user()

    created = await to_talkdesk.create(fresh)
    changed = await to_talkdesk.patch(held.id, replacing(name__givenName="Without"))

    assert (created.status, changed.status) == (201, 200), (created.text, changed.text)
    assert [found["id"] for found in await to_talkdesk.find(fresh["userName"])] == [created.id]
    await asyncio.to_thread(shutil.rmtree, system.data / "nats")
    os.kill(pid, signal.SIGKILL)

    await system.settled(session, "talkdesk", 90.0)

    effects = await talkdesk.effects(since)
    assert sorted(effect["op"] for effect in effects) == ["create", "update"], effects
    account = await talkdesk.user(held.document["userName"])
    assert account is not None
    assert account["givenName"] == "Without"
