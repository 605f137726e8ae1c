"""The Talkdesk emulator keeps the documented interface with its quirks."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from deploy.emulators.harness import running
from deploy.emulators.talkdesk import CORE, ERROR, EXTENSION, LIST, PATCH_OP, TalkdeskEmulator
from tests.emulators.calling import ScimCaller, calling

TOKEN = "demo-token-talkdesk"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
CLIENT = "Basic " + base64.b64encode(b"demo-client:demo-secret-talkdesk").decode()
USER_NAME = "rita@example.com"
GONE = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


def a_user(
    user_name: str = USER_NAME, *, roles: str | None = None, teams: str | None = None, **changes: Any
) -> dict[str, Any]:
    """A SCIM user as the vendor documents it; a change to None leaves the field out."""
    body: dict[str, Any] = {
        "schemas": [CORE, EXTENSION],
        "userName": user_name,
        "externalId": "8f1c",
        "active": True,
        "name": {"givenName": "Given", "familyName": "Family"},
        EXTENSION: {
            name: value for name, value in (("rolesString", roles), ("teamsString", teams)) if value is not None
        },
        **changes,
    }
    return {name: value for name, value in body.items() if value is not None}


class Vendor(ScimCaller[TalkdeskEmulator]):
    """A plain client of the emulator: (status, decoded body)."""

    async def create(self, *args: Any, **changes: Any) -> dict[str, Any]:
        status, body = await self.call("POST", "/scim/v2/Users", a_user(*args, **changes))
        assert status == 201, body
        return body

    async def token(self, authorization: str = CLIENT, **form: str) -> tuple[int, Any]:
        asked = {"grant_type": "client_credentials", "token_type": "opaque", "scope": "scim", **form}
        async with self.session.post("/oauth/token", data=asked, headers={"Authorization": authorization}) as answer:
            return answer.status, await answer.json()


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    async with calling(Vendor, TalkdeskEmulator(rate_per_s=0), AUTH) as vendor:
        yield vendor


# SCIM users -----------------------------------------------------------------------------------------------------------


async def test_a_created_user_comes_back_with_id_and_meta(vendor):
    """1.2: POST answers 201 with the same values, id and meta; GET and the filter show the same resource."""
    user = await vendor.create(roles="Agent;Supervisor", teams="Porto")

    assert user[EXTENSION] == {"rolesString": "Agent;Supervisor", "teamsString": "Porto"}
    assert (user["userName"], user["active"], user["externalId"]) == (USER_NAME, True, "8f1c")
    assert set(user["meta"]) == {"created", "lastModified", "resourceType", "location", "version"}
    async with vendor.session.get(user["meta"]["location"]) as answer:
        assert answer.content_type == "application/scim+json"
        assert await answer.json(content_type=None) == user
    assert await vendor.found(f'userName eq "{USER_NAME}"') == [user]
    assert vendor.codes == []


async def test_users_are_filtered_by_user_name_ignoring_case_and_by_external_id(vendor):
    """1.2, 1.5: userName compares ignoring case, externalId exactly; no match is an empty list."""
    user = await vendor.create()

    assert await vendor.found('userName eq "RITA@Example.com"') == [user]
    assert await vendor.found('externalId eq "8f1c"') == [user]
    assert await vendor.found('externalId eq "8F1C"') == []
    assert await vendor.found('userName eq "3ab5ba2b-7e0c-4a4c-9a5a-2f6d4c3f0a11"') == []


@pytest.mark.parametrize(
    "text", ['userName co "a"', 'title eq "x"', "userName eq rita", 'userName eq "a" and active eq true']
)
async def test_other_filters_are_refused(vendor, text):
    """1.2: only equality is offered; anything else is 400 invalidFilter."""
    async with vendor.session.get("/scim/v2/Users", params={"filter": text}) as answer:
        assert answer.status == 400
        assert (await answer.json(content_type=None))["scimType"] == "invalidFilter"


async def test_the_list_is_paged_from_one(vendor):
    """1.2: startIndex, count, itemsPerPage, totalResults."""
    vendor.emulator.seed({"users": [{"userName": f"u{number}@example.com"} for number in range(5)]})

    _, page = await vendor.call("GET", "/scim/v2/Users?startIndex=3&count=2")
    assert page["schemas"] == [LIST]
    assert (page["totalResults"], page["startIndex"], page["itemsPerPage"]) == (5, 3, 2)
    assert [user["userName"] for user in page["Resources"]] == ["u2@example.com", "u3@example.com"]
    _, page = await vendor.call("GET", "/scim/v2/Users?startIndex=9")
    assert (page["totalResults"], page["Resources"]) == (5, [])


async def test_a_user_name_is_unique_ignoring_case(vendor):
    """1.2 INF: a second user of the same address is 409 uniqueness, on POST and on PUT."""
    await vendor.create()
    other = await vendor.create("other@example.com")

    status, body = await vendor.call("POST", "/scim/v2/Users", a_user("Rita@EXAMPLE.com"))
    assert (status, body["schemas"], body["status"], body["scimType"]) == (409, [ERROR], "409", "uniqueness")
    assert (await vendor.call("PUT", f"/scim/v2/Users/{other['id']}", a_user()))[0] == 409
    assert vendor.ops == ["create", "create"]


async def test_without_a_role_a_new_user_is_agent_and_without_a_team_has_none(vendor):
    """T14, T16, T8: the vendor's defaults for what was not sent."""
    for number, changes in enumerate(({}, {"roles": ""}, {EXTENSION: None, "schemas": [CORE]})):
        user = await vendor.create(f"u{number}@example.com", **{"active": None, **changes})
        assert user[EXTENSION] == {"rolesString": "Agent", "teamsString": ""}
        assert user["active"] is True


@pytest.mark.parametrize(
    "roles", ["agent", "Agent; Supervisor", "Superviser", "Agent,Supervisor", "Agent;", "Legacy Agent", "billing"]
)
async def test_a_role_must_be_named_exactly_and_be_active(vendor, roles):
    """1.5: names are exact and case-sensitive, so an unresolved name is refused with invalidValue."""
    status, body = await vendor.call("POST", "/scim/v2/Users", a_user(roles=roles))

    assert (status, body["scimType"]) == (400, "invalidValue")
    assert "Role '" in body["detail"]
    assert vendor.ops == []


@pytest.mark.parametrize("teams", ["porto", "Sao Paulo", "Sa\u0303o Paulo", "Tier\u20111", "Porto ;Tier-1"])
async def test_a_team_must_be_named_exactly(vendor, teams):
    """1.5: accents, hyphens and blanks count."""
    status, body = await vendor.call("POST", "/scim/v2/Users", a_user(teams=teams))

    assert (status, body["scimType"]) == (400, "invalidValue")
    assert "Team '" in body["detail"]


@pytest.mark.parametrize(
    ("roles", "teams"), [("BILLING", "Ops & QA"), ("Billing;Team Lead", "São Paulo;Lisbon Support")]
)
async def test_exact_names_are_accepted(vendor, roles, teams):
    """1.3: the catalogue's names as they stand, several joined with a semicolon."""
    assert (await vendor.create(roles=roles, teams=teams))[EXTENSION] == {"rolesString": roles, "teamsString": teams}


async def test_put_forgets_what_it_does_not_name(vendor):
    """1.5: PUT replaces everything: role back to Agent, team and externalId cleared. This catches forgotten merges."""
    user = await vendor.create(roles="Supervisor", teams="Porto")

    status, after = await vendor.call("PUT", f"/scim/v2/Users/{user['id']}", a_user(externalId=None, active=None))
    assert status == 200
    assert after[EXTENSION] == {"rolesString": "Agent", "teamsString": ""}
    assert "externalId" not in after
    assert after["id"] == user["id"]
    assert after["meta"]["version"] != user["meta"]["version"]
    changed = vendor.emulator.journal.effects(op="update")[0]["changed"]
    assert changed == ["externalId", "rolesString", "teamsString"]


async def test_what_was_read_can_be_put_back(vendor):
    """A4: read, merge, write: the resource as read, id and meta included, is a valid PUT that changes nothing."""
    user = await vendor.create(roles="Supervisor", teams="Porto")

    assert await vendor.call("PUT", f"/scim/v2/Users/{user['id']}", user) == (200, user)
    assert vendor.emulator.journal.effects(op="update")[0]["changed"] == []
    status, body = await vendor.call("PUT", f"/scim/v2/Users/{user['id']}", {**user, "id": "another"})
    assert (status, body["scimType"]) == (400, "mutability")
    assert vendor.codes == ["mutability"]


async def test_a_rename_frees_the_old_address(vendor):
    """1.2: PUT changes userName; the old one is free, the new one found."""
    user = await vendor.create()
    await vendor.call("PUT", f"/scim/v2/Users/{user['id']}", a_user("new@example.com"))

    assert await vendor.found(f'userName eq "{USER_NAME}"') == []
    assert [found["id"] for found in await vendor.found('userName eq "new@example.com"')] == [user["id"]]
    await vendor.create()


async def test_a_deleted_user_is_gone_from_scim_but_listed_as_inactive(vendor):
    """1.5: DELETE is 204, then 404 in SCIM; `/users` still shows the user with active false; the address is free."""
    user = await vendor.create()
    path = f"/scim/v2/Users/{user['id']}"
    assert await vendor.call("DELETE", path) == (204, None)

    assert await vendor.found(f'userName eq "{USER_NAME}"') == []
    assert await vendor.found('externalId eq "8f1c"') == []
    answers = [
        (await vendor.call(method, path, body))[0]
        for method, body in (("GET", None), ("PUT", a_user()), ("DELETE", None))
    ]
    assert answers == [404, 404, 404]
    assert (await vendor.call("GET", f"/users/{user['id']}"))[1]["active"] is False
    assert (await vendor.create())["id"] != user["id"]
    assert vendor.ops == ["create", "delete", "create"]


@pytest.mark.parametrize(
    ("change", "violation", "scim_type"),
    [
        ({"title": "Dr"}, "unknown_field", "invalidSyntax"),
        ({"id": "x"}, "unknown_field", "invalidSyntax"),
        ({"username": "x@example.com"}, "wrong_case", "invalidSyntax"),
        ({"name": {"givenName": "G", "familyName": "F", "honorificPrefix": "Dr"}}, "unknown_field", "invalidSyntax"),
        ({"name": {"givenname": "G", "familyName": "F"}}, "wrong_case", "invalidSyntax"),
        ({"name": {"givenName": "G"}}, "missing_field", "invalidValue"),
        ({"name": {"givenName": " ", "familyName": "F"}}, "missing_field", "invalidValue"),
        ({"userName": None}, "missing_field", "invalidValue"),
        ({"active": "True"}, "wrong_type", "invalidValue"),
        ({EXTENSION: {"RolesString": "Agent"}}, "wrong_case", "invalidSyntax"),
        ({EXTENSION: {"roles": "Agent"}}, "unknown_field", "invalidSyntax"),
        ({EXTENSION: {"rolesString": ["Agent"]}}, "wrong_type", "invalidValue"),
        ({"schemas": [CORE]}, "schemas", "invalidSyntax"),
        ({"schemas": [CORE, EXTENSION, "urn:example:other"]}, "schemas", "invalidSyntax"),
    ],
)
async def test_a_malformed_user_is_refused_and_is_a_violation(vendor, change, violation, scim_type):
    """0.5, T6, T7: unknown and misspelled fields, wrong types and missing fields fail the test that sends them."""
    status, body = await vendor.call("POST", "/scim/v2/Users", a_user(**change))

    assert (status, body["scimType"]) == (400, scim_type)
    assert vendor.codes == [violation]
    assert vendor.ops == []


async def test_the_user_name_must_be_an_address(vendor):
    """1.2: userName is the user's e-mail."""
    status, body = await vendor.call("POST", "/scim/v2/Users", a_user("rita"))
    assert (status, body["scimType"]) == (400, "invalidValue")


async def test_scim_bodies_may_come_as_either_json_type_and_no_other(vendor):
    """0.5: the content type is enforced."""
    status, _ = await vendor.call("POST", "/scim/v2/Users", a_user(), **{"Content-Type": "application/json"})
    assert status == 201
    status, _ = await vendor.call("POST", "/scim/v2/Users", a_user("b@example.com"), **{"Content-Type": "text/plain"})
    assert status == 415
    assert vendor.codes == ["content_type"]


async def test_groups_do_not_exist(vendor):
    """1.2: only the User resource; a Groups call is 404 and a violation."""
    assert (await vendor.call("GET", "/scim/v2/Groups"))[0] == 404
    assert vendor.codes == ["unknown_path"]


# Licences -------------------------------------------------------------------------------------------------------------


async def test_without_a_licence_a_user_is_stored_inactive_and_answered_201(vendor):
    """1.2, 1.5: an empty licence pool is no error; a deactivation gives the licence back."""
    vendor.emulator.set(licences=1)
    first = await vendor.create()
    second = await vendor.create("second@example.com")
    assert (first["active"], second["active"]) == (True, False)
    put = f"/scim/v2/Users/{second['id']}"
    assert (await vendor.call("PUT", put, a_user("second@example.com")))[1]["active"] is False

    assert (await vendor.call("PUT", f"/scim/v2/Users/{first['id']}", a_user(active=False)))[1]["active"] is False
    assert (await vendor.call("PUT", put, a_user("second@example.com")))[1]["active"] is True
    assert (await vendor.call("DELETE", put))[0] == 204
    assert (await vendor.call("PUT", f"/scim/v2/Users/{first['id']}", a_user()))[1]["active"] is True


# PATCH, configuration -------------------------------------------------------------------------------------------------


async def test_patch_is_off_until_switched_on(vendor):
    """1.2, 1.5: ServiceProviderConfig tells whether PATCH may be used; using it anyway is a violation."""
    user = await vendor.create()
    patch = {"schemas": [PATCH_OP], "Operations": [{"op": "replace", "path": "active", "value": False}]}
    assert (await vendor.call("GET", "/scim/v2/ServiceProviderConfig"))[1]["patch"] == {"supported": False}
    assert (await vendor.call("PATCH", f"/scim/v2/Users/{user['id']}", patch))[0] == 501
    assert vendor.codes == ["patch_unsupported"]

    vendor.emulator.set(patch=True)
    assert (await vendor.call("GET", "/scim/v2/ServiceProviderConfig"))[1]["patch"] == {"supported": True}
    status, after = await vendor.call("PATCH", f"/scim/v2/Users/{user['id']}", patch)
    assert (status, after["active"]) == (200, False)


async def test_patch_changes_only_what_it_names(vendor):
    """RFC 7644 section 3.5.2: paths, a value object without path, and removal back to the default."""
    vendor.emulator.set(patch=True)
    user = await vendor.create(roles="Supervisor", teams="Porto")
    operations = [
        {"op": "replace", "value": {"name": {"givenName": "New"}, EXTENSION: {"rolesString": "Team Lead"}}},
        {"op": "remove", "path": f"{EXTENSION}:teamsString"},
        {"op": "add", "path": "externalId", "value": "9"},
    ]
    _, after = await vendor.call(
        "PATCH", f"/scim/v2/Users/{user['id']}", {"schemas": [PATCH_OP], "Operations": operations}
    )
    assert after["name"] == {"givenName": "New", "familyName": "Family"}
    assert after[EXTENSION] == {"rolesString": "Team Lead", "teamsString": ""}
    assert (after["externalId"], after["userName"]) == ("9", USER_NAME)
    assert vendor.codes == []


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "replace", "path": "title", "value": "Dr"},
        {"op": "replace", "path": "active", "value": "False"},
        {"op": "Replace", "path": "active", "value": False},
        {"op": "remove", "path": "userName"},
        {"op": "replace", "path": "name.givenName", "value": " "},
        {"op": "replace", "path": f"{EXTENSION}:rolesString", "value": "agent"},
        {"op": "add", "path": "active"},
        "replace",
    ],
)
async def test_a_wrong_patch_changes_nothing(vendor, operation):
    """RFC 7644 section 3.5.2: one bad operation refuses all of them."""
    vendor.emulator.set(patch=True)
    user = await vendor.create()
    good = {"op": "replace", "path": "externalId", "value": "9"}
    body = {"schemas": [PATCH_OP], "Operations": [good, operation]}

    assert (await vendor.call("PATCH", f"/scim/v2/Users/{user['id']}", body))[0] == 400
    assert await vendor.call("GET", f"/scim/v2/Users/{user['id']}") == (200, user)


async def test_the_service_describes_itself(vendor):
    """1.2: ServiceProviderConfig, ResourceTypes and ResourceTypes/User."""
    _, provider = await vendor.call("GET", "/scim/v2/ServiceProviderConfig")
    assert provider["filter"]["supported"] is True
    _, types = await vendor.call("GET", "/scim/v2/ResourceTypes")
    assert [one["name"] for one in types["Resources"]] == ["User"]
    _, one = await vendor.call("GET", "/scim/v2/ResourceTypes/User")
    assert one == types["Resources"][0]
    assert one["schemaExtensions"] == [{"schema": EXTENSION, "required": False}]


# The users API --------------------------------------------------------------------------------------------------------


async def test_the_users_api_is_read_by_following_next(vendor):
    """1.2: HAL pages; `_links.next` until it is absent."""
    vendor.emulator.set(page_users=2)
    vendor.emulator.seed({"users": [{"userName": f"u{number}@example.com"} for number in range(5)]})

    seen, pages, address = [], [], "/users"
    while address:
        _, page = await vendor.call("GET", address)
        pages.append((page["count"], page["total"], page["page"], page["per_page"], page["total_pages"]))
        seen += [user["email"] for user in page["_embedded"]["users"]]
        address = page["_links"].get("next", {}).get("href")
        assert len(pages) < 9
    assert pages == [(2, 5, 1, 2, 3), (2, 5, 2, 2, 3), (1, 5, 3, 2, 3)]
    assert seen == [f"u{number}@example.com" for number in range(5)]
    assert vendor.codes == []


async def test_the_users_api_shows_the_documented_fields(vendor):
    """1.2: fields of a user in the read API, and its own form of error."""
    user = await vendor.create()
    status, shown = await vendor.call("GET", f"/users/{user['id']}")
    assert status == 200
    assert set(shown) == {
        *("id", "email", "name", "active", "gender", "extension", "external_phone_number", "created_at", "_links")
    }
    assert (shown["email"], shown["name"], shown["active"]) == (USER_NAME, "Given Family", True)

    status, body = await vendor.call("GET", "/users/nobody")
    assert status == 404
    assert set(body) == {"code", "message", "description", "fields"}


async def test_roles_and_teams_are_listed_only_when_switched_on(vendor):
    """1.3: the assumed GET /roles and /teams are off unless configured."""
    assert (await vendor.call("GET", "/roles"))[0] == 404
    assert (await vendor.call("GET", "/teams"))[0] == 404
    assert vendor.codes == ["unknown_path"] * 2

    vendor.emulator.set(listing=True)
    _, roles = await vendor.call("GET", "/roles")
    names = {role["name"]: role["active"] for role in roles["_embedded"]["roles"]}
    assert list(names) == [
        *("Agent", "Supervisor", "Administrator", "Team Lead", "Quality Analyst", "Billing", "BILLING", "Legacy Agent")
    ]
    assert [name for name, active in names.items() if not active] == ["Legacy Agent"]
    _, teams = await vendor.call("GET", "/teams?per_page=3&page=2")
    assert [team["name"] for team in teams["_embedded"]["teams"]] == ["Tier-1", "Ops & QA"]


# Credentials ----------------------------------------------------------------------------------------------------------


async def test_the_token_is_accepted_with_and_without_the_word_bearer(vendor):
    """1.5: accepts `Bearer x` and `x`."""
    for header in (f"Bearer {TOKEN}", TOKEN, f"bearer {TOKEN}"):
        assert (await vendor.call("GET", "/scim/v2/Users", Authorization=header))[0] == 200
    for header in ("Bearer wrong", "wrong", f"Basic {TOKEN}"):
        status, body = await vendor.call("GET", "/scim/v2/Users", Authorization=header)
        assert (status, body["schemas"], body["status"]) == (401, [ERROR], "401")
    status, body = await vendor.call("GET", "/users", Authorization="wrong")
    assert (status, set(body)) == (401, {"code", "message", "description", "fields"})


async def test_a_token_is_issued_for_the_client_and_its_scope(vendor):
    """1.2: POST /oauth/token with Basic and a form; each interface needs its own scope."""
    status, issued = await vendor.token()
    assert status == 200
    assert set(issued) == {"access_token", "token_type", "expires_in", "scope"}
    assert issued["scope"] == "scim"
    scim = {"Authorization": f"Bearer {issued['access_token']}"}
    assert (await vendor.call("GET", "/scim/v2/Users", **scim))[0] == 200
    assert (await vendor.call("GET", "/users", **scim))[0] == 403
    _, issued = await vendor.token(scope="users:read")
    reading = {"Authorization": issued["access_token"]}
    assert (await vendor.call("GET", "/users", **reading))[0] == 200
    assert (await vendor.call("GET", "/scim/v2/Users", **reading))[0] == 403


@pytest.mark.parametrize(
    ("change", "status", "error"),
    [
        ({"authorization": "Basic eDp5"}, 401, "invalid_client"),
        ({"authorization": "Basic !"}, 401, "invalid_client"),
        ({"authorization": f"Bearer {TOKEN}"}, 401, "invalid_client"),
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ({"scope": "everything"}, 400, "invalid_scope"),
        ({"scope": ""}, 400, "invalid_scope"),
        ({"token_type": "saml"}, 400, "invalid_request"),
        ({"audience": "x"}, 400, "invalid_request"),
    ],
)
async def test_a_wrong_token_request_is_refused(vendor, change, status, error):
    """1.2: 400 or 401 with `error` and `error_description`."""
    answered, body = await vendor.token(**change)
    assert (answered, body["error"]) == (status, error)
    assert set(body) == {"error", "error_description"}


async def test_an_opaque_token_lives_as_long_as_it_is_used(vendor):
    """1.2: each use keeps an STS token alive; unused for its lifetime it is refused."""
    _, issued = await vendor.token()
    header = {"Authorization": f"Bearer {issued['access_token']}"}

    for _ in range(3):
        vendor.emulator.advance(issued["expires_in"] - 60)
        assert (await vendor.call("GET", "/scim/v2/Users", **header))[0] == 200
    vendor.emulator.advance(issued["expires_in"] + 1)
    assert (await vendor.call("GET", "/scim/v2/Users", **header))[0] == 401


@pytest.mark.parametrize(("scope", "life_s"), [("users:read", 600), ("scim users:read", 2_592_000)])
async def test_a_jwt_expires_however_much_it_is_used(vendor, scope, life_s):
    """1.2, older page: 10 minutes, 30 days with the scim scope."""
    _, issued = await vendor.token(token_type="jwt", scope=scope)
    assert issued["expires_in"] == life_s
    header = {"Authorization": f"Bearer {issued['access_token']}"}

    vendor.emulator.advance(life_s - 5)
    assert (await vendor.call("GET", "/users", **header))[0] == 200
    vendor.emulator.advance(10)
    assert (await vendor.call("GET", "/users", **header))[0] == 401


async def test_tokens_can_be_revoked_and_a_scope_can_take_its_time(vendor):
    """1.5 faults: token revoked; scope not yet effective, which answers 401 for some minutes."""
    _, issued = await vendor.token()
    header = {"Authorization": f"Bearer {issued['access_token']}"}
    assert (await vendor.call("POST", "/__emu/revoke_issued_tokens"))[0] == 200
    assert (await vendor.call("GET", "/scim/v2/Users", **header))[0] == 401
    await vendor.call("POST", "/__emu/token", {"effective_in_s": 180})
    assert (await vendor.call("GET", "/scim/v2/Users"))[0] == 401
    vendor.emulator.advance(181)
    assert (await vendor.call("GET", "/scim/v2/Users"))[0] == 200


async def test_no_token_and_no_client_secret_is_ever_recorded(vendor):
    """Neither issued tokens nor the client's secret appear in journal, recorded calls or state."""
    _, issued = await vendor.token()
    await vendor.call("GET", "/scim/v2/Users", Authorization=f"Bearer {issued['access_token']}")
    await vendor.token(client_secret="demo-secret-talkdesk")

    kept = json.dumps([vendor.emulator.journal.lines(), vendor.emulator.recorded(), vendor.emulator.state()])
    for secret in (issued["access_token"], TOKEN, "demo-secret-talkdesk", CLIENT.split()[1]):
        assert secret not in kept


# Limit, faults, restart -----------------------------------------------------------------------------------------------


async def test_the_fifth_call_in_a_second_is_429_without_retry_after():
    """1.5: 4 requests per second by the emulator's clock; the vendor documents no Retry-After, the token endpoint no limit."""
    emulator = TalkdeskEmulator()
    emulator.clock.freeze(True)
    async with running(emulator) as url, aiohttp.ClientSession(url, headers=AUTH) as session:
        vendor = Vendor(emulator, session)
        assert (await vendor.token())[0] == 200
        assert [(await vendor.call("GET", "/scim/v2/Users"))[0] for _ in range(4)] == [200] * 4
        async with session.get("/scim/v2/Users") as refused:
            assert refused.status == 429
            assert "Retry-After" not in refused.headers
        assert vendor.codes == ["rate_exceeded"]
        emulator.advance(1)
        assert (await vendor.call("GET", "/scim/v2/Users"))[0] == 200
        emulator.set(retry_after=True, rate_per_s=1)
        async with session.get("/scim/v2/Users") as refused:
            assert refused.headers["Retry-After"] == "1"


async def test_a_new_user_is_missing_from_a_stale_list_but_not_from_a_read_by_id(vendor):
    """1.5 faults: `stale_read` on the list filter: created, then not found for n seconds, while POST says 409."""
    vendor.emulator.fault("stale_read", method="GET", path="/scim/v2/Users$", lag_s=20)
    user = await vendor.create()

    assert await vendor.found(f'userName eq "{USER_NAME}"') == []
    assert (await vendor.call("GET", f"/scim/v2/Users/{user['id']}"))[0] == 200
    assert (await vendor.call("POST", "/scim/v2/Users", a_user()))[0] == 409
    vendor.emulator.advance(21)
    assert await vendor.found(f'userName eq "{USER_NAME}"') == [user]


async def test_a_lost_answer_to_a_create_leaves_one_user(vendor):
    """1.4: before a second POST the client must look: the first one may have worked."""
    vendor.emulator.fault("drop_response", method="POST", times=1)

    with pytest.raises(GONE):
        await vendor.create()
    assert len(await vendor.found(f'userName eq "{USER_NAME}"')) == 1
    assert vendor.ops == ["create"]


async def test_users_licences_and_tokens_survive_a_restart(tmp_path):
    """The vendor remembers users, deleted ones included, its licence count and the tokens it issued."""
    settings = {"rate_per_s": 0, "licences": 1, "journal_dir": tmp_path}
    before = TalkdeskEmulator(**settings)
    async with running(before) as url, aiohttp.ClientSession(url, headers=AUTH) as session:
        vendor = Vendor(before, session)
        user = await vendor.create(roles="Supervisor")
        gone = await vendor.create("gone@example.com")
        await vendor.call("DELETE", f"/scim/v2/Users/{gone['id']}")
        _, issued = await vendor.token()

    after = TalkdeskEmulator(**settings)
    async with running(after) as url, aiohttp.ClientSession(url, headers=AUTH) as session:
        vendor = Vendor(after, session)
        header = {"Authorization": f"Bearer {issued['access_token']}"}
        _, again = await vendor.call("GET", f"/scim/v2/Users/{user['id']}", **header)
        assert {**again, "meta": None} == {**user, "meta": None}
        assert (await vendor.call("GET", f"/scim/v2/Users/{gone['id']}"))[0] == 404
        assert (await vendor.call("GET", f"/users/{gone['id']}"))[1]["active"] is False
        assert (await vendor.create("third@example.com"))["active"] is False
        assert (await vendor.call("POST", "/scim/v2/Users", a_user()))[0] == 409


async def test_seeded_users_take_licences_and_replace_the_lists(vendor):
    """0.5: POST /__emu/seed with users, roles and teams; seeds are no effects."""
    scene = {
        "roles": {"Agent": True, "Trainer": True},
        "teams": ["Faro"],
        "users": [{"userName": USER_NAME, "rolesString": "Trainer", "teamsString": "Faro", "active": True}],
    }
    vendor.emulator.set(licences=1)
    status, made = await vendor.call("POST", "/__emu/seed", scene)
    assert status == 200
    (found,) = await vendor.found(f'userName eq "{USER_NAME}"')
    assert (found["id"], found[EXTENSION]) == (made["ids"][0], {"rolesString": "Trainer", "teamsString": "Faro"})
    assert vendor.ops == []
    assert (await vendor.create("b@example.com", roles="Trainer"))["active"] is False
    assert (await vendor.call("POST", "/scim/v2/Users", a_user("c@example.com", roles="Supervisor")))[0] == 400
    assert (await vendor.call("POST", "/__emu/seed", {"users": [{"userName": USER_NAME}]}))[0] == 400
