"""SCIM groups over real HTTP, in front of the real engine and a product with groups (RFC 7643 section 4.2; how Entra calls)."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from deploy.emulators.entra import Dialect, Directory, ProvisioningJob, make_groups, make_people
from gateway.endpoints import MEMBERS_SHOWN_MAX
from gateway.messages import ERROR, LIST_RESPONSE, MEDIA_TYPE
from gateway.patch import MemberChange
from gateway.store import READER_THREADS, Reader, Store
from schemas.config import LimitSettings
from schemas.specs import Spec
from schemas.states import State
from tests.gateway.samples import samples
from tests.gateway.scim_listener import ALPHA, BETA, GROUP, Answer, GroupShelf, Listener, Shelf, listening
from tests.gateway.test_store import postgres, postgres_url  # noqa: F401 - fixtures
from tests.waiting import until

NOBODY = "0b7fd5f4-0000-4000-8000-000000000000"
MICROSOFT_GROUP = "http://schemas.microsoft.com/2006/11/ResourceManagement/ADSCIM/2.0/Group"
WAIT_S = 20.0


@pytest.fixture
async def scim(tmp_path: Path) -> AsyncIterator[Listener]:
    async with listening(tmp_path, shelf=GroupShelf()) as listener:
        yield listener


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Listener]:
    """One listener for tests that only look at groups of their own."""
    async with listening(tmp_path_factory.mktemp("groups"), shelf=GroupShelf()) as listener:
        yield listener


together = pytest.mark.asyncio(loop_scope="module")


def is_error(answer: Answer, status: int, scim_type: str | None = None) -> bool:
    """Whether an answer is a SCIM error of this kind (RFC 7644 section 3.12)."""
    assert answer.status == status, (answer.status, answer.body)
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.body["schemas"] == [ERROR]
    assert answer.body.get("scimType") == scim_type, answer.body
    assert answer.body["detail"]
    return True


def names(answer: Answer) -> list[str]:
    """displayNames of a list answer, in order."""
    assert answer.status == 200, answer.body
    assert answer.body["schemas"] == [LIST_RESPONSE]
    assert answer.body["itemsPerPage"] == len(answer.body["Resources"])
    return [resource["displayName"] for resource in answer.body["Resources"]]


def values(members: list[str]) -> list[dict[str, Any]]:
    """Members in the shape in which Entra sends them."""
    return [{"$ref": None, "value": member} for member in members]


async def people(scim: Listener, count: int, *, target: str = ALPHA) -> list[str]:
    """Ids of new users."""
    made = [scim.user(f"{uuid.uuid4().hex}@contoso.example", target=target) for _ in range(count)]
    return [user["id"] for user in await asyncio.gather(*made)]


async def members_of(scim: Listener, group: str) -> set[str]:
    """The members as a GET shows them."""
    answer = await scim.get(f"/Groups/{group}")
    assert answer.status == 200, answer.body
    return {member["value"] for member in answer.body.get("members", ())}


async def at_product(scim: Listener, group: str) -> set[str]:
    """The ids of the members the product has, told by their accounts."""
    shelf = scim.shelf
    assert isinstance(shelf, GroupShelf)
    row = await scim.store.read(lambda reader: reader.row(group))
    assert row is not None
    if row.account_id is None:
        return set()
    accounts = {}
    for account in shelf.groups[row.account_id][1]:
        name = shelf.accounts[account].user_name.casefold()
        found = await scim.store.read(lambda reader, name=name: reader.by_key(ALPHA, "user", "user_name", name))
        accounts[account] = found[0].id if found else "?"
    return set(accounts.values())


# ---- what Entra does


async def test_a_group_is_created_empty_and_found_by_its_name_in_any_case(scim: Listener) -> None:
    """Entra's guide: POST without members and with Microsoft's second schema; matched by displayName, members left out."""
    wished = {
        "schemas": [GROUP, MICROSOFT_GROUP],
        "externalId": "8c6d2f10-0000-4000-8000-00000000abcd",
        "displayName": "Sales",
        "meta": {"resourceType": "Group"},
    }
    created = await scim.post("/Groups", wished)

    assert created.status == 201
    body = created.body
    assert created.headers["location"] == body["meta"]["location"] == f"{scim.base()}/Groups/{body['id']}"
    assert created.headers["etag"] == body["meta"]["version"]
    assert body["schemas"] == [GROUP]
    assert body["meta"]["resourceType"] == "Group"
    assert body.keys() == {"schemas", "id", "externalId", "displayName", "meta"}
    for query in ("", "excludedAttributes=members&"):
        found = await scim.get(f"/Groups?{query}filter=displayName+eq+%22SALES%22")
        assert found.body["Resources"] == [body]
    assert (await scim.get(f"/Groups/{body['id']}?excludedAttributes=members")).body == body
    assert [name for name, _ in scim.shelf.groups.values()] == ["Sales"]


SAMPLES = {name: sample for name, sample in samples("PATCH").items() if sample["kind"] == "Group"}


@together
@pytest.mark.parametrize("name", SAMPLES)
async def test_every_documented_group_patch_leaves_what_it_asked_for(shared: Listener, name: str) -> None:
    """Each wire sample of a group PATCH, in both dialects: 204, then exactly these members and values."""
    ids = dict(zip(("88", "89", "90"), await people(shared, 3), strict=True))
    text = json.dumps(SAMPLES[name])
    for common in ("Sales", "8c6d2f10-0000-4000-8000-00000000abcd"):
        text = text.replace(f'"{common}', f'"{common} {uuid.uuid4().hex}')
    given = json.loads(text)["given"]
    before = [ids["88"], ids["90"]]
    group = await shared.group(given.pop("displayName"), *before, **given)
    for number, resource in {**ids, "9001": group["id"]}.items():
        text = text.replace(f'"{number}"', f'"{resource}"').replace(f'\\"{number}\\"', f'\\"{resource}\\"')
    sample = json.loads(text)
    expected = set(before)
    for step in sample["members"]:
        keep = expected if step["op"] != "replace" else set()
        expected = keep - set(step["ids"]) if step["op"] == "remove" else keep | set(step["ids"])

    answer = await shared.send("PATCH", f"/Groups/{group['id']}", json=sample["body"])

    assert (answer.status, answer.raw) == (204, b"")
    shown = (await shared.get(f"/Groups/{group['id']}")).body
    assert {member["value"] for member in shown.pop("members", [])} == expected
    assert {key: value for key, value in shown.items() if key not in ("schemas", "id", "meta")} == sample["stored"]
    assert await at_product(shared, group["id"]) == expected


def test_there_are_samples_of_every_way_to_change_members() -> None:
    """A folder that was moved must not turn the test above into none."""
    assert len(SAMPLES) >= 9


@together
async def test_a_legacy_remove_with_a_list_takes_those_and_never_all(shared: Listener) -> None:
    """Microsoft's compatibility page: reading it as "remove members" empties the group."""
    one, two, three = await people(shared, 3)
    group = await shared.group(f"Group {one}", one, two, three)

    for gone, left in (([one], {two, three}), ([NOBODY], {two, three}), ([], {two, three}), ([two, three], set())):
        operation = {"op": "Remove", "path": "members", "value": values(gone)}
        assert (await shared.patch(f"/Groups/{group['id']}", operation)).status == 204
        assert await members_of(shared, group["id"]) == left
        assert await at_product(shared, group["id"]) == left


@together
async def test_asking_again_for_what_is_there_changes_nothing(shared: Listener) -> None:
    """Entra repeats requests: repeated adds and removes are 204, keep the version, and the product hears nothing."""
    one, two = await people(shared, 2)
    group = await shared.group(f"Group {one}", one)
    path = f"/Groups/{group['id']}"
    calls = len(shared.shelf.steps)

    for operation in (
        {"op": "Add", "path": "members", "value": values([one])},
        {"op": "add", "path": "members", "value": values([one, one])},
        {"op": "replace", "path": "members", "value": [{"value": one}]},
        {"op": "Remove", "path": "members", "value": values([two])},
        {"op": "remove", "path": f'members[value eq "{two}"]'},
        {"op": "replace", "path": "displayName", "value": group["displayName"]},
        [
            {"op": "add", "path": "members", "value": values([two])},
            {"op": "remove", "path": f'members[value eq "{two}"]'},
        ],
        [
            {"op": "remove", "path": "members"},
            {"op": "add", "path": "members", "value": values([one])},
        ],
    ):
        answer = await shared.patch(path, *(operation if isinstance(operation, list) else [operation]))
        assert (answer.status, answer.headers["etag"]) == (204, group["meta"]["version"]), operation

    assert len(shared.shelf.steps) == calls
    assert (await shared.get(path)).body == group


@together
async def test_members_that_are_not_known_are_taken_and_hold_up_nobody_else(shared: Listener) -> None:
    """A membership for somebody who is not here yet waits behind that somebody; it does not fail, and the others go in."""
    one, two = await people(shared, 2)
    group = await shared.group(f"Group {one}", one)

    operation = {"op": "Add", "path": "members", "value": values([NOBODY, two])}
    assert (await shared.patch(f"/Groups/{group['id']}", operation)).status == 204

    shown = {member["value"]: member for member in (await shared.get(f"/Groups/{group['id']}")).body["members"]}
    assert shown.keys() == {one, two, NOBODY}
    assert shown[NOBODY] == {"value": NOBODY}
    assert await at_product(shared, group["id"]) == {one, two}

    async def waits() -> bool:
        row = await shared.store.read(lambda reader: reader.row(group["id"]))
        assert row is not None
        return row.state is State.BLOCKED and row.blocked_on == f"member {NOBODY}"

    await until(waits)


@together
async def test_a_member_is_shown_with_its_kind_and_address(shared: Listener) -> None:
    """RFC 7643 section 4.2: value, $ref and type; a nested group is a member like any other."""
    (one,) = await people(shared, 1)
    inner = await shared.group(f"Inner {one}")

    outer = await shared.group(f"Outer {one}", one, inner["id"])

    expected = [
        {"value": one, "$ref": f"{shared.base()}/Users/{one}", "type": "User"},
        {"value": inner["id"], "$ref": f"{shared.base()}/Groups/{inner['id']}", "type": "Group"},
    ]
    assert outer["members"] == sorted(expected, key=lambda member: member["value"])
    assert (await shared.get(f"/Groups/{outer['id']}")).body == outer


@together
async def test_a_deactivated_member_stays_in_its_groups(shared: Listener) -> None:
    """Entra does not resend memberships when somebody comes back, so they are kept."""
    one, two = await people(shared, 2)
    group = await shared.group(f"Group {one}", one, two)

    await shared.patch(f"/Users/{one}", {"op": "Replace", "path": "active", "value": "False"})
    assert await members_of(shared, group["id"]) == {one, two}
    (three,) = await people(shared, 1)
    operation = {"op": "Add", "path": "members", "value": values([three])}
    assert (await shared.patch(f"/Groups/{group['id']}", operation)).status == 204
    assert await at_product(shared, group["id"]) == {one, two, three}


@together
async def test_somebody_inactive_can_be_made_a_member(shared: Listener) -> None:
    """A disabled user is still a user with an account."""
    (one,) = await people(shared, 1)
    await shared.patch(f"/Users/{one}", {"op": "Replace", "path": "active", "value": "False"})
    group = await shared.group(f"Group {one}")

    operation = {"op": "Add", "path": "members", "value": values([one])}
    assert (await shared.patch(f"/Groups/{group['id']}", operation)).status == 204

    assert await members_of(shared, group["id"]) == await at_product(shared, group["id"]) == {one}


async def test_a_deleted_user_leaves_its_groups(scim: Listener) -> None:
    """RFC 7644 section 3.6: a deleted resource is not found any more, so neither in a group nor by a question for its groups."""
    one, two = await people(scim, 2)
    group = await scim.group("Sales", one, two)

    assert (await scim.send("DELETE", f"/Users/{one}")).status == 204

    assert await members_of(scim, group["id"]) == {two}
    assert names(await scim.get(f"/Groups?filter=members+eq+%22{one}%22")) == []


# ---- finding


async def test_every_way_to_ask_finds_the_right_groups(scim: Listener) -> None:
    """Entra's match queries and its older membership checks, and what else RFC 7644 section 3.4.2.2 allows."""
    one, two = await people(scim, 2)
    sales = await scim.group("Sales", one, externalId="A-1")
    await scim.group("Support", one, two, externalId="a-2")
    await scim.group("Empty")

    async def found(question: str) -> list[str]:
        quoted = "".join(f"%{byte:02X}" for byte in question.encode())
        return names(await scim.get(f"/Groups?filter={quoted}&excludedAttributes=members"))

    assert await found('displayName eq "sALES"') == ["Sales"]
    assert await found('DISPLAYNAME EQ "Sales"') == ["Sales"]
    assert await found('externalId eq "A-1"') == ["Sales"]
    assert await found('externalId eq "a-1"') == []
    assert await found(f'id eq "{sales["id"]}"') == ["Sales"]
    assert await found(f'id eq "{sales["id"]}" and members eq "{one}"') == ["Sales"]
    assert await found(f"id eq {sales['id']} and members eq {one}") == ["Sales"]
    assert await found(f'id eq "{sales["id"]}" and members.value eq "{one}"') == ["Sales"]
    assert await found(f'id eq "{sales["id"]}" and members[value eq "{one}"]') == ["Sales"]
    assert await found(f'id eq "{sales["id"]}" and members eq "{two}"') == []
    assert await found(f'id eq "{sales["id"]}" and not (members eq "{two}")') == ["Sales"]
    assert await found(f'displayName eq "support" and members eq "{two}"') == ["Support"]
    assert await found(f'members eq "{one}"') == ["Sales", "Support"]
    assert await found(f'members.value eq "{two}"') == ["Support"]
    assert await found(f'members eq "{one}" and members eq "{two}"') == ["Support"]
    assert await found(f'members eq "{two}" or displayName eq "Empty"') == ["Support", "Empty"]
    assert await found(f'not (members eq "{one}")') == ["Empty"]
    assert await found(f'members eq "{NOBODY}"') == []
    assert await found('displayName sw "S" and externalId pr') == ["Sales", "Support"]
    assert await found('userName eq "Sales"') == []
    assert await found('emails[type eq "work"].value eq "Sales"') == []
    assert await found(f'id eq "{NOBODY}"') == []
    assert await found('id eq "\';--"') == []


@together
@pytest.mark.parametrize(
    "question",
    [
        "members pr",
        'members ne "x"',
        'members sw "x"',
        'members.type eq "User"',
        'members[type eq "User"]',
        "members eq null",
    ],
)
async def test_a_question_that_would_read_whole_groups_is_refused(shared: Listener, question: str) -> None:
    """RFC 7644 table 9: 400 invalidFilter for what is not supported, with the form that is."""
    answer = await shared.get("/Groups?filter=" + question.replace(" ", "+").replace('"', "%22"))

    assert is_error(answer, 400, "invalidFilter")
    assert 'members eq "<id>"' in answer.body["detail"]


async def test_a_membership_check_answers_only_what_was_asked(scim: Listener) -> None:
    """Entra's older reference check: attributes=id, a list with one entry when it is set."""
    (one,) = await people(scim, 1)
    group = await scim.group("Sales", one)

    answer = await scim.get(f"/Groups?filter=id+eq+%22{group['id']}%22+and+members+eq+%22{one}%22&attributes=id")

    assert answer.body["Resources"] == [{"schemas": [GROUP], "id": group["id"]}]


async def test_members_are_not_even_read_when_they_are_not_wanted(scim: Listener) -> None:
    """Microsoft: returning members against excludedAttributes fails; reading them would make large groups slow."""
    (one,) = await people(scim, 1)
    group = await scim.group("Sales", one)
    statements: list[str] = []
    for connection in await connections(scim):
        connection.set_trace_callback(statements.append)

    for query in (
        "excludedAttributes=members",
        "excludedAttributes=urn:ietf:params:scim:schemas:core:2.0:Group:members",
        "attributes=displayName",
        "excludedAttributes=members.value,members.$ref,members.type",
    ):
        for path in (f"/Groups/{group['id']}", "/Groups"):
            answer = await scim.get(f"{path}?{query}")
            assert answer.status == 200
            assert "value" not in answer.raw.decode()
    assert statements != []
    assert [sql for sql in statements if "membership" in sql] == []
    assert await members_of(scim, group["id"]) == {one}
    assert [sql for sql in statements if "membership" in sql] != []


async def test_an_answer_never_holds_more_members_than_its_bound(scim: Listener) -> None:
    """S7: every answer is bounded; who wants to see such a group has to leave its members out."""
    group = await scim.group("Everybody")
    crowd = tuple(f"member-{number}" for number in range(MEMBERS_SHOWN_MAX + 1))
    await scim.store.run(lambda ledger: ledger.change_members(group["id"], [MemberChange("add", crowd)]))

    for path in (f"/Groups/{group['id']}", "/Groups"):
        assert is_error(await scim.get(path), 400, "tooMany")
        assert (await scim.get(f"{path}?excludedAttributes=members")).status == 200


# ---- pages, projections, searches, versions


async def test_pages_meet_every_group_once(scim: Listener) -> None:
    """Microsoft's validation pages through groups too: startIndex echoed, the total always of all."""
    made = [(await scim.group(f"Group {number:02}"))["displayName"] for number in range(7)]

    seen: list[str] = []
    for start in (1, 4, 7):
        answer = await scim.get(f"/Groups?startIndex={start}&count=3")
        assert (answer.body["startIndex"], answer.body["totalResults"]) == (start, 7)
        seen += names(answer)
    assert seen == made
    assert (await scim.get("/Groups?count=0")).body["totalResults"] == 7


async def test_a_patch_answers_200_only_when_attributes_are_asked_for(scim: Listener) -> None:
    """RFC 7644 section 3.5.2: with `attributes` the answer is 200 with them; otherwise 204, as Microsoft asks for groups."""
    (one,) = await people(scim, 1)
    group = await scim.group()
    path = f"/Groups/{group['id']}"
    add = {"op": "Add", "path": "members", "value": values([one])}

    plain = await scim.patch(path, add)
    shown = await scim.patch(f"{path}?attributes=displayName", {"op": "replace", "value": {"displayName": "Sales EU"}})
    members = await scim.patch(f"{path}?attributes=members.value", add)

    assert (plain.status, plain.raw) == (204, b"")
    assert shown.status == members.status == 200
    assert shown.body == {"schemas": [GROUP], "id": group["id"], "displayName": "Sales EU"}
    assert members.body == {"schemas": [GROUP], "id": group["id"], "members": [{"value": one}]}


async def test_a_search_can_be_posted_for_groups_and_for_everything(scim: Listener) -> None:
    """RFC 7644 section 3.4.3: people and groups in one list, page by page."""
    ada = await scim.user("ada@contoso.example", displayName="Sales")
    sales = await scim.group("Sales")
    other = await scim.group("Other")
    search = {"schemas": ["urn:ietf:params:scim:api:messages:2.0:SearchRequest"], "filter": 'displayName eq "sales"'}

    assert (await scim.post("/Groups/.search", search)).body["Resources"] == [sales]
    assert (await scim.post("/.search", search)).body["Resources"] == [ada, sales]
    assert (await scim.post("/.search", {"filter": f'id eq "{other["id"]}"'})).body["Resources"] == [other]
    everything = [ada, sales, other]
    for start in range(1, 5):
        answer = await scim.post("/.search", {"startIndex": start, "count": 2})
        assert answer.body["Resources"] == everything[start - 1 : start + 1]
        assert (answer.body["totalResults"], answer.body["startIndex"]) == (3, start)


async def test_a_version_guards_a_group_and_its_members(scim: Listener) -> None:
    """RFC 7644 section 3.14: a changed membership is another version; stale writes are 412 and change nothing."""
    one, two = await people(scim, 2)
    group = await scim.group("Sales", one)
    path, stale = f"/Groups/{group['id']}", {"If-Match": group["meta"]["version"]}
    add = {"op": "Add", "path": "members", "value": values([two])}

    assert (await scim.get(path, headers={"If-None-Match": group["meta"]["version"]})).status == 304
    changed = await scim.patch(path, add, headers=stale)
    assert (changed.status, changed.headers["etag"] != group["meta"]["version"]) == (204, True)

    remove = {"op": "Remove", "path": "members", "value": values([one])}
    assert is_error(await scim.patch(path, remove, headers=stale), 412)
    assert is_error(await scim.send("PUT", path, json={"displayName": "X"}, headers=stale), 412)
    assert is_error(await scim.send("DELETE", path, headers=stale), 412)
    assert await members_of(scim, group["id"]) == {one, two}
    assert (await scim.send("DELETE", path, headers={"If-Match": changed.headers["etag"]})).status == 204


async def test_a_member_that_is_deleted_leaves_another_version_behind(scim: Listener) -> None:
    """RFC 7644 section 3.14: what a reader sees has changed, so a version from before is stale; other groups keep theirs."""
    one, two, three = await people(scim, 3)
    group, other = await scim.group("Sales", one, two, three), await scim.group("Crew", three)
    path, versions = f"/Groups/{group['id']}", [group["meta"]["version"]]

    for gone in (one, two):
        assert (await scim.send("DELETE", f"/Users/{gone}")).status == 204
        seen = await scim.get(path, headers={"If-None-Match": versions[-1]})
        assert (seen.status, seen.headers["etag"]) == (200, seen.body["meta"]["version"])
        assert seen.body["meta"]["lastModified"] >= group["meta"]["lastModified"]
        versions.append(seen.headers["etag"])

    assert len(set(versions)) == 3
    assert is_error(await scim.send("DELETE", path, headers={"If-Match": versions[1]}), 412)
    assert (await scim.get(f"/Groups/{other['id']}")).headers["etag"] == other["meta"]["version"]


# ---- writing


async def test_a_group_can_be_created_with_members_and_replaced_as_a_whole(scim: Listener) -> None:
    """RFC 7644 sections 3.3 and 3.5.1: what a PUT does not name is gone, members included."""
    one, two, three = await people(scim, 3)
    group = await scim.group("Sales", one, two, externalId="a")
    assert await at_product(scim, group["id"]) == {one, two}

    put = await scim.send(
        "PUT", f"/Groups/{group['id']}", json={"displayName": "Sales EU", "members": [{"value": three}]}
    )

    assert put.status == 200
    assert [member["value"] for member in put.body["members"]] == [three]
    assert "externalId" not in put.body
    assert (await scim.get(f"/Groups/{group['id']}")).body == put.body
    assert await at_product(scim, group["id"]) == {three}
    emptied = await scim.send("PUT", f"/Groups/{group['id']}", json={"displayName": "Sales EU"})
    assert "members" not in emptied.body
    assert await at_product(scim, group["id"]) == set()


async def test_a_name_or_external_id_that_is_taken_is_409_and_nothing_happens(scim: Listener) -> None:
    """Entra: displayName is unique among groups. A PATCH applies as a whole or not at all (RFC 7644 section 3.5.2)."""
    (one,) = await people(scim, 1)
    sales = await scim.group("Sales", externalId="a")
    other = await scim.group("Other", externalId="b")
    add = {"op": "Add", "path": "members", "value": values([one])}

    assert is_error(await scim.post("/Groups", {"displayName": "SALES"}), 409, "uniqueness")
    assert is_error(await scim.post("/Groups", {"displayName": "New", "externalId": "a"}), 409, "uniqueness")
    for taken in ({"path": "displayName", "value": "sales"}, {"path": "externalId", "value": "a"}):
        refused = await scim.patch(f"/Groups/{other['id']}", add, {"op": "Replace", **taken})
        assert is_error(refused, 409, "uniqueness")
    refused = await scim.send(
        "PUT", f"/Groups/{other['id']}", json={"displayName": "Sales", "members": [{"value": one}]}
    )
    assert is_error(refused, 409, "uniqueness")
    assert (await scim.get("/Groups")).body["Resources"] == [sales, other]
    assert await at_product(scim, other["id"]) == set()


async def test_a_group_and_a_user_may_have_the_same_name(scim: Listener) -> None:
    """Uniqueness holds among groups and among users, not between them (RFC 7643 section 7)."""
    await scim.user("Sales", externalId="a")

    assert (await scim.group("Sales", externalId="a"))["displayName"] == "Sales"


async def test_a_deleted_group_is_gone_and_one_of_its_name_starts_empty(scim: Listener) -> None:
    """204, then 404 everywhere; its members are left alone."""
    (one,) = await people(scim, 1)
    group = await scim.group("Sales", one)

    gone = await scim.send("DELETE", f"/Groups/{group['id']}")

    assert (gone.status, gone.raw) == (204, b"")
    for again in (
        await scim.send("DELETE", f"/Groups/{group['id']}"),
        await scim.get(f"/Groups/{group['id']}"),
        await scim.patch(f"/Groups/{group['id']}", {"op": "Add", "path": "members", "value": values([one])}),
        await scim.send("PUT", f"/Groups/{group['id']}", json={"displayName": "Sales"}),
    ):
        assert is_error(again, 404)
    assert names(await scim.get(f"/Groups?filter=members+eq+%22{one}%22")) == []
    assert (await scim.get(f"/Users/{one}")).status == 200
    new = await scim.group("Sales")
    assert new["id"] != group["id"]
    assert await members_of(scim, new["id"]) == set()


async def test_a_refused_group_leaves_nothing_and_the_next_try_starts_anew(scim: Listener) -> None:
    """Design 5: what Entra was told failed is not readable; the repeated POST counts as it stands, members too."""
    one, two = await people(scim, 2)
    scim.shelf.refused.add("Sales")
    body = {"displayName": "Sales", "members": [{"value": one}]}

    refused = await scim.post("/Groups", body)

    assert is_error(refused, 400, "invalidValue")
    assert refused.body["detail"] == "The name 'Sales' is reserved. Choose another one."
    assert names(await scim.get("/Groups")) == names(await scim.get(f"/Groups?filter=members+eq+%22{one}%22")) == []
    scim.shelf.refused.clear()
    group = await scim.group("Sales", two)
    assert await members_of(scim, group["id"]) == await at_product(scim, group["id"]) == {two}


@together
@pytest.mark.parametrize(
    "body",
    [
        {"displayName": " "},
        {"externalId": "a"},
        {"displayName": "A", "members": [{"display": "nobody"}]},
        {"displayName": "A", "members": [17]},
        {"displayName": {"a": 1}},
        {"schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"], "displayName": "A"},
    ],
)
async def test_a_group_that_is_none_is_400(shared: Listener, body: dict[str, Any]) -> None:
    """RFC 7644 table 9; nothing of it is there afterwards."""
    before = (await shared.get("/Groups?count=0")).body["totalResults"]
    answer = await shared.post("/Groups", body)

    assert answer.status == 400
    assert answer.body["scimType"] in ("invalidValue", "invalidSyntax")
    assert (await shared.get("/Groups?count=0")).body["totalResults"] == before


# ---- which targets have groups


async def test_whether_a_target_has_groups_is_decided_when_it_is_asked(tmp_path: Path) -> None:
    """A worker that announces a connector with groups changes the answer at once, for its own target only."""
    specs: dict[str, Spec] = {ALPHA: Shelf.spec, BETA: Shelf.spec}
    async with listening(tmp_path, shelf=GroupShelf(), spec_of=specs.get) as scim:
        assert is_error(await scim.post("/Groups", {"displayName": "Sales"}), 400, "invalidValue")

        specs[ALPHA] = GroupShelf.spec

        assert (await scim.group("Sales"))["displayName"] == "Sales"
        types = (await scim.get("/ResourceTypes")).body["Resources"]
        assert [entry["name"] for entry in types] == ["User", "Group"]
        assert (await scim.get(f"/Schemas/{GROUP}")).body["id"] == GROUP
        assert is_error(await scim.post("/Groups", {"displayName": "Sales"}, target=BETA), 400, "invalidValue")
        assert is_error(await scim.get(f"/Schemas/{GROUP}", target=BETA), 404)


async def test_groups_and_members_of_another_target_are_like_random_ones(scim: Listener) -> None:
    """S5, I11: neither an id nor a membership tells anything across targets."""
    (stranger,) = await people(scim, 1, target=BETA)
    group = await scim.group("Sales", stranger, NOBODY)

    shown = (await scim.get(f"/Groups/{group['id']}")).body["members"]
    assert sorted(shown, key=str) == sorted([{"value": stranger}, {"value": NOBODY}], key=str)
    assert await at_product(scim, group["id"]) == set()
    add = {"op": "Add", "path": "members", "value": values([stranger])}
    for resource in (group["id"], NOBODY):
        assert is_error(await scim.get(f"/Groups/{resource}", target=BETA), 404)
        assert is_error(await scim.patch(f"/Groups/{resource}", add, target=BETA), 404)
        assert is_error(await scim.send("DELETE", f"/Groups/{resource}", target=BETA), 404)
    assert names(await scim.get(f"/Groups?filter=members+eq+%22{stranger}%22", target=BETA)) == []
    (user,) = await people(scim, 1)
    assert is_error(await scim.get(f"/Groups/{user}"), 404)
    assert is_error(await scim.get(f"/Users/{group['id']}"), 404)


# ---- the emulated Entra


@pytest.mark.parametrize("dialect", ["legacy", "flag"])
async def test_whole_cycles_of_entra_leave_what_the_directory_says(scim: Listener, dialect: Dialect) -> None:
    """First cycle, changes, a second process without a memory, on demand, leaving: always the members of the directory."""
    directory = Directory(everybody := make_people(12, managers=False), groups := make_groups(everybody, 2))
    first, second = groups
    settings = {"dialect": dialect, "members_per_patch": 4}

    async def agrees(job: ProvisioningJob) -> None:
        for group in directory.groups.values():
            if group.in_scope:
                target_id = job.group_links[group.object_id].target_id
                wished = {job.links[member].target_id for member in group.members}
                assert await members_of(scim, target_id) == await at_product(scim, target_id) == wished

    async with ProvisioningJob(scim.base(), scim.tokens[ALPHA], directory, **settings) as job:
        assert (await job.test_connection()).ok
        assert (await job.read_schemas()).ok
        report = await job.initial_cycle()
        assert (report.groups_created, report.memberships, report.failed, report.failed_references) == (2, 12, 0, 0)
        await agrees(job)
        directory.rename_group(first, "Renamed")
        directory.remove_members(first, *first.members[:2])
        directory.add_members(first, *second.members[:3])
        directory.disable(second.members[0])
        report = await job.incremental_cycle()
        assert (report.groups_updated, report.memberships, report.failed) == (1, 5, 0)
        await agrees(job)
    async with ProvisioningJob(scim.base(), scim.tokens[ALPHA], directory, **settings) as job:
        report = await job.initial_cycle()
        assert (report.groups_created, report.failed, report.failed_references) == (0, 0, 0)
        await agrees(job)
        newcomer = directory.add(make_people(1, prefix="new", managers=False)[0])
        directory.add_members(first, newcomer)
        entries = await job.provision_group_on_demand(first, [newcomer])
        assert {entry.status for entry in entries} <= {"Success", "Skipped"}
        await agrees(job)
        directory.unassign_group(second)
        assert (await job.incremental_cycle()).groups_deleted == 1
        await agrees(job)
    assert names(await scim.get("/Groups")) == ["Renamed"]


# ---- the other database


@pytest.mark.postgres
async def test_groups_are_the_same_on_postgresql(tmp_path: Path, postgres: str) -> None:  # noqa: F811 - the fixture
    """One class serves both engines; reads take another way there."""
    store = Store.open(postgres)
    try:
        async with listening(tmp_path, shelf=GroupShelf(), store=store) as scim:
            crowd = await people(scim, 40)
            group = await scim.group("Sales", *crowd[:2], externalId="a")
            path = f"/Groups/{group['id']}"
            adds = [{"op": "Add", "path": "members", "value": values([member])} for member in crowd[2:]]
            answers = await asyncio.gather(*(scim.patch(path, operation) for operation in adds))

            assert {answer.status for answer in answers} == {204}
            assert await members_of(scim, group["id"]) == set(crowd)
            for question in (
                "displayName+eq+%22SALES%22",
                "externalId+eq+%22a%22",
                f"id+eq+%22{group['id']}%22+and+members+eq+%22{crowd[5]}%22",
                f"members.value+eq+%22{crowd[39]}%22",
                "displayName+sw+%22s%22",
            ):
                assert names(await scim.get(f"/Groups?filter={question}")) == ["Sales"], question
            assert (await scim.patch(path, {"op": "replace", "path": "members", "value": []})).status == 204
            assert await members_of(scim, group["id"]) == set()
            assert (await scim.send("DELETE", path)).status == 204
    finally:
        await store.close()


# ---- many


async def test_a_thousand_members_fit_in_one_patch_in_every_form(scim: Listener) -> None:
    """Entra's maximum per PATCH is not documented: a thousand in one list, and a thousand operations of one member each."""
    crowd = [f"member-{number}" for number in range(1_000)]
    group = await scim.group()
    path = f"/Groups/{group['id']}"

    assert (await scim.patch(path, {"op": "Add", "path": "members", "value": values(crowd)})).status == 204
    assert await members_of(scim, group["id"]) == set(crowd)
    assert (await scim.patch(path, {"op": "Remove", "path": "members", "value": values(crowd)})).status == 204
    assert await members_of(scim, group["id"]) == set()
    single = [{"op": "Add", "path": "members", "value": values([member])} for member in crowd]
    assert (await scim.patch(path, *single)).status == 204
    assert await members_of(scim, group["id"]) == set(crowd)
    filtered = [{"op": "remove", "path": f'members[value eq "{member}"]'} for member in crowd]
    assert (await scim.patch(path, *filtered)).status == 204
    assert await members_of(scim, group["id"]) == set()


async def test_a_body_with_too_many_members_is_refused_by_its_bound(tmp_path: Path) -> None:
    """S7: members and bytes of one request are bounded; groups have more room than people."""
    limits = LimitSettings(members_max=50, body_bytes_max=1_000, group_body_bytes_max=5_000)
    async with listening(tmp_path, shelf=GroupShelf(), limits=limits) as scim:
        group = await scim.group()
        path = f"/Groups/{group['id']}"

        def adding(count: int) -> dict[str, Any]:
            return {"op": "Add", "path": "members", "value": values([f"member-{n}" for n in range(count)])}

        assert (await scim.patch(path, adding(50))).status == 204
        assert (await scim.patch(path, adding(51))).status in (400, 413)
        assert is_error(await scim.patch(path, adding(200)), 413)
        assert len(await members_of(scim, group["id"])) == 50


async def connections(scim: Listener) -> list[Any]:
    """Every connection to the database that this store uses: four reading threads, the event loop's, the writer's."""
    barrier = threading.Barrier(READER_THREADS)

    def meet(reader: Reader) -> None:
        barrier.wait(WAIT_S)

    await asyncio.gather(*(scim.store.read_slow(meet) for _ in range(READER_THREADS)))
    return [connection.driver for connection in scim.store._readers] + [
        await scim.store.run(lambda ledger: ledger._db.driver)
    ]


async def test_a_member_of_a_huge_group_changes_as_cheaply_as_one_of_a_small_group(scim: Listener) -> None:
    """Memberships are rows: the work of SQLite for one PATCH, in its own instructions, does not grow with the group."""
    (one,) = await people(scim, 1)
    counted = 0

    def count() -> None:
        nonlocal counted
        counted += 1

    for connection in await connections(scim):
        connection.set_progress_handler(count, 10)
    work: dict[int, dict[str, int]] = {}
    for size in (10, 100_000):
        group = await scim.group(f"Group of {size}")
        path = f"/Groups/{group['id']}"
        crowd = tuple(f"member-{number:06}" for number in range(size))

        def fill(ledger: Any, group_id: str = group["id"], crowd: tuple[str, ...] = crowd) -> None:
            ledger.change_members(group_id, [MemberChange("add", crowd)])
            ledger.settle_members(group_id, crowd, (), anew=False)

        await scim.store.run(fill)
        question = f"filter=id+eq+%22{group['id']}%22+and+members+eq+%22{one}%22&attributes=id"
        work[size] = {}
        for name, request in {
            "add": lambda path=path: scim.patch(path, {"op": "Add", "path": "members", "value": values([one])}),
            "check": lambda question=question: scim.get(f"/Groups?{question}"),
            "read": lambda path=path: scim.get(f"{path}?excludedAttributes=members"),
            "remove": lambda path=path: scim.patch(path, {"op": "remove", "path": f'members[value eq "{one}"]'}),
        }.items():
            counted = 0
            answer = await request()
            assert answer.status in (200, 204)
            work[size][name] = counted

    for name, small in work[10].items():
        assert work[100_000][name] < 3 * small + 50, work


async def test_two_hundred_adds_at_once_leave_two_hundred_members(scim: Listener) -> None:
    """One PATCH per member, all at the same time: none may undo another."""
    crowd = await people(scim, 200)
    group = await scim.group()

    answers = await asyncio.gather(
        *(
            scim.patch(f"/Groups/{group['id']}", {"op": "Add", "path": "members", "value": values([member])})
            for member in crowd
        )
    )

    assert {answer.status for answer in answers} == {204}
    assert await members_of(scim, group["id"]) == set(crowd)

    async def settled() -> bool:
        return await at_product(scim, group["id"]) == set(crowd)

    await until(settled)


@pytest.mark.parametrize("path", ["/Users", "/Groups"])
async def test_eight_posts_of_one_name_at_once_make_one_of_it(scim: Listener, path: str) -> None:
    """A hundred races of eight: a hundred resources, every race is won by at least one, and nobody gets another answer."""
    attribute = "userName" if path == "/Users" else "displayName"
    ids: set[str] = set()
    for number in range(100):
        body = {attribute: f"name-{number}@contoso.example"}
        answers = await asyncio.gather(*(scim.post(path, body) for _ in range(8)))
        assert {answer.status for answer in answers} <= {201, 409}
        made = {answer.body["id"] for answer in answers if answer.status == 201}
        assert len(made) == 1
        ids |= made

    assert len(ids) == (await scim.get(f"{path}?count=0")).body["totalResults"] == 100
    held = scim.shelf.accounts if path == "/Users" else scim.shelf.groups
    assert len(held) == 100
