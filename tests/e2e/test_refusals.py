"""What the product refuses reaches the caller in the same request, and leaves nothing behind."""

from __future__ import annotations

import aiohttp

from tests.e2e.running import TALKDESK, Product, Running, Scim, a_mobile, a_talkdesk_user, a_telemessage_user

ANSWER_MAX_S = 4.0
"""The answer budget: a refusal that came later would have been answered 2xx."""


async def test_an_unknown_role_is_refused_by_name_in_the_same_request(
    system: Running, session: aiohttp.ClientSession, to_talkdesk: Scim, talkdesk: Product
) -> None:
    """Vendor requirement T13: a role must exist; the caller reads its name and the nearest one, nothing is written."""
    user = a_talkdesk_user(role="Superviser")
    since = await talkdesk.now()

    refused = await to_talkdesk.create(user)

    assert refused.is_scim_error(400, "invalidValue"), refused.text
    assert f"{TALKDESK}:rolesString" in refused.document["detail"]
    assert "'Superviser'" in refused.document["detail"]
    assert "Supervisor" in refused.document["detail"]
    assert refused.took_s < ANSWER_MAX_S
    assert await talkdesk.effects(since) == []
    assert await to_talkdesk.find(user["userName"]) == []
    target = await system.target(session, "talkdesk")
    assert target["counts"]["dead"] == 0

    user[TALKDESK]["rolesString"] = "Supervisor"
    created = await to_talkdesk.create(user)

    assert created.status == 201, created.text
    account = await talkdesk.user(user["userName"])
    assert account is not None
    assert account["rolesString"] == "Supervisor"
    assert [effect["op"] for effect in await talkdesk.effects(since)] == ["create"]
    assert [found["id"] for found in await to_talkdesk.find(user["userName"])] == [created.id]


async def test_an_impossible_number_is_refused_in_the_same_request(to_telemessage: Scim, telemessage: Product) -> None:
    """Vendor requirements M10 to M15: digits that no country has are refused with the rule, and never leave this machine."""
    user = a_telemessage_user("4477009")
    since = await telemessage.now()

    refused = await to_telemessage.create(user)

    assert refused.is_scim_error(400, "invalidValue"), refused.text
    assert "userName" in refused.document["detail"]
    assert "international form" in refused.document["detail"]
    assert "4477009" not in refused.document["detail"], "a number is masked also in answers"
    assert refused.took_s < ANSWER_MAX_S
    assert await telemessage.calls(since) == []
    assert await to_telemessage.find(user["userName"]) == []

    number = a_mobile()
    created = await to_telemessage.create(user | {"userName": number, "externalId": number})

    assert created.status == 201, created.text
    account = await telemessage.user(number)
    assert account is not None
    assert account["status"] == "active"
    assert [effect["op"] for effect in await telemessage.effects(since)] == ["create"]


async def test_a_refused_change_leaves_the_confirmed_values_readable(to_talkdesk: Scim, talkdesk: Product) -> None:
    """Rule T13: a PATCH answered 400 is not readable as if it held; asking again with a right value works."""
    created = await to_talkdesk.create(a_talkdesk_user())
    since = await talkdesk.now()
    message = {
        "schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"],
        "Operations": [{"op": "Replace", "path": f"{TALKDESK}:rolesString", "value": "Wizard"}],
    }

    refused = await to_talkdesk.patch(created.id, message)

    assert refused.is_scim_error(400, "invalidValue"), refused.text
    assert "'Wizard'" in refused.document["detail"]
    assert (await to_talkdesk.get(created.id)).document[TALKDESK]["rolesString"] == "Agent"
    assert await talkdesk.effects(since) == []

    message["Operations"][0]["value"] = "Team Lead"  # type: ignore[index]
    accepted = await to_talkdesk.patch(created.id, message)

    assert accepted.status == 200, accepted.text
    account = await talkdesk.user(created.document["userName"])
    assert account is not None
    assert account["rolesString"] == "Team Lead"


async def test_a_second_user_of_the_same_name_is_a_conflict(to_talkdesk: Scim, talkdesk: Product) -> None:
    """RFC 7644 section 3.3: a live userName in another letter case is 409 uniqueness, and the product is not called."""
    created = await to_talkdesk.create(a_talkdesk_user())
    since = await talkdesk.now()

    twin = await to_talkdesk.create(a_talkdesk_user(created.document["userName"].upper()))

    assert twin.is_scim_error(409, "uniqueness"), twin.text
    assert await talkdesk.calls(since) == []
