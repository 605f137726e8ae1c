"""The plain REST product behaves as it says: CRUD, unique logins, every way of paging and signing, and its habits."""

import base64
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from deploy.emulators.harness import journal_lines, running
from deploy.emulators.rest_service import API_KEY, USER_NAME, RestServiceEmulator
from tests.emulators.calling import Caller, calling

TOKEN = "demo-token-rest_service"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
ADA = {
    "login": "ada@contoso.example",
    "name": {"first": "Ada", "last": "Lovelace"},
    "contact": {"email": "ada@contoso.example"},
    "roles": ["agent"],
}


class Vendor(Caller[RestServiceEmulator]):
    """A plain client of the emulator: (status, decoded body)."""

    async def made(self, **changes: Any) -> int:
        """The id of a new user."""
        status, body = await self.call("POST", "/api/users", {**ADA, **changes})
        assert status == 201
        made: int = body["data"]["id"]
        return made


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    async with calling(Vendor, RestServiceEmulator(), AUTH) as vendor:
        yield vendor


async def test_a_user_lives_from_create_to_delete(vendor):
    """Plain CRUD: what was written is read, a partial change keeps the rest, a deleted user is not there."""
    user_id = await vendor.made()
    status, body = await vendor.call("PATCH", f"/api/users/{user_id}", {"name": {"last": "King"}, "plan": "full"})
    assert status == 200
    assert body["data"]["name"] == {"first": "Ada", "last": "King"}
    assert (await vendor.call("GET", f"/api/users/{user_id}"))[1] == body
    assert (await vendor.call("GET", "/api/users/by-login/ADA@contoso.example"))[1] == body
    assert (await vendor.call("DELETE", f"/api/users/{user_id}"))[0] == 204
    assert (await vendor.call("GET", f"/api/users/{user_id}"))[0] == 404
    assert [effect["op"] for effect in vendor.emulator.journal.effects()] == ["create", "update", "delete"]
    assert vendor.codes == []


async def test_a_replacement_forgets_what_it_does_not_name(vendor):
    """PUT replaces everything but the id and the stamps, which are not written."""
    user_id = await vendor.made(plan="full")
    status, body = await vendor.call("PUT", f"/api/users/{user_id}", {"login": "ada@contoso.example", "id": user_id})
    assert (status, body["data"]["plan"], body["data"]["roles"]) == (200, None, [])
    status, _ = await vendor.call("PUT", f"/api/users/{user_id}", {"login": "a", "created_at": "x"})
    assert status == 400
    assert vendor.codes == ["read_only"]


async def test_a_login_is_unique_in_any_letter_case_and_may_move_on(vendor):
    """409 with a code; a renamed user gives its login free."""
    user_id = await vendor.made()
    status, body = await vendor.call("POST", "/api/users", {**ADA, "login": "ADA@contoso.example"})
    assert (status, body["error"]["code"]) == (409, "login_taken")
    assert (await vendor.call("PATCH", f"/api/users/{user_id}", {"login": "king@contoso.example"}))[0] == 200
    await vendor.made()
    assert (await vendor.call("GET", "/api/users/by-login/king@contoso.example"))[1]["data"]["id"] == user_id


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"login": "a", "surname": "x"}, "unknown_field"),
        ({"login": "a", "Plan": "x"}, "wrong_case"),
        ({"login": "a", "name": {"middle": "x"}}, "unknown_field"),
        ({"login": "a", "level": "7"}, "wrong_type"),
        ({"login": "a", "roles": [7]}, "wrong_type"),
        ({"login": "a", "status": "active"}, "bad_status"),
        ({"plan": "x"}, "missing_field"),
    ],
)
async def test_what_the_product_does_not_know_is_refused_and_noted(vendor, body, code):
    """0.5: a client that sends a wrong field, case or type must fail its test."""
    status, answer = await vendor.call("POST", "/api/users", body)
    assert (status, answer["error"]["code"]) == (400, code)
    assert vendor.codes == [code]


@pytest.mark.parametrize("way", ["page", "offset", "cursor", "next", "link", "none"])
async def test_a_list_is_gone_through_in_the_way_that_is_set(vendor, way):
    """Every user once; parameters of another way are refused."""
    vendor.emulator.set(paging=way, page_max=2)
    vendor.emulator.seed({"users": [{"login": f"u{n}"} for n in range(5)]})
    seen: list[str] = []
    query = ""
    for number in range(1, 9):
        async with vendor.session.get(f"/api/users{query}") as answer:
            body = await answer.json()
            link = answer.headers.get("Link", "")
        seen += [user["login"] for user in body["data"]]
        following = {"page": f"?page={number + 1}", "offset": f"?offset={len(seen)}"}.get(way)
        told = re.search(r"cursor=([0-9]+)", f"cursor={body['meta'].get('next')} {link}")
        cursor = told[1] if told else ""
        query = following or f"?cursor={cursor}"
        if len(seen) >= body["meta"]["total"]:
            break
    assert seen == [f"u{n}" for n in range(5)]
    wrong = "offset" if way != "offset" else "page"
    assert (await vendor.call("GET", f"/api/users?{wrong}=1"))[0] == 400


async def test_calls_are_signed_in_the_way_that_is_set(vendor):
    """A bearer token, a key in a header, or name and password; nothing else gets in."""
    basic = base64.b64encode(f"{USER_NAME}:{TOKEN}".encode()).decode()
    right = {"bearer": AUTH, "basic": {"Authorization": f"Basic {basic}"}, "header": {API_KEY: TOKEN}}
    for way, headers in right.items():
        vendor.emulator.set(auth=way)
        assert (await vendor.call("GET", "/api/users", **headers))[0] == 200
        wrong = {"Authorization": "Basic !", API_KEY: "x"}
        assert (await vendor.call("GET", "/api/users", **wrong))[0] == 401
        vendor.emulator.revoke_token()
        assert (await vendor.call("GET", "/api/users", **headers))[0] == 401
        vendor.emulator.revoke_token(revoked=False)


async def test_users_are_switched_by_calls_where_that_is_set(vendor):
    """With states = calls the field is not written, otherwise the calls are not there."""
    user_id = await vendor.made()
    assert (await vendor.call("POST", f"/api/users/{user_id}/disable", {}))[0] == 404
    vendor.emulator.set(states="calls")
    for name, status in (("disable", "disabled"), ("enable", "enabled")):
        assert (await vendor.call("POST", f"/api/users/{user_id}/{name}", {}))[1]["data"]["status"] == status
    assert (await vendor.call("PATCH", f"/api/users/{user_id}", {"status": "disabled"}))[0] == 400


async def test_seats_are_counted_among_enabled_users(vendor):
    """402 when a create or a reactivation would need one more."""
    vendor.emulator.set(seats=1)
    user_id = await vendor.made()
    assert (await vendor.call("POST", "/api/users", {"login": "b"}))[0] == 402
    assert (await vendor.call("POST", "/api/users", {"login": "b", "status": "disabled"}))[0] == 201
    await vendor.call("PATCH", f"/api/users/{user_id}", {"status": "disabled"})
    assert (await vendor.call("POST", "/api/users", {"login": "c"}))[0] == 201


async def test_habits_are_shown_when_they_are_set(vendor):
    """Each quirk does what its name says, and none is on by itself."""
    user_id = await vendor.made()
    vendor.emulator.set(quirks=["shallow", "switches_on", "ignores_filter", "success_false"])
    _, body = await vendor.call("PATCH", f"/api/users/{user_id}", {"name": {"last": "King"}})
    assert body["data"]["name"] == {"first": None, "last": "King"}
    _, body = await vendor.call("POST", "/api/users", {"login": "b", "status": "disabled"})
    assert body["data"]["status"] == "enabled"
    assert len((await vendor.call("GET", "/api/users?login=b"))[1]["data"]) == 2
    status, body = await vendor.call("POST", "/api/users", {"login": "B"})
    assert (status, body["success"], body["error"]["code"]) == (200, False, "login_taken")
    vendor.emulator.set(quirks=["ignores_status", "bare_list"])
    _, body = await vendor.call("PATCH", f"/api/users/{user_id}", {"status": "disabled"})
    assert body["data"]["status"] == "enabled"
    assert set((await vendor.call("GET", "/api/users"))[1]["data"][0]) == {"id", "name"}


async def test_a_repeated_key_acts_once(vendor):
    """0.5: the first answer is replayed, and the journal shows one effect."""
    first = await vendor.call("POST", "/api/users", ADA, **{"Idempotency-Key": "k"})
    assert await vendor.call("POST", "/api/users", ADA, **{"Idempotency-Key": "k"}) == first
    assert len(vendor.emulator.journal.effects(op="create")) == 1


async def test_everything_survives_a_restart(tmp_path):
    """0.5: the journal rebuilds users, logins and ids; a new user gets an id nobody had."""
    for number in range(2):
        emulator = RestServiceEmulator(journal_dir=tmp_path)
        async with running(emulator) as url, aiohttp.ClientSession(url, headers=AUTH) as session:
            vendor = Vendor(emulator, session)
            assert await vendor.made(login=f"u{number}") == 1_001 + number
            assert (await vendor.call("GET", "/api/users/by-login/u0"))[0] == 200
    assert TOKEN not in str(journal_lines(tmp_path / "rest_service.journal.jsonl"))


@pytest.mark.parametrize(
    ("habits", "method", "path", "options", "status", "code"),
    [
        (
            {"body": "jsonapi"},
            "POST",
            "/users",
            {"json": {"data": {"type": "people", "attributes": {}}}},
            415,
            "content_type",
        ),
        ({"body": "form"}, "POST", "/users", {"json": {"login": "a"}}, 415, "content_type"),
        ({"patch": "operations"}, "PATCH", "/users/1001", {"json": {"note": "x"}}, 415, "content_type"),
        ({}, "GET", "/users?filter=login%20co%20%22a%22", {}, 400, "bad_filter"),
        ({"paging": "more"}, "GET", "/users?page=1", {}, 400, "unknown_parameter"),
        ({"members": "field"}, "PUT", "/groups/50/members/1001", {}, 404, "unknown_path"),
        ({"members": "bulk"}, "POST", "/groups/50/members", {"json": {"add": ["1001"]}}, 400, "wrong_type"),
        (
            {"members": "memberships"},
            "POST",
            "/memberships",
            {"json": {"group_id": 50, "user_id": "x"}},
            400,
            "wrong_type",
        ),
        ({}, "PATCH", "/groups/50", {"json": {"members": []}}, 400, "unknown_field"),
        ({"quirks": ["off_first"]}, "DELETE", "/users/1001", {}, 409, "still_enabled"),
    ],
)
async def test_what_no_correct_client_does_is_recorded_in_every_shape(
    habits: dict[str, Any], method: str, path: str, options: dict[str, Any], status: int, code: str
) -> None:
    """A declaration that does not fit the product fails its test, whatever the answer says."""
    emulator = RestServiceEmulator(**habits)
    emulator.seed({"users": [{"login": "a"}], "groups": [{"name": "g"}]})
    async with running(emulator) as url, aiohttp.ClientSession() as session:
        token = {"Authorization": "Bearer demo-token-rest_service"}
        async with session.request(method, f"{url}/api{path}", headers=token, **options) as answer:
            assert answer.status == status
    assert [one["code"] for one in emulator.violations] == [code]
