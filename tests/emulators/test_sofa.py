"""The Sofa emulator keeps the page of the seed and the assumed SCIM contract with their quirks."""

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from deploy.emulators.harness import running
from deploy.emulators.scim_service import CORE_GROUP, CORE_USER, ENTERPRISE, ERROR
from deploy.emulators.sofa import SofaEmulator
from tests.emulators.calling import ScimCaller, calling

TOKEN = "demo-token-sofa"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
USERS = "/scim/entra/Users"
GROUPS = "/scim/entra/Groups"
DAY_S = 86_400
GONE = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


def object_id(number: int) -> str:
    """An Entra object id for tests."""
    return f"aaaaaaaa-0000-4000-8000-{number:012d}"


def a_user(number: int = 1, **changes: Any) -> dict[str, Any]:
    """A SCIM user with what Sofa needs; a change to None leaves the attribute out."""
    body = {
        "schemas": [CORE_USER],
        "userName": f"u{number}@example.com",
        "externalId": object_id(number),
        "active": True,
        "displayName": f"User {number}",
        **changes,
    }
    return {name: value for name, value in body.items() if value is not None}


FULL = {
    "schemas": [CORE_USER, ENTERPRISE],
    "title": "Director",
    "name": {"givenName": "Given", "familyName": "Family", "honorificPrefix": "Mgr.", "honorificSuffix": "Ph.D."},
    "emails": [{"type": "work", "value": "given@example.com"}],
    "phoneNumbers": [{"type": "work", "value": "+420 200 000 111"}, {"type": "mobile", "value": "+420 602 000 111"}],
    ENTERPRISE: {"employeeNumber": "007", "department": "Sales"},
}
# Taken and forgotten (S24 and the rest of RFC 7643).
UNMAPPED = {
    "preferredLanguage": "cs",
    "addresses": [{"type": "work", "locality": "Prague"}],
    "emails": [{"type": "home", "value": "home@example.com"}, {"type": "work", "value": "given@example.com"}],
    "phoneNumbers": [{"type": "fax", "value": "1"}],
    "name": {"formatted": "Mgr. Given Family", "givenName": "Given"},
    "schemas": [CORE_USER, ENTERPRISE],
    ENTERPRISE: {"costCenter": "1"},
}


class Vendor(ScimCaller[SofaEmulator]):
    """A plain client of the emulator: (status, decoded body)."""

    users = USERS

    async def create(self, number: int = 1, **changes: Any) -> dict[str, Any]:
        status, body = await self.call("POST", USERS, a_user(number, **changes))
        assert status == 201, body
        return body

    async def group(self, number: int, members: Any = (), **changes: Any) -> dict[str, Any]:
        listed = [{"value": member} for member in members]
        name, external_id = f"Group {number}", object_id(number)
        body = {"schemas": [CORE_GROUP], "displayName": name, "externalId": external_id, "members": listed, **changes}
        status, made = await self.call("POST", GROUPS, body)
        assert status == 201, made
        return made

    async def edit(self, **fields: Any) -> tuple[int, Any]:
        return await self.call("POST", "/__emu/synchronization", fields)

    @property
    def state(self) -> dict[str, Any]:
        return self.emulator.state()

    @property
    def logged(self) -> list[str]:
        return [line["level"] for line in self.state["log"].values()]


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    async with calling(Vendor, SofaEmulator(rate_per_s=0), AUTH) as vendor:
        yield vendor


# Users ----------------------------------------------------------------------------------------------------------------


async def test_every_mapped_attribute_lands_in_its_field(vendor):
    """5.4: the table of attributes, degrees before and after the name included (S25); numbers as they came."""
    chief = await vendor.create(2)
    enterprise = {**FULL[ENTERPRISE], "manager": {"value": chief["id"]}}
    user = await vendor.create(**{**FULL, ENTERPRISE: enterprise})

    held = vendor.state["users"][user["id"]]
    assert {name: held[name] for name in held if name not in ("id", "created", "lastModified", "version")} == {
        "user_name": "u1@example.com",
        "enabled": True,
        "virtual_display_name": "User 1",
        "job": "Director",
        "name": "Given",
        "surname": "Family",
        "degree_before": "Mgr.",
        "degree_after": "Ph.D.",
        "notification_email": "given@example.com",
        "telephone": "+420 200 000 111",
        "mobile_phone": "+420 602 000 111",
        "sso_identifier": object_id(1),
        "personal_number": "007",
        "department": "Sales",
        "direct_superior": chief["id"],
    }
    assert user[ENTERPRISE] == enterprise
    assert await vendor.call("GET", f"{USERS}/{user['id']}") == (200, user)
    assert vendor.codes == []


async def test_unmapped_attributes_are_taken_and_forgotten(vendor):
    """S24, 5.6: accepted and dropped, in POST and in PATCH."""
    user = await vendor.create(**UNMAPPED)

    assert "preferredLanguage" not in user
    assert "addresses" not in user
    assert user["emails"] == [{"type": "work", "value": "given@example.com"}]
    assert "phoneNumbers" not in user
    assert user["name"] == {"givenName": "Given"}
    assert ENTERPRISE not in user
    status, after = await vendor.patch(
        f"{USERS}/{user['id']}",
        {"op": "replace", "path": "preferredLanguage", "value": "en"},
        {"op": "add", "path": 'emails[type eq "home"].value', "value": "x@example.com"},
        {"op": "add", "path": 'addresses[type eq "work"].locality', "value": "Brno"},
        {"op": "add", "path": f"{ENTERPRISE}:costCenter", "value": "2"},
        {"op": "remove", "path": "name.formatted"},
        {"op": "remove", "path": 'addresses[type eq "work"]'},
    )
    assert (status, after) == (200, user)
    assert vendor.codes == []


@pytest.mark.parametrize(
    ("change", "violation"),
    [
        ({"password": "x"}, "unknown_field"),
        ({"department": "Sales"}, "unknown_field"),
        ({"Title": "Dr"}, "wrong_case"),
        ({"name": {"honorificprefix": "Dr"}}, "wrong_case"),
        ({"name": {"title": "Dr"}}, "unknown_field"),
        ({"active": "True"}, "wrong_type"),
        ({"userName": None}, "missing_field"),
        ({"externalId": None}, "missing_field"),
        ({"externalId": "u1"}, "not_an_object_id"),
        ({"externalId": "{" + object_id(1) + "}"}, "not_an_object_id"),
        ({ENTERPRISE: {"department": "Sales"}}, "schemas"),
        ({"schemas": [CORE_USER, ENTERPRISE], ENTERPRISE: {"Department": "Sales"}}, "wrong_case"),
        ({"schemas": [CORE_USER, ENTERPRISE], ENTERPRISE: {"team": "Sales"}}, "unknown_field"),
    ],
)
async def test_a_malformed_user_is_refused_and_is_a_violation(vendor, change, violation):
    """0.5, S21: what SCIM does not know, wrong case, wrong types, and an externalId that is no object id."""
    assert (await vendor.call("POST", USERS, a_user(**change)))[0] == 400
    assert vendor.codes == [violation]
    assert vendor.ops == []


async def test_users_are_found_by_external_id_and_by_user_name(vendor):
    """5.3: the two look-ups, letter case ignored."""
    user = await vendor.create()
    assert await vendor.found(f'externalId eq "{object_id(1).upper()}"') == [user]
    assert await vendor.found('userName eq "U1@EXAMPLE.com"') == [user]
    assert await vendor.found(f'externalId eq "{object_id(9)}"') == []
    async with vendor.session.get(USERS, params={"filter": 'title eq "x"'}) as answer:
        assert (await answer.json(content_type=None))["scimType"] == "invalidFilter"


async def test_the_external_id_decides_before_the_user_name(vendor):
    """S23, 5.6: users are matched by externalId first, then by user name; both are 409, and each says which it was."""
    await vendor.create(1)
    made = vendor.emulator.seed({"users": [{"user_name": "by.hand@example.com"}]})

    status, body = await vendor.call("POST", USERS, a_user(1, userName="by.hand@example.com"))
    assert (status, body["scimType"]) == (409, "uniqueness")
    assert "externalId" in body["detail"]
    status, body = await vendor.call("POST", USERS, a_user(2, userName="By.Hand@example.com"))
    assert (status, body["scimType"]) == (409, "uniqueness")
    assert "userName" in body["detail"]

    adopt = {"op": "add", "path": "externalId", "value": object_id(2)}
    status, adopted = await vendor.patch(f"{USERS}/{made['ids'][0]}", adopt)
    assert (status, adopted["externalId"]) == (200, object_id(2))
    assert (await vendor.patch(f"{USERS}/{made['ids'][0]}", {**adopt, "value": object_id(1)}))[0] == 409
    assert vendor.codes == []


async def test_a_deleted_user_is_disabled_and_comes_back_by_activation(vendor):
    """5.6: DELETE disables; the user stays in sight with active false, and no second one can be made."""
    user = await vendor.create()
    path = f"{USERS}/{user['id']}"
    assert await vendor.call("DELETE", path) == (204, None)

    (found,) = await vendor.found(f'externalId eq "{object_id(1)}"')
    assert (found["id"], found["active"]) == (user["id"], False)
    assert (await vendor.call("POST", USERS, a_user()))[0] == 409
    assert (await vendor.call("DELETE", path))[0] == 204
    _, after = await vendor.patch(path, {"op": "replace", "path": "active", "value": True})
    assert after["active"] is True
    assert (await vendor.call("DELETE", f"{USERS}/nobody"))[0] == 404
    assert [effect["changed"] for effect in vendor.emulator.journal.effects(op="delete")] == [["enabled"], []]


@pytest.mark.parametrize("form", ["plain", "object", "without_path", "sub"])
async def test_a_manager_must_be_a_user_of_sofa(vendor, form):
    """5.6 faults: an unknown manager is 400; a known one is set in every form, and taken away again."""
    user, chief = await vendor.create(1), await vendor.create(2)
    path = f"{USERS}/{user['id']}"

    def manager(user_id: str) -> dict[str, Any]:
        if form == "without_path":
            return {"op": "add", "value": {ENTERPRISE: {"manager": {"value": user_id}}}}
        sub = ".value" if form == "sub" else ""
        value = {"value": user_id} if form == "object" else user_id
        return {"op": "replace", "path": f"{ENTERPRISE}:manager{sub}", "value": value}

    status, body = await vendor.patch(path, manager("gw-3"))
    assert (status, body["scimType"]) == (400, "invalidValue")
    assert "manager" in body["detail"]
    assert (await vendor.patch(path, manager(chief["id"])))[1][ENTERPRISE] == {"manager": {"value": chief["id"]}}
    assert ENTERPRISE not in (await vendor.patch(path, {"op": "remove", "path": f"{ENTERPRISE}:manager"}))[1]
    created = {"schemas": [CORE_USER, ENTERPRISE], ENTERPRISE: {"manager": {"value": "gw-3"}}}
    assert (await vendor.call("POST", USERS, a_user(3, **created)))[0] == 400
    assert vendor.codes == []


@pytest.mark.parametrize("clear", [{"op": "remove"}, {"op": "replace", "value": None}])
async def test_a_field_can_be_cleared(vendor, clear):
    """5.4, RFC 7643 section 2.5: null and removal leave no value; other fields stay."""
    user = await vendor.create(**FULL)
    for path in ("title", "name.honorificPrefix", 'phoneNumbers[type eq "mobile"].value', f"{ENTERPRISE}:department"):
        assert (await vendor.patch(f"{USERS}/{user['id']}", {**clear, "path": path}))[0] == 200
    held = vendor.state["users"][user["id"]]
    assert [held[name] for name in ("job", "degree_before", "mobile_phone", "department")] == [None] * 4
    assert [held[name] for name in ("degree_after", "telephone", "personal_number")] == [
        *("Ph.D.", "+420 200 000 111", "007")
    ]
    assert (await vendor.patch(f"{USERS}/{user['id']}", {**clear, "path": "externalId"}))[0] == 400
    assert vendor.codes == ["missing_field"]


async def test_lists_of_addresses_are_merged_by_add_and_renewed_by_replace(vendor):
    """RFC 7644 sections 3.5.2.1 and 3.5.2.3, for the telephone numbers that Sofa keeps."""
    user = await vendor.create(**FULL)
    path = f"{USERS}/{user['id']}"
    work = {"type": "work", "value": "1"}

    _, after = await vendor.patch(path, {"op": "add", "path": "phoneNumbers", "value": [work]})
    assert {one["type"]: one["value"] for one in after["phoneNumbers"]} == {"work": "1", "mobile": "+420 602 000 111"}
    _, after = await vendor.patch(
        path, {"op": "replace", "path": 'phoneNumbers[type eq "work"]', "value": {"value": "2"}}
    )
    assert {one["type"]: one["value"] for one in after["phoneNumbers"]} == {"work": "2", "mobile": "+420 602 000 111"}
    _, after = await vendor.patch(path, {"op": "replace", "path": "phoneNumbers", "value": [work]})
    assert after["phoneNumbers"] == [work]
    _, after = await vendor.patch(path, {"op": "remove", "path": 'phoneNumbers[type eq "work"]'})
    assert "phoneNumbers" not in after
    assert vendor.codes == []


# Groups and roles -----------------------------------------------------------------------------------------------------


MAPS = {
    "group_map": [
        {"remote": object_id(101), "sofa": "Sales"},
        {"remote": object_id(102), "sofa": "Sales"},
        {"remote": object_id(103), "sofa": "Accounting"},
        {"remote": object_id(103), "sofa": "Archive"},
    ],
    "role_map": [{"remote": object_id(101), "sofa": "approver"}, {"remote": object_id(104), "sofa": "Administrator"}],
}


async def test_groups_and_roles_follow_from_the_maps(vendor):
    """S10 to S12, 5.3: several ids to one group, one id to several; who is in what is computed, not sent."""
    await vendor.edit(**MAPS)
    one, two = (await vendor.create(1))["id"], (await vendor.create(2))["id"]
    first = await vendor.group(101, [one])
    await vendor.group(102, [one, two])
    await vendor.group(103, [two])

    state = vendor.state
    assert state["sofa_groups"] == {"Accounting": [two], "Archive": [two], "Sales": sorted([one, two])}
    assert state["sofa_roles"] == {"Administrator": [], "approver": [one]}
    await vendor.patch(f"{GROUPS}/{first['id']}", {"op": "remove", "path": f'members[value eq "{one}"]'})
    assert one in vendor.state["sofa_groups"]["Sales"]
    assert vendor.state["sofa_roles"]["approver"] == []
    assert vendor.codes == []


async def test_a_group_no_map_knows_is_taken_without_effect(vendor):
    """5.6: accepted, logged as information, nobody gets anything; editing the map later counts what is there."""
    user = await vendor.create()
    await vendor.group(199, [user["id"]])
    assert vendor.state["sofa_groups"] == {}
    assert "no mapping" in list(vendor.state["log"].values())[-1]["text"]

    await vendor.edit(group_map=[{"remote": object_id(199), "sofa": "Late"}])
    assert vendor.state["sofa_groups"] == {"Late": [user["id"]]}
    await vendor.edit(group_map=[{"remote": object_id(199).upper(), "sofa": "Late"}])
    assert vendor.state["sofa_groups"] == {"Late": []}


async def test_a_deleted_group_takes_its_roles_along(vendor):
    """5.3: the group goes, its users stay."""
    await vendor.edit(**MAPS)
    user = await vendor.create()
    group = await vendor.group(101, [user["id"]])
    assert await vendor.found(f'externalId eq "{object_id(101)}"', GROUPS) == [group]
    assert await vendor.found('displayName eq "group 101"', GROUPS) == [group]

    assert await vendor.call("DELETE", f"{GROUPS}/{group['id']}") == (204, None)
    assert vendor.state["sofa_roles"]["approver"] == []
    assert (await vendor.call("GET", f"{USERS}/{user['id']}"))[0] == 200


async def test_groups_need_known_members_and_object_ids(vendor):
    """5.5: an unknown member is 400; an externalId that is no object id is a mistake of the client; a second group is 409."""
    body = {"schemas": [CORE_GROUP], "displayName": "Sales", "externalId": object_id(101)}
    assert (await vendor.call("POST", GROUPS, {**body, "members": [{"value": "nobody"}]}))[0] == 400
    assert vendor.codes == []
    assert (await vendor.call("POST", GROUPS, {**body, "externalId": "Sales"}))[0] == 400
    assert vendor.codes == ["not_an_object_id"]
    assert (await vendor.call("POST", GROUPS, body))[0] == 201
    assert (await vendor.call("POST", GROUPS, {**body, "displayName": "Other"}))[0] == 409


# The synchronization --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["scim", "entra", "ldap"])
async def test_a_second_synchronization_is_refused(vendor, kind):
    """S3: once one is set up, no other can be added; after a deletion it can."""
    status, body = await vendor.call("POST", "/__emu/synchronizations", {"name": "Second", "kind": kind})
    assert (status, "no other can be added" in body["error"]) == (409, True)
    assert vendor.state["synchronization"]["current"]["identifier"] == "entra"

    assert (await vendor.call("DELETE", "/__emu/synchronization"))[0] == 200
    assert (await vendor.call("POST", "/__emu/synchronizations", {"name": "Second", "kind": kind}))[0] == 200
    vendor.emulator.revoke_token(revoked=False)
    status, body = await vendor.call("GET", "/scim/Second/Users")
    assert status == (401 if kind == "scim" else 409), "without a key of its own; or with what is in the way of SCIM"
    assert kind == "scim" or f"kind {kind}" in body["detail"]
    assert (await vendor.edit(kind="ldap" if kind != "ldap" else "scim"))[0] == 400


async def test_a_deleted_synchronization_is_404_on_its_endpoint(vendor):
    """S15, 5.5: the address itself is gone; the old key is worth nothing for the next one."""
    await vendor.create()
    await vendor.call("DELETE", "/__emu/synchronization")
    status, body = await vendor.call("GET", USERS)
    assert (status, body["schemas"]) == (404, [ERROR])
    assert (await vendor.call("POST", "/__emu/generate_key", {"validity_days": 90}))[0] == 400

    _, made = await vendor.call("POST", "/__emu/synchronizations", {"name": "Entra Česko"})
    assert made["identifier"] == "Entra_Cesko"
    assert (await vendor.call("GET", "/scim/Entra_Cesko/Users"))[0] == 401
    _, key = await vendor.call("POST", "/__emu/generate_key", {"validity_days": 90})
    assert key["endpoint_url"].endswith("/scim/Entra_Cesko")
    header = {"Authorization": f"Bearer {key['access_key']}"}
    status, users = await vendor.call("GET", "/scim/Entra_Cesko/Users", **header)
    assert (status, users["totalResults"]) == (200, 1)
    assert users["Resources"][0]["meta"]["location"].startswith(key["endpoint_url"])
    assert (await vendor.call("GET", USERS, **header))[0] == 404


@pytest.mark.parametrize(("name", "identifier"), [("2nd sync", "s_2nd_sync"), ("a-b", "a_b"), ("日本", "sync")])
async def test_an_identifier_is_proposed_from_the_name(vendor, name, identifier):
    """S5, assumed form: English letters, digits and underscores, a letter first."""
    await vendor.call("DELETE", "/__emu/synchronization")
    _, made = await vendor.call("POST", "/__emu/synchronizations", {"name": name})
    assert made["identifier"] == identifier


@pytest.mark.parametrize("identifier", ["1x", "a-b", "_a", "á", "a b"])
async def test_a_wrong_identifier_is_refused(vendor, identifier):
    """S5: starts with a letter and has only English letters, digits and underscores."""
    assert (await vendor.edit(identifier=identifier))[0] == 400
    assert (await vendor.call("GET", USERS))[0] == 200


async def test_a_disabled_synchronization_is_403(vendor):
    """S18, 5.6: disabled and enabled again; nothing is lost."""
    user = await vendor.create()
    await vendor.edit(enabled=False)
    assert (await vendor.call("GET", USERS))[0] == 403
    assert (await vendor.call("DELETE", f"{USERS}/{user['id']}"))[0] == 403
    await vendor.edit(enabled=True)
    assert await vendor.call("GET", f"{USERS}/{user['id']}") == (200, user)
    assert vendor.ops == ["create"]


# Keys -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("days", [90, 730])
async def test_a_key_expires_by_the_emulators_clock(vendor, days):
    """S16, 5.6: valid for the chosen days and not a second longer; a new key works at once."""
    vendor.emulator.clock.freeze(True)
    _, key = await vendor.call("POST", "/__emu/generate_key", {"validity_days": days})
    header = {"Authorization": f"Bearer {key['access_key']}"}
    assert vendor.state["keys"]["current"]["expires_at"] == key["expires_at"]

    vendor.emulator.advance(days * DAY_S - 1)
    assert (await vendor.call("GET", USERS, **header))[0] == 200
    vendor.emulator.advance(1)
    status, body = await vendor.call("GET", USERS, **header)
    assert (status, body["schemas"]) == (401, [ERROR])
    _, key = await vendor.call("POST", "/__emu/generate_key", {"validity_days": days})
    assert (await vendor.call("GET", USERS, Authorization=f"Bearer {key['access_key']}"))[0] == 200


async def test_a_new_key_ends_the_old_one(vendor):
    """S17: keys cannot be shown again, only generated anew."""
    _, key = await vendor.call("POST", "/__emu/generate_key", {"validity_days": 120})
    assert (await vendor.call("GET", USERS))[0] == 401
    assert (await vendor.call("GET", USERS, Authorization=f"Bearer {key['access_key']}"))[0] == 200


@pytest.mark.parametrize("days", [0, 30, 89, 731])
async def test_a_validity_outside_90_to_730_days_is_refused(vendor, days):
    """S16: the limits of the page; the key in use stays."""
    assert (await vendor.call("POST", "/__emu/generate_key", {"validity_days": days}))[0] == 400
    assert (await vendor.call("GET", USERS))[0] == 200


async def test_the_first_key_expires_too():
    """5.6: the fixed token is a key like any other, dated at the first start."""
    emulator = SofaEmulator(rate_per_s=0, key_validity_days=100)
    emulator.advance(99 * DAY_S)
    async with running(emulator) as url, aiohttp.ClientSession(url, headers=AUTH) as session:
        vendor = Vendor(emulator, session)
        assert (await vendor.call("GET", USERS))[0] == 200
        emulator.advance(DAY_S)
        assert (await vendor.call("GET", USERS))[0] == 401
        await vendor.call("POST", "/__emu/reset")
        assert (await vendor.call("GET", USERS))[0] == 200
    with pytest.raises(ValueError, match="key_validity_days"):
        SofaEmulator(key_validity_days=30)


async def test_a_key_can_be_revoked_and_is_never_recorded(vendor):
    """5.6 faults: key revoked; S17: only a hash is kept."""
    _, key = await vendor.call("POST", "/__emu/generate_key", {"validity_days": 120})
    header = {"Authorization": f"Bearer {key['access_key']}"}
    await vendor.call("GET", USERS, **header)
    await vendor.call("POST", "/__emu/token", {"revoked": True})
    assert (await vendor.call("GET", USERS, **header))[0] == 401
    kept = json.dumps([vendor.emulator.journal.lines(), vendor.emulator.recorded(), vendor.emulator.state()])
    for secret in (key["access_key"], TOKEN):
        assert secret not in kept


# Mails, log, last call ------------------------------------------------------------------------------------------------


async def test_mails_go_out_only_on_create_and_only_when_wished(vendor):
    """S8, S9, 5.6: welcome and password mails, never on a change, a come-back or a repeat."""
    await vendor.create(1)
    assert vendor.state["mails"] == {}
    await vendor.edit(mail_to_new_users=True, mail_password_link=True)
    user = await vendor.create(2, emails=[{"type": "work", "value": "mail@example.com"}])
    path = f"{USERS}/{user['id']}"
    await vendor.call("DELETE", path)
    await vendor.patch(path, {"op": "replace", "path": "active", "value": True})
    await vendor.call("POST", USERS, a_user(2))

    mails = [(mail["kind"], mail["user_id"], mail["to"]) for mail in vendor.state["mails"].values()]
    assert mails == [("welcome", user["id"], "mail@example.com"), ("password_link", user["id"], "mail@example.com")]


async def test_a_failed_write_is_mailed_to_administrators(vendor):
    """S7: to users in the roles Administrator and Subject manager; reading failures are no failure of synchronization."""
    await vendor.edit(mail_on_failure=True, **MAPS)
    admin = await vendor.create(1)
    await vendor.group(104, [admin["id"]])

    assert (await vendor.call("GET", f"{USERS}/nobody"))[0] == 404
    assert (await vendor.call("POST", USERS, a_user(1)))[0] == 409
    assert [(mail["kind"], mail["user_id"]) for mail in vendor.state["mails"].values()] == [("failure", admin["id"])]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("Warning", ["Warning"]),
        ("Information", ["Information", "Warning"]),
        ("Debug", ["Debug", "Information", "Debug", "Warning", "Debug"]),
    ],
)
async def test_the_transaction_log_holds_what_its_level_lets_through(vendor, level, expected):
    """S13, S18: three levels; no line holds a person's attributes."""
    await vendor.edit(log_level=level)
    await vendor.create()
    await vendor.call("POST", USERS, a_user())
    await vendor.call("GET", USERS)

    assert vendor.logged == expected
    assert "example.com" not in json.dumps(vendor.state["log"])
    assert (await vendor.edit(log_level="warning"))[0] == 400


async def test_the_last_call_is_remembered(vendor):
    """S19: when the remote application last called, refused calls without a key not counted."""
    vendor.emulator.clock.freeze(True)
    assert vendor.state["last_call"] == {}
    await vendor.call("GET", USERS)
    first = vendor.state["last_call"]["at"]
    assert first == vendor.emulator.clock.now()
    vendor.emulator.advance(60)
    await vendor.call("GET", USERS, Authorization="Bearer wrong")
    assert vendor.state["last_call"]["at"] == first
    await vendor.call("GET", USERS)
    assert vendor.state["last_call"]["at"] == first + 60


# Limit, faults, restart -----------------------------------------------------------------------------------------------


async def test_the_sixth_call_in_a_second_is_429_with_retry_after():
    """5.3, assumed: 5 requests per second by the emulator's clock."""
    emulator = SofaEmulator()
    emulator.clock.freeze(True)
    async with running(emulator) as url, aiohttp.ClientSession(url, headers=AUTH) as session:
        vendor = Vendor(emulator, session)
        assert [(await vendor.call("GET", USERS))[0] for _ in range(6)] == [200] * 5 + [429]
        async with session.get(USERS) as refused:
            assert refused.headers["Retry-After"] == "1"


async def test_a_new_group_may_be_found_late(vendor):
    """5.6 faults: `stale_read` after POST /Groups: not found for a while, while a second POST is refused."""
    vendor.emulator.fault("stale_read", method="GET", path=GROUPS, lag_s=20)
    group = await vendor.group(101)
    assert await vendor.found(f'externalId eq "{object_id(101)}"', GROUPS) == []
    assert (await vendor.call("GET", f"{GROUPS}/{group['id']}"))[0] == 404
    body = {"schemas": [CORE_GROUP], "displayName": "Group 101", "externalId": object_id(101)}
    assert (await vendor.call("POST", GROUPS, body))[0] == 409
    vendor.emulator.advance(21)
    assert await vendor.found(f'externalId eq "{object_id(101)}"', GROUPS) == [group]


async def test_a_lost_answer_to_a_create_leaves_one_user_and_one_mail(vendor):
    """A3: `drop_response` on POST: found by externalId, welcomed once."""
    await vendor.edit(mail_to_new_users=True)
    vendor.emulator.fault("drop_response", method="POST", path=USERS, times=1)
    with pytest.raises(GONE):
        await vendor.create()
    assert len(await vendor.found(f'externalId eq "{object_id(1)}"')) == 1
    assert (await vendor.call("POST", USERS, a_user()))[0] == 409
    assert len(vendor.state["mails"]) == 1


async def test_everything_survives_a_restart(tmp_path):
    """Users, groups, maps, mails, log, and the day a key expires: counted from its first day, not from the restart."""
    settings = {"rate_per_s": 0, "journal_dir": tmp_path, "key_validity_days": 100}
    before = SofaEmulator(**settings)
    async with running(before) as url, aiohttp.ClientSession(url, headers=AUTH) as session:
        vendor = Vendor(before, session)
        await vendor.edit(mail_to_new_users=True, **MAPS)
        user = await vendor.create(**FULL)
        await vendor.group(101, [user["id"]])
        await vendor.call("POST", USERS, a_user())
        before.advance(60 * DAY_S)
        held = before.state()

    after = SofaEmulator(**settings)
    async with running(after) as url, aiohttp.ClientSession(url, headers=AUTH) as session:
        vendor = Vendor(after, session)
        assert {**after.state(), "now": 0} == {**held, "now": 0}
        assert after.state()["sofa_roles"]["approver"] == [user["id"]]
        assert [one["id"] for one in await vendor.found(f'externalId eq "{object_id(1)}"')] == [user["id"]]
        after.advance(39 * DAY_S)
        assert (await vendor.call("GET", USERS))[0] == 200
        after.advance(DAY_S)
        assert (await vendor.call("GET", USERS))[0] == 401


async def test_a_seed_sets_the_scene_without_counting_as_effects(vendor):
    """0.5: POST /__emu/seed with the synchronization, users made by hand and groups; wrong ones are an error of the test."""
    scene = {
        "synchronization": MAPS,
        "users": [{"user_name": "a@example.com", "job": "Boss"}, {"user_name": "b@example.com", "enabled": False}],
        "groups": [{"displayName": "S", "externalId": object_id(101), "members": ["a@example.com"]}],
    }
    status, made = await vendor.call("POST", "/__emu/seed", scene)
    assert status == 200
    assert vendor.state["sofa_groups"]["Sales"] == [made["ids"][0]]
    assert (await vendor.found('userName eq "b@example.com"'))[0]["active"] is False
    assert (vendor.ops, vendor.codes, vendor.state["mails"]) == ([], [], {})
    for wrong in (
        {"synchronization": {"log_levels": "Debug"}},
        {"users": [{"userName": "c@example.com"}]},
        {"groups": [{"displayName": "T", "members": ["nobody@example.com"]}]},
    ):
        assert (await vendor.call("POST", "/__emu/seed", wrong))[0] == 400
    assert (await vendor.call("POST", "/__emu/seed", {"users": [{"user_name": "a@example.com"}]}))[0] == 409
