"""The SCIM face over real HTTP, in front of the real engine and a worker that answers at once (RFC 7644; how Entra calls)."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
import structlog

from gateway.endpoints import SPELLING_WAIT_S, page_of
from gateway.messages import ERROR, LIST_RESPONSE, MEDIA_TYPE
from gateway.store import Store
from schemas.config import LimitSettings
from schemas.resources import ENTERPRISE_SCHEMA
from tests.gateway.scim_listener import ALPHA, BETA, USER, Answer, Listener, Shelf, listening

NOBODY = "0b7fd5f4-0000-4000-8000-000000000000"
FULL: dict[str, Any] = {
    "schemas": [USER, ENTERPRISE_SCHEMA],
    "externalId": "Ada-01",
    "userName": "Ada@Contoso.example",
    "active": True,
    "displayName": "Ada  Byron",
    "title": "Engineer & more",
    "name": {"formatted": "Ada Byron", "familyName": "Byron", "givenName": "Ada"},
    "emails": [{"primary": True, "type": "work", "value": "ada@contoso.example"}],
    "phoneNumbers": [{"type": "mobile", "value": "+41 (0)79 / 000 00 01"}, {"type": "fax", "value": "0041-31"}],
    "addresses": [{"type": "work", "streetAddress": "Hauptstr. 1", "locality": "Bérn", "country": "CH"}],
    ENTERPRISE_SCHEMA: {"employeeNumber": "007", "department": "R&D"},
}


@pytest.fixture
async def scim(tmp_path: Path) -> AsyncIterator[Listener]:
    async with listening(tmp_path) as listener:
        yield listener


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def empty(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Listener]:
    """One listener for all tests that leave nothing behind; a start of its own for each of them would take a minute."""
    async with listening(tmp_path_factory.mktemp("scim")) as listener:
        yield listener


together = pytest.mark.asyncio(loop_scope="module")


def is_error(answer: Answer, status: int, scim_type: str | None = None) -> bool:
    """Whether an answer is a SCIM error of this kind (RFC 7644 section 3.12)."""
    assert answer.status == status, (answer.status, answer.body)
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.body["schemas"] == [ERROR]
    assert answer.body["status"] == str(status)
    assert answer.body.get("scimType") == scim_type, answer.body
    assert answer.body["detail"]
    return True


def names(answer: Answer) -> list[str]:
    """userNames of a list answer, in order."""
    assert answer.status == 200, answer.body
    assert answer.body["schemas"] == [LIST_RESPONSE]
    assert answer.body["itemsPerPage"] == len(answer.body["Resources"])
    return [resource["userName"] for resource in answer.body["Resources"]]


# ---- what Entra does first


@together
async def test_the_connection_test_finds_nobody_and_that_is_a_success(empty: Listener) -> None:
    """Entra's Test Connection: a random GUID in the matching attribute, 200 with an empty list, on both endpoints."""
    for path in (
        "/Users?filter=userName+eq+%22" + NOBODY + "%22",
        "/Groups?filter=displayName+eq+%22" + NOBODY + "%22",
    ):
        answer = await empty.get(path)

        assert answer.status == 200
        assert answer.headers["content-type"] == MEDIA_TYPE
        assert answer.body == {
            "schemas": [LIST_RESPONSE],
            "totalResults": 0,
            "startIndex": 1,
            "itemsPerPage": 0,
            "Resources": [],
        }


@together
@pytest.mark.parametrize(
    "path",
    [
        "/Users/",
        "//Users",
        "/Users?aadOptscim062020",
        "/Users/?aadOptscim062020&filter=userName+eq+%22x%22",
        "/Users?a=1&b",
    ],
)
async def test_slashes_and_unknown_parameters_are_tolerated(empty: Listener, path: str) -> None:
    """Tenant URLs come with and without a slash at the end, and with Entra's flag as a query."""
    assert names(await empty.get(path)) == []


async def test_a_user_is_created_read_and_found_with_every_value_as_it_was_sent(scim: Listener) -> None:
    """Entra compares what it reads with what it wrote: 201 with Location, then the same resource by id and by filter."""
    created = await scim.post("/Users", FULL)

    assert created.status == 201
    body = created.body
    assert created.headers["location"] == body["meta"]["location"] == f"{scim.base()}/Users/{body['id']}"
    assert created.headers["etag"] == body["meta"]["version"]
    assert body["meta"]["resourceType"] == "User"
    assert body["meta"]["created"].endswith("Z")
    assert {key: body[key] for key in FULL} == FULL
    assert (await scim.get(f"/Users/{body['id']}")).body == body
    assert (await scim.get("/Users?filter=userName+eq+%22ada%40contoso.example%22")).body["Resources"] == [body]
    assert [user.user_name for user in scim.shelf.accounts.values()] == ["Ada@Contoso.example"]


async def test_schemas_are_computed_and_not_taken_from_the_client(scim: Listener) -> None:
    """RFC 7643 section 3.1; Entra does not add a custom extension's URN to schemas."""
    urn = "urn:ietf:params:scim:schemas:extension:Shelf:2.0:User"
    body = await scim.user(**{urn: {"slot": "7"}, "id": "mine", "meta": {"resourceType": "Group"}})

    assert body["schemas"] == [USER, urn]
    assert body["id"] != "mine"
    assert body["meta"]["resourceType"] == "User"


# ---- finding


async def test_every_way_entra_matches_finds_the_user(scim: Listener) -> None:
    """The matching attributes of Entra's mapping, in every spelling its clients are known to use."""
    await scim.post("/Users", FULL)
    await scim.user("other@contoso.example", externalId="other")

    for question in (
        "userName+eq+%22ADA%40contoso.EXAMPLE%22",
        "USERNAME%20EQ%20%22ada@contoso.example%22",
        "userName eq ada@contoso.example".replace(" ", "+"),
        "externalId+eq+%22Ada-01%22",
        "emails%5Btype+eq+%22work%22%5D.value+eq+%22ada%40contoso.example%22",
        'emails[type+eq+"work"].value+eq+"ada@contoso.example"'.replace('"', "%22"),
        "displayName+eq+%22ada++byron%22",
        "userName+eq+%22ada%40contoso.example%22+and+externalId+eq+%22Ada-01%22",
        "name.familyName+eq+%22byron%22",
        "title+sw+%22Eng%22+and+active+eq+%22True%22",
        "phoneNumbers%5Btype+eq+%22fax%22%5D.value+eq+%220041-31%22",
        "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:department+eq+%22R%26D%22",
        "meta.resourceType+eq+%22User%22+and+title+pr",
    ):
        assert names(await scim.get(f"/Users?filter={question}")) == ["Ada@Contoso.example"], question
    for question in (
        "externalId+eq+%22ada-01%22",
        "userName+eq+%22ada%40contoso.example%22+and+externalId+eq+%22other%22",
        "userName+eq+%22+%22",
        "nickName+eq+%22x%22",
        "unknownThing+eq+%22x%22",
        f"id+eq+%22{NOBODY}%22",
        "id+eq+%22%27%3B--%22",
    ):
        assert names(await scim.get(f"/Users?filter={question}")) == [], question


async def test_a_reference_check_by_id_and_manager_works(scim: Listener) -> None:
    """Entra's older reference check: id and manager in one filter, only id wanted back."""
    boss = await scim.user("boss@contoso.example")
    ada = await scim.user(**{ENTERPRISE_SCHEMA: {"manager": {"value": boss["id"]}}})

    found = await scim.get(f"/Users?filter=id+eq+%22{ada['id']}%22+and+manager+eq+%22{boss['id']}%22&attributes=id")
    other = await scim.get(f"/Users?filter=id+eq+{ada['id']}+and+manager+eq+{ada['id']}&attributes=id")

    assert found.body["Resources"] == [{"schemas": ada["schemas"], "id": ada["id"]}]
    assert other.body["Resources"] == []


async def test_a_user_that_was_renamed_is_found_by_the_new_name_only(scim: Listener) -> None:
    """A filter that still finds the old name would make Entra link two people to one."""
    ada = await scim.user()
    await scim.patch(f"/Users/{ada['id']}", {"op": "Replace", "path": "userName", "value": "king@contoso.example"})

    assert names(await scim.get("/Users?filter=userName+eq+%22ada%40contoso.example%22")) == []
    assert names(await scim.get("/Users?filter=userName+eq+%22king%40contoso.example%22")) == ["king@contoso.example"]


async def test_a_deactivated_user_stays_findable(scim: Listener) -> None:
    """Entra looks for disabled users before it creates; hiding them makes duplicates."""
    ada = await scim.user()
    await scim.patch(f"/Users/{ada['id']}", {"op": "Replace", "path": "active", "value": "False"})

    found = await scim.get("/Users?filter=userName+eq+%22ada%40contoso.example%22")

    assert [user["active"] for user in found.body["Resources"]] == [False]


@together
@pytest.mark.parametrize(
    "question",
    [
        "userName",
        "userName+xx+%22a%22",
        "userName+eq+%22a",
        "(userName+eq+%22a%22",
        "password+eq+%22a%22",
        "+",
        "a+eq+%22",
    ],
)
async def test_a_filter_that_is_none_is_refused_on_both_endpoints(empty: Listener, question: str) -> None:
    """RFC 7644 table 9: 400 invalidFilter, never 500 and never everybody."""
    assert is_error(await empty.get(f"/Users?filter={question}"), 400, "invalidFilter")
    assert is_error(await empty.get(f"/Groups?filter={question}"), 400, "invalidFilter")


async def test_a_name_spelled_as_the_product_spells_it_finds_the_user(tmp_path: Path) -> None:
    """Rule A1: filters match when both values normalize to the same; asked only when the letters themselves miss."""
    asked: list[str] = []

    async def digits(target: str, user_name: str) -> Sequence[str]:
        asked.append(user_name)
        spelled = "".join(char for char in user_name if char.isdigit())
        return [spelled] if spelled else []

    async with listening(tmp_path, other_spellings=digits) as scim:
        await scim.user("+41 79 000 00 01")

        assert names(await scim.get("/Users?filter=userName+eq+%22%2B41790000001%22")) == ["+41 79 000 00 01"]
        assert asked == ["+41790000001"]
        assert names(await scim.get("/Users?filter=userName+eq+%22%2B41+79+000+00+01%22")) == ["+41 79 000 00 01"]
        assert names(await scim.get("/Users?filter=userName+eq+%22nobody%22")) == []
        assert names(await scim.get("/Users?filter=userName+eq+%22%2B41790000001%22", target=BETA)) == []
        assert asked == ["+41790000001", "nobody", "+41790000001"]


async def test_a_worker_that_does_not_say_how_it_spells_delays_nobody_for_long(tmp_path: Path) -> None:
    """The connection test must answer when no worker runs."""

    async def never(target: str, user_name: str) -> Sequence[str]:
        await asyncio.Event().wait()
        return ()

    async with listening(tmp_path, other_spellings=never) as scim:
        started = time.monotonic()
        assert names(await scim.get("/Users?filter=userName+eq+%22x%22")) == []
        assert time.monotonic() - started < SPELLING_WAIT_S + 2


# ---- pages


async def test_pages_echo_their_start_and_meet_every_user_once(scim: Listener) -> None:
    """Microsoft's validation: at least eleven users, pages of five, startIndex echoed exactly."""
    made = [(await scim.user(f"user-{number:02}@contoso.example"))["userName"] for number in range(11)]

    for query in ("", "filter=userName+sw+%22user%22&"):
        seen: list[str] = []
        for start in (1, 6, 11):
            answer = await scim.get(f"/Users?{query}startIndex={start}&count=5")
            assert answer.body["startIndex"] == start
            assert answer.body["totalResults"] == 11
            seen += names(answer)
        assert seen == made


@pytest.mark.parametrize(
    ("query", "start", "size"),
    [
        ("startIndex=0&count=2", 1, 2),
        ("startIndex=-7&count=2", 1, 2),
        ("count=0", 1, 0),
        ("count=-1", 1, 0),
        ("startIndex=3", 3, 1),
        ("startIndex=4", 4, 0),
        ("startIndex=999999999999999999&count=5", 999999999999999999, 0),
        ("count=999999999", 1, 3),
        ("STARTINDEX=2&Count=1", 2, 1),
    ],
)
async def test_the_edges_of_paging(scim: Listener, query: str, start: int, size: int) -> None:
    """RFC 7644 section 3.4.2.4: below 1 is 1, negative counts are 0, beyond the end is empty; the total is always of all."""
    for number in range(3):
        await scim.user(f"user-{number}@contoso.example")

    answer = await scim.get(f"/Users?{query}")

    assert answer.body["startIndex"] == start
    assert answer.body["totalResults"] == 3
    assert len(names(answer)) == size


@together
@pytest.mark.parametrize("query", ["startIndex=x", "count=1.5", "count=", "startIndex=1e3", "count=" + "9" * 40])
async def test_a_page_that_is_no_number_is_refused(empty: Listener, query: str) -> None:
    """RFC 7644 table 9: 400 invalidValue."""
    assert is_error(await empty.get(f"/Users?{query}"), 400, "invalidValue")


def test_a_page_is_never_larger_than_the_configured_bound() -> None:
    """S7: count 200 at most, also when nothing was asked."""
    assert page_of({}, 200).count == 200
    assert page_of({"count": "5000"}, 200).count == 200


# ---- projections


async def test_only_what_was_asked_for_is_returned(scim: Listener) -> None:
    """RFC 7644 section 3.9: id and schemas always, names in any letter case, on every operation that answers a resource."""
    ada = (await scim.post("/Users", FULL)).body

    chosen = await scim.get(f"/Users/{ada['id']}?attributes=USERNAME,name.familyName,emails.value")
    without = await scim.get("/Users?excludedAttributes=emails,phoneNumbers,addresses,meta,name")
    patched = await scim.patch(
        f"/Users/{ada['id']}?attributes=title", {"op": "replace", "path": "title", "value": "Lead"}
    )

    assert chosen.body == {
        "schemas": ada["schemas"],
        "id": ada["id"],
        "userName": "Ada@Contoso.example",
        "name": {"familyName": "Byron"},
        "emails": [{"value": "ada@contoso.example"}],
    }
    assert without.body["Resources"][0].keys().isdisjoint({"emails", "phoneNumbers", "addresses", "meta", "name"})
    assert patched.body == {"schemas": ada["schemas"], "id": ada["id"], "title": "Lead"}


async def test_a_search_can_be_posted(scim: Listener) -> None:
    """RFC 7644 section 3.4.3: the same answer as with a query, for people and for everything; groups are none."""
    ada = (await scim.post("/Users", FULL)).body
    await scim.user("other@contoso.example")
    search = {
        "schemas": ["urn:ietf:params:scim:api:messages:2.0:SearchRequest"],
        "filter": 'userName eq "ada@contoso.example"',
        "attributes": ["displayName"],
        "startIndex": 1,
        "count": 5,
    }

    for path in ("/Users/.search", "/.search"):
        answer = await scim.post(path, search)
        assert answer.body["Resources"] == [{"schemas": ada["schemas"], "id": ada["id"], "displayName": "Ada  Byron"}]
    assert (await scim.post("/Groups/.search", search)).body["totalResults"] == 0
    assert is_error(await scim.post("/Users/.search", {"count": "x"}), 400, "invalidValue")
    assert is_error(await scim.post("/Users/.search", {"filter": {"a": 1}}), 400, "invalidValue")
    assert (await scim.get("/Users/.search")).headers["allow"] == "POST"


# ---- writing


async def test_a_duplicate_is_409_and_says_what_to_do(scim: Listener) -> None:
    """RFC 7644 section 3.3: uniqueness, in any letter case; the first one is untouched."""
    ada = await scim.user(externalId="a")

    assert is_error(await scim.post("/Users", {"userName": "ADA@contoso.example"}), 409, "uniqueness")
    assert is_error(await scim.post("/Users", {"userName": "b@contoso.example", "externalId": "a"}), 409, "uniqueness")
    assert (await scim.get("/Users")).body["Resources"] == [ada]


async def test_the_products_refusal_reaches_entra_word_for_word_and_leaves_nothing(scim: Listener) -> None:
    """Design 5: what Entra was told failed is not readable; the next POST with a mended value succeeds."""
    refused = await scim.post("/Users", {"userName": "ada@contoso.example", "title": "forbidden"})

    assert is_error(refused, 400, "invalidValue")
    assert refused.body["detail"] == "title must not be 'forbidden'. Map another attribute."
    assert names(await scim.get("/Users")) == []
    assert names(await scim.get("/Users?filter=userName+eq+%22ada%40contoso.example%22")) == []
    assert (await scim.user(title="Engineer"))["title"] == "Engineer"


async def test_a_refused_patch_shows_the_last_confirmed_values(scim: Listener) -> None:
    """Design 5: Entra sees a difference at its next comparison and sends the change again; the version says so too."""
    ada = await scim.user(title="Engineer")

    refused = await scim.patch(f"/Users/{ada['id']}", {"op": "Replace", "path": "title", "value": "forbidden"})

    assert is_error(refused, 400, "invalidValue")
    shown = (await scim.get(f"/Users/{ada['id']}")).body
    assert shown["title"] == "Engineer"
    assert shown["meta"]["version"] != ada["meta"]["version"]
    again = await scim.patch(f"/Users/{ada['id']}", {"op": "Replace", "path": "title", "value": "Lead"})
    assert (again.status, again.body["title"]) == (200, "Lead")


async def test_a_patch_answers_200_with_the_resource(scim: Listener) -> None:
    """Entra's samples: 200 with a body; the product has the new values too."""
    ada = await scim.user(title="Engineer")

    answer = await scim.patch(
        f"/Users/{ada['id']}",
        {"op": "Replace", "path": "active", "value": "False"},
        {"op": "Add", "path": "name.familyName", "value": "King"},
        {"op": "Remove", "path": "title"},
    )

    assert answer.status == 200
    assert answer.body["active"] is False
    assert answer.body["name"] == {"familyName": "King"}
    assert "title" not in answer.body
    assert answer.headers["etag"] == answer.body["meta"]["version"] != ada["meta"]["version"]
    assert answer.body["meta"]["created"] == ada["meta"]["created"]
    (account,) = scim.shelf.accounts.values()
    assert account.active is False


async def test_put_replaces_what_is_there(scim: Listener) -> None:
    """RFC 7644 section 3.5.1: what is not in the body is gone."""
    ada = await scim.user(title="Engineer", displayName="Ada")

    answer = await scim.send(
        "PUT", f"/Users/{ada['id']}", json={"userName": "ada@contoso.example", "displayName": "A."}
    )

    assert answer.status == 200
    assert answer.body["displayName"] == "A."
    assert "title" not in answer.body
    assert (await scim.get(f"/Users/{ada['id']}")).body == answer.body


async def test_a_deleted_user_is_gone_for_every_request(scim: Listener) -> None:
    """204 without a body, then 404 everywhere, and the name is free for a new user."""
    ada = await scim.user()

    gone = await scim.send("DELETE", f"/Users/{ada['id']}")

    assert (gone.status, gone.raw) == (204, b"")
    for again in (
        await scim.send("DELETE", f"/Users/{ada['id']}"),
        await scim.get(f"/Users/{ada['id']}"),
        await scim.patch(f"/Users/{ada['id']}", {"op": "replace", "path": "title", "value": "x"}),
        await scim.send("PUT", f"/Users/{ada['id']}", json={"userName": "ada@contoso.example"}),
    ):
        assert is_error(again, 404)
    assert names(await scim.get("/Users")) == []
    assert (await scim.user())["id"] != ada["id"]


async def test_an_outage_of_the_product_is_never_an_error_for_entra(tmp_path: Path) -> None:
    """Reliability 7: accepted after the wait, readable at once, and applied when the product is back."""
    async with listening(tmp_path, answer_wait_s=0.2) as scim:
        scim.shelf.away = True

        ada = await scim.user()

        assert (await scim.get(f"/Users/{ada['id']}")).body["userName"] == "ada@contoso.example"
        assert scim.shelf.accounts == {}


# ---- versions


async def test_a_version_that_is_known_is_not_sent_again(scim: Listener) -> None:
    """RFC 7644 section 3.14: If-None-Match with the version, a list, or any version is 304 without a body."""
    ada = await scim.user()
    version = ada["meta"]["version"]

    for header in (version, f'W/"0", {version}', version.removeprefix("W/"), "*"):
        answer = await scim.get(f"/Users/{ada['id']}", headers={"If-None-Match": header})
        assert (answer.status, answer.raw, answer.headers["etag"]) == (304, b"", version)
    assert (await scim.get(f"/Users/{ada['id']}", headers={"If-None-Match": 'W/"99"'})).status == 200


async def test_a_write_on_another_version_is_412_and_changes_nothing(scim: Listener) -> None:
    """RFC 7644 section 3.14: If-Match guards PATCH, PUT and DELETE."""
    ada = await scim.user(title="Engineer")
    path, stale = f"/Users/{ada['id']}", {"If-Match": 'W/"99"'}
    change = {"op": "replace", "path": "title", "value": "Lead"}

    assert is_error(await scim.patch(path, change, headers=stale), 412)
    assert is_error(await scim.send("PUT", path, json={"userName": "x@contoso.example"}, headers=stale), 412)
    assert is_error(await scim.send("DELETE", path, headers=stale), 412)
    assert (await scim.get(path)).body == ada
    fresh = await scim.patch(path, change, headers={"If-Match": ada["meta"]["version"]})
    assert fresh.status == 200
    assert is_error(await scim.patch(path, change, headers={"If-Match": ada["meta"]["version"]}), 412)
    assert (await scim.send("DELETE", path, headers={"If-Match": fresh.headers["etag"]})).status == 204


# ---- groups of a product that has none


@together
async def test_groups_of_a_product_without_groups_are_empty_and_refused_with_the_step(empty: Listener) -> None:
    """Queries find nothing (404 would break the connection); writes name what to switch off in Entra, as 400."""
    assert (await empty.get("/Groups?excludedAttributes=members&startIndex=3")).body["startIndex"] == 3
    assert is_error(await empty.get(f"/Groups/{NOBODY}"), 404)
    assert is_error(await empty.send("DELETE", f"/Groups/{NOBODY}"), 404)
    for refused in (
        await empty.post("/Groups", {"displayName": "Sales"}),
        await empty.patch(f"/Groups/{NOBODY}", {"op": "add", "path": "members", "value": [{"value": "1"}]}),
        await empty.send("PUT", f"/Groups/{NOBODY}", json={"displayName": "Sales"}),
    ):
        assert is_error(refused, 400, "invalidValue")
        assert refused.body["detail"].endswith("Switch group provisioning off in Entra.")


async def test_a_connector_that_names_no_step_is_refused_with_the_general_one(tmp_path: Path) -> None:
    """The sentence names the switch in Entra's own words."""
    spec = msgspec.structs.replace(Shelf.spec, groups_step="")
    async with listening(tmp_path, spec_of=lambda target: spec) as scim:
        refused = await scim.post("/Groups", {"displayName": "Sales"})

        assert is_error(refused, 400, "invalidValue")
        assert "Provision Microsoft Entra ID Groups > Enabled to No" in refused.body["detail"]


async def test_before_any_worker_was_seen_groups_are_put_off_and_not_refused(tmp_path: Path) -> None:
    """P6: no failure for something merely late; searches go on finding nothing, which is what Test Connection asks for."""
    async with listening(tmp_path, spec_of=lambda target: None) as scim:
        put_off = await scim.post("/Groups", {"displayName": "Sales"})

        assert is_error(put_off, 503)
        assert "No worker has said yet whether this target takes groups" in put_off.body["detail"]
        assert put_off.headers["retry-after"] == "30"
        assert (await scim.get("/Groups?filter=displayName+eq+%22Sales%22")).body["totalResults"] == 0


# ---- isolation


async def test_an_id_of_another_target_answers_exactly_like_a_random_one(scim: Listener) -> None:
    """S5, I11: read, change, replace, delete, filter; and nothing of it happens."""
    ada = await scim.user()
    change = {"op": "replace", "path": "title", "value": "x"}

    async def tried(resource: str) -> list[tuple[int, bytes]]:
        answers = [
            await scim.get(f"/Users/{resource}", target=BETA),
            await scim.patch(f"/Users/{resource}", change, target=BETA),
            await scim.send("PUT", f"/Users/{resource}", json={"userName": "x"}, target=BETA),
            await scim.send("DELETE", f"/Users/{resource}", target=BETA),
            await scim.get(f"/Users?filter=id+eq+%22{resource}%22", target=BETA),
        ]
        return [(answer.status, answer.raw) for answer in answers]

    assert await tried(ada["id"]) == await tried(NOBODY)
    assert names(await scim.get("/Users", target=BETA)) == []
    assert (await scim.get(f"/Users/{ada['id']}")).body == ada
    assert (await scim.user(target=BETA))["id"] != ada["id"]


@together
@pytest.mark.parametrize("resource", ["..", ".", "%00", "%2e%2e", "a%2Fb", "%F0%9F%98%80", "'--", "x" * 300, "%ff"])
async def test_an_id_that_cannot_be_one_is_404(empty: Listener, resource: str) -> None:
    """S8: whatever stands in the path never reaches the database as anything but a value."""
    assert is_error(await empty.get(f"/Users/{resource}"), 404)
    assert is_error(await empty.send("DELETE", f"/Users/{resource}"), 404)


# ---- HTTP


@together
@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/Users", "GET, HEAD, POST"),
        ("DELETE", "/Users/", "GET, HEAD, POST"),
        ("POST", f"/Users/{NOBODY}", "GET, HEAD, PUT, PATCH, DELETE"),
        ("PATCH", "/Groups", "GET, HEAD, POST"),
        ("POST", "/Schemas", "GET, HEAD"),
        ("DELETE", "/ServiceProviderConfig", "GET, HEAD"),
        ("PUT", f"/ResourceTypes/{NOBODY}", "GET, HEAD"),
    ],
)
async def test_a_method_that_is_not_there_is_405_and_says_which_are(
    empty: Listener, method: str, path: str, allowed: str
) -> None:
    """RFC 9110 section 15.5.6: Allow is required."""
    answer = await empty.send(method, path, json={})

    assert is_error(answer, 405)
    assert answer.headers["allow"] == allowed


@together
@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/Users", "GET, HEAD, POST, OPTIONS"),
        (f"/Users/{NOBODY}", "GET, HEAD, PUT, PATCH, DELETE, OPTIONS"),
        ("/Groups/.search", "POST, OPTIONS"),
        ("/Bulk", "POST, OPTIONS"),
        ("/Schemas", "GET, HEAD, OPTIONS"),
    ],
)
async def test_options_names_every_method_of_an_address(empty: Listener, path: str, allowed: str) -> None:
    """RFC 9110 section 9.3.7; a key is asked for here as everywhere."""
    answer = await empty.send("OPTIONS", path)

    assert (answer.status, answer.raw) == (204, b"")
    assert answer.headers["allow"] == allowed
    assert is_error(await empty.send("OPTIONS", path, token=""), 401)


@together
@pytest.mark.parametrize("path", ["/Schemas", "/ResourceTypes"])
async def test_discovery_refuses_filters_and_overlooks_the_rest(empty: Listener, path: str) -> None:
    """RFC 7644 section 4: 403 for a filter, so that nobody believes it was obeyed; paging and sorting are ignored."""
    assert is_error(await empty.get(f"{path}?filter=id+eq+%22x%22"), 403)
    assert is_error(await empty.get(f"{path}?FILTER=x&aadOptscim062020"), 403)
    whole = await empty.get(path)
    assert (await empty.get(f"{path}?aadOptscim062020&startIndex=2&count=1&sortBy=id")).body == whole.body


@together
@pytest.mark.parametrize("path", ["/Nothing", "", "/Users/a/b", "/Bulk/a", "/users"])
async def test_an_address_that_is_not_there_is_a_scim_404(empty: Listener, path: str) -> None:
    """Entra's admin reads the body; an HTML page would tell nothing."""
    assert is_error(await empty.get(path), 404)


@together
@pytest.mark.parametrize(
    "path",
    [
        "/Users",
        "/Groups",
        "/ServiceProviderConfig",
        "/ResourceTypes",
        "/ResourceTypes/User",
        "/Schemas",
        f"/Schemas/{USER}",
    ],
)
async def test_head_is_get_without_the_body(empty: Listener, path: str) -> None:
    """RFC 9110 section 9.3.2: the same headers, length included."""
    full, head = await empty.get(path), await empty.send("HEAD", path)

    assert (head.status, head.raw) == (200, b"")
    assert full.status == 200
    assert head.headers["content-length"] == str(len(full.raw))
    assert head.headers["content-type"] == MEDIA_TYPE


async def test_discovery_speaks_of_the_address_it_was_asked_at(tmp_path: Path) -> None:
    """Behind a proxy the public address is configured; otherwise it is that of the request."""
    async with listening(tmp_path) as scim:
        own = await scim.get("/ServiceProviderConfig")
        assert own.body["meta"]["location"] == f"{scim.base()}/ServiceProviderConfig"
    folder = tmp_path / "second"
    folder.mkdir()
    async with listening(folder, public_url="https://provgate.example.com/") as scim:
        ada = await scim.user()
        assert ada["meta"]["location"] == f"https://provgate.example.com/scim/v2/alpha/Users/{ada['id']}"


@pytest.mark.parametrize(
    "media_type", ["application/scim+json", "application/json; charset=utf-8", "Application/SCIM+JSON", ""]
)
async def test_json_under_its_names_and_without_a_name_is_taken(scim: Listener, media_type: str) -> None:
    """Entra sends scim+json, other clients json or nothing."""
    head = b"Content-Type: " + media_type.encode() + b"\r\n" if media_type else b""
    body = b'{"userName":"a@contoso.example"}'
    answer = await scim.raw(request(scim, "POST", "/Users", body, head))

    assert answer.startswith(b"HTTP/1.1 201")


@together
@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/xml", "multipart/form-data; boundary=x", "application/jsonp"]
)
async def test_another_content_type_is_415(empty: Listener, media_type: str) -> None:
    """RFC 9110 section 15.5.16."""
    answer = await empty.post("/Users", {"userName": "a"}, headers={"Content-Type": media_type})

    assert is_error(answer, 415)


def request(
    scim: Listener, method: str, path: str, body: bytes = b"", head: bytes = b"", *, length: bool = True
) -> bytes:
    """A request as bytes, with a good key."""
    size = b"Content-Length: %d\r\n" % len(body) if length else b""
    line = f"{method} /scim/v2/{ALPHA}{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode()
    key = f"Authorization: Bearer {scim.tokens[ALPHA]}\r\n".encode()
    return line + key + head + size + b"\r\n" + body


# ---- what nobody should send


DEEP = b'{"userName":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BOMBS = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"17",
    b'"text"',
    b"\xff\xfe\x00",
    b'{"userName":"a","userName":"b"}',
    b'{"userName":"a\\u0000b"}',
    b'{"userName":"\\ud800"}',
    b'{"userName":1e999}',
    b'{"userName":"' + b"x" * 5_000 + b'"}',
    b'{"userName":"a",' + b",".join(b'"k%d":1' % number for number in range(2_500)) + b"}",
    DEEP,
    b'{"userName":"a","emails":[' + b",".join([b'{"value":"a"}'] * 400) + b"]}",
    b'{"schemas":["urn:ietf:params:scim:schemas:core:2.0:Group"],"userName":"a"}',
    b'{"userName":{"a":1}}',
    b'{"userName":"a","active":"maybe"}',
    b'{"userName":"a","name":"text"}',
    b'{"userName":" "}',
    b'{"displayName":"a"}',
]


@together
@pytest.mark.parametrize("body", BOMBS, ids=[body[:24].decode("latin-1") for body in BOMBS])
async def test_a_body_that_is_none_is_400_and_the_gateway_goes_on(empty: Listener, body: bytes) -> None:
    """S7, S8: malformed, of a wrong type, nested, too many keys, U+0000, doubled keys; always a SCIM error."""
    one = f"/Users/{(await empty.user('z@contoso.example'))['id']}"
    for method, path in (("POST", "/Users"), ("PUT", one), ("PATCH", one)):
        answer = await empty.send(method, path, data=body)

        assert answer.status == 400, answer.body
        assert answer.body["scimType"] in ("invalidSyntax", "invalidValue")
    assert (await empty.get("/Users?filter=userName+eq+%22a%22")).status == 200
    assert (await empty.send("DELETE", one)).status == 204


@together
async def test_an_announced_body_that_is_too_large_is_refused_before_it_is_sent(empty: Listener) -> None:
    """S7: 256 KiB; 413 from the Content-Length alone, and the connection ends."""
    head = b"Content-Type: application/json\r\nContent-Length: 300000\r\n"
    answer = await empty.raw(request(empty, "POST", "/Users", head=head, length=False))

    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer.lower()
    assert b'"status":"413"' in answer


@together
async def test_a_body_that_turns_out_too_large_is_413(empty: Listener) -> None:
    """S7: without a Content-Length the bytes are counted as they come."""
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    head = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    answer = await empty.raw(request(empty, "POST", "/Users", chunk * 9, head, length=False))

    assert answer.startswith(b"HTTP/1.1 413")


async def test_a_body_that_does_not_come_is_408(tmp_path: Path) -> None:
    """S7: a slow sender holds a connection for body_wait_s at most."""
    async with listening(tmp_path, limits=LimitSettings(body_wait_s=0.2)) as scim:
        head = b"Content-Type: application/json\r\nContent-Length: 50\r\n"
        answer = await scim.raw(request(scim, "POST", "/Users", b'{"userName"', head, length=False))

        assert answer.startswith(b"HTTP/1.1 408")


@together
async def test_an_address_or_headers_beyond_the_bound_are_refused(empty: Listener) -> None:
    """S7: URL 8 KiB, headers 16 KiB, filter 1 KiB."""
    assert is_error(await empty.get("/Users?x=" + "a" * 9_000), 414)
    head = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 1_000) for number in range(20))
    assert (await empty.raw(request(empty, "GET", "/Users", head=head))).startswith(b"HTTP/1.1 431")
    assert is_error(await empty.get("/Users?filter=userName+eq+%22" + "a" * 1_100 + "%22"), 400, "invalidFilter")


@together
async def test_random_requests_never_bring_the_gateway_down(empty: Listener) -> None:
    """Reliability 7: malformed input is 4xx, never 5xx; the seeds are fixed, so that a failure can be repeated."""
    chooser = random.Random(20_260)
    pieces = [
        '{"',
        "userName",
        '":',
        '"a"',
        "}",
        "[",
        "]",
        ",",
        "null",
        "1",
        "emails",
        "\\u0000",
        "é",
        " eq ",
        "(",
        "%",
        "&",
    ]
    for _ in range(150):
        text = "".join(chooser.choice(pieces) for _ in range(chooser.randint(1, 12)))
        method = chooser.choice(["POST", "PATCH", "PUT"])
        path = "/Users" if method == "POST" else f"/Users/{NOBODY}"
        answer = await empty.send(method, path, data=text.encode())
        assert 400 <= answer.status < 500, text
        quoted = "".join(f"%{byte:02X}" for byte in text.encode())
        assert (await empty.get(f"/Users?filter={quoted}")).status in (200, 400), text


# ---- when something is broken here


async def broken(target: str, user_name: str) -> Sequence[str]:
    """A part with a mistake in it."""
    raise KeyError("ada@contoso.example")


async def test_a_mistake_of_ours_is_a_500_that_tells_an_id_and_nothing_else(tmp_path: Path) -> None:
    """S11: the body names an id to look for; the log has the type and the place, neither has a value."""
    async with listening(tmp_path, other_spellings=broken) as scim:
        with structlog.testing.capture_logs() as lines:
            answer = await scim.get("/Users?filter=userName+eq+%22secret-name%22")

        assert is_error(answer, 500)
        (line,) = [line for line in lines if line["event"] == "scim.failed"]
        assert line["error_id"] == answer.body["errorId"]
        assert line["error"] == "KeyError"
        assert line["at"].startswith("test_endpoints.py:")
        assert "contoso" not in str(lines) + answer.raw.decode()
        assert "secret-name" not in str(lines)


async def test_a_store_that_cannot_take_more_is_503_with_a_time(tmp_path: Path) -> None:
    """Reliability 7: database away or overloaded is 503 with Retry-After; reads that need no writer go on."""
    store = Store.open(tmp_path / "store.sqlite3", jobs_waiting_max=1)
    gate = threading.Event()
    started = threading.Event()

    def hold(_: object) -> None:
        started.set()
        gate.wait(10)

    try:
        async with listening(tmp_path, store=store) as scim:
            await scim.get("/Users")
            async with asyncio.timeout(5):
                while store.jobs_waiting:  # noqa: ASYNC110 - the note of the use of the key is being written
                    await asyncio.sleep(0.01)
            store.post(hold)
            await asyncio.to_thread(started.wait, 10)
            store.post(lambda ledger: None)
            refused = await scim.post("/Users", {"userName": "a@contoso.example"})
            still = await scim.get("/Users?filter=userName+eq+%22a%22")
            gate.set()

            assert is_error(refused, 503)
            assert int(refused.headers["retry-after"]) > 0
            assert still.status == 200
    finally:
        gate.set()
        await store.close()


async def test_a_search_without_an_index_is_bounded_in_number(scim: Listener) -> None:
    """S7: many expensive searches at once are asked to come again instead of starving everybody."""
    for number in range(30):
        await scim.user(f"user-{number}@contoso.example")

    answers = await asyncio.gather(*(scim.get("/Users?filter=title+eq+%22x%22") for _ in range(12)))

    assert {answer.status for answer in answers} <= {200, 503}
    assert any(answer.status == 200 for answer in answers)


# ---- health and log


async def test_health_needs_no_key_and_readiness_is_asked(scim: Listener) -> None:
    """Probes of an orchestrator: alive is always yes, ready is what the process says."""
    async with scim.session.get(f"{scim.origin}/health/live") as live:
        assert live.status == 200
    async with scim.session.get(f"{scim.origin}/health/ready") as ready:
        assert ready.status == 200
    scim.ready = False
    async with scim.session.get(f"{scim.origin}/health/ready") as ready:
        assert ready.status == 503
    async with scim.session.head(f"{scim.origin}/health/live") as live:
        assert live.status == 200
    async with scim.session.get(f"{scim.origin}/health/nothing") as nothing:
        assert nothing.status == 404
        assert (await nothing.json(content_type=None))["schemas"] == [ERROR]
    async with scim.session.get(f"{scim.origin}/schema") as docs:
        assert docs.status == 401


async def test_one_line_per_request_says_what_and_nothing_of_whom(scim: Listener) -> None:
    """S11: method, path template, target, status, time; no query, no id, no value of a person."""
    ada = await scim.user()
    with structlog.testing.capture_logs() as lines:
        await scim.get("/Users?filter=userName+eq+%22ada%40contoso.example%22")
        await scim.patch(f"/Users/{ada['id']}", {"op": "replace", "path": "title", "value": "Engineer"})

    requests = [line for line in lines if line["event"] == "scim.request"]
    assert [(line["method"], line["path"], line["target"], line["status"]) for line in requests] == [
        ("GET", "/scim/v2/{target}/Users", "alpha", 200),
        ("PATCH", "/scim/v2/{target}/Users/{id}", "alpha", 200),
    ]
    assert all(line["ms"] >= 0 for line in requests)
    assert "ada" not in str(requests)
    assert ada["id"] not in str(requests)


async def test_requests_are_counted_for_metrics(tmp_path: Path) -> None:
    """Targets that are not configured are counted together: nobody can invent names in the metrics."""
    seen: list[tuple[str, str, int]] = []
    async with listening(tmp_path, observed=lambda target, op, status: seen.append((target, op, status))) as scim:
        await scim.get("/Users")
        await scim.get("/Users", target="invented", token="x")
        await scim.send("PROPFIND", "/Invented")

    assert seen == [("alpha", "GET Users", 200), ("unknown", "GET Users", 401), ("alpha", "other other", 404)]
