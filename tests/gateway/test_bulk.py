"""Many writes in one request (RFC 7644 section 3.7), over real HTTP in front of the real engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from scim2_models import BulkResponse, Group, User

from gateway.bulk import _order
from gateway.messages import BULK_RESPONSE, ERROR
from schemas.config import LimitSettings, TargetSettings
from tests.gateway.scim_listener import ALPHA, BETA, GROUP, PATCH, USER, Answer, GroupShelf, Listener, Shelf, listening

BULK = "urn:ietf:params:scim:api:messages:2.0:BulkRequest"
ENTERPRISE = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"


class SlowShelf(GroupShelf):
    """A product that never answers within a test."""

    async def create(self, *arguments: Any) -> str:
        await asyncio.Event().wait()
        return ""


@pytest.fixture
async def scim(tmp_path: Path) -> AsyncIterator[Listener]:
    async with listening(tmp_path, shelf=GroupShelf()) as listener:
        yield listener


def person(name: str, bulk_id: str = "", **more: Any) -> dict[str, Any]:
    """The creation of a user."""
    data = {"schemas": [USER], "userName": f"{name}@contoso.example", **more}
    return {"method": "POST", "path": "/Users", "bulkId": bulk_id or name, "data": data}


def crew(name: str, *members: str) -> dict[str, Any]:
    """The creation of a group."""
    data = {"schemas": [GROUP], "displayName": name, "members": [{"value": member} for member in members]}
    return {"method": "POST", "path": "/Groups", "bulkId": name, "data": data}


def op(method: str, path: str, data: Any = None, **more: Any) -> dict[str, Any]:
    """Any other operation."""
    return {"method": method, "path": path, **({} if data is None else {"data": data}), **more}


def patch(*operations: dict[str, Any]) -> dict[str, Any]:
    """The data of a PATCH."""
    return {"schemas": [PATCH], "Operations": list(operations)}


async def send(scim: Listener, *operations: Any, target: str = ALPHA, **more: Any) -> Answer:
    """One bulk request."""
    return await scim.post("/Bulk", {"schemas": [BULK], "Operations": list(operations), **more}, target=target)


def results(answer: Answer, *statuses: int) -> list[dict[str, Any]]:
    """The operations of an answer, which have these statuses; python-scim understands it too."""
    assert answer.status == 200, answer.body
    assert answer.body["schemas"] == [BULK_RESPONSE]
    BulkResponse[User | Group].model_validate(answer.body)
    found: list[dict[str, Any]] = answer.body["Operations"]
    assert [result["status"] for result in found] == [str(status) for status in statuses], found
    for result in found:
        failed = int(result["status"]) >= 400
        assert ("response" in result) == failed, result
        if failed:
            assert result["response"]["schemas"] == [ERROR]
            assert result["response"]["status"] == result["status"]
    return found


def id_of(result: dict[str, Any]) -> str:
    return str(result["location"].rpartition("/")[2])


async def members(scim: Listener, group: str) -> set[str]:
    return {member["value"] for member in (await scim.get(f"/Groups/{group}")).body.get("members", [])}


# ---- what it does


async def test_every_kind_of_write_in_one_request(scim: Listener) -> None:
    """RFC 7644 section 3.7: POST, PUT, PATCH and DELETE, each answered with method, status, location and version."""
    ada, bob, eve = [(await scim.user(f"{name}@contoso.example"))["id"] for name in ("ada", "bob", "eve")]

    answer = await send(
        scim,
        person("new"),
        op("PUT", f"/Users/{ada}", {"schemas": [USER], "userName": "ada@contoso.example", "title": "Countess"}),
        op("PATCH", f"/Users/{bob}", patch({"op": "replace", "path": "title", "value": "Clerk"})),
        op("DELETE", f"/Users/{eve}"),
    )

    made, put, patched, gone = results(answer, 201, 200, 200, 204)
    assert (made["bulkId"], made["method"], gone["method"]) == ("new", "POST", "DELETE")
    assert [result["location"] for result in (put, patched, gone)] == [
        f"{scim.base()}/Users/{i}" for i in (ada, bob, eve)
    ]
    for result in (made, put, patched):
        seen = await scim.get(f"/Users/{id_of(result)}")
        assert seen.headers["etag"] == result["version"]
    assert (await scim.get(f"/Users/{ada}")).body["title"] == "Countess"
    assert (await scim.get(f"/Users/{bob}")).body["title"] == "Clerk"
    assert (await scim.get(f"/Users/{eve}")).status == 404
    assert {user.user_name for user in scim.shelf.accounts.values()} >= {"new@contoso.example"}


async def test_operations_keep_their_order(scim: Listener) -> None:
    """A name that one operation gives up is free for the next, and the last of two changes stays."""
    old = (await scim.user("ada@contoso.example"))["id"]

    answer = await send(
        scim,
        op("PATCH", f"/Users/{old}", patch({"op": "replace", "path": "title", "value": "1"})),
        op("PATCH", f"/Users/{old}", patch({"op": "replace", "path": "title", "value": "2"})),
        op("PATCH", f"/Users/{old}", patch({"op": "replace", "path": "userName", "value": "old@contoso.example"})),
        person("ada", title="another"),
    )

    results(answer, 200, 200, 200, 201)
    assert (await scim.get(f"/Users/{old}")).body["title"] == "2"


async def test_the_result_is_that_of_the_single_request(scim: Listener) -> None:
    """Same functions, same errors: what one request is refused for, an operation is refused for in the same words."""
    ada = (await scim.user("ada@contoso.example"))["id"]
    wrong: list[tuple[str, str, Any]] = [
        ("POST", "/Users", {"schemas": [USER]}),
        ("POST", "/Users", {"userName": "ada@contoso.example"}),
        ("POST", "/Users", {"userName": "x", "active": "maybe"}),
        ("PATCH", f"/Users/{ada}", patch({"op": "fly", "path": "title"})),
        ("PATCH", "/Users/nobody", patch({"op": "add", "path": "title", "value": "x"})),
        ("PUT", f"/Groups/{ada}", {"displayName": "not a group"}),
        ("DELETE", "/Groups/nobody", None),
    ]

    answer = await send(scim, *(op(method, path, data, bulkId=f"b{n}") for n, (method, path, data) in enumerate(wrong)))

    assert answer.status == 200
    for (method, path, data), result in zip(wrong, answer.body["Operations"], strict=True):
        single = await scim.send(method, path, json=data)
        assert single.status >= 400
        assert (result["status"], result["response"]) == (str(single.status), single.body)
    assert "location" not in answer.body["Operations"][0]


async def test_a_version_that_does_not_hold_is_412_for_the_operation(scim: Listener) -> None:
    """RFC 7644 section 3.7: `version` is the If-Match of an operation, also of a deletion."""
    ada = await scim.user("ada@contoso.example")
    change = patch({"op": "replace", "path": "title", "value": "x"})
    path = f"/Users/{ada['id']}"

    answer = await send(
        scim,
        op("PATCH", path, change, version='W/"77"'),
        op("DELETE", path, version='W/"77"'),
        op("PATCH", path, change, version=ada["meta"]["version"]),
        op("DELETE", path, version=ada["meta"]["version"]),
    )

    results(answer, 412, 412, 200, 412)


# ---- bulkId


async def test_a_group_gets_members_made_in_the_same_request(scim: Listener) -> None:
    """RFC 7644 section 3.7.2: bulkId in data; also when the member is created by a later operation."""
    answer = await send(scim, person("ada"), crew("Sales", "bulkId:ada", "bulkId:bob"), person("bob"))

    ada, sales, bob = results(answer, 201, 201, 201)
    assert await members(scim, id_of(sales)) == {id_of(ada), id_of(bob)}


async def test_paths_and_patches_refer_to_what_is_being_made(scim: Listener) -> None:
    """RFC 7644 section 3.7.2: bulkId in a path, in the filter of a PATCH path, in values and in $ref."""
    entry = {"value": "bulkId:ada", "$ref": "../Users/bulkId:ada"}
    lead = {"op": "add", "path": f"{ENTERPRISE}:manager", "value": "bulkId:ada"}

    answer = await send(
        scim,
        op("PATCH", "/Groups/bulkId:Sales", patch({"op": "add", "path": "members", "value": [entry]})),
        op("PATCH", "/Groups/bulkId:Sales", patch({"op": "remove", "path": 'members[value eq "bulkId:bob"]'})),
        op("PATCH", "/Users/bulkId:bob", patch(lead)),
        crew("Sales", "bulkId:bob"),
        person("ada"),
        person("bob"),
    )

    found = results(answer, 204, 204, 200, 201, 201, 201)
    assert await members(scim, id_of(found[3])) == {id_of(found[4])}
    bob = (await scim.get(f"/Users/{id_of(found[5])}")).body
    assert bob[ENTERPRISE]["manager"]["value"] == id_of(found[4])
    assert found[2]["location"] == found[5]["location"]


async def test_a_circle_of_references_is_resolved(scim: Listener) -> None:
    """RFC 7644 section 3.7.1: circular references between resources of one request; groups in groups, and managers."""
    answer = await send(
        scim,
        crew("A", "bulkId:B"),
        crew("B", "bulkId:A"),
        person("ada", **{ENTERPRISE: {"department": "R&D", "manager": {"value": "bulkId:bob"}}}),
        person("bob", **{ENTERPRISE: {"manager": {"value": "bulkId:ada"}}}),
    )

    a, b, ada, bob = results(answer, 201, 201, 201, 201)
    assert (await members(scim, id_of(a)), await members(scim, id_of(b))) == ({id_of(b)}, {id_of(a)})
    for one, other in ((ada, bob), (bob, ada)):
        seen = await scim.get(f"/Users/{id_of(one)}")
        assert seen.body[ENTERPRISE]["manager"]["value"] == id_of(other)
        assert seen.headers["etag"] == one["version"]
    assert (await scim.get(f"/Users/{id_of(ada)}")).body[ENTERPRISE]["department"] == "R&D"


async def test_what_refers_to_nothing_or_to_a_failure_is_409(scim: Listener) -> None:
    """RFC 7644 section 3.7.1: a reference that cannot be resolved; the other operations are done."""
    answer = await send(
        scim,
        crew("Sales", "bulkId:nobody"),
        person("bad", active="maybe"),
        crew("Crew", "bulkId:bad"),
        op("DELETE", "/Users/bulkId:nobody"),
        person("ada", displayName="bulkId:nobody"),
    )

    found = results(answer, 409, 400, 409, 409, 201)
    assert "nobody" in found[0]["response"]["detail"]
    assert (await scim.get(f"/Users/{id_of(found[4])}")).body["displayName"] == "bulkId:nobody"
    assert (await scim.get("/Groups")).body["totalResults"] == 0


async def test_a_circle_with_a_failed_end_says_what_was_made_without_it(scim: Listener) -> None:
    """The group exists, so its address is told; that it lacks a member is told as well."""
    nameless = {**crew("A"), "data": {"displayName": "", "members": [{"value": "bulkId:B"}]}}

    answer = await send(scim, nameless, crew("B", "bulkId:A"))

    _, b = results(answer, 400, 409)
    made = (await scim.get("/Groups")).body["Resources"]
    assert [(group["displayName"], group["meta"]["location"]) for group in made] == [("B", b["location"])]
    assert "'A'" in b["response"]["detail"]


def test_operations_are_ordered_by_what_they_need_however_long_the_chain() -> None:
    """A chain of a thousand references must not exhaust the stack; what needs nothing keeps its place."""
    assert list(_order([[], [], []])) == [0, 1, 2]
    assert list(_order([[2], [], [1]])) == [1, 2, 0]
    assert list(_order([[1], [0]])) == [1, 0]
    assert list(_order([[0]])) == [0]
    count = 5_000
    assert list(_order([[n + 1] if n + 1 < count else [] for n in range(count)])) == list(reversed(range(count)))


# ---- bounds and errors


async def test_the_request_ends_after_as_many_errors_as_it_bears(scim: Listener) -> None:
    """RFC 7644 section 3.7.3: failOnErrors; what was not tried is not in the answer, and was not done."""
    bad = person("bad", active="maybe")

    one = await send(scim, person("a"), {**bad, "bulkId": "1"}, person("b"), {**bad, "bulkId": "2"}, failOnErrors=1)
    two = await send(scim, {**bad, "bulkId": "1"}, person("c"), {**bad, "bulkId": "2"}, person("d"), failOnErrors=2)
    all_ = await send(scim, {**bad, "bulkId": "1"}, {**bad, "bulkId": "2"}, person("e"))

    results(one, 201, 400)
    results(two, 400, 201, 400)
    results(all_, 400, 400, 201)
    names = {resource["userName"][0] for resource in (await scim.get("/Users")).body["Resources"]}
    assert names == {"a", "c", "e"}


async def test_a_request_that_is_none_changes_nothing(scim: Listener) -> None:
    """RFC 7644 sections 3.7 and 3.12: 400, or 413 above what is announced, before anything is tried."""
    wrong: list[tuple[Any, int, str | None]] = [
        ({}, 400, "invalidSyntax"),
        ({"Operations": "x"}, 400, "invalidSyntax"),
        ({"Operations": [], "failOnErrors": 0}, 400, "invalidValue"),
        ({"Operations": [], "failOnErrors": "1"}, 400, "invalidValue"),
        ({"Operations": [person("a"), person("b", "a")]}, 400, "invalidValue"),
        ({"Operations": [{}] * 1_001}, 413, None),
        ([], 400, "invalidSyntax"),
    ]
    for body, status, scim_type in wrong:
        answer = await scim.post("/Bulk", body)
        assert (answer.status, answer.body.get("scimType")) == (status, scim_type), answer.body

    assert (await scim.get("/Users")).body["totalResults"] == 0


async def test_an_operation_that_is_none_is_refused_alone(scim: Listener) -> None:
    """It fails with 400; its neighbours are done, and no path leads out of the target."""
    wrong: list[Any] = [
        7,
        {},
        {"method": "GET", "path": "/Users"},
        {"method": "POST", "path": "/Users", "data": {"userName": "x"}},
        {"method": "POST", "bulkId": "a", "data": {"userName": "x"}},
        {"method": "POST", "bulkId": "a", "path": "/Users/x", "data": {"userName": "x"}},
        {"method": "POST", "bulkId": "a", "path": "/Users"},
        {"method": "POST", "bulkId": "a" * 200, "path": "/Users", "data": {"userName": "x"}},
        {"method": "POST", "bulkId": "a", "path": "/Bulk", "data": {"Operations": []}},
        {"method": "POST", "bulkId": "a", "path": "/Users/.search", "data": {}},
        {"method": "DELETE", "path": "/Users"},
        {"method": "PUT", "path": "/Users/x", "data": {"userName": "x"}, "version": 7},
        {"method": "DELETE", "path": f"/scim/v2/{BETA}/Users/x"},
        {"method": "DELETE", "path": f"/../{BETA}/Users/x"},
        {"method": "DELETE", "path": f"/Users/../../{BETA}/Users/x"},
        {"method": "DELETE", "path": "https://provgate.example.com/Users/x"},
        {"method": "DELETE", "path": "/Users/x?y=z"},
    ]
    for number, operation in enumerate(wrong):
        answer = await send(scim, operation, person(f"u{number}", "last"))
        assert [result["status"] for result in answer.body["Operations"]] == ["400", "201"], (operation, answer.body)


async def test_another_targets_resource_is_not_there(scim: Listener) -> None:
    """S5: the target is that of the request; ids of others are answered like ids of nobody."""
    foreign = (await scim.user("ada@contoso.example", target=BETA))["id"]

    answer = await send(
        scim,
        op("DELETE", f"/Users/{foreign}"),
        op("PATCH", f"/Users/{foreign}", patch({"op": "add", "path": "title", "value": "x"})),
    )

    results(answer, 404, 404)
    assert (await scim.get(f"/Users/{foreign}", target=BETA)).status == 200
    assert (await scim.post("/Bulk", {"Operations": []}, token="")).status == 401
    assert (await scim.post("/Bulk", {"Operations": []}, token=scim.tokens[BETA])).status == 401


async def test_each_operation_has_the_limits_of_one_request(tmp_path: Path) -> None:
    """What one request may not carry, an operation may not either; the whole has its own bound, which is announced."""
    limits = LimitSettings(body_bytes_max=2_000, bulk_body_bytes_max=8_000, keys_max=20, operations_max=5)
    async with listening(tmp_path, limits=limits) as scim:
        announced = (await scim.get("/ServiceProviderConfig")).body["bulk"]
        large = await send(scim, person("a", title="x" * 2_100), person("b", nickName={str(n): n for n in range(30)}))
        too_large = await send(scim, *(person(f"{n}", title="x" * 1_900) for n in range(5)))
        too_many = await send(scim, *(person(f"{n}") for n in range(6)))
        answer = await send(scim, *(person(f"{n}") for n in range(5)))

    assert announced == {"supported": True, "maxOperations": 5, "maxPayloadSize": 8_000}
    assert [result["status"] for result in large.body["Operations"]] == ["413", "400"]
    assert (too_large.status, too_many.status) == (413, 413)
    results(answer, 201, 201, 201, 201, 201)


async def test_each_operation_counts_against_the_targets_rate(tmp_path: Path) -> None:
    """A bulk request is no way around the rate: what is above it is told 429, operation by operation."""
    async with listening(tmp_path, limits=LimitSettings(requests_per_s_per_target=1)) as scim:
        answer = await send(scim, *(person(f"{n}") for n in range(14)))

    statuses = [result["status"] for result in answer.body["Operations"]]
    assert set(statuses) == {"201", "429"}
    assert 8 <= statuses.count("201") <= 12


async def test_groups_of_a_product_without_groups_are_refused_one_by_one(tmp_path: Path) -> None:
    """As in a single request: 400 with the setup step, and the people are created."""
    async with listening(tmp_path, shelf=Shelf()) as scim:
        answer = await send(scim, crew("Sales"), person("ada"))

    results(answer, 400, 201)
    assert "Switch group provisioning off" in answer.body["Operations"][0]["response"]["detail"]


# ---- time


async def test_all_operations_together_wait_as_long_as_one_request(tmp_path: Path) -> None:
    """The answer budget is for the whole; after it an operation is accepted, as a late answer is."""
    async with listening(tmp_path, shelf=SlowShelf(), answer_wait_s=0.4) as scim:
        started = time.monotonic()
        answer = await send(scim, *(person(f"{n}") for n in range(40)))
        took_s = time.monotonic() - started

        results(answer, *[201] * 40)
        assert took_s < 5.0  # forty times the budget would be sixteen seconds
        assert (await scim.get("/Users")).body["totalResults"] == 40


async def test_under_retry_later_nothing_is_promised_in_bulk_either(tmp_path: Path) -> None:
    """An outcome that did not come in time is 503, for each operation."""
    patient = {ALPHA: TargetSettings(connector="shelf", pending="retry-later")}
    async with listening(tmp_path, shelf=SlowShelf(), answer_wait_s=0.2, targets=patient) as scim:
        answer = await send(scim, *(person(f"{n}") for n in range(5)))

        results(answer, *[503] * 5)
        assert (await scim.get("/Users")).body["totalResults"] == 0


async def test_hundreds_of_operations_are_no_hurdle(scim: Listener) -> None:
    """Many people and a group that has them all, which stands first and waits for every one of them."""
    operations = [crew("All", *(f"bulkId:u{n}" for n in range(150))), *(person(f"u{n}") for n in range(150))]

    found = results(await send(scim, *operations), *[201] * 151)

    assert await members(scim, id_of(found[0])) == {id_of(result) for result in found[1:]}


async def test_a_bulk_request_is_answered_in_full_whatever_is_preferred(scim: Listener) -> None:
    """RFC 9967 section 2.5.1: the normal answer is always allowed; a 202 would need a completion for every operation."""
    body = {"schemas": [BULK], "Operations": [person("ada")]}
    answer = await scim.post("/Bulk", body, headers={"Prefer": "respond-async"})

    results(answer, 201)
    assert "set-txn" not in answer.headers


async def test_only_post_is_taken(scim: Listener) -> None:
    """RFC 9110 section 15.5.6."""
    for method in ("GET", "PUT", "PATCH", "DELETE"):
        answer = await scim.send(method, "/Bulk", json={})
        assert (answer.status, answer.headers["allow"]) == (405, "POST")


async def test_the_body_is_checked_like_any_other(scim: Listener) -> None:
    """Keys given twice, wrong types of content and depth without end are refused before anything is tried."""
    twice = b'{"Operations":[],"Operations":[]}'
    deep = b'{"Operations":[{"method":"POST","data":' + b'{"a":' * 60 + b"1" + b"}" * 60 + b"}]}"

    assert (await scim.send("POST", "/Bulk", data=twice)).status == 400
    assert (await scim.send("POST", "/Bulk", data=deep)).status == 400
    assert (await scim.send("POST", "/Bulk", data=b"{}", headers={"Content-Type": "text/xml"})).status == 415
    assert (await scim.send("POST", "/Bulk", data=msgspec.json.encode({"x": "y" * 1_100_000}))).status == 413
