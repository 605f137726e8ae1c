"""The babelforce emulator keeps the documented REST interface and the SCIM target with their quirks."""

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from deploy.emulators.babelforce import ROLES, BabelforceEmulator
from deploy.emulators.harness import running
from deploy.emulators.scim_service import CORE_USER, ERROR, PATCH_OP
from tests.emulators.calling import Caller, calling

TOKEN = "demo-token-babelforce"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
EMAIL = "rita@example.com"
INTEGRATION = "scim@example.com"
CONFIGURED = {
    "defaultRoles": [],
    "customizer": "microsoft",
    "features": {"scim": True, "groups": False, "roles": True, "password_sync": False, "phone_number_sync": False},
}
GONE = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)
USERS = "/api/v2/users"
AGENTS = "/api/v2/agents"
SCIM = "/auth/scim/v2/Users"


class Vendor(Caller[BabelforceEmulator]):
    """A plain client of the emulator: (status, decoded body)."""

    async def create(self, email: str = EMAIL, roles: Any = ("agent",), **changes: Any) -> dict[str, Any]:
        status, body = await self.call("POST", USERS, {"email": email, "roles": list(roles), **changes})
        assert status in (200, 201), body
        assert body["success"] is True
        return body["item"]

    async def user(self, email: str = EMAIL) -> dict[str, Any]:
        status, body = await self.call("GET", f"{USERS}/by-email/{email}")
        assert status == 200, body
        return body["item"]

    async def bulk(self, what: str, *emails: str, **more: Any) -> tuple[int, Any]:
        return await self.call("POST", f"{USERS}/{what}", {"emails": list(emails), **more})


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    async with calling(Vendor, BabelforceEmulator(rate_per_s=0), AUTH) as vendor:
        yield vendor


# Users ----------------------------------------------------------------------------------------------------------------


async def test_a_created_user_is_found_by_address_and_by_id(vendor):
    """2.2: POST answers 201 with item and success; by-email and the id show the same user."""
    user = await vendor.create(roles=["agent", "manager"], activated=True)

    assert set(user) == {
        *("id", "email", "enabled", "activated", "passwordExpired", "accountExpired", "accountLocked", "roles")
    }
    assert (user["email"], user["enabled"], user["activated"]) == (EMAIL, True, True)
    assert user["roles"] == ["agent", "manager"]
    assert await vendor.user() == user
    assert await vendor.call("GET", f"{USERS}/{user['id']}") == (200, {"item": user, "success": True})
    assert (await vendor.call("GET", f"{USERS}/by-email/nobody@example.com"))[0] == 404
    assert vendor.codes == []


async def test_without_activated_a_user_is_enabled_but_has_not_come_in_yet(vendor):
    """2.2, 2.3: a user to be created inactive has to be disabled after the POST; forgetting it shows."""
    user = await vendor.create()
    assert (user["enabled"], user["activated"]) == (True, False)


async def test_addresses_are_stored_in_lower_case_and_found_only_so(vendor):
    """2.6: e-mails are stored in lower case; nobody is found, enabled or given a role under another spelling."""
    user = await vendor.create("Rita@Example.COM", activated=True)
    assert user["email"] == EMAIL

    assert (await vendor.call("GET", f"{USERS}/by-email/Rita@Example.COM"))[0] == 404
    assert (await vendor.call("GET", f"{USERS}?email=Rita@Example.COM"))[1]["items"] == []
    assert (await vendor.bulk("disable", "Rita@Example.COM"))[1]["success"] is True
    assert await vendor.user() == user
    assert (await vendor.call("POST", USERS, {"email": "RITA@example.com", "roles": []}))[0] == 409


@pytest.mark.parametrize("status", [409, 400])
async def test_a_second_user_of_an_address_is_refused(vendor, status):
    """2.5: a duplicate answers 409, or 400 with that message: it is not documented which."""
    vendor.emulator.set(duplicate_status=status)
    await vendor.create()

    answered, body = await vendor.call("POST", USERS, {"email": EMAIL, "roles": []})
    assert (answered, body["code"]) == (status, "duplicate_email")
    assert "already exists" in body["message"]
    assert vendor.ops == ["create"]


async def test_a_create_may_answer_200(vendor):
    """2.2: documented 201, the live service may say 200."""
    vendor.emulator.set(create_status=200)
    status, body = await vendor.call("POST", USERS, {"email": EMAIL, "roles": []})
    assert (status, body["item"]["email"]) == (200, EMAIL)


async def test_the_list_takes_several_addresses_and_has_no_pages(vendor):
    """2.6: `?email=a&email=b` are exact; page and max are ignored, and who sends them relies on what does not exist."""
    for number in range(60):
        await vendor.create(f"u{number}@example.com", roles=[])

    _, some = await vendor.call("GET", f"{USERS}?email=u3@example.com&email=u7@example.com&email=u@example.com")
    assert [user["email"] for user in some["items"]] == ["u3@example.com", "u7@example.com"]
    assert vendor.codes == []
    _, everything = await vendor.call("GET", f"{USERS}?page=2&max=10")
    assert len(everything["items"]) == 61
    pagination = everything["pagination"]
    assert (pagination["pages"], pagination["total"], pagination["current"], pagination["next"]) == (1, 61, 1, None)
    assert vendor.codes == ["paging_ignored"]
    assert (await vendor.call("GET", f"{USERS}?q=u3"))[0] == 400
    assert vendor.codes == ["paging_ignored", "unknown_parameter"]


async def test_ids_are_written_without_hyphens(vendor):
    """2.2, 2.5: ids are 32 hex digits; the same id with hyphens is 404, and asking so is a mistake of the client."""
    user = await vendor.create()
    assert len(user["id"]) == 32
    assert user["id"] == uuid.UUID(user["id"]).hex

    assert (await vendor.call("GET", f"{USERS}/{uuid.UUID(user['id'])}"))[0] == 404
    assert vendor.codes == ["hyphenated_id"]
    assert (await vendor.call("GET", f"{USERS}/{'0' * 32}"))[0] == 404
    assert vendor.codes == ["hyphenated_id"]


async def test_a_create_needs_roles_even_if_there_are_none(vendor):
    """2.6: POST needs `roles`; an empty list is fine, a missing one is not."""
    assert (await vendor.create(roles=[]))["roles"] == []

    status, body = await vendor.call("POST", USERS, {"email": "b@example.com"})
    assert (status, body["code"]) == (400, "missing_field")
    assert vendor.codes == ["missing_field"]


@pytest.mark.parametrize("role", ["Agent", "admin", "", 7])
async def test_roles_outside_the_list_are_refused_everywhere(vendor, role):
    """2.6: roles outside the enumeration are 400, on create, grant and removal; nothing is applied."""
    await vendor.create()
    binding = {"emails": [EMAIL], "roles": ["manager", role]}

    answers = [
        await vendor.call("POST", USERS, {"email": "b@example.com", "roles": ["agent", role]}),
        await vendor.call("POST", f"{USERS}/roles", binding),
        await vendor.call("POST", f"{USERS}/roles/remove", binding),
    ]
    assert [(status, body["code"]) for status, body in answers] == [(400, "unknown_role")] * 3
    assert (await vendor.user())["roles"] == ["agent"]
    assert vendor.ops == ["create"]


async def test_roles_are_listed_added_and_removed(vendor):
    """2.2: GET roles, POST roles and roles/remove; a role somebody has or lacks already changes nothing."""
    assert await vendor.call("GET", f"{USERS}/roles") == (200, {"items": ROLES})
    await vendor.create()

    status, body = await vendor.bulk("roles", EMAIL, roles=["agent", "sales", "router"])
    assert (status, body["success"]) == (200, True)
    assert (await vendor.user())["roles"] == ["agent", "sales", "router"]
    await vendor.bulk("roles/remove", EMAIL, roles=["sales", "reporter"])
    assert (await vendor.user())["roles"] == ["agent", "router"]
    assert [effect["changed"] for effect in vendor.emulator.journal.effects()[1:]] == [["roles"], ["roles"]]
    await vendor.bulk("roles/remove", EMAIL, roles=["sales"])
    assert vendor.emulator.journal.effects()[-1]["changed"] == []


async def test_a_role_can_leave_the_vendors_list(vendor):
    """2.5: a role removed from the list is refused as not assignable."""
    vendor.emulator.set(roles=["manager", "agent"])
    status, body = await vendor.call("POST", USERS, {"email": EMAIL, "roles": ["sales"]})
    assert status == 400
    assert "not assignable" in body["message"]


async def test_enable_disable_and_delete_take_addresses(vendor):
    """2.2: the bulk calls; disabling keeps the user, deleting does not."""
    await vendor.create(activated=True)

    assert (await vendor.bulk("disable", EMAIL))[1]["success"] is True
    assert (await vendor.user())["enabled"] is False
    await vendor.bulk("enable", EMAIL)
    assert (await vendor.user())["enabled"] is True
    await vendor.bulk("reset-password", EMAIL)
    assert (await vendor.user())["passwordExpired"] is True
    await vendor.bulk("delete", EMAIL)
    assert (await vendor.call("GET", f"{USERS}/by-email/{EMAIL}"))[0] == 404
    assert vendor.ops == ["create", "disable", "enable", "reset_password", "delete"]


@pytest.mark.parametrize("what", ["disable", "enable", "delete", "roles", "roles/remove"])
async def test_an_unknown_address_is_a_success_that_does_nothing(vendor, what):
    """2.6: `success: true` for an address nobody has: only the confirming read tells."""
    await vendor.create()
    roles = {"roles": ["sales"]} if what.startswith("roles") else {}

    status, body = await vendor.bulk(what, "nobody@example.com", **roles)
    assert (status, body["success"]) == (200, True)
    assert vendor.ops == ["create"]
    assert vendor.codes == []


async def test_the_last_owner_stays_owner(vendor):
    """2.6: the last `owner` cannot lose the role, nor go; with a second one it can."""
    vendor.emulator.seed({"users": [{"email": "owner@example.com", "roles": ["owner", "agent"]}]})
    assert (await vendor.bulk("roles/remove", "owner@example.com", roles=["owner"]))[1]["code"] == "last_owner"
    assert (await vendor.bulk("delete", "owner@example.com"))[1]["code"] == "last_owner"
    assert (await vendor.bulk("roles/remove", "owner@example.com", roles=["agent"]))[0] == 200

    vendor.emulator.seed({"users": [{"email": "second@example.com", "roles": ["owner"]}]})
    assert (await vendor.bulk("delete", "owner@example.com"))[0] == 200
    assert (await vendor.bulk("roles/remove", "second@example.com", roles=["owner"]))[0] == 400


@pytest.mark.parametrize(
    ("path", "body", "violation"),
    [
        (USERS, {"email": EMAIL, "roles": [], "name": "R"}, "unknown_field"),
        (USERS, {"Email": EMAIL, "roles": []}, "wrong_case"),
        (USERS, {"email": EMAIL, "roles": "agent"}, "wrong_type"),
        (USERS, {"email": EMAIL, "roles": [], "activated": "True"}, "wrong_type"),
        (USERS, {"roles": []}, "missing_field"),
        (f"{USERS}/enable", {"email": EMAIL}, "unknown_field"),
        (f"{USERS}/enable", {"emails": EMAIL}, "wrong_type"),
        (f"{USERS}/disable", {"emails": []}, "wrong_type"),
        (f"{USERS}/roles", {"emails": [EMAIL]}, "missing_field"),
        (f"{USERS}/roles", {"emails": [EMAIL], "role": ["agent"]}, "unknown_field"),
        (AGENTS, {"displayName": "Rita"}, "unknown_field"),
        (AGENTS, {"email": EMAIL}, "missing_field"),
    ],
)
async def test_a_malformed_body_is_refused_and_is_a_violation(vendor, path, body, violation):
    """0.5: unknown fields, wrong case, wrong types and missing fields fail the test that sends them."""
    status, answered = await vendor.call("POST", path, body)

    assert (status, answered["code"]) == (400, violation)
    assert vendor.codes == [violation]
    assert vendor.ops == []


async def test_bodies_must_be_sent_as_json(vendor):
    """0.5: the content type is enforced."""
    async with vendor.session.post(USERS, data=b"email=a", headers={"Content-Type": "text/plain"}) as answer:
        assert answer.status == 415
    assert vendor.codes == ["content_type"]


async def test_a_password_is_taken_noted_and_never_recorded_as_an_effect(vendor):
    """B18: provisioning sends no passwords; the vendor would take one."""
    await vendor.create(password="never-to-be-sent")
    assert vendor.codes == ["password_sent"]
    assert "never-to-be-sent" not in json.dumps(vendor.emulator.journal.lines())


@pytest.mark.parametrize("key", ["message", "error", "detail"])
async def test_errors_hold_their_text_under_one_of_three_names(vendor, key):
    """2.2: JSON with an optional `code` and one of `message`, `error`, `detail`."""
    vendor.emulator.set(error_key=key)
    _, body = await vendor.call("GET", f"{USERS}/by-email/nobody@example.com")
    assert set(body) == {"code", key}


# The integration user, credentials ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "more"), [("disable", {}), ("enable", {}), ("roles", {"roles": ["agent"]}), ("delete", {})]
)
async def test_a_write_to_the_integration_user_is_recorded_as_a_mistake(vendor, what, more):
    """B1, 2.6: the user dedicated to the integration is never changed, disabled or deleted by a correct client."""
    assert (await vendor.bulk(what, INTEGRATION, **more))[0] == 200
    assert vendor.codes == ["integration_user_written"]


@pytest.mark.parametrize("what", ["disable", "delete"])
async def test_without_the_integration_user_the_token_is_dead(vendor, what):
    """2.5: 401 when the user of B1 is disabled; the token can be given back by hand."""
    await vendor.bulk(what, INTEGRATION)
    assert (await vendor.call("GET", USERS))[0] == 401
    await vendor.call("POST", "/__emu/token", {"revoked": False})
    assert (await vendor.call("GET", USERS))[0] == 200


async def test_the_former_pair_of_headers_is_no_longer_accepted(vendor):
    """2.2: X-Auth-Access-Id and X-Auth-Access-Token are answered 401, as is a wrong bearer."""
    pair = {"Authorization": "", "X-Auth-Access-Id": "id", "X-Auth-Access-Token": TOKEN}
    status, body = await vendor.call("GET", USERS, **pair)
    assert status == 401
    assert "no longer accepted" in body["message"]
    status, body = await vendor.call("GET", USERS, Authorization="Bearer wrong")
    assert (status, body["code"]) == (401, "unauthorized")
    assert (await vendor.call("GET", USERS, Authorization=TOKEN))[0] == 401


async def grant(vendor: Vendor, **form: str) -> tuple[int, Any]:
    asked = {"grant_type": "password", "client_id": "manager", **form}
    async with vendor.session.post("/oauth/token", data=asked) as answer:
        return answer.status, await answer.json()


async def test_a_password_grant_gives_a_token_that_expires_and_a_refresh_token_that_rotates(vendor):
    """2.2: grants at /oauth/token; each refresh token works once."""
    login = {"username": INTEGRATION, "password": "demo-password-babelforce"}
    status, issued = await grant(vendor, **login)
    assert (status, issued["token_type"]) == (200, "bearer")
    header = {"Authorization": f"Bearer {issued['access_token']}"}
    assert (await vendor.call("GET", USERS, **header))[0] == 200

    vendor.emulator.advance(issued["expires_in"] + 1)
    assert (await vendor.call("GET", USERS, **header))[0] == 401
    refresh = {"grant_type": "refresh_token", "refresh_token": issued["refresh_token"]}
    status, again = await grant(vendor, **refresh)
    assert status == 200
    assert (await vendor.call("GET", USERS, Authorization=f"Bearer {again['access_token']}"))[0] == 200
    assert (await vendor.call("GET", USERS, Authorization=f"Bearer {again['refresh_token']}"))[0] == 401
    assert (await grant(vendor, **refresh))[1]["error"] == "invalid_grant"
    kept = json.dumps([vendor.emulator.journal.lines(), vendor.emulator.recorded(), vendor.emulator.state()])
    for secret in (issued["access_token"], issued["refresh_token"], login["password"], TOKEN):
        assert secret not in kept


@pytest.mark.parametrize(
    ("form", "status", "error"),
    [
        ({"username": INTEGRATION, "password": "wrong"}, 400, "invalid_grant"),
        ({"username": "nobody@example.com", "password": "demo-password-babelforce"}, 400, "invalid_grant"),
        ({"client_id": "other"}, 401, "invalid_client"),
        ({"grant_type": "client_credentials"}, 400, "unauthorized_client"),
        ({"grant_type": "authorization_code"}, 400, "unsupported_grant_type"),
        ({"scope": "all"}, 400, "invalid_request"),
    ],
)
async def test_a_wrong_grant_is_refused(vendor, form, status, error):
    """2.2: grant errors hold `error` and `error_description`."""
    answered, body = await grant(vendor, **form)
    assert (answered, body["error"]) == (status, error)
    assert set(body) == {"error", "error_description"}


# Agents ---------------------------------------------------------------------------------------------------------------


async def test_an_agent_belongs_to_the_user_of_its_login(vendor):
    """2.2: `User.agent` names the agent whose email is the user's login; it goes with the agent."""
    await vendor.create()
    status, body = await vendor.call("POST", AGENTS, {"name": "Rita", "email": EMAIL})
    assert status == 201
    agent = body["item"]

    assert (await vendor.user())["agent"] == {"uuid": agent["id"], "type": "agent", "sourceId": ""}
    assert (await vendor.call("GET", f"{AGENTS}/{agent['id']}"))[1]["item"] == agent
    vendor.emulator.set(hyphenated_agent_ids=True)
    assert (await vendor.user())["agent"]["uuid"] == str(uuid.UUID(agent["id"]))
    assert (await vendor.call("GET", f"{AGENTS}/{uuid.UUID(agent['id'])}"))[0] == 404
    assert vendor.codes == ["hyphenated_id"]
    assert (await vendor.call("DELETE", f"{AGENTS}/{agent['id']}"))[0] == 200
    assert "agent" not in await vendor.user()


async def test_a_put_of_an_agent_forgets_what_is_not_sent(vendor):
    """A4, strict reading: what was read can be put back with a new name; a name alone loses the login."""
    made = {"name": "Rita", "email": EMAIL, "number": "100", "groups": [], "tags": ["x"]}
    agent = (await vendor.call("POST", AGENTS, made))[1]["item"]
    path = f"{AGENTS}/{agent['id']}"

    status, body = await vendor.call("PUT", path, {**agent, "name": "New"})
    assert (status, body["item"]) == (200, {**agent, "name": "New"})
    assert vendor.emulator.journal.effects()[-1]["changed"] == ["name"]
    _, body = await vendor.call("PUT", path, {"name": "Newer"})
    assert (body["item"]["email"], body["item"]["number"], body["item"]["tags"]) == (None, None, [])
    assert (await vendor.call("PUT", path, body["item"]))[0] == 200
    assert (await vendor.call("PUT", path, {"email": EMAIL}))[1]["code"] == "missing_field"
    assert (await vendor.call("PUT", path, {"name": "N", "id": "0" * 32}))[1]["code"] == "wrong_id"


async def test_agents_are_listed_by_page_and_by_text(vendor):
    """2.2: the list of agents has page, max and q, unlike the list of users."""
    vendor.emulator.seed({"agents": [{"name": f"Agent {number}"} for number in range(5)]})
    vendor.emulator.seed({"agents": [{"name": "Rita", "email": EMAIL}]})

    _, page = await vendor.call("GET", f"{AGENTS}?page=2&max=4")
    assert [agent["name"] for agent in page["items"]] == ["Agent 4", "Rita"]
    pagination = page["pagination"]
    assert (pagination["pages"], pagination["total"], pagination["current"], pagination["next"]) == (2, 6, 2, None)
    _, found = await vendor.call("GET", f"{AGENTS}?q=RITA@")
    assert [agent["name"] for agent in found["items"]] == ["Rita"]
    assert (await vendor.call("POST", AGENTS, {"name": "Twin", "email": EMAIL}))[0] == 409


# SCIM -----------------------------------------------------------------------------------------------------------------


def scim_user(email: str = EMAIL, roles: Any = ("agent",), **changes: Any) -> dict[str, Any]:
    body = {"schemas": [CORE_USER], "userName": email, "active": True, "displayName": "Rita", **changes}
    if roles is not None:
        body["roles"] = [{"value": role} for role in roles]
    return body


@pytest.fixture
async def scim(vendor: Vendor) -> Vendor:
    assert (await vendor.call("PUT", "/auth/scim/v2/configuration", CONFIGURED))[0] == 200
    return vendor


async def patch(vendor: Vendor, user_id: str, *operations: Any) -> tuple[int, Any]:
    return await vendor.call("PATCH", f"{SCIM}/{user_id}", {"schemas": [PATCH_OP], "Operations": list(operations)})


async def test_scim_is_off_until_the_document_switches_it_on(vendor):
    """B3, B4: the document is read and written whole, JSON in and out; before that SCIM is 403."""
    status, body = await vendor.call("GET", SCIM)
    assert (status, body["schemas"]) == (403, [ERROR])
    _, first = await vendor.call("GET", "/auth/scim/v2/configuration")
    assert first["features"]["scim"] is False

    assert await vendor.call("PUT", "/auth/scim/v2/configuration", CONFIGURED) == (200, CONFIGURED)
    assert await vendor.call("GET", "/auth/scim/v2/configuration") == (200, CONFIGURED)
    assert (await vendor.call("GET", SCIM))[0] == 200
    assert vendor.ops == ["configure"]


@pytest.mark.parametrize(
    ("change", "violation"),
    [
        ({"passwords": True}, "unknown_field"),
        ({"Customizer": "microsoft"}, "wrong_case"),
        ({"features": {**CONFIGURED["features"], "passwordSync": False}}, "unknown_field"),
        ({"features": {"scim": True}}, "missing_field"),
        ({"features": {**CONFIGURED["features"], "scim": "True"}}, "wrong_type"),
        ({"defaultRoles": ["wizard"]}, None),
    ],
)
async def test_only_the_exact_document_is_accepted(vendor, change, violation):
    """B4: no other field, every field, known roles."""
    status, _ = await vendor.call("PUT", "/auth/scim/v2/configuration", {**CONFIGURED, **change})
    assert status == 400
    assert vendor.codes == ([violation] if violation else [])
    assert vendor.ops == []


async def test_a_user_made_over_scim_is_the_user_of_the_rest_api(scim):
    """2.3: both targets show one user: userName is the login in lower case, roles are objects with a value."""
    status, made = await scim.call("POST", SCIM, scim_user("Rita@Example.com", ["agent", "sales"]))
    assert status == 201
    assert made["userName"] == EMAIL
    assert made["roles"] == [{"value": "agent"}, {"value": "sales"}]

    user = await scim.user()
    assert (user["id"], user["roles"], user["enabled"]) == (made["id"], ["agent", "sales"], True)
    assert "displayName" not in user
    _, listed = await scim.call("GET", f'{SCIM}?filter=userName eq "RITA@example.com"')
    assert listed["Resources"] == [made]
    assert (await scim.call("POST", SCIM, scim_user()))[1]["scimType"] == "uniqueness"
    assert scim.codes == []


async def test_scim_renames_a_login_and_holds_a_display_name(scim):
    """2.2: the two things that the REST API cannot do."""
    user = await scim.create(activated=True)
    operations = [
        {"op": "replace", "path": "userName", "value": "new@example.com"},
        {"op": "replace", "path": "displayName", "value": "New"},
        {"op": "replace", "path": "active", "value": False},
    ]
    status, after = await patch(scim, user["id"], *operations)
    assert (status, after["userName"], after["displayName"], after["active"]) == (200, "new@example.com", "New", False)
    assert (await scim.user("new@example.com"))["enabled"] is False
    assert (await scim.call("GET", f"{USERS}/by-email/{EMAIL}"))[0] == 404


async def test_a_list_of_roles_is_the_whole_truth(scim):
    """B19: replace takes away what is not in the list; add and remove by value change only what they name."""
    user = await scim.create(roles=["agent", "manager"])

    _, after = await patch(scim, user["id"], {"op": "replace", "path": "roles", "value": [{"value": "sales"}]})
    assert after["roles"] == [{"value": "sales"}]
    await patch(scim, user["id"], {"op": "add", "path": "roles", "value": [{"value": "agent"}, {"value": "sales"}]})
    assert (await scim.user())["roles"] == ["sales", "agent"]
    await patch(scim, user["id"], {"op": "remove", "path": 'roles[value eq "sales"]'})
    assert (await scim.user())["roles"] == ["agent"]
    await patch(scim, user["id"], {"op": "replace", "path": "roles", "value": []})
    assert (await scim.user())["roles"] == []
    status, body = await patch(scim, user["id"], {"op": "add", "path": "roles", "value": [{"value": "wizard"}]})
    assert (status, body["scimType"]) == (400, "invalidValue")


async def test_default_roles_apply_to_a_new_user_without_any(vendor):
    """2.4, assumed: defaultRoles on create and only when none came; with roles switched off they are not managed."""
    document = {**CONFIGURED, "defaultRoles": ["agent"]}
    await vendor.call("PUT", "/auth/scim/v2/configuration", document)
    assert (await vendor.call("POST", SCIM, scim_user("a@example.com", None)))[1]["roles"] == [{"value": "agent"}]
    assert (await vendor.call("POST", SCIM, scim_user("b@example.com", ["sales"])))[1]["roles"] == [{"value": "sales"}]

    off = {**document, "features": {**CONFIGURED["features"], "roles": False}}
    await vendor.call("PUT", "/auth/scim/v2/configuration", off)
    assert "roles" not in (await vendor.call("POST", SCIM, scim_user("c@example.com")))[1]


@pytest.mark.parametrize(
    ("change", "violation"),
    [
        ({"externalId": "1"}, "unknown_field"),
        ({"password": "x"}, "unknown_field"),
        ({"phoneNumbers": []}, "unknown_field"),
        ({"username": EMAIL}, "wrong_case"),
        ({"active": "True"}, "wrong_type"),
        ({"roles": ["agent"]}, "wrong_type"),
        ({"roles": [{"value": "agent", "scope": "x"}]}, "unknown_field"),
        ({"userName": None}, "missing_field"),
        ({"schemas": []}, "schemas"),
    ],
)
async def test_scim_takes_four_attributes_and_nothing_else(scim, change, violation):
    """B10, B18: userName, active, displayName and roles; never passwords or phone numbers."""
    assert (await scim.call("POST", SCIM, {**scim_user(), **change}))[0] == 400
    assert scim.codes == [violation]


async def test_there_are_no_groups_over_scim(scim):
    """B9: babelforce has no SCIM groups."""
    assert (await scim.call("GET", "/auth/scim/v2/Groups"))[0] == 404
    assert scim.codes == ["unknown_path"]


async def test_a_deleted_user_is_gone_and_an_inactive_one_may_be(scim):
    """2.2: in the vendor's Okta guide a deactivated user is removed; without that switch it stays."""
    user = await scim.create()
    other = await scim.create("other@example.com")
    switch_off = {"op": "replace", "path": "active", "value": False}
    assert await scim.call("DELETE", f"{SCIM}/{user['id']}") == (204, None)
    assert (await scim.call("GET", f"{SCIM}/{user['id']}"))[0] == 404
    assert (await scim.call("DELETE", f"{SCIM}/{user['id']}"))[0] == 404

    assert (await patch(scim, other["id"], switch_off))[1]["active"] is False
    assert (await scim.call("GET", f"{SCIM}/{other['id']}"))[0] == 200
    scim.emulator.set(scim_removes_inactive=True)
    assert (await patch(scim, other["id"], switch_off))[1]["active"] is False
    assert (await scim.call("GET", f"{SCIM}/{other['id']}"))[0] == 404


async def test_the_integration_user_and_the_last_owner_are_guarded_over_scim_too(scim):
    """B1, 2.6: the same rules on both targets."""
    made = scim.emulator.seed({"users": [{"email": "owner@example.com", "roles": ["owner"]}]})
    (owner_id,) = made["ids"]
    assert (await patch(scim, owner_id, {"op": "remove", "path": "roles"}))[0] == 400
    assert (await scim.call("DELETE", f"{SCIM}/{owner_id}"))[0] == 400

    integration = await scim.user(INTEGRATION)
    assert (await scim.call("DELETE", f"{SCIM}/{integration['id']}"))[0] == 204
    assert scim.codes == ["integration_user_written"]
    assert (await scim.call("GET", SCIM))[0] == 401


# Limit, faults, restart -----------------------------------------------------------------------------------------------


async def test_the_sixth_call_in_a_second_is_429_with_retry_after():
    """2.5, assumed: 5 requests per second by the emulator's clock."""
    emulator = BabelforceEmulator()
    emulator.clock.freeze(True)
    async with running(emulator) as url, aiohttp.ClientSession(url, headers=AUTH) as session:
        vendor = Vendor(emulator, session)
        assert [(await vendor.call("GET", f"{USERS}/roles"))[0] for _ in range(6)] == [200] * 5 + [429]
        async with session.get(f"{USERS}/roles") as refused:
            assert refused.headers["Retry-After"] == "1"


async def test_a_call_can_be_answered_with_success_false(vendor):
    """2.6 faults: 200 with `success` false and nothing done."""
    await vendor.create(activated=True)
    refused = {"success": False, "message": "not now"}
    vendor.emulator.fault("status", path=f"{USERS}/disable$", status=200, body=refused, times=2)

    assert [await vendor.bulk("disable", EMAIL) for _ in range(2)] == [(200, refused)] * 2
    assert (await vendor.user())["enabled"] is True
    assert (await vendor.bulk("disable", EMAIL))[1]["success"] is True
    assert (await vendor.user())["enabled"] is False


async def test_a_new_user_is_missing_from_stale_reads(vendor):
    """2.6 faults: `stale_read` after create: by-email says 404, the list is empty, a second POST is refused."""
    vendor.emulator.fault("stale_read", method="GET", lag_s=20)
    user = await vendor.create()

    assert (await vendor.call("GET", f"{USERS}/by-email/{EMAIL}"))[0] == 404
    assert (await vendor.call("GET", f"{USERS}?email={EMAIL}"))[1]["items"] == []
    assert (await vendor.call("GET", f"{USERS}/{user['id']}"))[0] == 404
    assert (await vendor.call("POST", USERS, {"email": EMAIL, "roles": []}))[0] == 409
    vendor.emulator.advance(21)
    assert await vendor.user() == user


async def test_a_lost_answer_to_a_create_leaves_one_user(vendor):
    """2.6 faults: `drop_response` on POST: the look-up by address finds what was made."""
    vendor.emulator.fault("drop_response", method="POST", times=1)

    with pytest.raises(GONE):
        await vendor.create()
    assert (await vendor.user())["roles"] == ["agent"]
    assert vendor.ops == ["create"]


async def test_users_agents_and_the_document_survive_a_restart(tmp_path):
    """The vendor remembers users, links, the configuration, issued tokens, and that its own token is dead."""
    settings = {"rate_per_s": 0, "journal_dir": tmp_path}
    before = BabelforceEmulator(**settings)
    async with running(before) as url, aiohttp.ClientSession(url, headers=AUTH) as session:
        vendor = Vendor(before, session)
        await vendor.call("PUT", "/auth/scim/v2/configuration", CONFIGURED)
        user = await vendor.create(roles=["agent"])
        await vendor.call("POST", AGENTS, {"name": "Rita", "email": EMAIL})
        await patch(vendor, user["id"], {"op": "replace", "path": "displayName", "value": "Rita"})
        await vendor.bulk("delete", INTEGRATION)
        held = before.state()

    after = BabelforceEmulator(**settings)
    async with running(after) as url, aiohttp.ClientSession(url, headers=AUTH) as session:
        vendor = Vendor(after, session)
        assert {**after.state(), "now": 0} == {**held, "now": 0}
        assert (await vendor.call("GET", USERS))[0] == 401
        after.revoke_token(revoked=False)
        assert (await vendor.user())["agent"]["type"] == "agent"
        _, listed = await vendor.call("GET", f'{SCIM}?filter=userName eq "{EMAIL}"')
        assert [one["displayName"] for one in listed["Resources"]] == ["Rita"]
        assert vendor.codes == ["integration_user_written"]
        assert (await vendor.call("POST", USERS, {"email": EMAIL, "roles": []}))[0] == 409


async def test_a_wrong_seed_is_refused(vendor):
    """A seed with unknown fields, taken addresses or unknown roles is an error of the test."""
    for wrong in (
        {"user": []},
        {"users": [{"mail": EMAIL}]},
        {"users": [{"email": INTEGRATION.upper()}]},
        {"users": [{"email": EMAIL, "roles": ["wizard"]}]},
        {"configuration": {}},
    ):
        assert (await vendor.call("POST", "/__emu/seed", wrong))[0] == 400
    status, made = await vendor.call("POST", "/__emu/seed", {"users": [{"email": EMAIL, "enabled": False}]})
    assert status == 200
    assert (await vendor.user())["id"] == made["ids"][0]
    assert (await vendor.user())["enabled"] is False
    assert vendor.ops == []
