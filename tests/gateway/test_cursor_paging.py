"""Long lists read by cursor (RFC 9865), over real HTTP and on a store of 100,000 people."""

from __future__ import annotations

import base64
import itertools
import re
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from scim2_models import Group, ListResponse, User

from gateway.cursors import CURSOR_S, Cursors, Place
from gateway.ledger import Keys
from gateway.lifecycle import Row
from gateway.messages import ScimError
from gateway.store import Reader, Store
from gateway.tables import RESOURCE
from schemas.states import State
from tests.gateway.scim_listener import BETA, Answer, GroupShelf, Listener, listening
from tests.gateway.test_store import postgres, postgres_url  # noqa: F401 - fixtures

MANY = 100_000
UNRESERVED = re.compile(r"[A-Za-z0-9\-._~]+\Z")


class Tardy:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = time.time()

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def later() -> Tardy:
    return Tardy()


@pytest.fixture
async def scim(tmp_path: Path, later: Tardy) -> AsyncIterator[Listener]:
    async with listening(tmp_path, shelf=GroupShelf(), now=later) as listener:
        yield listener


async def seven(scim: Listener) -> list[str]:
    """Seven people, by userName."""
    names = [f"u{number}@contoso.example" for number in range(7)]
    for name in names:
        await scim.user(name, title="Engineer" if int(name[1]) % 2 else "Clerk")
    return names


def listed(answer: Answer) -> list[str]:
    """userNames of one page; the answer is one python-scim takes too."""
    assert answer.status == 200, answer.body
    assert answer.body["itemsPerPage"] == len(answer.body["Resources"])
    assert "startIndex" not in answer.body
    ListResponse[User | Group].model_validate(answer.body)
    return [resource.get("userName") or resource["displayName"] for resource in answer.body["Resources"]]


def refused(answer: Answer, scim_type: str) -> None:
    """400 with this keyword."""
    assert (answer.status, answer.body.get("scimType")) == (400, scim_type), answer.body


async def whole(scim: Listener, path: str, rest: str = "") -> list[list[str]]:
    """All pages of a list."""
    pages = []
    cursor = ""
    while True:
        answer = await scim.get(f"{path}?cursor={cursor}{rest}")
        pages.append(listed(answer))
        if "nextCursor" not in answer.body:
            return pages
        cursor = answer.body["nextCursor"]
        assert UNRESERVED.match(cursor)
        assert len(pages) < 50


async def test_a_list_is_read_page_by_page_without_gap_or_repetition(scim: Listener) -> None:
    """RFC 9865 section 2: nextCursor on every page but the last, previousCursor on none before the second."""
    names = await seven(scim)

    first = await scim.get("/Users?cursor&count=3")
    second = await scim.get(f"/Users?count=3&cursor={first.body['nextCursor']}")

    assert (listed(first), listed(second)) == (names[:3], names[3:6])
    assert "previousCursor" not in first.body
    assert (first.body["totalResults"], second.body["totalResults"]) == (7, 7)
    assert await whole(scim, "/Users", "&count=3") == [names[:3], names[3:6], names[6:]]
    back = await scim.get(f"/Users?count=3&cursor={second.body['previousCursor']}")
    assert listed(back) == names[:3]
    assert "previousCursor" not in back.body
    assert listed(await scim.get(f"/Users?count=3&cursor={back.body['nextCursor']}")) == names[3:6]


async def test_who_comes_or_goes_meanwhile_shifts_nobody(scim: Listener) -> None:
    """The reason for cursors: with an index a deletion on an earlier page makes the next one leave somebody out."""
    names = await seven(scim)
    first = await scim.get("/Users?cursor=&count=3")
    for resource in first.body["Resources"]:
        await scim.send("DELETE", f"/Users/{resource['id']}")
    await scim.user("new@contoso.example")

    rest = await scim.get(f"/Users?count=3&cursor={first.body['nextCursor']}")

    assert listed(rest) == names[3:6]
    assert listed(await scim.get(f"/Users?cursor={rest.body['nextCursor']}")) == [names[6], "new@contoso.example"]
    assert listed(await scim.get(f"/Users?cursor={rest.body['previousCursor']}")) == []


async def test_a_filter_is_paged_with_and_without_an_index(scim: Listener) -> None:
    """RFC 9865 section 2: the cursor goes with the filter; what no key answers is looked through from where it stopped."""
    names = await seven(scim)
    odd = [name for name in names if int(name[1]) % 2]

    scanned = await whole(scim, "/Users", "&count=2&filter=title+eq+%22Engineer%22")
    assert list(itertools.chain(*scanned)) == odd
    assert [len(page) for page in scanned] == [2, 1]
    assert await whole(scim, "/Users", f"&count=1&filter=userName+eq+%22{names[2]}%22") == [[names[2]]]
    nobody = await scim.get("/Users?cursor&filter=userName+eq+%22nobody%22")
    assert (listed(nobody), nobody.body["totalResults"]) == ([], 0)


async def test_a_key_that_finds_several_is_paged_too(scim: Listener) -> None:
    """Filters by displayName and by member find a list of their own; its pages go by the same places."""
    for number in range(5):
        await scim.user(f"a{number}@contoso.example", displayName="Ada")
    member = (await scim.user("m@contoso.example"))["id"]
    for number in range(3):
        await scim.group(f"G{number}", member)

    pages = await whole(scim, "/Users", "&count=2&filter=displayName+eq+%22ada%22")
    groups = await whole(scim, "/Groups", f"&count=2&filter=members+eq+%22{member}%22")

    assert pages == [[f"a{n}@contoso.example" for n in page] for page in ((0, 1), (2, 3), (4,))]
    assert groups == [["G0", "G1"], ["G2"]]
    second = await scim.get("/Users?cursor&count=2&filter=displayName+eq+%22ada%22")
    second = await scim.get(f"/Users?filter=displayName+eq+%22ada%22&cursor={second.body['nextCursor']}")
    back = await scim.get(f"/Users?filter=displayName+eq+%22ada%22&cursor={second.body['previousCursor']}")
    assert listed(back) == pages[0]


async def test_posted_searches_take_cursors_also_over_everything(scim: Listener) -> None:
    """RFC 9865 section 3: cursor in a SearchRequest; at the root, people come first and groups after them."""
    names = await seven(scim)
    await scim.group("Sales")
    await scim.group("Crew")

    async def pages(path: str) -> list[list[str]]:
        found, cursor = [], ""
        while True:
            answer = await scim.post(path, {"cursor": cursor, "count": 4})
            assert answer.status == 200, answer.body
            found.append([r.get("userName") or r["displayName"] for r in answer.body["Resources"]])
            cursor = answer.body.get("nextCursor")
            if cursor is None or len(found) > 9:
                return found

    assert await pages("/Users/.search") == [names[:4], names[4:]]
    assert await pages("/.search") == [names[:4], [*names[4:], "Sales"], ["Crew"]]


async def test_a_cursor_made_for_another_list_is_refused(scim: Listener) -> None:
    """RFC 9865 section 2.1: bound to target, kind of resource, filter and order; nothing about another list leaks."""
    await seven(scim)
    await scim.user("x@contoso.example", target=BETA)
    cursor = (await scim.get("/Users?cursor&count=3")).body["nextCursor"]

    refused(await scim.get(f"/Users?cursor={cursor}", target=BETA), "invalidCursor")
    refused(await scim.get(f"/Groups?cursor={cursor}"), "invalidCursor")
    refused(await scim.post("/.search", {"cursor": cursor}), "invalidCursor")
    refused(await scim.get(f"/Users?cursor={cursor}&filter=active+eq+true"), "invalidCursor")
    refused(await scim.get(f"/Users?cursor={cursor}&sortBy=userName"), "invalidCursor")


async def test_a_cursor_that_was_tampered_with_is_refused(scim: Listener) -> None:
    """A place somebody made up could show what a filter hides; every single bit is sealed."""
    await seven(scim)
    cursor = (await scim.get("/Users?cursor&count=3")).body["nextCursor"]
    sealed = bytearray(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))

    for place in range(len(sealed)):
        changed = bytes([*sealed[:place], sealed[place] ^ 1, *sealed[place + 1 :]])
        refused(
            await scim.get("/Users?cursor=" + base64.urlsafe_b64encode(changed).decode().rstrip("=")), "invalidCursor"
        )
    for text in ("0", "a" * 40, cursor[:-2], cursor + "AA", "%22%3B", "x" * 2_000, "%C3%A4", "=" * 8):
        refused(await scim.get(f"/Users?cursor={text}"), "invalidCursor")


async def test_a_cursor_ends_after_its_time(scim: Listener, later: Tardy) -> None:
    """RFC 9865 section 2.1: expiredCursor, after the cursorTimeout that is announced."""
    await seven(scim)
    cursor = (await scim.get("/Users?cursor&count=3")).body["nextCursor"]

    later.time += CURSOR_S - 5
    assert (await scim.get(f"/Users?cursor={cursor}")).status == 200
    later.time += 10
    refused(await scim.get(f"/Users?cursor={cursor}"), "expiredCursor")


async def test_a_count_that_cannot_be_or_that_changes_is_refused(scim: Listener) -> None:
    """RFC 9865 section 2.1: from 0 to maxPageSize, and the same through the whole list."""
    await seven(scim)
    cursor = (await scim.get("/Users?cursor&count=3")).body["nextCursor"]

    for count in ("-1", "201", "x", "1.5", "9" * 30):
        refused(await scim.get(f"/Users?cursor&count={count}"), "invalidCount")
    refused(await scim.get(f"/Users?cursor={cursor}&count=4"), "invalidCount")
    none = await scim.get("/Users?cursor&count=0")
    assert (listed(none), none.body["totalResults"], "nextCursor" in none.body) == ([], 7, False)


async def test_index_and_cursor_are_not_mixed(scim: Listener) -> None:
    """RFC 9865 section 2: one way of paging per request; without a cursor everything is as it was."""
    names = await seven(scim)

    refused(await scim.get("/Users?cursor&startIndex=1"), "invalidSyntax")
    by_index = await scim.get("/Users?startIndex=2&count=2")
    assert [r["userName"] for r in by_index.body["Resources"]] == names[1:3]
    assert by_index.body["startIndex"] == 2
    assert "nextCursor" not in by_index.body


async def test_a_target_without_groups_has_an_empty_list_of_them(tmp_path: Path) -> None:
    """Entra asks for groups in any case; no cursor was ever made for such a list."""
    async with listening(tmp_path) as scim:
        assert listed(await scim.get("/Groups?cursor")) == []
        refused(await scim.get("/Groups?cursor=abc"), "invalidCursor")


async def test_a_cursor_says_nothing_about_anybody(scim: Listener) -> None:
    """Cursors end up in logs of proxies: a place and times, no name, no id."""
    await seven(scim)
    first = await scim.get("/Users?cursor&count=3&filter=title+pr")
    cursor = first.body["nextCursor"]
    text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("latin-1")

    for resource in first.body["Resources"]:
        for value in (resource["userName"], resource["id"], resource["id"].replace("-", ""), "contoso"):
            assert value not in text


def test_gateways_of_one_installation_read_each_others_cursors() -> None:
    """Nothing is remembered in a process; with another secret a cursor is worthless."""
    ask: dict[str, str] = {"cursor": ""}
    here, there, elsewhere = (Cursors(secret, time.time) for secret in (b"a" * 32, b"a" * 32, b"b" * 32))
    place = Place(10, 77, 100, backward=True, later_kind=True)
    ask["cursor"] = here.cursor(place, "t", "User", ask)

    assert there.asked("t", "User", ask, 200) == place
    with pytest.raises(ScimError):
        elsewhere.asked("t", "User", ask, 200)


# ---- at 100,000


def fill(store_path: Path) -> None:
    """MANY applied people of one target: one as the store writes it, and copies of that row with numbers of their own."""
    store = Store.open(store_path)
    session = store._connect_writer()
    session.begin()
    ledger = session.transaction()
    row = Row(id="r0", target="t", state=State.APPLIED, document=b'{"userName":"u0@contoso.example"}')
    row.generation = row.settled_generation = row.acknowledged = 1
    ledger.set_keys(row, Keys(user_name="u0@contoso.example"))
    ledger.save(row)
    own = {"seq": "n", "id": "'r' || n", "user_name_key": "'u' || n || '@contoso.example'"}
    names = [column.name for column in RESOURCE.columns]
    values = ", ".join(own.get(name, name) for name in names)
    numbers = f"WITH RECURSIVE c(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM c WHERE n < {MANY})"
    session.execute(
        f"INSERT INTO resource ({', '.join(names)}) {numbers} SELECT {values} FROM resource, c WHERE id = 'r0'"
    )
    session.commit()
    session.close()
    store._close()


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("crowd") / "store.sqlite3"
    fill(path)
    return path


async def test_the_last_page_of_100_000_costs_what_the_first_does(crowd: Path) -> None:
    """Keyset, not offset: the same rows are read wherever the page lies, and the index is used for it."""
    store = Store.open(crowd)

    def measured(reader: Reader) -> dict[str, Any]:
        def median_s(place: int) -> float:
            times = []
            for _ in range(30):
                started = time.perf_counter()
                assert len(reader.after("t", "user", place, 201)) == 201
                times.append(time.perf_counter() - started)
            return statistics.median(times)

        plans = {}
        for name in ("scan", "scan_back"):
            statement = reader._db.statements[name]
            values = {"target": "t", "kind": "user", "after": 5, "before": 5, "limit": 5}
            steps = reader._db._cursor.execute("EXPLAIN QUERY PLAN " + statement.sql, statement.bind(values)).fetchall()
            plans[name] = " ".join(str(step[-1]) for step in steps)
        assert reader.total("t", "user") == MANY
        last = reader.before("t", "user", 2**60, 1)[0][0]
        return {"first": median_s(0), "last": median_s(last - 300), "plans": plans}

    found = await store.read_slow(measured)
    await store.close()

    assert found["last"] < found["first"] * 3 + 0.001, found
    for plan in found["plans"].values():
        assert "ix_resource_listing" in plan, plan
        assert "TEMP B-TREE" not in plan, plan


# ---- the other engine


@pytest.mark.postgres
async def test_postgresql_pages_and_remembers_the_same(tmp_path: Path, postgres: str) -> None:  # noqa: F811 - fixture
    """One class serves both engines: cursors, versions of groups, bulk requests and completions there."""
    store = Store.open(postgres)
    try:
        async with listening(tmp_path, shelf=GroupShelf(), store=store) as scim:
            names = await seven(scim)
            assert await whole(scim, "/Users", "&count=3") == [names[:3], names[3:6], names[6:]]
            scanned = await whole(scim, "/Users", "&count=2&filter=title+eq+%22Clerk%22")
            assert list(itertools.chain(*scanned)) == names[::2]
            last = await scim.get("/Users?cursor&count=5")
            last = await scim.get(f"/Users?cursor={last.body['nextCursor']}")
            assert listed(await scim.get(f"/Users?cursor={last.body['previousCursor']}")) == names[:5]

            user = {"method": "POST", "path": "/Users", "bulkId": "u", "data": {"userName": "bulk@contoso.example"}}
            data = {"displayName": "Crew", "members": [{"value": "bulkId:u"}]}
            group = {"method": "POST", "path": "/Groups", "bulkId": "g", "data": data}
            made = (await scim.post("/Bulk", {"Operations": [group, user]})).body["Operations"]
            assert [result["status"] for result in made] == ["201", "201"]
            groups = await whole(scim, "/Groups", f"&filter=members+eq+%22{made[1]['location'].rpartition('/')[2]}%22")
            assert groups == [["Crew"]]

            before = (await scim.get("/Groups")).body["Resources"][0]
            user_path = "/Users/" + made[1]["location"].rpartition("/")[2]
            gone = await scim.send("DELETE", user_path, headers={"Prefer": "respond-async"})
            assert gone.status == 202
            assert (await scim.get(f"/Events/{gone.headers['set-txn']}")).status in (200, 202)
            after = (await scim.get("/Groups")).body["Resources"][0]
            assert before["meta"]["version"] != after["meta"]["version"]
            assert "members" not in after
    finally:
        await store.close()
