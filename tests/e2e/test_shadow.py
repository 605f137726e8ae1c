"""Shadow mode and plans on a running system: real processes, a real nats-server, an emulated product that is never written to."""

from __future__ import annotations

from typing import Any

import aiohttp

from tests.e2e.running import Product, Running, Scim, a_talkdesk_user, an_address, eventually, replacing

WAIT_S = 30.0
TABLE = "[targets.talkdesk]\n"


def edit(system: Running, *, shadow: bool) -> None:
    """Switch shadow mode of the target talkdesk in the file, as an operator does; the gateway notices within seconds."""
    path = system.data / "provgate.toml"
    text = path.read_text(encoding="utf-8").replace(f"{TABLE}shadow = true\n", TABLE)
    assert TABLE in text
    path.write_text(text.replace(TABLE, f"{TABLE}shadow = true\n") if shadow else text, encoding="utf-8")


async def test_a_target_in_shadow_mode_writes_nothing_until_the_mode_ends(
    system: Running, session: aiohttp.ClientSession, to_talkdesk: Scim, talkdesk: Product
) -> None:
    """Entra gets 201, 200 and 204 at once; the product's journal stays empty; then what is wished is delivered for real."""
    before = await system.settled(session, "talkdesk", WAIT_S)
    try:
        edit(system, shadow=True)
        ada, eve, since = await rehearsed(system, session, to_talkdesk, talkdesk)
    finally:
        edit(system, shadow=False)

    async def there() -> Any:
        return await talkdesk.user(ada)

    held = await eventually(there, WAIT_S, "the user is delivered for real")
    assert held["givenName"] == "Adele"
    await system.settled(session, "talkdesk", WAIT_S)
    assert len(await talkdesk.effects(since)) == 1
    target = await system.target(session, "talkdesk")
    grown = {state: target["counts"][state] - before[state] for state in ("applied", "dead")}
    assert (target["shadow"], grown) == (False, {"applied": 1, "dead": 1})
    assert (await to_talkdesk.delete(eve)).status == 204, "no dead letter is left to the other tests"


async def rehearsed(
    system: Running, session: aiohttp.ClientSession, to_talkdesk: Scim, product: Product
) -> tuple[str, str, int]:
    """Who is wished in shadow mode: a user's name, a refused user's id, and the place in the product's journal before them."""

    async def is_shadow() -> bool:
        return bool((await system.target(session, "talkdesk"))["shadow"])

    async def recorded(count: int) -> Any:
        view = await system.api(session, "/targets/talkdesk/shadow")
        return view if view["total"] == count and view["items"] else None

    await eventually(is_shadow, WAIT_S, "the gateway reads its file again")
    since = await product.now()
    ada, eve = an_address("ada"), an_address("eve")
    made = await to_talkdesk.create(a_talkdesk_user(ada))
    refused = await to_talkdesk.create(a_talkdesk_user(eve, name={"givenName": "Eve"}))
    gone = await to_talkdesk.create(a_talkdesk_user())
    assert [said.status for said in (made, refused, gone)] == [201, 201, 201]
    assert max(said.took_s for said in (made, refused, gone)) < 2.0, "nobody waits for what will not come"
    assert (await to_talkdesk.patch(made.id, replacing(name__givenName="Adele"))).status == 200
    await eventually(lambda: recorded(3), WAIT_S, "three rehearsed changes")
    assert (await to_talkdesk.delete(gone.id)).status == 204
    view = await eventually(lambda: recorded(2), WAIT_S, "the deleted one was never there")
    assert view["refused"] == 1
    assert [call["method"] for item in view["items"] for call in item["calls"]] == ["POST"]
    assert ada not in str(view)
    assert await product.effects(since) == []
    plan = await system.provgate("plan", "talkdesk", ada)
    assert (plan["would"], plan["shadow"], len(plan["calls"])) == ("create", True, 1)
    assert await product.effects(since) == []
    return ada, refused.id, since
