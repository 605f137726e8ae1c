"""Shadow mode and plans on a running system: real processes, a real nats-server, an emulated product that is never written to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.running import Running, a_talkdesk_user, an_address, eventually, replacing

WAIT_S = 30.0
TABLE = "[targets.talkdesk]\n"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Running]:
    """A system of this test's own, because it edits the configuration."""
    running = Running(tmp_path / "data", "--no-cycle")
    try:
        yield running.start()
    finally:
        code = running.stop()
    assert code == 0, running.said()


def edit(system: Running, *, shadow: bool) -> None:
    """Switch shadow mode of the target talkdesk in the file, as an operator does; the gateway notices within seconds."""
    path = system.data / "provgate.toml"
    text = path.read_text(encoding="utf-8").replace(f"{TABLE}shadow = true\n", TABLE)
    assert TABLE in text
    path.write_text(text.replace(TABLE, f"{TABLE}shadow = true\n") if shadow else text, encoding="utf-8")


async def test_a_target_in_shadow_mode_writes_nothing_until_the_mode_ends(
    own: Running, session: aiohttp.ClientSession
) -> None:
    """Entra gets 201, 200 and 204 at once; the product's journal stays empty; then what is wished is delivered for real."""
    to_talkdesk, product = own.scim(session, "talkdesk"), own.product(session, "talkdesk")
    edit(own, shadow=True)

    async def is_shadow() -> bool:
        return bool((await own.target(session, "talkdesk"))["shadow"])

    async def recorded(count: int) -> Any:
        view = await own.api(session, "/targets/talkdesk/shadow")
        return view if view["total"] == count and view["items"] else None

    await eventually(is_shadow, WAIT_S, "the gateway reads its file again")
    since = await product.now()
    ada, eve = an_address("ada"), an_address("eve")
    made = await to_talkdesk.create(a_talkdesk_user(ada))
    refused = await to_talkdesk.create(a_talkdesk_user(eve, role="Wizard"))
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
    plan = await own.provgate("plan", "talkdesk", ada)
    assert (plan["would"], plan["shadow"], len(plan["calls"])) == ("apply", True, 1)
    assert await product.effects(since) == []

    edit(own, shadow=False)

    async def there() -> Any:
        return await product.user(ada)

    held = await eventually(there, WAIT_S, "the user is delivered for real")
    assert held["givenName"] == "Adele"
    await own.settled(session, "talkdesk", WAIT_S)
    assert len(await product.effects(since)) == 1
    target = await own.target(session, "talkdesk")
    assert (target["shadow"], target["counts"]["applied"], target["counts"]["dead"]) == (False, 1, 1)
