"""A product that is down, or refuses our credential: nothing is lost, nobody is told a lie, everything is applied afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.e2e.running import (
    Product,
    Running,
    Scim,
    a_talkdesk_user,
    a_telemessage_user,
    eventually,
    replacing,
)

RECOVERY_MAX_S = 60.0
"""Promise P4: everything is applied within this time after the last fault healed."""


@pytest.fixture(autouse=True)
async def mended(system: Running, session: aiohttp.ClientSession) -> AsyncIterator[None]:
    """Both circuits are closed again before the next test."""
    yield
    for name in ("talkdesk", "telemessage"):
        await recovered(system, session, name)


async def recovered(system: Running, session: aiohttp.ClientSession, name: str) -> dict[str, int]:
    """Wait until the circuit is closed and nothing waits."""

    async def closed() -> bool:
        return (await system.target(session, name))["circuit"]["state"] == "closed"

    counts = await system.settled(session, name, RECOVERY_MAX_S)
    await eventually(closed, RECOVERY_MAX_S, f"the circuit of {name} closes")
    return counts


async def test_while_the_product_is_down_writes_are_kept_coalesced_and_applied_in_order(
    system: Running, session: aiohttp.ClientSession, to_talkdesk: Scim, talkdesk: Product
) -> None:
    """Promises P1 and P2: 2xx while it is down, status says what waits and why, ten PATCHes become one call with the newest."""
    held = await to_talkdesk.create(a_talkdesk_user())
    others = [await to_talkdesk.create(a_talkdesk_user()) for _ in range(3)]
    assert {said.status for said in (held, *others)} == {201}
    await talkdesk.fails("status", status=503)
    since = await talkdesk.now()

    waiting = asyncio.gather(*(to_talkdesk.patch(other.id, replacing(name__givenName="Late")) for other in others))
    fresh_user = a_talkdesk_user()
    fresh = await to_talkdesk.create(fresh_user)
    answers = [
        await to_talkdesk.patch(held.id, replacing(name__givenName=f"Given {number}", name__familyName=f"V{number}"))
        for number in range(10)
    ]
    answers += await waiting

    assert fresh.status == 201, fresh.text
    assert {said.status for said in answers} == {200}, [said.text for said in answers]
    assert (await to_talkdesk.get(held.id)).document["name"] == {"givenName": "Given 9", "familyName": "V9"}
    assert await talkdesk.effects(since) == []

    async def circuit_is_open() -> bool:
        return (await system.target(session, "talkdesk"))["circuit"]["state"] == "down"

    await eventually(circuit_is_open, 30.0, "five failures in a row of several people open the circuit")
    status = await system.provgate("status")
    assert status["fine"] is False
    assert "talkdesk" in status["sentence"] or "Contact centre" in status["sentence"], status["sentence"]
    seen = next(target for target in status["targets"] if target["name"] == "talkdesk")
    assert seen["light"] == "red"
    assert "503" in seen["circuit"]["reason"]
    assert seen["counts"]["waiting"] == 5
    assert seen["counts"]["dead"] == 0
    groups = [group for group in status["waiting"] if group["target"] == "talkdesk"]
    assert sum(group["count"] for group in groups) == 5
    assert all(group["message"] for group in groups)
    assert any("503" in group["message"] for group in groups), groups

    await talkdesk.works()
    await recovered(system, session, "talkdesk")

    effects = await talkdesk.effects(since)
    mine = [effect for effect in effects if effect["natural_key"] == held.document["userName"]]
    assert [effect["op"] for effect in mine] == ["update"], mine
    assert (mine[0]["values"]["givenName"], mine[0]["values"]["familyName"]) == ("Given 9", "V9")
    created = [effect for effect in effects if effect["natural_key"] == fresh_user["userName"]]
    assert [effect["op"] for effect in created] == ["create"]
    assert len(effects) == 5
    status = await system.provgate("status", "talkdesk")
    assert status["targets"][0]["light"] == "green", status
    assert status["waiting"] == []


async def test_a_product_that_cuts_every_connection_loses_nothing(
    system: Running, session: aiohttp.ClientSession, to_telemessage: Scim, telemessage: Product
) -> None:
    """Promise P1: connections that are reset are an outage like any other; what was asked meanwhile is applied once."""
    held = await to_telemessage.create(a_telemessage_user())
    assert held.status == 201, held.text
    await telemessage.fails("reset")
    since = await telemessage.now()
    fresh_user = a_telemessage_user()

    fresh, changed = await asyncio.gather(
        to_telemessage.create(fresh_user), to_telemessage.patch(held.id, replacing(name__givenName="After"))
    )
    removed = await to_telemessage.delete(held.id)

    assert (fresh.status, changed.status, removed.status) == (201, 200, 204), (fresh.text, changed.text)
    assert await telemessage.effects(since) == []
    await telemessage.works()
    await recovered(system, session, "telemessage")

    effects = await telemessage.effects(since)
    assert [e["op"] for e in effects if e["natural_key"] == fresh_user["userName"]] == ["create"]
    account = await telemessage.user(held.document["userName"])
    assert account is not None
    assert account["status"] == "suspended", "a deletion suspends at TeleMessage"


async def test_an_answer_lost_after_the_write_makes_no_second_account(
    system: Running, session: aiohttp.ClientSession, to_talkdesk: Scim, talkdesk: Product
) -> None:
    """Promise P3: the product created the account and the answer was lost; the next delivery finds it and links it."""
    user = a_talkdesk_user()
    await talkdesk.fails("drop_response", match={"method": "POST", "path": "/scim/v2/Users"}, when="after", times=1)
    since = await talkdesk.now()

    created = await to_talkdesk.create(user)
    assert created.status == 201, created.text
    await recovered(system, session, "talkdesk")

    effects = await talkdesk.effects(since, op="create")
    assert [effect["natural_key"] for effect in effects] == [user["userName"]]
    changed = await to_talkdesk.patch(created.id, replacing(name__givenName="Linked"))
    assert changed.status == 200, changed.text
    account = await talkdesk.user(user["userName"])
    assert account is not None
    assert account["givenName"] == "Linked"


async def test_a_revoked_credential_dead_letters_nobody_and_is_no_error_for_the_caller(
    system: Running, session: aiohttp.ClientSession, to_telemessage: Scim, telemessage: Product
) -> None:
    """Promises P5 and P6: circuit auth, everything waits, 2xx; applied after the token is accepted."""
    held = await to_telemessage.create(a_telemessage_user())
    await telemessage.revoke_token()
    since = await telemessage.now()
    users = [a_telemessage_user() for _ in range(6)]

    answers = await asyncio.gather(*(to_telemessage.create(user) for user in users))
    changed = await to_telemessage.patch(held.id, replacing(name__givenName="Later"))

    assert {said.status for said in answers} == {201}, [said.text for said in answers]
    assert changed.status == 200, changed.text

    async def circuit_is_open() -> bool:
        return (await system.target(session, "telemessage"))["circuit"]["state"] == "auth"

    await eventually(circuit_is_open, 30.0, "one refused credential opens the circuit")
    status = await system.provgate("status", "telemessage")
    assert status["fine"] is False
    assert status["targets"][0]["counts"]["waiting"] == 7
    assert status["targets"][0]["counts"]["dead"] == 0
    assert await system.provgate("dead", "list", "--target", "telemessage") | {"at": 0} == {
        "at": 0,
        "total": 0,
        "causes": [],
        "items": [],
    }
    refused = await system.provgate("target", "probe", "telemessage", expect=1)
    assert refused["ok"] is False
    calls = len(await telemessage.calls(since))

    found = await asyncio.gather(*(to_telemessage.find(user["userName"]) for user in users))
    assert [len(hits) for hits in found] == [1] * len(users), "what was answered 201 is readable"
    assert len(await telemessage.calls(since)) == calls, "no call through an open circuit except probes (invariant I7)"

    await telemessage.revoke_token(False)
    accepted = await system.provgate("target", "probe", "telemessage")
    assert accepted["ok"] is True
    counts = await recovered(system, session, "telemessage")

    assert counts["dead"] == 0
    effects = await telemessage.effects(since)
    assert sorted(e["natural_key"] for e in effects if e["op"] == "create") == sorted(u["userName"] for u in users)
    account = await telemessage.user(held.document["userName"])
    assert account is not None
    assert account["firstName"] == "Later"


async def test_a_paused_target_answers_and_applies_after_it_is_resumed(
    system: Running, session: aiohttp.ClientSession, to_talkdesk: Scim, talkdesk: Product
) -> None:
    """Promise P6: a pause never becomes an error for Entra, and nothing is sent while it lasts."""
    since = await talkdesk.now()
    await system.provgate("target", "pause", "talkdesk", "--reason", "a test")
    user = a_talkdesk_user()
    try:
        created = await to_talkdesk.create(user)
        changed = await to_talkdesk.patch(created.id, replacing(active=False))
        assert (created.status, changed.status) == (201, 200), (created.text, changed.text)
        status = await system.provgate("status", "talkdesk")
        assert [group["count"] for group in status["waiting"]] == [1]
        assert "pause" in status["waiting"][0]["message"].lower()
        assert await talkdesk.calls(since) == []
    finally:
        await system.provgate("target", "resume", "talkdesk")
    await recovered(system, session, "talkdesk")

    effects = await talkdesk.effects(since)
    assert [effect["op"] for effect in effects] == ["create"]
    assert effects[0]["values"]["active"] is False


async def test_a_product_slower_than_the_budget_is_not_waited_for_again_and_again(
    system: Running, session: aiohttp.ClientSession, to_telemessage: Scim, telemessage: Product
) -> None:
    """Answer rules: waiting only where the outcome may come in time; a cycle against a slow product goes on at full speed."""
    await telemessage.fails("slow", delay_s=6.0)

    late = await asyncio.gather(*(to_telemessage.create(a_telemessage_user()) for _ in range(15)))
    after = [await to_telemessage.create(a_telemessage_user()) for _ in range(3)]

    assert {said.status for said in (*late, *after)} == {201}
    assert min(said.took_s for said in after) < 2.0, (
        "now and then one is waited for again, to see whether it got better"
    )
    await telemessage.works()
    counts = await recovered(system, session, "telemessage")
    assert counts["dead"] == 0
