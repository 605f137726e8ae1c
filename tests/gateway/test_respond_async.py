"""Requests that are not waited for (RFC 9967 section 2.5.1), over real HTTP in front of the real engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.completions import ASYNC_RESPONSE, preferred
from gateway.intake import USUAL, Patience
from gateway.messages import ERROR
from gateway.store import Store
from schemas.config import TargetSettings
from schemas.events import cloud_event, decode_event, event_headers
from tests.gateway.scim_listener import ALPHA, BETA, GROUP, USER, Answer, GroupShelf, Listener, Shelf, listening

ASYNC = {"Prefer": "respond-async"}
WAIT_S = 5.0


class HeldShelf(Shelf):
    """A product that answers when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()

    async def create(self, *arguments: Any) -> str:
        await self.open.wait()
        return await super().create(*arguments)

    async def update(self, *arguments: Any) -> None:
        await self.open.wait()
        await super().update(*arguments)

    async def delete(self, *arguments: Any) -> None:
        await self.open.wait()
        await super().delete(*arguments)


@pytest.fixture
def shelf() -> HeldShelf:
    return HeldShelf()


@pytest.fixture
async def scim(tmp_path: Path, shelf: HeldShelf) -> AsyncIterator[Listener]:
    async with listening(tmp_path, shelf=shelf) as listener:
        yield listener


def taken(answer: Answer) -> str:
    """202 without a body; the transaction it names."""
    assert (answer.status, answer.raw) == (202, b""), (answer.status, answer.body)
    assert answer.headers["preference-applied"] == "respond-async"
    txn = answer.headers["set-txn"]
    assert answer.headers["location"].endswith(f"/Events/{txn}")
    return txn


async def completed(scim: Listener, txn: str, target: str = ALPHA) -> dict[str, Any]:
    """The claims of the completion, once there are any."""
    async with asyncio.timeout(WAIT_S):
        while True:
            answer = await scim.get(f"/Events/{txn}", target=target)
            if answer.status == 200:
                claims: dict[str, Any] = answer.body
                assert claims["txn"] == txn
                assert claims["sub_id"]["format"] == "scim"
                return claims
            assert (answer.status, answer.raw, answer.headers["set-txn"]) == (202, b"", txn)
            assert answer.headers["retry-after"] == "1"
            await asyncio.sleep(0.01)


def operation(claims: dict[str, Any]) -> dict[str, Any]:
    """What the completion says, in the shape of one bulk result."""
    assert list(claims["events"]) == [ASYNC_RESPONSE]
    found: dict[str, Any] = claims["events"][ASYNC_RESPONSE]
    return found


def ada(**more: Any) -> dict[str, Any]:
    return {"schemas": [USER], "userName": "ada@contoso.example", **more}


# ---- the four writes


async def test_each_write_is_answered_at_once_and_its_completion_can_be_read(scim: Listener, shelf: HeldShelf) -> None:
    """RFC 9967 section 2.5.1: 202 without a body while the product is still busy, then one bulk-like result per write."""
    created = taken(await scim.post("/Users", ada(), headers=ASYNC))
    assert (await scim.get(f"/Events/{created}")).status == 202
    shelf.open.set()
    claims = await completed(scim, created)
    path = claims["sub_id"]["uri"]
    seen = await scim.get(path)
    assert operation(claims) == {
        "method": "POST",
        "status": "201",
        "location": scim.base() + path,
        "version": seen.headers["etag"],
    }

    shelf.open.clear()
    replaced = taken(await scim.send("PUT", path, json=ada(title="Countess"), headers=ASYNC))
    shelf.open.set()
    assert operation(await completed(scim, replaced))["status"] == "200"
    shelf.open.clear()
    change = {"op": "replace", "path": "title", "value": "Clerk"}
    patched = taken(await scim.patch(path, change, headers=ASYNC))
    shelf.open.set()
    assert operation(await completed(scim, patched))["method"] == "PUT"
    assert (await scim.get(path)).body["title"] == "Clerk"
    shelf.open.clear()
    deleted = taken(await scim.send("DELETE", path, headers=ASYNC))
    assert (await scim.get(path)).status == 404
    shelf.open.set()
    assert operation(await completed(scim, deleted)) == {
        "method": "DELETE",
        "status": "204",
        "location": scim.base() + path,
    }
    assert len({created, replaced, patched, deleted}) == 4


async def test_what_is_accepted_is_readable_at_once(scim: Listener) -> None:
    """Told success, so it is shown, also under the answer policy that promises nothing."""
    taken(await scim.post("/Users", ada(), headers=ASYNC))

    assert (await scim.get("/Users?filter=userName+eq+%22ada%40contoso.example%22")).body["totalResults"] == 1


async def test_the_preference_goes_before_the_answer_policy(tmp_path: Path, shelf: HeldShelf) -> None:
    """Under `retry-later` an ordinary request is told to come again; who asks not to wait is told "accepted"."""
    settings = {ALPHA: TargetSettings(connector="shelf", pending="retry-later")}
    async with listening(tmp_path, shelf=shelf, targets=settings, answer_wait_s=0.1) as scim:
        txn = taken(await scim.post("/Users", ada(), headers=ASYNC))
        assert (await scim.post("/Users", {"userName": "bob@contoso.example"})).status == 503
        assert [r["userName"] for r in (await scim.get("/Users")).body["Resources"]] == ["ada@contoso.example"]
        shelf.open.set()
        assert operation(await completed(scim, txn))["status"] == "201"


async def test_a_refusal_is_in_the_completion_word_for_word(scim: Listener) -> None:
    """RFC 9967 section 2.5.1: an error carries `response`, the SCIM error that a request that waited would have been told."""
    txn = taken(await scim.post("/Users", ada(title="forbidden"), headers=ASYNC))
    told = await scim.post("/Users", {"userName": "bob@contoso.example", "title": "forbidden"})

    result = operation(await completed(scim, txn))
    assert (result["method"], result["status"]) == ("POST", "400")
    assert result["response"] == told.body
    assert result["response"]["schemas"] == [ERROR]


async def test_an_error_that_is_known_at_once_is_told_at_once(scim: Listener, shelf: HeldShelf) -> None:
    """RFC 9967 section 2.5.1: the normal answer is always allowed; a wrong request is not accepted first."""
    shelf.open.set()
    body = await scim.user("ada@contoso.example")

    assert (await scim.post("/Users", ada(), headers=ASYNC)).status == 409
    assert (await scim.post("/Users", {}, headers=ASYNC)).status == 400
    assert (await scim.send("DELETE", "/Users/nobody", headers=ASYNC)).status == 404
    stale = {**ASYNC, "If-Match": 'W/"77"'}
    assert (await scim.send("DELETE", f"/Users/{body['id']}", headers=stale)).status == 412
    unchanged = await scim.patch(
        f"/Users/{body['id']}", {"op": "replace", "path": "userName", "value": body["userName"]}, headers=ASYNC
    )
    assert (unchanged.status, unchanged.body["id"]) == (200, body["id"])


async def test_groups_are_taken_without_waiting_too(tmp_path: Path) -> None:
    """Creation, members and renaming of a group, each with a transaction of its own."""
    async with listening(tmp_path, shelf=GroupShelf()) as scim:
        user = await scim.user()
        txn = taken(await scim.post("/Groups", {"schemas": [GROUP], "displayName": "Sales"}, headers=ASYNC))
        path = (await completed(scim, txn))["sub_id"]["uri"]
        assert path.startswith("/Groups/")
        add = {"op": "add", "path": "members", "value": [{"value": user["id"]}]}
        result = operation(await completed(scim, taken(await scim.patch(path, add, headers=ASYNC))))
        assert (result["status"], result["version"]) == ("200", (await scim.get(path)).headers["etag"])
        whole = {"schemas": [GROUP], "displayName": "Crew"}
        await completed(scim, taken(await scim.send("PUT", path, json=whole, headers=ASYNC)))
        assert "members" not in (await scim.get(path)).body


# ---- waiting, after all


async def test_wait_waits_that_long_and_no_longer(scim: Listener, shelf: HeldShelf) -> None:
    """RFC 7240 section 4.3: done within the time, the answer is the ordinary one; otherwise 202."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    taken(await scim.post("/Users", ada(), headers={"Prefer": "respond-async, wait=1"}))
    assert 0.9 < loop.time() - started < 3.9

    shelf.open.set()
    quick = await scim.post("/Users", {"userName": "bob@contoso.example"}, headers={"Prefer": "wait=3, respond-async"})
    assert (quick.status, "set-txn" in quick.headers) == (201, False)


@pytest.mark.parametrize(
    ("header", "patience"),
    [
        (None, USUAL),
        ("", USUAL),
        ("return=minimal", USUAL),
        ("wait=10", USUAL),
        ("respond-asyncs", USUAL),
        ("respond-async" + " " * 300, USUAL),
        ("respond-async", Patience(0.0, accepts=True)),
        ("Respond-Async", Patience(0.0, accepts=True)),
        ("return=minimal, respond-async; foo=bar", Patience(0.0, accepts=True)),
        ("respond-async,wait=2", Patience(2.0, accepts=True)),
        ('wait="7" , respond-async', Patience(7.0, accepts=True)),
        ("respond-async, wait=-1", Patience(0.0, accepts=True)),
        ("respond-async, wait=x", Patience(0.0, accepts=True)),
    ],
)
def test_preferences_are_read_as_their_rfc_writes_them(header: str | None, patience: Patience) -> None:
    """RFC 7240 section 2: any letter case, any order, parameters ignored; what is no preference changes nothing."""
    assert preferred(header) == patience


async def test_without_the_preference_nothing_is_different(scim: Listener, shelf: HeldShelf) -> None:
    """Entra does not send it: no 202, no Set-Txn, whatever else it prefers."""
    shelf.open.set()
    for headers in ({}, {"Prefer": "return=representation"}, {"Prefer": "wait=0"}):
        answer = await scim.post("/Users", {"userName": f"u{len(shelf.accounts)}@contoso.example"}, headers=headers)
        assert answer.status == 201
        assert {"set-txn", "preference-applied"}.isdisjoint(answer.headers)


# ---- the transaction


async def test_the_transaction_is_the_correlation_id_on_the_bus(scim: Listener, tmp_path: Path) -> None:
    """RFC 9967 section 2.2: `txn` stays the same from the answer to every message about the write."""
    txn = taken(await scim.post("/Users", ada(), headers=ASYNC))

    def sent(reader: Any) -> bytes | None:
        event = reader.event(txn)
        return reader.row(event.resource_id).body if event is not None else None

    body = await scim.store.read_slow(sent)
    assert body is not None
    event = decode_event(body)
    headers = cloud_event(event_headers(event, recorded_at=0.0, act_before=0.0))
    assert (event.txn, headers["correlationid"], headers["type"]) == (
        txn,
        txn,
        "urn:ietf:params:scim:event:prov:create:full",
    )


async def test_a_write_that_a_newer_one_took_over_ends_as_that_one(scim: Listener, shelf: HeldShelf) -> None:
    """Changes coalesce while the product is busy; every transaction comes to an end all the same."""
    created = taken(await scim.post("/Users", ada(), headers=ASYNC))
    path = "/Users/" + (await scim.get("/Users")).body["Resources"][0]["id"]
    changes = [
        taken(await scim.patch(path, {"op": "replace", "path": "title", "value": value}, headers=ASYNC))
        for value in ("1", "2", "3")
    ]

    shelf.open.set()
    for txn in (created, *changes):
        assert operation(await completed(scim, txn))["status"] in ("200", "201")
    assert [user.title for user in shelf.accounts.values()] == ["3"]


async def test_nobody_else_learns_about_a_transaction(scim: Listener, shelf: HeldShelf) -> None:
    """RFC 9967 section 5: the same sign-in as for the write; another target's is not there."""
    shelf.open.set()
    txn = taken(await scim.post("/Users", ada(), headers=ASYNC))
    await completed(scim, txn)

    assert (await scim.get(f"/Events/{txn}", target=BETA)).status == 404
    assert (await scim.get(f"/Events/{txn}", token="")).status == 401
    assert (await scim.get(f"/Events/{txn}", token=scim.tokens[BETA])).status == 401
    for other in ("nobody", "x" * 100, "%00", "a%20b"):
        assert (await scim.get(f"/Events/{other}")).status in (400, 404)
    assert (await scim.send("DELETE", f"/Events/{txn}")).status == 405


async def test_a_completion_outlives_the_gateway(tmp_path: Path, shelf: HeldShelf) -> None:
    """What is answered stands in the store: another gateway, or the same after a restart, knows it too."""
    store = Store.open(tmp_path / "store.sqlite3")
    shelf.open.set()
    fixed: dict[str, Any] = {"store": store, "shelf": shelf, "public_url": "https://provgate.example.com"}
    async with listening(tmp_path, **fixed) as scim:
        txn = taken(await scim.post("/Users", ada(), headers=ASYNC))
        before = await completed(scim, txn)
    async with listening(tmp_path, **fixed) as scim:
        assert await completed(scim, txn) == before
    await store.close()
