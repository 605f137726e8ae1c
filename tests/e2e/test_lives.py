"""The lives of users: switched off and on, deleted and made again, renamed over each other."""

from __future__ import annotations

import aiohttp

from tests.e2e.running import (
    Product,
    Running,
    Scim,
    a_talkdesk_user,
    a_telemessage_user,
    an_address,
    eventually,
    replacing,
)

APPLY_MAX_S = 45.0


async def test_a_user_is_switched_off_and_on_again(to_talkdesk: Scim, talkdesk: Product) -> None:
    """Both of Entra's spellings of a boolean arrive at the product, each in its own request."""
    created = await to_talkdesk.create(a_talkdesk_user())
    since = await talkdesk.now()

    off = await to_talkdesk.patch(created.id, replacing(active="False"))
    account = await talkdesk.user(created.document["userName"])
    assert account is not None
    assert (off.status, off.document["active"], account["active"]) == (200, False, False), off.text

    on = await to_talkdesk.patch(created.id, replacing(active=True))
    account = await talkdesk.user(created.document["userName"])
    assert account is not None
    assert (on.status, on.document["active"], account["active"]) == (200, True, True), on.text
    assert [(e["op"], e["changed"]) for e in await talkdesk.effects(since)] == [("update", ["active"])] * 2


async def test_an_identical_write_makes_no_call(to_talkdesk: Scim, talkdesk: Product) -> None:
    """Rule T1: what changes nothing is no new generation, and the product is left alone."""
    created = await to_talkdesk.create(a_talkdesk_user())
    since = await talkdesk.now()

    same = await to_talkdesk.patch(created.id, replacing(active="True", name__givenName="Given"))

    assert same.status == 200, same.text
    assert same.headers["ETag"] == created.headers["ETag"]
    assert await talkdesk.calls(since) == []


async def test_a_younger_user_of_the_same_name_waits_for_the_deletion_of_the_older(
    system: Running, session: aiohttp.ClientSession, to_talkdesk: Scim, talkdesk: Product
) -> None:
    """Promise P2 and rule R2: the older one's deletion is finished before the younger one is created."""
    user = a_talkdesk_user(externalId=an_address("older"))
    older = await to_talkdesk.create(user)
    assert older.status == 201, older.text
    await talkdesk.fails("slow", match={"method": "DELETE"}, delay_s=2.0, times=1)
    since = await talkdesk.now()

    removed = await to_talkdesk.delete(older.id)
    gone = await to_talkdesk.get(older.id)
    younger = await to_talkdesk.create(user | {"externalId": an_address("younger")})

    assert (removed.status, gone.status, younger.status) == (204, 404, 201), younger.text
    assert younger.id != older.id
    assert [found["id"] for found in await to_talkdesk.find(user["userName"])] == [younger.id]
    await system.settled(session, "talkdesk", APPLY_MAX_S)

    effects = await talkdesk.effects(since, natural_key=user["userName"])
    assert [effect["op"] for effect in effects] == ["delete", "create"]
    assert effects[0]["account_id"] != effects[1]["account_id"]
    account = await talkdesk.user(user["userName"])
    assert account is not None
    assert account["id"] == effects[1]["account_id"]
    again = await to_talkdesk.delete(older.id)
    assert again.is_scim_error(404), again.text


async def test_a_number_that_was_deleted_and_comes_back_gets_its_suspended_account_again(
    system: Running, session: aiohttp.ClientSession, to_telemessage: Scim, telemessage: Product
) -> None:
    """Vendor chapter 3: a deletion suspends, because a deleted number is lost for ever; the next user of it is linked to it."""
    user = a_telemessage_user()
    older = await to_telemessage.create(user)
    since = await telemessage.now()

    assert (await to_telemessage.delete(older.id)).status == 204
    younger = await to_telemessage.create(user | {"name": {"givenName": "Second", "familyName": "Owner"}})
    assert younger.status == 201, younger.text
    assert younger.id != older.id
    await system.settled(session, "telemessage", APPLY_MAX_S)

    account = await telemessage.user(user["userName"])
    assert account is not None
    assert (account["status"], account["firstName"]) == ("active", "Second")
    effects = await telemessage.effects(since, natural_key=user["userName"])
    assert {effect["account_id"] for effect in effects} == {account["id"]}
    assert "create" not in [effect["op"] for effect in effects]
    assert effects[0]["values"] == {"status": "suspended"}


async def test_two_users_swap_their_names(
    system: Running, session: aiohttp.ClientSession, to_talkdesk: Scim, talkdesk: Product
) -> None:
    """Rule T10: renames that block each other in a ring are untied through an intermediate name; accounts stay who they are."""
    first, second = a_talkdesk_user(), a_talkdesk_user()
    one, two = await to_talkdesk.create(first), await to_talkdesk.create(second)
    accounts = {name: await talkdesk.user(name) for name in (first["userName"], second["userName"])}
    since = await talkdesk.now()
    await system.provgate("target", "pause", "talkdesk", "--reason", "so that the wishes meet")
    try:
        refused = await to_talkdesk.patch(one.id, replacing(userName=second["userName"]))
        assert refused.is_scim_error(409, "uniqueness"), refused.text
        for resource, name in (
            (one.id, an_address("between")),
            (two.id, first["userName"]),
            (one.id, second["userName"]),
        ):
            said = await to_talkdesk.patch(resource, replacing(userName=name))
            assert said.status == 200, said.text
    finally:
        await system.provgate("target", "resume", "talkdesk")
    await system.settled(session, "talkdesk", APPLY_MAX_S)

    for old, new in ((first["userName"], second["userName"]), (second["userName"], first["userName"])):
        account = await talkdesk.user(new)
        assert account is not None
        before = accounts[old]
        assert before is not None
        assert account["id"] == before["id"]
    effects = await talkdesk.effects(since)
    assert {effect["op"] for effect in effects} == {"update"}
    assert (await to_talkdesk.find(first["userName"]))[0]["id"] == two.id
    assert (await to_talkdesk.find(second["userName"]))[0]["id"] == one.id


async def test_a_change_of_number_keeps_the_account(to_telemessage: Scim, telemessage: Product) -> None:
    """Vendor requirements M9 and M23: key and externalId change together with the number, and the archive stays."""
    user, number = a_telemessage_user(), a_telemessage_user()["userName"]
    created = await to_telemessage.create(user)
    before = await telemessage.user(user["userName"])
    assert before is not None
    since = await telemessage.now()

    changed = await to_telemessage.patch(created.id, replacing(userName=number, externalId=number))

    assert changed.status == 200, changed.text
    after = await telemessage.user(number)
    assert after is not None
    assert after["id"] == before["id"]
    assert [e["op"] for e in await telemessage.effects(since) if e["changed"]] == ["login"]
    assert await to_telemessage.find(user["userName"]) == []


async def test_an_account_that_existed_before_is_linked_and_not_created_again(
    system: Running, session: aiohttp.ClientSession, to_talkdesk: Scim, talkdesk: Product
) -> None:
    """Rule R4: what was merely found is linked first, then written; there is one account afterwards."""
    user = a_talkdesk_user()
    await talkdesk.control("POST", "seed", {"users": [{"userName": user["userName"], "givenName": "Before"}]})
    since = await talkdesk.now()

    created = await to_talkdesk.create(user)

    assert created.status == 201, created.text

    async def written() -> bool:
        account = await talkdesk.user(user["userName"])
        return account is not None and account["givenName"] == "Given"

    await eventually(written, APPLY_MAX_S, "the linked account holds the wish")
    assert [effect["op"] for effect in await talkdesk.effects(since)] == ["update"]
    assert [u["userName"] for u in await talkdesk.users()].count(user["userName"]) == 1


async def test_an_account_that_vanished_at_the_product_is_made_again(
    system: Running, to_talkdesk: Scim, talkdesk: Product
) -> None:
    """Failure class gone: the next change finds nothing under the linked id and creates the account with the whole wish."""
    created = await to_talkdesk.create(a_talkdesk_user())
    account = await talkdesk.user(created.document["userName"])
    assert account is not None
    token = (system.data / "secrets" / "talkdesk").read_text()
    async with talkdesk.session.delete(
        f"{talkdesk.url}/scim/v2/Users/{account['id']}", headers={"Authorization": f"Bearer {token}"}
    ) as removed:
        assert removed.status == 204

    changed = await to_talkdesk.patch(created.id, replacing(name__givenName="Again"))

    assert changed.status == 200, changed.text
    anew = await talkdesk.user(created.document["userName"])
    assert anew is not None
    assert (anew["givenName"], anew["id"] != account["id"]) == ("Again", True)
