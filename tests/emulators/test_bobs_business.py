"""The Bob's Business emulator keeps the assumed contract with its quirks."""

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from deploy.emulators.bobs_business import PERMISSIONS, BobsBusinessEmulator
from deploy.emulators.harness import running
from deploy.emulators.scim_service import CORE_GROUP, CORE_USER, ERROR, LIST, PATCH_OP
from tests.emulators.calling import ScimCaller, calling

TOKEN = "demo-token-bobs_business"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
ADDRESS = "rita@example.com"
OBJECT_ID = "11111111-2222-3333-4444-555555555555"
USERS = "/scim/v2/Users"
GROUPS = "/scim/v2/Groups"
GONE = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


def a_user(user_name: str = ADDRESS, **changes: Any) -> dict[str, Any]:
    """A SCIM user with every attribute of L10; a change to None leaves the attribute out."""
    body = {
        "schemas": [CORE_USER],
        "userName": user_name,
        "active": True,
        "name": {"givenName": "Given", "familyName": "Family"},
        "displayName": "Given Family",
        "emails": [{"type": "work", "value": user_name, "primary": True}],
        "externalId": OBJECT_ID,
        **changes,
    }
    return {name: value for name, value in body.items() if value is not None}


class Vendor(ScimCaller[BobsBusinessEmulator]):
    """A plain client of the emulator: (status, decoded body)."""

    users = USERS

    async def create(self, *args: Any, **changes: Any) -> dict[str, Any]:
        status, body = await self.call("POST", USERS, a_user(*args, **changes))
        assert status == 201, body
        return body

    async def group(self, name: str = "Sales", members: Any = (), **changes: Any) -> dict[str, Any]:
        listed = [{"value": member} for member in members]
        body = {"schemas": [CORE_GROUP], "displayName": name, "members": listed, **changes}
        status, made = await self.call("POST", GROUPS, body)
        assert status == 201, made
        return made

    async def invite(self, user_id: str, key: str = "k") -> tuple[int, Any]:
        return await self.call("POST", f"/api/v1/users/{user_id}/invitations", **{"Idempotency-Key": key})

    async def members(self, group_id: str) -> list[str]:
        _, group = await self.call("GET", f"{GROUPS}/{group_id}")
        return [member["value"] for member in group.get("members", [])]


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    async with calling(Vendor, BobsBusinessEmulator(rate_per_s=0), AUTH) as vendor:
        yield vendor


# Users ----------------------------------------------------------------------------------------------------------------


async def test_a_created_user_comes_back_with_id_and_meta(vendor):
    """4.3: POST answers 201 with what was sent; GET and both filters show the same resource."""
    user = await vendor.create()

    sent = a_user(emails=[{"type": "work", "value": ADDRESS}])
    assert {name: user[name] for name in sent} == sent
    async with vendor.session.get(user["meta"]["location"]) as answer:
        assert answer.content_type == "application/scim+json"
        assert await answer.json(content_type=None) == user
    assert await vendor.found(f'userName eq "{ADDRESS}"') == [user]
    assert await vendor.found(f'externalId eq "{OBJECT_ID}"') == [user]
    assert await vendor.found('userName eq "3ab5ba2b-7e0c-4a4c-9a5a-2f6d4c3f0a11"') == []
    assert vendor.codes == []


async def test_the_address_counts_letter_case_on_create_and_in_filters(vendor):
    """L1, 4.6: the careless connector makes the second account of one person; it works, and it is noted."""
    first = await vendor.create("Rita@Example.com")

    assert await vendor.found(f'userName eq "{ADDRESS}"') == []
    second = await vendor.create(ADDRESS)
    assert second["id"] != first["id"]
    assert vendor.codes == ["duplicate_account"]
    status, body = await vendor.call("POST", USERS, a_user(ADDRESS))
    assert (status, body["schemas"], body["scimType"]) == (409, [ERROR], "uniqueness")


async def test_a_login_does_not_count_letter_case(vendor):
    """4.6: the very person of `Rita@Example.com` gets in as rita@example.com."""
    user = await vendor.create("Rita@Example.com")
    status, login = await vendor.call("POST", "/__emu/sso_login", {"email": ADDRESS})
    assert (status, login) == (200, {"id": user["id"], "created": False, "admitted": True})


async def test_a_first_login_makes_the_account_before_anybody_provisioned_it(vendor):
    """4.2, 4.6: just-in-time accounts: found by address, without externalId, no effect of a client."""
    _, login = await vendor.call("POST", "/__emu/sso_login", {"email": ADDRESS, "givenName": "Rita"})
    assert login["created"] is True

    (user,) = await vendor.found(f'userName eq "{ADDRESS}"')
    assert user["id"] == login["id"]
    assert "externalId" not in user
    assert user["name"] == {"givenName": "Rita"}
    assert vendor.ops == []
    assert (await vendor.call("POST", USERS, a_user()))[0] == 409
    status, adopted = await vendor.patch(
        f"{USERS}/{user['id']}", {"op": "add", "path": "externalId", "value": OBJECT_ID}
    )
    assert (status, adopted["externalId"]) == (200, OBJECT_ID)


async def test_an_inactive_user_does_not_get_in(vendor):
    """4.3: active false keeps the account and refuses its owner."""
    user = await vendor.create(active=False)
    _, login = await vendor.call("POST", "/__emu/sso_login", {"email": ADDRESS})
    assert login == {"id": user["id"], "created": False, "admitted": False}


@pytest.mark.parametrize(
    ("change", "violation", "scim_type"),
    [
        ({"title": "Dr"}, "unknown_field", "invalidSyntax"),
        ({"id": "x"}, "unknown_field", "invalidSyntax"),
        ({"roles": []}, "unknown_field", "invalidSyntax"),
        ({"username": "x@example.com"}, "wrong_case", "invalidSyntax"),
        ({"externalid": "x"}, "wrong_case", "invalidSyntax"),
        ({"name": {"formatted": "G F"}}, "unknown_field", "invalidSyntax"),
        ({"name": {"GivenName": "G"}}, "wrong_case", "invalidSyntax"),
        ({"name": "G F"}, "wrong_type", "invalidValue"),
        ({"emails": [{"type": "home", "value": "x@example.com"}]}, "unknown_type", "invalidValue"),
        ({"emails": [{"value": "x@example.com"}]}, "unknown_type", "invalidValue"),
        ({"emails": [{"type": "work", "Value": "x@example.com"}]}, "wrong_case", "invalidSyntax"),
        ({"emails": "x@example.com"}, "wrong_type", "invalidValue"),
        ({"active": "True"}, "wrong_type", "invalidValue"),
        ({"userName": None}, "missing_field", "invalidValue"),
        ({"userName": " "}, "missing_field", "invalidValue"),
        ({"schemas": [CORE_GROUP]}, "schemas", "invalidSyntax"),
    ],
)
async def test_no_other_attribute_can_be_passed(vendor, change, violation, scim_type):
    """L10, 4.6: unknown attributes in POST are 400, as are wrong case and wrong types; the test that sends them fails."""
    status, body = await vendor.call("POST", USERS, a_user(**change))

    assert (status, body["scimType"]) == (400, scim_type)
    assert vendor.codes == [violation]
    assert vendor.ops == []


async def test_the_user_name_is_an_address(vendor):
    """L2: the user name is passed as the e-mail address."""
    assert (await vendor.call("POST", USERS, a_user("rita")))[1]["scimType"] == "invalidValue"


async def test_patch_changes_only_what_it_names(vendor):
    """RFC 7644 section 3.5.2: paths, typed values, a value without path, removal."""
    user = await vendor.create()
    path = f"{USERS}/{user['id']}"

    status, after = await vendor.patch(
        path,
        {"op": "replace", "path": "userName", "value": "new@example.com"},
        {"op": "replace", "path": 'emails[type eq "work"].value', "value": "new@example.com"},
        {"op": "replace", "value": {"name": {"givenName": "New"}, "displayName": "New Family"}},
        {"op": "remove", "path": "externalId"},
    )
    assert status == 200
    assert (after["userName"], after["displayName"]) == ("new@example.com", "New Family")
    assert after["name"] == {"givenName": "New", "familyName": "Family"}
    assert after["emails"] == [{"type": "work", "value": "new@example.com"}]
    assert "externalId" not in after
    assert after["meta"]["version"] != user["meta"]["version"]
    changed = vendor.emulator.journal.effects(op="update")[0]["changed"]
    assert sorted(changed) == ["displayName", "email", "externalId", "givenName", "userName"]
    assert await vendor.found(f'userName eq "{ADDRESS}"') == []
    assert (await vendor.found('userName eq "new@example.com"'))[0]["id"] == user["id"]
    assert await vendor.found(f'externalId eq "{OBJECT_ID}"') == []
    assert vendor.codes == []


async def test_the_same_patch_again_changes_nothing(vendor):
    """A3: repeating a write is harmless and shows as an effect without change."""
    user = await vendor.create()
    operation = {"op": "replace", "value": {"active": True, "emails": [{"type": "work", "value": ADDRESS}]}}
    primary = {"op": "remove", "path": 'emails[type eq "work"].primary'}
    assert await vendor.patch(f"{USERS}/{user['id']}", operation, primary) == (200, user)
    assert vendor.emulator.journal.effects(op="update")[0]["changed"] == []


@pytest.mark.parametrize(
    ("operation", "violation"),
    [
        ({"op": "replace", "path": "title", "value": "Dr"}, "unknown_field"),
        ({"op": "replace", "path": "displayname", "value": "Dr"}, "wrong_case"),
        ({"op": "Replace", "path": "active", "value": False}, "unknown_field"),
        ({"op": "replace", "path": "active", "value": "False"}, "wrong_type"),
        ({"op": "replace", "path": 'emails[type eq "home"].value', "value": "x@example.com"}, "unknown_type"),
        ({"op": "replace", "path": 'emails[primary eq "work"].value', "value": "x@example.com"}, "invalid_path"),
        ({"op": "replace", "path": "emails.value", "value": "x@example.com"}, "invalid_path"),
        ({"op": "replace", "path": "name.formatted", "value": "x"}, "unknown_field"),
        ({"op": "replace", "path": "active.value", "value": True}, "invalid_path"),
        ({"op": "replace", "path": "]", "value": True}, "invalid_path"),
        ({"op": "remove", "path": "userName"}, "missing_field"),
        ({"op": "remove", "path": 'emails[value eq "x"]'}, "invalid_path"),
        ({"op": "remove", "path": "name.formatted"}, "unknown_field"),
        ({"op": "remove"}, "no_target"),
        ({"op": "add", "path": "active"}, "missing_field"),
        ({"op": "add", "value": "x"}, "wrong_type"),
        ({"op": "add", "value": {"title": "Dr"}}, "unknown_field"),
        ({"op": "add", "path": "active", "value": True, "from": "x"}, "unknown_field"),
        ("replace", "wrong_type"),
    ],
)
async def test_a_wrong_patch_changes_nothing_and_is_a_violation(vendor, operation, violation):
    """RFC 7644 section 3.5.2: one bad operation refuses all of them."""
    user = await vendor.create()
    good = {"op": "replace", "path": "displayName", "value": "New"}

    assert (await vendor.patch(f"{USERS}/{user['id']}", good, operation))[0] == 400
    assert await vendor.call("GET", f"{USERS}/{user['id']}") == (200, user)
    assert vendor.codes == [violation]


async def test_a_patch_to_an_address_that_somebody_has_is_refused(vendor):
    """4.5: 409 uniqueness."""
    await vendor.create("other@example.com")
    user = await vendor.create()
    operation = {"op": "replace", "path": "userName", "value": "other@example.com"}
    status, body = await vendor.patch(f"{USERS}/{user['id']}", operation)
    assert (status, body["scimType"]) == (409, "uniqueness")


async def test_there_is_no_put(vendor):
    """4.3: POST, PATCH and DELETE only."""
    user = await vendor.create()
    assert (await vendor.call("PUT", f"{USERS}/{user['id']}", a_user()))[0] == 405
    assert vendor.codes == ["method_not_allowed"]


async def test_the_list_for_matching_is_paged(vendor):
    """4.3: startIndex and count, 100 per page at most; attributes can be chosen."""
    vendor.emulator.seed({"users": [{"userName": f"u{number}@example.com"} for number in range(103)]})

    _, page = await vendor.call("GET", f"{USERS}?startIndex=1&count=1000")
    assert page["schemas"] == [LIST]
    assert (page["totalResults"], page["startIndex"], page["itemsPerPage"]) == (103, 1, 100)
    _, page = await vendor.call("GET", f"{USERS}?startIndex=101&count=100&attributes=userName")
    assert [user["userName"] for user in page["Resources"]] == [f"u{number}@example.com" for number in range(100, 103)]
    assert all(set(user) == {"schemas", "id", "meta", "userName"} for user in page["Resources"])
    assert (await vendor.call("GET", f"{USERS}?sortBy=userName"))[0] == 400
    assert vendor.codes == ["unknown_parameter"]


@pytest.mark.parametrize(
    "text",
    [
        'userName co "a"',
        'displayName eq "x"',
        "userName eq rita",
        'userName eq "a" and active eq "x"',
        'userName eq "\\x"',
    ],
)
async def test_other_filters_are_refused(vendor, text):
    """4.3: equality on userName and externalId; anything else is 400 invalidFilter."""
    async with vendor.session.get(USERS, params={"filter": text}) as answer:
        assert answer.status == 400
        assert (await answer.json(content_type=None))["scimType"] == "invalidFilter"


async def test_a_deleted_user_is_gone_from_everywhere(vendor):
    """4.3: DELETE frees address and seat, and takes the user out of the groups."""
    vendor.emulator.set(seats=1)
    user = await vendor.create()
    group = await vendor.group(members=[user["id"]])

    assert await vendor.call("DELETE", f"{USERS}/{user['id']}") == (204, None)
    answers = [
        (await vendor.call("GET", f"{USERS}/{user['id']}"))[0],
        (await vendor.call("DELETE", f"{USERS}/{user['id']}"))[0],
        (await vendor.patch(f"{USERS}/{user['id']}", {"op": "replace", "path": "active", "value": False}))[0],
    ]
    assert answers == [404, 404, 404]
    assert await vendor.members(group["id"]) == []
    assert (await vendor.create())["id"] != user["id"]


# Seats ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [403, 422])
async def test_without_a_free_seat_a_user_is_refused_with_a_code(vendor, status):
    """4.3, 4.6: 403 or 422 with a code, so that it is told from a missing permission; inactive users need no seat."""
    vendor.emulator.set(seats=1, seat_status=status)
    first = await vendor.create()
    second = await vendor.create("second@example.com", active=False)

    answered, body = await vendor.call("POST", USERS, a_user("third@example.com"))
    assert (answered, body["code"]) == (status, "no_seat")
    activate = {"op": "replace", "path": "active", "value": True}
    assert (await vendor.patch(f"{USERS}/{second['id']}", activate))[1]["code"] == "no_seat"
    _, login = await vendor.call("POST", "/__emu/sso_login", {"email": "new@example.com"})
    assert login == {"id": None, "created": False, "admitted": False}

    await vendor.patch(f"{USERS}/{first['id']}", {**activate, "value": False})
    assert (await vendor.patch(f"{USERS}/{second['id']}", activate))[0] == 200
    assert vendor.codes == []


# Invitations ----------------------------------------------------------------------------------------------------------


async def test_a_user_is_invited_once(vendor):
    """4.3: 202, then 409 already_invited; the same key is answered as the first time."""
    user = await vendor.create()
    status, body = await vendor.invite(user["id"], "k1")
    assert (status, body["userId"]) == (202, user["id"])
    assert await vendor.invite(user["id"], "k1") == (status, body)
    assert (await vendor.invite(user["id"], "k2"))[1]["code"] == "already_invited"
    assert vendor.ops == ["create", "invite"]
    assert list(vendor.emulator.state()["invitations"]) == [user["id"]]


async def test_an_inactive_or_unknown_user_is_not_invited(vendor):
    """4.3: 422 inactive_user; 404."""
    user = await vendor.create(active=False)
    status, body = await vendor.invite(user["id"])
    assert (status, body["code"]) == (422, "inactive_user")
    assert (await vendor.invite("nobody"))[0] == 404
    assert vendor.emulator.state()["invitations"] == {}


async def test_an_invitation_needs_a_key(vendor):
    """4.3: without Idempotency-Key a lost answer could mean two invitations."""
    user = await vendor.create()
    assert (await vendor.call("POST", f"/api/v1/users/{user['id']}/invitations"))[0] == 400
    assert vendor.codes == ["missing_field"]


async def test_the_platform_may_invite_by_itself(vendor):
    """L5: with the organisation's switch new active users are invited on creation, and not again."""
    vendor.emulator.set(invite_on_creation=True)
    user = await vendor.create()
    inactive = await vendor.create("b@example.com", active=False)

    invitations = vendor.emulator.state()["invitations"]
    assert {user_id: one["by"] for user_id, one in invitations.items()} == {user["id"]: "platform"}
    assert (await vendor.invite(user["id"]))[0] == 409
    await vendor.patch(f"{USERS}/{inactive['id']}", {"op": "replace", "path": "active", "value": True})
    assert len(vendor.emulator.state()["invitations"]) == 1


async def test_a_lost_answer_to_an_invitation_is_one_invitation(vendor):
    """4.3: the repeat with the same key is answered 202 and sends nothing."""
    user = await vendor.create()
    vendor.emulator.fault("drop_response", method="POST", path="/api/v1/", times=1)
    with pytest.raises(GONE):
        await vendor.invite(user["id"])
    assert (await vendor.invite(user["id"]))[0] == 202
    assert vendor.ops == ["create", "invite"]


# Groups ---------------------------------------------------------------------------------------------------------------


async def test_a_group_is_found_by_name_and_external_id(vendor):
    """4.3: the same calls for groups; the name counts letter case."""
    user = await vendor.create()
    group = await vendor.group(members=[user["id"]], externalId=OBJECT_ID)

    assert group["members"] == [{"value": user["id"]}]
    assert await vendor.found('displayName eq "Sales"', GROUPS) == [group]
    assert await vendor.found(f'externalId eq "{OBJECT_ID}"', GROUPS) == [group]
    assert await vendor.found('displayName eq "sales"', GROUPS) == []
    _, page = await vendor.call("GET", f"{GROUPS}?excludedAttributes=members")
    assert "members" not in page["Resources"][0]
    assert (await vendor.call("POST", GROUPS, {"schemas": [CORE_GROUP], "displayName": "Sales"}))[0] == 409
    assert (await vendor.group("SALES"))["id"] != group["id"]
    assert vendor.codes == []


async def test_members_come_and_go_by_explicit_operations(vendor):
    """4.3, L15: add and remove change only the members they name, in every form of removal."""
    ids = [(await vendor.create(f"u{number}@example.com"))["id"] for number in range(5)]
    group = await vendor.group(members=ids[:2])
    path = f"{GROUPS}/{group['id']}"

    await vendor.patch(path, {"op": "add", "path": "members", "value": [{"value": one} for one in ids[1:]]})
    assert await vendor.members(group["id"]) == ids
    await vendor.patch(path, {"op": "remove", "path": f'members[value eq "{ids[0]}"]'})
    await vendor.patch(path, {"op": "remove", "path": "members", "value": [{"value": ids[1]}, {"value": ids[2]}]})
    assert await vendor.members(group["id"]) == ids[3:]
    await vendor.patch(path, {"op": "remove", "path": f'members[value eq "{ids[0]}"]'})
    assert await vendor.members(group["id"]) == ids[3:]
    await vendor.patch(path, {"op": "replace", "path": "displayName", "value": "New"})
    await vendor.patch(path, {"op": "remove", "path": "members"})
    assert await vendor.members(group["id"]) == []
    assert vendor.codes == []


@pytest.mark.parametrize("without_path", [False, True])
async def test_a_replaced_list_of_members_really_replaces(vendor, without_path):
    """L15, 4.6: the trap: who is not in the list is out; no correct connector sends it."""
    ids = [(await vendor.create(f"u{number}@example.com"))["id"] for number in range(3)]
    group = await vendor.group(members=ids[:2])
    listed = [{"value": ids[2]}]
    trap = {"op": "replace", "value": {"members": listed}}
    if not without_path:
        trap = {"op": "replace", "path": "members", "value": listed}

    assert (await vendor.patch(f"{GROUPS}/{group['id']}", trap))[0] == 200
    assert await vendor.members(group["id"]) == ids[2:]
    assert vendor.codes == ["members_replaced"]


async def test_an_unknown_member_refuses_the_whole_call(vendor):
    """4.5: a member that is not there is 400; nobody is added."""
    user = await vendor.create()
    group = await vendor.group()
    added = [{"value": user["id"]}, {"value": "nobody"}]

    status, body = await vendor.patch(f"{GROUPS}/{group['id']}", {"op": "add", "path": "members", "value": added})
    assert (status, body["scimType"]) == (400, "invalidValue")
    assert await vendor.members(group["id"]) == []
    body = {"schemas": [CORE_GROUP], "displayName": "Other", "members": added}
    assert (await vendor.call("POST", GROUPS, body))[0] == 400
    assert vendor.codes == []


async def test_members_come_in_chunks(vendor):
    """4.3: more than the chunk in one call is a mistake of the client."""
    vendor.emulator.set(members_per_call=2)
    ids = [(await vendor.create(f"u{number}@example.com"))["id"] for number in range(3)]
    group = await vendor.group(members=ids[:1])
    path = f"{GROUPS}/{group['id']}"

    assert (await vendor.patch(path, {"op": "add", "path": "members", "value": [{"value": ids[1]}]}))[0] == 200
    assert (await vendor.patch(path, {"op": "remove", "path": "members"}))[0] == 200
    status, body = await vendor.patch(path, {"op": "add", "path": "members", "value": [{"value": one} for one in ids]})
    assert (status, body["scimType"]) == (400, "tooMany")
    assert vendor.codes == ["too_many"]
    assert await vendor.members(group["id"]) == []


async def test_a_deleted_group_leaves_its_users(vendor):
    """4.3: group delete removes the group, never its users."""
    user = await vendor.create()
    group = await vendor.group(members=[user["id"]])
    assert await vendor.call("DELETE", f"{GROUPS}/{group['id']}") == (204, None)
    assert await vendor.call("GET", f"{USERS}/{user['id']}") == (200, user)
    assert (await vendor.call("GET", f"{GROUPS}/{group['id']}"))[0] == 404


@pytest.mark.parametrize(
    ("change", "violation"),
    [
        ({"description": "x"}, "unknown_field"),
        ({"Members": []}, "wrong_case"),
        ({"members": ["x"]}, "wrong_type"),
        ({"members": [{"id": "x"}]}, "unknown_field"),
        ({"members": [{"display": "x"}]}, "missing_field"),
        ({"displayName": ""}, "missing_field"),
    ],
)
async def test_a_malformed_group_is_refused_and_is_a_violation(vendor, change, violation):
    """L12: displayName, externalId and members, and nothing else."""
    body = {"schemas": [CORE_GROUP], "displayName": "Sales", **change}
    assert (await vendor.call("POST", GROUPS, body))[0] == 400
    assert vendor.codes == [violation]


# The organisation's switch and permissions ----------------------------------------------------------------------------


async def calls(vendor: Vendor, user_id: str, group_id: str, **headers: str) -> dict[str, int]:
    """One harmless call per permission: its status."""
    nothing = {"schemas": [PATCH_OP], "Operations": [{"op": "replace", "path": "displayName", "value": "Sales"}]}
    invitation = f"/api/v1/users/{user_id}/invitations"
    key = {"Idempotency-Key": "k"}
    return {
        "users:read": (await vendor.call("GET", f"{USERS}/{user_id}", **headers))[0],
        "users:write": (await vendor.call("PATCH", f"{USERS}/{user_id}", nothing, **headers))[0],
        "groups:read": (await vendor.call("GET", GROUPS, **headers))[0],
        "groups:write": (await vendor.call("PATCH", f"{GROUPS}/{group_id}", nothing, **headers))[0],
        "invitations:write": (await vendor.call("POST", invitation, **key, **headers))[0],
    }


@pytest.mark.parametrize("missing", PERMISSIONS)
async def test_one_missing_permission_refuses_just_its_calls(vendor, missing):
    """L6, 4.6 faults: the fixed token without one permission is 403 for these calls and works for the others."""
    user, group = await vendor.create(), await vendor.group()
    vendor.emulator.set(permissions=[one for one in PERMISSIONS if one != missing])

    answers = await calls(vendor, user["id"], group["id"])
    assert [one for one, status in answers.items() if status == 403] == [missing]
    assert all(status < 300 for one, status in answers.items() if one != missing)


async def test_a_token_made_by_the_organisation_has_its_own_permissions(vendor):
    """L6, L7: a token with a list of permissions, shown once, kept as a digest, gone when revoked."""
    user, group = await vendor.create(), await vendor.group()
    status, made = await vendor.call("POST", "/__emu/tokens", {"permissions": ["users:read", "groups:read"]})
    assert status == 200
    header = {"Authorization": f"Bearer {made['token']}"}

    answers = await calls(vendor, user["id"], group["id"], **header)
    assert [one for one, code in answers.items() if code == 200] == ["users:read", "groups:read"]
    assert set(answers.values()) == {200, 403}
    kept = json.dumps([vendor.emulator.journal.lines(), vendor.emulator.recorded(), vendor.emulator.state()])
    assert made["token"] not in kept
    assert TOKEN not in kept
    await vendor.call("DELETE", "/__emu/tokens")
    assert (await vendor.call("GET", USERS, **header))[0] == 401
    assert (await vendor.call("POST", "/__emu/tokens", {"permissions": ["all"]}))[0] == 400


async def test_with_scim_switched_off_everything_is_403(vendor):
    """4.6: SCIM is enabled in the organisation's Single Sign On page."""
    user, group = await vendor.create(), await vendor.group()
    vendor.emulator.set(scim=False)
    assert set((await calls(vendor, user["id"], group["id"])).values()) == {403}
    assert (await vendor.call("GET", "/scim/v2/ServiceProviderConfig"))[0] == 403


async def test_the_service_describes_itself(vendor):
    """RFC 7644 section 4: PATCH is supported, users and groups are served."""
    _, provider = await vendor.call("GET", "/scim/v2/ServiceProviderConfig")
    assert provider["patch"] == {"supported": True}
    _, types = await vendor.call("GET", "/scim/v2/ResourceTypes")
    assert [one["endpoint"] for one in types["Resources"]] == ["/Users", "/Groups"]


# Limit, faults, restart -----------------------------------------------------------------------------------------------


async def test_the_sixth_call_in_a_second_is_429_with_retry_after():
    """4.3, assumed: 5 requests per second by the emulator's clock."""
    emulator = BobsBusinessEmulator()
    emulator.clock.freeze(True)
    async with running(emulator) as url, aiohttp.ClientSession(url, headers=AUTH) as session:
        vendor = Vendor(emulator, session)
        assert [(await vendor.call("GET", USERS))[0] for _ in range(6)] == [200] * 5 + [429]
        async with session.get(USERS) as refused:
            assert refused.headers["Retry-After"] == "1"
            assert (await refused.json(content_type=None))["schemas"] == [ERROR]


async def test_membership_may_be_read_late(vendor):
    """4.6 faults: `stale_read` on group membership: the write is done, the list lags."""
    user = await vendor.create()
    group = await vendor.group()
    vendor.emulator.advance(60)
    vendor.emulator.fault("stale_read", method="GET", path=GROUPS, lag_s=30)

    added = {"op": "add", "path": "members", "value": [{"value": user["id"]}]}
    _, after = await vendor.patch(f"{GROUPS}/{group['id']}", added)
    assert after["members"] == [{"value": user["id"]}]
    assert await vendor.members(group["id"]) == []
    vendor.emulator.advance(31)
    assert await vendor.members(group["id"]) == [user["id"]]


async def test_a_lost_answer_to_a_create_leaves_one_user(vendor):
    """A3: `drop_response` on POST: the look-up finds what was made."""
    vendor.emulator.fault("drop_response", method="POST", path=USERS, times=1)
    with pytest.raises(GONE):
        await vendor.create()
    assert len(await vendor.found(f'externalId eq "{OBJECT_ID}"')) == 1
    assert vendor.ops == ["create"]


async def test_users_groups_invitations_and_tokens_survive_a_restart(tmp_path):
    """The vendor remembers all of it, its seat count and its indexes included."""
    settings = {"rate_per_s": 0, "seats": 2, "journal_dir": tmp_path}
    before = BobsBusinessEmulator(**settings)
    async with running(before) as url, aiohttp.ClientSession(url, headers=AUTH) as session:
        vendor = Vendor(before, session)
        user = await vendor.create()
        gone = await vendor.create("gone@example.com")
        group = await vendor.group(members=[user["id"], gone["id"]])
        await vendor.invite(user["id"])
        await vendor.call("DELETE", f"{USERS}/{gone['id']}")
        await vendor.call("POST", "/__emu/sso_login", {"email": "jit@example.com"})
        _, made = await vendor.call("POST", "/__emu/tokens", {"permissions": ["groups:read"]})
        held = before.state()

    after = BobsBusinessEmulator(**settings)
    async with running(after) as url, aiohttp.ClientSession(url, headers=AUTH) as session:
        vendor = Vendor(after, session)
        assert {**after.state(), "now": 0} == {**held, "now": 0}
        assert (await vendor.call("GET", GROUPS, Authorization=f"Bearer {made['token']}"))[0] == 200
        assert [one["id"] for one in await vendor.found(f'userName eq "{ADDRESS}"')] == [user["id"]]
        assert await vendor.found('userName eq "gone@example.com"') == []
        assert await vendor.members(group["id"]) == [user["id"]]
        assert (await vendor.invite(user["id"], "other"))[0] == 409
        assert (await vendor.call("POST", USERS, a_user("more@example.com")))[1]["code"] == "no_seat"


async def test_a_seed_sets_the_scene_without_counting_as_effects(vendor):
    """0.5: POST /__emu/seed with users and groups; wrong ones are an error of the test."""
    scene = {
        "users": [{"userName": "Rita@Example.com", "invited": True}, {"userName": ADDRESS, "active": False}],
        "groups": [{"displayName": "Sales", "members": [ADDRESS]}],
    }
    status, made = await vendor.call("POST", "/__emu/seed", scene)
    assert status == 200
    assert await vendor.members(made["group_ids"][0]) == [made["ids"][1]]
    assert (await vendor.found(f'userName eq "{ADDRESS}"'))[0]["emails"] == [{"type": "work", "value": ADDRESS}]
    assert (await vendor.invite(made["ids"][0]))[0] == 409
    assert vendor.ops == []
    assert vendor.codes == []
    for wrong in (
        {"user": []},
        {"users": [{"email": ADDRESS}]},
        {"users": [{"userName": ADDRESS}]},
        {"groups": [{"displayName": "X", "members": ["nobody@example.com"]}]},
    ):
        assert (await vendor.call("POST", "/__emu/seed", wrong))[0] == 400
