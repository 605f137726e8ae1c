"""What no caller should send, over the real listener: the right 4xx, a SCIM error body, never 500, and nothing stored."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from tests.e2e.running import (
    CORE,
    PATCH_OP,
    Product,
    Running,
    Scim,
    a_talkdesk_user,
    an_address,
    replacing,
)

BODY_BYTES_MAX = 256 * 1024
ANSWER_MAX_S = 2.0
"""Hostile input is refused quickly; nobody else waits for it."""


def user(**more: Any) -> dict[str, Any]:
    """A plain user, to be spoiled."""
    return {"schemas": [CORE], "userName": an_address("bad"), **more}


def encoded(value: Any) -> bytes:
    """JSON with everything Python can express, also what JSON forbids."""
    return json.dumps(value).encode()


BAD_BODIES: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", 400),
    "no JSON": (b"{", 400),
    "half a string": (b'{"userName": "a', 400),
    "single quotes": (b"{'userName': 'a'}", 400),
    "trailing words": (encoded(user()) + b" and more", 400),
    "not UTF-8": (b'{"schemas": ["' + CORE.encode() + b'"], "userName": "\xff\xfe"}', 400),
    "a lone surrogate": (b'{"schemas": ["' + CORE.encode() + b'"], "userName": "\\ud800"}', 400),
    "U+0000 in a value": (encoded(user(displayName="a\x00b")), 400),
    "a duplicate key": (b'{"schemas": ["' + CORE.encode() + b'"], "userName": "a", "userName": "b"}', 400),
    "NaN": (encoded(user(active=float("nan"))), 400),
    "an array": (b"[]", 400),
    "a string": (b'"user"', 400),
    "null": (b"null", 400),
    "a number": (b"17", 400),
    "no userName": (encoded({"schemas": [CORE]}), 400),
    "userName null": (encoded(user(userName=None)), 400),
    "userName a number": (encoded(user(userName=17)), 400),
    "userName an object": (encoded(user(userName={"text": "x"})), 400),
    "userName a list": (encoded(user(userName=["x", "y"])), 400),
    "userName blank": (encoded(user(userName="  ")), 400),
    "active an object": (encoded(user(active={"is": True})), 400),
    "active a word": (encoded(user(active="perhaps")), 400),
    "name a string": (encoded(user(name="Ada")), 400),
    "givenName a list": (encoded(user(name={"givenName": ["Ada", "Augusta"]})), 400),
    "emails an integer": (encoded(user(emails=3)), 400),
    "an e-mail a number": (encoded(user(emails=[17])), 400),
    "schemas of a group": (encoded({**user(), "schemas": ["urn:ietf:params:scim:schemas:core:2.0:Group"]}), 400),
    "schemas of objects": (encoded({**user(), "schemas": [{}]}), 400),
    "a value of 5,000 characters": (encoded(user(displayName="x" * 5_000)), 400),
    "nested objects": (b'{"userName":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}", 400),
    "nested arrays": (b'{"userName":"x","emails":' + b"[" * 40_000 + b"]" * 40_000 + b"}", 400),
    "unclosed arrays": (b"[" * 100_000, 400),
    "3,000 keys": (encoded(user(**{f"key{number}": number for number in range(3_000)})), 400),
    "a number of 100,000 digits": (b'{"userName":"x","title":' + b"9" * 100_000 + b"}", 400),
    "more than the limit": (encoded(user(displayName="x" * (BODY_BYTES_MAX + 1))), 413),
    "far more than the limit": (encoded(user(displayName="x" * 8_000_000)), 413),
}  # fmt: skip

BAD_PATCHES: dict[str, Any] = {
    "no operations": {"schemas": [PATCH_OP]},
    "operations an object": {"schemas": [PATCH_OP], "Operations": {}},
    "an operation a string": {"schemas": [PATCH_OP], "Operations": ["replace"]},
    "an unknown op": {"schemas": [PATCH_OP], "Operations": [{"op": "move", "path": "title", "value": "x"}]},
    "no op": {"schemas": [PATCH_OP], "Operations": [{"path": "title", "value": "x"}]},
    "a path that is none": {"schemas": [PATCH_OP], "Operations": [{"op": "add", "path": "emails[", "value": "x"}]},
    "a path of brackets": {"schemas": [PATCH_OP], "Operations": [{"op": "add", "path": "[" * 900, "value": "x"}]},
    "a path a number": {"schemas": [PATCH_OP], "Operations": [{"op": "replace", "path": 7, "value": "x"}]},
    "remove without path": {"schemas": [PATCH_OP], "Operations": [{"op": "remove"}]},
    "remove userName": {"schemas": [PATCH_OP], "Operations": [{"op": "remove", "path": "userName"}]},
    "another id": {"schemas": [PATCH_OP], "Operations": [{"op": "replace", "path": "id", "value": "another"}]},
    "active a word": {"schemas": [PATCH_OP], "Operations": [{"op": "replace", "path": "active", "value": "maybe"}]},
    "1,500 operations": {
        "schemas": [PATCH_OP],
        "Operations": [{"op": "replace", "path": "title", "value": str(number)} for number in range(1_500)],
    },
}  # fmt: skip

BAD_QUERIES = {
    "no operator": "userName",
    "an unknown operator": 'userName like "x"',
    "no value": "userName eq",
    "a half string": 'userName eq "x',
    "a password": 'password eq "x"',
    "open brackets": "(" * 200 + 'userName eq "x"',
    "deep brackets": "(" * 20 + 'userName eq "x"' + ")" * 20,
    "a hundred terms": " or ".join('userName eq "x"' for _ in range(100)),
    "words behind": 'userName eq "x" and',
    "an open path": 'emails[type eq "work" eq "x"',
    "SQL": 'userName eq "x"\' or 1=1 --',
}


@pytest.fixture(autouse=True)
async def nothing_is_stored(system: Running, session: aiohttp.ClientSession) -> AsyncIterator[None]:
    """No test of this module leaves a resource, a generation or a dead letter behind, and the gateway stays the same process."""
    before = [await _stored(system, session, name) for name in ("observe", "talkdesk")]
    pids = system.look()["pids"]
    yield
    assert [await _stored(system, session, name) for name in ("observe", "talkdesk")] == before
    assert system.look()["pids"] == pids


@pytest.mark.parametrize("what", BAD_BODIES)
async def test_a_bad_body_is_refused_as_a_scim_error(to_observe: Scim, what: str) -> None:
    """RFC 7644 section 3.12: a POST that cannot be read or holds wrong types is 400 or 413, quickly, with what to do."""
    body, status = BAD_BODIES[what]

    said = await to_observe.send("POST", "/Users", raw=body)

    assert said.is_scim_error(status), (said.status, said.text[:500])
    assert said.took_s < ANSWER_MAX_S
    assert "Traceback" not in said.text


async def test_a_body_of_another_type_is_refused(to_observe: Scim) -> None:
    """Section 7 of the answer rules: a body that is not JSON by its own word is 415."""
    body = encoded(user())
    for content_type in (
        "text/plain",
        "application/xml",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
    ):
        said = await to_observe.send("POST", "/Users", raw=body, headers={"Content-Type": content_type})
        assert said.is_scim_error(415), (content_type, said.status, said.text)


@pytest.mark.parametrize("what", BAD_PATCHES)
async def test_a_bad_patch_is_refused_and_changes_nothing(
    system: Running, session: aiohttp.ClientSession, to_observe: Scim, what: str
) -> None:
    """RFC 7644 section 3.5.2: one operation that cannot be applied refuses them all; the resource is what it was."""
    created = await to_observe.create(user(title="Before"))
    before = (await to_observe.get(created.id)).text
    try:
        said = await to_observe.patch(created.id, BAD_PATCHES[what])

        assert said.status in (400, 413), (said.status, said.text[:300])
        assert said.is_scim_error(said.status), said.text[:500]
        assert (await to_observe.get(created.id)).text == before
    finally:
        await _removed(system, session, to_observe, created.id)


@pytest.mark.parametrize("what", BAD_QUERIES)
async def test_a_bad_filter_is_refused(to_observe: Scim, what: str) -> None:
    """RFC 7644 section 3.4.2.2: a filter that cannot be understood is 400 `invalidFilter`, never an empty list."""
    said = await to_observe.send("GET", f"/Users?filter={quote(BAD_QUERIES[what])}")

    assert said.is_scim_error(400, "invalidFilter"), (said.status, said.text)
    assert said.took_s < ANSWER_MAX_S


async def test_the_character_that_no_database_takes_is_refused_everywhere(to_observe: Scim) -> None:
    """Security requirement S8: U+0000 is refused in filters and ids as in bodies."""
    for path in ("/Users?filter=" + quote('userName eq "\x00"'), "/Users?attributes=%00", "/Users?filter=%00"):
        said = await to_observe.send("GET", path)
        assert said.is_scim_error(400), (path, said.status, said.text)


async def test_bad_paging_and_long_addresses_are_refused(to_observe: Scim) -> None:
    """RFC 7644 section 3.4.2.4 and the limits: words for numbers are 400, an address beyond 8 KiB is 414."""
    for query in ("startIndex=x", "count=1e9", "count=" + "9" * 400):
        said = await to_observe.send("GET", f"/Users?{query}")
        assert said.is_scim_error(400), (query[:40], said.status, said.text)
    said = await to_observe.send("GET", "/Users?filter=" + "a" * 20_000)
    assert said.status in (414, 431), said.status
    said = await to_observe.send("GET", "/Users", headers={"X-Padding": "a" * 20_000})
    assert said.status in (400, 431), said.status


async def test_ids_of_another_target_answer_like_ids_of_nobody(
    system: Running, session: aiohttp.ClientSession, to_observe: Scim, to_talkdesk: Scim
) -> None:
    """Invariant I11: nothing of one target is visible or changeable through another, and the answers do not tell them apart."""
    created = await to_observe.create(user())
    nobody = "00000000-0000-4000-8000-000000000000"
    try:
        for method, body in (("GET", None), ("PATCH", replacing(active=False)), ("PUT", user()), ("DELETE", None)):
            foreign = await to_talkdesk.send(method, f"/Users/{created.id}", body)
            unknown = await to_talkdesk.send(method, f"/Users/{nobody}", body)
            assert foreign.is_scim_error(404), (method, foreign.status, foreign.text)
            assert foreign.text == unknown.text
        assert await to_talkdesk.find(created.document["userName"]) == []
        assert (await to_observe.get(created.id)).status == 200
        for odd in ("..", "%2e%2e%2fUsers", "a" * 300, "%00", "';drop table resource;--", "%F0%9F%98%80"):
            said = await to_observe.send("GET", f"/Users/{odd}")
            assert said.status in (400, 404, 405), (odd, said.status, said.text)
            assert said.document["schemas"], said.text
    finally:
        await _removed(system, session, to_observe, created.id)


async def test_a_wrong_key_opens_nothing_and_all_refusals_look_alike(to_observe: Scim, to_talkdesk: Scim) -> None:
    """Security requirement S4: no key, another key, another target's key and an unknown target are the same 401."""
    own = to_observe.token
    answers = []
    for token in ("", "x", own[:-1], own + "x", own[::-1], to_talkdesk.token, "ü", "a" * 9_000):
        said = await to_observe.send(
            "POST", "/Users", user(), headers={"Authorization": f"Bearer {token}".encode().decode("latin-1")}
        )
        assert said.is_scim_error(401), (token[:20], said.status, said.text)
        assert "WWW-Authenticate" in said.headers
        answers.append(said.text)
    for scheme in ("", own, f"Basic {own}", f"Bearer  {own} {own}"):
        said = await to_observe.send("GET", "/Users", headers={"Authorization": scheme})
        assert said.is_scim_error(401), (scheme[:20], said.status, said.text)
        answers.append(said.text)
    async with to_observe.session.get(
        to_observe.url.replace("/observe", "/nobody") + "/Users", headers={"Authorization": f"Bearer {own}"}
    ) as unknown:
        assert unknown.status == 401
        answers.append(await unknown.text())
    alike = {re.sub(r"\b[0-9a-f]{16}\b", "ID", answer) for answer in answers}  # each refusal has a random id of its own
    assert len(alike) == 1, alike


async def test_unknown_addresses_and_methods_are_scim_errors(to_observe: Scim) -> None:
    """RFC 7644 section 3.12: also what is not there is answered in SCIM's own words."""
    for method, path, status in (
        ("GET", "/Nothing", 404),
        ("GET", "/Users/a/b", 404),
        ("POST", "/Bulk", 400),
        ("GET", "/Bulk", 405),
        ("PUT", "/Users", 405),
        ("PATCH", "/Users", 405),
        ("DELETE", "/Users", 405),
        ("POST", "/Schemas", 405),
    ):
        said = await to_observe.send(method, path, {})
        assert said.is_scim_error(status), (method, path, said.status, said.text)


@pytest.mark.parametrize("target", ["talkdesk", "babelforce", "telemessage"])
async def test_groups_of_a_product_without_groups_are_refused_with_the_setup_step(
    system: Running, session: aiohttp.ClientSession, target: str
) -> None:
    """Vendor requirements T4, B9 and M7: a search finds nothing, a write is refused and names the step that turns groups off."""
    scim = system.scim(session, target)
    found = await scim.send("GET", "/Groups?filter=" + quote('displayName eq "x"'))
    assert (found.status, found.document["totalResults"]) == (200, 0)

    refused = await scim.send("POST", "/Groups", {"displayName": "x"})

    assert refused.is_scim_error(400), refused.text
    assert "Provision Microsoft Entra ID Groups" in refused.document["detail"]


async def test_bad_input_never_reaches_the_product(to_talkdesk: Scim, talkdesk: Product) -> None:
    """Vendor rule 0.2: what cannot be right is refused before the first call."""
    since = await talkdesk.now()
    for spoiled in (
        a_talkdesk_user("no address"),
        a_talkdesk_user(name={"givenName": "", "familyName": "Family"}),
        a_talkdesk_user(name={"givenName": "Given"}),
        a_talkdesk_user(role="Agent;Ghost"),
    ):
        said = await to_talkdesk.create(spoiled)
        assert said.is_scim_error(400), (said.status, said.text)
    assert await talkdesk.calls(since) == []


async def _stored(system: Running, session: aiohttp.ClientSession, name: str) -> dict[str, int]:
    """Resources by state. What was deleted is kept for the record, and a refused create for the next one: both are hidden."""
    states = (await system.target(session, name))["states"]
    return {state: count for state, count in states.items() if state not in ("gone", "rejected")}


async def _removed(system: Running, session: aiohttp.ClientSession, scim: Scim, resource: str) -> None:
    """Delete, and wait until the deletion is applied; what is gone is not counted."""
    assert (await scim.delete(resource)).status == 204
    await system.settled(session, "observe", 20.0)
